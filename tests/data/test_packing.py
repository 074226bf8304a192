"""Truncation keeps a prefix, a suffix or all; packing loses and cuts nothing; every count is exact."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.data.chat import EncodedRow
from lmdistill.data.documents import DataReport
from lmdistill.data.packing import Piece, pack, pieces_of, truncate
from lmdistill.errors import DataError
from lmdistill.recipe import DataSpec, SourceSpec

BOS = 999


def spec(max_length: int, truncation: str = "split") -> DataSpec:
    return DataSpec(train=[SourceSpec(path="x.jsonl")], max_length=max_length, truncation=truncation)


def text_row(length: int, lead: int = 0) -> EncodedRow:
    """Ids 0, 1, 2, ... so that a kept run shows where it comes from; all trained but the BOS."""
    ids_L = np.arange(length, dtype=np.int32)
    trained_L = np.ones(length, dtype=bool)
    ids_L[:lead] = BOS
    trained_L[:lead] = False
    return EncodedRow(ids_L, trained_L, "id", "x.jsonl:7", lead, None)


def chat_row(*parts: int, lead: int = 0) -> EncodedRow:
    """Lengths of prompt, answer, prompt, answer, ...; then one untrained token, as ChatML's line break."""
    trained = [bool(number % 2) for number, part in enumerate(parts) for _ in range(part)]
    row = text_row(len(trained) + 1, lead)
    trained_L = np.array([*trained, False])
    return EncodedRow(row.ids_L, trained_L, "id", "x.jsonl:7", lead, len(trained) - parts[-1])


def kept(row: EncodedRow, limit: int, policy: str) -> tuple[list[list[int]], DataReport]:
    report = DataReport()
    return [part.ids_L.tolist() for part in truncate(row, spec(limit, policy), report)], report


# --- truncation (RELIABILITY B4) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["split", "drop", "left", "right", "error"])
@pytest.mark.parametrize("length", [1, 9, 10])
def test_rows_that_fit_are_untouched(policy: str, length: int) -> None:
    row = text_row(length)
    report = DataReport()
    assert truncate(row, spec(10, policy), report) == [row]
    assert report == DataReport(longest=length)


@pytest.mark.parametrize("length", [11, 100])
def test_policies_on_plain_text(length: int) -> None:
    ids = list(range(length))
    pieces, report = kept(text_row(length), 10, "drop")
    assert (pieces, report.dropped) == ([], 1)
    pieces, report = kept(text_row(length), 10, "left")
    assert (pieces, report.truncated, report.answers_cut) == ([ids[-10:]], 1, 0)
    pieces, report = kept(text_row(length), 10, "right")
    assert (pieces, report.truncated) == ([ids[:10]], 1)
    with pytest.raises(
        DataError, match=rf"x\.jsonl:7: {length} tokens, more than max_length 10; raise data.max_length"
    ):
        kept(text_row(length), 10, "error")
    pieces, report = kept(text_row(length), 10, "split")
    assert [token for piece in pieces for token in piece] == ids
    assert (report.split, report.pieces, report.truncated) == (1, len(pieces), 0)
    assert report.longest == length


def test_the_last_piece_has_something_to_predict() -> None:
    assert [len(piece) for piece in kept(text_row(21), 10, "split")[0]] == [10, 9, 2]
    assert [len(piece) for piece in kept(text_row(22), 10, "split")[0]] == [10, 10, 2]
    # with a BOS in front of it, one token has
    assert [len(piece) for piece in kept(text_row(20, lead=1), 10, "split")[0]] == [10, 10, 2]


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 60), limit=st.integers(2, 12), lead=st.integers(0, 1))
def test_split_keeps_every_token_in_order_behind_a_bos(length: int, limit: int, lead: int) -> None:
    pieces, _ = kept(text_row(length + lead, lead), limit, "split")
    assert all(len(piece) <= limit for piece in pieces)
    assert all(piece[:lead] == [BOS] * lead for piece in pieces)
    assert [token for piece in pieces for token in piece[lead:]] == list(range(lead, length + lead))
    if limit > 2:
        assert all(len(piece) > 1 for piece in pieces) or length + lead == 1


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 60), limit=st.integers(2, 12), lead=st.integers(0, 1), chat=st.booleans())
def test_what_is_kept_is_a_prefix_or_a_suffix(length: int, limit: int, lead: int, chat: bool) -> None:
    row = chat_row(lead + 3, length, lead=lead) if chat else text_row(length + lead, lead)
    ids = row.ids_L.tolist()
    (right,), _ = kept(row, limit, "right")
    assert right == ids[: len(right)]
    (left,), _ = kept(row, limit, "left")
    assert left[:lead] == ids[:lead]
    assert left[lead:] == ids[len(ids) - len(left) + lead :]
    assert len(left) == len(right) == min(limit, len(ids))


