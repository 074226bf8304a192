"""Text that could act on whoever shows it or reads it: role markers, injection, terminal escapes, active HTML.

Patterns find what is commonly written; they are no proof of harmlessness. That is why text of a model is escaped
wherever it is shown and fenced wherever it goes into a prompt (`lmdistill.generation.fence`), whatever this check says.
"""

from __future__ import annotations

import re

from lmdistill.generation.checks.base import Check, Finding, texts_of
from lmdistill.generation.types import Example
from lmdistill.recipe.generation_filters import MarkerFilter

CONTROL_TOKEN = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos)>|\[/?SYSTEM_PROMPT\]"
)
"""Control tokens of chat templates: a server may read them as such wherever they stand."""
_ROLES = re.compile(
    rf"{CONTROL_TOKEN.pattern}"
    r"|^[ \t]*(?:\#{2,}[ \t]*(?:instruction|input|response|system|user|assistant)[ \t]*:"
    r"|(?:human|user|assistant|system)[ \t]*:(?=[ \t\n]))",
    re.IGNORECASE | re.MULTILINE,
)
_INJECTION = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\s+(?:all\s+|any\s+|everything\s+)?(?:of\s+)?"
    r"(?:(?:the|your|my|these|those)\s+)?(?:previous|prior|above|earlier|preceding|former|existing|original)\s+"
    r"(?:\w+\s+)?(?:instructions?|prompts?|rules?|messages?|directions?|guidelines?|context)\b"
    r"|\b(?:ignore|disregard|forget)\s+(?:all\s+|everything\s+)?(?:of\s+)?(?:the\s+|your\s+)?(?:instructions?|rules?|guidelines?|above)\b"
    r"|\b(?:reveal|show|print|repeat|output|leak)\s+(?:me\s+)?(?:the|your)\s+(?:\w+\s+)?(?:system|initial|hidden)\s+(?:prompt|message|instructions?)\b"
    r"|\byou\s+are\s+now\s+(?:in\s+)?(?:dan|developer\s+mode|jailbroken|unrestricted)\b",
    re.IGNORECASE,
)
_ESCAPES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")
# every repetition has a bound or an end that shows at once: an answer of a megabyte must not take minutes
_HTML = re.compile(
    r"<\s{0,8}/?\s{0,8}(?:script|iframe|frame|object|embed|applet|meta|link|base|svg|form)\b"
    r"|<[a-z][^<>]{0,500}?\son[a-z]{3,20}\s*=|(?:href|src|action)\s*=\s*[\"']?\s*(?:javascript|vbscript|data)\s*:",
    re.IGNORECASE,
)
_NAMES = {
    "escapes": ("a control character", _ESCAPES),
    "roles": ("a role marker", _ROLES),
    "injection": ("a prompt injection", _INJECTION),
    "html": ("active HTML", _HTML),
}


class MarkerCheck(Check):
    """Drops rows with the kinds of markers that are not to be kept."""

    name = "markers"

    def __init__(self, spec: MarkerFilter) -> None:
        self._side = spec.side
        self._looked_for = [kind for kind in _NAMES if getattr(spec, kind) == "drop"]

    def look(self, example: Example) -> Finding | None:
        """A finding with the marker, its control characters spelled out."""
        for name, text in texts_of(example, self._side):
            for kind in self._looked_for:
                what, pattern = _NAMES[kind]
                found = pattern.search(text)
                if found:
                    shown = ascii(found.group(0).strip()[:60])
                    return Finding(f"{what} at character {found.start() + 1} of the {name}: {shown}")
        return None


def markers_in(text: str) -> dict[str, int]:
    """How many markers of each kind a text holds; kinds without one are left out."""
    counts = {kind: len(pattern.findall(text)) for kind, (_, pattern) in _NAMES.items()}
    return {kind: count for kind, count in counts.items() if count}
