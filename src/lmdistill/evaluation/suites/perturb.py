"""Edits that change how a text looks and not what it says, after AdvGLUE's three levels (2111.02840): characters
(TextBugger, 1812.05271), words (synonyms as TextFooler's, 1907.11932, and inflections as Morpheus's), and sentences
(CheckList and StressTest: something irrelevant is added).

Every edit is made once and shown to all models alike: what is measured is how a model bears edits, not how hard an
optimiser searched against it. Words that carry the label are never touched (`lmdistill.evaluation.suites.preserve`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection

from lmdistill.evaluation.suites.words import DISTRACTORS, HOMOGLYPHS, NEIGHBOURS, SYNONYMS
from lmdistill.recipe import EditKind

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SHORTEST = 4


def edit(text: str, kind: EditKind, protected: Collection[str], share: float, draw: random.Random) -> str | None:
    """An edited text, or None where nothing in it may be edited.

    `protected` are words in lower case that stay as they are; `share` is how many of the words are touched, at least
    one (a sentence edit adds one sentence).
    """
    if kind == "sentence":
        return f"{text.rstrip()} {draw.choice(DISTRACTORS)}"
    change = _misspelt if kind == "character" else _replaced
    words = list(_WORD.finditer(text))
    free = [match for match in words if match[0].lower() not in protected and change(match[0], random.Random(0))]
    if not free:
        return None
    count = min(len(free), max(1, round(share * len(words))))
    chosen = sorted(draw.sample(free, count), key=lambda match: match.start(), reverse=True)
    for match in chosen:
        made = change(match[0], draw)
        if made is not None:
            text = text[: match.start()] + made + text[match.end() :]
    return text


def _misspelt(word: str, draw: random.Random) -> str | None:
    """One slip inside a word: a neighbouring key, two letters swapped, one dropped or doubled, or a look-alike."""
    if len(word) < _SHORTEST or not word.isalpha():
        return None
    place = draw.randrange(1, len(word) - 1)
    slips: list[Callable[[str, int, random.Random], str | None]] = [_key, _swap, _drop, _double, _lookalike]
    draw.shuffle(slips)
    return next((made for slip in slips if (made := slip(word, place, draw)) is not None and made != word), None)


def _key(word: str, place: int, draw: random.Random) -> str | None:
    near = NEIGHBOURS.get(word[place].lower())
    return None if near is None else word[:place] + draw.choice(near) + word[place + 1 :]


def _swap(word: str, place: int, draw: random.Random) -> str | None:
    if place + 1 >= len(word) - 1 and place < 2:
        return None
    left = min(place, len(word) - 2)
    return word[:left] + word[left + 1] + word[left] + word[left + 2 :]


def _drop(word: str, place: int, draw: random.Random) -> str | None:
    return word[:place] + word[place + 1 :]


def _double(word: str, place: int, draw: random.Random) -> str | None:
    return word[: place + 1] + word[place:]


def _lookalike(word: str, place: int, draw: random.Random) -> str | None:
    other = HOMOGLYPHS.get(word[place])
    return None if other is None else word[:place] + other + word[place + 1 :]


def _replaced(word: str, draw: random.Random) -> str | None:
    """A synonym, or for longer words another inflection, in the case of the original."""
    lower = word.lower()
    options = SYNONYMS.get(lower, ())
    made = draw.choice(options) if options else _inflected(lower)
    if made is None or made == lower:
        return None
    return made.capitalize() if word[0].isupper() and word[1:].islower() else made if word.islower() else None


def _inflected(word: str) -> str | None:
    """Without or with the s of plural and third person, where that is all the ending is; other words are left alone."""
    if len(word) < 6 or not word.isascii() or not word.isalpha():
        return None
    if word.endswith("s"):
        stem = word[:-1]
        return stem if stem[-1] in "bdfgklmnprtw" or stem.endswith(("age", "ine", "ore", "ote", "ute")) else None
    return f"{word}s" if word.endswith(("ment", "tion", "age", "ine", "ent")) else None
