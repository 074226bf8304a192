"""The teacher's own weights, writing by contrastive decoding for makers of data."""

from __future__ import annotations

from collections.abc import Sequence

from lmdistill.data import Document, RowEncoder
from lmdistill.evaluation.answers import end_tokens
from lmdistill.generation.desk import Contraster
from lmdistill.recipe import ContrastSpec
from lmdistill.stages.context import Context
from lmdistill.trajectories.contrastive import write_contrastively
from lmdistill.trajectories.reader import Reader


def contrast_writer(context: Context, spec: ContrastSpec) -> Contraster:
    """A function that lets the teacher write behind pairs of prompts. The model is loaded at the first call."""

    def write(prompts: Sequence[tuple[str, str]]) -> list[str]:
        tokenizer, model = context.teacher_tokenizer(), context.teacher.eval()
        encoder = RowEncoder(tokenizer)
        ids = [
            (encoder.prompt(Document(prompt=one), len(one)), encoder.prompt(Document(prompt=other), len(other)))
            for one, other in prompts
        ]
        with context.progress.task("the teacher argues", total=len(prompts), unit="rationales") as task:
            before = 0

            def told(texts: int) -> None:
                nonlocal before
                task.advance(texts - before)
                before = texts

            found = write_contrastively(
                (Reader(model, len(tokenizer)), Reader(model, len(tokenizer))),
                ids,
                weight=spec.weight,
                max_new_tokens=spec.max_tokens,
                end_ids=end_tokens(tokenizer, [model]),
                told=told,
            )
        return [str(tokenizer.decode(text, skip_special_tokens=True)) for text in found]

    return write
