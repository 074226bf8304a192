"""A document, how a row becomes one, and the report of what was read and kept.

A row of a source is a mapping of columns. It becomes a `Document` of exactly one of three formats: plain text, prompt
and response, or chat messages. Everything that a format does not allow is a `BadRow` with its reason: nothing is
repaired in silence and nothing is left out in silence.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lmdistill.errors import DataError
from lmdistill.recipe import FieldNames, nearest

Format = Literal["text", "prompt_response", "messages"]

RESERVED_BRACKETS = ("\ufdd0", "\ufdd1")
"""Unicode noncharacters that `lmdistill.data.encode` spells control tokens with; no valid text holds them."""

_EXAMPLES_SHOWN = 5
_REASON_LIMIT = 300


class BadRow(Exception):
    """A row cannot become a document; the text is the reason, shortened where it quotes the row at length."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason if len(reason) <= _REASON_LIMIT else reason[:_REASON_LIMIT] + "…")


class EmptyRow(BadRow):
    """A row is well-formed but holds nothing to read or to answer: counted, never a reason to stop."""


@dataclass(frozen=True)
class Document:
    """One row of a source; exactly one of `text`, `prompt` (with or without `response`) and `messages` is given."""

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    """None where the source has prompts alone: a teacher can answer them, nothing else can be trained on them."""
    messages: list[dict[str, str]] | None = None
    """Each with `role` and `content`: an optional system message, then user and assistant in turn."""
    origin: str = ""
    """`file:line`; a row's number for Parquet files and data sets. Counted from 1."""
    id: str = field(default="", compare=False)
    """Hash of the content (16 hex digits); the same wherever the content stands."""
    context: str | None = field(default=None, compare=False)
    """What the teacher alone reads: a demonstration, a solution, feedback."""
    teacher: str | None = field(default=None, compare=False)
    """Name of the teacher that speaks of the row."""
    task: str = field(default="", compare=False)
    """What kind of row it is, where there are several (`data.balance`)."""
    given: int = field(default=0, compare=False)
    """Characters at the beginning of the response that the student reads and does not learn."""
    learnt: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    """Characters of the response, from and to, that alone are learnt; what stands between them is read."""
    twin: str = field(default="", compare=False)
    """Name that it shares with the one other row that it makes a pair with."""
    span: tuple[int, int] | None = field(default=None, compare=False)
    """Characters of the response, from and to, that both rows of a pair are to be sure of alike."""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", _digest(self._content())[:16])

    @property
    def format(self) -> Format:
        """Which of the three formats it has."""
        if self.messages is not None:
            return "messages"
        return "text" if self.text is not None else "prompt_response"

    @property
    def plain(self) -> str:
        """All of its text, for counting and comparing; parts are separated by blank lines."""
        if self.messages is not None:
            return "\n\n".join(message["content"] for message in self.messages)
        parts = (self.text, self.prompt, self.response)
        return "\n\n".join(part for part in parts if part is not None)

    @cached_property
    def normal_id(self) -> str:
        """Hash of the content in Unicode form NFC with runs of white space as one space: equal for equal texts."""
        return _digest([_normal(part) for part in self._content()])

    def _content(self) -> list[str]:
        """The content as a flat list whose first item is the format."""
        if self.messages is not None:
            return ["messages", *(part for message in self.messages for part in (message["role"], message["content"]))]
        if self.text is not None:
            return ["text", self.text]
        return ["prompt_response", self.prompt or "", *([] if self.response is None else [self.response])]


