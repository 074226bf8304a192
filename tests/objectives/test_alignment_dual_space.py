"""Dual-space distillation against its definition in float64: all three terms and all gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from two_tokenizers import logits

from lmdistill.objectives.dual_space import DualSpaceProjectors, ModelSide, dual_space_loss

# Trained tokens of two texts in one batch, the student's and the teacher's.
SEQUENCES = [
    (torch.tensor([2, 3, 4]), torch.tensor([1, 2, 4, 5])),
    (torch.tensor([7, 8, 9, 10]), torch.tensor([8, 9])),
]


def sides(plain: bool, seed: int = 0) -> tuple[ModelSide, ModelSide]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def side(tokens: int, vocabulary: int, width: int) -> ModelSide:
        return ModelSide(
            hidden=normal(tokens, width),
            ids=torch.randint(0, vocabulary - 2, (tokens,), generator=g),
            head=normal(vocabulary, width),
            embeddings=normal(vocabulary, width),
            bias=None if plain else normal(vocabulary),
            logit_scale=1.0 if plain else 0.8,
            softcap=None if plain else 5.0,
            vocab_size=None if plain else vocabulary - 2,
        )

    return side(11, 9, 4), side(10, 13, 6)


def make_projectors(student: ModelSide, teacher: ModelSide) -> DualSpaceProjectors:
    torch.manual_seed(1)
    return DualSpaceProjectors(student.hidden.shape[1], teacher.hidden.shape[1]).double()


def read(side: ModelSide, hidden: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    return logits(hidden, head, bias, side.logit_scale, side.softcap)[:, : side.vocab_size]


def kl(target: Tensor, of: Tensor, temperature: float) -> Tensor:
    """KL(target‖of) of logits, by row."""
    log_t, log_s = (target / temperature).log_softmax(-1), (of / temperature).log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def by_definition(
    projectors: nn.Module, student: ModelSide, teacher: ModelSide, temperature: float, num_items: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One attention over all texts at once, with a mask, as the released code has it."""
    s = torch.cat([tokens for tokens, _ in SEQUENCES])
    t = torch.cat([tokens for _, tokens in SEQUENCES])
    s_row = torch.cat([torch.full_like(a, i) for i, (a, _) in enumerate(SEQUENCES)])
    t_row = torch.cat([torch.full_like(b, i) for i, (_, b) in enumerate(SEQUENCES)])
    s_embeds = torch.cat([student.embeddings[student.ids[s - 1]], student.embeddings[student.ids[s]]], -1)
    t_embeds = torch.cat([teacher.embeddings[teacher.ids[t - 1]], teacher.embeddings[teacher.ids[t]]], -1)
    t_target = teacher.embeddings[teacher.ids[t]]
    t_states = teacher.hidden[t - 1]
    query = projectors.query(s_embeds)
    key = t_embeds / t_embeds.std()
    value_t = projectors.t2s(t_states / t_states.std() + t_target / t_target.std())
    value_s = projectors.s2t(student.hidden[s - 1])
    align = query @ key.T / math.sqrt(2 * teacher.hidden.shape[1])
    align = align.masked_fill(s_row[:, None] != t_row[None, :], -1e5)
    t2s = align.softmax(-1) @ value_t
    s2t = align.T.softmax(-1) @ value_s
    bias = None if student.bias is None else student.bias.detach()
    t2s_logits = read(student, t2s, student.head.detach(), bias)
    cross_entropy = F.cross_entropy(t2s_logits, student.ids[s], reduction="sum")
    right = (t2s_logits.argmax(-1) == student.ids[s]).double()
    own = read(student, student.hidden[s - 1], student.head, student.bias)
    here = (kl(t2s_logits.detach(), own, temperature) * right).sum()
    teacher_logits = read(teacher, teacher.hidden[t - 1], teacher.head, teacher.bias)
    there = kl(teacher_logits, read(teacher, s2t, teacher.head, teacher.bias), temperature).sum()
    return cross_entropy / num_items, here / num_items, there / num_items


