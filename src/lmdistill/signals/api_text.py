"""From token log-probabilities, as an OpenAI-compatible API returns them, to what a store keeps of the same text.

An API says of each token that it wrote how likely it was, and how likely some alternatives were, 20 at most with
OpenAI's. It says so in text or bytes, not in ids, and its tokens need not be those of the tokenizer here. So each is
looked up by its bytes: exactly one token of the vocabulary, or none. An alternative that is none joins the tail. Where
the API cut the text otherwise than the tokenizer does, the position is left without a signal.

Understood are the formats of chat completions (`{"content": [{"token", "logprob", "bytes", "top_logprobs"}]}`) and of
completions (`{"tokens", "token_logprobs", "top_logprobs"}`). Torch is not imported here.

Shape legend: N positions, k slots of a position.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lmdistill.errors import DataError
from lmdistill.signals.codec import Array

UNLIKELY = -9000.0
"""OpenAI writes -9999 for a token that is not among the likeliest: not a log-probability, but that there is none."""
_ABOVE_ZERO = 1e-4
_ABOVE_ONE = 1e-3
_ESCAPED = re.compile(rb"\\x([0-9a-fA-F]{2})")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens as bytes."""

    pieces: Sequence[bytes]
    """What each id stands for in a text."""
    ids: Mapping[bytes, int]
    """Ordinary tokens by their bytes."""
    controls: Mapping[str, int]
    """Control tokens by their names; they are never part of a text."""

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of the control tokens."""
        return frozenset(self.controls.values())


@dataclass
class Tally:
    """What became of some answers' tokens."""

    signals: int = 0
    """Positions with a signal."""
    cut_otherwise: int = 0
    """Positions without one because the API's tokens begin or end elsewhere."""
    unsaid: int = 0
    """Positions without one because the API said nothing of them: earlier turns, ends of answers, cut rows."""
    kept: int = 0
    """Log-probabilities that are kept."""
    unknown: int = 0
    """Log-probabilities of texts that are no single token here; they joined the tail."""
    unknown_mass: float = 0.0
    """Their probability, summed over positions."""

    def sentence(self) -> str:
        """All of it in words."""
        positions = max(1, self.signals)
        return (
            f"{self.signals} positions with what the API said, {self.kept / positions:.1f} tokens each; without: "
            f"{self.cut_otherwise} that it cut otherwise, {self.unsaid} that it said nothing of; {self.unknown} "
            f"log-probabilities ({self.unknown_mass / positions:.2%} of all probability) are of no single token here"
        )

    def add(self, other: Tally) -> None:
        """Count another's."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class _Said:
    """One token as the API gives it."""

    text: str
    data: bytes | None
    """None where the bytes cannot be told from the text."""
    logprob: float
    others: list[tuple[str, bytes | None, float]] = field(default_factory=list)


def signal_of_answer(
    logprobs: Any, answer: str, ids_N: Sequence[int], vocabulary: Vocabulary, k: int, where: str
) -> tuple[dict[str, Array], Tally]:
    """What the API said at each token of an answer, for the answer's ids here, end marker included.

    `logprobs` is what the API returned, `where` names the row in errors. Returns `ids` and `logprobs` (N, k), likeliest
    first, log-probability -inf in empty slots; a position without a signal is empty. Raises DataError for another
    format, a NaN, a log-probability above 0, probabilities above 1 in sum, and tokens that are not the answer's.
    """
    said = _read(logprobs, where)
    spans, ends = _spans(said, answer.encode(), where)
    found = _Rows(len(ids_N), k)
    tally = Tally()
    length = next((n for n, token in enumerate(ids_N) if token in vocabulary.control_ids), len(ids_N))
    borders = np.cumsum([0, *(len(vocabulary.pieces[token]) for token in ids_N[:length])])
    text = b"".join(vocabulary.pieces[token] for token in ids_N[:length])
    shift = _place(text, answer.encode())
    first, last = min((begin for begin, _ in spans), default=0), max((end for _, end in spans), default=0)
    for place in range(len(ids_N)):
        if place >= length:
            number = place - length
            token = ends[number] if number < len(ends) and _is_end(ends[number], ids_N[place], vocabulary) else None
        elif shift is None:
            token = None
        else:
            begin, end = int(borders[place]) + shift, int(borders[place + 1]) + shift
            token = spans.get((begin, end))
            tally.cut_otherwise += token is None and begin < last and end > first
        if token is not None:
            found.put(place, _entries(token, ids_N[place], vocabulary, where, tally))
    tally.signals = int((found.logprobs_Nk[:, :1] > -np.inf).sum())
    tally.kept = int((found.logprobs_Nk > -np.inf).sum())
    tally.unsaid = len(ids_N) - tally.signals - tally.cut_otherwise
    return {"ids": found.ids_Nk, "logprobs": found.logprobs_Nk}, tally


def check_logprobs(logprobs: Any, asked: int) -> None:
    """Check what an API said of its own tokens before anything is made of it.

    Raises DataError for another format, no tokens, numbers that are no log-probabilities, alternatives that are not
    sorted or fewer than `asked`, and probabilities above 1 in sum.
    """
    said = _read(logprobs, "the answer")
    if not said:
        raise DataError("no tokens")
    named = isinstance(logprobs.get("tokens"), list)  # completions: alternatives of the same text are one there
    for place, token in enumerate(said):
        values = [logprob for _, _, logprob in token.others]
        if any(not value <= _ABOVE_ZERO for value in (token.logprob, *values)):
            raise DataError(f"token {place}, {token.text!r}: a value above 0 or NaN")
        if not named and len(values) < asked:
            raise DataError(f"token {place}, {token.text!r}: {len(values)} alternatives of {asked} asked for")
        if not named and any(after > before for before, after in itertools.pairwise(values)):
            raise DataError(f"token {place}, {token.text!r}: the alternatives are not sorted")
        if (total := sum(map(math.exp, values))) > 1 + _ABOVE_ONE:
            raise DataError(f"token {place}, {token.text!r}: the probabilities come to {total:.4f}, more than 1")


class _Rows:
    """The arrays, filled position by position."""

    def __init__(self, positions: int, k: int) -> None:
        self.k = k
        self.ids_Nk = np.zeros((positions, k), dtype=np.int32)
        self.logprobs_Nk = np.full((positions, k), -np.inf, dtype=np.float32)

    def put(self, place: int, entries: Mapping[int, float]) -> None:
        best = sorted(entries.items(), key=lambda entry: (-entry[1], entry[0]))[: self.k]
        for slot, (token, probability) in enumerate(best):
            self.ids_Nk[place, slot] = token
            self.logprobs_Nk[place, slot] = min(math.log(probability), 0.0)


def _entries(said: _Said, own: int, vocabulary: Vocabulary, where: str, tally: Tally) -> dict[int, float]:
    """Probabilities by id; what is no single token is counted and left to the tail. `own` is the token itself."""
    found: dict[int, float] = {}
    listed = [*said.others]
    if not any(text == said.text and abs(logprob - said.logprob) < 1e-3 for text, _, logprob in listed):
        listed.append((said.text, said.data, said.logprob))
    total = 0.0
    for text, data, logprob in listed:
        if logprob <= UNLIKELY:
            continue
        if math.isnan(logprob) or logprob > _ABOVE_ZERO:
            raise DataError(f"{where}: log-probability {logprob} of {text!r}; it must be a number of at most 0")
        probability = math.exp(min(logprob, 0.0))
        total += probability
        # An end marker that is written as nothing has no other name, and other control tokens are nothing too.
        is_own = (text, data) == (said.text, said.data) and abs(logprob - said.logprob) < 1e-3
        token = own if is_own else _id_of(text, data, vocabulary)
        if token is None:
            tally.unknown += 1
            tally.unknown_mass += probability
        elif probability > 0:
            found[token] = found.get(token, 0.0) + probability
    if total > 1 + _ABOVE_ONE:
        raise DataError(f"{where}: the probabilities at {said.text!r} come to {total:.4f}, more than 1")
    return found


def _id_of(text: str, data: bytes | None, vocabulary: Vocabulary) -> int | None:
    if data is not None and data in vocabulary.ids:
        return vocabulary.ids[data]
    return vocabulary.controls.get(text)


def _is_end(said: _Said, own: int, vocabulary: Vocabulary) -> bool:
    """Whether a token behind the answer's text is the control token that stands there: some servers name it, others
    write nothing."""
    return not said.text or vocabulary.controls.get(said.text) == own


def _spans(said: Sequence[_Said], answer: bytes, where: str) -> tuple[dict[tuple[int, int], _Said], list[_Said]]:
    """The tokens by where they begin and end in the answer's bytes, and those that stand behind its text."""
    known = next((number for number, token in enumerate(said) if token.data is None), len(said))
    joined = b"".join(token.data or b"" for token in said[:known])
    at = joined.find(answer)
    if at < 0 and (known == len(said) or not answer.startswith(joined)):
        raise DataError(
            f"{where}: the tokens' text is {_shown(joined)}, the answer {_shown(answer)}; log-probabilities and answer "
            "must be of one response, whole"
        )
    spans, ends, begin = {}, [], -max(at, 0)
    for token in said[:known]:
        end = begin + len(token.data or b"")
        if begin >= len(answer):
            ends.append(token)
        elif end > begin:
            spans[begin, end] = token
        begin = end
    return spans, ends


