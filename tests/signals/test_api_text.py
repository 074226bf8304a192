"""Token log-probabilities of an API against the model that they come from, and everything an API may get wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.data import RowEncoder, build_dataset
from lmdistill.data.documents import DataReport, Document
from lmdistill.errors import DataError
from lmdistill.models import load_model, load_tokenizer
from lmdistill.objectives import distillation_loss
from lmdistill.progress import Progress
from lmdistill.recipe import DataSpec, ModelSpec, SignalSpec
from lmdistill.signals import TopKSignal
from lmdistill.signals.answers import AnswersEngine, read_answers
from lmdistill.signals.api_text import Tally, Vocabulary, signal_of_answer
from lmdistill.signals.engine import Ask
from lmdistill.signals.kinds import load_kind
from lmdistill.signals.label import label
from lmdistill.signals.local import LocalEngine
from lmdistill.signals.manifest import Source
from lmdistill.signals.store import SignalStore, TrainingSequence
from lmdistill.teachers.token_bytes import TokenBytes

ANSWERS = [
    "The capital of France is Paris.",
    "Naïve cafés serve crème brûlée — and 日本茶 🙂!",
    "One, two, three;\n\nfour.",
]


class Api:
    """A tiny random model with SmolLM2's tokenizer, speaking as an OpenAI-compatible API does."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(ModelSpec(model=str(folder)))
        self.model = load_model(ModelSpec(model=str(folder)), dtype=torch.float32, device=torch.device("cpu"))
        with torch.no_grad():
            self.model.get_input_embeddings().weight.mul_(40)  # tied to the head: far from uniform, as teachers are
        known = TokenBytes(self.tokenizer)
        self.vocabulary = Vocabulary(known.pieces, known.by_bytes(), known.encoder.control_ids)
        self.names = known.names
        self.encoder = RowEncoder(self.tokenizer)

    def document(self, answer: str, question: str = "What?") -> Document:
        return Document(messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}])

    def logs(self, document: Document) -> tuple[list[int], torch.Tensor]:
        """The answer's ids, end marker included, and the log-probabilities (N, V) before each of them."""
        row = next(iter(self.encoder.encode([document])))
        places = np.flatnonzero(row.trained_L)
        with torch.no_grad():
            log_LV = self.model(torch.tensor(row.ids_L)[None].long()).logits[0].log_softmax(-1)
        return row.ids_L[places].tolist(), log_LV[places - 1]

    def _token(self, token: int) -> dict[str, Any]:
        data = self.vocabulary.pieces[token]
        return {"token": data.decode("utf-8", "replace"), "bytes": list(data)}

    def chat(self, document: Document, k: int = 20, ends: bool = True) -> dict[str, Any]:
        ids, log_NV = self.logs(document)
        content = []
        for token, log_V in zip(ids, log_NV, strict=True):
            if token in self.names and not ends:
                continue
            best = log_V.topk(k)
            others = [
                {**self._token(int(i)), "logprob": float(v)} for i, v in zip(best.indices, best.values, strict=True)
            ]
            content.append({**self._token(token), "logprob": float(log_V[token]), "top_logprobs": others})
        return {"content": content}

    def completion(self, document: Document, k: int = 5) -> dict[str, Any]:
        ids, log_NV = self.logs(document)

        def text(token: int) -> str:
            data = self.vocabulary.pieces[token]
            try:
                return data.decode()
            except UnicodeDecodeError:
                return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

        tops = [log_V.topk(k) for log_V in log_NV]
        return {
            "tokens": [text(token) for token in ids],
            "token_logprobs": [float(log_V[token]) for token, log_V in zip(ids, log_NV, strict=True)],
            "top_logprobs": [
                {text(int(i)): float(v) for i, v in zip(top.indices, top.values, strict=True)} for top in tops
            ],
        }


@pytest.fixture(scope="module")
def api(tiny_llama_folder: Path) -> Api:
    return Api(tiny_llama_folder)


