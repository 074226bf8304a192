"""The critic: the minimum that it is said to be, folds that share no group, and a curve that counts."""

from __future__ import annotations

import pytest
import torch

from lmdistill.generation.critic import cross_validated, fit_critic, precision_curve


def rows(count: int = 40, width: int = 5) -> tuple[torch.Tensor, list[bool]]:
    torch.manual_seed(0)
    features = torch.randn(count, width)
    return features, [bool(found) for found in features[:, 0] + 0.5 * torch.randn(count) > 0]


def test_the_fit_is_the_minimum_of_the_penalised_loss() -> None:
    features, valid = rows()
    critic = fit_critic(features, valid, penalty=0.1)
    probability = torch.sigmoid(features.double() @ critic.weight_D.double() + critic.bias.double())
    slope = probability - torch.tensor(valid, dtype=torch.float64)
    gradient = features.double().T @ slope / len(valid) + 0.1 * critic.weight_D.double()
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)
    assert float(slope.mean()) == pytest.approx(0.0, abs=1e-5)
    assert critic.probabilities(features) == pytest.approx(probability.tolist(), abs=1e-6)


def test_no_row_is_judged_by_a_critic_that_saw_its_group() -> None:
    """Labels that are the group's name turned around: whoever learnt from the group would be right."""
    features = torch.eye(8).repeat_interleave(2, dim=0)
    groups = [f"g{number // 2}" for number in range(16)]
    valid = [number // 2 % 2 == 0 for number in range(16)]
    seen = fit_critic(features, valid).probabilities(features)
    held = cross_validated(features, valid, groups, folds=8, seed=0)
    assert all((found > 0.5) == one for found, one in zip(seen, valid, strict=True))
    assert max(abs(found - 0.5) for found in held) < 0.2
    with pytest.raises(ValueError, match="8 heads cannot be parted into 9 folds"):
        cross_validated(features, valid, groups, folds=9, seed=0)


def test_the_curve_counts_what_is_kept_and_right() -> None:
    curve = precision_curve([0.9, 0.8, 0.3, 0.1], [True, False, True, False], points=4)
    assert [(point.threshold, point.kept, point.precision) for point in curve] == [
        (0.1, 1.0, 0.5),
        (0.3, 0.75, pytest.approx(2 / 3)),
        (0.8, 0.5, 0.5),
        (0.9, 0.25, 1.0),
    ]


def test_a_critic_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="valid and invalid"):
        fit_critic(torch.zeros(2, 3), [True, True])
