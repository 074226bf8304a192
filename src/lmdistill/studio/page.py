"""Pieces of HTML. Whatever comes from a file or a model is escaped, and characters that would act are made visible."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from lmdistill.report.html import visible

_ACTING = re.compile("[\x80-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
"""C1 controls, marks that turn the direction of writing, and characters without a width: they hide or reorder text."""

Cell = str | Markup | float | int | None


def shown(text: object) -> str:
    """Text that can only be read: control characters as pictures, invisible ones as their code point."""
    return _ACTING.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", visible(text))


def html(text: object) -> Markup:
    """Foreign text as HTML that shows it."""
    return Markup("{}").format(shown(text))


def note(text: object) -> Markup:
    """A remark in soft colour."""
    return Markup('<p class="soft">{}</p>').format(shown(text))


def problem(text: object) -> Markup:
    """An error, read out at once by screen readers."""
    return Markup('<p class="problem" role="alert"><b>Not done:</b> {}</p>').format(shown(text))


def heading(text: object, level: int = 3) -> Markup:
    """A heading."""
    return Markup("<h{0}>{1}</h{0}>").format(level, shown(text))


def table(headers: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str, name: str = "") -> Markup:
    """A table that scrolls inside its own box; the first cell of a row is its heading. `name` marks it for scripts."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(shown(each)) for each in headers)
    body = Markup("").join(_row(row) for row in rows)
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{0}" data-name="{1}"><table>'
        '<caption class="hidden">{0}</caption><thead><tr>{2}</tr></thead><tbody>{3}</tbody></table></div>'
    ).format(shown(caption), name, head, body)


def facts(values: Sequence[tuple[str, Cell]]) -> Markup:
    """Names and values below each other."""
    parts = (Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(shown(name), _cell(value)) for name, value in values)
    return Markup('<dl class="facts">{}</dl>').format(Markup("").join(parts))


def whole(*parts: str | Markup) -> str:
    """Parts as one page fragment. Raises TypeError for a part that was not escaped."""
    for part in parts:
        if not isinstance(part, Markup):
            raise TypeError("a part of a page is plain text; pass it through html()")
    return str(Markup('<div class="studio">{}</div>').format(Markup("\n").join(parts)))


def _row(row: Sequence[Cell]) -> Markup:
    first, rest = row[0], row[1:]
    cells = Markup("").join(Markup("<td>{}</td>").format(_cell(cell)) for cell in rest)
    return Markup('<tr><th scope="row">{}</th>{}</tr>').format(_cell(first), cells)


def _cell(value: Cell) -> Markup:
    if isinstance(value, Markup):
        return value
    return Markup("–") if value is None else html(value)
