"""Rows that hold several sequences: which token belongs to which, and sums over them. Depends on torch alone.

Position t of a row speaks of token t + 1, as everywhere in the loss engine, so a sequence's last position is never
trained and a sequence's number at t is that of the text which t reads.

Shape legend: B batch, L length, S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_ids(position_ids_BL: Tensor) -> Tensor:
    """Number of the sequence that each position belongs to, row after row, (B, L); positions begin again at 0.

    Padding whose positions begin again counts as a sequence too: one without any trained token.
    """
    starts_BL = position_ids_BL == 0
    starts_BL[:, 0] = True
    return starts_BL.flatten().long().cumsum(0).view(starts_BL.shape) - 1


def row_ids(mask_BL: Tensor) -> Tensor:
    """The number of the row at each position: segments of rows that hold one sequence each."""
    return torch.arange(len(mask_BL), device=mask_BL.device)[:, None].expand(mask_BL.shape)


def segment_sums(values_BL: Tensor, mask_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
    """Sum of each sequence's unmasked values, (S,), with gradient; S is the largest number + 1."""
    segments_BL = row_ids(mask_BL) if segments_BL is None else segments_BL
    count = int(segments_BL.max()) + 1 if segments_BL.numel() else 0
    kept_BL = torch.where(mask_BL.bool(), values_BL, 0.0)
    return kept_BL.new_zeros(count).index_add(0, segments_BL.flatten(), kept_BL.flatten())


def segment_lengths(mask_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
    """Number of unmasked tokens of each sequence, (S,), float32."""
    return segment_sums(torch.ones(mask_BL.shape, device=mask_BL.device), mask_BL, segments_BL)


def to_tokens(values_S: Tensor, mask_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
    """Give each token its sequence's value, (B, L); 0 where masked."""
    segments_BL = row_ids(mask_BL) if segments_BL is None else segments_BL
    return torch.where(mask_BL.bool(), values_S[segments_BL], 0.0)


def sequence_mean_weights(mask_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
    """1 / length of its sequence for each unmasked token, (B, L).

    As `weight_N`, with `num_items` the number of sequences of the whole accumulated batch, a loss becomes the mean over
    sequences of the mean over their tokens, however the batch is cut.
    """
    lengths_S = segment_lengths(mask_BL, segments_BL)
    return to_tokens(1 / lengths_S.clamp_min(1), mask_BL, segments_BL)
