"""Choosing the training documents before anything is trained: difference sampling (MiniPLM, 2410.17215).

A document stays where log p_teacher(x) - log p_reference(x), a token, is among the largest: what only a large model
finds likely is worth teaching; what a small one finds likely too, it knows; what neither does is noise.
"""

from __future__ import annotations

from collections import defaultdict

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.data import DataReport, Document, build_dataset
from lmdistill.doctor import tokenizer_differences
from lmdistill.errors import CorruptFile, TokenizerMismatch
from lmdistill.io import read_json, write_json
from lmdistill.models import load_model, load_tokenizer
from lmdistill.progress import Progress
from lmdistill.recipe import DifferenceSpec, SignalSpec
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.signals.local import LocalEngine
from lmdistill.signals.store import TrainingSequence
from lmdistill.stages.context import Context

STAGE = "select"
_ROWS = 64


def select_documents(
    context: Context, documents: list[Document], tokenizer: PreTrainedTokenizerBase, name: str
) -> tuple[list[Document], bool]:
    """The documents that stay, in their order, and whether they had been chosen already.

    Raises TokenizerMismatch where the reference model cuts text differently.
    """
    spec = context.recipe.data.difference
    assert spec is not None
    key = fingerprint_of(
        [document.id for document in documents],
        spec.model_dump(mode="json"),
        context.recipe.teacher.model_dump(mode="json"),
        context.recipe.data.max_length,
    )
    stage, file = f"{STAGE}-{name}", context.folder.file("selection") / f"{name}.json"
    if context.folder.is_done(stage, key) and file.is_file():
        try:
            kept = set(read_json(file)["kept"])
            return [document for document in documents if document.id in kept], True
        except (CorruptFile, KeyError, TypeError):
            context.warn(f"{file} cannot be read: the documents are chosen again")
    with context.stage(stage, key, f"difference sampling over {len(documents)} documents") as facts:
        scores, facts["tokens"] = difference_scores(context, documents, tokenizer, spec)
        order = sorted(scores, key=lambda identity: (-scores[identity], identity))
        kept = set(order[: max(1, round(spec.keep * len(order)))])
        write_json(file, {"kept": sorted(kept), "scores": {i: round(scores[i], 5) for i in sorted(scores)}})
        facts["kept"] = len(kept)
    return [document for document in documents if document.id in kept], False


def difference_scores(
    context: Context, documents: list[Document], tokenizer: PreTrainedTokenizerBase, spec: DifferenceSpec
) -> tuple[dict[str, float], int]:
    """Mean difference of log-probabilities a trained token, by document, and the tokens that were read."""
    differences = tokenizer_differences(tokenizer, load_tokenizer(spec.reference))
    if differences:
        raise TokenizerMismatch(
            f"data.difference.reference ({spec.reference.model}) cuts text differently from the teacher: "
            f"{differences[0]}; take a small model of the teacher's family"
        )
    plain = context.recipe.data.model_copy(update={"packing": False, "shuffle": False})
    dataset = build_dataset(
        documents, tokenizer, plain, seed=context.recipe.seed, report=DataReport(), progress=Progress()
    )
    dtype = context.dtype_of(spec.reference)
    reference = load_model(spec.reference, dtype=dtype, device=context.device)
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for model, sign, who in ((context.teacher, 1.0, "teacher"), (reference, -1.0, "reference")):
        for identity, total, count in log_likelihoods(model, dataset, len(tokenizer), context.progress, who):
            totals[identity][0] += sign * total
            totals[identity][1] += count / 2
    tokens = 2 * sum(len(row["input_ids"]) for row in dataset)
    return {identity: total / count for identity, (total, count) in totals.items() if count}, tokens


def log_likelihoods(
    model: PreTrainedModel, dataset: Dataset, vocabulary_size: int, progress: Progress, who: str
) -> list[tuple[str, float, int]]:
    """For each unpacked row its document, the log-probability of its trained tokens, and their number."""
    engine = LocalEngine(model, vocabulary_size, SignalSpec(kind="token"))
    found = []
    with progress.task(f"the {who} reads", total=len(dataset), unit="rows") as task:
        for first in range(0, len(dataset), _ROWS):
            rows = dataset.select(range(first, min(first + _ROWS, len(dataset))))
            items = [TrainingSequence.from_columns(row) for row in rows]
            for item, payload in zip(items, engine.tell(items, [0] * len(items)), strict=True):
                found.append((item.row_ids[0], float(payload["logprobs"].sum()), len(payload["logprobs"])))
            task.advance(len(items))
    return found
