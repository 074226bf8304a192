"""The engine inside autograd: who gets a gradient, scaling, kept graphs, evaluation."""

from __future__ import annotations

import pytest
import torch
from problems import make, run

from lmdistill.objectives import distillation_loss, divergence


def leaves() -> tuple[torch.Tensor, torch.Tensor]:
    problem = make(50)
    return problem.hidden_NH.clone().requires_grad_(), problem.head_VH.clone().requires_grad_()


def test_frozen_head_gets_no_gradient_and_the_hidden_states_the_same() -> None:
    problem = make(50)
    trained, frozen = run(problem), run(problem, train_head=False)
    hidden, head = problem.hidden_NH.clone().requires_grad_(), problem.head_VH.clone()
    divergence(hidden, head, problem.signal).backward()
    assert head.grad is None
    assert trained.d_head.abs().max() > 0
    assert torch.equal(frozen.d_hidden, trained.d_hidden)


def test_frozen_hidden_states_with_a_trained_head() -> None:
    problem = make(50)
    head = problem.head_VH.clone().requires_grad_()
    divergence(problem.hidden_NH, head, problem.signal).backward()
    assert head.grad is not None
    assert torch.equal(head.grad, run(problem).d_head)


def test_teacher_gets_no_gradient() -> None:
    problem = make(50)
    hidden, head = leaves()
    teacher = problem.teacher_NK.clone().requires_grad_()
    signal = type(problem.signal)(teacher, problem.teacher_VK)
    divergence(hidden, head, signal, "reverse_kl").backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [0.0, 0.25, -3.0])
def test_outer_scale(scale: float) -> None:
    problem = make(50)
    plain = run(problem)
    hidden, head = leaves()
    (divergence(hidden, head, problem.signal) * scale).backward()
    torch.testing.assert_close(hidden.grad, plain.d_hidden * scale)
    torch.testing.assert_close(head.grad, plain.d_head * scale)


def test_kept_graph_gives_the_same_gradients_again() -> None:
    """Each call's result stays what it was, whatever is scaled later."""
    problem = make(50)
    plain = run(problem)
    hidden, head = leaves()
    loss = divergence(hidden, head, problem.signal)
    first = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    second = torch.autograd.grad(3 * loss, (hidden, head), retain_graph=True)
    (5 * loss).backward()
    for made, factor in ((first, 1), (second, 3), ((hidden.grad, head.grad), 5)):
        torch.testing.assert_close(made[0], plain.d_hidden * factor)
        torch.testing.assert_close(made[1], plain.d_head * factor)


def test_gradients_accumulate() -> None:
    problem = make(50)
    plain = run(problem)
    hidden, head = leaves()
    for _ in range(3):
        (divergence(hidden, head, problem.signal) * 2).backward()
    torch.testing.assert_close(head.grad, plain.d_head * 6)
    torch.testing.assert_close(hidden.grad, plain.d_hidden * 6)


def test_tied_head_gets_both_gradients() -> None:
    """Embeddings that are also the head: the engine's share is added to the embeddings' own."""
    problem = make(50)
    table = problem.head_VH.clone().requires_grad_()
    divergence(torch.tanh(table[torch.arange(6)]), table, problem.signal).backward()
    once = problem.head_VH.clone().requires_grad_()
    student_z = torch.tanh(once[torch.arange(6)]) @ once.T
    log_t_NV = torch.from_numpy(problem.teacher_logits).log_softmax(-1)
    (log_t_NV.exp() * (log_t_NV - student_z.log_softmax(-1))).sum(-1).mean().backward()
    torch.testing.assert_close(table.grad, once.grad)


def test_evaluation_makes_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under no_grad the head's product with the gradient, a third of the work, is left out."""
    from lmdistill.objectives import chunked

    calls = []
    monkeypatch.setattr(chunked, "add_product", lambda *args, **options: calls.append(args))
    problem = make(50)
    _, head = leaves()
    with torch.no_grad():
        loss = divergence(problem.hidden_NH, head, problem.signal)
    assert not calls
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(run(problem, train_head=False).loss)


def test_non_contiguous_inputs() -> None:
    problem = make(50)
    hidden = torch.stack([problem.hidden_NH, problem.hidden_NH], -1)[..., 0].requires_grad_()
    head = problem.head_VH.T.contiguous().T.requires_grad_()
    assert not hidden.is_contiguous()
    divergence(hidden, head, problem.signal).backward()
    torch.testing.assert_close(hidden.grad, run(problem).d_hidden)
    torch.testing.assert_close(head.grad, run(problem).d_head)


def test_second_derivatives_are_refused() -> None:
    problem = make(50)
    hidden, head = leaves()
    (gradient,) = torch.autograd.grad(divergence(hidden, head, problem.signal), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_losses_of_the_parts_carry_no_gradient() -> None:
    problem = make(50)
    hidden, head = leaves()
    parts = distillation_loss(hidden, head, problem.signal, labels_N=torch.arange(6), label_weight=1.0)
    assert parts.loss.requires_grad
    assert not parts.divergence.requires_grad
    assert not parts.cross_entropy.requires_grad
    assert not parts.token_loss_N.requires_grad
