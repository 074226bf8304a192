"""Text that the student writes as training goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from lmdistill.errors import RecipeError
from lmdistill.recipe import GenerationSpec
from lmdistill.trajectories.decode import Text, advance_plainly, begin, limits_of, write_all
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.types import Author, Trajectory
from lmdistill.trajectories.weights import WeightCopy


class Writer(Protocol):
    """Writes an answer to each prompt with the student's weights of its last `refresh`."""

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
        """One answer a prompt, in the order of the prompts; `told` hears of each finished row's answer tokens.

        `max_new_tokens` shortens the limit of this call below that of the recipe; a text then is the beginning of what
        it would have been.

        The same seed, prompts and weights give the same text, whatever ran before and however rows are batched.
        Raises DataError for a prompt that leaves no room for the answer in the model's context, TrainingError for NaN
        logits; nothing that exists is lost.
        """
        ...

    def refresh(self, model: PreTrainedModel, step: int) -> None:
        """Take over the student's present weights, which are those of this optimiser step."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class Method(Protocol):
    """How the next tokens of texts are drawn."""

    def readers(self, student: Reader) -> list[Reader]:
        """The models that read along, the student's first."""
        ...

    def advance(self, texts: Sequence[Text], readers: Sequence[Reader], spec: GenerationSpec, step: int) -> None:
        """Add one token or more to each text."""
        ...


class Plain:
    """Each token from the student alone."""

    def readers(self, student: Reader) -> list[Reader]:
        """The student."""
        return [student]

    def advance(self, texts: Sequence[Text], readers: Sequence[Reader], spec: GenerationSpec, step: int) -> None:
        """One token more. Raises TrainingError where the logits of a text are NaN or infinite."""
        advance_plainly(texts, readers[0], spec, Author.STUDENT, step)


class LocalWriter:
    """Writes in this process, with a copy of the student in the number format that is fastest here.

    Log-probabilities are those of the copy: in bfloat16 its logits are rounded to 8 bits, so that they differ from the
    student's own by some hundredths of a nat.
    """

    def __init__(
        self,
        spec: GenerationSpec,
        *,
        end_ids: Collection[int],
        vocabulary_size: int,
        method: Method | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """One answer a prompt (`samples_per_prompt` is the caller's); beams are refused with RecipeError."""
        if spec.num_beams > 1:
            raise RecipeError(
                f"generation.num_beams = {spec.num_beams}: the student samples; beams are for source: teacher"
            )
        self.spec = spec
        self.end_ids = frozenset(end_ids)
        self.vocabulary_size = vocabulary_size
        self.method: Method = method or Plain()
        self._copy = WeightCopy(dtype)
        self._readers: list[Reader] = []

    def refresh(self, model: PreTrainedModel, step: int) -> None:
        """Copy the student's present weights. Raises ModelError for a model that cannot be read row by row."""
        copied = self._copy.take(model)
        if not self._readers:
            self._readers = self.method.readers(Reader(copied, self.vocabulary_size))

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
        """See `Writer.write`."""
        if not self._readers:
            raise ValueError("a writer knows no weights before its first refresh")
        texts = begin(prompts, row_ids, seed, self.spec, limits_of(self.spec, self.end_ids, max_new_tokens))
        write_all(
            texts,
            self._readers,
            lambda live: self.method.advance(live, self._readers, self.spec, step),
            slots=self.spec.batch_size,
            told=told,
        )
        return [text.trajectory(step) for text in texts]

    def close(self) -> None:
        """Let go of the copy."""
        self._readers = []
        self._copy = WeightCopy(self._copy.dtype)
