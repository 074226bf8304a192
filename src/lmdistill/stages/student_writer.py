"""The student as it now is, answering prompts and reading texts: for makers of data that look at what it can do.

Shape legend: B texts, L length, N trained positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.data import Document, EncodedRow, RowEncoder
from lmdistill.evaluation.answers import end_tokens
from lmdistill.generation.desk import Scorer
from lmdistill.models import load_model, load_tokenizer
from lmdistill.progress import Progress
from lmdistill.recipe import AskSpec, GenerationSpec, ModelSpec
from lmdistill.stages.context import Context
from lmdistill.trajectories.decode import advance_plainly, begin, limits_of, write_all
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.types import Author

_BATCH = 16


class StudentAtWork:
    """The student as it now is, trained that far and loaded when it is first asked."""

    def __init__(self, context: Context, find: Callable[[], Path], ask: AskSpec) -> None:
        """`find` gives the folder of its weights, and may train for that."""
        self._context = context
        self._find = find
        self._spec = GenerationSpec(max_new_tokens=ask.max_tokens, temperature=ask.temperature, batch_size=_BATCH)

    @cached_property
    def _folder(self) -> Path:
        return self._find()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's."""
        return load_tokenizer(ModelSpec(model=str(self._folder)))

    @cached_property
    def _encoder(self) -> RowEncoder:
        return RowEncoder(self.tokenizer)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The student, in the fast number format."""
        spec = ModelSpec(model=str(self._folder))
        model = load_model(spec, dtype=self._context.fast_dtype, device=self._context.device)
        model.eval()
        return model

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """What it answers, as long and as freely as the teacher may; draws depend on seed and place alone."""
        reader, spec = Reader(self.model, len(self.tokenizer)), self._spec
        ids = [self._encoder.prompt(Document(prompt=prompt), len(prompt)) for prompt in prompts]
        names = [str(place) for place in range(len(prompts))]
        limits = limits_of(spec, end_tokens(self.tokenizer, [self.model]))
        texts = begin(ids, names, self._context.recipe.seed, spec, limits)
        with self._context.progress.task("the student answers", total=len(prompts), unit="answers") as task:
            write_all(
                texts,
                [reader],
                lambda live: advance_plainly(live, reader, spec, Author.STUDENT, step=0),
                slots=spec.batch_size,
                told=lambda tokens: task.advance(),
            )
        return [str(self.tokenizer.decode(text.answer_ids, skip_special_tokens=True)).strip() for text in texts]

    def difficulty(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Mean negative log-probability, nats a token, of each response behind its prompt, or alone without one."""
        return mean_losses(self.model, self._encoder, pairs, self._context.progress, "the student reads")


def teacher_scorer(context: Context) -> Scorer:
    """The same of the teacher's weights, which are loaded at the first call."""

    def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
        encoder = RowEncoder(context.teacher_tokenizer())
        return mean_losses(context.teacher.eval(), encoder, pairs, context.progress, "the teacher reads")

    return score


@torch.no_grad()
def mean_losses(
    model: PreTrainedModel, encoder: RowEncoder, pairs: Sequence[tuple[str, str]], progress: Progress, title: str
) -> list[float]:
    """Mean negative log-probability, nats a token, of each response behind its prompt, or alone without one."""
    documents = [
        Document(prompt=prompt, response=response) if prompt else Document(text=response) for prompt, response in pairs
    ]
    rows = list(encoder.encode(documents))
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids_L))
    found = [0.0] * len(rows)
    with progress.task(title, total=len(rows), unit="texts") as task:
        for first in range(0, len(order), _BATCH):
            places = order[first : first + _BATCH]
            for place, mean in zip(places, _means(model, [rows[place] for place in places]), strict=True):
                found[place] = mean
            task.advance(len(places))
    return found


def _means(model: PreTrainedModel, rows: Sequence[EncodedRow]) -> list[float]:
    """Mean loss of the trained tokens of each row; 0 for a row that has none behind its first."""
    length = max(len(row.ids_L) for row in rows)
    ids_BL = torch.zeros(len(rows), length, dtype=torch.long)
    mask_BL = torch.zeros(len(rows), length, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids_BL[place, : len(row.ids_L)] = torch.as_tensor(row.ids_L)
        mask_BL[place, : len(row.ids_L)] = torch.as_tensor(row.trained_L)
    ids_BL, mask_BL = ids_BL.to(model.device), mask_BL[:, 1:].to(model.device)
    logits_BLV = model(input_ids=ids_BL, use_cache=False).logits[:, :-1]
    loss_N = cross_entropy(logits_BLV[mask_BL].float(), ids_BL[:, 1:][mask_BL], reduction="none")
    loss_BL = torch.zeros(mask_BL.shape, dtype=torch.float32, device=loss_N.device)
    loss_BL[mask_BL] = loss_N
    return [float(mean) for mean in loss_BL.sum(1) / mask_BL.sum(1).clamp_min(1)]
