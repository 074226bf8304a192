"""Contrastive decoding against a naive loop that reads everything anew for each token."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmdistill.errors import DataError
from lmdistill.trajectories.contrastive import write_contrastively
from lmdistill.trajectories.reader import Reader

V = 37


def model(context: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def naive(teacher: LlamaForCausalLM, first: list[int], second: list[int], weight: float, most: int, ends: set[int]):
    text: list[int] = []
    for _ in range(most):
        logs = [
            torch.log_softmax(teacher(torch.tensor([ids + text])).logits[0, -1].double(), -1) for ids in (first, second)
        ]
        token = int((logs[0] - weight * logs[1]).argmax())
        if token in ends or int(logs[0].argmax()) in ends:
            break
        text.append(token)
    return text


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.5])
def test_texts_are_those_of_the_formula(weight: float) -> None:
    teacher = model()
    torch.manual_seed(4)
    prompts = [
        (torch.randint(0, V, (length,)).tolist(), torch.randint(0, V, (other,)).tolist())
        for length, other in ((5, 3), (1, 9), (7, 7), (4, 1), (6, 2))
    ]
    ends = {0, 1, 2}
    expected = [naive(teacher, first, second, weight, 10, ends) for first, second in prompts]
    assert len(set(map(len, expected))) > 1  # some end, at different places
    heard: list[int] = []
    readers = (Reader(teacher, V), Reader(teacher, V))
    found = write_contrastively(
        readers, prompts, weight=weight, max_new_tokens=10, end_ids=ends, batch_size=3, told=heard.append
    )
    assert found == expected
    assert heard == [3, 5]


def test_prompts_must_fit() -> None:
    teacher = model(context=16)
    readers = (Reader(teacher, V), Reader(teacher, V))
    with pytest.raises(DataError, match=r"a prompt of 12 tokens and up to 5 new ones .* 16"):
        write_contrastively(readers, [([1] * 12, [1])], weight=0.5, max_new_tokens=5, end_ids=[0])
    with pytest.raises(DataError, match="no tokens"):
        write_contrastively(readers, [([], [1])], weight=0.5, max_new_tokens=5, end_ids=[0])
