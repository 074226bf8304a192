"""A teacher that reads and writes the ids of a student whose vocabulary was trimmed.

Shape legend: V teacher's vocabulary, v the student's, H hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def narrowed(model: PreTrainedModel, kept_ids: Tensor | None) -> Iterator[PreTrainedModel]:
    """The model with its embedding and head cut to `kept_ids` (v,), as long as the context is open.

    Its distribution is then the one renormalised over these ids, and what it writes the student can read. Nothing but
    the two tables is copied. Without `kept_ids` it is the model as it is.
    """
    if kept_ids is None:
        yield model
        return
    whole: Any = model
    config = model.config.get_text_config()
    embedding, head, size = whole.get_input_embeddings(), whole.get_output_embeddings(), config.vocab_size
    try:
        whole.set_input_embeddings(_cut(embedding, kept_ids))
        whole.set_output_embeddings(_cut(head, kept_ids))
        config.vocab_size = len(kept_ids)
        yield model
    finally:
        whole.set_input_embeddings(embedding)
        whole.set_output_embeddings(head)
        config.vocab_size = size


def _cut(layer: nn.Module, kept_ids: Tensor) -> nn.Module:
    """A layer of the same class (Gemma's scales what it looks up) with the kept rows of its tables."""
    made = copy.copy(layer)
    made._parameters = {
        name: None if table is None else nn.Parameter(table[kept_ids.to(table.device)], requires_grad=False)
        for name, table in layer._parameters.items()
    }
    for name in ("num_embeddings", "out_features"):
        if hasattr(made, name):
            setattr(made, name, len(kept_ids))
    if getattr(made, "padding_idx", None) is not None:
        made.padding_idx = None  # type: ignore[assignment]
    return made
