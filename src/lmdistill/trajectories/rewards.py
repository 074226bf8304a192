"""Numbers for whole texts of the student, from the data set's answer to the same prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lmdistill.recipe import RewardSpec

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def reward(
    spec: RewardSpec,
    answer_ids: Sequence[int],
    reference_ids: Sequence[int],
    *,
    longest: int,
    decode: Callable[[Sequence[int]], str],
) -> float:
    """The reward of one answer, between -1 and 1; 0 where it needs a reference and there is none."""
    if spec.kind == "brevity":
        return -min(1.0, len(answer_ids) / longest)
    if not reference_ids:
        return 0.0
    if spec.kind == "rouge_l":
        return rouge_l(answer_ids, reference_ids)
    said, wanted = (final_answer(decode(ids)) for ids in (answer_ids, reference_ids))
    return float(said == wanted)


def rouge_l(answer_ids: Sequence[int], reference_ids: Sequence[int]) -> float:
    """F1 of the longest common subsequence of tokens: ROUGE-L on ids, without stemming (Lin 2004)."""
    if not answer_ids or not reference_ids:
        return 0.0
    shared = _longest_common(answer_ids, reference_ids)
    return 2 * shared / (len(answer_ids) + len(reference_ids))


def final_answer(text: str) -> str:
    """The last number of a text, without separators of thousands; its last line where it holds none."""
    numbers = _NUMBER.findall(text)
    if numbers:
        value: str = numbers[-1].replace(",", "")
        return value.rstrip("0").rstrip(".") if "." in value else value
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].casefold() if lines else ""


def _longest_common(first: Sequence[int], second: Sequence[int]) -> int:
    row = [0] * (len(second) + 1)
    for one in first:
        before = 0
        for place, other in enumerate(second, start=1):
            above = row[place]
            row[place] = before + 1 if one == other else max(above, row[place - 1])
            before = above
    return row[-1]
