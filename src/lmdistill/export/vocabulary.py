"""A tokenizer as GGUF keeps it: byte-level BPE (GPT-2's kind) and SentencePiece's BPE with bytes to fall back on.

llama.cpp cuts text by a name for what happens before the merges. The name is found from the tokenizer's own
description, never guessed: another way of cutting would give other tokens without any error.
"""

from __future__ import annotations

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from lmdistill.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in GGUF."""

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
_LLAMA3 += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PRE_TOKENIZERS: dict[str, str] = {
    "regex": "gpt-2",
    "digits+regex": "smollm",
    f"split:{_LLAMA3}": "llama-bpe",
    f"split:{_QWEN2}": "qwen2",
}
"""What is done before the merges, and llama.cpp's name for it."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_LEAST = -1e6


def add_vocabulary(writer: Any, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Tell a GGUFWriter a tokenizer; `rows` is the size of the embedding, which may exceed the number of real tokens.

    Raises ModelError for a kind of tokenizer or a way of cutting that llama.cpp has no name for.
    """
    description = describe(tokenizer)
    model = description["model"]
    if model.get("type") != "BPE":
        raise ModelError(
            f"a {model.get('type')!r} tokenizer cannot be exported to GGUF yet; BPE can, of bytes or of SentencePiece"
        )
    if len(tokenizer) > rows:
        raise ModelError(f"the tokenizer has {len(tokenizer)} tokens and the embedding {rows} rows; is it another's?")
    sentencepiece = bool(model.get("byte_fallback"))
    tokens, types = _tokens(description, tokenizer, rows, sentencepiece)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if sentencepiece:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(adds_space(description))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(description))
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    if sentencepiece:
        writer.add_token_scores(_scores(tokens, merges))
    writer.add_token_types(types)
    if not sentencepiece:
        writer.add_token_merges(merges)
    _add_special(writer, tokenizer)


def describe(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What tokenizer.json says. Raises ModelError for a tokenizer that has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{type(tokenizer).__name__} has no tokenizer.json, from which the GGUF export reads it")
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def pre_tokenizer_name(description: dict[str, Any]) -> str:
    """llama.cpp's name for what a byte-level BPE does before its merges. Raises ModelError where there is none."""
    if description.get("normalizer"):
        kind = description["normalizer"].get("type")
        if kind != "NFC":  # llama.cpp leaves text as it is; Qwen's NFC differs from that on decomposed letters alone
            raise ModelError(f"its tokenizer alters text ({kind}) before cutting it, which llama.cpp would not")
    signature = _signature(description.get("pre_tokenizer"))
    if signature not in PRE_TOKENIZERS:
        raise ModelError(
            f"llama.cpp's name for how this tokenizer cuts text before its merges is not known "
            f"({ascii(signature)[:200]}); known: {', '.join(PRE_TOKENIZERS.values())}. "
            "Export it as safetensors or int8 instead"
        )
    return PRE_TOKENIZERS[signature]


def _signature(part: dict[str, Any] | None) -> str:
    """A pre-tokenizer in a few characters: the names in `PRE_TOKENIZERS`."""
    if part is None:
        return "none"
    if part["type"] == "Sequence":
        return "+".join(filter(None, (_signature(inner) for inner in part["pretokenizers"])))
    if part["type"] == "ByteLevel":
        if part.get("add_prefix_space"):
            return "prefix"
        return "regex" if part.get("use_regex", True) else ""
    if part["type"] == "Digits" and part.get("individual_digits"):
        return "digits"
    if part["type"] == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        return f"split:{part['pattern'].get('Regex')}"
    return str(part["type"])


def adds_space(description: dict[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer puts a space before the text. Raises ModelError for other alterations."""
    added = False
    for part in _flat(description.get("normalizer")):
        if part["type"] == "Prepend":
            added = True
        elif not (part["type"] == "Replace" and part.get("content") == "▁"):
            raise ModelError(f"its tokenizer alters text ({part['type']}) before cutting it, which llama.cpp would not")
    for part in _flat(description.get("pre_tokenizer")):
        if part["type"] == "Metaspace":
            added = added or part.get("prepend_scheme", "always") != "never"
    return added


def _flat(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    return [part] if part["type"] != "Sequence" else [found for one in inner or [] for found in _flat(one)]


def _tokens(
    description: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rows: int, sentencepiece: bool
) -> tuple[list[str], list[int]]:
    """Text and type of every row of the embedding."""
    texts = [f"[PAD{number}]" for number in range(rows)]
    types = [UNUSED] * rows
    for text, number in description["model"]["vocab"].items():
        texts[number] = text
        types[number] = BYTE if sentencepiece and _BYTE_TOKEN.fullmatch(text) else NORMAL
    for token in description.get("added_tokens") or []:
        texts[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if sentencepiece and tokenizer.unk_token_id is not None:
        types[int(tokenizer.unk_token_id)] = UNKNOWN
    return texts, types


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """SentencePiece merges what has the highest score: minus the place of the first merge that makes a token."""
    place: dict[str, int] = {}
    for number, merge in enumerate(merges):
        place.setdefault(merge.replace(" ", "", 1), number)
    return [float(-place[token]) if token in place else _LEAST for token in tokens]


def _add_special(writer: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            add(int(number))
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
