"""Who speaks as the teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lmdistill.recipe.base import Count, NonNegative, Positive, Section
from lmdistill.recipe.models import ModelSpec


class TeachingSpec(Section):
    """Who speaks as the teacher: by default the recipe's `teacher` alone, in this process, on the student's text."""

    kind: Literal["model", "server", "routed", "mixed", "adapter_off", "self"] = "model"
    """`model`: the recipe's teacher. `server`: the same behind an OpenAI-compatible server that returns prompt
    log-probabilities. `routed`: each row is spoken of by the teacher that its column `teacher` names. `mixed`: all
    teachers, as a weighted mixture of their log-probabilities. `adapter_off`: the student without its LoRA adapter.
    `self`: the student itself, reading more than the student does (`context`)."""
    models: dict[str, ModelSpec] = Field(default_factory=dict)
    """Further teachers by name (`routed`, `mixed`); the recipe's own is called `main`. All share one tokenizer."""
    weights: dict[str, NonNegative] = Field(default_factory=dict)
    """Weights of the mixture by name (`mixed`); alike where absent."""
    gating: Literal["none", "confidence", "most_confident"] = "none"
    """Weights token by token (`mixed`): by each teacher's entropy, or the least uncertain teacher alone."""
    gating_temperature: Positive = 1.0
    """Temperature of `gating: confidence`, in nats of entropy."""
    base_url: str | None = None
    """Address of the server, for example http://127.0.0.1:8000/v1."""
    served_model: str | None = None
    """The teacher's name on the server; `teacher.model` where absent."""
    k: Annotated[int, Field(ge=1, le=4096)] = 20
    """Log-probabilities asked for at a position (`server`); vLLM gives more than 20 with --max-logprobs."""
    requests: Count = 8
    """Requests that wait for the server at a time."""
    self_weights: Literal["fixed", "ema", "live"] = "ema"
    """Which weights of the student teach (`self`): those of the start, a moving average, or the present ones."""
    ema_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """How far the moving average goes towards the student at each step (SDPO: 0.05)."""
    context: str | None = None
    """What the teacher reads in place of the prompt, with `{prompt}` and `{context}` in it: the demonstration, solution
    or feedback in the column `context` of the data. Absent: it reads what the student reads."""
    template: Literal["student", "teacher"] = "student"
    """Whose chat template the teacher reads conversations and prompts under, where the student (`start: pretrained`) is
    of the same tokenizer with another template. Of a token that the templates do not share, such as another end marker,
    the teacher does not speak."""

    @model_validator(mode="after")
    def _check(self) -> TeachingSpec:
        if self.kind == "server" and self.base_url is None:
            raise ValueError("teaching.kind: server needs teaching.base_url, for example http://127.0.0.1:8000/v1")
        if self.kind in ("routed", "mixed") and not self.models:
            raise ValueError(f"teaching.kind: {self.kind} needs further teachers in teaching.models")
        unknown = sorted(set(self.weights) - {"main", *self.models})
        if unknown:
            raise ValueError(
                f"teaching.weights names {unknown[0]!r}, which is no teacher; known: main, {', '.join(self.models)}"
            )
        if self.kind == "self" and self.context is None:
            raise ValueError(
                "teaching.kind: self needs teaching.context: with no more to read than the student, it teaches "
                "itself nothing. For example: context: '{context}\\n\\n{prompt}'"
            )
        if self.context is not None:
            for name in ("{context}", "{prompt}"):
                if name not in self.context:
                    raise ValueError(f"teaching.context lacks {name}")
        return self
