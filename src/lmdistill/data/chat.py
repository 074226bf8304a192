"""Prompts and answers as token ids, with the loss on answers alone.

Conversations go through the tokenizer's own chat template. What the template writes is rendered as a **string**; the
borders of the answers are found in it; the whole string is encoded once, and a token belongs to an answer if and only
if it **begins** inside it, white space at the border left aside. So the ids are those that the tokenizer gives to the
whole conversation. A token that straddles a border belongs to the side of its first character that is not white space:
after "Answer: ", the token " Yes" is the answer's, or the answer "Yes" would not be trained at all; a token cut inside
a word is the prompt's.

An answer reaches from the end of what the template writes to ask for one (`add_generation_prompt`) to the end of its
first control token after the content: the end marker (`<|im_end|>`, `</s>`, `<end_of_turn>`) is trained, because the
student must learn to stop; what follows it (ChatML's line break) is not, because a model never has to write it.
A template with `{% generation %}` blocks says by itself what is trained, and is taken at its word.
Where a template has no end marker, the end-of-text token is put after the last answer (`add_eos`).

Prompt and response: rendered as a user's and an assistant's message if the tokenizer has a chat template; otherwise
joined with nothing between them.

The date that some templates write (`strftime_now`) is fixed to 26 July 2024, so that a data set does not change over
night.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmdistill.data.documents import Document
from lmdistill.data.encode import CLOSE, OPEN, Encoder, Encoding
from lmdistill.errors import DataError, ModelError
from lmdistill.recipe import GenerationSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = re.compile(f"{OPEN}([se])(\\d+){CLOSE}")
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_STRFTIME = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_DATE = datetime.datetime(2024, 7, 26)
_BATCH_ROWS = 512
_BATCH_CHARACTERS = 2**22

Message = dict[str, str]


@dataclass(frozen=True, eq=False)
class EncodedRow:
    """One document as ids. `trained_L` marks the tokens that the student learns to write."""

    ids_L: NDArray[np.int32]
    trained_L: NDArray[np.bool_]
    row_id: str
    origin: str
    lead: int
    """The first ids that stay when the left is cut: the BOS token, where the tokenizer puts one."""
    last_answer: int | None
    """Where the last answer begins; None for plain text."""
    task: str = ""
    """The document's task."""
    twin: str = ""
    """The name of the pair that it belongs to."""
    span: tuple[int, int] | None = None
    """The tokens of the document's span: so many from the end the first, so many the one behind the last."""


@dataclass(frozen=True)
class _Rendered:
    """A row as a string and the character spans of its answers."""

    text: str
    answers: list[tuple[int, int]]
    ends_marked: bool
    """Whether the row ends by itself: its last answer has an end marker, or it does not end in an answer."""


