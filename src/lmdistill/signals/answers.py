"""Labelling from answers that were collected before: what an API said of its own text, read from a file.

A row of the file is one answer as training data has it (`prompt` and `response`, or `messages` that end with it; also
`answer` in the place of either) with the API's token log-probabilities under `logprobs`. Nothing is asked, and no model
is loaded. An answer is found by its document's id, so that sequences may be packed in any way.

Shape legend: L tokens of a sequence, N labelled positions, k slots of a position.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmdistill.data.documents import BadRow, Document, detect_format, to_document
from lmdistill.data.load import LINE_LIMIT, parse_json_line
from lmdistill.errors import DataError
from lmdistill.recipe import FieldNames, SignalSpec
from lmdistill.signals.api_text import Tally, Vocabulary, signal_of_answer
from lmdistill.signals.codec import Array
from lmdistill.signals.engine import Ask
from lmdistill.signals.store import TrainingSequence
from lmdistill.signals.teller import Payload

LOGPROBS = "logprobs"
"""Column of what the API returned under that name."""


@dataclass(frozen=True)
class Answer:
    """One answer of an API."""

    where: str
    """File and line."""
    row: dict[str, Any]
    """As training data: `prompt` and `response`, or `messages`."""
    document: Document
    text: str
    logprobs: Any


def read_answers(path: Path) -> Iterator[Answer]:
    """The answers of a file in order. Raises DataError naming the line of the first that cannot be used."""
    for number, (_, line) in enumerate(_lines(path), start=1):
        if line.strip():
            yield _answer(line, f"{path}:{number}")


class AnswersEngine:
    """Answers from a file."""

    def __init__(self, spec: SignalSpec, path: Path, vocabulary: Vocabulary) -> None:
        """Reads the file once, to know where each answer lies. Raises DataError."""
        self.spec = spec
        self.path = path
        self.vocabulary = vocabulary
        self.tally = Tally()
        self._counted: set[str] = set()
        self._places: dict[str, tuple[int, int]] = {}
        for number, (place, line) in enumerate(_lines(path), start=1):
            if line.strip():
                answer = _answer(line, f"{path}:{number}")
                self._places.setdefault(answer.document.id, (place, number))

    def tell_all(
        self, asks: Iterable[Ask], told: Callable[[int], None] = lambda tokens: None
    ) -> Generator[list[Payload], None, None]:
        """One ask after the other, each when it is wanted."""
        for ask in asks:
            yield self.tell(ask.sequences, told)

    def tell(
        self, sequences: Sequence[TrainingSequence], told: Callable[[int], None] = lambda tokens: None
    ) -> list[Payload]:
        """What the API said at the labelled positions of each sequence. Raises DataError."""
        found = []
        with self.path.open("rb") as file:
            for sequence in sequences:
                found.append(self._sequence(sequence, file))
                told(len(sequence.input_ids_L))
        return found

    def close(self) -> None:
        """Nothing: the file is open only while it is read."""

    def _sequence(self, sequence: TrainingSequence, file: Any) -> Payload:
        starts = [*sequence.row_starts_R.tolist(), len(sequence.input_ids_L)]
        if len(starts) - 1 != len(sequence.row_ids):
            raise DataError(f"{len(sequence.row_ids)} names for {len(starts) - 1} packed rows; build the data set anew")
        parts = [
            self._row(sequence.input_ids_L[first:end], sequence.loss_mask_L[first:end], row_id, file)
            for (first, end), row_id in zip(itertools.pairwise(starts), sequence.row_ids, strict=True)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in ("ids", "logprobs")}

    def _row(self, ids_L: Array, mask_L: Array, row_id: str, file: Any) -> Payload:
        """The last run of trained tokens is the answer; what was trained before it, the API did not write."""
        if row_id not in self._places:
            raise DataError(
                f"{self.path}: no answer for the row {row_id}; are data.train and signals.answers the same answers?"
            )
        place, number = self._places[row_id]
        file.seek(place)
        answer = _answer(file.readline(LINE_LIMIT + 1), f"{self.path}:{number}")
        trained = np.flatnonzero(mask_L[1:]) + 1
        first = next((n for n in range(len(trained) - 1, 0, -1) if trained[n] != trained[n - 1] + 1), 0)
        ids_N = ids_L[trained[first:]].tolist()
        payload, tally = signal_of_answer(
            answer.logprobs, answer.text, ids_N, self.vocabulary, self.spec.k, answer.where
        )
        tally.unsaid += first
        if row_id not in self._counted:  # what the codec is learnt on is read twice
            self._counted.add(row_id)
            self.tally.add(tally)
        earlier = {"ids": np.zeros((first, self.spec.k)), "logprobs": np.full((first, self.spec.k), -np.inf)}
        return {name: np.concatenate([earlier[name].astype(rest.dtype), rest]) for name, rest in payload.items()}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line."""
    try:
        with path.open("rb") as file:
            place = 0
            while line := file.readline(LINE_LIMIT + 1):
                yield place, line
                place += len(line)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _answer(line: bytes, where: str) -> Answer:
    if len(line) > LINE_LIMIT:
        raise DataError(f"{where}: longer than {LINE_LIMIT} bytes; split the file into answers, one a line")
    try:
        found = parse_json_line(line.rstrip(b"\r\n"))
        row = _training_row(found)
        kind = detect_format(row, FieldNames(), "auto", where)
        document = to_document(row, kind, FieldNames(), where, True)
    except BadRow as problem:
        raise DataError(f"{where}: {problem}") from None
    text = document.response if document.messages is None else document.messages[-1]["content"]
    if document.messages is not None and document.messages[-1]["role"] != "assistant":
        raise DataError(f"{where}: the messages end with the {document.messages[-1]['role']}'s, and there is no answer")
    return Answer(where, row, document, text or "", found.get(LOGPROBS))


def _training_row(found: dict[str, Any]) -> dict[str, Any]:
    """The row as training data has it. Raises BadRow."""
    answer = found.get("answer")
    if "messages" in found:
        messages = found["messages"]
        if answer is None:
            return {"messages": messages}
        if not isinstance(messages, list):
            raise BadRow("'messages' is no list")
        return {"messages": [*messages, {"role": "assistant", "content": answer}]}
    if "prompt" not in found:
        raise BadRow("neither 'prompt' nor 'messages'")
    return {"prompt": found["prompt"], "response": found.get("response") if answer is None else answer}
