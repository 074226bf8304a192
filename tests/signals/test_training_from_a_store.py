"""Training from a store equals training beside the teacher, as far as the signal keeps what the teacher says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from store_helpers import VOCABULARY, dataset, fill, sequences, source, spec, teacher

from lmdistill.data import Collator
from lmdistill.errors import DataError
from lmdistill.models import output_head
from lmdistill.progress import Progress
from lmdistill.recipe import ObjectiveSpec, SignalSpec
from lmdistill.signals.label import label
from lmdistill.signals.local import LocalEngine
from lmdistill.signals.store import SignalStore, merge
from lmdistill.teachers import LocalTeacher
from lmdistill.training.objective import Objective
from lmdistill.training.stored import KEY, SignalCollator, StoredTeacher, kinds_of


def objective(kind: str = "forward_kl", **extra: Any) -> ObjectiveSpec:
    return ObjectiveSpec.model_validate({"divergence": {"kind": kind}, **extra})


def gradients(loss_of: Objective, batch: dict[str, Any], freeze: bool = False) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a student of its own."""
    student = teacher(seed=3).train()
    if freeze:
        student.lm_head.requires_grad_(False)
    step = loss_of(student, student, batch, None)
    step.loss.backward()
    grads = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    return float(step.loss.detach()), torch.cat(grads)


def both(
    given: SignalSpec, folder: Path, wanted: ObjectiveSpec, freeze: bool = False
) -> tuple[tuple[float, torch.Tensor], tuple[float, torch.Tensor]]:
    """The same batch with the teacher live and from the store."""
    rows = dataset().add_column(KEY, [item.key(source(given)) for item in sequences()])
    if given.kind == "head_expectation":
        head = teacher(seed=3).lm_head.weight.detach().numpy()
        label(
            sequences(),
            source(given),
            given,
            folder,
            engine=lambda: LocalEngine(teacher(), VOCABULARY, given, {"student_head": head}),
            head=lambda: output_head(teacher(), VOCABULARY),
            student={"student_head": head},
            progress=Progress(),
        )
    else:
        fill(folder, given, sequences())
    store = SignalStore(folder)
    collator = SignalCollator(store, kinds_of(store, source(given)))
    chosen = [rows[place] for place in (3, 17, 0, 9, 12, 4)]
    live = Objective(wanted, teacher=LocalTeacher(teacher(), VOCABULARY), vocabulary_size=VOCABULARY, compiled=False)
    stored = Objective(
        wanted, teacher=StoredTeacher(next(iter(collator.kinds.values()))), vocabulary_size=VOCABULARY, compiled=False
    )
    return gradients(live, Collator()(chosen), freeze), gradients(stored, collator(chosen), freeze)


def relative(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / left.norm())


# Reverse KL asks for log-probabilities where the teacher has almost none: there the tail is all that is kept.
@pytest.mark.parametrize(
    ("divergence", "error"), [("forward_kl", 5e-3), ("reverse_kl", 6e-2), ("jsd", 5e-3), ("total_variation", 5e-3)]
)
def test_top_k_at_fine_steps_equals_the_live_teacher(divergence: str, error: float, tmp_path: Path) -> None:
    given = spec("top_k", k=97, resolution=2e-5)
    live, stored = both(given, tmp_path, objective(divergence))
    assert stored[0] == pytest.approx(live[0], rel=max(2e-3, error))
    assert relative(live[1], stored[1]) < error


def test_the_error_of_the_gradient_grows_with_the_step_and_stays_below_what_is_stated(tmp_path: Path) -> None:
    errors = []
    for number, resolution in enumerate((0.0005, 0.004, 0.03)):
        live, stored = both(spec("top_k", k=97, resolution=resolution), tmp_path / str(number), objective())
        errors.append(relative(live[1], stored[1]))
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 0.01
    assert errors[1] < 0.05


def test_hidden_states_in_all_directions_equal_the_live_teacher_at_any_temperature(tmp_path: Path) -> None:
    wanted = ObjectiveSpec.model_validate({"divergence": {"kind": "jsd", "temperature": 2.0}})
    live, stored = both(spec("hidden", rank=24), tmp_path, wanted)
    assert stored[0] == pytest.approx(live[0], rel=0.02)
    assert relative(live[1], stored[1]) < 0.05


def test_a_frozen_heads_mean_row_equals_the_live_teacher(tmp_path: Path) -> None:
    live, stored = both(spec("head_expectation"), tmp_path, objective(), freeze=True)
    assert stored[0] == pytest.approx(live[0], rel=0.02)
    assert relative(live[1], stored[1]) < 0.05


