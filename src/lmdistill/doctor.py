"""Is this combination of teacher, student, data and machine sound? Asked before anything is spent.

Only configurations, tokenizers and first rows are read; no weights are loaded. Every finding says what is wrong with
both numbers and what to do; all are collected before anything is refused.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from pydantic import BaseModel, ConfigDict
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from lmdistill.data import first_documents
from lmdistill.errors import LmdistillError, ModelError, RecipeError, ServerLost, TokenizerMismatch
from lmdistill.evaluation.responses import check_responses
from lmdistill.evaluation.suites import check_suites
from lmdistill.io import free_bytes
from lmdistill.models import (
    bfloat16_speedup,
    fastest_dtype,
    load_config,
    load_tokenizer,
    pick_device,
    quiet_transformers,
)
from lmdistill.objectives import find_divergence
from lmdistill.objectives.chunked import CHUNK_BYTES
from lmdistill.objectives.rows import compiler_works
from lmdistill.packages import resolve_path
from lmdistill.progress import Progress
from lmdistill.recipe import ModelSpec, ObjectiveSpec, Recipe, recipe_stages
from lmdistill.recipe.whole import REMOTE
from lmdistill.signals.manifest import MANIFEST, read_manifest
from lmdistill.signals.sources import check_source, source_of, store_folder
from lmdistill.students.plan import planned_config
from lmdistill.tasks.checks import check_length, check_models, check_rows
from lmdistill.teachers import ServedTeacher, served_bias
from lmdistill.teachers.coverage import coverage
from lmdistill.training.arguments import DEFAULTS, training_arguments
from lmdistill.training.hint_pairs import hint_problems

Severity = Literal["ok", "note", "warning", "error"]

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  leading and   inner spaces\tand tabs\n\nnew lines  ",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2.5e-3]}  # code",
    "Ünïcödé naïve café — “quotes” … 漢字 かな 한국어 Привет עברית العربية",
    "👩‍👩‍👧 🏳️‍🌈 e\u0301 ﬁ ½ \u200b zero width",
    "1234567890 3.14159 1,000,000 2026-11-24",
    "ANTIDISESTABLISHMENTARIANISM CamelCaseWords snake_case http://example.org/?q=1&r=2",
)
_FIRST_ROWS = 20
_CONDITIONAL = ("llama", "gemma")


class Finding(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(extra="forbid")

    check: str
    severity: Severity
    message: str
    fix: str = ""


class MemoryTerm(BaseModel):
    """One part of the memory estimate."""

    model_config = ConfigDict(extra="forbid")

    term: str
    bytes: int


class Diagnosis(BaseModel):
    """Everything that was found, and the memory estimate term by term."""

    model_config = ConfigDict(extra="forbid")

    findings: list[Finding] = []
    memory: list[MemoryTerm] = []

    def raise_for_errors(self) -> None:
        """Raise one error with all that must be mended: TokenizerMismatch, ModelError or RecipeError."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if not errors:
            return
        text = "; ".join(f"{found.check}: {found.message}" + (f" {found.fix}" if found.fix else "") for found in errors)
        checks = {found.check for found in errors}
        if "tokenizer" in checks:
            raise TokenizerMismatch(text)
        raise (ModelError if checks & {"teacher", "student", "task_models"} else RecipeError)(text)


def examine(recipe: Recipe, *, progress: Progress | None = None) -> Diagnosis:
    """Check a recipe against its models, its data and this machine."""
    doctor = _Doctor(recipe)
    with (progress or Progress()).task("checks", total=len(doctor.checks), unit="checks") as task:
        for check in doctor.checks:
            try:
                check()
            except LmdistillError as error:
                doctor.say(check.__name__.lstrip("_"), "error", str(error))
            task.advance()
    return doctor.diagnosis


