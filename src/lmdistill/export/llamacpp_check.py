"""A real llama.cpp with an exported file: does it cut text alike, say the same, and how fast does it write?

Shape legend: L length, V vocabulary.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import ModelError
from lmdistill.evaluation.export_results import LlamaCppCheck
from lmdistill.recipe import LlamaCppSpec
from lmdistill.teachers.llamacpp import LlamaCppServer, serve_llamacpp

PROBES = (
    "Hello world, this is a test.",
    "In 1969 two people walked on the moon; 12,345 watched.",
    "  two spaces, a\ttab and a\nnew line\n\n",
    "naïve café — “quotes” and €5",
    "日本語とעברית 🙂",
    "def f(x): return x**2  # comment",
    "I'll, you've, DON'T",
)
"""Texts that tell ways of cutting apart."""
_WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Spoken:
    """What llama.cpp wrote after one prompt."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float] | None
    """None where a character was written in several tokens: llama.cpp tells nothing of those before its last one, and
    what it tells cannot be put beside the tokens without guessing."""
    text: str
    tokens_per_second: float


def can_check() -> bool:
    """Whether xllamacpp is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def check_with_llamacpp(
    file: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    threads: int | None = None,
) -> tuple[LlamaCppCheck, float]:
    """Let llama.cpp continue prompts greedily, and look at each of its tokens with transformers.

    `model` holds the weights of the file in float32: whatever differs then is llama.cpp's arithmetic, or a mistake of
    the export. Returns what was found and new tokens a second (the median prompt). Raises ModelError where llama.cpp
    refuses the file.
    """
    context = min(512, int(getattr(model.config, "max_position_embeddings", 512)))
    with serve_llamacpp(str(file), LlamaCppSpec(context=max(64, context), parallel=1, threads=threads)) as server:
        equal = sum(_tokenized(server, probe) == _own(tokenizer, probe) for probe in PROBES)
        spoken = [
            _continued(server, [int(n) for n in prompt][: context - new_tokens], new_tokens) for prompt in prompts
        ]
    found = [_beside(model, one) for one in spoken]
    differences = [difference for one, _ in found for difference in one]
    speeds = sorted(one.tokens_per_second for one in spoken)
    check = LlamaCppCheck(
        version=version("xllamacpp"),
        probes=len(PROBES),
        probes_equal=equal,
        tokens=sum(len(one.tokens) for one in spoken),
        tokens_equal=sum(equal for _, equal in found),
        mean_difference=sum(differences) / len(differences) if differences else None,
        max_difference=max(differences, default=None),
        answer=spoken[0].text if spoken else "",
    )
    return check, speeds[len(speeds) // 2] if speeds else 0.0


def _own(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _tokenized(server: LlamaCppServer, text: str) -> list[int]:
    found: list[int] = _ask(server, "/tokenize", {"content": text, "add_special": False, "parse_special": True})[
        "tokens"
    ]
    return found


def _continued(server: LlamaCppServer, prompt: list[int], new_tokens: int) -> Spoken:
    asked = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0.0, "top_k": 1, "n_probs": 1}
    answer = _ask(server, "/completion", {**asked, "return_tokens": True, "cache_prompt": False})
    said = answer.get("completion_probabilities") or []
    tokens = [int(number) for number in answer["tokens"]]
    whole = [int(one["id"]) for one in said] == tokens
    return Spoken(
        prompt=prompt,
        tokens=tokens,
        logprobs=[float(one["logprob"]) for one in said] if whole else None,
        text=str(answer.get("content", "")),
        tokens_per_second=float(answer["timings"]["predicted_per_second"] or 0.0),
    )


@torch.no_grad()
def _beside(model: PreTrainedModel, spoken: Spoken) -> tuple[list[float], int]:
    """How far llama.cpp's log-probabilities are from transformers', and how many tokens are transformers' top too."""
    if not spoken.tokens:
        return [], 0
    ids = torch.tensor([[*spoken.prompt, *spoken.tokens]], device=model.device)
    logs_LV = model(input_ids=ids[:, :-1]).logits[0, len(spoken.prompt) - 1 :].float().log_softmax(-1)
    tokens_L = torch.tensor(spoken.tokens, device=logs_LV.device)
    equal = int((logs_LV.argmax(-1) == tokens_L).sum())
    if spoken.logprobs is None:
        return [], equal
    own_L = logs_LV.gather(-1, tokens_L[:, None])[:, 0]
    return (own_L.cpu() - torch.tensor(spoken.logprobs)).abs().tolist(), equal


def _ask(server: LlamaCppServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request. Raises ModelError."""
    address = urlsplit(server.base_url)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=_WAIT_SECONDS)
    headers = {"Content-Type": "application/json", "Authorization": server.secret.header()}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        data = response.read()
        value = json.loads(data)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ModelError(f"llama.cpp does not answer with the exported file ({type(error).__name__})") from error
    finally:
        connection.close()
    if response.status != 200 or not isinstance(value, dict):
        raise ModelError(f"llama.cpp refuses {path} with status {response.status}: {data[:200]!a}")
    return value
