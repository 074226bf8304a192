"""Layers that are trained in turn, and neurons that go while the student learns, through the real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_models import MODELS, inputs_of, llama
from torch import Tensor
from transformers import TrainerCallback

from lmdistill.data import Collator
from lmdistill.errors import ModelError, RecipeError
from lmdistill.recipe import HintSpec, ObjectiveSpec, PruneWhileSpec, UnfreezeSpec
from lmdistill.teachers import LocalTeacher
from lmdistill.training.anatomy import blocks_of
from lmdistill.training.arguments import training_arguments
from lmdistill.training.hints import HintSet
from lmdistill.training.neurons import narrow_neurons, neuron_count
from lmdistill.training.objective import Objective
from lmdistill.training.pruning import PruneWhile
from lmdistill.training.trainer import DistillTrainer
from lmdistill.training.unfreezing import Unfreezing


def rows(count: int = 16) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 64, (count, 8), generator=generator).tolist()
    values = [
        {"input_ids": row, "labels": row, "position_ids": list(range(8)), "row_ids": [f"row {number}"]}
        for number, row in enumerate(ids)
    ]
    return Dataset.from_list(values)


def trainer_of(
    folder: Path, student: Any, spec: dict[str, Any], steps: int, hints: HintSet | None = None, **more: Any
) -> DistillTrainer:
    teacher = llama(num_hidden_layers=4)
    given = ObjectiveSpec.model_validate(spec)
    if given.hints and hints is None:
        inputs = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
        hints = HintSet(given.hints, student=student, teacher=teacher, inputs=inputs)
    objective = Objective(given, teacher=LocalTeacher(teacher, 64), vocabulary_size=64, compiled=False, hints=hints)
    values = {
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.1,
        "save_strategy": "no",
        **more,
    }
    arguments = training_arguments(values, folder=folder, seed=0, device=torch.device("cpu"), fast_dtype=torch.float32)
    return DistillTrainer(
        model=student, args=arguments, train_dataset=rows(), data_collator=Collator(), objective=objective
    )


class Watch(TrainerCallback):
    """Which parts of the student each step moved."""

    def __init__(self, model: Any) -> None:
        self.model, self.before, self.moved = model, self.snapshot(model), []  # type: ignore[var-annotated]

    @staticmethod
    def snapshot(model: Any) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = self.snapshot(self.model)
        names = {name for name, value in now.items() if not torch.equal(value, self.before[name])}
        parts = {next((f"block {i + 1}" for i in range(3) if f".layers.{i}." in name), name) for name in names}
        self.moved.append(parts)
        self.before = now


def run(tmp_path: Path, spec: UnfreezeSpec, objective: dict[str, Any]) -> list[set[str]]:
    student = llama(tie_word_embeddings=False)
    trainer = trainer_of(tmp_path, student, objective, steps=6)
    watch = Watch(student)
    trainer.add_callback(Unfreezing(spec, student, trainer.progress, trainer.objective.hints))
    trainer.add_callback(watch)
    trainer.train()
    assert all(p.requires_grad for p in student.parameters())
    return watch.moved  # type: ignore[no-any-return]


def test_layers_are_unfrozen_from_the_top(tmp_path: Path) -> None:
    """XtremeDistil: first the head and the last layer, at the end everything."""
    moved = run(tmp_path, UnfreezeSpec(until=0.9), {})
    head, table = {"lm_head.weight", "model.norm.weight"}, {"model.embed_tokens.weight"}
    assert moved[0] == moved[1] == head | {"block 3"}
    assert moved[2] == moved[3] == head | {"block 3", "block 2"}
    assert moved[4] == moved[5] == head | {"block 3", "block 2", "block 1"} | table


def test_one_block_at_a_time_is_compared_and_trained(tmp_path: Path) -> None:
    """MobileBERT's progressive transfer: hints of the current block alone, everything below stays."""
    objective = {
        "divergence": {"weight": 0.0},
        "hints": [{"kind": "hidden_mse", "only_current": True, "student": [1, 2, 3], "teacher": [1, 2, 4]}],
    }
    spec = UnfreezeSpec(order="bottom_up", mode="one", embeddings="never", head=False)
    moved = run(tmp_path, spec, objective)
    assert moved == [{"block 1"}] * 2 + [{"block 2"}] * 2 + [{"block 3"}] * 2


