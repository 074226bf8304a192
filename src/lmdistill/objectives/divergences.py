"""Named divergences between two distributions over the same classes, each defined once.

A divergence is a sum over classes, D = sum_c f(log s_c, log t_c), s the student's and t the teacher's probability.
A definition gives, for whole rows of log-probabilities, the summands f and their derivatives v_c = dD / d(log s_c).
The gradient with respect to the student's logits follows for all of them: as log s_c = z_c - logsumexp(z),

    dD / dz_c = v_c - s_c * sum_i v_i .

The classes are tokens of the vocabulary, or k tokens and a tail bucket; the definitions do not know which. The names
say the direction, the parameters say whom they weight. Depends on torch alone.

Shape legend: N tokens, C classes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

# exp(FLOOR) is exactly 0 in float32 and float64, and 0 * FLOOR is 0 where 0 * -inf would be NaN.
FLOOR = -1.0e4


@dataclass(frozen=True)
class Divergence:
    """Base of the definitions: abstract, never made. Subclasses are final."""

    name: ClassVar[str] = ""
    derivative_sum: ClassVar[float | None] = None
    """sum_c v_c where it is the same for all pairs of distributions; saves the engine one pass."""
    token_parameter: ClassVar[str | None] = None
    """Name of the parameter that `setting` stands for, where there is one: it may differ from token to token."""

    @property
    def head_mass(self) -> float | None:
        """Mass of the teacher's likeliest classes that are treated apart, for divergences that need the order."""
        return None

    @property
    def setting(self) -> float:
        """The one parameter that may change from step to step or token to token, for divergences that have one."""
        return 0.0

    def context(
        self, log_s_NC: Tensor, log_t_NC: Tensor, head_N1: Tensor | None = None, setting: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Row-wise quantities that are held fixed in the derivative; each of shape (N, 1) or ().

        `head_N1` is the `head_border` of log_t, where the caller has it already; `setting` stands for the property of
        that name, as a tensor, () or (N, 1), so that its change recompiles nothing.
        """
        return ()

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """The summands f and the derivatives v of each class; both (N, C)."""
        raise NotImplementedError


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(teacher‖student) = sum t (log t - log s). Hinton et al. 1503.02531; covers all the teacher's modes."""

    name: ClassVar[str] = "forward_kl"
    derivative_sum: ClassVar[float | None] = -1.0

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """f = t (log t - log s), v = -t."""
        t_NC = log_t_NC.exp()
        return t_NC * (log_t_NC - log_s_NC), -t_NC


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(student‖teacher) = sum s (log s - log t). MiniLLM 2306.08543; seeks the teacher's main modes."""

    name: ClassVar[str] = "reverse_kl"

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """f = s (log s - log t), v = f + s."""
        s_NC = log_s_NC.exp()
        f_NC = s_NC * (log_s_NC - log_t_NC)
        return f_NC, f_NC + s_NC


@dataclass(frozen=True)
class JSD(Divergence):
    """Generalised Jensen-Shannon divergence w KL(t‖m) + (1 - w) KL(s‖m), m = w t + (1 - w) s, w = `teacher_weight`.

    GKD 2306.13649, eq. 1, whose beta is `teacher_weight` (DistiLLM's `lam` weights the student: 1 - w). It tends to 0
    like w KL(t‖s) as w goes to 0 and like (1 - w) KL(s‖t) as w goes to 1, so the ends are refused: name the KL instead.
    """

    name: ClassVar[str] = "jsd"
    teacher_weight: float = 0.5

    def __post_init__(self) -> None:
        _between("jsd", "teacher_weight", self.teacher_weight, 0.0, 1.0, "use forward_kl or reverse_kl for the limits")

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """f = w t (log t - log m) + (1 - w) s (log s - log m), v = (1 - w) s (log s - log m)."""
        w = self.teacher_weight
        s_NC, t_NC = log_s_NC.exp(), log_t_NC.exp()
        log_m_NC = _log_mix(w, t_NC, s_NC)
        v_NC = (1 - w) * s_NC * (log_s_NC - log_m_NC)
        return w * t_NC * (log_t_NC - log_m_NC) + v_NC, v_NC


@dataclass(frozen=True)
class _Skewed(Divergence):
    """Base of the divergences whose second argument holds some of the first: abstract."""

    token_parameter: ClassVar[str | None] = "alpha"
    alpha: float = 0.1

    def __post_init__(self) -> None:
        plain = "forward_kl" if "forward" in self.name else "reverse_kl"
        _between(self.name, "alpha", self.alpha, 0.0, 1.0, f"use {plain} for alpha = 0")

    @property
    def setting(self) -> float:
        """alpha."""
        return self.alpha

    def context(
        self, log_s_NC: Tensor, log_t_NC: Tensor, head_N1: Tensor | None = None, setting: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """alpha, () or (N, 1)."""
        return (log_s_NC.new_tensor(self.alpha) if setting is None else setting,)


@dataclass(frozen=True)
class SkewForwardKL(_Skewed):
    """KL(t ‖ alpha t + (1 - alpha) s). DistiLLM 2402.03898, eq. 4; bounded by -log alpha."""

    name: ClassVar[str] = "skew_forward_kl"

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """f = t (log t - log m), v = -t (1 - alpha) s / m, m = alpha t + (1 - alpha) s."""
        (alpha,) = context
        s_NC, t_NC = log_s_NC.exp(), log_t_NC.exp()
        m_NC = (alpha * t_NC + (1 - alpha) * s_NC).clamp_min(_tiny(t_NC))
        return t_NC * (log_t_NC - m_NC.log()), -t_NC * ((1 - alpha) * s_NC / m_NC)


@dataclass(frozen=True)
class SkewReverseKL(_Skewed):
    """KL(s ‖ alpha s + (1 - alpha) t). DistiLLM 2402.03898, eq. 5; bounded by -log alpha.

    The student inside the mixture takes part in the gradient; see `SkewReverseKLDetached`.
    """

    name: ClassVar[str] = "skew_reverse_kl"

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """f = s (log s - log m), v = f + s - alpha s² / m, m = alpha s + (1 - alpha) t."""
        (alpha,) = context
        s_NC, t_NC = log_s_NC.exp(), log_t_NC.exp()
        m_NC = (alpha * s_NC + (1 - alpha) * t_NC).clamp_min(_tiny(t_NC))
        f_NC = s_NC * (log_s_NC - m_NC.log())
        return f_NC, f_NC + s_NC * (1 - alpha * s_NC / m_NC)


@dataclass(frozen=True)
class SkewReverseKLDetached(_Skewed):
    """KL(s ‖ m), m = alpha s + (1 - alpha) t held fixed in the gradient. DistiLLM-2 2503.07067, as released.

    The value is that of `SkewReverseKL`; the gradient is that of a reverse KL to m, which is larger: nothing of it is
    given back for m's following the student.
    """

    name: ClassVar[str] = "skew_reverse_kl_detached"

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """f = s (log s - log m), v = f + s."""
        (alpha,) = context
        s_NC = log_s_NC.exp()
        m_NC = (alpha * s_NC + (1 - alpha) * log_t_NC.exp()).clamp_min(_tiny(s_NC))
        f_NC = s_NC * (log_s_NC - m_NC.log())
        return f_NC, f_NC + s_NC


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """1/2 sum |s - t|, between 0 and 1. f-distill 2307.15190, section 2.2; the gradient is a subgradient at s = t."""

    name: ClassVar[str] = "total_variation"

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """f = |s - t| / 2, v = s sign(s - t) / 2."""
        s_NC = log_s_NC.exp()
        difference_NC = s_NC - log_t_NC.exp()
        return 0.5 * difference_NC.abs(), 0.5 * s_NC * difference_NC.sign()


@dataclass(frozen=True)
class AlphaBeta(Divergence):
    """-1/(alpha beta) sum [t^a s^b - a/(a+b) t^(a+b) - b/(a+b) s^(a+b)]. ABKD 2505.04560, eq. 5.

    alpha = 1, beta -> 0 is the forward KL; alpha -> 0, beta = 1 the reverse KL. Where alpha, beta or their sum is 0 the
    limit is taken.
    """

    name: ClassVar[str] = "alpha_beta"
    alpha: float = 0.2
    beta: float = 0.7

    def __post_init__(self) -> None:
        for key, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not math.isfinite(value):
                raise ValueError(f"alpha_beta: {key} = {value} is not a finite number")

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """v = -(1/alpha) (t^alpha s^beta - s^(alpha+beta)) and its limits."""
        a, b = self.alpha, self.beta
        ratio_NC = log_t_NC - log_s_NC
        if a == 0 and b == 0:  # 1/2 sum (log t - log s)²
            return 0.5 * ratio_NC.square(), -ratio_NC
        if a == 0:  # (1/b²) sum [s^b log(s^b / t^b) - s^b + t^b]
            s_b_NC, t_b_NC = (b * log_s_NC).exp(), (b * log_t_NC).exp()
            return (-b * s_b_NC * ratio_NC - s_b_NC + t_b_NC) / b**2, -s_b_NC * ratio_NC
        if b == 0:  # (1/a²) sum [t^a log(t^a / s^a) - t^a + s^a]
            s_a_NC, t_a_NC = (a * log_s_NC).exp(), (a * log_t_NC).exp()
            return (a * t_a_NC * ratio_NC - t_a_NC + s_a_NC) / a**2, (s_a_NC - t_a_NC) / a
        if a + b == 0:  # (1/a²) sum [log(s^a / t^a) + (t/s)^a - 1]
            power_NC = (a * ratio_NC).exp()
            return (-a * ratio_NC + power_NC - 1) / a**2, (1 - power_NC) / a
        cross_NC = (a * log_t_NC + b * log_s_NC).exp()
        s_ab_NC, t_ab_NC = ((a + b) * log_s_NC).exp(), ((a + b) * log_t_NC).exp()
        f_NC = -(cross_NC - (a * t_ab_NC + b * s_ab_NC) / (a + b)) / (a * b)
        return f_NC, -(cross_NC - s_ab_NC) / a


@dataclass(frozen=True)
class AdaptiveKL(Divergence):
    """w_h KL(t‖s) + w_t KL(s‖t), weighted by where the gap |t - s| lies. AKL 2404.02657, section 4.2.

    The head is the smallest set of the teacher's likeliest classes before their mass passes `mu` (the likeliest one
    always; equally likely ones stay together, so that the order of the classes does not matter). w_h is the share of
    the gap in the head; the weights are held fixed in the gradient.
    """

    name: ClassVar[str] = "adaptive_kl"
    mu: float = 0.5

    def __post_init__(self) -> None:
        _between("adaptive_kl", "mu", self.mu, 0.0, 1.0, "use forward_kl for mu = 1, reverse_kl for mu = 0")

    @property
    def head_mass(self) -> float | None:
        """mu."""
        return self.mu

    def context(
        self, log_s_NC: Tensor, log_t_NC: Tensor, head_N1: Tensor | None = None, setting: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The weight of the forward KL, (N, 1)."""
        if head_N1 is None:
            head_N1 = head_border(log_t_NC.sort(-1, descending=True).values, self.mu)
        gap_NC = (log_t_NC.exp() - log_s_NC.exp()).abs()
        head_gap_N1 = torch.where(log_t_NC > head_N1, gap_NC, 0.0).sum(-1, keepdim=True)
        total_gap_N1 = gap_NC.sum(-1, keepdim=True)
        # Equal distributions have no gap; any weight gives 0 there.
        return (head_gap_N1 / total_gap_N1.clamp_min(_tiny(total_gap_N1)),)

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of both directions."""
        (head_weight_N1,) = context
        ratio_NC = log_t_NC - log_s_NC
        s_NC, t_NC = log_s_NC.exp(), log_t_NC.exp()
        reverse_NC = -s_NC * ratio_NC
        tail_weight_N1 = 1 - head_weight_N1
        return (
            head_weight_N1 * t_NC * ratio_NC + tail_weight_N1 * reverse_NC,
            tail_weight_N1 * (reverse_NC + s_NC) - head_weight_N1 * t_NC,
        )


@dataclass(frozen=True)
class TAID(Divergence):
    """KL(p_i ‖ s) to an intermediate teacher p_i = softmax((1 - i) z_s + i z_t), its z_s detached. TAID 2501.16937.

    `interpolation` (i) rises from `start` to `end` in training (`lmdistill.training.schedules`): it is the one mutable
    part of a definition, a tensor of no dimensions.
    """

    name: ClassVar[str] = "taid"
    token_parameter: ClassVar[str | None] = "interpolation"
    derivative_sum: ClassVar[float | None] = -1.0
    start: float = 0.4
    end: float = 1.0
    alpha: float = 5e-4
    momentum: float = 0.99
    interpolation: Tensor = field(default_factory=lambda: torch.zeros(()), compare=False)

    def __post_init__(self) -> None:
        _between("taid", "start", self.start, 0.0, 1.0, "", closed=True)
        _between("taid", "end", self.end, self.start, 1.0, "end lies between start and 1", closed=True)
        _between("taid", "momentum", self.momentum, 0.0, 1.0, "", closed=True)
        self.interpolation.fill_(self.start)

    @property
    def setting(self) -> float:
        """The interpolation."""
        return float(self.interpolation)

    def context(
        self, log_s_NC: Tensor, log_t_NC: Tensor, head_N1: Tensor | None = None, setting: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The log-normaliser of the intermediate teacher, (N, 1), and the interpolation, () or (N, 1)."""
        i = self.interpolation.to(log_s_NC) if setting is None else setting
        return (torch.logsumexp((1 - i) * log_s_NC + i * log_t_NC, -1, keepdim=True), i)

    def summands(self, log_s_NC: Tensor, log_t_NC: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """f = p_i (log p_i - log s), v = -p_i."""
        normaliser_N1, i = context
        log_p_NC = (1 - i) * log_s_NC + i * log_t_NC - normaliser_N1
        p_NC = log_p_NC.exp()
        return p_NC * (log_p_NC - log_s_NC), -p_NC


DIVERGENCES: Mapping[str, type[Divergence]] = {
    definition.name: definition
    for definition in (
        ForwardKL,
        ReverseKL,
        JSD,
        SkewForwardKL,
        SkewReverseKL,
        SkewReverseKLDetached,
        TotalVariation,
        AlphaBeta,
        AdaptiveKL,
        TAID,
    )
}
"""Name -> row-wise definition."""


def find_divergence(kind: str | Divergence, **parameters: float) -> Divergence:
    """The divergence of this name with these parameters. Raises ValueError naming what is known."""
    if isinstance(kind, Divergence):
        return kind
    definition = DIVERGENCES.get(kind)
    if definition is None:
        raise ValueError(f"no divergence is named {kind!r}; known: {', '.join(DIVERGENCES)}")
    known = [name for name in inspect.signature(definition).parameters if name != "interpolation"]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        takes = f"takes {', '.join(known)}" if known else "takes no parameters"
        raise ValueError(f"{kind} has no parameter {unknown[0]!r}; it {takes}")
    build: Callable[..., Divergence] = definition
    return build(**parameters)


def head_border(top_Nk: Tensor, mass: float) -> Tensor:
    """A log-probability between the last class of each row's head and the next likely one, (N, 1).

    `top_Nk` holds each row's largest log-probabilities, falling. The head is the likeliest classes whose summed
    probability stays within `mass`, the likeliest always; classes of equal probability stay together. Half-way between
    two neighbours, so that rounding cannot move a class across. -inf where no next class is among the k given: the
    head may reach beyond them.
    """
    in_head_Nk = top_Nk.exp().cumsum(-1) <= mass
    in_head_Nk[..., 0] = True
    last_N1 = top_Nk.gather(-1, in_head_Nk.sum(-1, keepdim=True) - 1)
    next_N1 = top_Nk.masked_fill(top_Nk >= last_N1, -torch.inf).amax(-1, keepdim=True)
    return (last_N1 + next_N1) / 2


def _log_mix(weight: float, first_NC: Tensor, second_NC: Tensor) -> Tensor:
    return (weight * first_NC + (1 - weight) * second_NC).clamp_min(_tiny(first_NC)).log()


def _tiny(like: Tensor) -> float:
    return float(torch.finfo(like.dtype).tiny)


def _between(kind: str, name: str, value: float, low: float, high: float, advice: str, closed: bool = False) -> None:
    inside = low <= value <= high if closed else low < value < high
    if not inside:
        border = "from {} to {}" if closed else "strictly between {} and {}"
        raise ValueError(
            f"{kind}: {name} = {value} must lie {border.format(low, high)}" + (f"; {advice}" if advice else "")
        )
