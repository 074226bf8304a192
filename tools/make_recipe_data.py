"""Write the small data set that recipes with privileged context or several teachers need.

    python tools/make_recipe_data.py             writes recipes/data/arithmetic.jsonl
    python tools/make_recipe_data.py --check     writes nothing; exit code 1 where the file differs

120 word problems in two steps, made from a seed; the text is part of this project, under its licence. Columns:

    prompt, response    the problem, and a worked solution that ends in the number
    feedback            what a wrong attempt did, and why it is wrong: computed, not written by a model
    rules               instructions that are the same in every row
    teacher             `products` where the problem multiplies, `main` elsewhere
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

TARGET = Path(__file__).parents[1] / "recipes" / "data" / "arithmetic.jsonl"
ROWS = 120
RULES = (
    "You explain arithmetic to a child. Use one short sentence for each step, write every sum out, and end with "
    "'The answer is' and the number."
)
NAMES = ("Ada", "Ben", "Carla", "Deniz", "Edo", "Farah", "Goran", "Hana", "Ivo", "Jun", "Kira", "Leo")
THINGS = ("apples", "books", "candles", "eggs", "marbles", "nails", "pencils", "shells", "stamps", "tickets")
BOXES = ("bags", "boxes", "crates", "jars", "packets")

Row = dict[str, str]


def shopping(chance: random.Random) -> Row:
    """Some, then more, then fewer."""
    name, thing = chance.choice(NAMES), chance.choice(THINGS)
    first, more = chance.randint(12, 80), chance.randint(5, 40)
    fewer = chance.randint(3, first)
    both = first + more
    return {
        "prompt": (
            f"{name} has {first} {thing}, buys {more} more and then gives {fewer} away. How many {thing} are left?"
        ),
        "response": (
            f"First {name} has {first} + {more} = {both} {thing}. Then {both} - {fewer} = {both - fewer} are left. "
            f"The answer is {both - fewer}."
        ),
        "feedback": (
            f"The attempt answered {both + fewer}. That is wrong: it added the {fewer} {thing} that were given away, "
            "which have to be subtracted."
        ),
        "teacher": "main",
    }


def boxes(chance: random.Random) -> Row:
    """So many boxes of so many, less some."""
    name, thing, box = chance.choice(NAMES), chance.choice(THINGS), chance.choice(BOXES)
    count, each = chance.randint(3, 12), chance.randint(4, 15)
    lost = chance.randint(2, each)
    whole = count * each
    return {
        "prompt": (
            f"{name} fills {count} {box} with {each} {thing} each and loses {lost} of them. How many {thing} remain?"
        ),
        "response": (
            f"{count} {box} of {each} are {count} x {each} = {whole} {thing}. Without the lost ones, {whole} - {lost} "
            f"= {whole - lost} remain. The answer is {whole - lost}."
        ),
        "feedback": (
            f"The attempt answered {count + each - lost}. That is wrong: it added {count} and {each}, but every one of "
            f"the {count} {box} holds {each}, so they have to be multiplied."
        ),
        "teacher": "products",
    }


def sharing(chance: random.Random) -> Row:
    """Two heaps together, shared out evenly."""
    one, other = chance.sample(NAMES, 2)
    thing, children = chance.choice(THINGS), chance.randint(3, 9)
    each = chance.randint(4, 14)
    first = chance.randint(1, children * each - 1)
    second = children * each - first
    return {
        "prompt": (
            f"{one} brings {first} {thing} and {other} brings {second}. They share them evenly among {children} "
            f"children. How many does each child get?"
        ),
        "response": (
            f"Together there are {first} + {second} = {first + second} {thing}. Shared among {children}, each child "
            f"gets {first + second} / {children} = {each}. The answer is {each}."
        ),
        "feedback": (
            f"The attempt answered {first + second}. That is wrong: it stopped at the number of all {thing} and did "
            f"not share them among the {children} children."
        ),
        "teacher": "products",
    }


def days(chance: random.Random) -> Row:
    """A difference, then a difference again."""
    name, thing = chance.choice(NAMES), chance.choice(THINGS)
    goal = chance.randint(60, 150)
    first, second = chance.randint(8, 25), chance.randint(8, 25)
    left = goal - first - second
    return {
        "prompt": (
            f"{name} wants to collect {goal} {thing} and finds {first} on Monday and {second} on Tuesday. How many "
            f"{thing} are still missing?"
        ),
        "response": (
            f"After Monday {goal} - {first} = {goal - first} {thing} are missing. After Tuesday {goal - first} - "
            f"{second} = {left} are missing. The answer is {left}."
        ),
        "feedback": (
            f"The attempt answered {first + second}. That is wrong: it is the number of {thing} that were found, not "
            "of those that are missing."
        ),
        "teacher": "main",
    }


KINDS: tuple[Callable[[random.Random], Row], ...] = (shopping, boxes, sharing, days)


def rows(seed: int = 0) -> list[Row]:
    """All rows, no problem twice."""
    chance = random.Random(seed)
    found: dict[str, Row] = {}
    while len(found) < ROWS:
        row = KINDS[len(found) % len(KINDS)](chance)
        found.setdefault(row["prompt"], {**row, "rules": RULES})
    return list(found.values())


def main() -> int:
    """Write the file, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file differs")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    if parser.parse_args().check:
        same = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        if not same:
            sys.stderr.write(f"{TARGET} differs: run python tools/make_recipe_data.py\n")
        return 0 if same else 1
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
