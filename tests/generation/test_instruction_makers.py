"""The makers of instructions: what of the teacher's answers becomes a row, what is dropped and why.

Answers are written by hand here, so that every branch is met; the recipes of the same makers run on a real teacher's
recorded answers in test_recipes_run.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdistill.errors import RecipeError
from lmdistill.generation.adversarial import judge, make_adversarial
from lmdistill.generation.answers import make_answers
from lmdistill.generation.desk import Desk, filled
from lmdistill.generation.entities import make_entities
from lmdistill.generation.evolve import make_evolved
from lmdistill.generation.instructions import InstructionPool, numbered
from lmdistill.generation.one_pass import make_alpaca, make_topics
from lmdistill.generation.refine import make_refined
from lmdistill.generation.reflect import ifd, make_reflected, reversed_ifd
from lmdistill.generation.self_instruct import make_self_instruct
from lmdistill.generation.types import Drop, Example, Seed
from lmdistill.recipe import DataGenerationSpec, InstructionsSpec
from lmdistill.teachers.api_types import Answer, Request, Usage

Say = Callable[[Request], str | None]
COLOURS = ("red", "blue", "green", "white", "black", "pink", "grey", "gold")


class Written:
    """A teacher whose answers a function writes; None is an answer that was cut."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.asked: list[Request] = []

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        for request in requests:
            self.asked.append(request)
            text = self.say(request)
            key = f"{len(self.asked):064x}"
            error = None if text is not None else "cut at its limit of tokens; raise max_tokens"
            finish = "stop" if error is None else "length"
            yield Answer(request, text, None, finish, Usage(), None, error, key, 0.0, True, model="written")


def desk_of(say: Say, **spec: object) -> tuple[Desk, Written]:
    teacher = Written(say)
    return Desk(DataGenerationSpec.model_validate(spec), teacher, seed=3), teacher


def parted(found: Iterable[Example | Drop]) -> tuple[list[Example], list[Drop]]:
    rows = list(found)
    return [row for row in rows if isinstance(row, Example)], [row for row in rows if isinstance(row, Drop)]


def text_of(request: Request) -> str:
    return request.messages[-1].content


SEEDS = [
    Seed("a", "Name a colour of the rainbow.", "Red", {"instruction": "Name a colour of the rainbow.", "input": ""}),
    Seed("b", "Explain how bread is baked at home.", "Mix, knead, wait, bake.", {}),
    Seed("c", "Write a letter to an old friend.", "Dear friend, ...", {}),
]


def test_answers_are_rows_and_cut_ones_are_drops() -> None:
    desk, teacher = desk_of(lambda request: None if "bread" in text_of(request) else " Yes. ", ask={"samples": 2})
    rows, drops = parted(make_answers(desk, SEEDS))
    assert [row.response for row in rows] == ["Yes."] * 4
    assert [row.id for row in rows] == ["a-0", "a-1", "c-0", "c-1"]
    assert [drop.example.prompt for drop in drops] == [SEEDS[1].prompt] * 2
    assert all(drop.by == "answer" and "cut" in drop.reason for drop in drops)
    assert [request.sample for request in teacher.asked] == [0, 1] * 3
    assert rows[0].provenance.teacher == "written"
    assert rows[0].provenance.requests == (f"{1:064x}",)


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_filled_template_holds_values_as_they_are(one: str, other: str) -> None:
    assert filled("<{a}|{b}|{c}>", a=one, b=other) == f"<{one}|{other}|{{c}}>"


def test_numbered_lists_are_read_in_order() -> None:
    assert numbered("1. Sing a song.\n2) Say\n  a word.\nTask 3: Stop.") == ["Sing a song.", "Say a word.", "Stop."]
    assert numbered("no list at all") == []


def test_the_pool_refuses_what_is_short_impossible_or_known() -> None:
    pool = InstructionPool(InstructionsSpec(), ["Write a short story about a brave little mouse."])
    assert pool.against("Go home") == ("an instruction of 2 words, not 3 to 150", None)
    reason = pool.against("Describe the picture of a tree.")
    assert reason is not None
    assert "'picture'" in reason[0]
    near = pool.against("Write a short story about a brave little cat.")
    assert near is not None
    assert near[0].startswith("ROUGE-L 0.89")
    assert near[1] == "pool:1"
    assert pool.against("Explain why the moon has phases.") is None
    pool.add("Explain why the moon has phases.")
    assert pool.against("Explain why the moon has phases.") is not None


