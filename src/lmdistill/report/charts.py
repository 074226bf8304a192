"""The charts of the page, as plotly figures in plain values.

Colours are placeholders that plotly accepts; the page's script puts the theme's colours in their place, light or dark.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from lmdistill.report.responses import answered_texts
from lmdistill.report.run_data import RunData, steps_of

_NAMES = ("teacher", "student", "none", "sft", "extra", "soft")
PLACEHOLDERS = {name: f"rgb(0,1,{number})" for number, name in enumerate(_NAMES)}
"""Colour of the theme -> what stands for it in the figures."""
COLOURS = {role: PLACEHOLDERS[role] for role in ("teacher", "student", "none", "sft")}
LABELS = {
    "teacher": "teacher",
    "student": "student",
    "none": "student before training",
    "sft": "fine-tuned without the teacher",
}
_DASHES = ("solid", "dash", "dashdot", "longdash")
_SERIES = tuple(PLACEHOLDERS[name] for name in ("student", "none", "extra", "teacher"))


def all_charts(run: RunData) -> dict[str, dict[str, Any]]:
    """Every chart that this run has data for, by its name in the template."""
    makers = {
        "quality": quality,
        "loss": loss_curves,
        "parts": part_curves,
        "heldout": heldout_curves,
        "frequency": by_frequency,
        "reliability": reliability,
        "exposure": exposure,
        "rouge": rouge_by_length,
        "layers": layer_importance,
        "cost": cost,
    }
    made = {name: maker(run) for name, maker in makers.items()}
    return {name: figure.to_plotly_json() for name, figure in made.items() if figure is not None}


def quality(run: RunData) -> go.Figure | None:
    """Bits per byte against decoding speed; the size of a point is the number of parameters."""
    models = [m for m in run.evaluation.models if m.efficiency and m.texts] if run.evaluation else []
    if not models:
        return None
    figure = go.Figure()
    largest = max(m.efficiency.parameters for m in models if m.efficiency)
    for text_number, text in enumerate(run.texts):
        for model in models:
            assert model.efficiency is not None
            scores = model.texts[text]
            figure.add_scatter(
                x=[model.efficiency.decode_tokens_per_second],
                y=[scores.bits_per_byte.value],
                mode="markers",
                name=LABELS[model.role],
                legendgroup=model.role,
                showlegend=text_number == 0,
                marker={
                    "color": COLOURS[model.role],
                    "size": 14 + 26 * model.efficiency.parameters / largest,
                    "symbol": "circle" if text_number == 0 else "diamond",
                    "opacity": 0.85,
                },
                hovertemplate=f"{LABELS[model.role]}, {text}<br>%{{y:.3f}} bits/byte<br>%{{x:.1f}} /s<extra></extra>",
            )
    return _laid_out(figure, "decoding speed, tokens/s", "bits per byte")


def loss_curves(run: RunData) -> go.Figure | None:
    """The loss of every stage against the tokens that were read."""
    return _curves(run, [("loss", "")], "loss, nats a token")


def part_curves(run: RunData) -> go.Figure | None:
    """The parts of the student's loss."""
    parts = [
        ("divergence", "divergence from the teacher"),
        ("cross_entropy", "cross-entropy"),
        ("hidden_cosine", "cosine"),
    ]
    return _curves(run, parts, "nats a token", leave_out="sft")


def _curves(run: RunData, parts: list[tuple[str, str]], title: str, leave_out: str | None = None) -> go.Figure | None:
    figure = go.Figure()
    number = 0
    for stage, events in steps_of(run.events).items():
        if stage == leave_out:
            continue
        for part, label in parts:
            values = [event.get(part) for event in events]
            if not any(isinstance(value, float) and value != 0 for value in values):
                continue
            figure.add_scatter(
                x=[event.get("tokens", 0) for event in events],
                y=[value if isinstance(value, float) else None for value in values],
                mode="lines",
                name=f"{stage}: {label}" if label else stage,
                line={"color": PLACEHOLDERS["sft"] if stage == "sft" else _SERIES[number % len(_SERIES)], "width": 2},
            )
            number += 1 if stage != "sft" else 0
    return _laid_out(figure, "tokens read", title) if figure.data else None


def heldout_curves(run: RunData) -> go.Figure | None:
    """Perplexity of the held-out texts while training goes."""
    figure = go.Figure()
    for number, (stage, events) in enumerate(steps_of(run.events, "heldout").items()):
        for text in dict.fromkeys(event.get("text") for event in events):
            own = [event for event in events if event.get("text") == text]
            figure.add_scatter(
                x=[event.get("step") for event in own],
                y=[event.get("perplexity") for event in own],
                mode="lines+markers",
                name=f"{stage}: {text}",
                line={"color": _SERIES[number % len(_SERIES)]},
            )
    return _laid_out(figure, "step", "perplexity") if figure.data else None


def by_frequency(run: RunData) -> go.Figure | None:
    """Agreement with the teacher by how often the token occurs in the training text."""
    figure = go.Figure()
    for model in run.evaluation.models if run.evaluation else ():
        if model.role == "teacher" or not model.texts:
            continue
        bands = next(iter(model.texts.values())).by_frequency
        if bands:
            figure.add_bar(
                x=[f"{band.label}<br>({band.tokens:,})" for band in bands],
                y=[100 * band.agreement for band in bands],
                name=LABELS[model.role],
                marker={"color": COLOURS[model.role]},
                hovertemplate="%{y:.1f} %<extra></extra>",
            )
    if not figure.data:
        return None
    return _laid_out(figure, f"times in the training text (tokens of {run.texts[0]})", "agreement with the teacher, %")