class RowEncoder:
    """Turns documents into ids and trained masks for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, add_eos: bool = True) -> None:
        self.encoder = Encoder(tokenizer)
        self.tokenizer = tokenizer
        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.tail_ids = (self.encoder.tail_ids or eos) if add_eos else []
        self.template = _template(tokenizer)

    def encode(self, documents: Iterable[Document]) -> Iterator[EncodedRow]:
        """Encode documents, in order. Raises DataError with the origin of a row that the template cannot take."""
        for batch in _batched(documents):
            rendered = [self._render(document) for document in batch]
            encodings = self.encoder.encode([row.text for row in rendered])
            for document, row, encoding in zip(batch, rendered, encodings, strict=True):
                yield self._finish(document, row, encoding)

    def prompt(self, document: Document, prompt_tokens: int) -> list[int]:
        """Ids of what a model is asked: the conversation up to the last user message and the generation prompt; the
        prompt; or the first `prompt_tokens` tokens of a plain text (BOS not counted)."""
        lead = self.encoder.lead_ids
        if document.text is not None:
            ids_L = self.encoder.encode([document.text])[0].ids_L[:prompt_tokens]
            return [*lead, *map(int, ids_L)]
        messages = self._messages(document)
        if messages is None:
            return [*lead, *map(int, self.encoder.encode([document.prompt or ""])[0].ids_L)]
        asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        text = self.encoder.reveal(self._apply(self._hidden(asked), document, ask=True))
        return [*map(int, self.encoder.encode([text])[0].ids_L)]

    def _finish(self, document: Document, row: _Rendered, encoding: Encoding) -> EncodedRow:
        """Mark trained tokens; put BOS and EOS where the template did not."""
        learnt = list(row.answers)
        if document.given:
            learnt[-1] = (_place(row, document, document.given), learnt[-1][1])
        if document.learnt:
            spans = [(_place(row, document, start), _place(row, document, end)) for start, end in document.learnt]
            # The last one reaches to the end of the answer, so that its end marker is learnt too.
            learnt[-1:] = [*spans[:-1], (spans[-1][0], learnt[-1][1])]
        part = None if document.span is None else tuple(_place(row, document, border) for border in document.span)
        borders = [border for answer in (*row.answers, *learnt, *([part] if part else [])) for border in answer]
        begin_L = _begins(row.text, encoding, borders)
        trained_L = np.zeros(len(begin_L), dtype=bool)
        for start, end in learnt:
            trained_L |= (begin_L >= start) & (begin_L < end)
        own_lead = self.encoder.lead_ids
        before = [] if self._messages(document) is not None else own_lead
        after = self.tail_ids if not row.ends_marked else []
        ids_L = np.concatenate([_ids(before), encoding.ids_L, _ids(after)])
        trained_L = np.concatenate([np.zeros(len(before), bool), trained_L, np.ones(len(after), bool)])
        last_answer = None
        if document.text is None:
            answers = learnt if document.learnt else row.answers
            inside = np.flatnonzero(begin_L >= (answers[-1][0] if answers else np.inf))
            last_answer = len(before) + (int(inside[0]) if len(inside) else len(begin_L))
        lead = len(own_lead) if ids_L[: len(own_lead)].tolist() == own_lead else 0
        span = None
        if part is not None:
            inside = np.flatnonzero((begin_L >= part[0]) & (begin_L < part[1])) + len(before)
            span = (len(ids_L) - int(inside[0]), len(ids_L) - int(inside[-1]) - 1) if len(inside) else None
        return EncodedRow(
            ids_L, trained_L, document.id, document.origin, lead, last_answer, document.task, document.twin, span
        )

    # --- rendering --------------------------------------------------------------------------------------------------

    def _render(self, document: Document) -> _Rendered:
        if document.text is not None:
            return _Rendered(document.text, [(0, len(document.text))], ends_marked=False)
        messages = self._messages(document)
        if messages is not None:
            return self._render_messages(messages, document)
        prompt, response = document.prompt or "", document.response
        if response is None:
            return _Rendered(prompt, [], ends_marked=True)
        return _Rendered(prompt + response, [(len(prompt), len(prompt) + len(response))], ends_marked=False)

    def _messages(self, document: Document) -> list[Message] | None:
        """The conversation of a chat row, or of a prompt and response where there is a template. Raises DataError."""
        if document.messages is not None:
            if self.template is None:
                raise DataError(
                    f"{document.origin}: chat messages need a chat template, and the tokenizer has none; take an "
                    "instruction-tuned model's tokenizer, or give the data as prompt and response"
                )
            return document.messages
        if document.prompt is None or self.template is None:
            return None
        answer = [] if document.response is None else [{"role": "assistant", "content": document.response}]
        return [{"role": "user", "content": document.prompt}, *answer]

    def _hidden(self, messages: Sequence[Message]) -> list[Message]:
        return [{**message, "content": self.encoder.hide(message["content"])} for message in messages]

    def _render_messages(self, messages: list[Message], document: Document) -> _Rendered:
        hidden = self._hidden(messages)
        if self.template is not None and _GENERATION_BLOCK.search(self.template):
            full, spans = self._apply_with_blocks(hidden, document)
        else:
            full = self._apply(hidden, document)
            spans = self._find_answers(hidden, full, document)
        text, answers = self._reveal_spans(full, spans)
        stops = not spans or messages[-1]["role"] != "assistant"
        if not stops:  # the end marker may lie in the answer or (as generation blocks may have it) right behind it
            start, end = spans[-1]
            stops = self.encoder.ends_with_control(full[start : self.encoder.marker_end(full, end)])
            if not stops and self.tail_ids:  # it must end where the answer does, not behind the template's line break
                text = text[: answers[-1][1]]
        return _Rendered(text, answers, ends_marked=stops)

    def _reveal_spans(self, full: str, spans: list[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
        """Reveal a rendered text piece by piece, and move the spans along."""
        text, moved, position = "", [], 0
        for start, end in spans:
            text += self.encoder.reveal(full[position:start])
            answer = self.encoder.reveal(full[start:end])
            moved.append((len(text), len(text) + len(answer)))
            text, position = text + answer, end
        return text + self.encoder.reveal(full[position:]), moved

    def _find_answers(self, hidden: list[Message], full: str, document: Document) -> list[tuple[int, int]]:
        """Character spans of the assistant's messages in `full`."""
        marks = self._find_contents(hidden, full, document)
        spans = []
        for number, message in enumerate(hidden):
            if message["role"] != "assistant":
                continue
            begin, end = marks.get(("s", number)), marks.get(("e", number))
            asked_end = marks.get(("e", number - 1))
            if end is None or asked_end is None:
                raise _unfit(document, f"leaves out message {number + (1 if end is None else 0)}")
            start = self._answer_start(hidden[:number], full, asked_end, begin, end, document)
            spans.append((start, self.encoder.marker_end(full, end)))
        return spans

    def _answer_start(
        self, asked: list[Message], full: str, asked_end: int, begin: int | None, end: int, document: Document
    ) -> int:
        """Where an answer starts in `full`: behind what the template writes to ask for it.

        `asked_end` is the end of the content before it; `begin` and `end` are those of its own content. Only what
        follows that content is compared: templates that write earlier turns otherwise once there are later ones
        (Qwen3 leaves out their reasoning, Mistral moves the system message) are taken all the same.
        """
        header, plain = (self._after_last(asked, document, ask=ask) for ask in (True, False))
        shared = _shared_length(header, full[asked_end:end])
        start = asked_end + shared
        if shared == len(header) and header != plain:
            return start
        if begin is None:
            raise _unfit(document, f"rewrites message {len(asked) + 1}")
        # A template without a generation prompt, or with one that it does not repeat, still writes a header before the
        # answer; white space before the content belongs to the answer, because tokens such as "▁Yes" begin with it.
        between = full[start:begin]
        if self.encoder.has_control(between) or (header == plain and between.strip()):
            return begin
        return min(start, begin)

    def _after_last(self, messages: list[Message], document: Document, *, ask: bool) -> str:
        """What the template writes behind the last message's content."""
        marked = self._apply(_marked(messages), document, ask=ask)
        _, found, tail = marked.rpartition(f"{OPEN}e{len(messages) - 1}{CLOSE}")
        if not found:
            raise _unfit(document, f"leaves out message {len(messages)}")
        return _MARK.sub("", tail)

    def _find_contents(self, hidden: list[Message], full: str, document: Document) -> dict[tuple[str, int], int]:
        """Positions in `full` where contents start ("s", number) and end ("e", number)."""
        marked = self._apply(_marked(hidden), document)
        positions: dict[tuple[str, int], int] = {}
        removed = 0
        for match in _MARK.finditer(marked):
            positions[match[1], int(match[2])] = match.start() - removed
            removed += len(match[0])
        if _MARK.sub("", marked) != full:
            raise _unfit(document, "depends on the contents in a way that hides where answers are")
        return positions

    def _apply(self, messages: Sequence[Message], document: Document, *, ask: bool = False) -> str:
        """Render messages. Raises DataError with the template's own words."""
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.template, tokenize=False, add_generation_prompt=ask
            )
        except Exception as error:  # a template is foreign code in a sandbox and may raise anything
            raise _refused(document, error) from error
        return str(rendered)

    def _apply_with_blocks(self, messages: list[Message], document: Document) -> tuple[str, list[tuple[int, int]]]:
        """Render messages with a template that has generation blocks, and the spans of these."""
        from transformers.utils.chat_template_utils import render_jinja_template

        names: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        render: Any = render_jinja_template  # annotated as returning a string, which it never does
        try:
            rendered, spans = render(
                [messages], chat_template=self.template, return_assistant_tokens_mask=True, **names
            )
        except Exception as error:
            raise _refused(document, error) from error
        return str(rendered[0]), [(int(start), int(end)) for start, end in spans[0]]


