"""The same prompts, answered by every model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from lmdistill.evaluation.fidelity import Subject
from lmdistill.evaluation.results import Generation, Role
from lmdistill.recipe import GenerationSpec


@torch.no_grad()
def side_by_side(
    subjects: Sequence[Subject],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    spec: GenerationSpec,
    seed: int,
    told: object = None,
) -> list[Generation]:
    """What each subject continues each prompt with, as plain text without special tokens."""
    kept_ids = next((subject.kept_ids for subject in subjects if subject.kept_ids is not None), None)
    found = []
    for prompt in prompts:
        ids_L = torch.tensor([_encoded(tokenizer, prompt)])
        answers: dict[Role, str] = {}
        for subject in subjects:
            is_wide = subject.role == "teacher" and kept_ids is not None
            answer = _answer(
                subject, kept_ids[ids_L] if is_wide and kept_ids is not None else ids_L, tokenizer, spec, seed
            )
            if is_wide and kept_ids is not None:
                answer = _narrowed(answer, kept_ids)
            answers[subject.role] = str(tokenizer.decode(answer, skip_special_tokens=True))
            if callable(told):
                told(1)
        found.append(Generation(prompt=prompt, answers=answers))
    return found


def _encoded(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    ids: list[int] = tokenizer(prompt)["input_ids"]
    return ids or [tokenizer.eos_token_id]


def _answer(
    subject: Subject, ids_L: torch.Tensor, tokenizer: PreTrainedTokenizerBase, spec: GenerationSpec, seed: int
) -> list[int]:
    sampled = {"temperature": spec.temperature, "top_p": spec.top_p} if spec.temperature > 0 else {}
    end = subject.model.config.eos_token_id
    config = GenerationConfig(
        max_new_tokens=spec.max_new_tokens,
        do_sample=spec.temperature > 0,
        eos_token_id=end,
        pad_token_id=end[0] if isinstance(end, list) else end,
        **sampled,
    )
    ids = ids_L.to(subject.model.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        writer: Any = subject.model
        out = writer.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    tokens: list[int] = out[0, ids.shape[1] :].tolist()
    return tokens


def _narrowed(ids: list[int], kept_ids: torch.Tensor) -> list[int]:
    """Teacher's ids as the trimmed tokenizer's; ids that it lacks are left out."""
    narrow = {int(old): new for new, old in enumerate(kept_ids.tolist())}
    return [narrow[identity] for identity in ids if identity in narrow]
