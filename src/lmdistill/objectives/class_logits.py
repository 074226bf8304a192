"""Distances between the class logits of student and teacher, with the conventions under which they were published.

Shape legend: N rows, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmdistill.objectives.divergences import Divergence


def class_divergence(
    student_NC: Tensor,
    teacher_NC: Tensor,
    divergence: Divergence,
    *,
    temperature: float = 1.0,
    temperature_squared: bool = False,
) -> Tensor:
    """A divergence of the distributions of each row, (N,), with gradient for the student.

    The gradient is the definition's own derivative, as in the loss engine, so that what a divergence holds fixed is
    held fixed here too. Computed in at least float32.
    """
    student_NC, teacher_NC = _checked(student_NC, teacher_NC)
    z_NC = student_NC / temperature
    log_s_NC = z_NC.detach().log_softmax(-1)
    log_t_NC = (teacher_NC / temperature).log_softmax(-1)
    f_NC, v_NC = divergence.summands(log_s_NC, log_t_NC, *divergence.context(log_s_NC, log_t_NC))
    slope_NC = v_NC - log_s_NC.exp() * v_NC.sum(-1, keepdim=True)
    # The value of f, the gradient of v: z - z.detach() is 0 and hands the slope on.
    loss_N = f_NC.sum(-1) + (slope_NC * (z_NC - z_NC.detach())).sum(-1)
    return loss_N * temperature**2 if temperature_squared else loss_N


def soft_cross_entropy(
    student_NC: Tensor, teacher_NC: Tensor, *, temperature: float = 1.0, over_classes: bool = True
) -> Tensor:
    """Cross-entropy with the teacher's softened distribution, (N,), with gradient for the student.

    TinyBERT (1909.10351, eq. 10) as released takes the mean over rows AND classes (`over_classes`), so its values and
    gradients are 1 / C of the textbook's; the published weights and step sizes belong to that scale.
    """
    student_NC, teacher_NC = _checked(student_NC, teacher_NC)
    target_NC = (teacher_NC / temperature).softmax(-1)
    terms_NC = -target_NC * (student_NC / temperature).log_softmax(-1)
    return terms_NC.mean(-1) if over_classes else terms_NC.sum(-1)


def softmax_mse(
    student_NC: Tensor,
    teacher_NC: Tensor,
    *,
    temperature: float = 1.0,
    temperature_squared: bool = True,
    over_classes: bool = True,
) -> Tensor:
    """Squared distance of the softened probabilities, (N,), with gradient for the student.

    What MetaDistil's released code has where its paper (2106.04570) writes a Kullback-Leibler divergence: the mean over
    rows and classes of (softmax(z_T / T) - softmax(z_S / T))², times T².
    """
    student_NC, teacher_NC = _checked(student_NC, teacher_NC)
    square_NC = ((student_NC / temperature).softmax(-1) - (teacher_NC / temperature).softmax(-1)).square()
    loss_N = square_NC.mean(-1) if over_classes else square_NC.sum(-1)
    return loss_N * temperature**2 if temperature_squared else loss_N


def logits_mse(student_NC: Tensor, teacher_NC: Tensor, *, over_classes: bool = False) -> Tensor:
    """Squared distance of the logits, (N,), with gradient for the student.

    DistilBiLSTM (1903.12136, eq. 3): ||z_T - z_S||², the sum over classes; `over_classes` takes their mean, as
    `torch.nn.MSELoss` and with it most released code does (MixKD, ReAugKD's kin, XtremeDistil).
    """
    student_NC, teacher_NC = _checked(student_NC, teacher_NC)
    square_NC = (student_NC - teacher_NC).square()
    return square_NC.mean(-1) if over_classes else square_NC.sum(-1)


def _checked(student_NC: Tensor, teacher_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Both in at least float32, the teacher's without gradient. Raises ValueError where shapes differ."""
    if student_NC.ndim != 2 or student_NC.shape != teacher_NC.shape:
        raise ValueError(
            f"the student has logits of shape {tuple(student_NC.shape)} and the teacher of {tuple(teacher_NC.shape)}; "
            "both must be (N, C) with the same rows and classes"
        )
    return _wide(student_NC), _wide(teacher_NC.detach())


def _wide(logits_NC: Tensor) -> Tensor:
    return logits_NC if logits_NC.dtype == torch.float64 else logits_NC.float()
