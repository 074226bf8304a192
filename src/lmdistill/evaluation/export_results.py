"""What an export is and what it kept, as typed records: `export.json` is their dump."""

from __future__ import annotations

from pydantic import Field

from lmdistill.evaluation.records import Interval, Record


class Kept(Record):
    """An exported student beside a reference, on one held-out text."""

    tokens: int
    agreement: Interval
    """Share of tokens whose top choice both share."""
    forward_kl: Interval
    """KL(reference‖export) in nats a token."""


class ExportText(Record):
    """One held-out text."""

    perplexity: Interval
    """Of the export."""
    student_perplexity: Interval
    student: Kept
    """Beside the student before its export, in float32."""
    teacher: Kept | None = None
    """Beside the teacher; absent where its weights are not here or it cuts text otherwise."""
    student_to_teacher: Kept | None = None
    """The student before its export beside the teacher, on the same tokens."""


class LlamaCppCheck(Record):
    """What a real llama.cpp said with the file, beside transformers with the weights of the file in float32."""

    version: str
    """Of the package xllamacpp."""
    probes: int
    """Texts that both cut into tokens."""
    probes_equal: int
    """Of these, cut into the same ones."""
    tokens: int
    """Tokens that llama.cpp wrote greedily."""
    tokens_equal: int
    """Of these, transformers' top choice too."""
    mean_difference: float | None
    """Mean absolute difference of the log-probability of those tokens, in nats; answers in which one character is
    several tokens are left out, since llama.cpp does not tell those of all. None where nothing is left."""
    max_difference: float | None
    answer: str
    """What it wrote first; from a model, escape it wherever it is shown."""


class ExportRecord(Record):
    """One export."""

    name: str
    format: str
    quantization: str
    path: str
    bytes: int
    """Of all its files that hold weights."""
    student_bytes: int
    """Of the student's weights before."""
    student: str
    """Fingerprint of the student's weights."""
    seconds: float
    """What making it took, measuring left out."""
    notes: list[str] = Field(default_factory=list)
    texts: dict[str, ExportText] = Field(default_factory=dict)
    """By held-out text; empty where there was none."""
    tokens_per_second: float | None = None
    """New tokens a second, one sequence, greedy; by llama.cpp for GGUF. Absent where it was not measured."""
    student_tokens_per_second: float | None = None
    """The same of the student before, by transformers in this machine's faster format."""
    speed_by: str = ""
    """Which program decoded, and in which number format."""
    llamacpp: LlamaCppCheck | None = None
    """Absent for other formats, and where xllamacpp is not installed."""
