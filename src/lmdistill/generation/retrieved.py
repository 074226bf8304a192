"""Rationales behind passages that hold the knowledge which a small student lacks.

KARD (Kang et al., arXiv 2305.18395): in training the student reads the passages that BM25 finds with the rationale; at
use there is no rationale, so a reranker learns to put BM25's candidates for the question into the order that the
rationale would give them. The reranker is kept in the round's folder (`reranker`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lmdistill.data.load import read_rows
from lmdistill.errors import DataError, RecipeError
from lmdistill.generation.desk import Desk
from lmdistill.generation.rationales import Rationale, kept_rationales
from lmdistill.generation.retrieval.bm25 import Bm25
from lmdistill.generation.types import Drop, Example, Seed
from lmdistill.recipe import RetrievalSpec, SourceSpec

if TYPE_CHECKING:
    from lmdistill.generation.retrieval.dual_encoder import DualEncoder, Ranked

RERANKER = "reranker"
"""Name of the reranker's folder within that of the round."""


def make_retrieved(desk: Desk, seeds: Sequence[Seed]) -> Iterator[Example | Drop]:
    """Each rationale that is kept behind its passages, a row of the task `rationale`; then the reranker is trained."""
    spec = desk.spec.retrieved
    index = Bm25(read_passages(desk, spec))
    kept: list[Rationale] = []
    for found in kept_rationales(desk, seeds):
        if isinstance(found, Drop):
            yield found
            continue
        kept.append(found)
        passages = [index.passages[place] for place in index.top(found.text, spec.passages)]
        prompt = with_passages(found.seed.prompt, passages)
        row = found.example(desk, prompt, f"{found.text} So the answer is {found.answer}.")
        yield replace(row, fields={**row.fields, "passages": passages})
    if kept:
        train_reranker(desk, spec, index, kept)


def with_passages(question: str, passages: Sequence[str]) -> str:
    """What the student reads, in training and at use."""
    return "\n".join([*passages, "", f"Question: {question}"])


def read_passages(desk: Desk, spec: RetrievalSpec) -> list[str]:
    """The passages of the corpus. Raises RecipeError where none is named, DataError where it has none."""
    if spec.corpus is None:
        raise RecipeError("generation.retrieved: set corpus, the file of the passages")
    rows = [row.row for row in read_rows(SourceSpec(path=spec.corpus), desk.progress)]
    found = [str(row[spec.column]) for row in rows if row is not None and spec.column in row]
    if not found:
        raise DataError(f"{spec.corpus}: no row has the column {spec.column!r} (generation.retrieved.column)")
    return found


def rankings(spec: RetrievalSpec, index: Bm25, rationales: Sequence[Rationale]) -> list[Ranked]:
    """What the reranker learns from: each question's candidates, scored with the rationale."""
    from lmdistill.generation.retrieval.dual_encoder import Ranked

    found = []
    for rationale in rationales:
        places = index.top(rationale.seed.prompt, spec.candidates)
        scores = index.scores(rationale.text)
        texts = tuple(index.passages[place] for place in places)
        found.append(Ranked(rationale.seed.prompt, texts, tuple(float(scores[place]) for place in places)))
    return found


def train_reranker(desk: Desk, spec: RetrievalSpec, index: Bm25, kept: Sequence[Rationale]) -> list[float]:
    """Train the reranker on the rationales that were kept; the losses of its steps."""
    from lmdistill.generation.retrieval.dual_encoder import DualEncoder, train_dual_encoder

    encoder = DualEncoder(spec.encoder)
    losses = train_dual_encoder(
        encoder,
        rankings(spec, index, kept),
        steps=spec.steps,
        learning_rate=spec.learning_rate,
        tau1=spec.teacher_temperature,
        tau2=spec.student_temperature,
        seed=desk.seed,
    )
    desk.progress.note(
        f"reranker: loss {losses[0]:.3f} at the first of {len(losses)} steps, {losses[-1]:.3f} at the last"
    )
    if desk.folder is not None:
        encoder.save(desk.folder / RERANKER)
    return losses


class Retriever:
    """Finds passages for a question where there is no rationale: BM25's candidates in the reranker's order."""

    def __init__(self, passages: Sequence[str], encoder: DualEncoder, spec: RetrievalSpec) -> None:
        self.index, self.encoder, self.spec = Bm25(passages), encoder, spec

    def find(self, question: str) -> list[str]:
        """The passages for a question, best first."""
        texts = [self.index.passages[place] for place in self.index.top(question, self.spec.candidates)]
        fits = self.encoder.similarities(question, texts)
        order = sorted(range(len(texts)), key=lambda number: (-fits[number], number))
        return [texts[number] for number in order[: self.spec.passages]]

    def prompt(self, question: str) -> str:
        """What the student reads for a question at use."""
        return with_passages(question, self.find(question))
