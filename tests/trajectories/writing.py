"""What the tests of written text share: tiny models, prompts, and writing token by token without any cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lmdistill.trajectories.sampling import uniform_draws

VOCABULARY = 37
ENDS = (3, 11, 19, 30)


def tiny(kind: str = "llama", seed: int = 0, layers: int = 2) -> torch.nn.Module:
    """A random model of 37 real ids and 3 padded ones, in float64: what differs, differs for a reason."""
    torch.manual_seed(seed)
    common = {"vocab_size": VOCABULARY + 3, "bos_token_id": 1, "eos_token_id": list(ENDS), "pad_token_id": 0}
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 96,
        "initializer_range": 0.5,
    }
    if kind == "llama":
        model: torch.nn.Module = LlamaForCausalLM(LlamaConfig(**common, **sizes))
    elif kind == "gemma":  # one layer of two sees 5 tokens only
        kinds = ["sliding_attention", "full_attention"] * (layers // 2)
        model = Gemma3ForCausalLM(Gemma3TextConfig(**common, **sizes, sliding_window=5, layer_types=kinds))
    else:  # learned positions
        model = GPT2LMHeadModel(GPT2Config(**common, n_embd=16, n_layer=layers, n_head=4, n_positions=96))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8)
    return model.double().eval()


def prompts(count: int, shortest: int = 1, longest: int = 20) -> list[list[int]]:
    """Prompts of mixed lengths."""
    random = np.random.default_rng(count)
    lengths = random.integers(shortest, longest + 1, count)
    return [random.integers(4, VOCABULARY, length).tolist() for length in lengths]


def names(count: int) -> list[str]:
    return [f"row {number}" for number in range(count)]


@torch.no_grad()
def log_probs(model: torch.nn.Module, ids: Sequence[int]) -> np.ndarray:
    """The next token's log-probabilities over the real ids, from a whole forward pass in float64."""
    logits = model(torch.tensor([list(ids)])).logits[0, -1, :VOCABULARY]
    return logits.double().log_softmax(-1).numpy()


def pick(probs: np.ndarray, uniform: float) -> int:
    """Inversion in the order of the ids, as one would write it."""
    return int(min(np.searchsorted(np.cumsum(probs) / probs.sum(), uniform, side="right"), len(probs) - 1))


def shaped(logs: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Probabilities at a temperature, cut to the nucleus."""
    if temperature == 0:
        return np.eye(len(logs))[logs.argmax()]
    probs = np.exp(logs / temperature - (logs / temperature).max())
    probs /= probs.sum()
    order = np.argsort(-probs)
    before = np.cumsum(probs[order]) - probs[order]
    probs[order[before >= top_p]] = 0
    return probs / probs.sum()


def write_naively(
    model: torch.nn.Module, prompt: Sequence[int], place: int, *, seed: int, limit: int, temperature: float = 1.0
) -> tuple[list[int], list[float]]:
    """One text, token by token, without a cache, by the draws that the writers use; and its log-probabilities."""
    draws = uniform_draws(seed, place, 0, limit)
    answer: list[int] = []
    logprobs = []
    for uniform in draws:
        logs = log_probs(model, [*prompt, *answer])
        answer.append(pick(shaped(logs, temperature, 1.0), uniform))
        logprobs.append(float(logs[answer[-1]]))
        if answer[-1] in ENDS:
            break
    return answer, logprobs