def _place(text: bytes, answer: bytes) -> int | None:
    """Where a text begins in an answer; below 0 where it begins before it, None where they have nothing in common."""
    if answer.startswith(text) or text.startswith(answer):
        return 0
    if answer.endswith(text):  # a row whose beginning was cut away
        return len(answer) - len(text)
    found = answer.find(text)
    if found >= 0:
        return found
    found = text.find(answer)
    return -found if found >= 0 else None


def _read(value: Any, where: str) -> list[_Said]:
    """Either format, as a list of tokens."""
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where}: no log-probabilities; ask the API for them (chat completions: logprobs: true, top_logprobs: 20)"
        )
    try:
        if isinstance(value.get("content"), list):
            return [_chat_token(item) for item in value["content"]]
        if isinstance(value.get("tokens"), list):
            return _completion_tokens(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: not a list of token log-probabilities ({type(error).__name__}: {error})") from error
    known = ", ".join(map(str, list(value)[:8])) or "nothing"
    raise DataError(f"{where}: 'logprobs' holds {known}; known are 'content' (chat completions) and 'tokens'")


def _chat_token(item: Mapping[str, Any]) -> _Said:
    others = [(*_named(other), float(other["logprob"])) for other in item.get("top_logprobs") or []]
    return _Said(*_named(item), float(item["logprob"]), others)


def _named(item: Mapping[str, Any]) -> tuple[str, bytes | None]:
    text, data = item["token"], item.get("bytes")
    if not isinstance(text, str):
        raise TypeError(f"a token that is {type(text).__name__}, not text")
    return text, bytes(data) if isinstance(data, list) else _bytes_of(text)


def _completion_tokens(value: Mapping[str, Any]) -> list[_Said]:
    tokens, logprobs = value["tokens"], value["token_logprobs"]
    tops = value.get("top_logprobs") or [None] * len(tokens)
    if not len(tokens) == len(logprobs) == len(tops):
        raise ValueError(f"{len(tokens)} tokens, {len(logprobs)} log-probabilities, {len(tops)} lists of alternatives")
    found = []
    for text, logprob, top in zip(tokens, logprobs, tops, strict=True):
        others = [(other, _bytes_of(other), float(number)) for other, number in (top or {}).items()]
        # The first token of an echoed prompt has none.
        found.append(_Said(text, _bytes_of(text), 2 * UNLIKELY if logprob is None else float(logprob), others))
    return found


def _bytes_of(text: str) -> bytes | None:
    """The bytes of a token's text; None where a replacement character stands for bytes that are no text."""
    if text.startswith("bytes:"):  # OpenAI's way of writing part of a character
        return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text.removeprefix("bytes:").encode())
    return None if "\ufffd" in text else text.encode()


def _shown(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return repr(text if len(text) <= 60 else text[:60] + "…")