def test_whose_turn_it_is() -> None:
    student = llama()
    turns = Unfreezing(UnfreezeSpec(until=0.6, order="bottom_up"), student, lambda: 0.0)
    assert turns.active(0.0) == ([1], 1)
    assert turns.active(0.25) == ([1, 2], 2)
    assert turns.active(0.599) == ([1, 2, 3], 3)
    assert turns.active(0.6) == ([1, 2, 3], None)
    turns.apply(0.0)
    tied = student.get_input_embeddings().weight
    assert tied.requires_grad  # with the first layer
    assert not blocks_of(student)[2].mlp.up_proj.weight.requires_grad  # type: ignore[union-attr]
    frozen = llama()
    frozen.model.norm.weight.requires_grad_(False)
    turns = Unfreezing(UnfreezeSpec(), frozen, lambda: 1.0)
    turns.apply(1.0)
    assert not frozen.model.norm.weight.requires_grad  # what was frozen before is not ours


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bert", "distilbert", "vit"])
def test_a_model_without_its_dead_neurons_says_the_same(name: str, tmp_path: Path) -> None:
    model: Any = MODELS[name]()
    pruning = PruneWhile(PruneWhileSpec(intermediate=9), model, lambda: 1.0)
    generator = torch.Generator().manual_seed(0)
    for scores in pruning.scores:
        scores.copy_(torch.rand(len(scores), generator=generator))
    pruning.prune(1.0)
    pruning._mask()
    assert all(int(alive.sum()) == 9 for alive in pruning.alive)
    args, kwargs = inputs_of(name, model)
    with torch.no_grad():
        before = model(*args, **kwargs)[0]
        pruning.shrink(model)
        torch.testing.assert_close(model(*args, **kwargs)[0], before)
    assert [neuron_count(block) for block in blocks_of(model)] == [9, 9, 9]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(*args, **kwargs)[0], before)


