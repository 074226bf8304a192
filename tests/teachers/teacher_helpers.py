"""Tiny models, packed batches and the naive way from models to a loss: every row by itself, all logits, float64.

Shape legend: B batch, L length, N = B * L positions, V vocabulary, H student hidden.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lmdistill.data import Collator
from lmdistill.objectives import divergence
from lmdistill.teachers import Part

V = 61
KINDS = ["forward_kl", "reverse_kl", "jsd"]


def model(seed: int, *, vocabulary: int = V, hidden: int = 16, layers: int = 2, dropout: float = 0.0, **fields: Any):
    """A random Llama in float64, sharp enough to be told from another one."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        attention_dropout=dropout,
        **fields,
    )
    made = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(20)
        made.model.embed_tokens.weight.mul_(20)
    return made


def rows(count: int = 3, seed: int = 0, vocabulary: int = V) -> list[dict[str, Any]]:
    """Rows of two or three packed rows, whose first tokens, the prompt, are not trained."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        lengths = rng.integers(3, 9, rng.integers(2, 4))
        ids = rng.integers(0, vocabulary, lengths.sum())
        positions = np.concatenate([np.arange(n) for n in lengths])
        found.append(
            {
                "input_ids": ids.tolist(),
                "labels": np.where(positions < 2, -100, ids).tolist(),
                "position_ids": positions.tolist(),
                "row_ids": [f"doc{number}.{place}" for place in range(len(lengths))],
            }
        )
    return found


def batch(count: int = 3, seed: int = 0) -> dict[str, Any]:
    return Collator()(rows(count, seed))


def segments(given: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(row of the batch, first, end) of every packed row, padding included."""
    found = []
    for number, positions in enumerate(given["position_ids"]):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]
        found += [(number, first, end) for first, end in itertools.pairwise(starts)]
    return found


@torch.no_grad()
def naive(teacher: Any, given: dict[str, Any]) -> Tensor:
    """log p of the teacher at every position, every packed row read by itself, (N, V)."""
    width = given["input_ids"].shape[1]
    log_NV = torch.zeros(given["input_ids"].numel(), teacher(input_ids=torch.zeros(1, 1).long()).logits.shape[-1])
    log_NV = log_NV.double()
    for number, first, end in segments(given):
        part = given["input_ids"][None, number, first:end]
        log_NV[number * width + first : number * width + end] = teacher(input_ids=part).logits[0].log_softmax(-1)
    return log_NV


def trained(given: dict[str, Any]) -> Tensor:
    """Positions whose next token is trained, (N,)."""
    mask = torch.zeros(given["input_ids"].shape, dtype=torch.bool)
    mask[:, :-1] = given["labels"][:, 1:] != -100
    return mask.flatten()


def by_definition(kind: str, log_s: Tensor, log_t: Tensor) -> Tensor:
    """The divergence of each position, (N,)."""
    s, t = log_s.exp(), log_t.exp()
    if kind == "forward_kl":
        return (t * (log_t - log_s)).sum(-1)
    if kind == "reverse_kl":
        return (s * (log_s - log_t)).sum(-1)
    log_m = ((s + t) / 2).log()
    return ((t * (log_t - log_m)).sum(-1) + (s * (log_s - log_m)).sum(-1)) / 2


def student(positions: int, vocabulary: int = V, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Hidden states and a head that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, 12, generator=generator, dtype=torch.float64)
    head = torch.randn(vocabulary, 12, generator=generator, dtype=torch.float64)
    return hidden.requires_grad_(), head.requires_grad_()


def assert_same(part: Part, log_t_NV: Tensor, wanted_N: Tensor, kinds: list[str] = KINDS, **tolerance: float) -> None:
    """A part gives the loss and gradients of the naive teacher at the wanted positions, all of which it speaks of."""
    assert int(wanted_N.sum()) > 3
    if part.mask_N is not None:
        assert bool(part.mask_N[wanted_N].all())
    for kind in kinds:
        found, expected = student(len(log_t_NV), log_t_NV.shape[1]), student(len(log_t_NV), log_t_NV.shape[1])
        loss = divergence(found[0], found[1], part.signal, kind, mask_N=wanted_N)
        log_s = (expected[0] @ expected[1].T).log_softmax(-1)
        truth = by_definition(kind, log_s, log_t_NV)[wanted_N].mean()
        loss.backward()
        truth.backward()
        torch.testing.assert_close(loss, truth, **(tolerance or {"rtol": 1e-9, "atol": 1e-10}), check_dtype=False)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, **(tolerance or {"rtol": 1e-8, "atol": 1e-10}))