def self_instruct_say(request: Request) -> str:
    text = text_of(request)
    if text.startswith("Here are tasks"):
        return " Decide if a sentence is happy or sad.\n5. List the planets in order.\n6. Draw a picture of a cat."
    if text.startswith("Does this task"):
        return "yes" if "happy or sad" in text else "no"
    if "chooses a label" in text:
        return "Label: happy\nInput: I won a prize today!"
    return "Input: none\nOutput: Mercury, Venus, Earth, Mars."


def test_self_instruct_makes_labels_before_inputs_and_other_inputs_before_outputs() -> None:
    desk, teacher = desk_of(
        self_instruct_say, maker="self_instruct", instructions={"wanted": 2, "requests": 1, "per_request": 3}
    )
    rows, drops = parted(make_self_instruct(desk, SEEDS))
    assert [(row.prompt, row.response) for row in rows] == [
        ("Decide if a sentence is happy or sad.\n\nI won a prize today!", "happy"),
        ("List the planets in order.", "Mercury, Venus, Earth, Mars."),
    ]
    assert [row.fields["classification"] for row in rows] == [True, False]
    assert [drop.by for drop in drops] == ["instruction"]
    assert "picture" in drops[0].reason
    shown = text_of(teacher.asked[0])
    assert all(seed.prompt in shown for seed in SEEDS)
    assert teacher.asked[0].sampling.stop == ("\n7.",)
    assert len(rows[0].provenance.requests) == 2


def test_self_instruct_shows_people_and_model_mixed_and_stops_at_its_requests() -> None:
    seeds = [Seed(str(n), f"Task of people number {n} about subject {n * 7}.", "x") for n in range(9)]
    count = 0

    def say(request: Request) -> str:
        nonlocal count
        if text_of(request).startswith("Here are tasks"):
            count += 1
            return f" Invent the wonderful machine {'abcdefgh'[count]} {count * 31}."
        return "no" if text_of(request).startswith("Does this") else "Input: none\nOutput: done."

    spec = {"wanted": 50, "requests": 5, "wave": 1, "per_request": 1, "novelty": 1.0}
    desk, teacher = desk_of(say, maker="self_instruct", instructions=spec)
    rows, _ = parted(make_self_instruct(desk, seeds))
    lists = [text_of(request) for request in teacher.asked if text_of(request).startswith("Here are tasks")]
    assert len(lists) == 5
    assert lists[0].count("Task of people") == 8
    assert lists[-1].count("Task of people") == 6
    assert lists[-1].count("Invent the wonderful") == 2
    assert len(rows) == 5


def test_alpaca_takes_whole_tasks_from_one_answer() -> None:
    tasks = [
        {"instruction": "Count the letters in the word.", "input": "tree", "output": "4"},
        {"instruction": "Name a colour of the rainbow.", "input": "", "output": "Blue"},
        {"instruction": "Say something about winter nights.", "input": "<noinput>", "output": ""},
    ]
    desk, teacher = desk_of(
        lambda request: json.dumps({"tasks": tasks}), maker="alpaca", instructions={"requests": 1, "wanted": 5}
    )
    rows, drops = parted(make_alpaca(desk, SEEDS))
    assert [(row.prompt, row.response) for row in rows] == [("Count the letters in the word.\n\ntree", "4")]
    assert [drop.reason.split(" with")[0] for drop in drops] == ["ROUGE-L 1.00", "it has no output"]
    assert teacher.asked[0].schema is not None
    assert teacher.asked[0].schema["properties"]["tasks"]["maxItems"] == 3


def test_topics_are_named_in_the_request_and_instructions_answered() -> None:
    def say(request: Request) -> str:
        if request.schema is not None:
            return json.dumps({"instructions": ["Tell how bees find flowers.", "Tell how bees find the flowers."]})
        return "By smell and colour."

    desk, teacher = desk_of(say, maker="topics", instructions={"topics": ["bees"], "requests": 1})
    rows, drops = parted(make_topics(desk, SEEDS))
    assert "about: bees." in text_of(teacher.asked[0])
    assert [(row.prompt, row.response) for row in rows] == [("Tell how bees find flowers.", "By smell and colour.")]
    assert rows[0].fields["topics"] == ["bees"]
    assert len(drops) == 1
    desk, _ = desk_of(say, maker="topics")
    with pytest.raises(RecipeError, match=r"set generation\.instructions\.topics"):
        list(make_topics(desk, SEEDS))


