"""Text to token ids, with control tokens only where we put them.

A tokenizer's own encoding turns every `<|im_end|>` in a text into the control token, whoever wrote it. Here a second
tokenizer is made from the first, equal in all but the *spelling* of its control tokens: they are renamed to strings of
Unicode noncharacters, which no valid text holds. So text is always ordinary text, and `Encoder.control` gives the
spelling of a control token to those who mean one. Ordinary text gets the same ids from both.

Two rewritings, both on strings:

- `hide`: in a content, before a chat template sees it, control strings become placeholders;
- `reveal`: in a rendered template, control strings (now surely the template's own) become the spellings that the
  second tokenizer knows, and placeholders become the original text again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmdistill.data.documents import RESERVED_BRACKETS
from lmdistill.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = RESERVED_BRACKETS


@dataclass(frozen=True, eq=False)
class Encoding:
    """Ids of a text, and the characters [start, end) from which each token was made."""

    ids_L: NDArray[np.int32]
    start_L: NDArray[np.int64]
    end_L: NDArray[np.int64]


class Encoder:
    """Encodes texts with one tokenizer; see the module's head. Needs a fast tokenizer; raises ModelError otherwise."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, which is needed to know where an answer begins; "
                "load it with the tokenizers backend (a folder with tokenizer.json)"
            )
        self.tokenizer = tokenizer
        self._control_ids = _control_tokens(tokenizer)
        self._backend = _with_spellings(backend, {text: self.control(text) for text in self._control_ids})
        for text, token_id in self._control_ids.items():
            if self._backend.token_to_id(self.control(text)) != token_id:
                raise ModelError(
                    f"control token {text!r} ({token_id}) cannot be kept apart from text in this tokenizer"
                )
        either = _any_of(sorted(self._control_ids))
        self._controls = re.compile(either) if self._control_ids else None
        self._marker = re.compile(rf"\s*{either}") if self._control_ids else None
        self._last_control = re.compile(rf"{either}\s*\Z") if self._control_ids else None
        self._placeholders = re.compile(f"{OPEN}h(\\d+){CLOSE}")
        self._by_id = {token_id: text for text, token_id in self._control_ids.items()}
        self.lead_ids, self.tail_ids = _added_around(tokenizer)

    @property
    def control_ids(self) -> dict[str, int]:
        """Control tokens and their ids."""
        return dict(self._control_ids)

    def control(self, text: str) -> str:
        """The spelling that encodes as control token `text`."""
        return f"{OPEN}c{self._control_ids[text]}{CLOSE}"

    def hide(self, content: str) -> str:
        """Control strings in a content become placeholders."""
        if self._controls is None:
            return content
        return self._controls.sub(lambda match: f"{OPEN}h{self._control_ids[match[0]]}{CLOSE}", content)

    def show(self, hidden: str) -> str:
        """The inverse of `hide`."""
        return self._placeholders.sub(lambda match: self._by_id[int(match[1])], hidden)

    def reveal(self, rendered: str) -> str:
        """Control strings outside placeholders become control spellings; placeholders become text again."""
        if self._controls is not None:
            rendered = self._controls.sub(lambda match: self.control(match[0]), rendered)
        return self.show(rendered)

    def marker_end(self, rendered: str, position: int) -> int:
        """End of the control string that follows a position, white space between allowed; the position if none."""
        match = self._marker.match(rendered, position) if self._marker else None
        return match.end() if match else position

    def has_control(self, rendered: str) -> bool:
        """Whether a control string stands in a text."""
        return self._controls is not None and self._controls.search(rendered) is not None

    def ends_with_control(self, rendered: str) -> bool:
        """Whether a control string ends a text, white space after it allowed."""
        return self._last_control is not None and self._last_control.search(rendered) is not None

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode texts; no token is added around them."""
        encodings = []
        for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False):
            offsets_L2 = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            ids_L = np.asarray(encoding.ids, dtype=np.int32)
            encodings.append(Encoding(ids_L, offsets_L2[:, 0], offsets_L2[:, 1]))
        return encodings


def _any_of(texts: Sequence[str]) -> str:
    """A pattern for the longest of some texts at a place. Beginnings that they share are tried once: Gemma has 6,249
    control tokens, and trying each of them at every `<` of a web page would take longer than encoding it."""
    branches: dict[str, list[str]] = {}
    for text in texts:
        if text:
            branches.setdefault(text[0], []).append(text[1:])
    inner = "|".join(
        re.escape(first) + (_any_of(rests) if len(rests) > 1 else re.escape(rests[0]))
        for first, rests in branches.items()
    )
    return f"(?:{inner})?" if "" in texts else f"(?:{inner})"


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Added tokens marked special, and the named ones (bos, eos, pad, ...). Added tokens that are not special, such as
    `<think>` of Qwen or runs of spaces of Gemma, are ordinary words of the vocabulary."""
    tokens = {
        token.content: int(token_id) for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    for text in tokenizer.all_special_tokens:
        token_id = tokenizer.convert_tokens_to_ids(text)
        # a name that the vocabulary does not have gets the id of the unknown token
        if isinstance(token_id, int) and tokenizer.convert_ids_to_tokens(token_id) == text:
            tokens.setdefault(text, token_id)
    return {text: token_id for text, token_id in tokens.items() if text}


def _with_spellings(backend: Any, spellings: dict[str, str]) -> Any:
    """A copy of a `tokenizers.Tokenizer` in which tokens are renamed; padding, truncation and added ids are off."""
    return _renamed(backend.to_str(), tuple(spellings.items()))


@lru_cache(maxsize=2)
def _renamed(description: str, spellings: tuple[tuple[str, str], ...]) -> Any:
    """Made once for teacher and student: taking apart a large vocabulary takes seconds, and nothing changes a copy."""
    from tokenizers import AddedToken, Tokenizer

    state, names = json.loads(description), dict(spellings)
    # the post-processor only adds tokens around a text, and trims offsets, which must be exact here
    state.update(truncation=None, padding=None, post_processor=None)
    known = set()
    for token in state["added_tokens"]:
        known.add(token["content"])
        if token["content"] in names:
            token.update(content=names[token["content"]], normalized=False, special=True)
    model = state["model"]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {names.get(text, text): token_id for text, token_id in model["vocab"].items()}
    elif isinstance(model.get("vocab"), list):  # Unigram: [piece, score]
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    copy = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
    missing = [spelling for text, spelling in names.items() if text not in known]
    if missing:
        copy.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in missing])
    return copy


def _added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a plain text by itself (Llama and Gemma: the BOS token)."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    if not bare:
        raise ModelError("this tokenizer encodes 'a' as nothing, so it cannot encode text; is it the model's own?")
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise ModelError(f"this tokenizer encodes 'a' as {bare} alone and {full} with special tokens; these do not fit")