class _Doctor:
    """Runs the checks in order; later ones use what earlier ones loaded, where they could."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.diagnosis = Diagnosis()
        self.teacher_config: PreTrainedConfig | None = None
        self.student_config: PreTrainedConfig | None = None
        self.teacher_tokenizer: PreTrainedTokenizerBase | None = None
        self.student_tokenizer: PreTrainedTokenizerBase | None = None
        self.checks: list[Callable[[], None]] = [
            self._teacher,
            self._student,
            self._tokenizer,
            self._vocabulary,
            self._length,
            self._objective,
            self._training,
            self._data,
            self._coverage,
            self._signals,
            self._teaching,
            self._responses,
            self._suites,
            self._precision,
            self._licence,
            self._memory,
            self._disk,
        ]
        if recipe.task is not None:
            self.checks = [self._task_models, self._task_rows, self._training, self._precision, self._licence]

    def say(self, check: str, severity: Severity, message: str, fix: str = "") -> None:
        """Record a finding."""
        self.diagnosis.findings.append(Finding(check=check, severity=severity, message=message, fix=fix))

    def _teacher(self) -> None:
        if self.recipe.teacher_is_remote:
            self.say("teacher", "ok", f"{self.recipe.teacher.model.removeprefix(REMOTE)} behind an API: it writes text")
            return
        self.teacher_config = load_config(self.recipe.teacher)
        self.teacher_tokenizer = load_tokenizer(self.recipe.teacher)
        self.student_tokenizer = self.teacher_tokenizer
        count = _parameters(self.teacher_config)
        self.say(
            "teacher",
            "ok",
            f"{self.recipe.teacher.model}: {self.teacher_config.model_type}, {_short(count)} parameters",
        )

    def _student(self) -> None:
        if self.recipe.teacher_is_remote and self.recipe.student.model is not None:
            self.student_config = load_config(self.recipe.student.model)
            self.say("student", "ok", f"{_short(_parameters(self.student_config))} parameters")
            return
        if self.teacher_config is None:
            return
        self.student_config = planned_config(self.recipe.student, self.teacher_config)
        count, whole = _parameters(self.student_config), _parameters(self.teacher_config)
        self.say("student", "ok", f"{_short(count)} parameters, {count / whole:.0%} of the teacher's")

    def _task_models(self) -> None:
        for name, line in zip(("teacher", "student"), check_models(self.recipe), strict=True):
            self.say(name, "ok", line)
        check_length(self.recipe)

    def _task_rows(self) -> None:
        count = check_rows(self.recipe)
        self.say("data", "ok", f"the first rows of {count} sources have the task's columns")
        if not self.recipe.data.evaluation:
            fix = "Add data.evaluation, best with rows from another source too."
            self.say("data", "warning", "no held-out rows: nothing can be said about what was kept.", fix)

    def _tokenizer(self) -> None:
        spec = self.recipe.student
        objectives = [stage.objective for stage in recipe_stages(self.recipe) if stage.objective is not None]
        across = [objective for objective in objectives if objective.cross_tokenizer is not None]
        if spec.start != "pretrained" or spec.model is None or self.teacher_tokenizer is None:
            self.say("tokenizer", "ok", "the student uses the teacher's")
            if across:
                fix = "Use objective.divergence in place of objective.cross_tokenizer."
                self.say(
                    "tokenizer", "warning", "one tokenizer is compared as if there were two: slower, less exact.", fix
                )
            return
        self.student_tokenizer = student = load_tokenizer(spec.model)
        differences = tokenizer_differences(self.teacher_tokenizer, student)
        if differences and any(found.needs_teacher and found.cross_tokenizer is None for found in objectives):
            fix = (
                "Compare them by objective.cross_tokenizer (methods alm, gold, uld, dskd), use a student of the "
                "teacher's family or one cut from it, or text of the teacher's (method: seqkd)."
            )
            self.say("tokenizer", "error", f"teacher and student cut text differently: {differences[0]}.", fix)
        elif differences:
            self.say("tokenizer", "note", f"teacher's and student's differ ({differences[0]}); the objective allows it")
        else:
            self.say("tokenizer", "ok", f"the same ids for {len(PROBES)} probes and all special tokens")
        if self.teacher_tokenizer.chat_template != student.chat_template:
            self._templates(any(found.cross_tokenizer is not None for found in objectives))
        elif self.recipe.teaching.template == "teacher":
            self.say("chat template", "note", "teacher's and student's are the same: teaching.template changes nothing")

    def _templates(self, aligned: bool) -> None:
        """Teacher and student have different chat templates."""
        if self.recipe.teaching.template == "teacher":
            self.say("chat template", "ok", "teacher's and student's differ: each reads conversations under its own")
        elif aligned:
            self.say("chat template", "ok", "teacher's and student's differ: headers are translated with the text")
        else:
            self.say(
                "chat template",
                "warning",
                "teacher's and student's differ: in chat rows the teacher too reads the student's, which it has not "
                "learnt.",
                "Set teaching.template: teacher.",
            )

    def _vocabulary(self) -> None:
        for name, config, tokenizer in (
            ("teacher", self.teacher_config, self.teacher_tokenizer),
            ("student", self.student_config, self.student_tokenizer),
        ):
            rows = getattr(config, "vocab_size", None)
            trimmed = name == "student" and self.recipe.student.vocabulary is not None
            if tokenizer is None or rows is None or trimmed:
                continue
            real = len(tokenizer)
            if rows < real:
                self.say(
                    "vocabulary",
                    "error",
                    f"the {name}'s head has {rows} rows but its tokenizer {real} ids.",
                    "Get the model anew.",
                )
            elif rows > real:
                self.say(
                    "vocabulary",
                    "note",
                    f"{rows - real} of the {name}'s {rows} rows are padding: left out of every sum",
                )

    def _length(self) -> None:
        wanted = self.recipe.data.max_length
        for name, config in (("teacher", self.teacher_config), ("student", self.student_config)):
            room = getattr(config, "max_position_embeddings", None)
            if room is not None and wanted > room:
                self.say(
                    "length",
                    "error",
                    f"data.max_length = {wanted}, but the {name} reads at most {room} tokens.",
                    f"Lower it to {room}.",
                )

    def _objective(self) -> None:
        for place, stage in enumerate(recipe_stages(self.recipe)):
            if stage.objective is not None:
                self._terms(stage.objective, f"stages.{place}" if self.recipe.stages else "objective")

    def _terms(self, spec: ObjectiveSpec, place: str) -> None:
        try:
            find_divergence(spec.divergence.kind, **spec.divergence.parameters)
        except ValueError as error:
            self.say("objective", "error", f"{place}: {error}")
        if spec.hidden_cosine.weight and self.teacher_config is not None and self.student_config is not None:
            sizes = [config.get_text_config().hidden_size for config in (self.teacher_config, self.student_config)]
            if sizes[0] != sizes[1]:
                fix = "Keep the width, or set objective.hidden_cosine.weight to 0."
                self.say(
                    "objective",
                    "error",
                    f"hidden_cosine needs equal widths: teacher {sizes[0]}, student {sizes[1]}.",
                    fix,
                )
        if self.teacher_config is not None and self.student_config is not None:
            for problem in hint_problems(spec.hints, self.student_config, self.teacher_config):
                self.say("objective", "error", f"{place}: {problem}")

    def _training(self) -> None:
        device = pick_device(self.recipe.machine.device)
        with tempfile.TemporaryDirectory() as folder:
            for stage in recipe_stages(self.recipe):
                training_arguments(
                    stage.training,
                    folder=Path(folder),
                    seed=self.recipe.seed,
                    device=device,
                    fast_dtype=fastest_dtype(device),
                )
        self.say("training", "ok", "transformers accepts the arguments")

    def _data(self) -> None:
        sources = [source for stage in recipe_stages(self.recipe) for source in stage.train or []]
        sources = [source for source in sources if not source.is_generated]
        for source in [*sources, *self.recipe.data.evaluation.values()]:
            first_documents(source, _FIRST_ROWS, self.recipe.data.on_bad_rows)
        count = len(sources) + len(self.recipe.data.evaluation)
        self.say("data", "ok", f"the first rows of {count} sources can be read")
        if not self.recipe.data.evaluation:
            fix = "Add data.evaluation, best with text from another source too."
            self.say("data", "warning", "no held-out text: nothing can be said about what was kept.", fix)

    def _coverage(self) -> None:
        """How much of the text can be compared between tokenizers; refused below the recipe's threshold."""
        stages = [stage for stage in recipe_stages(self.recipe) if stage.objective is not None]
        spec = self.recipe.student
        across = [stage.objective.cross_tokenizer for stage in stages if stage.objective is not None]
        terms = [term for term in across if term is not None]
        if not terms or spec.model is None or self.teacher_tokenizer is None:
            return
        sources = [source for stage in stages for source in stage.train or []]
        texts = [
            document.plain
            for source in sources
            if not source.is_generated
            for document in first_documents(source, _FIRST_ROWS, self.recipe.data.on_bad_rows)
        ]
        found = coverage(self.student_tokenizer or load_tokenizer(spec.model), self.teacher_tokenizer, texts)
        share = found.of_bytes
        message = (
            f"of the bytes of {found.texts} texts {share.one_to_one:.1%} are one token of each tokenizer, "
            f"{share.merged:.1%} equal groups of several, {share.none:.1%} neither; of the student's tokens "
            f"{found.of_student_tokens.aligned:.1%} are compared; {found.shared_tokens:,} tokens stand in both"
        )
        problem = found.problem(max(term.minimum_coverage for term in terms))
        self.say("coverage", "ok" if problem is None else "error", message if problem is None else f"{problem}.")
        if not found.end_is_paired:
            fix = "The student learns when to stop from the text alone: give objective.cross_entropy a weight."
            self.say(
                "coverage", "warning", "the student's end of text has no counterpart in the teacher's tokens.", fix
            )

    def _signals(self) -> None:
        spec = self.recipe.signals
        if spec.kind == "live" or self.teacher_tokenizer is None:
            return
        folder = store_folder(self.recipe)
        if not (folder / MANIFEST).is_file():
            self.say("signals", "ok", f"{spec.kind}, to be labelled into {folder}")
            return
        manifest = read_manifest(folder)
        if manifest.sources and spec.kind != "head_expectation":  # there the student's head, not built yet, counts too
            check_source(manifest.sources, source_of(self.recipe, self.teacher_tokenizer), folder)
        rows = sum(shard.rows for shard in manifest.shards)
        self.say("signals", "ok", f"{spec.kind}: {rows} rows are in {folder}")

    def _responses(self) -> None:
        spec = self.recipe.evaluation.responses
        if spec is not None:
            check_responses(spec, self.recipe.data.evaluation)
            self.say("responses", "ok", f"up to {spec.prompts} prompts of each held-out text will be answered")

    def _suites(self) -> None:
        spec = self.recipe.evaluation.suites
        if spec is not None:
            check_suites(spec)
            self.say("suites", "ok", f"{', '.join(spec.chosen) or 'none'} will be run on every model")

    def _teaching(self) -> None:
        spec = self.recipe.teaching
        if spec.kind != "server" or spec.base_url is None or self.teacher_tokenizer is None:
            return
        name = spec.served_model or self.recipe.teacher.model
        try:
            teacher = ServedTeacher(spec.base_url, name, len(self.teacher_tokenizer), k=spec.k, requests=spec.requests)
            measured = teacher.measure([self.teacher_tokenizer(probe)["input_ids"] for probe in PROBES])
        except ServerLost as error:
            self.say(
                "teaching", "error", str(error), f"Start it, or name another in teaching.base_url: {spec.base_url}"
            )
            return
        self.say("teaching", "note", served_bias(spec.k, measured=measured))

    def _precision(self) -> None:
        device = pick_device(self.recipe.machine.device)
        if device.type == "cpu":
            ratio = bfloat16_speedup()
            fast = "bfloat16" if fastest_dtype(device) == torch.bfloat16 else "float32"
            self.say(
                "precision",
                "ok",
                f"this processor multiplies {ratio:.1f} times as fast in bfloat16 as in float32: {fast}",
            )
            if fast == "float32" and any(stage.training.get("bf16") for stage in recipe_stages(self.recipe)):
                self.say(
                    "precision",
                    "warning",
                    f"training.bf16 is on, but bfloat16 is {ratio:.1f} times as fast.",
                    "Leave it out.",
                )
        if self.recipe.machine.compile and not compiler_works(device.type):
            self.say("compiler", "warning", "torch.compile does not work here: the loss runs slower.", "Install g++.")

    def _licence(self) -> None:
        specs = {} if self.recipe.teacher_is_remote else {"teacher": self.recipe.teacher}
        if self.recipe.student.model is not None:
            specs["student"] = self.recipe.student.model
        for name, spec in specs.items():
            licence = licence_of(spec)
            if licence is None:
                fix = "Read its terms before you share a student of it."
                self.say("licence", "note", f"the {name}'s licence is not stated in its files.", fix)
            elif any(word in licence.lower() for word in _CONDITIONAL):
                self.say(
                    "licence",
                    "note",
                    f"the {name}'s licence ({licence}) sets conditions for models made with it.",
                    "Read it.",
                )
            else:
                self.say("licence", "ok", f"{name}: {licence}")

    def _memory(self) -> None:
        if self.teacher_config is None or self.student_config is None:
            return
        self.diagnosis.memory = memory_terms(self.recipe, self.teacher_config, self.student_config)
        total = sum(term.bytes for term in self.diagnosis.memory)
        limit = self.recipe.machine.memory_limit_gib
        room = int(limit * 2**30) if limit else _free_memory(pick_device(self.recipe.machine.device))
        message = f"about {_gib(total)} of {_gib(room)}"
        fix = "Lower training.per_device_train_batch_size or data.max_length, or set gradient_checkpointing."
        if total > room:
            self.say("memory", "error", f"{message}: it will not fit.", fix)
        elif total > 0.8 * room:
            self.say("memory", "warning", f"{message}: it may not fit.", fix)
        else:
            self.say("memory", "ok", message)

    def _disk(self) -> None:
        if self.student_config is None:
            return
        weights = 4 * _parameters(self.student_config)
        keep = int(self.recipe.training.get("save_total_limit", DEFAULTS["save_total_limit"])) + 1
        needed = keep * 3 * weights + 4 * weights
        free = free_bytes(self.recipe.folder)
        if needed > free:
            fix = "Free space, choose another folder with `runs`, or lower training.save_total_limit."
            self.say(
                "disk",
                "error",
                f"about {_gib(needed)} are needed and {_gib(free)} are free for {self.recipe.folder}.",
                fix,
            )
        else:
            self.say("disk", "ok", f"at most about {_gib(needed)} of {_gib(free)} free")