def prompts_of(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, spec: GenerationSpec
) -> list[list[int]]:
    """What a teacher is asked, as ids, one list a document.

    Chat and prompt rows: everything before the last answer, and the generation prompt. Plain text: its first
    `spec.prompt_tokens` tokens. Raises DataError.
    """
    encoder = RowEncoder(tokenizer)
    return [encoder.prompt(document, spec.prompt_tokens) for document in documents]


def _marked(messages: Sequence[Message]) -> list[Message]:
    """Contents between marks. White space at their ends stays outside, so that a template that trims still does."""
    result = []
    for number, message in enumerate(messages):
        content = message["content"]
        inner = content.strip()
        at = content.index(inner)
        marked = f"{OPEN}s{number}{CLOSE}{inner}{OPEN}e{number}{CLOSE}"
        result.append({**message, "content": content[:at] + marked + content[at + len(inner) :]})
    return result


def _unfit(document: Document, what: str) -> DataError:
    return DataError(
        f"{document.origin}: the chat template {what}, so the answers' tokens cannot be told from the rest; use a "
        "template with {% generation %} blocks, or another tokenizer"
    )


def _refused(document: Document, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"{document.origin}: the chat template does not take this conversation: {reason}")


def _template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template, or None."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return _fixed_date(tokenizer.get_chat_template())
    except ValueError as error:  # several named templates, none of them the default
        raise ModelError(f"the tokenizer has chat templates, but no default one: {error}") from error


