"""Text of a model inside Markdown: shown as it is, with no effect on page or terminal."""

from __future__ import annotations

import re
import unicodedata

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$=:^@/])")
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Control, format (direction marks, zero width), surrogate and private characters, separators of lines."""


def escape_markdown(text: str, limit: int | None = None) -> str:
    """One line of Markdown that shows `text`, cut at `limit` characters.

    Signs of Markdown get a backslash, those of HTML become entities, and characters that are not seen are spelled out
    (`\\x1b` for the escape character, `\\n` for a line break), so that the file is harmless in page and terminal.
    """
    if limit is not None and len(text) > limit:
        text = text[:limit] + "…"
    parts = []
    for c in text:
        if unicodedata.category(c) in _UNSEEN:
            parts.append(c.encode("unicode_escape").decode("ascii"))
        else:
            parts.append(" " if c.isspace() else c)
    shown = _MARKDOWN.sub(r"\\\1", "".join(parts))
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
