"""What bytes each token of a tokenizer stands for, made once.

The bytes are those of the text as the tokenizer's own decoder would write it: byte-level alphabets (GPT-2's) and `▁`
are undone, byte tokens (`<0xE2>`) are one byte, added words are themselves. A control token stands for its spelling; it
is never part of a text.

Shape legend: V vocabulary, n tokens of one sequence, C tokens that two vocabularies share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmdistill.data.encode import Encoder, Encoding
from lmdistill.errors import DataError, ModelError
from lmdistill.objectives.gold import VocabularyMatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"
# Normalisers that only spell spaces otherwise.
_FAITHFUL = {"Sequence", "Replace", "Prepend"}


class TokenBytes:
    """A tokenizer's tokens as bytes.

    Needs a fast tokenizer whose decoder is byte-level or of SentencePiece's kind; raises ModelError otherwise.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.encoder = Encoder(tokenizer)
        self.tokenizer = tokenizer
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        state = json.loads(backend.to_str())
        vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.size = 1 + max(vocabulary.values())
        control_ids = self.encoder.control_ids
        added = {token["content"] for token in state["added_tokens"]}
        piece = _reader(state, added)
        self.pieces: list[bytes] = [b""] * self.size
        for text, token_id in vocabulary.items():
            self.pieces[token_id] = text.encode() if text in control_ids else piece(text)
        self.names = {token_id: text for text, token_id in control_ids.items()}
        self.length_V = np.fromiter(map(len, self.pieces), np.int64, self.size)
        self.is_control_V = np.zeros(self.size, bool)
        self.is_control_V[list(self.names)] = True
        # Ids without a token, and the unknown token, stand for nothing that is known.
        self.is_opaque_V = self.length_V == 0
        unknown = tokenizer.unk_token_id
        self.unknown_id = int(unknown) if isinstance(unknown, int) and _needs_unknown(state) else None
        if self.unknown_id is not None:
            self.is_opaque_V[self.unknown_id] = True
        # For bytes that are no valid text: they are all above 0x7f.
        self.byte_ids = {
            data[0]: token_id
            for token_id, data in enumerate(self.pieces)
            if len(data) == 1 and data[0] >= 0x80 and not self.is_control_V[token_id]
        }
        self.alters = bool(set(_kinds(state["normalizer"], "normalizers")) - _FAITHFUL)
        self.lead_ids = list(self.encoder.lead_ids)
        self.space_first, self.space_after_control = self._added_spaces()

    def check(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Ids as an array. Raises DataError for one that the tokenizer does not have."""
        ids_n = np.asarray(ids, dtype=np.int64)
        if len(ids_n) and not 0 <= int(ids_n.min()) <= int(ids_n.max()) < self.size:
            wrong = int(ids_n.min()) if int(ids_n.min()) < 0 else int(ids_n.max())
            raise DataError(f"id {wrong} in a text, but the tokenizer has {self.size} tokens; is it the other model's?")
        return ids_n

    def join(self, ids: Iterable[int]) -> bytes:
        """The bytes of some tokens."""
        return b"".join([self.pieces[token_id] for token_id in ids])

    def encode(self, text: str) -> Encoding:
        """Ids of a text, control tokens where `encoder.control` spells them; nothing is added around it."""
        return self.encoder.encode([text])[0]

    def by_bytes(self) -> dict[bytes, int]:
        """Id of each byte string that is an ordinary token. Where several tokens are the same bytes (a character and
        its byte token), the one that the tokenizer writes: the later byte token gives way."""
        found: dict[bytes, int] = {}
        for token_id, data in enumerate(self.pieces):
            if data and not self.is_control_V[token_id] and not self.is_opaque_V[token_id]:
                other = found.get(data)
                if other is None or self._is_byte_token(other):
                    found[data] = token_id
        return found

    def _is_byte_token(self, token_id: int) -> bool:
        return _BYTE_TOKEN.fullmatch(str(self.tokenizer.convert_ids_to_tokens(token_id))) is not None

    def _added_spaces(self) -> tuple[bool, bool]:
        """Whether the tokenizer puts a space before a text, and before what follows a control token."""
        first = self.join(self.encode("a").ids_L.tolist()).startswith(b" ")
        if not self.names:
            return first, False
        control_id, name = next(iter(self.names.items()))
        ids = self.encode(self.encoder.control(name) + "a").ids_L.tolist()
        return first, self.join(ids[ids.index(control_id) + 1 :]).startswith(b" ")


def _reader(state: dict[str, Any], added: set[str]) -> Any:
    """From a token's text to its bytes, by what kind of decoder the tokenizer has. Raises ModelError."""
    kinds = set(_kinds(state["decoder"]))
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()

        def byte_level(text: str) -> bytes:
            if text in added or any(character not in alphabet for character in text):
                return text.encode()
            return bytes(alphabet[character] for character in text)

        return byte_level
    if kinds & {"Metaspace", "Fuse", "ByteFallback"} and "WordPiece" not in kinds:
        bytes_fall_back = "ByteFallback" in kinds or bool(state["model"].get("byte_fallback"))
        spaces = "Metaspace" in kinds or _replaces_space(state["decoder"])

        def sentence_piece(text: str) -> bytes:
            byte = _BYTE_TOKEN.fullmatch(text) if bytes_fall_back else None
            if byte is not None:
                return bytes([int(byte[1], 16)])
            return (text.replace(_SPACE, " ") if spaces else text).encode()

        return sentence_piece
    raise ModelError(
        f"this tokenizer's decoder ({', '.join(sorted(kinds)) or 'none'}) is neither byte-level nor of SentencePiece's "
        "kind, so its tokens cannot be laid beside another's; distil from the teacher's text instead (method: seqkd)"
    )


def _kinds(node: Any, parts: str = "decoders") -> Iterable[str]:
    """Types of a decoder or normaliser and of its parts."""
    if isinstance(node, dict):
        yield str(node.get("type"))
        for part in node.get(parts, []):
            yield from _kinds(part, parts)


def _replaces_space(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Replace":
        return bool(decoder.get("pattern") == {"String": _SPACE} and decoder.get("content") == " ")
    return any(_replaces_space(part) for part in decoder.get("decoders", []))


def _needs_unknown(state: dict[str, Any]) -> bool:
    """Whether text can come out as the unknown token."""
    return state["model"].get("unk_token") is not None or state["model"].get("unk_id") is not None


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: Latin-1 characters for themselves, U+0100 and up for the rest."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def same_tokens(
    student: TokenBytes,
    teacher: TokenBytes,
    pairs: Mapping[int, int] | None = None,
    sizes: tuple[int, int] | None = None,
) -> VocabularyMatch:
    """Tokens of both vocabularies that are the same bytes, and pairs of control tokens, one to one.

    Bytes, not spellings: `Ġhello` and `▁hello` are one token, which a comparison of their texts would miss. `sizes` are
    the numbers of ids that either model has rows for, where those are fewer.
    """
    theirs = teacher.by_bytes()
    found = {ours: theirs[data] for data, ours in student.by_bytes().items() if data in theirs}
    taken = set(found.values())
    for ours, other in (pairs or {}).items():
        if other not in taken:
            found[ours] = other
            taken.add(other)
    limits = sizes or (student.size, teacher.size)
    kept = sorted((ours, other) for ours, other in found.items() if ours < limits[0] and other < limits[1])
    ids_2C = torch.tensor(kept, dtype=torch.long).reshape(-1, 2).t().contiguous()
    return VocabularyMatch(ids_2C[0], ids_2C[1])
