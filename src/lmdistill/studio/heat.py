"""A text that somebody typed, its tokens coloured by how far the student is from the teacher.

Shape legend: L tokens, n positions of one chunk, V vocabulary, H hidden.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from markupsafe import Markup
from torch import Tensor

from lmdistill.data import Document, RowEncoder
from lmdistill.errors import DataError, TokenizerMismatch
from lmdistill.models import last_hidden, output_head
from lmdistill.objectives.divergences import DIVERGENCES, find_divergence
from lmdistill.objectives.rows import LogitsView
from lmdistill.report.html import HEAT_LEVELS
from lmdistill.studio import page
from lmdistill.studio.shelf import Loaded
from lmdistill.trajectories.reader import context_of

LONGEST = 512
"""Tokens of the text that are read."""
TOP = 5
"""Likeliest tokens of each model that are named."""
NAMES = {
    "forward_kl": "KL(teacher‖student)",
    "reverse_kl": "KL(student‖teacher)",
    "jsd": "Jensen-Shannon",
    "total_variation": "total variation",
    "skew_forward_kl": "skewed KL(teacher‖student), 0.1",
    "skew_reverse_kl": "skewed KL(student‖teacher), 0.1",
    "alpha_beta": "alpha-beta, 0.2 and 0.7",
    "adaptive_kl": "adaptive KL, 0.5",
}
"""The divergences that can be chosen: all that depend on the two distributions alone."""
_SHARES = (0.05, 0.15, 0.35, 0.6, 0.85)
_CHUNK = 64

assert set(NAMES) <= set(DIVERGENCES)


@dataclass(frozen=True)
class HeatToken:
    """One token of the text and what both models expected in its place."""

    token: str
    value: float
    """The divergence, in nats (total variation: a share); NaN for the first token, which nothing predicts."""
    teacher_logprob: float
    student_logprob: float
    teacher_top: list[tuple[str, float]]
    """The likeliest tokens with their probabilities."""
    student_top: list[tuple[str, float]]


@dataclass(frozen=True)
class Heat:
    """A text that was looked at."""

    tokens: list[HeatToken]
    divergence: str
    cut: int
    """Tokens at its end that were not read."""

    @property
    def mean(self) -> float:
        """Mean divergence of the predicted tokens."""
        values = [token.value for token in self.tokens if math.isfinite(token.value)]
        return sum(values) / len(values) if values else math.nan


@torch.no_grad()
def heat_of(teacher: Loaded, student: Loaded, text: str, divergence: str) -> Heat:
    """Compare two models on a text, token by token, on the ids that they share.

    Where the student's vocabulary was trimmed, the teacher's distribution is renormalised over what was kept. Raises
    TokenizerMismatch for models that cut text otherwise, DataError for a text of fewer than two tokens.
    """
    encoder = RowEncoder(student.tokenizer)
    own_L = torch.as_tensor(encoder.prompt(Document(text=text, origin="text"), 2**20), dtype=torch.long)
    cut = max(0, len(own_L) - _longest(teacher, student))
    own_L = own_L[: len(own_L) - cut]
    if len(own_L) < 2:
        raise DataError(f"the text has {len(own_L)} tokens; type at least 2: nothing predicts the first")
    kept_V = _map(teacher, student)
    theirs_L = own_L if kept_V is None else kept_V[own_L]
    wanted = find_divergence(divergence)
    hidden = [_hidden(loaded, ids_L) for loaded, ids_L in ((teacher, theirs_L), (student, own_L))]
    tokens = [HeatToken(_named(student, int(own_L[0])), math.nan, math.nan, math.nan, [], [])]
    for first in range(0, len(own_L) - 1, _CHUNK):
        rows = slice(first, min(first + _CHUNK, len(own_L) - 1))
        log_t_nV = _logprobs(teacher, hidden[0][rows], kept_V, len(student.tokenizer))
        log_s_nV = _logprobs(student, hidden[1][rows], None, len(student.tokenizer))
        summands_nV, _ = wanted.summands(log_s_nV, log_t_nV, *wanted.context(log_s_nV, log_t_nV))
        targets_n = own_L[rows.start + 1 : rows.stop + 1]
        tokens += _tokens(student, targets_n, summands_nV.sum(-1), log_t_nV, log_s_nV)
    return Heat(tokens, divergence, cut)


def _longest(*models: Loaded) -> int:
    return min([LONGEST, *(limit for loaded in models if (limit := context_of(loaded.model)) is not None)])


def _map(teacher: Loaded, student: Loaded) -> Tensor | None:
    """The teacher's id of each of the student's; None where they are the same."""
    if teacher.tokenizer.get_vocab() == student.tokenizer.get_vocab():
        return None
    if student.kept_ids is not None and int(student.kept_ids.max()) < len(teacher.tokenizer):
        return student.kept_ids.long().cpu()
    raise TokenizerMismatch(
        f"{teacher.label} has {len(teacher.tokenizer)} tokens and {student.label} {len(student.tokenizer)}, and "
        "they are not the same ones: they cannot be set beside each other. Choose models of one tokenizer; a student "
        "with a trimmed vocabulary belongs on the student's side"
    )


def _hidden(loaded: Loaded, ids_L: Tensor) -> Tensor:
    device = loaded.model.device
    batch = {"input_ids": ids_L[None].to(device), "position_ids": torch.arange(len(ids_L), device=device)[None]}
    return last_hidden(loaded.model, batch)[0]


def _logprobs(loaded: Loaded, hidden_nH: Tensor, kept_V: Tensor | None, size: int) -> Tensor:
    head = output_head(loaded.model, size if kept_V is None else None)
    weight_VH = head.weight_VH[: head.vocabulary_size]
    bias_V = None if head.bias_V is None else head.bias_V[: head.vocabulary_size]
    logits_nV = F.linear(hidden_nH.to(weight_VH.dtype), weight_VH, bias_V).float()
    logits_nV = LogitsView(head.logit_scale, head.softcap).logits(logits_nV)
    if kept_V is not None:
        logits_nV = logits_nV[:, kept_V.to(logits_nV.device)]
    return logits_nV.log_softmax(-1).cpu()


def _tokens(
    student: Loaded, targets_n: Tensor, values_n: Tensor, log_t_nV: Tensor, log_s_nV: Tensor
) -> list[HeatToken]:
    tops = [log_nV.exp().topk(min(TOP, log_nV.shape[1]), dim=-1) for log_nV in (log_t_nV, log_s_nV)]
    found = []
    for row, target in enumerate(targets_n.tolist()):
        likeliest = [
            [(_named(student, i), p) for p, i in zip(top.values[row].tolist(), top.indices[row].tolist(), strict=True)]
            for top in tops
        ]
        logprobs = float(log_t_nV[row, target]), float(log_s_nV[row, target])
        found.append(HeatToken(_named(student, target), float(values_n[row]), *logprobs, *likeliest))
    return found


def _named(loaded: Loaded, token: int) -> str:
    return str(loaded.tokenizer.decode([token]))


def heat_page(heat: Heat, teacher: str, student: str) -> str:
    """The coloured text, what both models expected at the chosen token, and all of it as a table."""
    borders, said = _borders(heat)
    tokens = Markup("").join(_span(number, token, borders) for number, token in enumerate(heat.tokens))
    name = NAMES[heat.divergence]
    parts = [
        page.facts([("divergence", name), ("mean", f"{heat.mean:.4f}"), ("tokens", f"{len(heat.tokens)}")]),
        Markup('<div class="legend" aria-hidden="true">{}</div>').format(Markup("").join(said)),
        page.note("Point at a token, or go into the text with Tab and on with the arrow keys."),
        Markup(
            '<div class="heat" role="listbox" aria-label="Tokens coloured by {}">{}</div>'
            '<div class="tops" aria-live="polite"></div>'
        ).format(name, tokens),
        page.heading("The same as a table"),
        page.table(
            ("token", name, "teacher: likeliest", "student: likeliest", "teacher's p", "student's p"),
            [_row(token) for token in heat.tokens],
            f"Tokens with {name}; teacher {teacher}, student {student}",
            "heat",
        ),
    ]
    if heat.cut:
        parts.insert(0, page.note(f"The last {heat.cut} tokens were not read: the limit is {LONGEST}, or the models'."))
    return page.whole(*parts)


def _borders(heat: Heat) -> tuple[Sequence[float], list[Markup]]:
    """Where colours begin: fixed for the divergences without a bound, shares of the largest value for others."""
    values = [token.value for token in heat.tokens if math.isfinite(token.value)]
    fixed = heat.divergence in ("forward_kl", "reverse_kl", "adaptive_kl")
    borders = HEAT_LEVELS if fixed else [max(values, default=1.0) * share for share in _SHARES]
    named = [f"below {borders[0]:.3g}", *(f"from {border:.3g}" for border in borders)]
    return borders, [Markup('<span class="h{}">{}</span>').format(level, text) for level, text in enumerate(named)]


def _span(number: int, token: HeatToken, borders: Sequence[float]) -> Markup:
    level = sum(token.value >= border for border in borders) if math.isfinite(token.value) else 0
    value = f"{token.value:.3f}" if math.isfinite(token.value) else "not predicted"
    detail = {
        "token": quoted(token.token),
        "value": value,
        "teacher": [[quoted(name), round(100 * share, 1)] for name, share in token.teacher_top],
        "student": [[quoted(name), round(100 * share, 1)] for name, share in token.student_top],
    }
    return Markup(
        '<span class="t h{}" role="option" tabindex="{}" aria-label="{}: {}" data-detail="{}">{}</span>'
    ).format(level, 0 if number == 0 else -1, quoted(token.token), value, json.dumps(detail), page.shown(token.token))


def _row(token: HeatToken) -> list[page.Cell]:
    if not math.isfinite(token.value):
        return [quoted(token.token), None, None, None, None, None]
    tops = [
        ", ".join(f"{quoted(name)} {share:.1%}" for name, share in top)
        for top in (token.teacher_top, token.student_top)
    ]
    return [
        quoted(token.token),
        f"{token.value:.4f}",
        *tops,
        f"{math.exp(token.teacher_logprob):.2%}",
        f"{math.exp(token.student_logprob):.2%}",
    ]


def quoted(token: str) -> str:
    """A token between quotation marks, its line breaks visible."""
    return "“" + page.shown(token).replace("\n", "↵").replace("\t", "⇥") + "”"
