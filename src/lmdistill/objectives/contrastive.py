"""DistiLLM-2 (2503.07067): teacher's answers are pulled up, the student's own pushed down, each by its own divergence.

    L = mean over pairs of  (2 - b) mean_t SKL(alpha) on the teacher's answer  +  b mean_t SRKL(alpha) on the student's

SKL is `skew_forward_kl`, SRKL `skew_reverse_kl_detached`; alpha goes in as `setting_N`, the rest as `weight_N` with
`num_items` the number of pairs. In the published method b rises and alpha adapts to each sequence; the release has both
switched off (b = 1, alpha = 0.1), and its switch for alpha fails silently. Depends on torch alone.

Shape legend: B batch, L length, S sequences.
"""

from __future__ import annotations

from torch import Tensor

from lmdistill.objectives.segments import segment_lengths, segment_sums, sequence_mean_weights, to_tokens


def contrastive_weights(
    mask_BL: Tensor, teacher_wrote_S: Tensor, *, beta: float = 1.0, segments_BL: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights of the tokens of the teacher's answers and of the student's, (B, L) each; each 0 at the other's tokens.

    (2 - beta) / length and beta / length, so that sums divided by the number of pairs are the loss above. Where a
    weight is above 0 is the mask of its side. `teacher_wrote_S` is True for sequences of the teacher.
    """
    if not 0 <= beta <= 2:
        raise ValueError(f"beta = {beta} must lie from 0 to 2: the teacher's side weighs 2 - beta")
    shares_BL = sequence_mean_weights(mask_BL, segments_BL)
    teacher_BL = to_tokens(teacher_wrote_S.bool().to(shares_BL.dtype), mask_BL, segments_BL)
    return (2 - beta) * shares_BL * teacher_BL, beta * shares_BL * (1 - teacher_BL)


def curriculum_beta(progress: float, *, start: float = 1.0, end: float = 1.5, reached_at: float = 0.5) -> float:
    """The weight of the student's side at this share of the steps: from `start` straight to `end`, then constant."""
    return start + (end - start) * min(1.0, max(0.0, progress / reached_at))


def likelihood_gap(
    teacher_logprobs_BL: Tensor, student_logprobs_BL: Tensor, mask_BL: Tensor, segments_BL: Tensor | None = None
) -> Tensor:
    """How much likelier a sequence is under the teacher: difference of the geometric means over its tokens, (S,)."""
    lengths_S = segment_lengths(mask_BL, segments_BL).clamp_min(1)
    teacher_S, student_S = (
        (segment_sums(logprobs_BL.detach(), mask_BL, segments_BL) / lengths_S).exp()
        for logprobs_BL in (teacher_logprobs_BL, student_logprobs_BL)
    )
    return teacher_S - student_S


def adaptive_alpha(gap_S: Tensor, typical_gap: float, *, base: float = 0.1, lowest: float = 0.01) -> Tensor:
    """alpha = clip(1 - (1 - base) typical_gap / gap, lowest, base) of each sequence, (S,).

    A skew KL grows like (1 - alpha) gap; this keeps it at (1 - base) typical_gap, so that sequences on which both
    models nearly agree get a sharper mixture. `gap_S` is the `likelihood_gap` for the teacher's answers and minus it
    for the student's, `typical_gap` its mean (over the first 100 steps in the release). A sequence whose gap has the
    other sign keeps `base`. Held fixed in the gradient; the release lets it through alpha.
    """
    return (1 - (1 - base) * typical_gap / (gap_S.detach() + 1e-5)).clamp(lowest, base)
