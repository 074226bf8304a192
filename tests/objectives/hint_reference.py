"""Hints by their definitions, in float64, position by position: what the fast ones must equal in loss and gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def counted(mask: Tensor) -> Iterator[tuple[int, ...]]:
    return (tuple(place) for place in mask.nonzero().tolist())


def mean(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else (like[..., :0].sum())


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm() if bool((vector != 0).any()) else torch.zeros_like(vector)


def vectors(x: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([x[place] for place in counted(mask)]) if mask.any() else x.reshape(-1, x.shape[-1])[:0]


def hidden_mse(s: Tensor, t: Tensor, mask: Tensor, reduction: str = "mean") -> Tensor:
    width = s.shape[-1] if reduction == "mean" else 1
    return mean([((s[i] - t[i]) ** 2).sum() / width for i in counted(mask)], s)


def hidden_cosine(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    return mean([1 - unit(s[i]) @ unit(t[i]) for i in counted(mask)], s)


def hidden_normalised_mse(s: Tensor, t: Tensor, mask: Tensor, reduction: str = "mean") -> Tensor:
    width = s.shape[-1] if reduction == "mean" else 1
    return mean([((unit(s[i]) - unit(t[i])) ** 2).sum() / width for i in counted(mask)], s)


def hidden_residual_mse(s: Tensor, t: Tensor, mask: Tensor, reduction: str = "mean") -> Tensor:
    width = s.shape[-1] if reduction == "mean" else 1
    values = []
    for i in counted(mask):
        value = ((s[i] - t[i]) ** 2).sum() / width
        values.append(value / (t[i] ** 2).sum() if bool((t[i] != 0).any()) else value * 0)
    return mean(values, s)


def gram(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    return fsp((s, s), (t, t), mask)


def fsp(s: tuple[Tensor, Tensor], t: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    values = []
    for row in range(len(mask)):
        if mask[row].any():
            flows = []
            for first, second in (s, t):
                outer = [torch.outer(first[row, place], second[row, place]) for (place,) in counted(mask[row])]
                flows.append(torch.stack(outer).mean(0))
            values.append(((flows[0] - flows[1]) ** 2).mean())
    return mean(values, s[0])


def similarity(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    values = []
    for row in range(len(mask)):
        places = [place for (place,) in counted(mask[row])]
        pairs = [
            (s[row, i] @ s[row, j] / s.shape[-1] - t[row, i] @ t[row, j] / t.shape[-1]) ** 2
            for i in places
            for j in places
        ]
        if pairs:
            values.append(torch.stack(pairs).mean())
    return mean(values, s)


def cka(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    x, y = (vectors(each, mask) for each in (s, t))
    x, y = (each - each.mean(0) for each in (x, y)) if len(x) else (x, y)
    own, other = (x.t() @ x).norm(), (y.t() @ y).norm()
    if len(x) < 2 or not bool(own > 0) or not bool(other > 0):
        return s[..., :0].sum()
    return 1 - (x.t() @ y).norm() ** 2 / (own * other)


def distances(x: Tensor) -> Tensor:
    zero = x.new_zeros(())
    found = torch.stack(
        [torch.stack([(a - b).norm() if bool((a != b).any()) else zero for b in x.unbind()]) for a in x.unbind()]
    )
    apart = found[found > 0]
    return found / apart.mean() if len(apart) else found


def huber(x: Tensor, y: Tensor) -> Tensor:
    difference = (x - y).abs()
    return torch.where(difference < 1, 0.5 * difference**2, difference - 0.5).mean()


def rkd_distance(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    x, y = (vectors(each, mask) for each in (s, t))
    return huber(distances(x), distances(y)) if len(x) > 1 else s[..., :0].sum()


def angles(x: Tensor) -> Tensor:
    return torch.stack([unit(a - b) @ unit(c - b) for b in x.unbind() for a in x.unbind() for c in x.unbind()])


def rkd_angle(s: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    x, y = (vectors(each, mask) for each in (s, t))
    return huber(angles(x), angles(y)) if len(x) > 1 else s[..., :0].sum()


def contrastive(s: Tensor, t: Tensor, mask: Tensor, temperature: float = 0.07) -> Tensor:
    x, y = (vectors(each, mask) for each in (s, t))
    values = []
    for number, own in enumerate(x.unbind()):
        logits = torch.stack([unit(own) @ unit(key) / temperature for key in y.unbind()])
        values.append(logits.logsumexp(0) - logits[number])
    return mean(values, s)


def attention_scores_mse(
    s: Tensor, t: Tensor, mask: Tensor, reduction: str = "published", heads: str = "each"
) -> Tensor:
    values = []
    for b, q in counted(mask):
        rows = [torch.where(x[b, :, q] <= -100, 0.0, x[b, :, q]) for x in (s, t)]
        seen = (s[b, :, q] > -100) & (t[b, :, q] > -100) if heads == "each" else None
        if heads == "mean":
            seen = ((s[b, :, q] > -100).any(0) & (t[b, :, q] > -100).any(0))[None]
            rows = [row.mean(0, keepdim=True) for row in rows]
        square = (rows[0] - rows[1]) ** 2
        assert seen is not None
        if reduction == "published":
            values.append(square.mean())
        else:
            values.append(square[seen].mean() if seen.any() else square.sum() * 0)
    return mean(values, s)


def _probabilities(x: Tensor, heads: str) -> Tensor:
    """(A, L) of one query, masked keys at 0."""
    x = torch.where(x < -1e4, -torch.inf, x)
    x = (x - x.amax(-1, keepdim=True)).exp()
    x = x / x.sum(-1, keepdim=True)
    return x.mean(0, keepdim=True) if heads == "mean" else x


def attention_mse(s: Tensor, t: Tensor, mask: Tensor, heads: str = "each") -> Tensor:
    values = []
    for b, q in counted(mask):
        p, r = _probabilities(s[b, :, q], heads), _probabilities(t[b, :, q], heads)
        values.append(((p - r) ** 2).sum(-1).mean())
    return mean(values, s)


def attention_kl(s: Tensor, t: Tensor, mask: Tensor, heads: str = "each") -> Tensor:
    values = []
    for b, q in counted(mask):
        p, r = _probabilities(s[b, :, q], heads), _probabilities(t[b, :, q], heads)
        there = r > 0
        values.append((r[there] * (r[there].log() - p[there].log())).sum() / len(r))
    return mean(values, s)


def relation_kl(
    s: Tensor, t: Tensor, mask: Tensor, segments: Tensor, relation_heads: int, causal: bool = False
) -> Tensor:
    values = []
    for b, q in counted(mask):
        seen = [
            k for k in range(mask.shape[1]) if segments[b, k] == segments[b, q] >= 0 and (k <= q or not causal)
        ] or [q]
        for head in range(relation_heads):
            logs = []
            for x in (s, t):
                flat = x[b].reshape(mask.shape[1], relation_heads, -1)[:, head]
                scores = torch.stack([flat[q] @ flat[k] for k in seen]) / math.sqrt(flat.shape[-1])
                logs.append(scores - scores.logsumexp(0))
            values.append((logs[1].exp() * (logs[1] - logs[0])).sum())
    return mean(values, s)


def attribution_distance(s: Tensor, t: Tensor, mask: Tensor, top: int) -> Tensor:
    values = []
    for b in range(len(mask)):
        if not mask[b].any():
            continue
        maps = []
        for x in (s, t):
            entries = []
            for c in range(x.shape[1]):
                for (place,) in counted(mask[b]):
                    largest = x[b, c, place][x[b, c, place].abs().argsort(descending=True)[:top]]
                    entries.append(largest.norm() if bool((largest != 0).any()) else largest.sum() * 0)
            maps.append(unit(torch.stack(entries)))
        values.append(((maps[0] - maps[1]) ** 2).sum())
    return mean(values, s)
