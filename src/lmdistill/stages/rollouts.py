"""Texts that are written while a student trains: who writes them, how long, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import RecipeError
from lmdistill.recipe import ObjectiveSpec, TrajectoriesSpec
from lmdistill.stages.context import Context
from lmdistill.trajectories.interleaved import Speculative, TeacherMixed
from lmdistill.trajectories.journal import Journal
from lmdistill.trajectories.length import LengthBudget
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.rewards import reward
from lmdistill.trajectories.rollouts import LocalWriter, Method, Writer
from lmdistill.trajectories.types import Trajectory
from lmdistill.trajectories.window import Trajectories


def trajectories_of(
    context: Context,
    spec: TrajectoriesSpec,
    objective: ObjectiveSpec,
    prompts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    name: str,
    journal: Journal,
) -> Trajectories:
    """What writes the texts of one training; `model` is the student, `name` the training's."""

    def tell(kind: str, **facts: Any) -> None:
        context.folder.event(kind, name, **facts)

    def keep(texts: Sequence[Trajectory]) -> None:
        journal.keep(texts)

    return Trajectories(
        spec,
        _writer(context, spec, tokenizer, model),
        seed=context.recipe.seed,
        budget=LengthBudget(spec.length, spec.generation.max_new_tokens, _mean_answer(prompts)),
        samples_per_prompt=objective.policy.samples_per_prompt if objective.policy.weight > 0 else 1,
        keep=keep,
        tell=tell,
    )


def rewards_of(objective: ObjectiveSpec, spec: TrajectoriesSpec, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The score that `policy.kind: reward` gives to each row of the batches of a window."""

    def score(batches: Sequence[dict[str, Any]]) -> list[Tensor]:
        return [
            torch.tensor(
                [
                    reward(
                        objective.policy.reward,
                        ids[len(prompt) :][: int(length)],
                        reference,
                        longest=spec.generation.max_new_tokens,
                        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
                    )
                    for ids, length, prompt, reference in zip(
                        batch["input_ids"].tolist(),
                        (batch["labels"] != -100).sum(-1).tolist(),
                        batch["prompts"],
                        batch["references"],
                        strict=True,
                    )
                ],
                device=batch["input_ids"].device,
            )
            for batch in batches
        ]

    return score


def end_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> set[int]:
    """The tokens that end a text."""
    named = getattr(model.generation_config, "eos_token_id", None)
    found = {named} if isinstance(named, int) else set(named or ())
    return {int(each) for each in {*found, tokenizer.eos_token_id} if each is not None}


def journal_of(context: Context, spec: TrajectoriesSpec, tokenizer: PreTrainedTokenizerBase, name: str) -> Journal:
    """Keeps a share of what the student writes in a training in the run's folder."""
    share, seed = spec.rollouts.kept_share, context.recipe.seed
    return Journal(context.folder.path, tokenizer, share=share, seed=seed, stage=name)


def _writer(
    context: Context, spec: TrajectoriesSpec, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Writer:
    if spec.rollouts.engine == "server":
        from lmdistill.trajectories.served import ServerWriter

        assert spec.rollouts.base_url is not None  # the recipe checks both
        assert spec.rollouts.served_folder is not None
        return ServerWriter(
            spec.generation,
            end_ids=end_ids(tokenizer, model),
            tokenizer=tokenizer,
            base_url=spec.rollouts.base_url,
            folder=Path(spec.rollouts.served_folder).expanduser(),
        )
    return LocalWriter(
        spec.generation,
        end_ids=end_ids(tokenizer, model),
        vocabulary_size=len(tokenizer),
        method=_method(context, spec, len(tokenizer)),
    )


def _method(context: Context, spec: TrajectoriesSpec, vocabulary: int) -> Method | None:
    """How a token is drawn where the teacher takes part in it. Raises RecipeError for a trimmed vocabulary."""
    if context.recipe.student.vocabulary is not None and (spec.interleaved is not None or spec.teacher_mixing > 0):
        raise RecipeError("the teacher takes part in the writing by its own ids: student.vocabulary cannot be trimmed")
    if spec.interleaved is not None:
        return Speculative(Reader(context.teacher, vocabulary), spec.interleaved)
    if spec.teacher_mixing > 0:
        return TeacherMixed(Reader(context.teacher, vocabulary), spec.teacher_mixing)
    return None


def _mean_answer(prompts: Dataset) -> float | None:
    """Mean length of the answers that the data holds, the teacher's where it wrote any; None where there are none."""
    taught = [len(ids) for ids in prompts["teacher_answer_ids"] if ids]
    lengths = [len(ids) for ids in prompts["input_ids"]]
    given = [whole - border for whole, border in zip(lengths, prompts["prompt_length"], strict=True) if whole > border]
    found = taught or given
    return sum(found) / len(found) if found else None
