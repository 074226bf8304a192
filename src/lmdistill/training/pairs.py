"""Terms on pairs of texts: the teacher's answer and the student's to one prompt.

Shape legend: B batch, L length, S sequences (here one a row), P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmdistill.objectives.preference import PreferenceParts, preference_loss, sequence_logprobs
from lmdistill.recipe import PreferenceTerm
from lmdistill.training.groups import IGNORED, next_labels
from lmdistill.training.policy import own_tokens

SIMPO_MARGIN = 0.5
"""Target margin of SimPO over beta (2405.14734: beta 2, gamma 1)."""


def pairs_of(batch: Mapping[str, Any]) -> Tensor:
    """Rows of each pair, (P, 2): the other text, then the student's; every text of the student makes a pair."""
    own_B = own_tokens(batch).any(-1)
    groups_B = batch["groups"]
    others = {int(group): row for row, group in enumerate(groups_B.tolist()) if not own_B[row] and group >= 0}
    found = [(others[int(group)], row) for row, group in enumerate(groups_B.tolist()) if own_B[row] and group in others]
    return torch.tensor(found, dtype=torch.long, device=groups_B.device).view(-1, 2)


def preference(
    spec: PreferenceTerm,
    batch: Mapping[str, Any],
    logprobs_BL: Tensor,
    reference_BL: Tensor | None,
    num_pairs: float | Tensor | None,
) -> PreferenceParts:
    """The preference loss of a batch's pairs. `logprobs_BL` have a gradient; all but simpo need the reference."""
    mask_BL = next_labels(batch["labels"]) != IGNORED
    mean = spec.kind == "simpo"
    pairs_P2 = pairs_of(batch)
    student_S = sequence_logprobs(logprobs_BL, mask_BL, mean=mean)
    chosen_P, rejected_P = student_S[pairs_P2[:, 0]], student_S[pairs_P2[:, 1]]
    reference: tuple[Tensor | None, Tensor | None] = (None, None)
    if not mean:
        assert reference_BL is not None
        reference_S = sequence_logprobs(reference_BL, mask_BL)
        reference = (reference_S[pairs_P2[:, 0]], reference_S[pairs_P2[:, 1]])
    return preference_loss(
        chosen_P,
        rejected_P,
        *reference,
        beta=spec.beta,
        form="ipo" if spec.kind == "ipo" else "sigmoid",
        label_smoothing=spec.label_smoothing if spec.kind == "dpo" else 0.0,
        target_margin=SIMPO_MARGIN * spec.beta if mean else 0.0,
        num_items=num_pairs,
    )
