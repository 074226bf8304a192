"""A data card as Markdown; whatever a model or a server wrote is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from lmdistill.generation.data_card import DataCard, Spread
from lmdistill.generation.diversity import Diversity
from lmdistill.generation.escape import escape_markdown

_TEXT_SHOWN = 500
_MATCHES_SHOWN = 50


def data_card_markdown(card: DataCard) -> str:
    """The card for people, as one Markdown document."""
    lines = [f"# Data: {escape_markdown(card.name)}" if card.name else "# Data", ""]
    lines += [
        f"{card.accepted} rows were kept and {card.dropped} left out. The texts below come from models: they are "
        "shown, not endorsed.",
        "",
    ]
    lines += _section("Rows", _table(("task", "rows"), card.by_task.items()))
    lines += _section("Verification", _table(("verdict", "rows"), card.by_verdict.items()))
    lines += _section("Left out", _drops(card))
    passed = ", ".join(escape_markdown(check) for check in card.filters)
    lines += _section("Checks that every row passed", [passed or "none"])
    lines += _section("Words", _lengths(card))
    lines += _section("Variety", _variety(card))
    lines += _section("Cost", _costs(card))
    lines += _section("Teachers and their terms", _teachers(card))
    lines += _section("Overlap with evaluation sets", _contamination(card))
    lines += _section("Samples", _samples(card))
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]


def _table(head: Sequence[str], rows: object) -> list[str]:
    """A table; its cells are escaped here."""
    cells = [[escape_markdown(str(cell), _TEXT_SHOWN) for cell in row] for row in rows]  # type: ignore[attr-defined]
    if not cells:
        return ["none"]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *cells)]


def _drops(card: DataCard) -> list[str]:
    rows = []
    for check, dropped in card.drops.items():
        row, reason = dropped.examples[0]
        rows.append((check, dropped.count, f"{row}: {reason}"))
    return _table(("check", "rows", "for example"), rows)


def _lengths(card: DataCard) -> list[str]:
    sides: list[tuple[str, Spread | None]] = [("prompt", card.prompt_words), ("response", card.response_words)]
    rows = [(side, f"{s.min:g}", f"{s.median:g}", f"{s.max:g}") for side, s in sides if s is not None]
    lines = _table(("", "shortest", "median", "longest"), rows)
    if card.masked:
        masked = ", ".join(f"{count} {escape_markdown(kind)}" for kind, count in card.masked.items())
        lines += ["", f"Personal data that were masked: {masked}."]
    return lines


def _variety(card: DataCard) -> list[str]:
    sides: list[tuple[str, Diversity]] = [
        ("prompts (different ones)", card.prompt_diversity),
        ("responses", card.response_diversity),
    ]
    rows = [
        (side, d.texts, *map(_share, (d.distinct_1, d.distinct_2, d.distinct_first_words, d.self_rouge_l)), d.sample)
        for side, d in sides
    ]
    head = ("", "texts", "distinct-1", "distinct-2", "distinct first words", "self-ROUGE-L", "on a sample of")
    return [
        *_table(head, rows),
        "",
        "Self-ROUGE-L: mean ROUGE-L F1 of each text of the sample with the one most like it; lower is more varied.",
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _costs(card: DataCard) -> list[str]:
    costs = card.costs
    rows = [
        ("money (US $)", _money(costs.money), _money(card.cost_per_accepted)),
        ("calls", costs.calls, _rate(card.calls_per_accepted)),
        ("tokens", costs.tokens, _rate(card.tokens_per_accepted)),
    ]
    lines = _table(("", "in all", "for each kept row"), rows)
    lines += [
        "",
        f"{costs.prompt_tokens} prompt tokens ({costs.cached_tokens} from the server's cache) and "
        f"{costs.output_tokens} output tokens ({costs.reasoning_tokens} of them reasoning)"
        + ("." if costs.minutes is None else f", in {costs.minutes:.1f} minutes."),
    ]
    return lines


def _money(value: float | None) -> str:
    return "no price is known" if value is None else f"{value:.6f}"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _teachers(card: DataCard) -> list[str]:
    rows = [(note.model, note.examples, note.licence, note.note) for note in card.teachers]
    return _table(("model", "kept rows", "licence or terms", "note"), rows)


def _contamination(card: DataCard) -> list[str]:
    rows = [(match.row, match.matched, match.reason) for match in card.contamination[:_MATCHES_SHOWN]]
    lines = _table(("row that was left out", "evaluation row", "what they share"), rows)
    if card.contaminated > len(rows):
        lines += ["", f"{card.contaminated - len(rows)} more were left out."]
    return lines


def _samples(card: DataCard) -> list[str]:
    rows = [(sample.id, sample.task, sample.prompt, sample.response) for sample in card.samples]
    return _table(("row", "task", "prompt", "response"), rows)
