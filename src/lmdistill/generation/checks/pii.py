"""Personal data that has a pattern of its own, with its check digits where it has some."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from lmdistill.generation.checks.base import Check, Finding
from lmdistill.generation.types import Example
from lmdistill.recipe.generation_filters import PiiFilter

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![\w-])")
_NOBODY = re.compile(r"(?:^|\.)(?:example\.(?:com|org|net)|example|test|invalid|localhost)$", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.+/])(?:\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4})(?![\w/]|[.-]\d)"
)
_FICTIONAL_PHONE = re.compile(r"55501\d\d$")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d\d(?: ?[A-Z0-9]){11,30}")
_CARD = re.compile(r"(?<![\w.,-])\d(?:[ -]?\d){12,18}(?![\w]|[.,-]\d)")
_CARD_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
"""Visa, Mastercard, American Express, Diners, Discover, JCB, UnionPay: their first digits and lengths."""
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])")
_IBAN_COUNTRIES = (
    "NO15 BE16 DK18 FI18 FO18 GL18 NL18 MK19 SI19 AT20 BA20 EE20 KZ20 LT20 LU20 XK20 CH21 HR21 LI21 LV21 BG22 "
    "BH22 CR22 DE22 GB22 GE22 IE22 ME22 RS22 AE23 GI23 IL23 AD24 CZ24 ES24 MD24 PK24 RO24 SA24 SE24 SK24 TN24 "
    "VG24 PT25 IS26 TR26 FR27 GR27 IT27 MC27 MR27 SM27 AL28 AZ28 CY28 DO28 GT28 HU28 LB28 PL28 BR29 PS29 QA29 "
    "UA29 JO30 KW30 MU30 MT31 VA22"
)
_IBAN_LENGTHS = {country[:2]: int(country[2:]) for country in _IBAN_COUNTRIES.split()}
_Span = tuple[int, int]


class PiiCheck(Check):
    """Masks personal data in all texts of a row, or drops the row."""

    name = "pii"

    def __init__(self, spec: PiiFilter) -> None:
        # what has check digits comes first: the digits of a card could be read as a phone number
        self._kinds = [kind for kind in _FINDERS if kind in spec.kinds]
        self._masks = spec.action == "mask"

    def look(self, example: Example) -> Finding | None:
        """A finding with the kinds and their number, never with the data themselves; none where they are masked."""
        if self._masks:
            return None
        found = Counter(kind for text in _strings(_texts(example)) for kind, _ in pii_in(text, self._kinds))
        if not found:
            return None
        return Finding("personal data: " + ", ".join(f"{count} {kind}" for kind, count in sorted(found.items())))

    def mend(self, example: Example) -> Example:
        """The row with `[kind]` in place of what was found, counted in its field `masked`."""
        found: Counter[str] = Counter()

        def clean(value: Any) -> Any:
            if isinstance(value, str):
                text, kinds = masked(value, self._kinds)
                found.update(kinds)
                return text
            if isinstance(value, dict):
                return {key: clean(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [clean(item) for item in value] if isinstance(value, list) else tuple(map(clean, value))
            return value

        texts = clean(_texts(example)) if self._masks else {}
        if not found:
            return example
        return replace(example, **{**texts, "fields": {**texts["fields"], "masked": dict(sorted(found.items()))}})


def pii_in(text: str, kinds: Sequence[str]) -> list[tuple[str, _Span]]:
    """(kind, span) of each piece of personal data; where two overlap, the first kind counts."""
    taken: list[tuple[str, _Span]] = []
    for kind in kinds:
        for start, end in _FINDERS[kind](text):
            if all(end <= other[0] or other[1] <= start for _, other in taken):
                taken.append((kind, (start, end)))
    return sorted(taken, key=lambda found: found[1])


def masked(text: str, kinds: Sequence[str]) -> tuple[str, Counter[str]]:
    """The text with `[kind]` in place of each piece of personal data, and how many there were."""
    found = pii_in(text, kinds)
    for kind, (start, end) in reversed(found):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text, Counter(kind for kind, _ in found)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    values = [int(digit) for digit in reversed(digits)]
    doubled = [value * 2 - 9 * (value > 4) for value in values[1::2]]
    return (sum(values[::2]) + sum(doubled)) % 10 == 0


def iban_is_valid(iban: str) -> bool:
    """Whether the country, its length and the check digits are right (ISO 13616: remainder 1 modulo 97)."""
    if _IBAN_LENGTHS.get(iban[:2]) != len(iban):
        return False
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def _emails(text: str) -> Iterator[_Span]:
    return (found.span() for found in _EMAIL.finditer(text) if not _NOBODY.search(found.group(1)))


def _phones(text: str) -> Iterator[_Span]:
    for found in _PHONE.finditer(text):
        digits = re.sub(r"\D", "", found.group(0))
        if 8 <= len(digits) <= 15 and not _FICTIONAL_PHONE.search(digits):
            yield found.span()


def _ibans(text: str) -> Iterator[_Span]:
    for found in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(found.group(0)[:2], 0)
        places = [place for place, c in enumerate(found.group(0)) if c != " "][:length]
        if length and len(places) == length:
            end = found.start() + places[-1] + 1
            ends_there = end == len(text) or not text[end].isalnum()  # a longer word is no IBAN
            if ends_there and iban_is_valid("".join(found.group(0)[place] for place in places)):
                yield found.start(), end


def _cards(text: str) -> Iterator[_Span]:
    for found in _CARD.finditer(text):
        places = [place for place, c in enumerate(found.group(0)) if c.isdigit()]
        digits = "".join(found.group(0)[place] for place in places)
        for length in range(len(digits), 12, -1):  # a date of expiry may follow
            whole = length == len(digits) or places[length] > places[length - 1] + 1
            if whole and _CARD_ISSUERS.fullmatch(digits[:length]) and luhn(digits[:length]):
                yield found.start(), found.start() + places[length - 1] + 1
                break


def _addresses(text: str) -> Iterator[_Span]:
    for found in _IPV4.finditer(text):
        try:
            public = ipaddress.IPv4Address(found.group(0)).is_global
        except ValueError:
            continue
        if public:
            yield found.span()


def _social_security(text: str) -> Iterator[_Span]:
    return (found.span() for found in _SSN.finditer(text))


_FINDERS: dict[str, Callable[[str], Iterator[_Span]]] = {
    "email": _emails,
    "iban": _ibans,
    "credit_card": _cards,
    "us_ssn": _social_security,
    "ipv4": _addresses,
    "phone": _phones,
}


def _texts(example: Example) -> dict[str, Any]:
    return {
        "prompt": example.prompt,
        "response": example.response,
        "answer": example.answer,
        "fields": dict(example.fields),
    }


def _strings(value: Any) -> Iterator[str]:
    """All texts inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
