"""Numbers are read exactly or not at all."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdistill.generation.comparison import compare_numbers
from lmdistill.generation.numbers import find_numbers, format_number, parse_quantity, plain_text
from lmdistill.generation.units import known_unit
from lmdistill.recipe.generation_verify import VerifySpec

SPEC = VerifySpec()
EXACT = VerifySpec(relative_tolerance=0.0)
finite_decimals = st.builds(
    lambda top, places: Fraction(top, 10**places), st.integers(-(10**12), 10**12), st.integers(0, 9)
)


def verdict(answer: str, gold: str, spec: VerifySpec = SPEC) -> str:
    return compare_numbers(answer, gold, spec).verdict


@given(st.fractions())
def test_what_is_written_is_read_again(value: Fraction) -> None:
    read = parse_quantity(format_number(value))
    assert read is not None
    assert read.value == value
    assert read.unit == ""


@given(
    st.integers(-(10**15), 10**15),
    st.sampled_from(["{:,}", "${:,}", "{:,} apples", "**{:,}**", "x = {:,}.", "{:,}.00"]),
)
def test_integers_in_many_dresses(value: int, form: str) -> None:
    read = parse_quantity(form.format(value))
    assert read is not None
    assert read.value == value


@given(finite_decimals)
def test_fractions_decimals_percents_and_powers_of_ten_are_one(value: Fraction) -> None:
    decimal = format_number(value)
    for other in (
        f"{value.numerator}/{value.denominator}",
        f"\\frac{{{value.numerator}}}{{{value.denominator}}}",
        f"{format_number(value * 100)}%",
        f"{format_number(value * 1000)}e-3",
        f"{format_number(value / 100)} × 10^2",
    ):
        assert verdict(other, decimal, EXACT) == "correct", other
        assert verdict(decimal, other, EXACT) == "correct", other


@given(st.integers(0, 999), st.integers(1, 99), st.integers(2, 100))
def test_mixed_fractions(whole: int, top: int, bottom: int) -> None:
    read = parse_quantity(f"{whole} {top}/{bottom}")
    if top < bottom:
        assert read is not None
        assert read.value == whole + Fraction(top, bottom)
    else:
        assert read is None  # may be a product


@given(finite_decimals, finite_decimals)
def test_different_numbers_are_never_correct_and_equal_ones_never_incorrect(one: Fraction, other: Fraction) -> None:
    expected = "correct" if one == other else "incorrect"
    assert verdict(format_number(one), format_number(other), EXACT) == expected


@given(st.text(max_size=300) | st.text(alphabet="0123456789.,/-+$%eE^ \\frac{}x×½−\n", max_size=80))
def test_no_text_is_too_strange(text: str) -> None:
    parse_quantity(text)
    found = find_numbers(plain_text(text))
    for number in found or []:
        assert number.start < number.end
    assert verdict(text, "5") in ("correct", "incorrect", "unverifiable")
    assert verdict("5", text) in ("correct", "incorrect", "unverifiable")


@pytest.mark.parametrize(
    "text",
    [
        "1,5", "12,34", "1.2.3", "1/2/3", "1/0", "5 or 6", "5-3", "5 - 3", "1 - 1/2", "- 5", "10 cm by 5 cm", "12:30",
        "not 5", "at least 5", "v2", "", "five", "1e999999999", "9" * 500, "1,2345",
        "12 and a half", "5 dozen", "2x", "2\\pi", "5i", "5k", "5 factorial", "3√2", "2^10",
        "between 3 and 4", "3 5/2",
    ],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_not_read(text: str) -> None:
    assert parse_quantity(text) is None
    assert verdict(text, "5") == "unverifiable"
    assert verdict("5", text) == "unverifiable"


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("$1,234.50", Fraction(2469, 2), "$"),
        ("-$5", Fraction(-5), "$"),
        ("2½ cups", Fraction(5, 2), "cup"),
        ("2\\frac{1}{3}", Fraction(7, 3), ""),
        ("3 million", Fraction(3_000_000), ""),
        ("−2 × 10^5", Fraction(-200_000), ""),
        ("about 20\\%", Fraction(20), "%"),
        ("5 m^2", Fraction(5), "m^2"),
        ("90^\\circ", Fraction(90), "°"),
        ("１２ km", Fraction(12), "km"),
        (".5", Fraction(1, 2), ""),
        ("USD 5", Fraction(5), "$"),
        ("25 (twenty-five)", Fraction(25), "(twenty-five)"),
        ("16-ounce", Fraction(16), "ounce"),
        ("$18 a day", Fraction(18), "$ a day"),
        ("4 m", Fraction(4), "m"),
        ("3 hours", Fraction(3), "hour"),
    ],
)
def test_readings(text: str, value: Fraction, unit: str) -> None:
    read = parse_quantity(text)
    assert read is not None
    assert (read.value, read.unit) == (value, unit)


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("18 dollars per day", "18", "correct"),  # the right answer has no unit
        ("18", "18 cm", "correct"),
        ("1.8 m", "180 cm", "correct"),
        ("120 minutes", "2 hours", "correct"),
        ("2 minutes", "2 hours", "incorrect"),
        ("5 kg", "5 m", "incorrect"),
        ("5 apples", "5 apple", "correct"),
        ("5 apples", "5 pears", "unverifiable"),
        ("120 minutes", "2", "unverifiable"),  # perhaps hours were meant
        ("150 cents", "1.50", "unverifiable"),
        ("119 minutes", "2", "incorrect"),
        ("50%", "0.5", "correct"),
        ("50", "50%", "correct"),
        ("0.5", "50%", "correct"),
        ("51%", "0.5", "incorrect"),
        ("0.33", "1/3", "incorrect"),
        ("0.3333333", "1/3", "correct"),  # within 1e-6 of it
        ("10000001", "10000000", "incorrect"),  # tolerance is for decimals alone
        ("-5", "5", "incorrect"),
    ],
)
def test_units_and_tolerances(answer: str, gold: str, expected: str) -> None:
    assert verdict(answer, gold) == expected


def test_tolerances_are_typed() -> None:
    assert verdict("0.33", "1/3", VerifySpec(absolute_tolerance=0.01)) == "correct"
    assert verdict("3.14", "3.14159", VerifySpec(relative_tolerance=0.001)) == "correct"
    assert verdict("3", "3.14159", VerifySpec(absolute_tolerance=0.01)) == "incorrect"


def test_an_exponent_costs_no_memory() -> None:
    assert parse_quantity("1e400") is not None
    assert parse_quantity("1e401") is None


def test_units_are_one_table() -> None:
    inch, foot = known_unit("inch"), known_unit("foot")
    assert inch is not None
    assert foot is not None
    assert inch.size * 12 == foot.size
