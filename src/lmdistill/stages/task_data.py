"""The rows of a run with a task: read, labelled with numbers, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lmdistill.data import DataReport
from lmdistill.data.documents import merge_reports
from lmdistill.errors import DataError
from lmdistill.recipe import SourceSpec, StageSpec, recipe_stages
from lmdistill.recipe.task import TaskKind, TaskSpec
from lmdistill.stages.context import Context
from lmdistill.stages.prepare import Sources
from lmdistill.tasks.encode import TaskCollator, encode_examples
from lmdistill.tasks.rows import Example, classes_of, read_examples


@dataclass
class TaskData:
    """What a run with a task reads."""

    task: TaskSpec
    tokenizer: PreTrainedTokenizerBase
    classes: list[str]
    labelled: list[Example]
    """The rows of all stages of the recipe's own task."""
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """Rows by source."""
    heldout: dict[str, Dataset] = field(default_factory=dict)
    reports: dict[str, DataReport] = field(default_factory=dict)
    made: dict[str, list[Example]] = field(default_factory=dict)
    """Rows made of others, by a name for these."""
    sources: Sources = field(default_factory=Sources)
    """All texts, for what training and held-out rows share."""

    def collator(self, kind: TaskKind, *, fixed: bool = False) -> TaskCollator:
        """What makes batches; `fixed` masks the same tokens each time."""
        return TaskCollator(kind, self.tokenizer, self.task.masking, seed=0 if fixed else None)


def kind_of(task: TaskSpec, stage: StageSpec) -> TaskKind:
    """What a stage trains."""
    return stage.task or task.kind


def read_task(context: Context, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """Read all sources, find the classes and encode the held-out rows. Raises DataError."""
    recipe = context.recipe
    task = recipe.task
    assert task is not None
    data = TaskData(task, tokenizer, [], [])
    for stage in recipe_stages(recipe):
        for source in stage.train or []:
            _read(context, data, source, kind_of(task, stage))
    own = [stage for stage in recipe_stages(recipe) if kind_of(task, stage) == task.kind]
    seen = dict.fromkeys(_key(source, task.kind) for stage in own for source in stage.train or [])
    data.labelled = [example for key in seen for example in data.examples[key]]
    if task.has_classes:
        data.classes = classes_of(task, data.labelled)
    for name, source in recipe.data.evaluation.items():
        examples, report = _examples(context, source, task.kind)
        data.heldout[name] = encode_examples(
            examples, task.kind, data.classes, tokenizer, recipe.data.max_length, report
        )
        data.reports[name] = report
        data.sources.heldout[name] = [example.document for example in examples]
    return data


def stage_rows(
    data: TaskData,
    stage: StageSpec,
    kind: TaskKind,
    max_length: int,
    extra: Sequence[Example] = (),
    instead: Sequence[Example] | None = None,
) -> tuple[Dataset, DataReport]:
    """The encoded rows of a stage, those that were made from them (`extra`) behind them, or others in their place.

    Raises DataError where there are none.
    """
    if instead is not None:
        report = DataReport(sources=["self-sampled"], rows_read=len(instead), documents=len(instead))
        return encode_examples(instead, kind, data.classes, data.tokenizer, max_length, report), report
    keys = [_key(source, kind) for source in stage.train or []]
    examples = [example for key in keys for example in data.examples[key]]
    if not examples:
        raise DataError(f"stage {stage.name}: its sources hold no rows; see stages.{stage.name}.train")
    report = merge_reports([data.reports[key] for key in keys])
    report.documents += len(extra)
    classes = data.classes if kind == data.task.kind else []
    return encode_examples([*examples, *extra], kind, classes, data.tokenizer, max_length, report), report


def _read(context: Context, data: TaskData, source: SourceSpec, kind: TaskKind) -> None:
    key = _key(source, kind)
    if key not in data.examples:
        data.examples[key], data.reports[key] = _examples(context, source, kind)
        data.sources.train[key] = [example.document for example in data.examples[key]]


def _examples(context: Context, source: SourceSpec, kind: TaskKind) -> tuple[list[Example], DataReport]:
    recipe = context.recipe
    assert recipe.task is not None
    return read_examples(
        source,
        recipe.task,
        seed=recipe.seed,
        on_bad_rows=recipe.data.on_bad_rows,
        progress=context.progress,
        kind=kind,
    )


def _key(source: SourceSpec, kind: TaskKind) -> str:
    return f"{kind}:{source.model_dump_json()}"
