"""Where models come from."""

from __future__ import annotations

from typing import Literal

from lmdistill.recipe.base import Section


class ModelSpec(Section):
    """Where a model and its tokenizer come from."""

    model: str
    """A folder, a Hugging Face name, or `package:NAME[/folder]` for files that an installed Python package ships."""
    gguf_file: str | None = None
    """Name of the GGUF file inside `model`, for models in that format."""
    revision: str | None = None
    """Commit of a Hugging Face model; pin it (40 hex digits) so that a run can be repeated."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights in memory; `auto` takes the one this processor is fast at for a teacher, and
    float32 master weights for a student."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """Attention implementation of transformers."""