def _fixed_date(template: str) -> str:
    """A template in which every `strftime_now(...)` with a literal format is the fixed date."""
    return _STRFTIME.sub(lambda match: json.dumps(_DATE.strftime(match[2])), template)


def _place(row: _Rendered, document: Document, at: int) -> int:
    """Where a character of the response stands in the rendered text. Raises DataError where a template rewrites it."""
    response = document.response or ""
    shown = response.strip()
    begin = row.text.find(shown, row.answers[-1][0]) if row.answers and shown else -1
    if begin < 0 or not 0 <= at <= len(response):
        raise _unfit(document, f"rewrites the response, or it is shorter than {at} characters")
    return min(max(begin, begin + at - response.index(shown)), begin + len(shown))


def _shared_length(one: str, other: str) -> int:
    """Length of the beginning that two strings share."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def _begins(text: str, encoding: Encoding, borders: Iterable[int]) -> NDArray[np.int64]:
    """Where each token begins; at the border for one that has nothing but white space before it."""
    begin_L = encoding.start_L.copy()
    for border in borders:
        for at in np.flatnonzero((encoding.start_L < border) & (border < encoding.end_L)):
            if text[encoding.start_L[at] : border].isspace() and text[border : encoding.end_L[at]].strip():
                begin_L[at] = border
    return begin_L


def _ids(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def _batched(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in batches that fit in memory: the offsets of a token take 50 times its own size while it is encoded,
    so that 512 books at a time would be too many."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.plain)
        if len(batch) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
