"""The student as it now is, answering prompts: for makers of data that look at what it can and cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmdistill.data import Document, RowEncoder
from lmdistill.evaluation.answers import end_tokens
from lmdistill.generation.desk import Student
from lmdistill.models import load_model, load_tokenizer
from lmdistill.recipe import AskSpec, GenerationSpec, ModelSpec
from lmdistill.stages.context import Context
from lmdistill.trajectories.decode import advance_plainly, begin, limits_of, write_all
from lmdistill.trajectories.reader import Reader
from lmdistill.trajectories.types import Author


def student_writer(context: Context, folder: Path, ask: AskSpec) -> Student:
    """A function that lets the student in `folder` answer prompts, as long and as freely as the teacher may.

    The model is loaded at the first call. The draws depend on the recipe's seed and the place of a prompt alone.
    """
    spec = GenerationSpec(max_new_tokens=ask.max_tokens, temperature=ask.temperature, batch_size=16)
    loaded: list[Reader] = []
    tokenizer = load_tokenizer(ModelSpec(model=str(folder)))
    encoder = RowEncoder(tokenizer)

    def answer(prompts: Sequence[str]) -> list[str]:
        if not loaded:
            model = load_model(ModelSpec(model=str(folder)), dtype=context.fast_dtype, device=context.device)
            loaded.append(Reader(model.eval(), len(tokenizer)))
            ends.update(end_tokens(tokenizer, [model]))
        reader = loaded[0]
        ids = [encoder.prompt(Document(prompt=prompt), len(prompt)) for prompt in prompts]
        names = [str(place) for place in range(len(prompts))]
        texts = begin(ids, names, context.recipe.seed, spec, limits_of(spec, ends))
        with context.progress.task("the student answers", total=len(prompts), unit="answers") as task:
            write_all(
                texts,
                [reader],
                lambda live: advance_plainly(live, reader, spec, Author.STUDENT, step=0),
                slots=spec.batch_size,
                told=lambda tokens: task.advance(),
            )
        return [str(tokenizer.decode(text.answer_ids, skip_special_tokens=True)).strip() for text in texts]

    ends: set[int] = set()
    return answer
