"""What the makers of well-known teachers say about training on their answers: hints where to look, no legal advice.

Terms change and differ between versions, providers and countries. A note says what was found on the date below and
asks to check; a model that is not in the table is unknown, never free.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

AS_OF = "2026-10"
"""When the notes were written."""


@dataclass(frozen=True)
class LicenceNote:
    """What is known of a teacher's terms."""

    licence: str
    note: str


UNKNOWN = LicenceNote("unknown", "unknown: check before you publish the data or a student trained on them")
_OPEN = "the weights are under {}, which does not restrict what the answers are used for; check the model's own card"
_TERMS: tuple[tuple[str, str, str], ...] = (
    (r"smollm", "Apache-2.0", _OPEN.format("Apache-2.0")),
    (r"tinyllama", "Apache-2.0", _OPEN.format("Apache-2.0")),
    (r"olmo", "Apache-2.0", _OPEN.format("Apache-2.0")),
    (r"gpt-?oss", "Apache-2.0", _OPEN.format("Apache-2.0") + " and the usage policy beside it"),
    (r"gemma[-_ ]?(?:[4-9]|\d\d)(?!\d*b)", "Apache-2.0 (Gemma 4)", _OPEN.format("Apache-2.0")),
    (
        r"gemma",
        "Gemma Terms of Use (Gemma 1 to 3)",
        "a model that is trained on its answers to perform similarly may count as a Model Derivative, to which these "
        "terms and their use restrictions go along; check the Gemma Terms of Use",
    ),
    (
        r"llama[-_ ]?(?:2|3(?!\.\d|[-_]\d[-_]|\d))(?!\d*b)",
        "Llama 2 or Llama 3 Community License",
        "answers may not be used to improve other large language models than Llama and its derivatives; check the "
        "licence",
    ),
    (
        r"llama[-_ ]?[34](?!\d*b)",
        "Llama Community License (3.1 and later)",
        "answers may be used to improve other models; one that is distributed must say 'Built with Llama' and "
        "its name must begin with 'Llama'; a use policy and a limit by number of users go with it; check the licence "
        "of the very version",
    ),
    (
        r"llama",
        "a Llama licence, version unknown",
        "versions up to 3 forbid to improve other models with the answers, later ones ask for 'Built with Llama'; "
        "check which it is",
    ),
    (
        r"qwen|qwq",
        "Apache-2.0 or a Qwen licence, by model",
        "many sizes are Apache-2.0, some are under a Qwen or research licence that asks for attribution or forbids "
        "commercial use; check the card of this size",
    ),
    (
        r"mistral|mixtral|ministral|magistral|codestral|devstral",
        "Apache-2.0 or a Mistral licence, by model",
        "some weights are Apache-2.0, some are for research only, and the API has its own terms; check which applies",
    ),
    (
        r"deepseek",
        "MIT (R1 and later) or the DeepSeek licence",
        "MIT does not restrict distillation; check the version, and the terms of the API where one was used",
    ),
    (r"(?:^|[/_-])phi-?\d", "MIT", _OPEN.format("MIT")),
    (
        r"(?:^|/)(?:gpt-|o[1-9](?:-|$)|chatgpt|text-davinci)|openai",
        "OpenAI's terms of use",
        "they forbid to use answers to develop models that compete with OpenAI; check the terms of your account",
    ),
    (
        r"claude|anthropic",
        "Anthropic's terms",
        "they restrict training of competing models; check the terms of your account",
    ),
    (
        r"gemini",
        "Google's API terms",
        "they restrict the development of competing models; check the terms of your account",
    ),
    (r"grok", "xAI's terms", "they restrict training of competing models; check the terms of your account"),
    (
        r"command-?[ra]\b|cohere|\baya\b",
        "CC-BY-NC or Cohere's terms",
        "the weights are for non-commercial use; check the card",
    ),
)
"""(pattern of the name, licence, note), the first that fits counts."""


def licence_note(model: str) -> LicenceNote:
    """What is known of the terms of the teacher with this name, by the name alone; `UNKNOWN` where nothing is."""
    for pattern, licence, note in _TERMS:
        if re.search(pattern, model, re.IGNORECASE):
            return LicenceNote(licence, f"{note} (as of {AS_OF})")
    return UNKNOWN