def test_evolution_eliminates_and_its_parents_go_on() -> None:
    def say(request: Request) -> str:
        text = text_of(request)
        if text.startswith("Do these two"):
            return "equal" if "bread is" in text else "different"
        if text.startswith(("Rewrite", "Read the instruction")):
            if "bread is" in text:
                return "Explain how bread is baked at your home."
            return "This is the rewritten task" if "letter" in text else "Name two colours of the rainbow and say why."
        return "Sorry, no." if "say why" in text and "two" in text else "An answer."

    desk, teacher = desk_of(say, maker="evolve", evolve={"generations": 1})
    rows, drops = parted(make_evolved(desk, SEEDS))
    assert rows == []
    assert sorted(drop.reason for drop in drops) == [
        "it asks for the same as the instruction before it",
        "it copies words of the request: 'rewritten'",
        "the answer says sorry in 2 words, fewer than 80",
    ]
    desk, teacher = desk_of(
        lambda request: "different" if text_of(request).startswith("Do these") else "Do one thing more, in verse.",
        maker="evolve",
        evolve={"generations": 2, "operations": ["deepen"]},
    )
    rows, _ = parted(make_evolved(desk, SEEDS[:1]))
    assert [row.fields["operations"] for row in rows] == [["deepen"], ["deepen", "deepen"]]
    assert all(row.seed == "a" for row in rows)
    assert "Do one thing more" in text_of(teacher.asked[3])


def pool_of(count: int) -> list[Example]:
    return [Example(f"p{n}", f"Question number {n} about matter {n * 13}", f"long answer {n}") for n in range(count)]


def test_the_referee_sees_both_orders_and_the_margin_decides() -> None:
    def say(request: Request) -> str:
        # The referee likes the teacher's answers, wherever they stand, and the first place a little.
        first = text_of(request).index("long answer") < text_of(request).index("short")
        return json.dumps({"first": 9, "second": 4} if first else {"first": 5, "second": 8})

    desk, teacher = desk_of(say, maker="adversarial", rounds=2)
    desk.round, desk.earlier = 2, pool_of(4)
    desk.writer = lambda prompts: ["short" for _ in prompts]
    judged, spoiled = judge(desk)
    assert spoiled == []
    assert [each.gap for each in judged] == [(9 + 8) / 2 - (4 + 5) / 2] * 4
    assert len(teacher.asked) == 8


def test_lion_makes_as_many_hard_as_easy_instructions_and_counts_what_cannot_be_judged() -> None:
    fresh = 0

    def say(request: Request) -> str | None:
        nonlocal fresh
        text = text_of(request)
        if request.schema is not None:
            if "number 0 " in text:
                return None
            hard = any(f"number {n} " in text for n in (1, 2))
            both = {"first": 9, "second": 1} if text.index("long") < text.index("short") else {"first": 1, "second": 9}
            return json.dumps(both if hard else {"first": 5, "second": 5})
        if "brand new instruction" in text:
            fresh += 1
            return f"Tell {fresh * 17} tales of {COLOURS[fresh % len(COLOURS)]} {fresh}"
        return "the teacher's answer"

    desk, _ = desk_of(say, maker="adversarial", rounds=2, adversarial={"new_per_kind": 2})
    desk.round, desk.earlier = 2, pool_of(5)
    desk.writer = lambda prompts: ["short" for _ in prompts]
    rows, drops = parted(make_adversarial(desk, []))
    assert [row.fields["kind"] for row in rows] == ["hard", "hard", "easy", "easy"]
    assert {row.fields["parent"] for row in rows[:2]} <= {"p1", "p2"}
    assert {row.fields["parent"] for row in rows[2:]} <= {"p3", "p4"}
    assert [drop.by for drop in drops].count("answer") == 1
    assert "there are 2 new hard ones already" in {drop.reason for drop in drops}
    first, _ = desk_of(say, maker="adversarial", rounds=2)
    assert [row.response for row in parted(make_adversarial(first, SEEDS))[0]] == ["the teacher's answer"] * 3


