"""Efficiency: speed, latency percentiles, memory and size on this machine, and acceptance as a draft.

Latencies are those of single tokens decoded greedily one by one with a key-value cache, of one sequence. Intervals are
over these tokens: they say how steady this measurement is, not what another hour or machine would show, and a machine
that others use drifts from model to model. So timings are shown side by side and not tested against each other.

Shape legend: I tokens, R one estimate and its resamplings.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from lmdistill.evaluation.answers import held_out_prompts
from lmdistill.evaluation.decoding import decode_greedily, speed_prompt
from lmdistill.evaluation.efficiency import peak_memory
from lmdistill.evaluation.speakers import LocalSpeaker
from lmdistill.evaluation.statistics import Draws, Floats
from lmdistill.evaluation.suites.columns import Constant, Mean, OneSeed
from lmdistill.evaluation.suites.speculative import acceptance, draft_columns, teacher_texts
from lmdistill.evaluation.suites.types import Bench, Column, Outcome, Suite, Table
from lmdistill.models import count_parameters
from lmdistill.recipe import EfficiencySpec, ResponsesSpec, SpeedSpec

_BEGINNINGS = (
    "The river rises in the mountains and",
    "In the morning she went to the market to",
    "Photosynthesis is the process by which",
    "The first railway line in the country",
    "To make bread, you need",
    "The experiment showed that",
    "Once upon a time there was",
    "The capital of France is",
)
_PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Percentile(OneSeed):
    """A percentile of items."""

    values_I: Floats
    share: float

    def values(self, draws: Draws) -> Floats:
        """The smallest value that so large a share of the (resampled) items does not exceed, (R,)."""
        order = np.argsort(self.values_I, kind="stable")
        below_RI = draws.items_RI[:, order].cumsum(1)
        place_R = (below_RI >= self.share * below_RI[:, -1:] - 1e-9).argmax(1)
        found_R: Floats = self.values_I[order][place_R]
        return found_R


@dataclass(frozen=True)
class Timing:
    """One model's decoding."""

    prefill_tokens_per_second: float
    latencies_I: Floats
    """Seconds of each decoded token, over all repeats."""


def run(bench: Bench, spec: EfficiencySpec) -> list[Outcome]:
    """Speed and size of the models in this process, then acceptance of those that share the teacher's tokens."""
    speakers = [speaker for speaker in bench.speakers if isinstance(speaker, LocalSpeaker)]
    speed = SpeedSpec(prompt_tokens=spec.prompt_tokens, new_tokens=spec.new_tokens, repeats=spec.repeats)
    timings, tables = [], []
    with bench.progress.task("speed", total=len(speakers), unit="models") as task:
        for speaker in speakers:
            timings.append(time_decoding(speaker, speed))
            tables.append(Table(speaker, _columns(speaker, timings[-1], spec, speed)))
            task.advance()
    notes = ["one sequence, greedy, with a key-value cache; intervals are over the tokens of this measurement"]
    notes += [f"{one.label} is behind an API and was not timed" for one in bench.speakers if one not in speakers]
    count = len(timings[0].latencies_I) if timings else 0
    outcomes = [
        Outcome(
            name="speed and size",
            tables=tables,
            clusters=range(count),
            main="decode_tokens_per_second",
            lower_is_better={},
            notes=notes,
        )
    ]
    return outcomes + _drafts(bench, spec, speakers, timings)


def time_decoding(speaker: LocalSpeaker, spec: SpeedSpec) -> Timing:
    """Time the prompt and each new token; the first of `repeats + 1` rounds warms up and is left out."""
    prompt = speed_prompt(speaker.model, spec)
    prefill, latencies = [], []
    for repeat in range(spec.repeats + 1):
        start = _now(speaker.model.device)
        tokens = decode_greedily(speaker.model, prompt, spec.new_tokens)
        next(tokens)
        before = _now(speaker.model.device)
        if repeat:
            prefill.append(prompt.shape[1] / (before - start))
        for _ in tokens:
            after = _now(speaker.model.device)
            if repeat:
                latencies.append(after - before)
            before = after
    return Timing(float(np.median(prefill)), np.array(latencies))


def _columns(speaker: LocalSpeaker, timing: Timing, spec: EfficiencySpec, speed: SpeedSpec) -> dict[str, Column]:
    parameters = list(speaker.model.parameters())
    columns: dict[str, Column] = {
        "decode_tokens_per_second": Mean.of(np.ones(len(timing.latencies_I)), timing.latencies_I),
        **{f"latency_p{p}_ms": Percentile(1000 * timing.latencies_I, p / 100) for p in (50, 90, 99)},
        "prefill_tokens_per_second": Constant(timing.prefill_tokens_per_second),
        "parameters": Constant(float(count_parameters(speaker.model))),
        "bytes": Constant(float(sum(one.numel() * one.element_size() for one in parameters))),
    }
    if spec.memory:
        columns["peak_memory_bytes"] = Constant(float(peak_memory(speaker.model, speed)))
    return columns


def _drafts(bench: Bench, spec: EfficiencySpec, speakers: list[LocalSpeaker], timings: list[Timing]) -> list[Outcome]:
    """Acceptance of every model that reads and writes the teacher's very tokens."""
    if spec.draft_prompts == 0 or not speakers or speakers[0].role != "teacher" or len(speakers) < 2:
        return []
    teacher = speakers[0]
    same = [speaker for speaker in speakers[1:] if speaker.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()]
    refused = [
        f"{speaker.label} does not have the teacher's tokens: a draft must, so it was not measured"
        for speaker in speakers[1:]
        if speaker not in same
    ]
    if not same:
        bench.progress.note("; ".join(refused))
        return []
    prompts = _prompts(bench, spec, teacher)
    texts = teacher_texts(teacher, prompts, spec.draft_tokens, bench.seed)
    tables = []
    with bench.progress.task("acceptance as a draft", total=len(same), unit="models") as task:
        for speaker in same:
            place = speakers.index(speaker)
            cost = float(np.median(timings[place].latencies_I) / np.median(timings[0].latencies_I))
            rate, matches = acceptance(teacher, speaker, texts)
            tables.append(Table(speaker, draft_columns(rate, matches, spec.block, cost)))
            task.advance()
    names = list(tables[0].columns)
    return [
        Outcome(
            name="draft for the teacher",
            tables=tables,
            clusters=range(len(prompts)),
            main="acceptance",
            lower_is_better=dict.fromkeys(names, False),
            notes=[f"blocks of {spec.block} drafted tokens; {spec.draft_tokens} tokens to each prompt", *refused],
        )
    ]


def _prompts(bench: Bench, spec: EfficiencySpec, teacher: LocalSpeaker) -> list[list[int]]:
    """Beginnings of held-out text where the models share its tokens, else a few sentences of our own."""
    for name, dataset in bench.texts.items():
        if bench.subjects:
            wanted = ResponsesSpec(
                prompts=spec.draft_prompts, prompt_tokens=_PROMPT_TOKENS, max_new_tokens=spec.draft_tokens
            )
            found = held_out_prompts(dataset, wanted, teacher.tokenizer, teacher.context, name)
            return [row.prompt_ids for row in found]
    own = [_BEGINNINGS[n % len(_BEGINNINGS)] for n in range(min(spec.draft_prompts, len(_BEGINNINGS)))]
    return [list(teacher.tokenizer(text)["input_ids"]) for text in own]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


SUITE = Suite("efficiency", "Efficiency", run)