def _digest(parts: Sequence[str]) -> str:
    """SHA-256 of a list of strings; the canonical JSON keeps ["ab", "c"] apart from ["a", "bc"]."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


class BadExample(BaseModel):
    """One bad row: where it is and what is wrong with it."""

    model_config = ConfigDict(extra="forbid")

    origin: str
    reason: str


class DataReport(BaseModel):
    """What became of a source's rows; the numbers add up at each step."""

    # validated on assignment: a report that is read back from JSON field by field must hold records, not mappings
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_assignment=True)

    sources: list[str] = Field(default_factory=list)
    """Paths as the recipe names them."""
    rows_read: int = 0
    """Rows found, readable or not: bad + empty + duplicates + other_part + beyond_limit + documents."""
    bad: int = 0
    """Rows that could not be read."""
    bad_reasons: dict[str, int] = Field(default_factory=dict)
    """Bad rows by reason."""
    bad_examples: list[BadExample] = Field(default_factory=list)
    """The first few bad rows."""
    empty: int = 0
    """Rows without text, or with an empty answer."""
    duplicates: int = 0
    """Rows whose content was seen before in their source."""
    other_part: int = 0
    """Rows that fall on the other side of the train/heldout split."""
    beyond_limit: int = 0
    """Rows left out because of `limit`."""
    documents: int = 0
    """Rows kept after reading."""
    truncated: int = 0
    """Documents that were too long and lost tokens at one side."""
    answers_cut: int = 0
    """Of these, documents that lost part of an answer or its end marker (policies left and right only)."""
    split: int = 0
    """Plain texts that were too long and were split."""
    pieces: int = 0
    """Rows that the split ones became."""
    dropped: int = 0
    """Documents left out because they are too long for their policy, or their answer alone is."""
    fully_masked: int = 0
    """Rows left out because no token of theirs is trained."""
    longest: int = 0
    """Tokens of the longest document before truncation."""
    tokens: int = 0
    """Tokens in the sequences."""
    trained_tokens: int = 0
    """Tokens with a label."""
    sequences: int = 0
    """Sequences after packing."""
    max_length: int = 0
    """Longest sequence allowed, in tokens."""
    fill: float = 0.0
    """Share of sequences × max_length that tokens fill."""
    fingerprint: str = ""
    """SHA-256 over the finished data set."""

    def add_bad(self, origin: str, reason: str) -> None:
        """Count a bad row. Reasons are grouped with their numbers and quotations left out."""
        self.bad += 1
        kind = re.sub(r"'[^']*'|\"[^\"]*\"|(?<![-\w])\d+", "…", reason.split(";")[0])[:120]
        if kind not in self.bad_reasons and len(self.bad_reasons) >= 50:
            kind = "other reasons"
        self.bad_reasons[kind] = self.bad_reasons.get(kind, 0) + 1
        if len(self.bad_examples) < _EXAMPLES_SHOWN:
            self.bad_examples.append(BadExample(origin=origin, reason=reason))

    def explain(self) -> str:
        """The counts that are not zero, in one line."""
        counts = {
            "bad": self.bad,
            "empty": self.empty,
            "duplicates": self.duplicates,
            "on the other side of the split": self.other_part,
            "beyond the limit": self.beyond_limit,
            "too long": self.dropped,
            "without a trained token": self.fully_masked,
        }
        lost = [f"{count} {name}" for name, count in counts.items() if count]
        text = f"{self.rows_read} rows read" + (": " + ", ".join(lost) if lost else "")
        if self.bad_examples:
            first = self.bad_examples[0]
            text += f"; first bad row {first.origin}: {first.reason}"
        return text


