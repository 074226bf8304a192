"""Windows of text: what is in the micro-batches of an optimiser step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lmdistill.data import PromptRow
from lmdistill.recipe import LengthSpec, TrajectoriesSpec
from lmdistill.trajectories.length import LengthBudget
from lmdistill.trajectories.types import Author, Trajectory
from lmdistill.trajectories.window import ROLLOUTS, Trajectories


class EchoWriter:
    """Writes the prompt's first token n times, n its length, with log-probability -n: a mixed-up row shows at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int | None]] = []
        self.refreshed: list[int] = []

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        step: int,
        row_ids: Sequence[str],
        max_new_tokens: int | None = None,
        told: Callable[[int], None] = lambda tokens: None,
    ) -> list[Trajectory]:
        self.calls.append((seed, max_new_tokens))
        return [
            Trajectory(
                prompt_ids=list(prompt),
                answer_ids=[prompt[0]] * len(prompt),
                authors=[int(Author.STUDENT)] * len(prompt),
                logprobs=[-float(len(prompt))] * len(prompt),
                finished=True,
                step=step,
                row_id=row_id,
                behaviour_logprobs=[-float(len(prompt)) - 1] * len(prompt),
            )
            for prompt, row_id in zip(prompts, row_ids, strict=True)
        ]

    def refresh(self, model: Any, step: int) -> None:
        self.refreshed.append(step)

    def close(self) -> None:
        pass


def rows(count: int = 8) -> list[PromptRow]:
    """Prompts of 1 to count tokens; the data set answers with 100 + n, the teacher with 200 + n."""
    return [PromptRow([n + 1] * (n + 1), [100 + n] * 2, f"row{n}", teacher_answer_ids=[200 + n]) for n in range(count)]


def texts(writer: EchoWriter | None = None, samples: int = 1, **fields: Any) -> Trajectories:
    spec = TrajectoriesSpec.model_validate({"source": "student", **fields})
    budget = LengthBudget(LengthSpec(inflation=None), 64, None)
    return Trajectories(spec, writer or EchoWriter(), seed=0, budget=budget, samples_per_prompt=samples)


def window(made: Trajectories, step: int = 0, prompts: list[PromptRow] | None = None, count: int = 2) -> list[Any]:
    prompts = prompts or rows()
    size = len(prompts) // count
    batches = [prompts[first : first + size] for first in range(0, len(prompts), size)]
    return made.window(batches, step=step, progress=0.0, model=None)  # type: ignore[arg-type]


def test_answers_are_trained_at_their_own_prompts_and_nothing_else_is() -> None:
    batches = window(texts())
    seen = []
    for batch in batches:
        for ids_L, labels_L, positions_L, logs_L, names in zip(
            batch["input_ids"], batch["labels"], batch["position_ids"], batch["logprobs"], batch["row_ids"], strict=True
        ):
            n = int(names[0].removeprefix("row")) + 1
            seen.append(n)
            assert ids_L[: 2 * n].tolist() == [n] * 2 * n
            assert labels_L.tolist() == [-100] * n + [n] * n + [-100] * (len(labels_L) - 2 * n)
            assert positions_L.tolist() == [*range(2 * n), *range(len(labels_L) - 2 * n)]
            assert logs_L.tolist() == [0.0] * n + [-float(n)] * n + [0.0] * (len(labels_L) - 2 * n)
    assert sorted(seen) == list(range(1, 9))


def test_similar_lengths_stand_together_and_as_many_batches_come_back() -> None:
    batches = window(texts(), count=4)
    assert [batch["input_ids"].shape for batch in batches] == [(2, 4), (2, 8), (2, 12), (2, 16)]


def test_texts_of_a_pair_stay_in_one_batch() -> None:
    made = texts(source="mixture", mixture={"paired": True, "teacher": {"start": 1.0}}, samples=2)
    for batch in window(made, count=4):
        assert batch[ROLLOUTS].tolist() == [False, True, True] * 2
        assert sorted(batch["groups"].tolist()) == sorted([*batch["groups"].unique().tolist()] * 3)
        for names, group in zip(batch["row_ids"], batch["groups"].tolist(), strict=True):
            assert {names[0]} == {
                other[0] for other, of in zip(batch["row_ids"], batch["groups"].tolist(), strict=True) if of == group
            }


def test_the_student_writes_once_a_window_with_another_seed_each_step() -> None:
    writer = EchoWriter()
    made = texts(writer, rollouts={"refresh_steps": 2})
    for step in range(4):
        window(made, step, count=4)
    assert len(writer.calls) == 4
    assert len({seed for seed, _ in writer.calls}) == 4
    assert writer.refreshed == [0, 2]


def test_reused_texts_are_written_once_and_come_in_another_order() -> None:
    writer = EchoWriter()
    made = texts(writer, rollouts={"reuse": 2})
    first, second = window(made, 0), window(made, 1)
    assert len(writer.calls) == 1
    assert torch.equal(first[0]["input_ids"], second[1]["input_ids"])
    window(made, 2)
    assert len(writer.calls) == 2


def test_a_window_in_use_survives_a_restart() -> None:
    made = texts(rollouts={"reuse": 2})
    window(made, 0)
    state = json.loads(json.dumps(made.state()))
    writer = EchoWriter()
    again = texts(writer, rollouts={"reuse": 2})
    again.restore(state)
    here, there = window(made, 1), window(again, 1)
    assert writer.calls == []
    assert torch.equal(here[0]["input_ids"], there[0]["input_ids"])
    assert torch.equal(here[0]["logprobs"], there[0]["logprobs"])


def test_replayed_text_keeps_its_own_prompt_and_log_probabilities() -> None:
    writer = EchoWriter()
    made = texts(writer, source="mixture", mixture={"replay": {"start": 1.0, "capacity": 12}})
    window(made, 0)
    assert not made.buffer.full
    made.window([rows()[:4]], step=1, progress=1.0, model=None)  # type: ignore[arg-type]
    assert made.buffer.full
    assert len(writer.calls) == 2
    # progress 1: nothing is written any more, all of phi comes from the buffer
    batches = made.window([rows()[:4]], step=2, progress=1.0, model=None)  # type: ignore[arg-type]
    assert len(writer.calls) == 2
    for ids_L, labels_L, logs_L in zip(
        batches[0]["input_ids"], batches[0]["labels"], batches[0]["logprobs"], strict=True
    ):
        n = int(ids_L[0])
        assert int((labels_L != -100).sum()) == n
        assert logs_L[n : 2 * n].tolist() == [-float(n)] * n


def test_the_budget_reaches_the_writer() -> None:
    writer = EchoWriter()
    spec = TrajectoriesSpec.model_validate({"source": "student"})
    made = Trajectories(spec, writer, seed=0, budget=LengthBudget(LengthSpec(), 64, reference=4.0))
    window(made)
    assert writer.calls[0][1] == 12


def test_a_window_without_any_text_still_has_its_batches() -> None:
    made = texts(source="mixture", mixture={"paired": True, "teacher": {"start": 1.0}})
    bare = [PromptRow([1, 2], [], f"row{n}") for n in range(4)]
    batches = window(made, prompts=bare)
    assert [int((batch["labels"] != -100).sum()) for batch in batches] == [0, 0]
