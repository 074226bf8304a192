"""What hints cost beside the logits: whole steps in turn, in one run, and what taps hold of a forward pass.

    .venv/bin/python benchmarks/hints.py [--json FILE] [--batch 4] [--length 256] [--repeats 7] [--clock wall|cpu]

A step is the teacher's forward pass, the student's forward and backward pass and AdamW, through `Objective`, on
SmolLM2's shapes (random weights: speed does not depend on them): a teacher of 30 layers, a student of 12, forward KL in
each case. Cases:

    logits             forward KL alone
    4 states           and hidden_mse at 4 layers
    4 states, W        and hidden_mse at 4 layers through a linear projector each
    4 directions       and hidden_cosine at 4 layers
    relations          and MiniLMv2's query, key and value relations of the last layer
    4 attention maps   and attention_kl at 4 layers, which compute their maps in full
    4 states, all kept and the same as "4 states" with output_hidden_states=True, which keeps every layer's state

`--clock cpu` counts the processor's seconds instead of the clock's: for a machine that others use at the same time.

Cases take turns, so that a drift of the machine's speed hits all alike; medians of seconds and of ratios are printed.
Below, the hidden states that live after a forward pass of the teacher, with m of its 30 layers tapped, and with
output_hidden_states=True.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import make
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from lmdistill.models import last_hidden
from lmdistill.objectives.hints import hidden_mse
from lmdistill.recipe import ObjectiveSpec
from lmdistill.teachers import LocalTeacher
from lmdistill.training.hints import HintSet
from lmdistill.training.objective import Objective
from lmdistill.training.taps import Place, Taps

CLOCK = time.perf_counter
LAYERS = {"student": [3, 6, 9, 12], "teacher": [8, 15, 23, 30]}
CASES: dict[str, list[dict[str, Any]]] = {
    "logits": [],
    "4 states": [{"kind": "hidden_mse", **LAYERS}],
    "4 states, W": [{"kind": "hidden_mse", **LAYERS, "projector": {"kind": "linear"}}],
    "4 directions": [{"kind": "hidden_cosine", **LAYERS}],
    "relations": [
        {"kind": kind, "parameters": {"causal": True}} for kind in ("query_relation", "key_relation", "value_relation")
    ],
    "4 attention maps": [{"kind": "attention_kl", **LAYERS}],
}


def cases(batch: int, length: int) -> dict[str, Callable[[], None]]:
    """One function a case, each a whole step on the same models and tokens."""
    torch.manual_seed(0)
    teacher, student = make(30, torch.bfloat16).eval(), make(12, torch.float32)
    ids_BL = torch.randint(0, 49152, (batch, length))
    inputs = {
        "input_ids": ids_BL,
        "labels": ids_BL,
        "position_ids": torch.arange(length).expand(batch, -1),
    }
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)

    def finish(loss: Tensor) -> None:
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    def step_of(hints: list[dict[str, Any]]) -> Callable[[], None]:
        """A step whose hooks are there while it runs, so that cases do not slow each other."""
        spec = ObjectiveSpec.model_validate({"hints": hints})
        projectors: dict[str, Any] = {}

        def step() -> None:
            made = None
            if spec.hints:
                made = HintSet(spec.hints, student=student, teacher=teacher, inputs={"input_ids": ids_BL[:1, :2]})
                if not projectors and list(made.parameters()):
                    optimiser.add_param_group({"params": list(made.parameters())})
                    projectors["module"] = made.projectors
                made.projectors = projectors.get("module", made.projectors)
            objective = Objective(
                spec,
                teacher=LocalTeacher(teacher, 49152),
                vocabulary_size=49152,
                compute_dtype=torch.bfloat16,
                hints=made,
            )
            student.train()
            start = CLOCK()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = objective(student, student, inputs, torch.tensor(batch * (length - 1))).loss
            finish(loss)
            step.seconds = CLOCK() - start  # type: ignore[attr-defined]
            if made is not None:
                made.close()

        return step

    return {name: step_of(hints) for name, hints in CASES.items()} | {
        "4 states, all kept": all_kept(student, teacher, inputs, finish)
    }


def all_kept(
    student: LlamaForCausalLM, teacher: LlamaForCausalLM, inputs: dict[str, Tensor], finish: Callable[[Tensor], None]
) -> Callable[[], None]:
    """As "4 states", with every layer's state kept by both models as transformers does."""
    spec = ObjectiveSpec()
    objective = Objective(
        spec, teacher=LocalTeacher(teacher, 49152), vocabulary_size=49152, compute_dtype=torch.bfloat16
    )

    def step() -> None:
        student.train()
        kept: dict[str, list[Tensor]] = {"student": [], "teacher": []}

        def keep(name: str) -> Callable[[Any, Any, Tensor], None]:
            return lambda module, args, output: kept[name].append(output)

        handles = [
            layer.register_forward_hook(keep(name))
            for name, model in (("student", student), ("teacher", teacher))
            for layer in model.model.layers
        ]
        start = CLOCK()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            count = inputs["labels"].numel() - len(inputs["labels"])
            loss = objective(student, student, inputs, torch.tensor(count)).loss
            pairs = zip(LAYERS["student"], LAYERS["teacher"], strict=True)
            loss = loss + sum(hidden_mse(kept["student"][s - 1], kept["teacher"][t - 1]) for s, t in pairs) / 4
        finish(loss)
        step.seconds = CLOCK() - start  # type: ignore[attr-defined]
        for handle in handles:
            handle.remove()

    return step


def held(batch: int, length: int) -> list[dict[str, Any]]:
    """Bytes of states that live after a forward pass of the teacher."""
    teacher = make(30, torch.bfloat16).eval()
    inputs = {"input_ids": torch.randint(0, 49152, (batch, length))}
    rows = []
    for m in (0, 1, 4, 10, 30):
        taps = Taps(teacher, [Place("hidden", layer) for layer in range(1, m + 1)])
        before = living((batch, length, 576))
        with torch.no_grad(), taps.capture():
            out = last_hidden(teacher, inputs)
        size = out.nbytes
        rows.append({"tapped": str(m), "states": (living((batch, length, 576)) - before) / size})
        taps.close()
        del out  # it would be counted among what lived before the next pass
    before = living((batch, length, 576))
    with torch.no_grad():
        kept = teacher.model(**inputs, use_cache=False, output_hidden_states=True)
    rows.append({"tapped": "output_hidden_states", "states": (living((batch, length, 576)) - before) / size})
    assert kept.last_hidden_state is not None
    return rows


def living(shape: tuple[int, ...]) -> int:
    """Bytes of the tensors of a shape that something holds; views of one storage count once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and type(thing) is not nn.Parameter and tuple(thing.shape) == shape:
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(found.values())


def main() -> None:
    """Time the cases in turn and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    if arguments.clock == "cpu":
        globals()["CLOCK"] = time.process_time
    memory = held(arguments.batch, arguments.length)
    steps = cases(arguments.batch, arguments.length)
    for step in steps.values():
        step()  # compiles, and lets the optimiser make its state
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.repeats):
        for name, step in steps.items():
            step()
            seconds[name].append(step.seconds)  # type: ignore[attr-defined]
    rows = []
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, seconds["logits"], strict=True))
        rows.append({"case": name, "seconds": statistics.median(taken), "this / logits": ratio})
        print(f"{name:20s} {statistics.median(taken):8.3f} s   this / logits {ratio:.3f}")
    print()
    for row in memory:
        print(f"tapped {row['tapped']:22s} {row['states']:5.1f} hidden states live (the one returned among them)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "memory": memory}, indent=1))


if __name__ == "__main__":
    main()
