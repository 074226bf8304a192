"""Shares of tasks and agreement of pairs, against naive float64 formulas, in loss and in gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lmdistill.objectives.consistency import pair_consistency
from lmdistill.recipe import ObjectiveSpec
from lmdistill.training.objective import Objective, next_labels
from lmdistill.training.twins import TWIN_PAIRS

V = 43
EPSILON = 7e-5


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).double()


def batch(rows: int = 3, length: int = 14, border: int = 6) -> dict[str, Any]:
    """Two packed rows in each sequence, of which the second is longer."""
    torch.manual_seed(1)
    ids_BL = torch.randint(0, V, (rows, length))
    labels_BL = ids_BL.clone()
    labels_BL[:, [0, border]] = -100
    labels_BL[:, 1] = -100
    positions_L = torch.tensor([*range(border), *range(length - border)])
    return {"input_ids": ids_BL, "labels": labels_BL, "position_ids": positions_L.expand(rows, length).clone()}


def naive_logs(student: LlamaForCausalLM, inputs: dict[str, Any]) -> Tensor:
    """Log-probabilities of the next token, float64, (B, L, V)."""
    found = student(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False)
    return torch.log_softmax(found.logits.double(), -1)


def gradient(loss: Tensor, student: LlamaForCausalLM) -> Tensor:
    found = torch.autograd.grad(loss, list(student.parameters()))
    return torch.cat([each.flatten() for each in found])


def objective(**terms: Any) -> Objective:
    spec = ObjectiveSpec.model_validate({"divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}, **terms})
    return Objective(spec, teacher=None, vocabulary_size=V, compiled=False)


def test_weights_of_tasks_are_the_weighted_sum_of_their_means() -> None:
    """Distilling Step-by-Step: a L_label + (1 - a) L_rationale, each a mean over its own tokens."""
    student, inputs, share = model(), batch(), 0.3
    trained_BL = inputs["labels"] != -100
    label_BL = trained_BL & (torch.arange(14) < 6)
    rationale_BL = trained_BL & ~label_BL
    whole = trained_BL.sum()
    inputs["loss_weights"] = torch.where(
        label_BL, share * whole / label_BL.sum(), (1 - share) * whole / rationale_BL.sum()
    )
    ours = objective()(student, student, inputs, None).loss
    logs_BLV = naive_logs(student, inputs)[:, :-1]
    own_BL = -logs_BLV.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    naive = share * own_BL[label_BL[:, 1:]].mean() + (1 - share) * own_BL[rationale_BL[:, 1:]].mean()
    assert float(ours.detach()) == pytest.approx(float(naive.detach()), rel=1e-6)
    torch.testing.assert_close(gradient(ours, student), gradient(naive, student), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("epsilon", "temperature"), [(EPSILON, 1.0), (0.0, 1.0), (EPSILON, 2.0)])
def test_consistency_is_the_published_formula(epsilon: float, temperature: float) -> None:
    """MCC-KD: 1/2 (CE_a + CE_b) + alpha 1/2 [KL(p||q) + KL(q||p)]; pairs with one, two and three answer tokens."""
    student, inputs, alpha = model(), batch(), 0.4
    spans = [([5], [13]), ([4, 5], [10, 11]), ([3, 4, 5], [9, 10, 11])]
    inputs["twins"] = torch.full((3, 14), -1)
    for row, (first, second) in enumerate(spans):
        inputs["twins"][row, first] = torch.tensor(second)
    term = {"weight": alpha, "epsilon": epsilon, "temperature": temperature}
    ours = objective(consistency=term)(student, student, inputs, None)
    assert set(ours.others) == {"consistency"}

    logs_BLV = naive_logs(student, inputs)
    labels_BL = next_labels(inputs["labels"])
    own_BL = -logs_BLV.gather(-1, labels_BL.clamp_min(0)[..., None])[..., 0]
    apart = []
    for row, (first, second) in enumerate(spans):
        p, q = (torch.softmax(logs_BLV[row, torch.tensor(span) - 1] / temperature, -1) for span in (first, second))
        p, q = ((each + epsilon) / (each + epsilon).sum(-1, keepdim=True) for each in (p, q))
        both = (p * (p.log() - q.log())).sum(-1) + (q * (q.log() - p.log())).sum(-1)
        apart.append(both.mean() / 2)
    naive = own_BL[labels_BL != -100].mean() + alpha * torch.stack(apart).mean()
    assert float(ours.loss.detach()) == pytest.approx(float(naive.detach()), rel=1e-6)
    assert float(ours.others["consistency"]) == pytest.approx(float(torch.stack(apart).mean().detach()), rel=1e-5)
    torch.testing.assert_close(gradient(ours.loss, student), gradient(naive, student), rtol=1e-5, atol=1e-8)


def test_micro_batches_add_up_to_the_whole() -> None:
    student, inputs = model(), batch()
    inputs["twins"] = torch.full((3, 14), -1)
    inputs["twins"][0, 5], inputs["twins"][2, [4, 5]] = 13, torch.tensor([10, 11])
    term = objective(consistency={"weight": 1.0}, cross_entropy={"weight": 1e-9})
    whole = term(student, student, inputs, 100.0).loss
    parts = [{name: column[row : row + 1] for name, column in inputs.items()} for row in range(3)]
    summed = sum(term(student, student, {**part, TWIN_PAIRS: torch.tensor(2)}, 100.0).loss for part in parts)
    assert float(summed.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)


def test_without_pairs_there_is_a_gradient_of_zero() -> None:
    student, inputs = model(), batch()
    step = objective(consistency={"weight": 1.0})(student, student, inputs, None)
    assert float(step.others["consistency"]) == 0.0
    assert math.isfinite(float(step.loss.detach()))


def test_equal_texts_agree_completely() -> None:
    hidden = torch.randn(4, 8, dtype=torch.float64).repeat(2, 1)
    head = torch.randn(V, 8, dtype=torch.float64)
    places = torch.arange(4)
    assert float(pair_consistency(hidden, head, places, places + 4, torch.ones(4))) == pytest.approx(0.0, abs=1e-12)