def test_split_keeps_the_answer_of_a_chat_row() -> None:
    (piece,), report = kept(chat_row(20, 5), 10, "split")
    assert piece == list(range(16, 26))
    assert (report.truncated, report.answers_cut, report.dropped) == (1, 0, 0)
    # the answer, its line break and one token of the prompt fit exactly; one token more does not
    assert kept(chat_row(20, 8), 10, "split")[0] == [list(range(19, 29))]
    pieces, report = kept(chat_row(20, 9), 10, "split")
    assert (pieces, report.dropped, report.truncated) == ([], 1, 0)
    # a BOS is something to predict from
    assert kept(chat_row(20, 8, lead=1), 10, "split")[0] == [[BOS, *range(20, 29)]]
    assert kept(chat_row(20, 9, lead=1), 10, "split")[0] == []


def test_an_answer_without_its_beginning_is_not_trained() -> None:
    row = chat_row(4, 6, 3, 2)  # answers at 4..9 and 13..14
    (part,) = truncate(row, spec(10), DataReport())
    assert part.ids_L.tolist() == list(range(6, 16))
    assert part.ids_L[part.trained_L].tolist() == [13, 14]
    (part,) = truncate(row, spec(12), DataReport())  # begins where the answer does: its first token has no context
    assert part.ids_L[part.trained_L].tolist() == [4, 5, 6, 7, 8, 9, 13, 14]
    (part,) = truncate(row, spec(7), DataReport())
    assert part.ids_L.tolist() == list(range(9, 16))
    assert part.ids_L[part.trained_L].tolist() == [13, 14]


def test_cut_answers_are_counted() -> None:
    assert kept(chat_row(20, 9), 5, "left")[1].answers_cut == 1
    assert kept(chat_row(20, 3), 10, "left")[1].answers_cut == 0
    assert kept(chat_row(3, 20), 10, "right")[1].answers_cut == 1
    # only the line break behind the end marker goes
    assert kept(chat_row(5, 5), 10, "right")[1].answers_cut == 0


def test_rows_without_a_trained_token_are_left_out_and_counted() -> None:
    nothing = EncodedRow(np.arange(5, dtype=np.int32), np.zeros(5, bool), "n", "x:1", 0, 5)
    single = text_row(1)  # nothing before it to predict it from
    empty = EncodedRow(np.empty(0, np.int32), np.empty(0, bool), "e", "x:3", 0, None)
    report = DataReport()
    pieces = list(pieces_of([nothing, text_row(4), single, empty], spec(10), report))
    assert [len(piece) for piece in pieces] == [4]
    assert report.fully_masked == 3
    # cut so that the answer is gone
    report = DataReport()
    assert list(pieces_of([chat_row(12, 3)], spec(10, "right"), report)) == []
    assert (report.truncated, report.answers_cut, report.fully_masked) == (1, 1, 1)


# --- packing --------------------------------------------------------------------------------------------------------


def pieces(lengths: list[int]) -> list[Piece]:
    return [Piece(text_row(length), number) for number, length in enumerate(lengths)]


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), max_size=60), window=st.integers(1, 30))
def test_packing_keeps_every_row_whole_and_once(lengths: list[int], window: int) -> None:
    sequences = pack(pieces(lengths), 20, window)
    assert all(0 < sum(map(len, sequence)) <= 20 for sequence in sequences)
    numbers = [piece.number for sequence in sequences for piece in sequence]
    assert sorted(numbers) == list(range(len(lengths)))
    assert all(a.number < b.number for sequence in sequences for a, b in pairwise(sequence))
    firsts = [sequence[0].number for sequence in sequences]
    assert firsts == sorted(firsts)
    if window >= len(lengths):  # no two sequences would fit into one
        assert all(sum(map(len, one + other)) > 20 for one, other in combinations(sequences, 2))


def test_packing_fills_gaps_with_the_row_that_fits_best() -> None:
    sequences = pack(pieces([6, 7, 3, 4, 10]), 10)
    assert [[len(piece) for piece in sequence] for sequence in sequences] == [[6, 4], [7, 3], [10]]


def test_packing_fills_well() -> None:
    lengths = np.random.Generator(np.random.PCG64(0)).integers(20, 250, 5000).tolist()
    sequences = pack(pieces(lengths), 256)
    assert sum(lengths) / (256 * len(sequences)) > 0.98