def expected(api: Api, document: Document, k: int) -> list[dict[int, float]]:
    """By definition: the k likeliest ids and the text's own, each where its bytes are one token."""
    ids, log_NV = api.logs(document)
    found = []
    for own, log_V in zip(ids, log_NV, strict=True):
        chosen = {*map(int, log_V.topk(k).indices), own}
        pieces = api.vocabulary.pieces
        kept = {i for i in chosen if i in api.names or api.vocabulary.ids.get(pieces[i]) == i}
        found.append({i: float(log_V[i]) for i in kept})
    return found


def same(payload: dict[str, Any], wanted: Sequence[dict[int, float]], k: int) -> None:
    for ids_k, logprobs_k, position in zip(payload["ids"], payload["logprobs"], wanted, strict=True):
        found = {int(i): float(v) for i, v in zip(ids_k, logprobs_k, strict=True) if v > -np.inf}
        best = sorted(position.items(), key=lambda entry: (-entry[1], entry[0]))[:k]
        assert found == pytest.approx(dict(best), abs=1e-5)
        values = logprobs_k[logprobs_k > -np.inf]
        assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("shape", ["chat", "completion"])
def test_what_the_api_says_is_what_its_model_says(answer: str, shape: str, api: Api) -> None:
    document = api.document(answer)
    k = 20 if shape == "chat" else 5
    said = api.chat(document) if shape == "chat" else api.completion(document)
    ids, _ = api.logs(document)
    payload, tally = signal_of_answer(json.loads(json.dumps(said)), answer, ids, api.vocabulary, k, "here")
    same(payload, expected(api, document, k), k)
    assert (tally.signals, tally.cut_otherwise, tally.unsaid) == (len(ids), 0, 0)


def test_an_end_that_the_api_does_not_mention_has_no_signal(api: Api) -> None:
    document = api.document(ANSWERS[0])
    ids, _ = api.logs(document)
    payload, tally = signal_of_answer(api.chat(document, ends=False), ANSWERS[0], ids, api.vocabulary, 20, "here")
    assert tally.unsaid == 1
    assert (payload["logprobs"][-1] == -np.inf).all()
    same({name: array[:-1] for name, array in payload.items()}, expected(api, document, 20)[:-1], 20)


def test_an_end_that_is_written_as_nothing_is_the_rows_own(api: Api) -> None:
    document = api.document(ANSWERS[0])
    said = api.chat(document)
    said["content"][-1].update(token="", bytes=[], logprob=-0.5, top_logprobs=[])  # llama.cpp writes it so
    ids, _ = api.logs(document)
    payload, _ = signal_of_answer(said, ANSWERS[0], ids, api.vocabulary, 20, "here")
    assert payload["ids"][-1][0] == ids[-1]
    assert payload["logprobs"][-1][0] == pytest.approx(-0.5)
    assert (payload["logprobs"][-1][1:] == -np.inf).all()


def test_tokens_that_are_cut_otherwise_have_no_signal_and_the_others_keep_theirs(api: Api) -> None:
    document = api.document(ANSWERS[0])
    said = api.chat(document)
    ids, _ = api.logs(document)
    at = next(n for n, item in enumerate(said["content"]) if item["token"] == " capital")
    head = {**said["content"][at], "token": " cap", "bytes": list(b" cap")}
    said["content"][at : at + 1] = [head, {**head, "token": "ital", "bytes": list(b"ital")}]
    payload, tally = signal_of_answer(said, ANSWERS[0], ids, api.vocabulary, 20, "here")
    assert (tally.cut_otherwise, tally.signals) == (1, len(ids) - 1)
    assert (payload["logprobs"][at] == -np.inf).all()
    wanted = expected(api, document, 20)
    wanted[at] = {}
    same(payload, wanted, 20)


