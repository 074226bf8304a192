"""Numbers as people and models write them, read exactly. Torch is not imported here.

`$1,234.50`, `3 1/2 hours`, `\\frac{7}{2}`, `50%`, `1.5e3`, `−2 × 10^5`, `3 million` are exact fractions with a unit.
What can be read in two ways (`1,5`, `12,34`) is not read at all.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from lmdistill.generation.units import CURRENCIES, clean_unit, known_unit

MOST_DIGITS = 400
"""Longer numbers, and exponents beyond this, are not read: an exponent of a billion would fill the memory."""

_INTEGER = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"
_DECIMAL = rf"(?:(?:{_INTEGER})(?:\.[0-9]+)?|\.[0-9]+)"
_POWER = r"(?:[eE](?P<e>[+-]?[0-9]+)|\s*(?:\*|x|\\times)\s*10\s*\^\s*\{?(?P<ten>[+-]?[0-9]+)\}?)"
_FRACTION = (
    r"(?:(?P<whole>[0-9]+)(?:\s+|\s+and\s+|(?=\\)))?"
    r"(?:\\[dt]?frac\s*\{\s*(?P<n1>[+-]?[0-9]+)\s*\}\s*\{\s*(?P<d1>[0-9]+)\s*\}"
    r"|(?P<n2>[0-9]+)\s*/\s*(?P<d2>[0-9]+))"
)
_NUMBER = re.compile(
    rf"(?P<sign>(?<![0-9A-Za-z)\]}}])[+-])?(?P<before>[{CURRENCIES}]\s*)?(?P<inner>-)?"
    rf"(?:{_FRACTION}(?![0-9]|[./,][0-9])|(?P<decimal>{_DECIMAL})(?:{_POWER})?)"
    rf"(?P<large>\s+(?:hundred|thousand|million|billion|trillion)\b)?(?P<after>\s*[{CURRENCIES}%°])?"
)
_LARGE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MALFORMED = re.compile(r"[0-9][.,/][0-9]|[0-9][0-9]|[0-9]")
_SAME = {
    **{ord(sign): "-" for sign in "−‐‑‒–﹣－"},
    **{ord(space): " " for space in "\u00a0\u2007\u2009\u202f\u3000"},
    ord("×"): "x",
    ord("⁄"): "/",
    ord("％"): "%",
    ord("＄"): "$",
    **{0xFF10 + digit: str(digit) for digit in range(10)},
}
_LATEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}")


@dataclass(frozen=True)
class Quantity:
    """A number with what it counts."""

    value: Fraction
    """As written: 50 for `50%`."""
    unit: str = ""
    """Cleaned (`lmdistill.generation.units.clean_unit`); empty where there is none."""
    approximate: bool = False
    """Whether it is written with a decimal point or an exponent, and so may have been rounded."""


@dataclass(frozen=True)
class FoundNumber:
    """A number within a text."""

    start: int
    end: int
    quantity: Quantity
    """With a currency, % or ° that touches it as its unit."""


def plain_text(text: str) -> str:
    """A text with one way to write minus, space, digits and fractions, and without LaTeX's spaces and fonts."""
    if not text.isascii():
        text = "".join(_vulgar(char) for char in text).translate(_SAME)
    text = _LATEX.sub(r" \1", text)
    text = re.sub(r"\\[,;:! ]|\{,\}", lambda found: "," if found.group(0) == "{,}" else "", text)
    text = re.sub(r"\b(?:USD|US\$)\s*(?=[0-9.])", "$", text)
    return re.sub(r"\\([$%])", r"\1", text).replace("^\\circ", "°").replace("^{\\circ}", "°")


def find_numbers(text: str) -> list[FoundNumber] | None:
    """The numbers of a `plain_text`, from left to right; None where one can be read in two ways or is too long."""
    found, at = [], 0
    for match in _NUMBER.finditer(text):
        if _MALFORMED.search(text, at, match.start()):
            return None
        if re.match(r"[0-9]|[.,/][0-9]", text[match.end() :]) or re.search(r"[0-9][.,/]$", text[at : match.start()]):
            return None
        quantity = _read(match)
        if quantity is None:
            return None
        at = match.end()
        found.append(FoundNumber(match.start(), match.end(), quantity))
    return found


