"""Losses of text that the student wrote, each beside what one would write by hand, in one run.

    .venv/bin/python benchmarks/policy.py [--json FILE] [--tokens 1024] [--repeats 5] [--dtype bfloat16]

From last hidden states to the gradients of hidden states and head, on the shape of SmolLM2's head (49,152 x 576):

    policy       clipped policy gradient (`policy_loss`)
    logprobs     log-probabilities of the tokens and their gradient (`token_logprobs`), as sequence losses need it
    frozen head  the same where the head is not trained
    minillm      reverse KL to a teacher and the policy gradient on the same tokens: one projection of the student

`by hand` makes the whole logits in the given precision and their log-softmax in float32, and leaves the rest to
autograd. Both take turns; medians of milliseconds and of ratios within a turn are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lmdistill.objectives import PolicyTerm, distillation_loss, policy_loss, token_logprobs
from lmdistill.signals import HiddenSignal

V, H = 49152, 576


def cases(tokens: int, dtype: torch.dtype) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """Ours and by hand, a scalar loss each."""
    g = torch.Generator().manual_seed(0)
    hidden, teacher = (torch.randn(tokens, H, generator=g).to(dtype) for _ in range(2))
    head, teacher_head = ((torch.randn(V, H, generator=g) * (4 / H**0.5)).to(dtype) for _ in range(2))
    ids, advantages = torch.randint(0, V, (tokens,), generator=g), torch.randn(tokens, generator=g)
    leaves = hidden.requires_grad_(), head.requires_grad_()
    old = token_logprobs(hidden.detach(), head.detach(), ids) - 0.1 * torch.randn(tokens, generator=g)

    def log_q(rows: Tensor) -> Tensor:
        return (hidden @ rows.T).float().log_softmax(-1)

    def own(log_q_NV: Tensor) -> Tensor:
        return log_q_NV.gather(1, ids[:, None])[:, 0]

    def clipped(own_N: Tensor) -> Tensor:
        ratio = (own_N - old).exp()
        return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()

    def minillm_by_hand() -> Tensor:
        log_q_NV, log_p_NV = log_q(head), (teacher @ teacher_head.T).float().log_softmax(-1)
        return (log_q_NV.exp() * (log_q_NV - log_p_NV)).sum(-1).mean() + clipped(own(log_q_NV))

    def minillm() -> Tensor:
        signal, policy = HiddenSignal(teacher, teacher_head), PolicyTerm(advantages, old)
        return distillation_loss(*leaves, signal, "reverse_kl", labels_N=ids, policy=policy).loss

    frozen = head.detach()
    return {
        "policy": (
            lambda: policy_loss(*leaves, ids, advantages, old_logprobs_N=old).loss,
            lambda: clipped(own(log_q(head))),
        ),
        "logprobs": (
            lambda: (token_logprobs(*leaves, ids) * advantages).mean(),
            lambda: (own(log_q(head)) * advantages).mean(),
        ),
        "frozen head": (
            lambda: (token_logprobs(hidden, frozen, ids) * advantages).mean(),
            lambda: (own(log_q(frozen)) * advantages).mean(),
        ),
        "minillm": (minillm, minillm_by_hand),
    }


def seconds(loss: Callable[[], Tensor]) -> tuple[float, float]:
    """Time of one loss with its gradients, and the loss."""
    start = time.perf_counter()
    value = loss()
    value.backward()
    return time.perf_counter() - start, float(value.detach())


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    rows = []
    print(f"{arguments.tokens} tokens, {arguments.dtype}, {torch.get_num_threads()} threads; milliseconds")
    for name, pair in cases(arguments.tokens, getattr(torch, arguments.dtype)).items():
        values = [seconds(loss)[1] for loss in pair]  # compiles too
        if abs(values[0] - values[1]) > 0.02 * max(1.0, abs(values[1])):
            raise SystemExit(f"{name}: the losses disagree, {values[0]} and {values[1]}")
        turns = [[seconds(loss)[0] for loss in pair] for _ in range(arguments.repeats)]
        ours, peer = (statistics.median(column) for column in zip(*turns, strict=True))
        ratio = statistics.median(hand / own for own, hand in turns)
        rows.append(
            {"case": name, "ours": ours, "limit": None, "peer": {"by_hand": peer}, "ratios": {"by_hand / ours": ratio}}
        )
        print(f"{name:12} ours {ours * 1e3:8.0f}   by hand {peer * 1e3:8.0f}   by hand / ours {ratio:5.2f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"tokens": arguments.tokens, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
