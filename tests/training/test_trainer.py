"""The trainer: equivalences that must hold, resume to the bit, and what stops a bad step."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback, TrainingArguments

from lmdistill.data import Collator
from lmdistill.errors import NonFiniteLoss
from lmdistill.recipe import ObjectiveSpec
from lmdistill.teachers import LocalTeacher
from lmdistill.training.checkpoints import SealCheckpoints, newest_checkpoint
from lmdistill.training.objective import Objective, next_labels
from lmdistill.training.schedules import TaidSchedule
from lmdistill.training.trainer import DistillTrainer

V = 61
KD: dict[str, Any] = {"divergence": {"kind": "forward_kl", "weight": 0.5}, "cross_entropy": {"weight": 0.5}}


def model(seed: int, layers: int = 2, hidden: int = 16) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        attention_dropout=0.0,
    )
    return LlamaForCausalLM(config)


def rows(count: int = 32, seed: int = 0, length: int = 12) -> datasets.Dataset:
    """Packed sequences of two documents each, of unequal numbers of trained tokens."""
    random = torch.Generator().manual_seed(seed)
    made: dict[str, list[Any]] = {"input_ids": [], "labels": [], "position_ids": [], "row_ids": []}
    for number in range(count):
        ids = torch.randint(0, V, (length,), generator=random)
        border = int(torch.randint(2, length - 2, (1,), generator=random))
        labels = ids.clone()
        labels[0] = labels[border] = -100
        labels[1 : 1 + number % 4] = -100
        made["input_ids"].append(ids.tolist())
        made["labels"].append(labels.tolist())
        made["position_ids"].append([*range(border), *range(length - border)])
        made["row_ids"].append([f"doc-{number}a", f"doc-{number}b"])
    return datasets.Dataset.from_dict(made)


def trainer(
    folder: Path,
    student: LlamaForCausalLM,
    objective: dict[str, Any] | None = None,
    *,
    data: datasets.Dataset | None = None,
    **fields: Any,
) -> DistillTrainer:
    spec = ObjectiveSpec.model_validate(objective or KD)
    settings: dict[str, Any] = {
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "include_num_input_tokens_seen": "all",
        "seed": 3,
        "data_seed": 3,
    }
    made = DistillTrainer(
        model=student,
        args=TrainingArguments(output_dir=str(folder), **(settings | fields)),
        train_dataset=data if data is not None else rows(),
        data_collator=Collator(),
        objective=Objective(
            spec,
            teacher=LocalTeacher(model(1, layers=3), V) if spec.needs_teacher else None,
            vocabulary_size=V,
            compiled=False,
        ),
    )
    made.remove_callback(PrinterCallback)
    return made


def losses(made: DistillTrainer) -> list[float]:
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def test_the_loss_is_the_mean_over_trained_tokens_by_definition(tmp_path: Path) -> None:
    student, teacher = model(0), model(1, layers=3)
    batch = Collator()(list(rows(4)))
    spec = ObjectiveSpec.model_validate(KD)
    objective = Objective(spec, teacher=LocalTeacher(teacher, V), vocabulary_size=V, compiled=False)
    step = objective(student, student, batch, None)
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
            for first, last in itertools.pairwise(starts):
                part = ids[None, first:last]
                log_s = student(part).logits.double().log_softmax(-1)[0]
                log_t = teacher(part).logits.double().log_softmax(-1)[0]
                for place in range(last - first - 1):
                    label = int(labels[first + place + 1])
                    if label != -100:
                        kl = (log_t[place].exp() * (log_t[place] - log_s[place])).sum()
                        total += 0.5 * float(kl) - 0.5 * float(log_s[place, label])
                        count += 1
    assert float(step.loss.detach()) == pytest.approx(total / count, rel=1e-5)
    assert int((next_labels(batch["labels"]) != -100).sum()) == count


def test_what_is_trained_beside_the_student_is_clipped_with_it(tmp_path: Path) -> None:
    made = trainer(tmp_path, model(0), max_grad_norm=0.5)
    projectors = torch.nn.Linear(3, 4)
    made.objective.aligned = SimpleNamespace(projectors=projectors)  # type: ignore[assignment]
    made.create_optimizer()
    trained = [*made.model.parameters(), *projectors.parameters()]
    for number, parameter in enumerate(trained):
        parameter.grad = torch.full_like(parameter, 1.0 + number)
    before = [parameter.grad.clone() for parameter in trained if parameter.grad is not None]
    norm = torch.cat([each.flatten() for each in before]).norm()
    assert float(made._clip_grad_norm(made.model)) == pytest.approx(float(norm))
    for parameter, old in zip(trained, before, strict=True):
        torch.testing.assert_close(parameter.grad, old * 0.5 / norm)


@pytest.mark.parametrize("fields", [{}, {"max_grad_norm": 0.0}], ids=["clipped", "unclipped"])
def test_accumulation_1x8_equals_8x1(tmp_path: Path, fields: dict[str, Any]) -> None:
    whole = trainer(tmp_path / "a", model(0), per_device_train_batch_size=8, max_steps=6, **fields)
    parts = trainer(
        tmp_path / "b", model(0), per_device_train_batch_size=1, gradient_accumulation_steps=8, max_steps=6, **fields
    )
    whole.train()
    parts.train()
    difference = [a - b for a, b in zip(losses(whole), losses(parts), strict=True)]
    assert max(map(abs, difference)) < 1e-5
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_leaves_the_teacher_alone(tmp_path: Path) -> None:
    made = trainer(tmp_path, model(0), num_train_epochs=4)
    teacher = made.objective.teacher
    assert teacher is not None
    before = [parameter.clone() for parameter in teacher.model.parameters()]
    made.train()
    assert losses(made)[-1] < losses(made)[0]
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.model.parameters(), strict=True))


def test_sft_is_the_objective_without_a_teacher_and_equals_transformers_own_loss(tmp_path: Path) -> None:
    sft = {"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}}
    student = model(0)
    made = trainer(tmp_path, student, sft)
    assert made.objective.teacher is None
    batch = Collator()(list(rows(4)))
    ours = made.objective(student, student, batch, None).loss
    inputs = {name: batch[name] for name in ("input_ids", "labels", "position_ids")}
    torch.testing.assert_close(ours, student(**inputs, use_cache=False).loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["forward_kl", "taid"])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tmp_path: Path, kind: str) -> None:
    objective = {"divergence": {"kind": kind}, "cross_entropy": {"weight": 0.3}}

    def made(folder: Path, seed: int) -> DistillTrainer:
        result = trainer(
            folder, model(seed), objective, max_steps=10, save_strategy="steps", save_steps=4, warmup_steps=2
        )
        if kind == "taid":
            result.add_callback(TaidSchedule(result.objective.divergence, result.ledger))  # type: ignore[arg-type]
        result.add_callback(SealCheckpoints(keep=2))
        return result

    straight = made(tmp_path / "straight", 0)
    straight.train()
    first = made(tmp_path / "stopped", 0)
    first.args.max_steps = 10
    first.add_callback(_StopAt(4))
    first.train()
    checkpoint, problems = newest_checkpoint(tmp_path / "stopped")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4"
    assert problems == []
    # other weights, other generator state: everything must come from the checkpoint
    second = made(tmp_path / "stopped", 99)
    torch.manual_seed(1234)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.state.global_step == 10
    for (name, a), (_, b) in zip(straight.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert losses(straight) == losses(second)


def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path: Path) -> None:
    made = trainer(tmp_path, model(0), max_steps=8, save_strategy="steps", save_steps=2)
    made.add_callback(SealCheckpoints(keep=3))
    made.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    weights = tmp_path / "checkpoint-8" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(bytes(data))
    (tmp_path / "checkpoint-6" / "manifest.json").unlink()
    found, problems = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-4"
    assert [problem.split(":")[0] for problem in problems] == ["checkpoint-8", "checkpoint-6"]
    assert not list(tmp_path.glob("*/training_args.bin"))


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_samples(tmp_path: Path) -> None:
    student = model(0)
    made = trainer(tmp_path, student, max_steps=4)
    teacher = made.objective.teacher
    assert teacher is not None
    real = teacher.hidden

    def poisoned(batch: Any) -> torch.Tensor:
        hidden_BLK = real(batch)
        if made.state.global_step == 2:
            hidden_BLK[1] = math.nan
        return hidden_BLK

    teacher.hidden = poisoned  # type: ignore[method-assign]
    saved: list[list[torch.Tensor]] = []
    made.add_callback(_Remember(saved))
    with pytest.raises(NonFiniteLoss, match=r"step 3: the loss is nan.*doc-\d+a, doc-\d+b\. Look") as caught:
        made.train()
    assert str(caught.value).count("doc-") == 2  # the one poisoned row of the batch, no other
    assert all(torch.equal(a, b) for a, b in zip(saved[-1], student.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    student = model(0)
    made = trainer(tmp_path, student, max_steps=4)
    saved: list[list[torch.Tensor]] = []
    made.add_callback(_Remember(saved))
    weight = student.model.layers[0].mlp.up_proj.weight
    weight.register_hook(lambda gradient: gradient * (math.inf if made.state.global_step == 1 else 1.0))
    with pytest.raises(NonFiniteLoss, match=r"step 2: the gradient of"):
        made.train()
    assert all(torch.equal(a, b) for a, b in zip(saved[-1], student.parameters(), strict=True))


def test_live_and_restricted_teacher_agree_when_all_ids_are_kept(tmp_path: Path) -> None:
    teacher, batch = model(1, layers=3), Collator()(list(rows(2)))
    plain, kept = LocalTeacher(teacher, V), LocalTeacher(teacher, V, torch.arange(V))
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    torch.testing.assert_close(plain.hidden(inputs), kept.hidden(inputs))
    torch.testing.assert_close(plain.head.weight_VH, kept.head.weight_VH)


def test_taid_moves_from_start_to_end_and_never_back(tmp_path: Path) -> None:
    made = trainer(tmp_path, model(0), {"divergence": {"kind": "taid", "parameters": {"start": 0.3}}}, max_steps=8)
    schedule = TaidSchedule(made.objective.divergence, made.ledger)  # type: ignore[arg-type]
    seen: list[float] = [made.objective.divergence.setting]
    update = schedule.update
    schedule.update = lambda loss, progress: (update(loss, progress), seen.append(made.objective.divergence.setting))  # type: ignore[method-assign, assignment, func-returns-value]
    made.add_callback(schedule)
    made.train()
    assert seen[0] == pytest.approx(0.3)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)


class _StopAt(TrainerCallback):  # type: ignore[misc]
    """Ends training after a step as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


class _Remember(TrainerCallback):  # type: ignore[misc]
    """Keeps the weights as they are before each step."""

    def __init__(self, saved: list[list[torch.Tensor]]) -> None:
        self.saved = saved

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved.append([parameter.detach().clone() for parameter in kwargs["model"].parameters()])
