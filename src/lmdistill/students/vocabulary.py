"""Trim a vocabulary to the tokens that a corpus uses.

The trimmed tokenizer cuts the corpus exactly as before and can still write any text: besides the corpus' tokens it
keeps special tokens, single bytes, and every token that byte-pair merging passes through on its way to a kept one.

Shape legend: V old vocabulary, v new one, H hidden.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import ModelError
from lmdistill.students.prune import rebuilt

_ID_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, counts_V: Tensor, minimum: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Tensor]:
    """The model and tokenizer with fewer tokens, and the map from new ids to old ones, (v,).

    `counts_V` says how often the corpus uses each id. Raises ModelError for tokenizers other than byte-pair ones.
    """
    description = _description(tokenizer)
    kept_ids = kept_tokens(description, tokenizer, counts_V, minimum)
    new_ids = {int(old): new for new, old in enumerate(kept_ids.tolist())}
    smaller = _tokenizer(tokenizer, description, new_ids)
    state = {}
    plain: Any = model
    rows = plain.get_input_embeddings().weight.shape[0]
    for name, tensor in model.state_dict().items():
        is_table = name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight", "lm_head.bias"))
        state[name] = tensor[kept_ids.to(tensor.device)] if is_table and tensor.shape[0] == rows else tensor
    config = type(model.config).from_dict({**model.config.to_dict(), "vocab_size": len(kept_ids)})
    _remap(config, new_ids)
    made = rebuilt(model, config, state)
    if made.generation_config is not None:
        made.generation_config = type(made.generation_config).from_dict(made.generation_config.to_dict())
        _remap(made.generation_config, new_ids)
    return made, smaller, kept_ids


def kept_tokens(
    description: dict[str, Any], tokenizer: PreTrainedTokenizerBase, counts_V: Tensor, minimum: int
) -> Tensor:
    """The old ids that stay, ascending, (v,)."""
    vocabulary: dict[str, int] = description["model"]["vocab"]
    token_of = {identity: token for token, identity in vocabulary.items()}
    ranks = {pair: rank for rank, pair in enumerate(_merges(description))}
    stays = {int(identity) for identity in (counts_V >= minimum).nonzero().flatten() if int(identity) in token_of}
    special = {int(entry["id"]) for entry in description["added_tokens"]} | set(tokenizer.all_special_ids)
    single = {identity for token, identity in vocabulary.items() if len(token) == 1 or _is_byte(token)}
    for identity in list(stays):
        for piece in _path(token_of[identity], ranks):
            if piece in vocabulary:
                stays.add(vocabulary[piece])
    return torch.tensor(sorted(stays | single | special))


def _path(token: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Every piece that merging makes on its way from single characters to a token."""
    pieces, seen = list(token), []
    while len(pieces) > 1:
        pairs = [(ranks.get(pair, -1), place) for place, pair in enumerate(itertools.pairwise(pieces))]
        possible = [(rank, place) for rank, place in pairs if rank >= 0]
        if not possible:
            break
        _, place = min(possible)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        seen.append(pieces[place])
    return seen


def _description(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("student.vocabulary needs a fast tokenizer (tokenizer.json); this one is written in Python")
    description = json.loads(backend.to_str())
    if description["model"]["type"] != "BPE":
        raise ModelError(
            f"student.vocabulary can trim byte-pair tokenizers, not {description['model']['type']} ones; leave it out"
        )
    return cast(dict[str, Any], description)


def _tokenizer(
    tokenizer: PreTrainedTokenizerBase, description: dict[str, Any], new_ids: dict[int, int]
) -> PreTrainedTokenizerBase:
    model = description["model"]
    vocabulary = {token: new_ids[old] for token, old in model["vocab"].items() if old in new_ids}
    merges = [
        [left, right]
        for left, right in _merges(description)
        if left in vocabulary and right in vocabulary and left + right in vocabulary
    ]
    added = [{**entry, "id": new_ids[entry["id"]]} for entry in description["added_tokens"]]
    trimmed = {**description, "model": {**model, "vocab": vocabulary, "merges": merges}, "added_tokens": added}
    processor = json.loads(json.dumps(description.get("post_processor")))
    _remap_processor(processor, new_ids)
    trimmed["post_processor"] = processor
    backend = Tokenizer.from_str(json.dumps(trimmed))
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: str(getattr(tokenizer, name)) for name in names if getattr(tokenizer, name, None) is not None}
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=getattr(tokenizer, "clean_up_tokenization_spaces", False),
        **special,
    )
    made.chat_template = tokenizer.chat_template
    return made


def _merges(description: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [m.split(" ") if isinstance(m, str) else m for m in description["model"]["merges"]]
    return [(str(left), str(right)) for left, right in pairs]


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _remap_processor(node: Any, new_ids: dict[int, int]) -> None:
    """Special tokens of a post-processor name their ids."""
    if isinstance(node, dict):
        if isinstance(node.get("ids"), list):
            node["ids"] = [new_ids[identity] for identity in node["ids"]]
        for value in node.values():
            _remap_processor(value, new_ids)
    elif isinstance(node, list):
        for value in node:
            _remap_processor(value, new_ids)


def _remap(config: Any, new_ids: dict[int, int]) -> None:
    for name in _ID_FIELDS:
        old = getattr(config, name, None)
        if isinstance(old, int):
            setattr(config, name, new_ids.get(old))
        elif isinstance(old, list):
            setattr(config, name, [new_ids[identity] for identity in old if identity in new_ids])
