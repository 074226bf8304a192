"""Votes over samples, and the chance that some of k samples are right. Pure mathematics; torch is not imported here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Vote:
    """What several samples say together."""

    answer: str | None
    """The answer of the largest group, as its first sample wrote it; None for a tie and where nobody answered."""
    agreement: float
    """Share of the votes, those of samples without an answer included, that the largest group has."""
    members: tuple[int, ...]
    """Positions of the samples that gave it."""
    reason: str
    """In words."""


def vote(
    answers: Sequence[str | None], same: Callable[[str, str], bool], weights: Sequence[float] | None = None
) -> Vote:
    """The majority of samples' answers (self-consistency, arXiv 2203.11171), by weight where there are weights.

    `same` says whether two answers are one; each is compared with the first of every group. None is a sample without an
    answer: it has a vote, for nobody. Raises ValueError where the weights are not as many, not finite or negative.
    """
    # Exact sums: whether two groups are even must not depend on the order of the samples.
    shares = [Fraction(1)] * len(answers) if weights is None else [_weight(weight) for weight in weights]
    if len(shares) != len(answers):
        raise ValueError(f"{len(answers)} answers but {len(shares)} weights")
    groups: list[tuple[str, list[int]]] = []
    for place, answer in enumerate(answers):
        if answer is None:
            continue
        for first, members in groups:
            if same(answer, first):
                members.append(place)
                break
        else:
            groups.append((answer, [place]))
    total = sum(shares, Fraction(0))
    if not groups or total == 0:
        return Vote(None, 0.0, (), f"none of {len(answers)} samples has an answer that counts")
    sizes = [sum((shares[place] for place in members), Fraction(0)) for _, members in groups]
    largest = max(sizes)
    winners = [group for group, size in zip(groups, sizes, strict=True) if size == largest]
    agreement = float(largest / total)
    if len(winners) > 1:
        return Vote(None, agreement, (), f"{len(winners)} answers have {agreement:.0%} of the votes each")
    answer, members = winners[0]
    return Vote(answer, agreement, tuple(members), f"{len(members)} of {len(answers)} samples agree")


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that at least one of k samples is right, without bias, of `samples` drawn of which `right` are.

    1 - C(n-c, k) / C(n, k) (Chen et al., arXiv 2107.03374, eq. 1). Raises ValueError where k is not in 1..samples.
    """
    _check(samples, right, k)
    return 1.0 - _ratio(math.comb(samples - right, k), math.comb(samples, k))


def pass_hat_k(samples: int, right: int, k: int) -> float:
    """The chance that all of k samples are right: C(c, k) / C(n, k) (arXiv 2406.12045). Raises ValueError."""
    _check(samples, right, k)
    return _ratio(math.comb(right, k), math.comb(samples, k))


def majority_at_k(groups: Sequence[int], right: int | None, k: int, silent: int = 0, ties_count: bool = True) -> float:
    """The chance that the majority of k samples is right, over all choices of k of those drawn, without bias.

    `groups` are the sizes of the groups of equal answers, `right` the place of the group that is right (None where
    none is), `silent` the samples without an answer. A tie is won by each of its groups alike; by none of them where
    ties do not count, as in `vote`. Raises ValueError.
    """
    total = sum(groups) + silent
    _check(total, 0 if right is None else groups[right], k)
    if right is None:
        return 0.0
    others = [size for place, size in enumerate(groups) if place != right]
    ways = Fraction(0)
    for ours in range(1, min(groups[right], k) + 1):
        for ties, count in _ways_to_win(others, silent, k - ours, ours).items():
            if ties == 0 or ties_count:
                ways += Fraction(math.comb(groups[right], ours) * count, ties + 1)
    return float(ways / math.comb(total, k))


def _ways_to_win(others: Sequence[int], silent: int, left: int, ours: int) -> dict[int, int]:
    """Ways to choose `left` samples outside the right group with no other group above `ours`, by how many equal it."""
    ways = {(chosen, 0): math.comb(silent, chosen) for chosen in range(min(silent, left) + 1)}
    for size in others:
        grown: dict[tuple[int, int], int] = {}
        for (chosen, ties), count in ways.items():
            for more in range(min(size, ours, left - chosen) + 1):
                key = (chosen + more, ties + (more == ours))
                grown[key] = grown.get(key, 0) + count * math.comb(size, more)
        ways = grown
    return {ties: count for (chosen, ties), count in ways.items() if chosen == left}


def _check(samples: int, right: int, k: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}, but must be between 1 and the {samples} samples drawn; draw more or lower k")
    if not 0 <= right <= samples:
        raise ValueError(f"{right} right ones among {samples} samples cannot be")


def _ratio(top: int, bottom: int) -> float:
    return float(Fraction(top, bottom))


def _weight(weight: float) -> Fraction:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"a weight of {weight} cannot be; weights are finite and not negative")
    return Fraction(weight)
