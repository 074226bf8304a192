"""A coloured text as HTML: tokens that arrow keys go through, and all that colours say as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lmdistill.report.html import HEAT_LEVELS
from lmdistill.studio import page

LONGEST = 512
"""Tokens of the text that are read."""
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
