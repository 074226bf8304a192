"""Checks of one row that need no other: verdict, emptiness, length, refusals."""

from __future__ import annotations

import re
import unicodedata

from lmdistill.generation.checks.base import Check, Finding
from lmdistill.generation.types import Example
from lmdistill.recipe.generation_filters import LengthFilter, RefusalFilter

_DECLINED = (
    r"\bas an? (?:\w+ )?(?:ai(?:,| (?:language |chat)?(?:model|assistant|system|bot))|artificial intelligence,"
    r"|language model)",
    r"\bi(?:'m| am) (?:just |only )?an? (?:\w+ )?(?:ai(?: language)? (?:model|assistant|system)|ai[,.]|language model)",
    r"^\W*(?:(?:i'm|i am) (?:very |so |really |truly )?sorry|sorry|(?:i|my) apolog\w+)\b.{0,20}\bbut i.{0,20}?"
    r"(?:can't|cannot|can not|won't|unable|not able|not allowed|don't have|do not have)\b",
    r"\bi(?:'m| am)? (?:can't|cannot|can not|won't|will not|unable to|not able to|must decline to|have to decline to) "
    r"(?:\w+ )?(?:help|assist|fulfill?|comply|provide|answer|do that|create|generate|write|support|engage|discuss)\b",
    r"\bi (?:don't|do not|won't|will not) feel comfortable\b",
    r"\b(?:it would be|it is|it's) (?:not appropriate|inappropriate|unethical) (?:for me )?to\b",
    r"\bagainst my (?:guidelines|programming|policy|policies)\b",
)
_CURLY = str.maketrans("\u2018\u2019\u02bc", "'''")


class VerdictCheck(Check):
    """Keeps what verification did not call wrong, or only what it called right."""

    name = "verdict"

    def __init__(self, keep: str) -> None:
        self._only_correct = keep == "correct"

    def look(self, example: Example) -> Finding | None:
        """A finding for incorrect rows, and for unverified ones where only correct ones stay."""
        if example.verdict == "incorrect":
            return Finding(f"verification says incorrect (answer {_short(example.answer)})")
        if self._only_correct and example.verdict != "correct":
            return Finding(f"only correct rows stay; this one is {example.verdict or 'not verified'}")
        return None


class EmptyCheck(Check):
    """Rows with nothing to read or nothing to learn; characters that cannot be seen count as nothing."""

    name = "empty"

    def look(self, example: Example) -> Finding | None:
        """A finding where prompt or response is empty."""
        sides = {"prompt": example.prompt, "response": example.response}
        if example.task == "text":  # plain text answers nothing
            del sides["prompt"]
        for name, text in sides.items():
            if not any(unicodedata.category(c)[0] not in "CZ" for c in text):
                return Finding(f"the {name} is empty ({len(text)} characters, none of them visible)")
        return None


class LengthCheck(Check):
    """Words and characters of both sides within bounds."""

    name = "length"

    def __init__(self, spec: LengthFilter) -> None:
        self._bounds = [
            (side, unit, getattr(spec, f"min_{side}_{unit}"), getattr(spec, f"max_{side}_{unit}"))
            for side in ("prompt", "response")
            for unit in ("words", "characters")
        ]

    def look(self, example: Example) -> Finding | None:
        """A finding for the first bound that is passed."""
        for side, unit, low, high in self._bounds:
            text = example.prompt if side == "prompt" else example.response
            count = len(text.split()) if unit == "words" else len(text)
            if low is not None and count < low:
                return Finding(f"the {side} has {count} {unit}, fewer than {low}")
            if high is not None and count > high:
                return Finding(f"the {side} has {count} {unit}, more than {high}")
        return None


class RefusalCheck(Check):
    """The teacher declines. Patterns are English; other languages need `patterns` of their own."""

    name = "refusal"

    def __init__(self, spec: RefusalFilter) -> None:
        self._characters = spec.characters
        self._patterns = [re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in (*_DECLINED, *spec.patterns)]

    def look(self, example: Example) -> Finding | None:
        """A finding with the words that decline."""
        beginning = example.response[: self._characters].translate(_CURLY)
        for pattern in self._patterns:
            found = pattern.search(beginning)
            if found:
                return Finding(f"the response declines at character {found.start() + 1}: {_short(found.group(0))}")
        return None


def _short(text: object) -> str:
    return repr(str(text)[:80])