def test_entities_must_stand_in_the_passage_and_absent_types_have_no_entity() -> None:
    said = {
        "Ada met Ben in Rome.": [("Ada", "person"), ("Ben", "Person"), ("Rome", "city"), ("Paris", "city")],
        "The Nile is long.": [("Nile", "river")],
    }
    seeds = [Seed(f"s{n}", text) for n, text in enumerate(said)]

    def say(request: Request) -> str:
        found = next(value for text, value in said.items() if text in text_of(request))
        return json.dumps({"entities": [{"entity": entity, "type": kind} for entity, kind in found]})

    desk, _ = desk_of(say, maker="entities", entities={"negatives": 1})
    rows, drops = parted(make_entities(desk, seeds))
    assert [json.loads(row.response) for row in rows if not row.fields["negative"]] == [
        ["Ada", "Ben"],
        ["Rome"],
        ["Nile"],
    ]
    negative = [row for row in rows if row.fields["negative"]]
    assert [row.fields["type"] for row in negative[:1]] == ["river"]
    assert negative[1].fields["type"] in ("person", "city")
    assert all(row.response == "[]" for row in negative)
    assert [drop.reason for drop in drops] == ["the passage does not hold 'Paris'"]


def test_only_failed_attempts_are_mended_and_wrong_mendings_are_dropped() -> None:
    def check(response: str, seed: Seed) -> tuple[str, str]:
        if "?" in response:
            return "unverifiable", "no answer"
        return ("correct", "") if seed.answer in response else ("incorrect", f"it is not {seed.answer}")

    seeds = [Seed("1", "1+1", "2"), Seed("2", "2+2", "4"), Seed("3", "3+3", "6"), Seed("4", "4+4", "8")]
    desk, teacher = desk_of(lambda request: "It is 4." if "2+2" in text_of(request) else "It is 5.", maker="refine")
    desk.writer = lambda prompts: ["2", "3", "7", "?"]
    desk.checker = check  # type: ignore[assignment]
    rows, drops = parted(make_refined(desk, seeds))
    assert [(row.id, row.task, row.verdict) for row in rows] == [
        ("2-refined", "refined", "correct"),
        ("2-refine", "refine", "correct"),
    ]
    assert rows[0].prompt == "2+2"
    assert "it is not 4" in rows[1].prompt
    assert [drop.by for drop in drops] == ["attempt", "attempt", "verify", "verify"]
    assert len(teacher.asked) == 2


def test_reflection_keeps_what_is_harder_to_follow_and_easier_to_guess_back() -> None:
    seeds = [Seed("a", "old x", "old y"), Seed("b", "plain x", "plain y"), Seed("c", "no answer")]

    def say(request: Request) -> str:
        if request.schema is not None:
            return json.dumps({"instruction": "new x", "answer": "new y"})
        return "best y"

    losses = {
        ("old x", "old y"): 1.0, ("", "old y"): 2.0,  # IFD exp(-1)
        ("plain x", "plain y"): 3.0, ("", "plain y"): 3.0,  # IFD 1
        ("new x", "new y"): 2.5, ("", "new y"): 3.0,  # IFD exp(-0.5): harder than old, easier than plain
        ("", "new x"): 4.0, ("", "plain x"): 4.0, ("", "best y"): 2.0,
        ("new x", "best y"): 1.0, ("plain x", "best y"): 1.0,
    }  # fmt: skip
    back = {"new y": 3.0, "best y": 2.0, "plain y": 1.0}

    def difficulty(pairs: Sequence[tuple[str, str]]) -> list[float]:
        return [
            back[prompt.split("\n\n")[0]] if prompt.endswith("what was asked for:") else losses[prompt, response]
            for prompt, response in pairs
        ]

    desk, _ = desk_of(say, maker="reflect")
    desk.scorer = difficulty
    rows, drops = parted(make_reflected(desk, seeds))
    assert [(row.prompt, row.response) for row in rows] == [("new x", "best y"), ("plain x", "plain y")]
    assert [row.fields["renewed"] for row in rows] == [["instruction", "response"], []]
    assert rows[0].fields["ifd"] == round(math.exp(1.0 - 2.0), 4)
    assert [drop.by for drop in drops] == ["seed"]
    assert ifd(desk, [("old x", "old y")]) == [pytest.approx(math.exp(-1.0))]
    assert reversed_ifd(desk, [("new x", "best y")]) == [pytest.approx(math.exp(2.0 - 4.0))]
