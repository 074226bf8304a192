"""Choosing among options: by the likelihood of each, or by what a written answer names last.

Shape legend: I items, C options.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmdistill.evaluation.speakers import Speaker, Told
from lmdistill.evaluation.statistics import Floats
from lmdistill.evaluation.suites.items import NLI_LABELS, Item

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NLI_WORDS = dict(zip(NLI_LABELS, ("true", "neither", "false"), strict=True))

Style = Literal["cloze", "letters"]
"""How free options are put: as continuations of the question, or listed, their letter being the continuation."""


@dataclass(frozen=True)
class Asked:
    """One item as a text with its continuations."""

    text: str
    continuations: tuple[str, ...]
    by_length: bool
    """Whether longer options are made up for their length: options that are texts of their own."""


@dataclass(frozen=True)
class Choices:
    """What one model chose."""

    chosen_I: NDArray[np.int64]
    """-1: none, where an answer names no option."""
    probabilities: list[Floats]
    """Of the options of each item, renormalised over them; empty for written answers."""


def is_class_like(item: Item) -> bool:
    """Whether its options are labels that other items share: a class, yes or no, an NLI label."""
    return not item.question or item.options == NLI_LABELS or set(item.options) <= {"yes", "no", "maybe"}


def ask(item: Item, style: Style = "cloze") -> Asked:
    """The text and the continuations whose likelihoods are compared."""
    head = f"{item.passage}\n" if item.passage else ""
    if item.options == NLI_LABELS:
        text = f"{head}Statement: {item.question}\nIs the statement true, false, or neither? The statement is"
        return Asked(text, tuple(f" {_NLI_WORDS[option]}" for option in item.options), False)
    if not item.question:
        return Asked(f"Review: {item.passage}\nOverall, the review is", tuple(f" {o}" for o in item.options), False)
    mark = "" if item.question.endswith("?") or not is_class_like(item) else "?"
    if style == "letters" and not is_class_like(item):
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, item.options, strict=False))
        letters = tuple(f" {LETTERS[n]}" for n in range(len(item.options)))
        return Asked(f"{head}Question: {item.question}\n{listed}\nAnswer:", letters, False)
    options = tuple(f" {option}" for option in item.options)
    return Asked(f"{head}Question: {item.question}{mark}\nAnswer:", options, not is_class_like(item))


def choose(speaker: Speaker, items: Sequence[Item], batch_size: int, told: Told, style: Style = "cloze") -> Choices:
    """The likeliest option of each item; free options by log-probability a byte (lm-eval's acc_norm)."""
    asked = [ask(item, style) for item in items]
    pairs = [(one.text, continuation) for one in asked for continuation in one.continuations]
    said = iter(speaker.likelihoods(pairs, batch_size, told))
    chosen, probabilities = [], []
    for one in asked:
        logs_C = np.array([next(said).logprob for _ in one.continuations])
        bytes_C = np.array([len(text.strip().encode()) for text in one.continuations])
        chosen.append(int(np.argmax(logs_C / bytes_C if one.by_length else logs_C)))
        probabilities.append(np.exp(logs_C - np.logaddexp.reduce(logs_C)))
    return Choices(np.array(chosen, dtype=np.int64), probabilities)


def written_prompt(item: Item) -> str:
    """The item as an instruction whose answer reasons and names an option at its end."""
    if item.options == NLI_LABELS:
        task = f"Text: {item.passage}\nStatement: {item.question}\nIs the statement an entailment of the text, a "
        task += "contradiction of it, or neutral?"
        names = ", ".join(item.options)
    elif not item.question:
        task, names = f"Review: {item.passage}\nWhat is the sentiment of this review?", ", ".join(item.options)
    elif is_class_like(item):
        task = f"{item.passage}\nQuestion: {item.question}?".strip()
        names = ", ".join(item.options)
    else:
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, item.options, strict=False))
        task = f"{item.passage}\nQuestion: {item.question}\n{listed}".strip()
        names = ", ".join(LETTERS[: len(item.options)])
    return f'{task}\nThink step by step, then end with "Answer:" and one of: {names}.\n'


def letter_prompt(item: Item) -> str:
    """The item as an instruction whose answer is an option's letter, or its name where options are classes."""
    if is_class_like(item):
        asked, names = ask(item).text.rsplit("\n", 1)[0], "one of these words: " + ", ".join(item.options)
    else:
        asked, _, _ = ask(item, "letters").text.rpartition("\nAnswer:")
        names = "the letter of the right answer"
    return f"{asked}\nReply with {names}, and nothing else.\nAnswer:"


def named_option(item: Item, text: str) -> int:
    """Place of the option that a written answer names: behind the last `Answer:`, else the last one named; -1: none."""
    options = item.options if is_class_like(item) else tuple(LETTERS[: len(item.options)])
    flags = re.IGNORECASE if is_class_like(item) else 0
    pattern = re.compile(rf"\b({'|'.join(re.escape(option) for option in options)})\b", flags)
    _, marked, behind = text.rpartition("nswer:")
    found = pattern.search(behind) if marked else None
    every = [found] if found else list(pattern.finditer(text))
    return [option.lower() for option in options].index(every[-1].group(1).lower()) if every else -1
