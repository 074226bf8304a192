"""The final answer within a response: found where the response marks it, or not at all. Torch is not imported here.

Marks are GSM8K's `#### 72` (arXiv 2110.14168), the phrase of zero-shot chain of thought `the answer is 72`
(2205.11916), `\\boxed{72}` of MATH (2103.03874), and `--> 72 END` of Fine-tune-CoT (2212.10071).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lmdistill.generation.comparison import compare_answers, read_option, read_yes_no, shown
from lmdistill.generation.numbers import find_numbers, parse_quantity, plain_text
from lmdistill.recipe.generation_verify import AnswerFormat, VerifySpec

LONGEST_RESPONSE = 200_000
"""Characters; in longer ones no answer is looked for."""
MOST_MARKS = 100
"""Marked answers; a response with more holds none."""
# Every mark is followed no further than this: a line of nothing but marks would take the square of its length.
_LONGEST_BOX = 500
_MOST_OBJECTS = 1_000

_HASH = re.compile(r"^[ \t]*####[ \t]*(?!#)(.{0,500})", re.MULTILINE)
_ARROW = re.compile(r"-->(?=([^\n]{0,500}))")
_PHRASE = re.compile(
    r"(?<![/\w])answer(?:[ \t]*\([^()\n]{0,60}\))?(?:[ \t]+to[^.\n:]{0,80})?[ \t*_]*"
    r"(?:(?:\bis\b|\bequals\b)[ \t*_]*:?|[:=])[ \t*_]*(?:\n[ \t]*)?(?=([^\n]{0,500}))",
    re.IGNORECASE,
)
_CALCULATOR = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's notes of what was computed
_SENTENCE_END = re.compile(
    r"(?<!\bSt)(?<!\bMt)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bJr)(?<!\bvs)[.!?;](?=[*_`\"')\]]*(?:\s|$))"
)
_DENIAL = re.compile(
    r"\b(?:not|never|no longer|neither|nor|either|between|unknown|unclear|at least|at most|more than|less than|up to)\b"
    r"|n't\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


_PROGRAM = re.compile(r"\s*(?:#[^\n]*\n\s*)*(?:def \w|import \w|from \w+ import|print\(|for \w|[A-Za-z_]\w*\s*=[^=])")


@dataclass(frozen=True)
class Extracted:
    """The final answer of a response, or why there is none."""

    answer: str | None
    reason: str
    """In words."""


def extract_answer(response: str, spec: VerifySpec) -> Extracted:
    """The final answer where `spec.answer` says; for `program` the program's text.

    None where there is none, and where several differ (unless `spec.several` is `last`).
    """
    if len(response) > LONGEST_RESPONSE:
        return Extracted(None, f"the response has {len(response)} characters, more than {LONGEST_RESPONSE}")
    if spec.kind == "number" and spec.answer != "program":
        response = _CALCULATOR.sub("", response)
    found = [part for part in (text.strip() for text in _READERS[spec.answer](response, spec)) if part]
    if len(found) > MOST_MARKS:
        return Extracted(None, f"the response marks more than {MOST_MARKS} answers")
    if not found:
        return Extracted(None, f"the response holds no answer of the form {spec.answer!r}")
    if spec.several == "refuse":
        for other in found[:-1]:
            if other != found[-1] and compare_answers(other, found[-1], spec).verdict != "correct":
                return Extracted(None, f"the response marks two answers, {shown(other)} and {shown(found[-1])}")
    return Extracted(found[-1], "marked in the response")


def extract_gold(gold: str, spec: VerifySpec) -> str:
    """The right answer within what a data set gives: a whole solution (`... #### 72`) or the answer alone, as it is."""
    marks = _marked(gold, spec)
    return marks[-1] if marks and marks[-1] else gold.strip()


def find_programs(response: str) -> list[str]:
    """The fenced blocks of Python in a response; the whole response where it has no fence and begins like a program."""
    if "```" not in response:
        return [response] if _PROGRAM.match(response) else []
    return [code for language, code in _FENCE.findall(response) if language.lower() in ("", "python", "py", "python3")]


def _hash(response: str, spec: VerifySpec) -> list[str]:
    return [text for _, text in _hash_marks(response, spec)]


def _arrow(response: str, spec: VerifySpec) -> list[str]:
    return [text for _, text in _arrow_marks(response, spec)]


def _phrase(response: str, spec: VerifySpec) -> list[str]:
    return [text for _, text in _phrase_marks(response, spec)]


def _boxed(response: str, spec: VerifySpec) -> list[str]:
    return [text for _, text in _boxed_marks(response, spec)]


def _marked(response: str, spec: VerifySpec) -> list[str]:
    readers = (_hash_marks, _arrow_marks, _phrase_marks, _boxed_marks)
    return [text for _, text in sorted(mark for reader in readers for mark in reader(response, spec))]


_Marks = Iterator[tuple[int, str]]
"""Where a mark stands, and what it marks."""


def _hash_marks(response: str, spec: VerifySpec) -> _Marks:
    for match in islice(_HASH.finditer(response), MOST_MARKS + 1):
        yield match.start(), _tidy(match.group(1), spec)


def _arrow_marks(response: str, spec: VerifySpec) -> _Marks:
    for match in islice(_ARROW.finditer(response), MOST_MARKS + 1):
        yield match.start(), _tidy(re.split(r"\bEND\b", match.group(1), maxsplit=1)[0], spec)


def _phrase_marks(response: str, spec: VerifySpec) -> _Marks:
    for match in islice(_PHRASE.finditer(response), MOST_MARKS + 1):
        sentence = _SENTENCE_END.split(match.group(1), maxsplit=1)[0]
        if "boxed" not in sentence and "####" not in sentence:  # other marks, which have rules of their own
            yield match.start(), _tidy(sentence, spec)


def _boxed_marks(response: str, spec: VerifySpec) -> _Marks:
    for match in islice(re.finditer(r"\\f?boxed\s*\{", response), MOST_MARKS + 1):
        depth, at, limit = 1, match.end(), min(len(response), match.end() + _LONGEST_BOX)
        while at < limit and depth:
            depth += {"{": 1, "}": -1}.get(response[at], 0) if response[at - 1] != "\\" else 0
            at += 1
        if depth == 0:
            yield match.start(), _tidy(response[match.end() : at - 1], spec)


def _last_number(response: str, spec: VerifySpec) -> list[str]:
    text = plain_text(response)
    numbers = find_numbers(text)
    if numbers:
        return [text[numbers[-1].start : numbers[-1].end]]
    # Something before the end cannot be read for sure: what stands on the last line with a digit may still be.
    lines = [line for line in text.splitlines() if re.search(r"[0-9]", line)]
    last = find_numbers(lines[-1]) if lines else None
    return [lines[-1][last[-1].start : last[-1].end]] if last else []


def _option(response: str, spec: VerifySpec) -> list[str]:
    marked = [option for text in _marked(response, spec) if (option := read_option(text))]
    whole = read_option(response)
    return marked or ([whole] if whole else [])


def _yes_no(response: str, spec: VerifySpec) -> list[str]:
    marked = [text for text in _marked(response, spec) if read_yes_no(text)]
    return marked or ([response] if read_yes_no(response) else [])


def _json(response: str, spec: VerifySpec) -> list[str]:
    found = []
    for value in _json_objects(response):
        for name in spec.json_field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, bool):
            found.append("yes" if value else "no")
        elif isinstance(value, str):
            found.append(value)
    return found


def _program(response: str, spec: VerifySpec) -> list[str]:
    return find_programs(response)[-1:]


def _whole(response: str, spec: VerifySpec) -> list[str]:
    return [response]


_READERS: dict[AnswerFormat, Callable[[str, VerifySpec], list[str]]] = {
    "marked": _marked,
    "hash": _hash,
    "phrase": _phrase,
    "boxed": _boxed,
    "arrow_end": _arrow,
    "last_number": _last_number,
    "option": _option,
    "yes_no": _yes_no,
    "json": _json,
    "program": _program,
    "whole": _whole,
}


def _tidy(text: str, spec: VerifySpec) -> str:
    """What a mark stands before, without emphasis; for numbers, the one number of a sentence that has one."""
    text = text.strip().strip("*_`").strip()
    if spec.kind != "number" or parse_quantity(text) is not None:
        return text.rstrip(".").rstrip() if spec.kind != "math" else text
    plain = plain_text(text)
    after_equals = plain.rsplit("=", 1)[-1].strip()
    if "=" in plain and parse_quantity(after_equals) is not None:
        return after_equals
    numbers = find_numbers(plain)
    if numbers is None or len(numbers) != 1 or _DENIAL.search(plain):
        return text
    rest = plain[numbers[0].start :]
    return rest if parse_quantity(rest) is not None else text


def _json_objects(response: str) -> list[Any]:
    """Every JSON object of a text that is not inside another one; numbers stay as they are written."""
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
    found, at = [], response.find("{")
    for _ in range(_MOST_OBJECTS):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(response, at)
            found.append(value)
        except (ValueError, RecursionError):
            end = at + 1
        at = response.find("{", end)
    return found