def tokenizer_differences(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> list[str]:
    """In what two tokenizers differ, worst first; empty where they give the same ids to the same text."""
    found = list(_probe_differences(teacher, student))
    left, right = teacher.get_vocab(), student.get_vocab()
    other = [token for token in left if right.get(token) != left[token]]
    extra = [token for token in right if token not in left]
    if other or extra:
        shown = ", ".join(f"{token!r} {left.get(token)}/{right.get(token)}" for token in [*other, *extra][:5])
        found.append(f"{len(other) + len(extra)} ids differ (teacher/student): {shown}")
    for name in ("bos_token", "eos_token", "unk_token"):
        if getattr(teacher, name, None) != getattr(student, name, None):
            found.append(f"{name} is {getattr(teacher, name, None)!r} and {getattr(student, name, None)!r}")
    return found


def _probe_differences(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> Iterator[str]:
    for probe in PROBES:
        ours, theirs = teacher(probe)["input_ids"], student(probe)["input_ids"]
        if ours != theirs:
            pairs = [f"{a}/{b}" for a, b in zip(ours, theirs, strict=False) if a != b][:5]
            yield f"{probe[:24]!r} gives {len(ours)} and {len(theirs)} tokens (first differing ids {', '.join(pairs)})"


def memory_terms(recipe: Recipe, teacher: PreTrainedConfig, student: PreTrainedConfig) -> list[MemoryTerm]:
    """The memory of a training step, term by term, in bytes; an estimate from above for the activations."""
    needs_teacher = any(stage.objective and stage.objective.needs_teacher for stage in recipe_stages(recipe))
    fast = 2 if fastest_dtype(pick_device(recipe.machine.device)) == torch.bfloat16 else 4
    weights = _parameters(student)
    trained = weights if recipe.student.lora is None else max(1, weights // 50)
    rows = int(recipe.training.get("per_device_train_batch_size", DEFAULTS["per_device_train_batch_size"]))
    tokens = rows * recipe.data.max_length
    size = student.get_text_config()
    inner = getattr(size, "intermediate_size", None) or getattr(size, "n_inner", None) or 4 * size.hidden_size
    layers = 1 if recipe.training.get("gradient_checkpointing") else size.num_hidden_layers
    activations = (
        tokens * layers * (12 * size.hidden_size + 4 * inner) * fast
        + tokens * size.num_hidden_layers * size.hidden_size * fast
    )
    return [
        MemoryTerm(term="teacher's weights", bytes=fast * _parameters(teacher) if needs_teacher else 0),
        MemoryTerm(term="student's weights", bytes=4 * weights),
        MemoryTerm(term="gradients", bytes=4 * trained),
        MemoryTerm(term="optimiser (two moments)", bytes=8 * trained),
        MemoryTerm(term="activations", bytes=activations),
        MemoryTerm(
            term="head in the fast format", bytes=fast * student.get_text_config().vocab_size * size.hidden_size
        ),
        MemoryTerm(term="loss engine's chunks", bytes=CHUNK_BYTES),
        MemoryTerm(term="libraries", bytes=700 * 2**20),
    ]


def licence_of(spec: ModelSpec) -> str | None:
    """The licence that a model's files state: a model card, a LICENSE file, or a package's metadata."""
    folder = Path(resolve_path(spec.model)).expanduser()
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.startswith(("license:", "license_name:")):
                return line.partition(":")[2].strip()
    if spec.model.startswith("package:"):
        from importlib.metadata import PackageNotFoundError, metadata

        name = spec.model.removeprefix("package:").partition("/")[0].replace("_", "-")
        try:
            fields: Any = metadata(name)
        except PackageNotFoundError:
            return None
        stated = fields.get("License-Expression") or fields.get("License")
        return f"{stated} (stated by the package {name})" if stated else None
    for path in sorted(folder.glob("LICENSE*")) if folder.is_dir() else ():
        first = next((line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()), "")
        return first[:80] or None
    config = folder / "config.json"
    if config.is_file():
        stated = json.loads(config.read_text(encoding="utf-8")).get("license")
        return str(stated) if stated else None
    return None


def _parameters(config: PreTrainedConfig) -> int:
    """Number of parameters of a model with this configuration; nothing is allocated."""
    with torch.device("meta"), quiet_transformers():
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _short(count: float) -> str:
    return f"{count / 1e6:.1f} M" if count < 1e9 else f"{count / 1e9:.2f} B"
