"""Which tokens count, and how much: weights that any objective takes. Depends on torch alone.

Every function returns weights whose mean over the trained tokens is 1, so that the loss keeps its scale, and 0 for a
token that is left out, which then is not projected at all.

Shape legend: N positions, n of one chunk, V vocabulary, H hidden, B batch, L length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmdistill.objectives.rows import LogitsView, log_normaliser

_CHUNK_LOGITS = 1 << 23


@torch.no_grad()
def student_entropy(
    hidden_NH: Tensor,
    head_VH: Tensor,
    mask_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    view: LogitsView,
    compiled: bool = True,
) -> Tensor:
    """Entropy in nats of the student's distribution at unmasked positions, 0 elsewhere, (N,); no logits are kept."""
    found_N = torch.zeros(len(hidden_NH), dtype=torch.float32, device=hidden_NH.device)
    places_M = mask_N.nonzero()[:, 0]
    step = max(1, _CHUNK_LOGITS // len(head_VH))
    one = torch.ones((), dtype=torch.float32, device=hidden_NH.device)
    for first in range(0, len(places_M), step):
        places_n = places_M[first : first + step]
        raw_nV = torch.nn.functional.linear(hidden_NH[places_n].to(head_VH.dtype), head_VH, bias_V)
        all_n = log_normaliser(raw_nV, one, view=view, compiled=compiled)
        logs_nV = view.logits(raw_nV).float() - all_n[:, None]
        found_N[places_n] = -(logs_nV.exp() * logs_nV).sum(-1).float()
    return found_N


def top_share(score_N: Tensor, mask_N: Tensor, keep: float) -> Tensor:
    """Weights that keep the share `keep` of the trained tokens with the highest scores, at least one, (N,).

    SE-KD (2602.01395) takes the student's entropy for a score.
    """
    trained = int(mask_N.sum())
    if trained == 0 or keep >= 1:
        return mask_N.float()
    count = max(1, round(keep * trained))
    chosen_n = score_N.masked_fill(~mask_N, -torch.inf).topk(count).indices
    weight_N = torch.zeros_like(score_N, dtype=torch.float32)
    weight_N[chosen_n] = trained / count
    return weight_N


def first_share(position_ids_BL: Tensor, mask_BL: Tensor, keep: float) -> Tensor:
    """Weights that keep the first share `keep` of the trained tokens of each packed row, at least one of each, (B, L).

    The beginning of an answer carries most of what a student learns from it (2606.22600).
    """
    weight_BL = torch.zeros(mask_BL.shape, dtype=torch.float32, device=mask_BL.device)
    for row, mask_L in enumerate(mask_BL):
        starts = (position_ids_BL[row] == 0).nonzero()[:, 0].tolist()
        for first, end in zip(starts, [*starts[1:], len(mask_L)], strict=True):
            places = mask_L[first:end].nonzero()[:, 0] + first
            weight_BL[row, places[: max(1, round(keep * len(places)))]] = 1.0
    total, kept = mask_BL.sum(), weight_BL.sum()
    return weight_BL * (total / kept) if kept > 0 else weight_BL
