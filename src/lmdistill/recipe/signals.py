"""What is kept of the teacher on disk."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lmdistill.recipe.base import Count, Positive, Section

SignalKind = Literal["live", "top_k", "top_p", "sampled", "top_and_sampled", "hidden", "head_expectation", "token"]


class SignalSpec(Section):
    """What is kept of the teacher's distribution on disk, so that it is asked once for many trainings."""

    kind: SignalKind = "live"
    """`live`: nothing is stored, the teacher runs beside the student. `top_k`: its k likeliest tokens and the mass of
    the rest. `top_p`: as many as hold the probability p, at most k. `sampled`: draws with counts (RS-KD 2503.16870),
    unbiased. `top_and_sampled`: the likeliest and draws from the rest, unbiased. `hidden`: the last hidden state in few
    directions, for the whole vocabulary. `head_expectation`: the mean row of the student's frozen head. `token`: the
    log-probability of the text's own token."""
    store: str | None = None
    """Folder of the store; `signals` in the run's folder where absent. Several runs may share one."""
    k: Annotated[int, Field(ge=1, le=4096)] = 128
    """Most tokens kept at a position (`top_k`, `top_p`)."""
    p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.99
    """Probability that the kept tokens hold (`top_p`)."""
    samples: Annotated[int, Field(ge=1, le=4096)] = 50
    """Draws at a position (`sampled`, `top_and_sampled`)."""
    proposal_temperature: Positive = 1.0
    """Draws come from the teacher's distribution to the power of 1 / this; other than 1 they are weighted, and the
    estimate is consistent but no longer unbiased (`sampled`)."""
    exact: Annotated[int, Field(ge=1, le=4096)] = 8
    """Tokens kept exactly (`top_and_sampled`)."""
    rank: Annotated[int, Field(ge=1)] = 128
    """Directions of the hidden state that are kept (`hidden`)."""
    resolution: Annotated[float, Field(gt=1e-5, le=0.5)] = 0.008
    """Step in which probabilities are kept; what rounds to none of it joins the tail. Half of it takes about half as
    many bytes again and halves the error."""
    tail: Literal["bucket", "renormalise", "drop"] = "bucket"
    """What becomes of the probability that is not kept (`top_k`, `top_p`); see `lmdistill.signals.TopKSignal`."""
    temperature: Positive = 1.0
    """Temperature of the stored distribution; the objective must use the same."""
    calibration_tokens: Annotated[int, Field(ge=256)] = 16384
    """Tokens of the text on which the codec learns its tables, before anything is stored."""
    shard_rows: Annotated[int, Field(ge=1, le=65536)] = 256
    """Sequences in one file of the store: as much as a kill can cost."""
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    """Tokens that the teacher reads at a time."""
    engine: Literal["local", "server", "ray", "answers"] = "local"
    """Who lets the teacher speak: this process, a server that returns prompt log-probabilities (vLLM's, through its
    OpenAI-compatible API; kinds `top_k`, `top_p` and `token`), or workers of Ray. `answers`: an API spoke before, and
    what it returned stands in a file (kind `top_k`)."""
    answers: str | None = None
    """File with an API's answers and their token log-probabilities (`engine: answers`), JSONL; see docs/signals.md."""
    base_url: str | None = None
    """Address of the server (`engine: server`), for example http://127.0.0.1:8000/v1."""
    served_model: str | None = None
    """The teacher's name on the server or of the API; `teacher.model` where absent."""
    requests: Count = 8
    """Requests that wait for the server at a time."""
    workers: Count = 2
    """Worker processes (`engine: ray`)."""

    def meaning(self) -> dict[str, Any]:
        """The fields on which the stored signals depend; the others say how they are made and where they lie."""
        used: dict[str, set[str]] = {
            "top_k": {"k", "resolution", "tail"},
            "top_p": {"k", "p", "resolution", "tail"},
            "sampled": {"samples", "proposal_temperature", "resolution"},
            "top_and_sampled": {"exact", "samples", "resolution"},
            "hidden": {"rank"},
        }
        return self.model_dump(mode="json", include={"kind", "temperature", *used.get(self.kind, set())})
