"""Units of measurement that verification knows: what they measure, and how large they are. Torch is not used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Unit:
    """A unit of a dimension."""

    dimension: str
    size: Fraction
    """How many of the dimension's first unit one of it is."""


_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "1": "m meter metre",
        "1/1000": "mm millimeter millimetre",
        "1/100": "cm centimeter centimetre",
        "1000": "km kilometer kilometre",
        "0.0254": "inch inches",  # not `in`, which is a word
        "0.3048": "ft foot feet",
        "0.9144": "yd yard",
        "1609.344": "mi mile",
    },
    "mass": {
        "1": "g gram gramme",
        "1/1000": "mg milligram",
        "1000": "kg kilogram kilo",
        "453.59237": "lb lbs pound-mass",  # `pound` alone may be money
        "28.349523125": "oz ounce",
        "1000000": "t tonne",
    },
    "time": {
        "1": "s sec second",
        "60": "min mins minute",
        "3600": "h hr hrs hour",
        "86400": "day",
        "604800": "week",
    },
    "volume": {
        "1": "l liter litre",
        "1/1000": "ml milliliter millilitre",
    },
    "dollars": {"1": "$ usd dollar us-dollar", "1/100": "¢ cent"},
    "euros": {"1": "€ eur euro"},
    "pounds": {"1": "£ gbp", "1/100": "pence p penny"},
    "yen": {"1": "¥ jpy yen"},
    "rupees": {"1": "₹ inr rupee"},
    "share": {"1/100": "% percent pct percentage per-cent"},
    "angle": {"1": "° degree deg"},
}

_UNITS = {
    name: Unit(dimension, Fraction(size))
    for dimension, sizes in _TABLE.items()
    for size, names in sizes.items()
    for name in names.split()
}

CURRENCIES = "$€£¥₹¢"
"""Signs of money that stand before a number or behind it."""


def clean_unit(text: str) -> str:
    """A unit as it is compared: lower case, one space between words, the plural's s taken off."""
    words = re.sub(r"[.,;:!?]+(?=\s|$)", "", text.casefold().strip(" -")).split()
    return " ".join(_singular(word) for word in words)


def known_unit(text: str) -> Unit | None:
    """The unit of a cleaned text, where it is one of the table's."""
    return _UNITS.get(text.replace(" ", "-"))


def _singular(word: str) -> str:
    if word in _UNITS or len(word) < 3 or word.endswith("ss"):
        return word
    return word.removesuffix("s")


def same_dimension(unit: Unit) -> list[Unit]:
    """Every unit that measures the same."""
    return [other for other in _UNITS.values() if other.dimension == unit.dimension]
