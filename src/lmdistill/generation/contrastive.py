"""Rationales that would not be said of another answer, and what follows from those that argue for a wrong one.

SCOTT (Wang et al., arXiv 2305.01879): the teacher's weights write, by contrastive decoding, a rationale r for the right
answer against a wrong one, and r' the other way round. The student learns `x -> r, y`, and `[counterfactual] x, r' ->
y'`, there with the loss on the answer alone: what it answers has to follow from what it says.

The wrong answer is another of the seed's choices (a column `choices`), else a wrong one that the teacher gives when
asked without steps, else the answer of another seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmdistill.generation.desk import Desk, asked, chat, sampling_of
from lmdistill.generation.judging import Judge
from lmdistill.generation.types import Drop, Example, Provenance, Seed
from lmdistill.teachers.api_types import Answer, Request

BECAUSE = "{prompt}\nThe answer is {answer}. Explain in one or two sentences why."
SHORTLY = "{prompt}\nAnswer with the number or the word alone."


def make_contrastive(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """For each seed with an answer a row of the task `factual`, and one of `counterfactual`."""
    with Judge(desk.spec.verify) as judge:
        known = [(seed, right) for seed in seeds if (right := judge.right_answer(seed)) is not None]
        for seed in seeds:
            if seed.answer is None:
                yield _drop(seed, "the seed has no answer that a rationale could argue for")
        wrong = wrong_answers(desk, judge, known)
    pairs = [(seed, right, wrong[seed.id]) for seed, right in known if seed.id in wrong]
    for seed, _ in known:
        if seed.id not in wrong:
            yield _drop(seed, "no wrong answer is known to argue against")
    prompts = [(because(desk, seed, right), because(desk, seed, other[0])) for seed, right, other in pairs]
    texts = desk.contrast([*prompts, *((against, towards) for towards, against in prompts)])
    for place, (seed, right, (other, answers)) in enumerate(pairs):
        came = desk.came_from(*answers) if answers else Provenance(recipe=desk.recipe)
        yield _row(desk, seed, texts[place], right, "factual", came)
        yield _row(desk, seed, texts[place + len(pairs)], other, "counterfactual", came)


def because(desk: Desk, seed: Seed, answer: str) -> str:
    """What the teacher reads before a rationale for an answer: the demonstrations, then the question."""
    shown = [f"{question}\n{said}\n\n" for question, said in desk.spec.ask.demonstrations]
    template = desk.spec.ask.template or BECAUSE
    return "".join(shown) + template.replace("{prompt}", seed.prompt).replace("{answer}", answer)


def wrong_answers(
    desk: Desk, judge: Judge, known: Sequence[tuple[Seed, str]]
) -> dict[str, tuple[str, tuple[Answer, ...]]]:
    """A wrong answer to each question, by the seed's name, and what the teacher said where it comes from that."""
    found: dict[str, tuple[str, tuple[Answer, ...]]] = {}
    for seed, right in known:
        others = [str(choice) for choice in seed.fields.get("choices", ()) if not judge.same(str(choice), right)]
        if others:
            found[seed.id] = desk.draws("wrong", seed.id).choice(others), ()
    for seed, answer in _direct_answers(desk, [seed for seed, _ in known if seed.id not in found]):
        final = judge.final_answer(answer.text or "") if answer.good else None
        if seed.id not in found and final is not None and judge.verdict(seed, final).verdict == "incorrect":
            found[seed.id] = final, (answer,)
    for seed, right in known:
        others = sorted({other for _, other in known if not judge.same(other, right)})
        if seed.id not in found and others:
            found[seed.id] = desk.draws("wrong", seed.id).choice(others), ()
    return found


def _direct_answers(desk: Desk, seeds: Sequence[Seed]) -> Iterator[tuple[Seed, Answer]]:
    """What the teacher answers without steps, several times."""
    ask = desk.spec.ask.model_copy(update={"max_tokens": 16, "temperature": 1.0, "stop": ["\n"], "demonstrations": []})
    pairs = [
        (
            seed,
            Request(chat(ask, SHORTLY.replace("{prompt}", seed.prompt)), sampling_of(ask, desk.seed), n, tag=seed.id),
        )
        for seed in seeds
        for n in range(desk.spec.contrastive.wrong_samples)
    ]
    for seed, _, answer in asked(desk, pairs):
        yield seed, answer


def _row(desk: Desk, seed: Seed, text: str, answer: str, task: str, came: Provenance) -> Example | Drop:
    """A rationale with the answer that it argues for."""
    before, prefix = f"{text.strip()} So the answer is", f"{desk.spec.contrastive.prefix} "
    counter = task == "counterfactual"
    example = Example(
        id=f"{seed.id}-{task}",
        prompt=(prefix if counter else "") + seed.prompt,
        response=f"{before} {answer}.",
        task=task,
        seed=seed.id,
        answer=answer,
        # By construction: a factual row ends in the seed's answer, a counterfactual one in a wrong one, on purpose.
        verdict=None if counter else "correct",
        fields={"rationale": text.strip(), **({"given": len(before)} if counter else {})},
        provenance=came,
    )
    if not text.strip():
        return Drop(example, by="rationale", reason="contrastive decoding ended before its first word")
    return example


def _drop(seed: Seed, reason: str) -> Drop:
    example = Example(id=f"{seed.id}-factual", prompt=seed.prompt, response="", task="factual", seed=seed.id)
    return Drop(example, by="answer", reason=reason)
