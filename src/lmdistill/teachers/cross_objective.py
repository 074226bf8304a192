"""How models that cut text differently are compared: four published objectives and their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from lmdistill.objectives.chunk_likelihood import CHUNK_KINDS, ChunkKind
from lmdistill.objectives.divergences import Divergence, find_divergence
from lmdistill.objectives.gold import Merge

CrossTokenizerKind = Literal["uld", "gold", "alm", "dskd"]
KINDS: tuple[str, ...] = get_args(CrossTokenizerKind)
# Temperatures of the publications' code.
TEMPERATURES = {"uld": 1.0, "gold": 1.0, "alm": 100.0, "dskd": 2.0}
_OWN_PARAMETERS = {
    "uld": {"temperature"},
    "gold": {"temperature", "hybrid", "merge", "teacher_weight", "matched_weight", "unmatched_weight"},
    "alm": {"temperature", "difference"},
    "dskd": {"temperature", "divergence"},
}


@dataclass(frozen=True)
class CrossTokenizerObjective:
    """How the two models are compared; defaults are those of the published code.

    Raises ValueError for a parameter that the kind does not have or a value that it cannot take.
    """

    kind: CrossTokenizerKind = "alm"
    temperature: float | None = None
    """Softens both models; None: 1 for ULD and GOLD, 100 for ALM, 2 for DSKD."""
    difference: ChunkKind = "binary_ce"
    """ALM: how likelihoods of equal bytes are compared."""
    hybrid: bool = True
    """GOLD: compare tokens that both vocabularies hold one to one; false compares everything by size."""
    merge: Merge = "first"
    """GOLD: whose distribution a group of several tokens has, its first token's or its last one's."""
    teacher_weight: float = 0.5
    """GOLD: of the Jensen-Shannon divergence of the matched part; 0 is forward KL, 1 reverse KL (TRL's `beta`)."""
    matched_weight: float | None = None
    """GOLD: factor of the matched part; None: the share of the teacher's vocabulary that is matched."""
    unmatched_weight: float | None = None
    """GOLD: factor of the part compared by size; None: the rest."""
    divergence: str = "forward_kl"
    """DSKD: in the student's space."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind = {self.kind!r} is not known; use one of {', '.join(KINDS)}")
        for item in fields(self):
            if item.name in ("kind", *_OWN_PARAMETERS[self.kind]):
                continue
            if getattr(self, item.name) != item.default:
                own = ", ".join(sorted(_OWN_PARAMETERS[self.kind]))
                raise ValueError(f"{item.name} is no parameter of {self.kind}; it has {own}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature = {self.temperature} must be above 0")
        if self.difference not in CHUNK_KINDS:
            raise ValueError(f"difference = {self.difference!r} is not known; use one of {', '.join(CHUNK_KINDS)}")
        if self.merge not in get_args(Merge):
            raise ValueError(f"merge = {self.merge!r} is not known; use 'first' or 'last'")
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight = {self.teacher_weight} must lie between 0 and 1")
        if (self.matched_weight is None) != (self.unmatched_weight is None):
            raise ValueError("give both matched_weight and unmatched_weight, or neither")
        find_divergence(self.divergence)

    @property
    def softness(self) -> float:
        """The temperature that holds."""
        return TEMPERATURES[self.kind] if self.temperature is None else self.temperature

    @property
    def matched_divergence(self) -> Divergence:
        """GOLD's divergence of the matched part."""
        if self.teacher_weight in (0, 1):
            return find_divergence("forward_kl" if self.teacher_weight == 0 else "reverse_kl")
        return find_divergence("jsd", teacher_weight=self.teacher_weight)

    @property
    def needs_hidden(self) -> bool:
        """Whether it needs the teacher's hidden states, so that no store of log-probabilities will do."""
        return self.kind != "alm"


def find_objective(kind: str, parameters: Mapping[str, Any] | None = None) -> CrossTokenizerObjective:
    """The objective of that name. Raises ValueError for an unknown name, parameter or value."""
    known = {item.name for item in fields(CrossTokenizerObjective)} - {"kind"}
    unknown = sorted(set(parameters or {}) - known)
    if unknown and kind in KINDS:
        raise ValueError(f"{unknown[0]} is no parameter of {kind}; it has {', '.join(sorted(_OWN_PARAMETERS[kind]))}")
    return CrossTokenizerObjective(kind=kind, **(parameters or {}))  # type: ignore[arg-type]