def test_alternatives_of_no_single_token_join_the_tail(api: Api) -> None:
    document = api.document("Paris.")
    said = api.chat(document)
    ids, _ = api.logs(document)
    first = said["content"][0]
    first["top_logprobs"] = [
        {"token": "Paris", "bytes": list(b"Paris"), "logprob": math.log(0.5)},
        {"token": "no such token at all", "bytes": list(b"no such token at all"), "logprob": math.log(0.25)},
        {"token": "\ufffd", "bytes": None, "logprob": math.log(0.125)},
    ]
    first["logprob"] = math.log(0.5)
    payload, tally = signal_of_answer(said, "Paris.", ids, api.vocabulary, 20, "here")
    assert payload["logprobs"][0][0] == pytest.approx(math.log(0.5))
    assert (payload["logprobs"][0][1:] == -np.inf).all()
    assert tally.unknown == 2
    assert tally.unknown_mass == pytest.approx(0.375)
    assert "2 log-probabilities" in tally.sentence()


def broken(said: dict[str, Any], what: str) -> Any:
    first = said["content"][0]
    if what == "none":
        return None
    if what == "other":
        return {"tops": []}
    if what == "shape":
        first["logprob"] = None
    if what == "nan":
        first["top_logprobs"][1]["logprob"] = math.nan
    if what == "positive":
        first["top_logprobs"][1]["logprob"] = 0.3
    if what == "mass":
        for other in first["top_logprobs"]:
            other["logprob"] = math.log(0.2)
    if what == "other text":
        said["content"][2].update(token="x", bytes=[120])
    if what == "cut short":
        del said["content"][3:]
    return said


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("none", "answers:7: no log-probabilities; .* top_logprobs: 20"),
        ("other", "answers:7: 'logprobs' holds tops; known are 'content'"),
        ("shape", "answers:7: not a list of token log-probabilities"),
        ("nan", r"answers:7: log-probability nan of .*at most 0"),
        ("positive", r"answers:7: log-probability 0.3 of"),
        ("mass", r"answers:7: the probabilities at 'The' come to 4.*more than 1"),
        ("other text", "answers:7: the tokens' text is .* must be of one response"),
        ("cut short", "answers:7: the tokens' text is 'The capital of', the answer"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(what: str, words: str, api: Api) -> None:
    document = api.document(ANSWERS[0])
    ids, _ = api.logs(document)
    with pytest.raises(DataError, match=words):
        signal_of_answer(broken(api.chat(document), what), ANSWERS[0], ids, api.vocabulary, 20, "answers:7")


def test_openai_s_sign_for_very_unlikely_is_no_probability(api: Api) -> None:
    document = api.document(ANSWERS[0])
    said = api.chat(document)
    ids, log_NV = api.logs(document)
    said["content"][0]["logprob"] = -9999.0
    payload, _ = signal_of_answer(said, ANSWERS[0], ids, api.vocabulary, 20, "here")
    kept = set(payload["ids"][0][payload["logprobs"][0] > -np.inf].tolist())
    assert kept <= set(map(int, log_NV[0].topk(20).indices))


PIECES = [b"", b"a", b"b", b"ab", b" ", b" a", b"\xc3", b"\xa9", b"\xc3\xa9", b"<end>", b"ba"]
SMALL = Vocabulary(PIECES, {piece: number for number, piece in enumerate(PIECES) if number not in (0, 9)}, {"<end>": 9})


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[int], list[bytes], list[list[tuple[bytes, float]]]]:
    """A text, one way to cut it into ids, another into an API's tokens, and alternatives at each of these."""
    text = "".join(draw(st.lists(st.sampled_from(["a", "b", " ", "é"]), min_size=1, max_size=12)))
    data = text.encode()

    def cut(allowed: Sequence[bytes]) -> list[bytes]:
        found, at = [], 0
        while at < len(data):
            fitting = [piece for piece in allowed if piece and data.startswith(piece, at)]
            found.append(draw(st.sampled_from(fitting)))
            at += len(found[-1])
        return found

    ids = [SMALL.ids[piece] for piece in cut([*SMALL.ids])]
    theirs = cut([*SMALL.ids, b"aa", b"\xc3\xa9\xc3\xa9", b"bab"])
    others = []
    for _ in theirs:
        weights = draw(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
        names = draw(st.permutations([*SMALL.ids, b"zz", b"qq"]))[: len(weights)]
        total = sum(weights) * draw(st.floats(1.0, 3.0))
        others.append([(name, weight / total) for name, weight in zip(names, weights, strict=True)])
    return text, ids, theirs, others


@settings(max_examples=200, deadline=None)
@given(answers(), st.integers(1, 20))
def test_rows_are_sorted_finite_and_within_one(
    drawn: tuple[str, list[int], list[bytes], list[list[tuple[bytes, float]]]], k: int
) -> None:
    text, ids, theirs, others = drawn

    def named(data: bytes) -> dict[str, Any]:
        return {"token": data.decode("utf-8", "replace"), "bytes": list(data)}

    content = []
    for data, alternatives in zip(theirs, others, strict=True):
        listed = [{**named(name), "logprob": math.log(p)} for name, p in alternatives]
        own = next((p for name, p in alternatives if name == data), 1e-9)
        content.append({**named(data), "logprob": math.log(own), "top_logprobs": listed})
    payload, tally = signal_of_answer({"content": content}, text, ids, SMALL, k, "here")
    ends = np.cumsum([0, *map(len, theirs)])
    spans = set(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    own_ends = np.cumsum([0, *(len(PIECES[i]) for i in ids)])
    assert payload["ids"].shape == payload["logprobs"].shape == (len(ids), k)
    assert tally.signals + tally.cut_otherwise + tally.unsaid == len(ids)
    for place, (ids_k, logprobs_k) in enumerate(zip(payload["ids"], payload["logprobs"], strict=True)):
        values = logprobs_k[logprobs_k > -np.inf]
        assert np.isfinite(values).all()
        assert (values <= 0).all()
        assert (np.diff(values) <= 0).all()
        assert np.exp(values).sum() <= 1 + 1e-3
        assert len(set(ids_k[: len(values)].tolist())) == len(values)
        assert bool(len(values)) == ((int(own_ends[place]), int(own_ends[place + 1])) in spans)


def write(path: Path, api: Api, answers: Sequence[str]) -> list[Document]:
    documents = [api.document(answer, f"Question {number}?") for number, answer in enumerate(answers)]
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            assert document.messages is not None
            row = {"messages": document.messages[:1], "answer": document.messages[1]["content"]}
            file.write(json.dumps({**row, "logprobs": api.chat(document)}) + "\n")
    return documents


def test_a_store_of_answers_is_the_store_of_the_model_itself(api: Api, tmp_path: Path) -> None:
    documents = write(tmp_path / "answers.jsonl", api, [f"{text} {number}" for number in range(6) for text in ANSWERS])
    data = DataSpec.model_validate({"train": [{"path": "x"}], "max_length": 128})
    dataset = build_dataset(documents, api.tokenizer, data, seed=0, report=DataReport(), progress=Progress())
    items = [TrainingSequence.from_columns(row) for row in dataset]
    assert any(len(item.row_ids) > 1 for item in items)  # packed
    given_spec = SignalSpec(kind="top_k", k=20, resolution=0.002, calibration_tokens=256, shard_rows=2)
    source = Source(
        teacher="api",
        teacher_fingerprint="api",
        tokenizer_fingerprint="t",
        vocabulary_size=len(api.tokenizer),
        signal=given_spec.meaning(),
        seed=0,
        tables="",
        tables_sha256="",
    )
    theirs = AnswersEngine(given_spec, tmp_path / "answers.jsonl", api.vocabulary)
    ours = LocalEngine(api.model, len(api.tokenizer), given_spec)
    for name, engine in (("answers", theirs), ("model", ours)):
        label(items, source, given_spec, tmp_path / name, engine=lambda engine=engine: engine, progress=Progress())
    stores = [SignalStore(tmp_path / name) for name in ("answers", "model")]
    kinds = [load_kind(given_spec, store.tables(0)) for store in stores]
    for item in items:
        key, slots = item.key(source), np.arange(item.positions)[:, None]
        dense = np.zeros((2, item.positions, len(api.tokenizer)))
        for side, (store, kind) in enumerate(zip(stores, kinds, strict=True)):
            payload = kind.unpack(store.row(key).signal, item.positions)
            np.add.at(dense[side], (slots, payload["ids"]), np.exp(payload["logprobs"]))
        assert np.abs(dense[0] - dense[1]).max() < 0.0021  # a step: sums in another order may round otherwise
        assert dense[0].sum() > 0.5 * item.positions
    assert theirs.tally.unsaid == theirs.tally.cut_otherwise == 0


def test_rows_without_an_answer_and_files_that_are_none_are_named(api: Api, tmp_path: Path) -> None:
    write(tmp_path / "answers.jsonl", api, ["Paris."])
    engine = AnswersEngine(SignalSpec(kind="top_k", k=20), tmp_path / "answers.jsonl", api.vocabulary)
    row = TrainingSequence(np.arange(4, dtype=np.int32), np.array([0, 1, 1, 1], bool), np.zeros(1, np.int32), ("q",))
    with pytest.raises(DataError, match=r"no answer for the row q; are data\.train and signals\.answers"):
        next(engine.tell_all([Ask([row], [0])]))
    for text, words in (
        ('{"prompt": "a"}', ":1: 'response' is null"),
        ('{"text": "a"}', ":1: neither 'prompt' nor 'messages'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "there is no answer"),
        ("[1]", ":1: a JSON list"),
    ):
        (tmp_path / "bad.jsonl").write_text(text + "\n")
        with pytest.raises(DataError, match=words):
            list(read_answers(tmp_path / "bad.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_answers(tmp_path / "missing.jsonl"))


def test_an_earlier_turn_has_no_signal(api: Api, tmp_path: Path) -> None:
    document = Document(
        messages=[
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Bye?"},
            {"role": "assistant", "content": "Bye."},
        ]
    )
    row = next(iter(api.encoder.encode([document])))
    trained = np.flatnonzero(row.trained_L)
    last = trained[trained >= (row.last_answer or 0)]
    with torch.no_grad():
        log_LV = api.model(torch.tensor(row.ids_L)[None].long()).logits[0].log_softmax(-1)
    content = []
    for place in last:
        token = int(row.ids_L[place])
        own = {**api._token(token), "logprob": float(log_LV[place - 1, token])}
        content.append({**own, "top_logprobs": [own]})
    line = {"messages": document.messages, "logprobs": {"content": content}}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
    engine = AnswersEngine(SignalSpec(kind="top_k", k=20), tmp_path / "answers.jsonl", api.vocabulary)
    item = TrainingSequence(row.ids_L, row.trained_L, np.zeros(1, np.int32), (document.id,))
    (payload,) = engine.tell([item])
    earlier = len(trained) - len(last)
    assert earlier > 0
    assert (payload["logprobs"][:earlier] == -np.inf).all()
    assert (payload["logprobs"][earlier:, 0] > -np.inf).all()
    assert engine.tally.unsaid == earlier


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_a_position_without_a_signal_teaches_nothing(kind: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 8, requires_grad=True)
    head = torch.randn(50, 8)
    ids = torch.randint(0, 50, (3, 4))
    logs = torch.full((3, 4), -torch.inf)
    logs[1, 0] = -0.3
    loss = distillation_loss(hidden, head, TopKSignal(ids, logs), kind=kind).loss
    loss.backward()
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()
    assert hidden.grad[0].abs().max() < 1e-7
    assert hidden.grad[2].abs().max() < 1e-7
    assert hidden.grad[1].abs().max() > 1e-4


def test_tallies_add_up() -> None:
    one = Tally(1, 2, 3, 4, 5, 0.5)
    one.add(Tally(1, 1, 1, 1, 1, 0.25))
    assert one == Tally(2, 3, 4, 5, 6, 0.75)
