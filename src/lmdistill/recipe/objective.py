"""What is minimised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import NonNegative, Positive, Section, nearest

DIVERGENCE_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "forward_kl": (),
    "reverse_kl": (),
    "jsd": ("teacher_weight",),
    "skew_forward_kl": ("alpha",),
    "skew_reverse_kl": ("alpha",),
    "total_variation": (),
    "alpha_beta": ("alpha", "beta"),
    "adaptive_kl": ("mu",),
    "taid": ("start", "end", "alpha", "momentum"),
}
"""Parameters of each divergence of `lmdistill.objectives`, named here too so that reading a recipe needs no torch."""


class DivergenceTerm(Section):
    """Distance between the teacher's and the student's next-token distributions."""

    kind: Literal[
        "forward_kl",
        "reverse_kl",
        "jsd",
        "skew_forward_kl",
        "skew_reverse_kl",
        "total_variation",
        "alpha_beta",
        "adaptive_kl",
        "taid",
    ] = "forward_kl"
    """Name of the divergence; `lmdistill.objectives.DIVERGENCES` defines each."""
    weight: NonNegative = 1.0
    """Factor of this term in the loss; 0 leaves the teacher out."""
    parameters: dict[str, float] = Field(default_factory=dict)
    """The divergence's own parameters (`teacher_weight` of jsd, `alpha` of the skew divergences, `alpha` and `beta` of
    alpha_beta, `mu` of adaptive_kl, `start` and others of taid)."""
    temperature: Positive = 1.0
    """Both distributions are softened by this temperature."""
    temperature_squared: bool = False
    """Multiply by temperature², which keeps the gradient's size at high temperature (Hinton 1503.02531)."""

    @model_validator(mode="after")
    def _check(self) -> DivergenceTerm:
        known = DIVERGENCE_PARAMETERS[self.kind]
        for name in self.parameters:
            if name not in known:
                advice = nearest(name, known) if known else ", which takes none; remove it"
                raise ValueError(f"{name!r} is not a parameter of {self.kind}{advice}")
        return self


class CrossEntropyTerm(Section):
    """Cross-entropy with the text itself (the hard labels)."""

    weight: NonNegative = 0.0
    """Factor of this term in the loss."""


class HiddenCosineTerm(Section):
    """1 - cosine between the last hidden states of teacher and student (DistilBERT 1910.01108); equal widths only."""

    weight: NonNegative = 0.0
    """Factor of this term in the loss."""


class TokenWeightSpec(Section):
    """Which of the trained tokens count in the loss; the others are not even projected."""

    by: Literal["all", "student_entropy", "divergence", "position"] = "all"
    """`all`; those where the student is least certain (`student_entropy`, SE-KD 2602.01395); those where it differs
    most from the teacher (`divergence`); or the first ones of each row (`position`)."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Share of the trained tokens that count; their weights make up for the others, so that the loss keeps its
    scale."""


class ObjectiveSpec(Section):
    """What is minimised: a weighted sum of terms, each a mean over the trained tokens."""

    divergence: DivergenceTerm = Field(default_factory=DivergenceTerm)
    """Divergence from the teacher."""
    cross_entropy: CrossEntropyTerm = Field(default_factory=CrossEntropyTerm)
    """Cross-entropy with the text."""
    hidden_cosine: HiddenCosineTerm = Field(default_factory=HiddenCosineTerm)
    """Direction of the last hidden state."""
    tokens: TokenWeightSpec = Field(default_factory=TokenWeightSpec)
    """Which tokens count."""

    @model_validator(mode="after")
    def _check(self) -> ObjectiveSpec:
        if self.tokens.by == "divergence" and self.divergence.weight == 0:
            raise ValueError("tokens.by: divergence compares with a teacher: give divergence a weight above 0")
        if self.divergence.weight == 0 and self.cross_entropy.weight == 0 and self.hidden_cosine.weight == 0:
            raise ValueError(
                "all terms have weight 0; give divergence, cross_entropy or hidden_cosine a weight above 0"
            )
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return self.divergence.weight > 0 or self.hidden_cosine.weight > 0
