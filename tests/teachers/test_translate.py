"""Tokens of one tokenizer put into another's: every kind to every kind, any text, and what models write."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from cross_helpers import PLAIN, check, family, groups, make, translator
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.data.encode import CLOSE, OPEN, Encoder
from lmdistill.errors import DataError, ModelError
from lmdistill.teachers.control_map import match_controls
from lmdistill.teachers.token_bytes import TokenBytes, byte_alphabet, same_tokens
from lmdistill.teachers.translate import Translator

KINDS = [*PLAIN, "lower", "nfc", "unigram"]
PAIRS = [(student, teacher) for student in KINDS for teacher in KINDS]
PLAIN_PAIRS = [(student, teacher) for student in PLAIN for teacher in PLAIN]
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces, naïve café\n\n\n漢字 👩‍👩‍👧 e\u0301 ﬁ ½ İ \u200b end ",
    "<|im_end|> and </s> are words here, <0xE2> too",
    "a",
    " ",
    "",
]

pairs = pytest.mark.parametrize(("student", "teacher"), PAIRS)


def encoded(kind: str, text: str, *, lead: bool = True, end: bool = False) -> list[int]:
    """Ids of a text, control strings in it being words; with BOS and EOS where asked."""
    table = translator(kind, kind).student
    ids = table.encode(text).ids_L.tolist()
    tail = [int(table.tokenizer.eos_token_id)] if end else []
    return [*(table.lead_ids if lead else []), *ids, *tail]


@pairs
def test_some_texts(student: str, teacher: str) -> None:
    between = translator(student, teacher)
    for text, lead in product(TEXTS, (True, False)):
        ids = encoded(student, text, lead=lead, end=True)
        row = between.row(ids)
        check(between, ids, row)
        assert row.teacher_ids[-1] == between.teacher.tokenizer.eos_token_id
        if groups(row) and len(ids) > 1:
            i0, i1, j0, j1 = groups(row)[-1]
            rest = [row.student_units[i0 : i1 - 1].sum(), row.teacher_units[j0 : j1 - 1].sum()]
            assert rest == [0, 0], "EOS goes with EOS"
            assert bool(row.comparable_G[-1])


@settings(max_examples=250, deadline=None)
@given(pair=st.sampled_from(PLAIN_PAIRS), text=st.text(max_size=60))
def test_any_text_reaches_the_teacher_as_its_own_tokenizer_cuts_it(pair: tuple[str, str], text: str) -> None:
    student, teacher = pair
    text = text.encode("utf-8", "ignore").decode().replace("▁", "")
    between = translator(student, teacher)
    ids = encoded(student, text)
    row = between.row(ids)
    check(between, ids, row)
    assert bool(row.comparable_G.all())
    if not (text.startswith(" ") and between.student.space_first) and OPEN not in text and CLOSE not in text:
        assert row.teacher_ids == encoded(teacher, text)


@settings(max_examples=400, deadline=None)
@given(pair=st.sampled_from(PAIRS), data=st.data())
def test_whatever_a_student_writes(pair: tuple[str, str], data: st.DataObject) -> None:
    """Any ids in any order: halves of characters, control tokens, unknown ones."""
    between = translator(*pair)
    ids = data.draw(st.lists(st.integers(0, between.student.size - 1), max_size=25))
    check(between, ids, between.row(ids))


def test_halves_of_characters_become_byte_tokens() -> None:
    between = translator("chatml", "gemma")
    bear = encoded("chatml", "🐻")
    assert len(bear) == 4
    row = between.row([*encoded("chatml", "a"), *bear[:2]])
    assert [between.teacher.tokenizer.convert_ids_to_tokens(i) for i in row.teacher_ids[-2:]] == ["<0xF0>", "<0x9F>"]
    assert groups(row) == [(0, 1, 1, 2), (1, 2, 2, 3), (2, 3, 3, 4)]
    assert row.comparable_G.all()
    without_bytes = translator("chatml", "unigram").row(bear[:2])
    assert not without_bytes.comparable_G.any()


def test_bos_on_one_side_only_is_in_no_group() -> None:
    """In TRL the whole sequence once fell into one group (trl#5885)."""
    ids = encoded("llama3", "quick brown")
    row = translator("llama3", "chatml").row(ids)
    assert row.student_units[0] == 0
    assert groups(row)[0][:2] == (1, 2)
    assert groups(row)[0][2] == 0
    back = encoded("chatml", "quick brown")
    other = translator("chatml", "llama3").row(back)
    assert other.teacher_ids[0] == make("llama3").bos_token_id
    assert groups(other)[0][::2] == (0, 1)


def test_the_space_before_a_text_is_no_byte_of_it() -> None:
    between = translator("chatml", "llama2")
    row = between.row(encoded("chatml", "quick quick"))
    assert between.teacher.pieces[row.teacher_ids[1]].startswith(b" ")
    assert row.teacher_units[1:].sum() == len("quick quick")
    legacy = translator("chatml", "llama2 legacy")
    assert legacy.teacher.space_after_control
    assert not between.teacher.space_after_control
    end = int(make("chatml").eos_token_id)
    after_end = legacy.row([*encoded("chatml", "quick"), end, *encoded("chatml", "quick")])
    check(legacy, [*encoded("chatml", "quick"), end, *encoded("chatml", "quick")], after_end)
    assert after_end.teacher_units.sum() == len("quick") * 2 + len("<|im_end|>")


def test_a_teacher_that_changes_texts_is_placed_by_characters() -> None:
    between = translator("chatml", "lower")
    text = "ﬁne ½ KIND"
    ids = encoded("chatml", text)
    row = between.row(ids)
    assert between.teacher.join(row.teacher_ids[1:]).decode() == "fine 1⁄2 kind"
    assert row.teacher_units.sum() == len(text.encode())
    said = [between.student.join(ids[i0:i1]).decode(errors="replace") for i0, i1, _, _ in groups(row)]
    told = [between.teacher.join(row.teacher_ids[j0:j1]).decode(errors="replace") for _, _, j0, j1 in groups(row)]
    pieces = dict(zip(said, told, strict=True))
    assert pieces == {"ﬁne": "fine", " ": " ", "½": "1⁄2", " KIND": " kind"}


def test_a_character_that_the_teacher_cannot_say_is_not_compared() -> None:
    """Vocabularies over ▁ read a space where the character itself stands."""
    between = translator("chatml", "gemma")
    row = between.row(encoded("chatml", "a▁b"))
    assert between.teacher.join(row.teacher_ids[1:]) == b"a b"
    assert row.teacher_units[1:].sum() == 5
    assert groups(row)[0] == (0, 1, 1, 2)
    assert row.comparable_G.tolist() == [True, *[False] * (len(row.alignment) - 1)][: len(row.alignment)]


def test_what_the_teacher_does_not_know_is_not_compared() -> None:
    between = translator("chatml", "unigram")
    ids = encoded("chatml", "quick 漢 brown")
    row = between.row(ids)
    said = {between.student.join(ids[i0:i1]).decode(errors="replace") for i0, i1, _, _ in groups(row)}
    kept = [
        between.student.join(ids[i0:i1]).decode(errors="replace")
        for (i0, i1, _, _), comparable in zip(groups(row), row.comparable_G.tolist(), strict=True)
        if comparable
    ]
    assert any("漢" in piece for piece in said)
    assert not any("漢" in piece for piece in kept)
    assert "".join(kept).startswith("quick")


def test_control_tokens_go_by_their_part() -> None:
    between = translator("llama3", "gemma")
    named = between.controls.named(between.student, between.teacher)
    assert named == {"<|begin_of_text|>": "<bos>", "<|end_of_text|>": "<eos>"}
    ids = [
        *encoded("llama3", "Hello"),
        make("llama3").convert_tokens_to_ids("<|eot_id|>"),
        *encoded("llama3", "Be")[1:],
    ]
    row = between.row(ids)
    check(between, ids, row)
    assert b"<|eot_id|>" in between.teacher.join(row.teacher_ids), "without a counterpart it is read as text"
    place = ids.index(make("llama3").convert_tokens_to_ids("<|eot_id|>"))
    around = zip(groups(row), row.comparable_G.tolist(), strict=True)
    assert [comparable for (i0, i1, _, _), comparable in around if i0 <= place < i1] == [False]
    own = Translator(make("llama3"), make("gemma"), controls={"<|eot_id|>": "<end_of_turn>"})
    paired = own.row(ids)
    assert make("gemma").convert_tokens_to_ids("<end_of_turn>") in paired.teacher_ids
    assert paired.comparable_G.all()
    with pytest.raises(ModelError, match="'<none>' is no control token of the teacher's"):
        Translator(make("llama3"), make("gemma"), controls={"<|eot_id|>": "<none>"})


def test_the_teacher_reads_its_own_chat_template() -> None:
    """ChatML's headers become Gemma's; ends of turns are paired and compared, headers are not."""
    student, teacher = family.make_tokenizer("chatml", family.CHATML), family.make_tokenizer("gemma", family.GEMMA)
    between = Translator(student, teacher)
    assert between.controls.named(between.student, between.teacher)["<|im_end|>"] == "<end_of_turn>"
    conversation = [
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "content": "It is four."},
        {"role": "user", "content": "Are you sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    ids = encoder_ids(student, student.apply_chat_template(conversation, tokenize=False))
    row = between.row(ids)
    own = encoder_ids(teacher, teacher.apply_chat_template(conversation, tokenize=False))
    assert row.teacher_ids == own
    names = student.convert_ids_to_tokens(ids)
    ends = [number for number, name in enumerate(names) if name == "<|im_end|>"]
    starts = [number for number, name in enumerate(names) if name == "<|im_start|>"]
    found = {i: bool(c) for (i0, i1, _, _), c in zip(groups(row), row.comparable_G, strict=True) for i in range(i0, i1)}
    assert all(found[end] for end in ends)
    assert not any(found[start] for start in starts)
    assert all(found[start - 2] for start in starts[1:]), "contents are compared up to their last token"


def encoder_ids(tokenizer: object, rendered: str) -> list[int]:
    """A rendered conversation as ids, its control strings being control tokens."""
    encoder = Encoder(tokenizer)  # type: ignore[arg-type]
    return encoder.encode([encoder.reveal(rendered)])[0].ids_L.tolist()


def test_what_the_teacher_cannot_hold_is_cut() -> None:
    between = Translator(make("chatml"), make("gemma"), max_length=4)
    row = between.row(encoded("chatml", "The quick brown fox"))
    assert len(row.teacher_ids) == len(row.teacher_units) == 4
    assert groups(row)[-1][3] <= 4
    assert len(row.comparable_G) == len(row.alignment)


def test_ids_of_another_tokenizer_are_refused() -> None:
    between = translator("chatml", "gemma")
    with pytest.raises(
        DataError, match=r"id 90000 in a text, but the tokenizer has \d+ tokens; is it the other model's"
    ):
        between.row([3, 90000])


def test_decoders_of_other_kinds_are_refused() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "[SEP]": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]")
    with pytest.raises(ModelError, match=r"decoder \(WordPiece\) is neither byte-level"):
        TokenBytes(fast)


def test_the_alphabet_of_bytes_is_one_to_one() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_what_the_tokenizers_own_decoder_writes(kind: str) -> None:
    table = translator(kind, kind).student
    for text in ["The quick brown fox", "Yes. It is four."]:
        ids = table.encode(text).ids_L.tolist()
        assert table.join(ids).decode().strip() == table.tokenizer.decode(ids).strip()


def test_same_tokens_are_the_same_bytes() -> None:
    chatml, gemma = translator("chatml", "gemma").student, translator("chatml", "gemma").teacher
    match = same_tokens(chatml, gemma, {2: 1})
    found = dict(zip(match.student_ids_C.tolist(), match.teacher_ids_C.tolist(), strict=True))
    assert found.pop(2) == 1
    for ours, theirs in found.items():
        assert chatml.pieces[ours] == gemma.pieces[theirs]
    spaced = [chatml.pieces[ours] for ours in found if chatml.pieces[ours].startswith(b" ")]
    assert spaced, "Ġ and ▁ are both a space; a comparison of spellings finds none of these"
    plain_a = chatml.by_bytes()[b"a"]
    assert gemma.tokenizer.convert_ids_to_tokens(found[plain_a]) == "a", "not the byte token <0x61>"
    few = same_tokens(chatml, gemma, sizes=(50, 40))
    assert int(few.student_ids_C.max()) < 50
    assert int(few.teacher_ids_C.max()) < 40


def test_a_map_is_empty_where_nothing_fits() -> None:
    one = TokenBytes(make("unigram"))
    assert match_controls(one, one).headers == {}
    assert torch.equal(same_tokens(one, one).student_ids_C, same_tokens(one, one).teacher_ids_C)
