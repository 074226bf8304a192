"""The student as its own teacher: its weights are lent and given back, and nobody's gradient suffers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_helpers import V, assert_same, batch, by_definition, model, naive, trained

from lmdistill.errors import CorruptFile, ModelError
from lmdistill.models import last_hidden, output_head
from lmdistill.objectives import divergence
from lmdistill.recipe import LoraSpec
from lmdistill.students import with_adapters
from lmdistill.teachers import AdapterOffTeacher, SelfTeacher, privileged_batch
from lmdistill.teachers.base import Teacher, model_inputs


def moved(student: Any, seed: int = 0, by: float = 0.05) -> None:
    """A step of training, roughly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def adapted(seed: int = 0) -> Any:
    """A student with adapters that have learned something."""
    spec = LoraSpec(rank=2, alpha=4, dropout=0.0, target_modules=["q_proj", "up_proj"])
    student = with_adapters(model(seed), spec, seed=0).double()
    moved(student, seed=9, by=0.3)
    return student


def flags(student: Any) -> list[tuple[bool, ...]]:
    return [(module.training, *(p.requires_grad for p in module.parameters(False))) for module in student.modules()]


@pytest.mark.parametrize("weights", ["fixed", "ema", "live"])
@pytest.mark.parametrize("make", [model, adapted], ids=["whole", "adapters"])
def test_each_kind_of_weights_teaches(weights: Any, make: Callable[[int], Any]) -> None:
    student = make(0)
    start = copy.deepcopy(student)
    teacher = SelfTeacher(student, V, weights=weights, ema_rate=0.25)
    average = {name: parameter.detach().clone() for name, parameter in start.named_parameters()}
    for step in range(3):
        moved(student, step)
        teacher.update(student)
        for name, parameter in student.named_parameters():
            average[name] = 0.75 * average[name] + 0.25 * parameter.detach()
    expected = {"fixed": start, "live": copy.deepcopy(student), "ema": copy.deepcopy(student)}[weights]
    if weights == "ema":
        expected.load_state_dict(average, strict=False)
    given = batch()
    own = [parameter.detach().clone() for parameter in student.parameters()]
    assert_same(teacher.speak(given).parts[0], naive(expected, given), trained(given))
    assert all(torch.equal(a, b) for a, b in zip(own, student.parameters(), strict=True))


def test_only_what_training_changes_is_kept_twice() -> None:
    student = adapted()
    count = sum(kept.numel() for kept in SelfTeacher(student, V, weights="fixed").kept.values())
    assert count == sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert count * 5 < sum(p.numel() for p in student.parameters())


def test_an_average_of_half_precision_weights_moves_by_small_steps() -> None:
    student = model(0).to(torch.bfloat16)
    teacher = SelfTeacher(student, V, ema_rate=1e-3)
    before = teacher.kept["lm_head.weight"].clone()
    moved(student, by=1.0)
    for _ in range(5):
        teacher.update(student)
    gap = student.lm_head.weight.float() - before
    torch.testing.assert_close(teacher.kept["lm_head.weight"] - before, gap * (1 - 0.999**5), rtol=1e-2, atol=1e-4)


def whole_loss(student: Any, teacher: Teacher, given: dict[str, Any]) -> torch.Tensor:
    """As an objective does it: the student's forward pass, the teacher's word, the loss."""
    hidden_NH = last_hidden(student, model_inputs(given)).flatten(0, 1)
    part = teacher.speak(given).parts[0]
    mask_N = trained(given) if part.mask_N is None else trained(given) & part.mask_N
    return divergence(hidden_NH, output_head(student, V).weight_VH, part.signal, "jsd", mask_N=mask_N)