def merge_reports(reports: Iterable[DataReport]) -> DataReport:
    """The report of several sources taken together. Token counts and later fields come from `build_dataset`."""
    total = DataReport()
    for report in reports:
        total.sources += report.sources
        for name in ("rows_read", "bad", "empty", "duplicates", "other_part", "beyond_limit", "documents"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        for reason, count in report.bad_reasons.items():
            total.bad_reasons[reason] = total.bad_reasons.get(reason, 0) + count
        total.bad_examples = (total.bad_examples + report.bad_examples)[:_EXAMPLES_SHOWN]
    return total


def detect_format(row: Mapping[str, Any], names: FieldNames, wanted: str, place: str) -> Format:
    """The format of a file from the columns of its first row.

    A format whose column the recipe names wins; otherwise messages, then prompt_response, then text. Raises DataError
    with the columns found where none fits.
    """
    columns: dict[Format, str] = {"messages": names.messages, "prompt_response": names.prompt, "text": names.text}
    allowed = [name for name in columns if wanted in ("auto", name)]
    fitting = [name for name in allowed if columns[name] in row]
    if fitting:
        return next((name for name in fitting if name in _named_formats(names)), fitting[0])
    needed = " or ".join(repr(columns[name]) for name in allowed)
    shown = [repr(str(column)[:40]) for column in list(row)[:20]]
    found = ", ".join(shown) + (f" and {len(row) - 20} more" if len(row) > 20 else "") if shown else "none"
    raise DataError(
        f"{place}: no column {needed}; the columns here are: {found}. Name the right one in the source's `fields`, "
        "for example fields: {text: passage}"
    )


def _named_formats(names: FieldNames) -> set[str]:
    """Formats of which the recipe names a column otherwise than by default."""
    formats = {"text": "text", "prompt": "prompt_response", "response": "prompt_response", "messages": "messages"}
    return {
        formats[name] for name, value in names if name in formats and value != FieldNames.model_fields[name].default
    }


def to_document(row: Mapping[str, Any], kind: Format, names: FieldNames, origin: str, has_response: bool) -> Document:
    """Make a document of a row. Raises BadRow with the reason, or EmptyRow.

    `has_response`: whether the first row of the file has the response column; if not, rows are prompts alone.
    """
    document = _content_of(row, kind, names, origin, has_response)
    if names.context is None and names.teacher is None:
        return document
    return replace(
        document,
        context=None if names.context is None else _text(row, names.context),
        teacher=None if names.teacher is None else _text(row, names.teacher),
    )


def _content_of(row: Mapping[str, Any], kind: Format, names: FieldNames, origin: str, has_response: bool) -> Document:
    if kind == "text":
        text = _text(row, names.text)
        if not text.strip():
            raise EmptyRow("empty text")
        return Document(text=text, origin=origin)
    if kind == "prompt_response":
        prompt = _text(row, names.prompt)
        response = _text(row, names.response) if has_response else None
        if not prompt.strip() or (response is not None and not response.strip()):
            raise EmptyRow("empty prompt" if not prompt.strip() else "empty response")
        return Document(prompt=prompt, response=response, origin=origin)
    return Document(messages=_messages(_column(row, names.messages), names.messages), origin=origin)


def _column(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise BadRow(f"no column {name!r}{nearest(name, [str(key) for key in row])}")
    if row[name] is None:
        raise BadRow(f"{name!r} is null")
    return row[name]


def _text(row: Mapping[str, Any], name: str) -> str:
    return check_text(_column(row, name), repr(name))


def check_text(value: Any, name: str) -> str:
    """`value` if it is well-formed text. Raises BadRow."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} holds a lone surrogate (character {error.start + 1}); it is not valid Unicode") from None
    for bracket in RESERVED_BRACKETS:
        if bracket in value:
            raise BadRow(f"{name} holds the noncharacter U+{ord(bracket):04X}, which no text may contain")
    return value


def _kind(value: Any) -> str:
    names = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


_MEANINGFUL_KEYS = (
    "tool_calls",
    "tool_call_id",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "images",
    "image",
    "audio",
    "videos",
)


def _messages(value: Any, name: str) -> list[dict[str, str]]:
    """Check a conversation: [system,] user, assistant, user, ... Other keys than these two are left out unless they
    carry content that would be lost."""
    if not isinstance(value, list | tuple):
        raise BadRow(f"{name!r} is {_kind(value)}, not a list of messages")
    if not value:
        raise EmptyRow("no messages")
    messages = [_message(item, number) for number, item in enumerate(value, start=1)]
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(turns) // 2 + 1)
    for number, (role, wanted) in enumerate(zip(turns, expected, strict=False), start=1 + len(roles) - len(turns)):
        if role != wanted:
            raise BadRow(f"message {number} has role {role!r} where {wanted!r} must come; system may only be first")
    if not turns:
        raise BadRow("only a system message; a conversation needs a user message")
    for message in messages:
        if message["role"] != "system" and not message["content"].strip():
            raise EmptyRow(f"empty {message['role']} message")
    return messages


def _message(item: Any, number: int) -> dict[str, str]:
    place = f"message {number}"
    if not isinstance(item, Mapping):
        raise BadRow(f"{place} is {_kind(item)}, not an object with role and content")
    if "role" not in item or "content" not in item:
        hint = "; rename from/value to role/content" if "from" in item and "value" in item else ""
        lacking = " and ".join(key for key in ("role", "content") if key not in item and not item.get("tool_calls"))
        if lacking:
            raise BadRow(f"{place} has no {lacking}{hint}")
    for key in _MEANINGFUL_KEYS:
        if item.get(key):
            raise BadRow(f"{place} has {key!r}, which would be lost; only role and content are supported")
    role, content = item["role"], item["content"]
    if role not in ("system", "user", "assistant"):
        extra = "; tool messages are not supported" if role in ("tool", "function", "ipython") else ""
        raise BadRow(f"{place} has role {role!r}; known roles are system, user and assistant{extra}")
    if content is None:
        raise BadRow(f"{place}: content is null")
    if isinstance(content, list | tuple):
        raise BadRow(f"{place}: content is a list of parts (images or the like); only text is supported")
    return {"role": role, "content": check_text(content, f"{place}: content")}
