"""Write the small data sets that the recipes for chain of thought start from.

    python tools/make_reasoning_seeds.py             writes recipes/data/{sums,measures,passages,events,triples}.jsonl
    python tools/make_reasoning_seeds.py --check     writes nothing; exit code 1 where a file differs

Made from a seed; the text is part of this project, under its licence.

    sums        80 word problems in one step, with a solution: small enough for a small teacher to get many right
    measures    60 questions whose answer needs a fact (how many a dozen are), with a solution
    passages    the facts, one a passage, and others beside them that no question needs
    events      24 events with a PersonX, to which something is inferred
    triples     96 labelled triples of an event, a relation and what follows; every second one has the inference of
                another event, and is not valid
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "recipes" / "data"
NAMES = ("Ada", "Ben", "Carla", "Deniz", "Edo", "Farah", "Goran", "Hana", "Ivo", "Jun", "Kira", "Leo")
THINGS = ("apples", "books", "candles", "eggs", "marbles", "nails", "pencils", "shells", "stamps", "tickets")

MEASURES: dict[str, tuple[int, str, str]] = {
    "dozen": (12, "eggs", "A dozen is a set of twelve, 12. Eggs and rolls are often sold by the dozen."),
    "score": (20, "years", "A score is twenty, 20. Three score years are sixty."),
    "week": (7, "days", "A week has 7 days, from Monday to Sunday."),
    "fortnight": (14, "days", "A fortnight is two weeks, which is 14 days. The word comes from fourteen nights."),
    "decade": (10, "years", "A decade is a period of 10 years."),
    "century": (100, "years", "A century is a period of 100 years."),
    "gross": (144, "buttons", "A gross is a dozen dozens, 144. Shops used to order buttons by the gross."),
    "ream": (500, "sheets of paper", "A ream of paper holds 500 sheets."),
    "octave": (8, "notes", "An octave spans 8 notes of a scale."),
    "pair": (2, "gloves", "A pair is two of a kind, 2, such as gloves or shoes."),
}
OTHER_PASSAGES = (
    "The library opens at nine and closes when the sun goes down.",
    "Bread is made from flour, water, salt and a little yeast.",
    "A river carries water from the mountains down to the sea.",
    "Paper was first made in China about two thousand years ago.",
    "Hens lay most of their eggs in spring and summer.",
    "A piano has black and white keys; the white ones are named from A to G.",
    "The calendar that most countries use today was introduced in 1582.",
    "Wool is warm because it holds air between its fibres.",
)

EVENTS: dict[str, tuple[str, str]] = {
    "PersonX buys a bicycle.": ("to save some money", "rides it to work"),
    "PersonX bakes a cake.": ("to buy flour and sugar", "has something sweet to eat"),
    "PersonX loses the house keys.": ("to leave the house", "cannot open the front door"),
    "PersonX learns to swim.": ("to go to a pool", "is safer in deep water"),
    "PersonX adopts a dog.": ("to visit a shelter", "walks it every morning"),
    "PersonX misses the bus.": ("to walk to the bus stop", "arrives late"),
    "PersonX wins the race.": ("to train for months", "receives a medal"),
    "PersonX plants a tree.": ("to dig a hole", "waters it in summer"),
    "PersonX breaks a window.": ("to throw a ball", "sweeps up the glass"),
    "PersonX writes a letter.": ("to find pen and paper", "takes it to the post office"),
    "PersonX catches a cold.": ("to be near someone who is ill", "sneezes and stays in bed"),
    "PersonX moves to another city.": ("to pack everything into boxes", "meets new neighbours"),
    "PersonX cooks dinner for friends.": ("to invite them", "washes many dishes"),
    "PersonX forgets an umbrella.": ("to leave in a hurry", "gets wet in the rain"),
    "PersonX studies for the exam.": ("to borrow the textbook", "passes with a good grade"),
    "PersonX repairs the old clock.": ("to open its case", "hears it tick again"),
    "PersonX climbs a mountain.": ("to put on boots", "enjoys the view from the top"),
    "PersonX sells the car.": ("to advertise it", "takes the train from now on"),
    "PersonX paints the kitchen.": ("to choose a colour", "has paint on both hands"),
    "PersonX sings on a stage.": ("to practise the song", "hears the audience clap"),
    "PersonX reads a long novel.": ("to get it from the library", "knows how the story ends"),
    "PersonX burns the toast.": ("to put bread into the toaster", "smells smoke"),
    "PersonX finds a wallet.": ("to look at the ground", "brings it to the police"),
    "PersonX stays awake all night.": ("to drink a lot of coffee", "is tired the next day"),
}


def sums() -> list[dict[str, Any]]:
    """One addition or subtraction each."""
    chance, found = random.Random(1), dict[str, dict[str, Any]]()
    while len(found) < 80:
        name, thing = chance.choice(NAMES), chance.choice(THINGS)
        first, other = chance.randint(2, 12), chance.randint(1, 9)
        if len(found) % 2:
            first = max(first, other + 1)
            prompt = f"{name} has {first} {thing} and gives {other} away. How many {thing} are left?"
            steps, answer = f"{name} starts with {first} {thing}. {first} - {other} = {first - other}.", first - other
        else:
            prompt = f"{name} has {first} {thing} and buys {other} more. How many {thing} does {name} have now?"
            steps, answer = f"{name} starts with {first} {thing}. {first} + {other} = {first + other}.", first + other
        found.setdefault(prompt, {"prompt": prompt, "response": f"{steps} The answer is {answer}."})
    return list(found.values())


def measures() -> list[dict[str, Any]]:
    """How many things so many measures are."""
    chance, found = random.Random(2), dict[str, dict[str, Any]]()
    kinds = list(MEASURES)
    while len(found) < 60:
        kind = kinds[len(found) % len(kinds)]
        size, thing, _ = MEASURES[kind]
        count, name = chance.randint(2, 9), chance.choice(NAMES)
        many = {"century": "centuries", "gross": "gross"}.get(kind, f"{kind}s" if kind != "dozen" else kind)
        prompt = f"{name} counts {count} {many}. How many {thing} are that?"
        article = "An" if kind[0] in "aeiou" else "A"
        response = (
            f"{article} {kind} is {size} {thing}. {count} x {size} = {count * size}. The answer is {count * size}."
        )
        found.setdefault(prompt, {"prompt": prompt, "response": response})
    return list(found.values())


def passages() -> list[dict[str, Any]]:
    """The facts and what no question needs."""
    return [{"passage": text} for text in [fact for _, _, fact in MEASURES.values()] + list(OTHER_PASSAGES)]


def events() -> list[dict[str, Any]]:
    """The events alone."""
    return [{"prompt": event} for event in EVENTS]


def triples() -> list[dict[str, Any]]:
    """Valid and invalid triples in turn."""
    heads = list(EVENTS)
    rows = []
    for place, head in enumerate(heads):
        other = heads[(place + 7) % len(heads)]
        for relation, side in (("xNeed", 0), ("xEffect", 1)):
            for owner, valid in ((head, True), (other, False)):
                rows.append({"head": head, "relation": relation, "tail": EVENTS[owner][side], "valid": valid})
    return rows


FILES = {"sums": sums, "measures": measures, "passages": passages, "events": events, "triples": triples}


def texts() -> dict[Path, str]:
    """What each file holds."""
    return {
        FOLDER / f"{name}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
        for name, rows in FILES.items()
    }


def main() -> int:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    check = parser.parse_args().check
    stale = [path for path, text in texts().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check:
        sys.stderr.writelines(f"{path} differs: run python tools/make_reasoning_seeds.py\n" for path in stale)
        return 1 if stale else 0
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