def test_neurons_go_on_a_cubic_curve_and_stay_gone(tmp_path: Path) -> None:
    student = llama()
    trainer = trainer_of(tmp_path, student, {}, steps=8)
    pruning = PruneWhile(PruneWhileSpec(intermediate=8, start=0.0, end=0.5, every=2), student, trainer.progress)
    counts: list[int] = []

    class Count(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            dead = ~pruning.alive[0]
            assert bool((student.model.layers[0].mlp.up_proj.weight[dead] == 0).all())
            assert bool((student.model.layers[0].mlp.down_proj.weight[:, dead] == 0).all())
            counts.append(int(pruning.alive[0].sum()))

    trainer.add_callback(pruning)
    trainer.add_callback(Count())
    trainer.train()
    assert counts == [24, 10, 10, 8, 8, 8, 8, 8]  # 8 + 16 (1 - 1/2)^3 = 10 after a quarter of training
    pruning.shrink(student)
    assert student.config.intermediate_size == 8


def test_scores_are_those_of_the_definition() -> None:
    """|sum of w dL/dw| over all weights of a neuron."""
    student = llama()
    pruning = PruneWhile(PruneWhileSpec(intermediate=4, average=0.0), student, lambda: 0.0)
    student(torch.arange(1, 7)[None]).logits.square().mean().backward()
    arguments: Any = None
    pruning.on_pre_optimizer_step(arguments, arguments, arguments)
    block: Any = student.model.layers[1].mlp
    for neuron in (0, 7):
        wanted = sum(
            (weight * weight.grad).sum()
            for weight, gradient in (
                (block.gate_proj.weight[neuron], block.gate_proj.weight.grad[neuron]),
                (block.up_proj.weight[neuron], block.up_proj.weight.grad[neuron]),
                (block.down_proj.weight[:, neuron], block.down_proj.weight.grad[:, neuron]),
            )
            if setattr(weight, "grad", gradient) is None
        )
        torch.testing.assert_close(pruning.scores[1][neuron], abs(wanted).detach())  # type: ignore[arg-type]


def test_pruning_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    spec = PruneWhileSpec(intermediate=8)
    first, second = (PruneWhile(spec, llama(), lambda: 0.3) for _ in range(2))
    first.scores[0].copy_(torch.arange(24.0))
    first.prune(0.5)
    first.save(tmp_path)
    second.restore(tmp_path)
    assert torch.equal(second.alive[0], first.alive[0])
    assert torch.equal(second.scores[0], first.scores[0])
    with pytest.raises(RecipeError, match="intermediate = 99, but blocks have 24"):
        PruneWhile(PruneWhileSpec(intermediate=99), llama(), lambda: 0.0)
    with pytest.raises(ModelError, match="must keep as many"):
        narrow_neurons(llama(), [torch.tensor([0]), torch.tensor([0, 1]), torch.tensor([0])])
    with pytest.raises(ValueError, match="start must lie before end"):
        PruneWhileSpec(intermediate=4, start=0.8)


def test_a_training_with_hints_learns_and_resumes_exactly(tmp_path: Path) -> None:
    """Projectors and measured factors are in the checkpoint: stopped after half of its steps it ends with the same."""
    from lmdistill.training.companions import Companions, KeptModule

    spec = {
        "hints": [
            {"kind": "hidden_mse", "projector": {}, "weight_schedule": "gradient_magnitude", "measure_every": 3},
            {
                "kind": "value_relation",
                "parameters": {"relation_heads": 2},
                "weight_schedule": "linear",
                "weight_end": 0,
            },
        ]
    }

    def made(folder: Path, **more: Any) -> tuple[DistillTrainer, Any]:
        student = llama(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, num_key_value_heads=1)
        trainer = trainer_of(folder, student, spec, steps=8, **more)
        hints = trainer.objective.hints
        assert hints is not None
        trainer.add_callback(Companions([KeptModule(hints, "hints")]))
        return trainer, hints

    whole, hints = made(tmp_path / "whole")
    whole.train()
    first, _ = made(tmp_path / "parts", save_strategy="steps", save_steps=4)
    first.train()
    second, again = made(tmp_path / "parts", save_strategy="steps", save_steps=4)
    checkpoint = tmp_path / "parts" / "checkpoint-4"
    KeptModule(again, "hints").restore(checkpoint)
    second.train(resume_from_checkpoint=str(checkpoint))
    for one, other in ((whole.model, second.model), (hints, again)):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, msg=lambda text, name=name: f"{name}: {text}")
    moved = made(tmp_path / "fresh")[1].state_dict()
    assert not torch.equal(moved["projectors.hidden_mse/0.weight"], hints.projectors["hidden_mse/0"].weight)


def test_what_a_recipe_cannot_mean() -> None:
    for value, told in (
        ({"kind": "hidden_mse", "teacher": [1, 2], "student": [1]}, "2 layers of the teacher but 1"),
        ({"kind": "hidden_mse", "teacher": [1]}, "as many layers under student"),
        ({"kind": "hidden_mse", "student": "norm"}, "name the teacher's"),
        ({"kind": "hidden_mse", "weight_schedule": "linear"}, "needs weight_end"),
        ({"kind": "hidden_mse", "weight_end": 1.0}, "used with weight_schedule: linear"),
        ({"kind": "contrastive", "parameters": {"temprature": 1}}, "did you mean 'temperature'"),
    ):
        with pytest.raises(ValueError, match=told):
            HintSpec.model_validate(value)
