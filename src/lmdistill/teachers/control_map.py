"""Which control tokens of one tokenizer play the part of which of another's.

Control tokens are paired by what they are for: the end of an answer with the end of an answer, the end of a text with
the end of a text, its beginning with its beginning, and those of one spelling with each other. What a chat template
writes before a content (ChatML's `<|im_start|>user` and a line break, Gemma's `<start_of_turn>user`) becomes what the
other's template writes there, so that a teacher reads its own template. A control token without a counterpart is read
by the teacher as ordinary text.

All strings here are *spelled*: control tokens stand as `Encoder.control` spells them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lmdistill.data.encode import CLOSE, OPEN
from lmdistill.errors import ModelError
from lmdistill.teachers.token_bytes import TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Conversations from which headers are learnt; a template may refuse one (Gemma has no system message).
_CONVERSATIONS = (("user", "assistant", "user", "assistant"), ("system", "user", "assistant", "user", "assistant"))


@dataclass(frozen=True)
class ControlMap:
    """What of the student's control tokens the teacher reads as its own."""

    pairs: Mapping[int, int] = field(default_factory=dict)
    """The student's control token to the teacher's: one group of the alignment."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The student's spelled header to the teacher's. Never compared: they are not the same text."""

    def named(self, student: TokenBytes, teacher: TokenBytes) -> dict[str, str]:
        """The pairs by name."""
        return {student.names[ours]: teacher.names[theirs] for ours, theirs in self.pairs.items()}


def match_controls(student: TokenBytes, teacher: TokenBytes, extra: Mapping[str, str] | None = None) -> ControlMap:
    """Pair control tokens by their parts; `extra` names further pairs, or other ones. Raises ModelError."""
    theirs = {name: token_id for token_id, name in teacher.names.items()}
    pairs = {
        token_id: theirs[name]
        for token_id, name in student.names.items()
        if name in theirs and token_id != student.unknown_id and theirs[name] != teacher.unknown_id
    }
    if len(student.lead_ids) == len(teacher.lead_ids) == 1:
        pairs[student.lead_ids[0]] = teacher.lead_ids[0]
    ends = (student.tokenizer.eos_token_id, teacher.tokenizer.eos_token_id)
    if isinstance(ends[0], int) and isinstance(ends[1], int):
        pairs[ends[0]] = ends[1]
    turns = (_Template(student), _Template(teacher))
    if turns[0].turn_end is not None and turns[1].turn_end is not None:
        pairs[turns[0].turn_end] = turns[1].turn_end
    ours = {name: token_id for token_id, name in student.names.items()}
    for name, other in (extra or {}).items():
        if name not in ours or other not in theirs:
            side, missing = ("student", name) if name not in ours else ("teacher", other)
            raise ModelError(f"{missing!r} is no control token of the {side}'s tokenizer; name one that is")
        pairs[ours[name]] = theirs[other]
    headers = {
        header: turns[1].headers[place]
        for place, header in turns[0].headers.items()
        if OPEN in header and place in turns[1].headers
    }
    return ControlMap(pairs, headers)


class _Template:
    """What a tokenizer's chat template writes around contents; nothing where there is none."""

    def __init__(self, side: TokenBytes) -> None:
        self.turn_end: int | None = None
        self.headers: dict[tuple[str | None, str], str] = {}
        """By the role of the message before (None: there is none) and of the message."""
        self._side = side
        if not getattr(side.tokenizer, "chat_template", None):
            return
        for roles in _CONVERSATIONS:
            rendered = _render(side.tokenizer, roles)
            if rendered is not None:
                self._learn(roles, side.encoder.reveal(rendered))

    def _learn(self, roles: Sequence[str], text: str) -> None:
        places = [text.find(_content(number)) for number in range(len(roles))]
        if -1 in places or places != sorted(places):
            return
        ends = [place + len(_content(number)) for number, place in enumerate(places)]
        before = text[: places[0]]
        for lead_id in self._side.lead_ids:
            before = before.removeprefix(_spelling(lead_id))
        self.headers.setdefault((None, roles[0]), before)
        for (number, role), (_, following) in pairwise(enumerate(roles)):
            gap = text[ends[number] : places[number + 1]]
            end_id = _first_control(gap)
            if role == "assistant" and end_id is not None:
                self.turn_end = end_id
            if end_id is not None:  # the end of the turn is paired by itself, because it is trained
                gap = gap[gap.index(CLOSE) + len(CLOSE) :]
            self.headers.setdefault((role, following), gap)


def _render(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> str | None:
    """A conversation of marked contents; None where the template refuses it, or has other reasons to fail."""
    messages = [{"role": role, "content": _content(number)} for number, role in enumerate(roles)]
    apply: Any = tokenizer.apply_chat_template
    try:
        return str(apply(messages, tokenize=False))
    except Exception:  # a template is foreign code in a sandbox and may raise anything
        return None


def _content(number: int) -> str:
    return f"content{number}x"


def _spelling(token_id: int) -> str:
    return f"{OPEN}c{token_id}{CLOSE}"


def _first_control(text: str) -> int | None:
    """The control token that a text begins with, white space before it allowed."""
    text = text.lstrip()
    if not text.startswith(f"{OPEN}c"):
        return None
    return int(text[len(OPEN) + 1 : text.index(CLOSE)])