def parse_quantity(text: str) -> Quantity | None:
    """The number that a text is, with its unit, or None where it is none or not surely one.

    Around the number may stand `x =`, `about` and the like, `$...$`, and behind it words without further numbers.
    """
    text = _unwrap(plain_text(text))
    numbers = find_numbers(text)
    if not numbers:
        return None
    first, rest = numbers[0], text[numbers[0].end :].strip()
    if not _BEFORE.fullmatch(text[: first.start]) or _in_unit(rest) != len(numbers) - 1 or _goes_on(rest):
        return None
    touching = first.quantity.unit
    if touching and clean_unit(rest) in ("", "usd", "dollar", "us dollar", touching):
        rest = ""
    unit = clean_unit(f"{touching} {rest}")
    return Quantity(first.quantity.value, unit, first.quantity.approximate)


def format_number(value: Fraction) -> str:
    """The shortest exact way to write a number: an integer, a finite decimal, or a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    twos, rest = _divide_out(value.denominator, 2)
    fives, rest = _divide_out(rest, 5)
    places = max(twos, fives)
    if rest != 1 or places > MOST_DIGITS:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


_BEFORE = re.compile(
    r"\s*(?:[A-Za-z]\s*=\s*|(?:is|are|equals|=)\s+)?(?:(?:about|approximately|approx\.?|around|roughly|exactly|~|≈)\s*)?",
    re.IGNORECASE,
)
_POWER_OF_UNIT = re.compile(r"[A-Za-z](?:\^\{?|\*\*)?([0-9])\}?(?![0-9])")


# What behind a number makes another one of it: `12 and a half`, `5 dozen`, `2x`, `3\\pi`, `5k`.
_MORE = re.compile(
    r"(?:and\s+)?an?\s+(?:half|third|quarter|fifth|tenth)\b|half\b|dozens?\b|score\b|gross\b|hundreds?\b|thousands?\b"
    r"|squared\b|cubed\b|factorial\b|plus\b|minus\b|times\b|divided\b|over\b|or\b|to\b|and\b|[-+*/^=<>()√\\]",
    re.IGNORECASE,
)


def _goes_on(rest: str) -> bool:
    """Whether what follows a number changes it; a letter by itself is a variable or a multiple unless it is a unit."""
    letter = re.match(r"([A-Za-zπ])(?![A-Za-z'])", rest)
    if letter is not None and letter.group(1).lower() != "a":  # `18 a day`
        return known_unit(letter.group(1).lower()) is None
    hyphen = rest.startswith("-") and rest[1:2].isalpha()  # `16-ounce`
    comment = re.fullmatch(r"\([^()]*\)", rest) is not None  # `25 (twenty-five)`
    return not hyphen and not comment and _MORE.match(rest) is not None


def _in_unit(rest: str) -> int:
    """How many numbers of a unit's text are powers of it (`m^2`)."""
    return len(_POWER_OF_UNIT.findall(rest))


def _unwrap(text: str) -> str:
    """Without the marks that stand around an answer, and without a full stop at its end."""
    text = text.strip().strip("*_`\"'").strip()
    if len(text) > 1 and text.startswith("$") and text.endswith("$"):
        text = text[1:-1]
    if text.startswith("\\(") and text.endswith("\\)"):
        text = text[2:-2]
    return re.sub(r"[.!;,:]+$", "", text.strip()).strip().strip("*_`").strip()


def _read(match: re.Match[str]) -> Quantity | None:
    part = match.groupdict()
    if sum(char.isdigit() for char in match.group(0)) > MOST_DIGITS:
        return None
    if part["decimal"] is None:
        bottom = int(part["d1"] or part["d2"])
        if bottom == 0:
            return None
        value = Fraction(int(part["n1"] or part["n2"]), bottom)
        if part["whole"]:
            if not 0 <= value < 1:  # `3 5/2` may be a product
                return None
            value += int(part["whole"])
        approximate = False
    else:
        exponent = int(part["e"] or part["ten"] or 0)
        if abs(exponent) > MOST_DIGITS:
            return None
        value = Fraction(part["decimal"].replace(",", "")) * Fraction(10) ** exponent
        approximate = "." in part["decimal"] or bool(part["e"] or part["ten"])
    if part["large"]:
        value *= _LARGE[part["large"].strip()]
    negative = (part["sign"] == "-") != bool(part["inner"])
    unit = clean_unit((part["after"] or part["before"] or "").strip())
    return Quantity(-value if negative else value, unit, approximate)


def _vulgar(char: str) -> str:
    """`½` as ` 1/2`; other characters as they are."""
    kind, _, rest = unicodedata.decomposition(char).partition(" ")
    if kind != "<fraction>":
        return char
    parts = "".join(chr(int(code, 16)) for code in rest.split())
    top, _, bottom = parts.partition("⁄")
    return f" {top}/{bottom}" if bottom else char


def _divide_out(number: int, factor: int) -> tuple[int, int]:
    times = 0
    while number % factor == 0:
        number //= factor
        times += 1
    return times, number
