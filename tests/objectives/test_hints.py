"""The cosine hint against float64 NumPy, at masks, at zero vectors, and in half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmdistill.objectives.hints import cosine_distance

STUDENT, TEACHER = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASK = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)

# Numbers so small that a factor of 1e-30 makes them 0 have no direction afterwards.
ENTRIES = st.floats(-10, 10).map(lambda value: value if abs(value) > 1e-200 else 0.0)


def by_definition(student: np.ndarray, teacher: np.ndarray) -> float:
    cosine = [s @ t / (np.linalg.norm(s) * np.linalg.norm(t)) for s, t in zip(student, teacher, strict=True)]
    return float(np.mean(1 - np.array(cosine)))


def test_value_and_gradient() -> None:
    assert float(cosine_distance(STUDENT, TEACHER)) == pytest.approx(by_definition(STUDENT.numpy(), TEACHER.numpy()))
    assert torch.autograd.gradcheck(lambda s: cosine_distance(s, TEACHER, MASK), STUDENT.clone().requires_grad_())


def test_masked_rows_leave_no_trace() -> None:
    student = torch.where(MASK[:, None], STUDENT, torch.nan).requires_grad_()
    teacher = torch.where(MASK[:, None], TEACHER, torch.inf)
    loss = cosine_distance(student, teacher, MASK)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(by_definition(STUDENT[MASK].numpy(), TEACHER[MASK].numpy()))
    assert student.grad is not None
    assert (student.grad[~MASK] == 0).all()
    assert torch.isfinite(student.grad).all()


def test_micro_batches_add_up() -> None:
    whole = cosine_distance(STUDENT, TEACHER, MASK)
    parts = [cosine_distance(STUDENT[i], TEACHER[i], MASK[i], MASK.sum()) for i in torch.arange(6).tensor_split(4)]
    torch.testing.assert_close(sum(parts), whole)


@settings(max_examples=50, deadline=None)
@given(
    x=arrays(np.float64, (3, 4), elements=ENTRIES),
    y=arrays(np.float64, (3, 4), elements=ENTRIES),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
)
def test_between_0_and_2_and_blind_to_length(x: np.ndarray, y: np.ndarray, scale: float) -> None:
    one, other = torch.from_numpy(x), torch.from_numpy(y)
    distance = float(cosine_distance(one, other))
    assert -1e-12 <= distance <= 2 + 1e-12
    assert float(cosine_distance(one * scale, other)) == pytest.approx(distance, abs=1e-9)


def test_of_a_vector_with_itself_and_its_opposite() -> None:
    student = STUDENT.clone().requires_grad_()
    loss = cosine_distance(student, STUDENT)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    assert float(cosine_distance(STUDENT, -3 * STUDENT)) == pytest.approx(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_vectors(dtype: torch.dtype) -> None:
    """A vector without direction: cosine 0, gradient 0, on either side."""
    student = STUDENT.to(dtype).index_fill(0, torch.tensor([0]), 0).requires_grad_()
    teacher = TEACHER.to(dtype).index_fill(0, torch.tensor([1]), 0)
    loss = cosine_distance(student, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert (student.grad[:2] == 0).all()
    assert student.grad.dtype == dtype
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_float16_does_not_overflow() -> None:
    large = torch.full((2, 4000), 6e4, dtype=torch.float16)
    assert float(cosine_distance(large, large)) == pytest.approx(0, abs=1e-5)


def test_teacher_gets_no_gradient_and_all_masked_is_0() -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    loss = cosine_distance(student, teacher, torch.zeros(6))
    loss.backward()
    assert float(loss.detach()) == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0
    cosine_distance(student, teacher).backward()
    assert teacher.grad is None


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"\(6, 5\) and teacher hidden states \(6, 4\).*projection"):
        cosine_distance(STUDENT, TEACHER[:, :4])
    with pytest.raises(ValueError, match=r"\(6, 5\) and teacher hidden states \(3, 5\)"):
        cosine_distance(STUDENT, TEACHER[:3])
    with pytest.raises(ValueError, match=r"6 tokens but a mask of shape \(4,\)"):
        cosine_distance(STUDENT, TEACHER, torch.ones(4))