def leaves(side: ModelSide) -> ModelSide:
    return replace(
        side,
        hidden=side.hidden.clone().requires_grad_(),
        head=side.head.clone().requires_grad_(),
        bias=None if side.bias is None else side.bias.clone().requires_grad_(),
    )


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "bias-scale-cap-padding"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_definition(plain: bool, temperature: float, seed: int) -> None:
    student, teacher = sides(plain, seed)
    # The first text's targets become easy for the projected teacher, so that the middle term has tokens.
    found_projectors, twin_projectors = make_projectors(student, teacher), make_projectors(student, teacher)
    ours, twin = leaves(student), leaves(student)
    found = dual_space_loss(found_projectors, ours, teacher, SEQUENCES, temperature=temperature, num_items=5.0)
    found.loss.backward()
    terms = by_definition(twin_projectors, twin, teacher, temperature, 5.0)
    sum(terms).backward()  # type: ignore[union-attr]
    for one, other in zip((found.cross_entropy, found.student_space, found.teacher_space), terms, strict=True):
        assert float(one) == pytest.approx(float(other.detach()), rel=1e-9)
    torch.testing.assert_close(ours.hidden.grad, twin.hidden.grad)
    torch.testing.assert_close(ours.head.grad, twin.head.grad if twin.head.grad is not None else twin.head * 0)
    if ours.bias is not None and twin.bias is not None:
        torch.testing.assert_close(ours.bias.grad, twin.bias.grad)
    for (name, one), other in zip(found_projectors.named_parameters(), twin_projectors.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    assert float(found.token_loss_N.sum() / 5) == pytest.approx(float((terms[0] + terms[1]).detach()))


def test_the_middle_term_counts_where_the_projected_teacher_is_right() -> None:
    student, teacher = sides(True)
    projectors = make_projectors(student, teacher)
    shares = set()
    for _ in range(300):
        found = dual_space_loss(projectors, student, teacher, SEQUENCES)
        shares.add(round(float(found.right_share), 3))
        if found.right_share == 1:
            break
        projectors.zero_grad()
        found.loss.backward()
        with torch.no_grad():
            for parameter in projectors.parameters():
                assert parameter.grad is not None
                parameter -= 0.3 * parameter.grad
    assert len(shares) > 2, "training the projections must teach them the text's tokens"
    assert float(found.right_share) > 0.7
    assert float(found.student_space) > 0


def test_the_teacher_its_head_and_embeddings_get_no_gradient() -> None:
    student, teacher = sides(True)
    teacher = leaves(teacher)
    embeddings = student.embeddings.clone().requires_grad_()
    dual_space_loss(
        make_projectors(student, teacher), replace(student, embeddings=embeddings), teacher, SEQUENCES
    ).loss.backward()
    assert teacher.hidden.grad is None
    assert teacher.head.grad is None
    assert embeddings.grad is None


def test_float32_is_near_and_bfloat16_finite() -> None:
    student, teacher = sides(False)
    whole = float(dual_space_loss(make_projectors(student, teacher), student, teacher, SEQUENCES).loss.detach())

    def lower(side: ModelSide, dtype: torch.dtype) -> ModelSide:
        assert side.bias is not None
        return replace(
            side,
            hidden=side.hidden.to(dtype),
            head=side.head.to(dtype),
            embeddings=side.embeddings.to(dtype),
            bias=side.bias.to(dtype),
        )

    for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        projectors = make_projectors(student, teacher).float()
        found = dual_space_loss(projectors, lower(student, dtype), lower(teacher, dtype), SEQUENCES).loss
        found.backward()
        assert float(found.detach()) == pytest.approx(whole, rel=near)


def test_refuses() -> None:
    student, teacher = sides(True)
    projectors = make_projectors(student, teacher)
    with pytest.raises(ValueError, match="no sequence to compare"):
        dual_space_loss(projectors, student, teacher, [])
    none = torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="a sequence has 0 and 2 trained tokens"):
        dual_space_loss(projectors, student, teacher, [(none, torch.tensor([1, 2]))])
    with pytest.raises(ValueError, match="first token, which nothing predicts"):
        dual_space_loss(projectors, student, teacher, [(torch.tensor([0]), torch.tensor([1]))])
    with pytest.raises(ValueError, match="the teacher has 10 hidden states but 3 ids"):
        dual_space_loss(projectors, student, replace(teacher, ids=teacher.ids[:3]), SEQUENCES)
    with pytest.raises(ValueError, match=r"the student's hidden states \(11, 4\) and head \(9, 3\)"):
        dual_space_loss(projectors, replace(student, head=student.head[:, :3]), teacher, SEQUENCES)
