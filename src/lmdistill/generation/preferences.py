"""Preference data: several answers to a prompt, a composite reward, pairs of a better and a worse one.

A pair is an example of task `preference`: its response is the better answer, `fields["rejected"]` the worse one, beside
both rewards, their margin, and where the worse one came from. Torch is not imported here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from lmdistill.generation.types import Drop, Example, make_id
from lmdistill.recipe.generation_preferences import CompositeReward, PreferenceSpec

_VERDICTS = {"correct": 1.0, "incorrect": 0.0}
_ROUNDING = 1e-9
"""Rewards that differ by less are a tie: sums of weights are not exact."""


@dataclass(frozen=True)
class Scored:
    """An answer with its reward."""

    example: Example
    reward: float
    parts: dict[str, float]
    """What each part of the reward added."""


def score(example: Example, spec: CompositeReward) -> Scored | str:
    """The answer with its reward, or in words why it has none: a field is missing or is no finite number."""
    parts: dict[str, float] = {}
    if spec.verdict:
        parts["verdict"] = spec.verdict * _VERDICTS.get(example.verdict or "", spec.unverified)
    if spec.length:
        words = len(example.response.split())
        parts["length"] = -spec.length * max(0, words - spec.length_free) / 100
    for name, weight in {"judge": spec.judge, "votes": spec.votes, **spec.fields}.items():
        if weight:
            value = example.fields.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return f"the reward needs a number in the field {name!r}, this answer has {str(value)[:40]!r}"
            parts[name] = weight * value
    return Scored(example, math.fsum(parts.values()), parts)


def mine_pairs(examples: Iterable[Example], spec: PreferenceSpec, seed: int = 0) -> Iterator[Example | Drop]:
    """Pairs of each prompt, prompts in the order in which they appear first.

    Candidates belong together by seed and prompt; their order does not matter. Answers that have no reward, and prompts
    that give no pair, come out as drops by `preference`. All candidates are held in memory.
    """
    groups: dict[tuple[str, str], list[Scored]] = {}
    for example in examples:
        group = groups.setdefault((example.seed, example.prompt), [])
        scored = score(example, spec.reward)
        if isinstance(scored, str):
            yield Drop(example, by="preference", reason=scored)
        else:
            group.append(scored)
    for (origin, prompt), group in groups.items():
        ranked = sorted(group, key=lambda each: (-each.reward, each.example.id, each.example.response))
        pairs = _pairs(ranked, spec, random.Random(repr((seed, origin, prompt))))[: spec.pairs_per_prompt]
        yield from (_example(chosen, rejected) for chosen, rejected in pairs)
        if not pairs and ranked:
            yield Drop(ranked[0].example, by="preference", reason=_no_pair(ranked, spec))


def _pairs(ranked: Sequence[Scored], spec: PreferenceSpec, draws: random.Random) -> list[tuple[Scored, Scored]]:
    """All pairs that the spec allows, those to be taken first in front."""
    good = [each for each in ranked if spec.chosen_at_least is None or each.reward >= spec.chosen_at_least]
    bad = [each for each in ranked if spec.rejected_at_most is None or each.reward <= spec.rejected_at_most]
    if spec.pairs != "all":
        good = good[:1]
    pairs = [
        (chosen, rejected)
        for chosen in good
        for rejected in bad
        if chosen.reward - rejected.reward >= spec.margin - _ROUNDING
        and chosen.example.response != rejected.example.response
    ]
    if spec.pairs == "best_random":
        draws.shuffle(pairs)
        return pairs
    # the widest apart first; equal margins in the order of the names, whatever order the candidates came in
    order = {id(each): place for place, each in enumerate(ranked)}
    pairs.sort(key=lambda pair: (-round(pair[0].reward - pair[1].reward, 9), order[id(pair[0])], -order[id(pair[1])]))
    return pairs[:1] if spec.pairs == "best_worst" else pairs


def _example(chosen: Scored, rejected: Scored) -> Example:
    better, worse = chosen.example, rejected.example
    requests = tuple(dict.fromkeys((*better.provenance.requests, *worse.provenance.requests)))
    return replace(
        better,
        id=make_id("preference", better.id, worse.id, better.response, worse.response),
        task="preference",
        fields={
            **better.fields,
            "rejected": worse.response,
            "chosen_reward": chosen.reward,
            "rejected_reward": rejected.reward,
            "margin": chosen.reward - rejected.reward,
            "chosen_parts": chosen.parts,
            "rejected_parts": rejected.parts,
            "chosen_id": better.id,
            "rejected_id": worse.id,
            "rejected_provenance": {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(worse.provenance).items()
                if value
            },
        },
        provenance=replace(better.provenance, requests=requests),
    )


def _no_pair(ranked: Sequence[Scored], spec: PreferenceSpec) -> str:
    best, worst = ranked[0].reward, ranked[-1].reward
    if len(ranked) < 2:
        return "one answer with a reward makes no pair; ask for more samples"
    if len({each.example.response for each in ranked}) < 2:
        return f"all {len(ranked)} answers are the same text; raise the temperature"
    if best - worst < spec.margin - _ROUNDING:
        return (
            f"{len(ranked)} answers with rewards from {worst:.4g} to {best:.4g}: closer than margin = {spec.margin:g}"
        )
    return (
        f"{len(ranked)} answers with rewards from {worst:.4g} to {best:.4g}: none is at least "
        f"{spec.chosen_at_least} with another of at most {spec.rejected_at_most} beside it"
    )