@pytest.mark.parametrize("kind", ["sampled", "top_and_sampled"])
def test_many_draws_come_near_the_live_teacher(kind: str, tmp_path: Path) -> None:
    few = both(spec(kind, samples=20, exact=6), tmp_path / "few", objective())
    many = both(spec(kind, samples=4000, exact=6), tmp_path / "many", objective())
    assert relative(many[0][1], many[1][1]) < 0.05
    assert relative(many[0][1], many[1][1]) < relative(few[0][1], few[1][1])


def test_the_texts_own_token_gives_the_reverse_kls_score(tmp_path: Path) -> None:
    live, stored = both(spec("token"), tmp_path, objective("reverse_kl"))
    assert live[0] > 0
    assert torch.isfinite(stored[1]).all()
    assert stored[1].norm() > 0


def test_cross_entropy_is_mixed_in_as_ever(tmp_path: Path) -> None:
    wanted = objective(cross_entropy={"weight": 0.5})
    live, stored = both(spec("top_k", k=97, resolution=2e-5), tmp_path, wanted)
    assert stored[0] == pytest.approx(live[0], rel=2e-3)
    assert relative(live[1], stored[1]) < 5e-3


def test_a_row_that_the_store_lacks_is_named(tmp_path: Path) -> None:
    given = spec("top_k")
    fill(tmp_path, given, sequences(5))
    store = SignalStore(tmp_path)
    collator = SignalCollator(store, kinds_of(store, source(given)))
    row = {**dataset(6)[5], KEY: sequences(6)[5].key(source(given))}
    with pytest.raises(DataError, match="no signal for the sequence"):
        collator([row])


@pytest.mark.parametrize("by", ["student_entropy", "divergence", "position"])
def test_weights_leave_tokens_out_and_keep_the_loss_a_mean(by: str, tmp_path: Path) -> None:
    whole = objective(tokens={"by": by, "keep": 1.0})
    plain, stored = both(spec("top_k", k=97, resolution=2e-5), tmp_path, whole)
    everything, _ = both(spec("top_k", k=97, resolution=2e-5), tmp_path, objective())
    assert plain[0] == pytest.approx(everything[0], rel=1e-5)  # all of them: as if nothing had been chosen
    assert relative(everything[1], plain[1]) < 1e-4
    assert relative(plain[1], stored[1]) < 5e-3
    some, _ = both(spec("top_k", k=97, resolution=2e-5), tmp_path, objective(tokens={"by": by, "keep": 0.3}))
    if by == "divergence":  # the mean of the largest exceeds the mean of all
        assert some[0] > plain[0] * 1.2
    assert relative(plain[1], some[1]) > 0.05


def test_a_merged_store_trains_like_its_parts(tmp_path: Path) -> None:
    """Each part has tables of its own; a batch may hold rows of both."""
    given = spec("top_k", k=97, resolution=2e-5)
    fill(tmp_path / "a", given, sequences(10))
    fill(tmp_path / "b", given, sequences(20)[10:])
    fill(tmp_path / "whole", given, sequences(20))
    merge([SignalStore(tmp_path / "a"), SignalStore(tmp_path / "b")], tmp_path / "both")
    assert len(SignalStore(tmp_path / "both").manifest.sources) == 2
    assert fill(tmp_path / "both", given, sequences(20)).computed == 0
    rows = dataset().add_column(KEY, [item.key(source(given)) for item in sequences()])
    chosen = [rows[place] for place in (3, 17, 0, 12)]
    found = []
    for name in ("both", "whole"):
        store = SignalStore(tmp_path / name)
        collator = SignalCollator(store, kinds_of(store, source(given)))
        teller = StoredTeacher(next(iter(collator.kinds.values())))
        loss = Objective(objective(), teacher=teller, vocabulary_size=VOCABULARY, compiled=False)
        found.append(gradients(loss, collator(chosen)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    assert relative(found[0][1], found[1][1]) < 2e-3
    fill(tmp_path / "c", spec("hidden"), sequences(10))
    fill(tmp_path / "d", spec("hidden"), sequences(20)[10:])
    merge([SignalStore(tmp_path / "c"), SignalStore(tmp_path / "d")], tmp_path / "mixed")
    with pytest.raises(DataError, match="2 tables of kind hidden"):
        kinds_of(SignalStore(tmp_path / "mixed"), source(spec("hidden")))
