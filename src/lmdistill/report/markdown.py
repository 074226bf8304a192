"""Text from models, data and recipes inside Markdown: shown, never obeyed."""

from __future__ import annotations

import html
import re

_SPECIAL = re.compile(r"([\\`*_\[\]|#~!])")


def one_line(text: object) -> str:
    """Text without line breaks; control characters and marks of direction are made visible."""
    joined = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "�" for c in joined)


def plain(text: object) -> str:
    """Text as Markdown that renders as just this text: no markup, no HTML, no link."""
    escaped = _SPECIAL.sub(r"\\\1", html.escape(one_line(text), quote=False))
    # A bare address would become a link: a character without width keeps it text.
    return re.sub(r"(?i)\b(https?|ftp)(://)|\b(www)(\.)", lambda m: f"{m[1] or m[3]}&#8203;{m[2] or m[4]}", escaped)


def code(text: object) -> str:
    """Text as code inside a line, in a table too."""
    shown = one_line(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{pad}{shown}{pad}{fence}".replace("|", "\\|")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table; the cells are Markdown already."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]
