"""Personal data: check digits, what belongs to nobody, masks in every text of a row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.rows import only, row
from lmdistill.generation.checks.pii import iban_is_valid, luhn, masked, pii_in
from lmdistill.generation.filters import apply_filters
from lmdistill.generation.types import Drop, Example

ALL = ["email", "iban", "credit_card", "us_ssn", "ipv4", "phone"]


@given(st.text("0123456789", min_size=2, max_size=18))
def test_exactly_one_last_digit_satisfies_luhn(digits: str) -> None:
    assert sum(luhn(digits + last) for last in "0123456789") == 1


@given(st.text("0123456789", min_size=3, max_size=18), st.data())
def test_luhn_notices_every_single_wrong_digit(digits: str, data: st.DataObject) -> None:
    number = next(digits + last for last in "0123456789" if luhn(digits + last))
    place = data.draw(st.integers(0, len(number) - 1))
    wrong = str((int(number[place]) + data.draw(st.integers(1, 9))) % 10)
    assert not luhn(number[:place] + wrong + number[place + 1 :])


@given(st.text("0123456789", min_size=18, max_size=18))
def test_one_pair_of_check_digits_fits_an_iban(account: str) -> None:
    checks = 98 - int(f"{account}{int('D', 36)}{int('E', 36)}00") % 97
    assert iban_is_valid(f"DE{checks:02d}{account}")
    other = checks - 1 if checks > 2 else checks + 1
    assert not iban_is_valid(f"DE{other:02d}{account}")
    assert not iban_is_valid(f"DE{checks:02d}{account}0")


FOUND = [
    ("Write to ann.lee@mail-server.co.uk today", "email", "ann.lee@mail-server.co.uk"),
    ("IBAN GB82 WEST 1234 5698 7654 32 AND MORE", "iban", "GB82 WEST 1234 5698 7654 32"),
    ("DE89370400440532013000.", "iban", "DE89370400440532013000"),
    ("card 4111 1111 1111 1111 12/29", "credit_card", "4111 1111 1111 1111"),
    ("378282246310005", "credit_card", "378282246310005"),
    ("SSN 219-09-9999", "us_ssn", "219-09-9999"),
    ("ping 8.8.8.8.", "ipv4", "8.8.8.8"),
    ("call +49 30 901820 now", "phone", "+49 30 901820"),
    ("call (212) 736-5000", "phone", "(212) 736-5000"),
]
HARMLESS = [
    "mail bob@example.com or x@y.test",
    "GB82 WEST 1234 5698 7654 33",
    "4111 1111 1111 1112",
    "1234567812345670",  # right by Luhn, of no issuer
    "000-12-3456 and 666-12-3456",
    "127.0.0.1, 192.168.1.1, 999.1.1.1 and 1.2.3.4.5",
    "(212) 555-0123",
    "3.141592653589793 and 12,345,678 + 1 2 3 = 2024-05-17",
    "7 + 15 + 22 = 44, 100 + 200 = 300",
]


@pytest.mark.parametrize(("text", "kind", "part"), FOUND)
def test_what_is_found(text: str, kind: str, part: str) -> None:
    ((found, (start, end)),) = pii_in(text, ALL)
    assert (found, text[start:end]) == (kind, part)
    assert masked(text, ALL)[0] == text.replace(part, f"[{kind}]")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_nobodys(text: str) -> None:
    assert pii_in(text, ALL) == []


def test_masks_reach_every_text_and_are_counted() -> None:
    mail = "ann@mail.org"
    example = row(f"Ask {mail} or {mail}", f"Who is {mail}?", answer=mail, fields={"rejected": mail, "list": [mail, 3]})
    (kept,) = apply_filters([example], only(pii={}), {})
    assert isinstance(kept, Example)
    assert (kept.prompt, kept.response, kept.answer) == ("Who is [email]?", "Ask [email] or [email]", "[email]")
    assert kept.fields == {"rejected": "[email]", "list": ["[email]", 3], "masked": {"email": 6}}
    clean = row("nothing here")
    (same,) = apply_filters([clean], only(pii={}), {})
    assert isinstance(same, Example)
    assert same.fields == {}


def test_dropping_says_how_many_and_never_which() -> None:
    example = row("ann@mail.org, bob@mail.org, 8.8.8.8", "Who?")
    (drop,) = apply_filters([example], only(pii={"action": "drop"}), {})
    assert isinstance(drop, Drop)
    assert drop.reason == "personal data: 2 email, 1 ipv4"
    (kept,) = apply_filters([example], only(pii={"action": "drop", "kinds": ["iban"]}), {})
    assert isinstance(kept, Example)


@given(st.text("+-. ()@0123456789AZaz\u0663", max_size=80))
def test_any_text_is_masked_to_one_without_personal_data(text: str) -> None:
    once, _ = masked(text, ALL)
    assert all(kind in ALL for kind, _ in pii_in(once, ALL))
    assert len(pii_in(once, ALL)) <= len(pii_in(text, ALL))
