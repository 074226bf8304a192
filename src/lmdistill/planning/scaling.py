"""When to distil and when to train: the distillation scaling law (Busbridge et al., 2502.08606).

The law of supervised training and its coefficients, the accounting of compute (equation 9) and the form of the
distillation law (equation 8) are built in. The coefficients of equation 8 are not: they could not be checked against
the publication when this was written, so none are shipped. Whoever has them gives them as a `DistillationLaw`.

N are parameters without embeddings, D tokens, L cross-entropies in nats a token, F(N) the operations of a forward pass
a token. Coefficients hold for the publication's models, tokenizer and text (C4, 143 M to 12.6 B parameters, at most
512 B tokens): elsewhere they show directions, not values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

# L(N, D) = E + (A / N^alpha + B / D^beta)^gamma of section 3 of 2502.08606, as quoted by an independent reproduction.
_E, _A, _B = 1.220, 3355.0, 18186.0
_ALPHA, _BETA, _GAMMA = 0.408, 0.431, 0.452
LARGEST, MOST_TOKENS = 12.6e9, 512e9
"""Parameters and tokens up to which the law was fitted."""


class DistillationLaw(BaseModel):
    """Coefficients of equation 8, from a JSON file that the user gives (`lmdistill plan --law`)."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    a: float
    """A'"""
    b: float
    """B'"""
    alpha: float
    """alpha'"""
    beta: float
    """beta'"""
    gamma: float
    """gamma'"""
    c0: float
    c1: float
    d1: float
    f1: float
    source: str
    """Where they were read."""

    def student_loss(self, parameters: float, tokens: float, teacher_loss: float) -> float:
        """Equation 8: the cross-entropy of a distilled student."""
        supervised = supervised_loss(parameters, tokens)
        ratio = (teacher_loss / (supervised * self.d1)) ** (1 / self.f1)
        gap = (1 + ratio) ** (-self.c1 * self.f1)
        reach = (self.a / parameters**self.alpha + self.b / tokens**self.beta) ** self.gamma
        return float(teacher_loss + teacher_loss**-self.c0 * gap * reach)


def supervised_loss(parameters: float, tokens: float) -> float:
    """Cross-entropy of a model of this size trained on so many tokens without a teacher."""
    return float(_E + (_A / parameters**_ALPHA + _B / tokens**_BETA) ** _GAMMA)


def supervised_tokens(parameters: float, loss: float) -> float:
    """Tokens after which training alone reaches this cross-entropy; infinite where the size never allows it."""
    if loss <= _E:
        return math.inf
    room = (loss - _E) ** (1 / _GAMMA) - _A / parameters**_ALPHA
    return float((_B / room) ** (1 / _BETA)) if room > 0 else math.inf


def distillation_flops(
    student: float,
    tokens: float,
    teacher: float,
    *,
    inference: float = 1.0,
    pretraining: float = 0.0,
    teacher_tokens: float = 0.0,
) -> float:
    """Equation 9: 3 F(N_S) D_S + F(N_T) (inference D_S + pretraining 3 D_T).

    `student` and `teacher` are the operations of their forward passes a token; `inference` and `pretraining` are the
    publication's deltas: the shares of the teacher's inference and of its training on `teacher_tokens` that count.
    """
    return 3 * student * tokens + teacher * (inference * tokens + pretraining * 3 * teacher_tokens)


@dataclass(frozen=True)
class Case:
    """A distillation to be judged."""

    student_parameters: float
    student_flops: float
    """Of a forward pass a token."""
    teacher_flops: float
    tokens: float
    teacher_is_live: bool
    """Whether the teacher speaks during training; a store that exists already costs nothing more."""
    teacher_parameters: float = 0.0
    teacher_tokens: float | None = None
    """What the teacher was trained on, where it is declared."""
    share: float = 0.0
    """Share of the teacher's training that the student answers for."""
    law: DistillationLaw | None = None


def advise(case: Case) -> list[str]:
    """What the law says of a distillation, in sentences."""
    said = [
        "When to distil (2502.08606): when the teacher exists already, or will teach several students; where it would "
        "have to be trained for this student alone, training the student on text is the better use of the compute."
    ]
    known = case.share if case.teacher_tokens is not None else 0.0
    whole = distillation_flops(
        case.student_flops,
        case.tokens,
        case.teacher_flops,
        inference=float(case.teacher_is_live),
        pretraining=known,
        teacher_tokens=case.teacher_tokens or 0.0,
    )
    alone = 3 * case.student_flops * case.tokens
    instead = case.tokens * whole / alone
    counted = "the teacher's inference" if case.teacher_is_live else "no inference, since its signals are stored"
    if known:
        counted += f" and {known:.0%} of its training"
    said.append(
        f"By equation 9, with {counted}, distilling on {case.tokens:.3g} tokens takes {whole / alone:.2f} times the "
        f"compute of training on them: as much as training alone on {instead:.3g} tokens."
    )
    said += _beyond(case)
    if case.tokens < 1:
        return said
    supervised = supervised_loss(case.student_parameters, instead)
    said.append(
        f"By the law of training alone, {case.student_parameters:.3g} parameters reach {supervised:.3f} nats a token "
        f"on those (on {case.tokens:.3g} tokens {supervised_loss(case.student_parameters, case.tokens):.3f})."
    )
    return said + _against_the_teacher(case, supervised)


def _against_the_teacher(case: Case, supervised: float) -> list[str]:
    if case.teacher_tokens is None or not case.teacher_parameters:
        return [
            "How good the teacher is by the same law is not known: declare accounting.teacher_training.tokens, and the "
            "point is named from which on training alone is as good as the teacher."
        ]
    teacher = supervised_loss(case.teacher_parameters, case.teacher_tokens)
    point = supervised_tokens(case.student_parameters, teacher)
    if math.isinf(point):
        said = [
            f"The teacher's {teacher:.3f} nats lie below all that a model of the student's size reaches without one: "
            "a student can come nearer to it by distillation than by training, but the gap in capacity stays (a "
            "stronger teacher may then even be the worse one)."
        ]
    else:
        side = "beyond" if case.tokens > point else "short of"
        said = [
            f"Training alone reaches the teacher's {teacher:.3f} nats after {point:.3g} tokens: this run is {side} "
            "that point, beyond which training alone wins, however good the distillation."
        ]
    if case.law is None:
        return [*said, "Equation 8 itself needs coefficients that are not shipped (--law FILE)."]
    student = case.law.student_loss(case.student_parameters, case.tokens, teacher)
    better = "distil" if student < supervised else "train on text alone"
    return [
        *said,
        f"Equation 8 with the coefficients of {case.law.source}: the distilled student reaches {student:.3f} nats, "
        f"training alone for the same compute {supervised:.3f}: {better}.",
    ]


def _beyond(case: Case) -> list[str]:
    """What lies outside the range in which the law was fitted."""
    outside = []
    if case.student_parameters > LARGEST or case.student_parameters < 143e6:
        outside.append(f"{case.student_parameters:.3g} parameters")
    if case.tokens > MOST_TOKENS or case.tokens < 1e9:
        outside.append(f"{case.tokens:.3g} tokens")
    if not outside:
        return []
    return [
        f"{' and '.join(outside)} lie outside what the law was fitted on (143 M to 12.6 B parameters, up to 512 B "
        "tokens): take what follows as a direction."
    ]
