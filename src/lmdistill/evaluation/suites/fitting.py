"""How prompts are put to models that write: in their chat template or plainly, the same way to all."""

from __future__ import annotations

from collections.abc import Sequence

from lmdistill.errors import ModelError
from lmdistill.evaluation.speakers import Speaker
from lmdistill.evaluation.suites.types import Bench


def uses_chat(bench: Bench) -> tuple[bool, list[str]]:
    """Whether prompts go through chat templates, and what is to be said of it.

    Raises ModelError where models have different templates and the recipe does not say what to do: their answers would
    be answers to different prompts.
    """
    wish = bench.suites.prompt
    models = bench.speakers
    remote = [speaker for speaker in models if is_remote(speaker)]
    templates = {speaker.template for speaker in models if speaker not in remote}
    if wish == "plain":
        return False, []
    if wish == "chat":
        without = [speaker.label for speaker in models if speaker.template is None and speaker not in remote]
        if without:
            raise ModelError(f"{without[0]} has no chat template; set evaluation.suites.prompt to plain")
        different = len(templates) > 1
        return True, ["chat templates differ: each model was asked in its own"] if different else []
    if not templates:
        return True, []
    if templates == {None}:
        return False, []
    if len(templates) == 1:
        return True, ["a model behind an API is asked in its server's template"] if remote else []
    raise ModelError(
        f"chat templates differ ({_named(models)}), so the models would answer different prompts; set "
        "evaluation.suites.prompt to chat (each in its own template) or plain (the same text for all)"
    )


def _named(models: Sequence[Speaker]) -> str:
    kinds: dict[str | None, int] = {}
    parts = []
    for speaker in models:
        number = kinds.setdefault(speaker.template, len(kinds) + 1)
        parts.append(f"{speaker.label}: {'none' if speaker.template is None else f'template {number}'}")
    return ", ".join(parts)


def is_remote(speaker: Speaker) -> bool:
    """Whether a model is behind an API: it writes, and gives neither likelihoods nor weights."""
    return not getattr(speaker, "gives_likelihoods", True)
