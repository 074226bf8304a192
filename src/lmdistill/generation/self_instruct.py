"""Self-Instruct: new tasks after the example of a few, classified, then filled with an instance each.

Wang et al., arXiv 2212.10560, section 2. Tasks that choose among labels get their label first and an input for it
afterwards, or the inputs would all have the likeliest label; other tasks get the input first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmdistill.generation.desk import Desk
from lmdistill.generation.instructions import (
    Found,
    Instruction,
    InstructionPool,
    Wanted,
    dropped,
    examples_for,
    instructions_of,
    numbered,
    question,
    unusable,
)
from lmdistill.generation.types import Drop, Example, Seed, make_id

_CLASSIFY = (
    "Does this task ask to choose one label from a few fixed ones (such as yes/no, positive/negative, a category)?\n\n"
    "Task: Say whether the sentence is polite or rude.\nAnswer: yes\n\n"
    "Task: Write a short poem about rain.\nAnswer: no\n\n"
    "Task: Tell me if the review is positive, neutral or negative.\nAnswer: yes\n\n"
    "Task: Explain why the sky is blue.\nAnswer: no\n\n"
    "Task: {task}\nAnswer:"
)
_INPUT_FIRST = (
    "Make one example for the task. If the task needs an input, write it after 'Input:'; if it can be done as it "
    "stands, write 'Input: none'. Then do the task after 'Output:'.\n\n"
    "Task: Sort the numbers from small to large.\nInput: 10, 92, 2, 5\nOutput: 2, 5, 10, 92\n\n"
    "Task: Name a fruit that is red.\nInput: none\nOutput: A strawberry is red.\n\n"
    "Task: {task}\n"
)
_OUTPUT_FIRST = (
    "Make one example for the task that chooses a label. Write the label first, after 'Label:', then an input to which "
    "it belongs, after 'Input:'.\n\n"
    "Task: Say whether the sentence is polite or rude.\nLabel: rude\nInput: Get out of my way, you fool.\n\n"
    "Task: Tell me if the review is positive or negative.\nLabel: positive\nInput: The best soup I ever had.\n\n"
    "Task: {task}\n"
)


def make_self_instruct(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """New tasks, each with one instance: the prompt is instruction and input, the response the output."""
    spec = desk.spec.instructions
    human, made = instructions_of(seeds), list[str]()
    pool, wanted, seen = InstructionPool(spec, human), Wanted(spec), dict[str, str]()
    for size in wanted.waves():
        draws = desk.draws("self_instruct", wanted.asked)
        shown = [examples_for(spec, human, made, draws) for _ in range(size)]
        first = wanted.asked - size
        requests = [
            question(
                desk,
                series(each, spec.per_request),
                f"tasks-{first + place}",
                sample=first + place,
                stop=(f"\n{len(each) + spec.per_request + 1}.",),
            )
            for place, each in enumerate(shown)
        ]
        fresh: list[Found] = []
        for each, answer in zip(shown, desk.ask(requests), strict=True):
            entries = numbered(f"\n{len(each) + 1}. {answer.text or ''}")[: spec.per_request] if answer.good else []
            if not entries:
                yield unusable(desk, answer, "no task in the answer")
            for text in entries:
                found = Found(Instruction(text), answer)
                against = pool.against(text)
                if against is not None:
                    yield dropped(desk, found, "instruction", *against)
                    continue
                pool.add(text)
                fresh.append(found)
        for item in _instances(desk, fresh):
            if isinstance(item, Example) and (reason := _repeats(seen, item)) is not None:
                item = Drop(item, by="instance", reason=reason)
            if isinstance(item, Example):
                wanted.kept += 1
                made.append(str(item.fields["instruction"]))
            yield item
            if wanted.kept == spec.wanted:
                return


def series(shown: Sequence[str], more: int) -> str:
    """A request for tasks that go on with a numbered list."""
    lines = "\n".join(f"{place}. {text}" for place, text in enumerate(shown, start=1))
    return (
        f"Here are tasks that a language model can do with text alone. Go on with the list: write {more} more tasks, "
        f"each on a line of its own with its number, and no answers.\n\n{lines}\n{len(shown) + 1}."
    )


def _instances(desk: Desk, tasks: Sequence[Found]) -> Iterator[Example | Drop]:
    """An instance of each task, made in the way that its kind asks for."""
    kinds = [question(desk, _CLASSIFY.replace("{task}", each.instruction.text), "kind", stop=("\n",)) for each in tasks]
    choosing = [answer.good and (answer.text or "").strip().lower().startswith("yes") for answer in desk.ask(kinds)]
    forms = [
        question(
            desk,
            (_OUTPUT_FIRST if chooses else _INPUT_FIRST).replace("{task}", each.instruction.text),
            "instance",
            stop=("\nTask:",),
        )
        for each, chooses in zip(tasks, choosing, strict=True)
    ]
    for each, chooses, answer in zip(tasks, choosing, desk.ask(forms), strict=True):
        if not answer.good or answer.text is None:
            yield unusable(desk, answer, "no instance")
            continue
        given, output = _parts(answer.text, chooses)
        instruction = Instruction(each.instruction.text, given)
        example = Example(
            id=make_id(instruction.prompt),
            prompt=instruction.prompt,
            response=output,
            fields={"instruction": instruction.text, "input": given, "classification": chooses},
            provenance=desk.came_from(each.answer, answer),
        )
        if output and (given or not chooses):
            yield example
        else:
            lacking = "output" if not output else "input"
            yield Drop(example, by="instance", reason=f"the instance lacks its {lacking}")


def _parts(text: str, chooses: bool) -> tuple[str, str]:
    """Input and output of an instance in the form that was asked for; empty where they are not there."""
    names = ("Label:", "Input:") if chooses else ("Input:", "Output:")
    text = text if text.lstrip().startswith(names[0]) else f"{names[0]} {text}"
    head, found, tail = text.partition(names[1])
    first, second = head.partition(names[0])[2].strip(), tail.split("\nTask:")[0].strip() if found else ""
    given, output = (second, first) if chooses else (first, second)
    return ("" if given.casefold().rstrip(".") in ("none", "n/a") else given), output


def _repeats(seen: dict[str, str], example: Example) -> str | None:
    """Why an instance adds nothing: the same again, or the same input with another output."""
    if example.fields["input"] == example.fields["instruction"]:
        return "the input is the instruction"
    if example.prompt not in seen:
        seen[example.prompt] = example.response
        return None
    same = seen[example.prompt] == example.response
    return "the same instance again" if same else "the same input with another output"
