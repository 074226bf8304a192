"""What is minimised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, NonNegative, Positive, Section, Share, nearest
from lmdistill.recipe.hints import HintSpec

DIVERGENCE_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "forward_kl": (),
    "reverse_kl": (),
    "jsd": ("teacher_weight",),
    "skew_forward_kl": ("alpha",),
    "skew_reverse_kl": ("alpha",),
    "skew_reverse_kl_detached": ("alpha",),
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
        "skew_reverse_kl_detached",
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


class RewardSpec(Section):
    """A number for a whole text of the student."""

    kind: Literal["rouge_l", "contains_answer", "brevity"] = "rouge_l"
    """ROUGE-L F1 with the data set's answer; 1 where the answer's last number (or last line) is the data set's, else 0;
    or minus the length as a share of generation.max_new_tokens."""


class PolicyTerm(Section):
    """Policy gradient on the tokens that the student wrote."""

    kind: Literal["sampled_token", "minillm", "discriminator", "reward"] = "sampled_token"
    """What a token's advantage is: log p - log q of the token itself (on-policy distillation, Thinking Machines 2025);
    MiniLLM's length-normalised, whitened return (2306.08543); the score of a discriminator against the other samples of
    the prompt (GAD 2511.10643); or a reward of the whole text (GKD's optional term, 2306.13649)."""
    weight: NonNegative = 0.0
    """Factor of this term in the loss."""
    clip: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """PPO's clipping of the ratio of new to old probability; no clipping where absent."""
    reward_clip: Positive | None = None
    """Rewards of a token are cut at plus and minus this."""
    reward_scaling: Positive = 1.0
    """Rewards of a token are divided by this (MiniLLM: 0.5)."""
    discount: Share = 1.0
    """Discount of later rewards (`minillm`)."""
    reward: RewardSpec = Field(default_factory=RewardSpec)
    """The reward (`kind: reward`)."""
    samples_per_prompt: Count = 1
    """Texts of the student for each prompt; their mean score is the baseline (`discriminator`: 8; `reward`)."""
    discriminator_warmup: Annotated[int, Field(ge=0)] = 20
    """Steps in which the discriminator alone learns (`discriminator`)."""
    discriminator_learning_rate: Positive = 1e-4
    """Step size of the discriminator."""


class PreferenceTerm(Section):
    """The teacher's text preferred to the student's, as a whole (`trajectories.mixture.paired`)."""

    kind: Literal["dpo", "dpkd", "ipo", "simpo"] = "dpo"
    """DPO (2305.18290) against the student at the start; DPKD (LMOps) against the teacher; IPO (2310.12036); SimPO
    (2405.14734), which needs no reference."""
    weight: NonNegative = 0.0
    """Factor of this term in the loss."""
    beta: Positive = 0.1
    """Strength."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of pairs taken to be the wrong way round (`dpo`)."""


class ContrastiveSpec(Section):
    """DistiLLM-2's weights of pairs (2503.07067); `published: false` is what its code does as released."""

    published: bool = True
    """Adaptive alpha for each sample and beta rising from 1 to `beta_end`; false: alpha fixed, beta 1."""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """alpha0 of the skew divergences."""
    beta_end: Annotated[float, Field(ge=1.0, lt=2.0)] = 1.5
    """beta at the end of training; the teacher's text weighs 2 - beta, the student's beta."""


class ConsistencyTerm(Section):
    """Two ways to one answer lead to it alike (MCC-KD, 2310.14747): half the sum of both KL divergences between the
    distributions at the answer's tokens, in rows that make a pair (`generation.maker: rationale_pairs`)."""

    weight: NonNegative = 0.0
    """Factor of this term in the loss; published: 0.1."""
    epsilon: NonNegative = 7e-5
    """Added to each probability before both are normalised again, as in the publication's code."""
    temperature: Positive = 1.0
    """Both distributions are softened by this temperature."""


class CrossTokenizerTerm(Section):
    """Distance between models that cut text differently."""

    kind: Literal["uld", "gold", "alm", "dskd"] = "alm"
    """ULD (2402.12030): sorted probabilities. GOLD (TRL): merged spans, exact matches, the rest sorted. ALM
    (2503.20083): likelihoods of chunks. DSKD (2406.17328): projected hidden states in both spaces."""
    weight: NonNegative = 1.0
    """Factor of this term in the loss."""
    parameters: dict[str, bool | float | str] = Field(default_factory=dict)
    """The kind's own parameters; see docs/cross_tokenizer.md."""
    minimum_coverage: Share = 0.5
    """The doctor refuses a pair of tokenizers of which a smaller share of the text's bytes can be aligned."""


class ObjectiveSpec(Section):
    """What is minimised: a weighted sum of terms, each a mean over the trained tokens."""

    divergence: DivergenceTerm = Field(default_factory=DivergenceTerm)
    """Divergence from the teacher."""
    cross_entropy: CrossEntropyTerm = Field(default_factory=CrossEntropyTerm)
    """Cross-entropy with the text."""
    hidden_cosine: HiddenCosineTerm = Field(default_factory=HiddenCosineTerm)
    """Direction of the last hidden state."""
    hints: list[HintSpec] = Field(default_factory=list)
    """Distances between activations inside both models (docs/hints.md)."""
    block_inputs: Literal["student", "teacher"] = "student"
    """What each of the student's blocks reads: what the block below returns; or the teacher's hidden state there, by
    the pairs of the first hint, so that each block is trained by itself, on the teacher's input and output."""
    tokens: TokenWeightSpec = Field(default_factory=TokenWeightSpec)
    """Which tokens count."""
    student_divergence: DivergenceTerm | None = None
    """Divergence at text that the student wrote, where it is another than at the rest. `divergence` and cross_entropy
    are then means over the tokens of the rest, this one over the student's own."""
    policy: PolicyTerm = Field(default_factory=PolicyTerm)
    """Policy gradient on the student's text."""
    preference: PreferenceTerm = Field(default_factory=PreferenceTerm)
    """Preference of the teacher's text to the student's."""
    consistency: ConsistencyTerm = Field(default_factory=ConsistencyTerm)
    """Agreement between two rationales of one question."""
    contrastive: ContrastiveSpec | None = None
    """DistiLLM-2's weights; `divergence` and `student_divergence` must be skew divergences."""
    cross_tokenizer: CrossTokenizerTerm | None = None
    """In place of `divergence`, where teacher and student have different tokenizers."""

    @model_validator(mode="after")
    def _check(self) -> ObjectiveSpec:
        if self.tokens.by == "divergence" and self.divergence.weight == 0:
            raise ValueError("tokens.by: divergence compares with a teacher: give divergence a weight above 0")
        terms = (self.divergence, self.cross_entropy, self.hidden_cosine, self.policy, self.preference)
        weights = [term.weight for term in terms] + [hint.weight for hint in self.hints]
        weights += [term.weight for term in (self.student_divergence, self.cross_tokenizer) if term is not None]
        if not any(weight > 0 for weight in weights):
            raise ValueError(
                "all terms have weight 0; give divergence, cross_entropy, hidden_cosine or another a weight above 0"
            )
        self._check_contrastive()
        self._check_hints()
        if self.cross_tokenizer is not None and (self.divergence.weight > 0 or self.hidden_cosine.weight > 0):
            raise ValueError(
                "cross_tokenizer stands in place of divergence and hidden_cosine, which compare token with token: set "
                "their weights to 0"
            )
        return self

    def _check_hints(self) -> None:
        if self.cross_tokenizer is not None and self.hints:
            raise ValueError("hints compare position with position, which another tokenizer does not have: remove them")
        if self.block_inputs == "teacher" and not self.hints:
            raise ValueError("block_inputs: teacher needs a hint whose pairs of layers say which states blocks read")

    def _check_contrastive(self) -> None:
        if self.contrastive is None:
            return
        kinds = (self.divergence.kind, self.student_divergence.kind if self.student_divergence else None)
        if kinds[0] != "skew_forward_kl" or kinds[1] not in ("skew_reverse_kl", "skew_reverse_kl_detached"):
            raise ValueError(
                f"contrastive weighs skew_forward_kl on the teacher's text and a skew reverse KL on the student's, not "
                f"{kinds[0]} and {kinds[1]}"
            )

    @property
    def on_policy(self) -> bool:
        """Whether a term is defined on text of the student alone."""
        return self.student_divergence is not None or self.policy.weight > 0 or self.preference.weight > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return (
            self.divergence.weight > 0
            or self.hidden_cosine.weight > 0
            or (self.student_divergence is not None and self.student_divergence.weight > 0)
            or (self.policy.weight > 0 and self.policy.kind in ("sampled_token", "minillm"))
            or (self.preference.weight > 0 and self.preference.kind == "dpkd")
            or self.cross_tokenizer is not None
            or any(hint.weight > 0 or hint.weight_end for hint in self.hints)
        )
