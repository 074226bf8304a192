"""What generated rows must pass before the student learns from them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lmdistill.recipe.base import Count, Section, Share

Side = Literal["prompt", "response", "both"]
"""Which text of a row a check looks at."""
LanguageName = Literal[
    "ar", "de", "el", "en", "es", "fr", "he", "hi", "it", "ja", "ko", "nl", "pt", "ru", "th", "zh"
]  # fmt: skip
"""Languages that `generation.checks.language` can tell apart (ISO 639-1)."""
PiiKind = Literal["email", "phone", "iban", "credit_card", "ipv4", "us_ssn"]
"""Personal data that has a pattern of its own."""
_Similarity = Annotated[float, Field(gt=0.0, le=1.0)]


class LengthFilter(Section):
    """Shortest and longest texts; words are what white space separates."""

    min_prompt_words: Count | None = None
    """Fewest words of a prompt."""
    max_prompt_words: Count | None = None
    """Most words of a prompt."""
    min_response_words: Count | None = None
    """Fewest words of a response."""
    max_response_words: Count | None = None
    """Most words of a response."""
    min_prompt_characters: Count | None = None
    """Fewest characters of a prompt."""
    max_prompt_characters: Count | None = None
    """Most characters of a prompt."""
    min_response_characters: Count | None = None
    """Fewest characters of a response."""
    max_response_characters: Count | None = None
    """Most characters of a response."""

    @model_validator(mode="after")
    def _ordered(self) -> LengthFilter:
        for name in ("prompt_words", "response_words", "prompt_characters", "response_characters"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name} = {low} is more than max_{name} = {high}: every row would be dropped")
        return self


class LanguageFilter(Section):
    """Language by script and frequent words: a heuristic. What it cannot tell (short texts, code, sums) passes."""

    languages: list[LanguageName] = Field(default=["en"], min_length=1)
    """Languages that stay."""
    side: Side = "response"
    """Where it looks."""


class RefusalFilter(Section):
    """Responses in which the teacher declines, by English patterns at their beginning."""

    characters: Count = 300
    """How far into the response it looks; what is declined later may be part of an answer."""
    patterns: list[str] = Field(default_factory=list)
    """Further regular expressions, read without case."""

    @field_validator("patterns")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return value


class RepetitionFilter(Section):
    """Responses that go round in circles."""

    ngram: Count = 4
    """Length of the runs of words that are counted."""
    max_share: Share = 0.6
    """Largest share of runs that occurred before in the same response."""
    min_words: Count = 30
    """Responses with fewer words are not judged by that share."""
    max_run: Count = 10
    """Most times that one word stands in succession (numbers and signs do not count)."""
    max_loops: Annotated[int, Field(ge=2)] = 5
    """Most times that a passage of 2 to `longest_loop` words stands in succession."""
    longest_loop: Annotated[int, Field(ge=2)] = 64
    """Longest passage that is looked for, in words."""


class PiiFilter(Section):
    """Personal data by pattern: mistakes on both sides are possible, names and addresses are not found.

    What cannot belong to anyone passes: example domains, private addresses, numbers with a wrong checksum.
    """

    kinds: list[PiiKind] = Field(default=["email", "iban", "credit_card", "us_ssn", "ipv4", "phone"], min_length=1)
    """What is looked for."""
    action: Literal["mask", "drop"] = "mask"
    """Write `[email]` and so on in its place, in all texts of the row, or leave the row out."""


class MarkerFilter(Section):
    """Text that could act on whoever shows it or puts it into a prompt. The ledger keeps every answer as it came."""

    roles: Literal["drop", "keep"] = "drop"
    """Tokens and headings of chat templates (`<|im_start|>`, `[INST]`, `### Instruction:`, `Human:`)."""
    injection: Literal["drop", "keep"] = "drop"
    """Sentences that tell a model to forget its instructions or to show them."""
    escapes: Literal["drop", "keep"] = "drop"
    """Terminal escapes and other control characters, and characters that turn the direction of writing."""
    html: Literal["drop", "keep"] = "keep"
    """HTML that runs or loads something (scripts, frames, event handlers, `javascript:`); plain tags always pass."""
    side: Side = "response"
    """Where it looks."""


class NearDuplicateFilter(Section):
    """Rows that are almost the same as one before: MinHash finds them, the exact Jaccard similarity decides."""

    threshold: _Similarity = 0.9
    """Smallest Jaccard similarity of the sets of shingles at which the later row is dropped. Questions about one long
    passage are alike to a high degree: raise it, or look at `response`, where such rows shall stay."""
    permutations: Annotated[int, Field(ge=16, le=1024)] = 128
    """Length of a MinHash; a longer one makes fewer comparisons in vain, and takes longer to make."""
    shingle: Count = 3
    """Words in a shingle."""
    side: Side = "both"
    """What is compared."""


class NoveltyFilter(Section):
    """Prompts that are too like one of the pool, by ROUGE-L (Self-Instruct, 2212.10560)."""

    threshold: _Similarity = 0.7
    """A prompt passes where its ROUGE-L F1 with every prompt of the pool is below this."""
    side: Literal["prompt", "response"] = "prompt"
    """What is compared."""


class RationaleFilter(Section):
    """Responses to one seed that use almost the same words (MCC-KD, 2310.14747)."""

    threshold: _Similarity = 0.8
    """Jaccard similarity of the sets of words at which the later response is dropped."""


class ContaminationFilter(Section):
    """Rows that occur in an evaluation set of the recipe."""

    runs: bool = True
    """Drop rows that share a run of 13 words with an evaluation row (GPT-3, 2005.14165)."""
    template_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """A run that stands in at least this share of an evaluation set's rows, and in at least ten, is its template and
    proves nothing."""
    question_similarity: _Similarity = 0.7
    """Drop rows with the answer of an evaluation row, the same numbers in the question, and at least this Jaccard
    similarity of the questions' words."""
    answer_words: Count = 8
    """An answer of at least so many words is a match by itself."""


class FilterSpec(Section):
    """Checks of generated rows, in the order in which they are made; `null` leaves one out.

    Each row that is left out is recorded with the check, the reason and what it was too like.
    """

    empty: bool = True
    """Drop rows without a prompt or without a response."""
    length: LengthFilter | None = None
    """Shortest and longest texts."""
    refusal: RefusalFilter | None = Field(default_factory=RefusalFilter)
    """Responses in which the teacher declines."""
    repetition: RepetitionFilter | None = Field(default_factory=RepetitionFilter)
    """Responses that go round in circles."""
    language: LanguageFilter | None = None
    """Languages that stay."""
    markers: MarkerFilter | None = Field(default_factory=MarkerFilter)
    """Role markers, prompt injection, terminal escapes, active HTML."""
    contamination: ContaminationFilter | None = Field(default_factory=ContaminationFilter)
    """Overlap with the evaluation sets."""
    pii: PiiFilter | None = Field(default_factory=PiiFilter)
    """Personal data."""
    verdict: Literal["any", "not_incorrect", "correct"] = "not_incorrect"
    """Which verdicts of verification stay; `correct` drops what could not be verified too. What is dropped here passed
    all checks above, and can be the worse answer of a pair."""
    rationale: RationaleFilter | None = None
    """Responses to one seed that use almost the same words."""
    near_duplicate: NearDuplicateFilter | None = Field(default_factory=NearDuplicateFilter)
    """Rows that are almost the same."""
    novelty: NoveltyFilter | None = None
    """Prompts that are too like one of the pool."""
