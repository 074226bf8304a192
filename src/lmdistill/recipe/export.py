"""What a run exports of its student at its end."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, Section

Format = Literal["safetensors", "gguf", "int8"]
Quantization = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "int8"]

QUANTIZATIONS: dict[str, tuple[str, ...]] = {
    "safetensors": ("bf16", "f16", "f32"),
    "gguf": ("q8_0", "f16", "bf16", "f32", "q5_1", "q5_0", "q4_1", "q4_0"),
    "int8": ("int8",),
}
"""What each format can hold; the first one is taken where nothing is said."""


class ExportSpec(Section):
    """One file or folder that other programs read; in a recipe the format's name alone will do."""

    format: Format
    """`safetensors`: a plain transformers model, adapters merged. `gguf`: one file for llama.cpp and its kin. `int8`:
    weights of 8 bits for processors, read by `lmdistill.export.load_int8`."""
    quantization: Quantization | None = None
    """How weights are kept. safetensors: bf16, f16, f32. gguf: q8_0, f16, bf16, f32, q5_1, q5_0, q4_1, q4_0. int8:
    int8. Where absent, the first of each."""
    max_tokens: Count = Field(default=2048)
    """Held-out tokens, from the beginning of each text, on which the export is compared with student and teacher."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"format": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> ExportSpec:
        known = QUANTIZATIONS[self.format]
        if self.quantization is not None and self.quantization not in known:
            raise ValueError(f"{self.format} cannot hold {self.quantization}; it can hold {', '.join(known)}")
        return self

    @property
    def kept_as(self) -> str:
        """The quantization, the format's own where nothing was said."""
        return self.quantization or QUANTIZATIONS[self.format][0]

    @property
    def name(self) -> str:
        """A name of the export: of its stage and of its file."""
        return self.format if self.format == "int8" else f"{self.format}-{self.kept_as}"