def truth(student: Any, log_t_NV: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    log_s_NV = student(**model_inputs(given), use_cache=False).logits.flatten(0, 1).log_softmax(-1)
    return by_definition("jsd", log_s_NV, log_t_NV)[trained(given)].mean()


@pytest.mark.parametrize("name", ["fixed", "ema", "live", "adapter_off"])
def test_a_teacher_that_speaks_between_forward_and_backward_leaves_the_gradient_alone(name: str) -> None:
    student = adapted()
    teacher: Teacher
    teacher = AdapterOffTeacher(student, V) if name == "adapter_off" else SelfTeacher(student, V, weights=name)  # type: ignore[arg-type]
    moved(student, by=0.3)
    expected = copy.deepcopy(student)
    if name in ("fixed", "ema"):
        said = copy.deepcopy(student)
        said.load_state_dict(teacher.kept, strict=False)  # type: ignore[attr-defined]
    elif name == "live":
        said = copy.deepcopy(student)
    else:
        said = copy.deepcopy(student).unload()
    given = batch()
    student.train()
    # A layer that somebody keeps out of training mode, and an adapter that is frozen, stay as they are.
    student.base_model.model.model.layers[0].eval()
    frozen = next(p for n, p in student.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    before = flags(student)
    loss = whole_loss(student, teacher, given)
    assert flags(student) == before
    loss.backward()
    true = truth(expected, naive(said, given), given)
    true.backward()
    torch.testing.assert_close(loss, true, check_dtype=False)
    assert float(loss.detach()) > 1e-4 or name == "live"
    for (label, mine), theirs in zip(student.named_parameters(), expected.parameters(), strict=True):
        if mine.requires_grad:
            assert mine.grad is not None, label
            torch.testing.assert_close(mine.grad, theirs.grad, msg=label)


def test_dropout_is_off_while_the_teacher_speaks_and_on_again_afterwards() -> None:
    student = model(0, dropout=0.5).train()
    given = batch()
    one, two = (SelfTeacher(student, V, weights="live").speak(given).hidden_NK for _ in range(2))
    assert one is not None
    assert two is not None
    assert torch.equal(one, two)
    inputs = model_inputs(given)
    assert not torch.equal(last_hidden(student, inputs), last_hidden(student, inputs))


@pytest.mark.parametrize("first", ["student", "teacher"])
def test_under_autocast_a_lent_weight_is_not_the_one_that_autocast_remembers(first: str) -> None:
    student = model(0).float()
    teacher = SelfTeacher(student, V, weights="fixed")
    moved(student, by=0.5)
    start = model(0).float()
    given = batch()
    inputs = model_inputs(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if first == "student":
            hidden_BLH = last_hidden(student, inputs)
            said = teacher.speak(given).hidden_NK
        else:
            said = teacher.speak(given).hidden_NK
            hidden_BLH = last_hidden(student, inputs)
        with torch.no_grad():
            expected = last_hidden(start, inputs).flatten(0, 1)
    assert said is not None
    assert torch.equal(said, expected)
    hidden_BLH.float().sum().backward()
    assert student.model.layers[0].mlp.up_proj.weight.grad is not None


def test_the_average_is_saved_and_restored(tmp_path: Path) -> None:
    student = model(0)
    teacher = SelfTeacher(student, V)
    for step in range(2):
        moved(student, step)
        teacher.update(student)
    teacher.save(tmp_path)
    again = SelfTeacher(student, V)
    again.restore(tmp_path)
    given = batch()
    one, two = (each.speak(given).hidden_NK for each in (teacher, again))
    assert one is not None
    assert two is not None
    assert torch.equal(one, two)
    assert not any(path.name.endswith((".bin", ".pt")) for path in tmp_path.rglob("*"))


def test_a_broken_or_foreign_average_is_refused(tmp_path: Path) -> None:
    SelfTeacher(model(0), V).save(tmp_path)
    with pytest.raises(CorruptFile, match="another student's average"):
        SelfTeacher(model(0, hidden=8), V).restore(tmp_path)
    with pytest.raises(CorruptFile, match="cannot be read"):
        SelfTeacher(model(0), V).restore(tmp_path / "nothing")
    path = next(tmp_path.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptFile, match="cannot be read"):
        SelfTeacher(model(0), V).restore(tmp_path)
    fixed = SelfTeacher(model(0), V, weights="fixed")
    fixed.save(tmp_path / "fixed")
    fixed.restore(tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()


def test_what_cannot_teach_is_refused() -> None:
    with pytest.raises(ValueError, match="ema_rate = 0"):
        SelfTeacher(model(0), V, ema_rate=0)
    with pytest.raises(ModelError, match="has no adapter to switch off"):
        AdapterOffTeacher(model(0), V)
    student = model(0)
    with pytest.raises(ModelError, match=r"has no parameter .* bare model"):
        SelfTeacher(student, V).update(torch.nn.Linear(2, 2))


def test_a_head_that_was_saved_with_the_adapter_is_off_too() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # see lmdistill.students.lora
        student: Any = get_peft_model(model(0), config).double()
    moved(student, by=0.5)
    given = batch()
    assert_same(AdapterOffTeacher(student, V).speak(given).parts[0], naive(model(0), given), trained(given))


def test_with_more_to_read_it_teaches_what_it_would_say_then() -> None:
    student = model(0)
    rows = [([1, 2, 3], [4, 5, 6, 7]), ([8], [9, 10]), ([11, 12], [13, 14, 15])]
    contexts = [[20, 21, 1, 2, 3], [30, 31, 32, 33, 8], [40, 11, 12]]
    given = privileged_batch(rows, contexts)
    part = SelfTeacher(student, V, weights="live").speak(given).parts[0]
    log_NV = torch.zeros(given["input_ids"].numel(), V).double()
    width = given["input_ids"].shape[1]
    for number, ((prompt, answer), context) in enumerate(zip(rows, contexts, strict=True)):
        with torch.no_grad():
            said = student(input_ids=torch.tensor([context + answer])).logits[0].log_softmax(-1)
        for step in range(len(answer)):
            log_NV[number * width + len(prompt) - 1 + step] = said[len(context) - 1 + step]
    assert_same(part, log_NV, trained(given))
    loss = whole_loss(student, SelfTeacher(student, V, weights="live"), given)
    true = truth(student, log_NV, given)
    torch.testing.assert_close(loss, true, check_dtype=False)