def reliability(run: RunData) -> go.Figure | None:
    """How often a model is right at each level of confidence."""
    figure = go.Figure()
    for model in run.evaluation.models if run.evaluation else ():
        if not model.texts:
            continue
        bins = next(iter(model.texts.values())).calibration
        figure.add_scatter(
            x=[found.confidence for found in bins],
            y=[found.accuracy for found in bins],
            mode="lines+markers",
            name=LABELS[model.role],
            line={"color": COLOURS[model.role]},
        )
    if not figure.data:
        return None
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="perfect", line={"color": PLACEHOLDERS["soft"], "dash": "dot"}
    )
    return _laid_out(figure, f"confidence in the top choice ({run.texts[0]})", "share that is right")


def exposure(run: RunData) -> go.Figure | None:
    """Excess error against the length of what was written; the first text with its interval, others in dashes."""
    figure = go.Figure()
    texts = answered_texts(run)
    for model in run.evaluation.models if run.evaluation else ():
        for number, text in enumerate(texts):
            scores, colour = model.responses[text], COLOURS[model.role]
            if not scores.exposure:
                continue
            lengths = [point.length for point in scores.exposure]
            band = [point.excess.high for point in scores.exposure], [point.excess.low for point in scores.exposure]
            # Plotly cannot make a theme's colour transparent: the interval is drawn as thin lines at its borders.
            for border in band if number == 0 else ():
                figure.add_scatter(
                    x=lengths,
                    y=border,
                    mode="lines",
                    line={"color": colour, "width": 1, "dash": "dot"},
                    opacity=0.5,
                    legendgroup=model.role,
                    showlegend=False,
                    hoverinfo="skip",
                )
            figure.add_scatter(
                x=lengths,
                y=[point.excess.value for point in scores.exposure],
                mode="lines",
                name=LABELS[model.role],
                legendgroup=model.role,
                showlegend=number == 0,
                line={"color": colour, "width": 2, "dash": _DASHES[number % len(_DASHES)]},
                customdata=[point.answers for point in scores.exposure],
                hovertemplate=f"{text}: %{{y:+.1f}} % at %{{x}} tokens<br>%{{customdata}} answers<extra></extra>",
            )
    if not figure.data:
        return None
    return _laid_out(figure, "tokens written", "excess error, %")


def rouge_by_length(run: RunData) -> go.Figure | None:
    """ROUGE-L to the teacher's answers by how long these are, on the first text."""
    figure = go.Figure()
    texts = answered_texts(run)
    for model in run.evaluation.models if run.evaluation and texts else ():
        buckets = model.responses[texts[0]].by_teacher_length
        if buckets:
            figure.add_bar(
                x=[f"{bucket.label}<br>({bucket.answers:,})" for bucket in buckets],
                y=[bucket.rouge.value for bucket in buckets],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [bucket.rouge.high - bucket.rouge.value for bucket in buckets],
                    "arrayminus": [bucket.rouge.value - bucket.rouge.low for bucket in buckets],
                    "color": PLACEHOLDERS["soft"],
                    "thickness": 1.5,
                },
                name=LABELS[model.role],
                marker={"color": COLOURS[model.role]},
                hovertemplate="%{y:.3f}<extra></extra>",
            )
    if not figure.data:
        return None
    return _laid_out(figure, f"words of the teacher's answer ({texts[0]})", "ROUGE-L to the teacher's")


def layer_importance(run: RunData) -> go.Figure | None:
    """How much each layer of the teacher is missed, and which were kept."""
    student = run.student or {}
    scores = student.get("layer_importance") or {}
    if not scores:
        return None
    kept = set(student.get("kept_layers") or ())
    figure = go.Figure()
    for label, colour, inside in (("kept", PLACEHOLDERS["student"], True), ("removed", PLACEHOLDERS["none"], False)):
        chosen = [index for index in map(int, scores) if (index in kept) == inside]
        figure.add_bar(
            x=chosen,
            y=[scores[str(index)] for index in chosen],
            name=label,
            marker={"color": colour},
            hovertemplate="layer %{x}: %{y:.3f}<extra></extra>",
        )
    return _laid_out(figure, "layer of the teacher", f"importance ({student.get('importance', '')})")


def cost(run: RunData) -> go.Figure | None:
    """Minutes by stage."""
    stages = (run.accounting or {}).get("stages") or []
    if not stages:
        return None
    figure = go.Figure()
    figure.add_bar(
        x=[stage["seconds"] / 60 for stage in stages][::-1],
        y=[stage["name"] for stage in stages][::-1],
        orientation="h",
        marker={"color": PLACEHOLDERS["student"]},
        hovertemplate="%{y}: %{x:.1f} min<extra></extra>",
    )
    return _laid_out(figure, "minutes", "", legend=False)


def _laid_out(figure: go.Figure, x: str, y: str, legend: bool = True) -> go.Figure:
    return figure.update_layout(
        template="none",
        margin={"l": 56, "r": 12, "t": 12, "b": 56},
        height=340,
        xaxis={"title": {"text": x}, "automargin": True},
        yaxis={"title": {"text": y}, "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        showlegend=legend,
        barmode="group",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
