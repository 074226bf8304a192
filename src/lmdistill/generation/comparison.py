"""Comparing a final answer with the right one where no other process is needed. Torch is not imported here."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from lmdistill.generation.numbers import Quantity, parse_quantity
from lmdistill.generation.types import Verdict
from lmdistill.generation.units import known_unit, same_dimension
from lmdistill.recipe.generation_verify import VerifySpec

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_OPTION = re.compile(
    r"[\s(\[*_`\"']*(?:option\s+|choice\s+)?[(\[*]*([A-Za-z])(?:[)\].:*\s]*$|[)\].:*]+\s.*$|\)\S.*$)",
    re.IGNORECASE | re.DOTALL,
)
_YES = {"yes": "yes", "true": "yes", "y": "yes", "no": "no", "false": "no", "n": "no"}
_SHOWN = 60


@dataclass(frozen=True)
class Checked:
    """What verification says of one response."""

    verdict: Verdict
    answer: str | None
    """The final answer as it stands in the response, or as its program printed it; None where there is none."""
    reason: str
    """Why, in words."""


def normalise_text(text: str) -> str:
    """Lower case, without articles, punctuation and accents of width, one space between words (SQuAD, 1606.05250)."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(" " if unicodedata.category(char)[0] in "PSZC" else char for char in text)
    return " ".join(_ARTICLES.sub(" ", text).split())


def read_option(text: str) -> str | None:
    """The letter of `B`, `(b)`, `B. four`, `option B`, in capitals; None for anything else."""
    found = _OPTION.fullmatch(text.strip())
    return found.group(1).upper() if found else None


def read_yes_no(text: str) -> str | None:
    """`yes` or `no` by the first word of a text; `true` and `false` are read as these."""
    words = normalise_text(text).split()
    return _YES.get(words[0]) if words else None


def compare_answers(answer: str, gold: str, spec: VerifySpec) -> Checked:
    """Compare by `spec.kind`; formulas are compared as text here, and only ever found equal or unverifiable."""
    if spec.kind == "number":
        return compare_numbers(answer, gold, spec)
    if spec.kind == "math":
        if normalise_formula(answer) == normalise_formula(gold):
            return Checked("correct", answer, f"{shown(answer)} is written like the right answer")
        return Checked("unverifiable", answer, f"{shown(answer)} and {shown(gold)} are written differently")
    readers = {"text": normalise_text, "option": read_option, "yes_no": read_yes_no}
    read = readers[spec.kind]
    given, right = read(answer), read(gold)
    if not right:
        return Checked("unverifiable", answer, f"the right answer {shown(gold)} is no {spec.kind}")
    if not given:
        return Checked("unverifiable", answer, f"{shown(answer)} is no {spec.kind}")
    if given == right:
        return Checked("correct", answer, f"{shown(answer)} is the right answer")
    return Checked("incorrect", answer, f"{shown(answer)}, but {shown(gold)} is right")


def compare_numbers(answer: str, gold: str, spec: VerifySpec) -> Checked:
    """Compare as exact numbers.

    A unit is left aside where only one side has one. Units of one dimension are converted (`120 min`, `2 h`); others
    cannot be compared, except that a length is never a mass. A bare 50 and a bare 0.5 both fit 50 %.
    """
    given, right = parse_quantity(answer), parse_quantity(gold)
    if right is None:
        return Checked("unverifiable", answer, f"the right answer {shown(gold)} is not surely one number")
    if given is None:
        return Checked("unverifiable", answer, f"{shown(answer)} is not surely one number")
    verdict, why = _compare(given, right, spec)
    return Checked(verdict, answer, f"{shown(answer)} {why} {shown(gold)}")


def same_number(given: Fraction, right: Fraction, spec: VerifySpec, rounded: bool = False) -> bool:
    """Whether two numbers are equal; within the tolerances where one of them may have been `rounded`."""
    if given == right or not rounded:
        return given == right
    room = max(Fraction(spec.relative_tolerance) * abs(right), Fraction(spec.absolute_tolerance))
    return abs(given - right) <= room


def shown(text: str) -> str:
    """A text as a message may hold it: quoted, escaped and short."""
    return ascii(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


def normalise_formula(text: str) -> str:
    """A formula without spaces and the dollars around it."""
    return "".join(text.split()).strip("$")


def _compare(given: Quantity, right: Quantity, spec: VerifySpec) -> tuple[Verdict, str]:
    rounded = given.approximate or right.approximate
    if given.unit == right.unit or not (given.unit and right.unit):
        return _compare_bare(given, right, spec, rounded)
    ours, theirs = known_unit(given.unit), known_unit(right.unit)
    if ours is None or theirs is None:
        return "unverifiable", "has another unit than"
    if ours.dimension != theirs.dimension:
        return "incorrect", "measures something else than"
    if same_number(given.value * ours.size, right.value * theirs.size, spec, rounded or ours.size != theirs.size):
        return "correct", "is in other units"
    return "incorrect", "is another amount than"


def _compare_bare(given: Quantity, right: Quantity, spec: VerifySpec, rounded: bool) -> tuple[Verdict, str]:
    """Where at most one has a unit, or both have the same."""
    if same_number(given.value, right.value, spec, rounded):
        return "correct", "equals"
    unit = known_unit(given.unit or right.unit)
    if given.unit == right.unit or unit is None:
        return "incorrect", "is not"
    for other in same_dimension(unit):
        factor = unit.size / other.size if given.unit else other.size / unit.size
        if same_number(given.value * factor, right.value, spec, rounded):
            return "unverifiable", "would be in another unit"
    if unit.dimension == "share" and same_number(*_as_shares(given, right), spec, rounded):
        return "correct", "is as a share"
    return "incorrect", "is not"


def _as_shares(given: Quantity, right: Quantity) -> tuple[Fraction, Fraction]:
    """Both as shares of one, where one of them is in percent."""
    return (given.value / 100, right.value) if given.unit else (given.value, right.value / 100)
