"""Pairs of texts in a batch whose tokens are to be predicted alike (`lmdistill.data.twins`).

Shape legend: B batch, L length, N = B * L positions, P pairs of positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmdistill.data.dataset import TWINS
from lmdistill.data.twins import NO_TWIN
from lmdistill.models import OutputHead
from lmdistill.objectives.consistency import pair_consistency
from lmdistill.recipe import ConsistencyTerm

TWIN_PAIRS = "twin_pairs"
"""Where a batch holds the number of pairs of the whole accumulated batch, on all ranks."""


def count_twins(batches: Sequence[Mapping[str, Any]]) -> Tensor:
    """Pairs in micro-batches, (1,)."""
    return torch.tensor([sum(int((batch[TWINS] != NO_TWIN).any(-1).sum()) for batch in batches if TWINS in batch)])


def consistency(
    spec: ConsistencyTerm,
    hidden_NH: Tensor,
    head: OutputHead,
    batch: Mapping[str, Any],
    vocabulary_size: int,
    compute_dtype: torch.dtype | None,
) -> Tensor:
    """The mean over a batch's pairs of their mean disagreement, a scalar with gradient; 0 where there are none."""
    twins_BL: Tensor | None = batch.get(TWINS)
    if twins_BL is None or not bool((twins_BL != NO_TWIN).any()):
        return hidden_NH.sum() * 0.0
    rows_P, labels_P = (twins_BL != NO_TWIN).nonzero(as_tuple=True)
    tokens_B = (twins_BL != NO_TWIN).sum(-1)
    pairs = batch.get(TWIN_PAIRS)
    count = (tokens_B > 0).sum() if pairs is None else torch.as_tensor(pairs, device=hidden_NH.device)
    begin_P = rows_P * twins_BL.shape[1]
    return pair_consistency(
        hidden_NH,
        head.weight_VH,
        begin_P + labels_P - 1,  # what predicts a token stands before it
        begin_P + twins_BL[rows_P, labels_P] - 1,
        1.0 / (tokens_B[rows_P] * count.clamp_min(1)),
        epsilon=spec.epsilon,
        temperature=spec.temperature,
        bias=head.bias_V,
        logit_scale=head.logit_scale,
        softcap=head.softcap,
        vocab_size=vocabulary_size,
        compute_dtype=compute_dtype,
    )
