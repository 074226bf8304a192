"""Hints: distances between what happens inside both models, beside their output.

Each is one function with one name in `HINTS`. Every function returns a mean over the positions that count, a scalar
with gradient for the student alone, computed in at least float32 and in pieces where a tensor would be large.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lmdistill.objectives.hints.attention import attention_kl, attention_mse, attention_scores_mse
from lmdistill.objectives.hints.attribution import attribution_distance, integrated_gradients
from lmdistill.objectives.hints.cosine import cosine_distance
from lmdistill.objectives.hints.hidden import (
    hidden_cosine,
    hidden_mse,
    hidden_normalised_mse,
    hidden_residual_mse,
)
from lmdistill.objectives.hints.layer_logits import layer_logits
from lmdistill.objectives.hints.relations import relation_kl
from lmdistill.objectives.hints.structure import (
    cka,
    contrastive,
    fsp,
    gram,
    linear_cka,
    rkd_angle,
    rkd_distance,
    similarity,
)

Takes = Literal["hidden", "flow", "scores", "query", "key", "value", "logits", "attributions"]


@dataclass(frozen=True)
class Hint:
    """One distance: what of a layer it compares, and by what function."""

    name: str
    takes: Takes
    """Hidden states; those of two layers, one behind the other; attention scores; queries, keys or values; logits; or
    attributions."""
    function: Callable[..., Tensor]
    same_width: bool = False
    """Whether the vectors of both models must be of one width, so that others need a projector."""


HINTS: Mapping[str, Hint] = {
    hint.name: hint
    for hint in (
        Hint("hidden_mse", "hidden", hidden_mse, same_width=True),
        Hint("hidden_cosine", "hidden", hidden_cosine, same_width=True),
        Hint("hidden_normalised_mse", "hidden", hidden_normalised_mse, same_width=True),
        Hint("hidden_residual_mse", "hidden", hidden_residual_mse, same_width=True),
        Hint("embedding_mse", "hidden", hidden_mse, same_width=True),
        Hint("attention_scores_mse", "scores", attention_scores_mse),
        Hint("attention_mse", "scores", attention_mse),
        Hint("attention_kl", "scores", attention_kl),
        Hint("value_relation", "value", relation_kl),
        Hint("query_relation", "query", relation_kl),
        Hint("key_relation", "key", relation_kl),
        Hint("gram", "hidden", gram, same_width=True),
        Hint("fsp", "flow", fsp, same_width=True),
        Hint("similarity", "hidden", similarity),
        Hint("cka", "hidden", cka),
        Hint("rkd_distance", "hidden", rkd_distance),
        Hint("rkd_angle", "hidden", rkd_angle),
        Hint("contrastive", "hidden", contrastive, same_width=True),
        Hint("layer_logits", "logits", layer_logits),
        Hint("attribution", "attributions", attribution_distance),
    )
}
"""Every hint by its name in a recipe."""

__all__ = [
    "HINTS",
    "Hint",
    "Takes",
    "attention_kl",
    "attention_mse",
    "attention_scores_mse",
    "attribution_distance",
    "cka",
    "contrastive",
    "cosine_distance",
    "fsp",
    "gram",
    "hidden_cosine",
    "hidden_mse",
    "hidden_normalised_mse",
    "hidden_residual_mse",
    "integrated_gradients",
    "layer_logits",
    "linear_cka",
    "relation_kl",
    "rkd_angle",
    "rkd_distance",
    "similarity",
]
