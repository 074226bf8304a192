"""What the accounting of a run cannot measure and is told."""

from __future__ import annotations

from pydantic import Field, model_validator

from lmdistill.recipe.base import NonNegative, Positive, Section, Share


class TeacherTrainingSpec(Section):
    """What the teacher's own training took, as its makers say: the student owes a part of it."""

    flops: Positive | None = None
    """Floating-point operations in all."""
    tokens: Positive | None = None
    """Tokens that it was trained on, where no operations are known: 6 for each parameter and token (2001.08361)."""
    money: NonNegative | None = None
    """US dollars."""
    share: Share = 1.0
    """The part of it that this student answers for: all of it for a teacher trained for this student alone, 1/k where k
    students share it. For a teacher that was published by others there is no right figure; say what you chose."""
    source: str = ""
    """Where the figures are from."""

    @model_validator(mode="after")
    def _one_figure(self) -> TeacherTrainingSpec:
        if self.flops is None and self.tokens is None and self.money is None:
            raise ValueError("teacher_training declares nothing: give flops, tokens or money")
        if self.flops is not None and self.tokens is not None:
            raise ValueError("teacher_training: flops and tokens both say how much was computed; keep one of them")
        return self


class AccountingSpec(Section):
    """What the accounting cannot measure."""

    watts: Positive | None = None
    """What the machine draws while it works. Where absent, the processor's meter is read, and where there is none 8 W a
    core are assumed and said to be."""
    price_per_hour: NonNegative | None = None
    """US dollars for an hour of this machine."""
    api_parameters: Positive | None = Field(default=None)
    """Parameters of the model behind `api` that are active for a token, where you know them: without it, its operations
    are not known."""
    teacher_training: TeacherTrainingSpec | None = None
    """What the teacher's training took."""
