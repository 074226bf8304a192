"""YAML: numbers as written, no dates, no key twice, and a round trip for everything."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmdistill.yamltext import read_yaml, write_inline, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E3", 5000.0),
        ("-.5e+1", -5.0),
        ("1.5", 1.5),
        ("1_000", 1000),
        ("0x1F", 31),
        (".inf", math.inf),
        ("7", 7),
        ("true", True),
        ("no", False),
        ("~", None),
        ("", None),
        # Text, where YAML 1.1 sees an octal number, a sexagesimal one, a date, an operator.
        ("017", "017"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("1e", "1e"),
        ("e4", "e4"),
        ("0b12", "0b12"),
        ("1e-4x", "1e-4x"),
    ],
)
def test_a_plain_word_is_what_it_looks_like(text: str, value: Any) -> None:
    assert read_yaml(text) == value
    assert type(read_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "the key 'c' stands in it twice"),
        ("- a: 1\n  b: 2\n  a: 3", "line 3"),
        ("[1, 2", "while parsing a flow sequence"),
        ("!!int x", "does not fit the tag"),
        ('!!int ""', "does not fit the tag"),
        ("!!bool x", "does not fit the tag"),
        ("!!timestamp 2001-99-99", "does not fit the tag"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("!!python/object/new:os.system [x]", "could not determine a constructor"),
        ("? [a]\n: 1", "unhashable key"),
        ("{" * 5000, "nested too deeply"),
        ("a: \x01", "special characters are not allowed"),
        ("*unknown", "undefined alias"),
    ],
)
def test_what_is_not_plain_yaml_is_a_value_error_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_yaml(text)


def test_merge_keys_still_work_and_may_be_overridden() -> None:
    assert read_yaml("a: &x {b: 1, c: 1}\nd:\n  <<: *x\n  b: 2") == {"a": {"b": 1, "c": 1}, "d": {"b": 2, "c": 1}}


_CHARACTERS = st.characters(codec="utf-8")
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(_CHARACTERS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(_CHARACTERS), inner, max_size=4),
    max_leaves=12,
)


@given(_VALUES)
@example("a\x85b\nc")
@example("\ufeff\u2028\u2029")
@example("1e-4")
@example("2024-01-01")
@example({"a\nb": "c\n d\n"})
@example({"1e5": "0x1f", "=": "<<", "017": "1:30"})
@example([1e-5, 1e22, 5e-324, -0.0])
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert read_yaml(write_yaml(value)) == value
    assert read_yaml(write_inline({"key": value})) == {"key": value}
    assert "\n" not in write_inline({"key": value})


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_is_plain_values_or_a_value_error(text: str) -> None:
    told: str | None = "plain values"
    try:
        value = read_yaml(text)
        assert value is None or isinstance(value, bool | int | float | str | bytes | list | dict | set | date)
    except ValueError as error:
        told = str(error)
    assert told
