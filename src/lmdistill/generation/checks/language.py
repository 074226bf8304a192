"""Which language a text is in, by its script and its frequent words.

A heuristic without a model. It knows sixteen languages. It cannot tell apart languages that share a script outside
those (Ukrainian counts as Russian, Persian as Arabic, Danish as nothing), and says nothing of texts with fewer than
eight words, of sums, and of code.
"""

from __future__ import annotations

import re

from lmdistill.generation.checks.base import Check, Finding, texts_of
from lmdistill.generation.types import Example
from lmdistill.recipe.generation_filters import LanguageFilter

_SCRIPTS = {
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\u1100-\u11ff\uac00-\ud7af]"),
    "zh": re.compile(r"[\u4e00-\u9fff\u3400-\u4dbf]"),
    "ru": re.compile(r"[\u0400-\u04ff]"),
    "ar": re.compile(r"[\u0600-\u06ff]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "el": re.compile(r"[\u0370-\u03ff]"),
    "hi": re.compile(r"[\u0900-\u097f]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
}
"""Languages by script; Han characters beside Japanese syllables are Japanese."""
_FREQUENT = {
    "en": "the of and to is that it was for with as his on be at by this have from are which not you what were there "
    "can their an if would they how each will about then them been has he she we my your who",
    "de": "der die und das ist nicht ich ein eine zu den mit sich auf für dem von es im auch als wird sie wir aus "
    "bei dass sind oder werden haben einen einer kann war hat nach wie wenn über zum zur",
    "fr": "le la les et des une est que pour dans qui sur pas avec ce il elle au aux sont par plus ne se nous vous "
    "mais ou cette être ont leur du était ses deux fait peut",
    "es": "el los las y que es una por con para del se no su al lo como más pero sus le ha este si porque esta son "
    "entre está cuando muy sin sobre ser también hay desde",
    "it": "il di che è la per un una non sono del della con si le da come anche più ma gli nel alla dei questo ha "
    "lo se al delle nella essere stato ci",
    "pt": "o os as e que é uma um para com não do da dos das em por mais se como mas ao foi ele ela são à na no seu "
    "sua ou quando muito já também pelo",
    "nl": "het een van en de is dat niet op te zijn voor met die aan hij ook er maar om wordt bij als nog uit door "
    "naar heeft deze wat je ze worden kan werd",
}
_COMMON = {language: frozenset(words.split()) for language, words in _FREQUENT.items()}
_LATIN_WORD = re.compile(r"[a-zà-öø-ÿœ']+")
_FEWEST_WORDS, _FEWEST_CHARACTERS = 8, 8
_SMALLEST_SHARE, _LEAD = 0.15, 1.25


class LanguageCheck(Check):
    """Drops texts of which it can tell that they are in another language."""

    name = "language"

    def __init__(self, spec: LanguageFilter) -> None:
        self._spec = spec

    def look(self, example: Example) -> Finding | None:
        """A finding where a text is in a language that is not wanted; none where it cannot tell."""
        for name, text in texts_of(example, self._spec.side):
            language = guess_language(text)
            if language is not None and language not in self._spec.languages:
                return Finding(f"the {name} is in {language!r} by its script and words, not in {self._spec.languages}")
        return None


def guess_language(text: str) -> str | None:
    """The language (ISO 639-1) where most letters are of one script or its frequent words lead clearly, else None."""
    letters = sum(c.isalpha() for c in text)
    for language, script in _SCRIPTS.items():
        count = len(script.findall(text))
        if language == "ja" and count:  # syllables mark Japanese even where most characters are Han
            count += len(_SCRIPTS["zh"].findall(text)) if count * 5 >= letters else 0
        if count >= _FEWEST_CHARACTERS and count * 2 > letters:
            return language
    words = _LATIN_WORD.findall(text.lower())
    if len(words) < _FEWEST_WORDS:
        return None
    shares = sorted(
        ((sum(word in common for word in words) / len(words), language) for language, common in _COMMON.items()),
        reverse=True,
    )
    (best, language), (second, _) = shares[:2]
    return language if best >= _SMALLEST_SHARE and best >= _LEAD * second else None
