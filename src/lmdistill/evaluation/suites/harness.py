"""lm-eval on a model that is already loaded, without the network unless it was asked for.

Everything that lm-eval wants is set for the length of one call and put back: its log level, the switches that keep
Hugging Face's libraries off the network, the random states that it seeds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lmdistill.errors import DataError, LmdistillError, MissingExtra, ModelError
from lmdistill.evaluation.speakers import LocalSpeaker, Speaker
from lmdistill.models import quiet_transformers

Sample = Mapping[str, Any]
_MISSING = "the suite `tasks` runs on the package lm-eval: pip install 'lmdistill[eval]'"


def check_harness() -> None:
    """Raises MissingExtra where lm-eval is not installed; it is not imported yet, which takes seconds."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtra(_MISSING)


def measure(
    speaker: Speaker, tasks: Sequence[str | dict[str, Any]], *, limit: int | None, batch_size: int, online: bool
) -> dict[str, list[Sample]]:
    """What lm-eval finds of a model on tasks: for each task its items with their scores, in order.

    A task is a configuration, or a name of lm-eval's own where `online`. Raises ModelError for a model that gives no
    likelihoods, DataError where lm-eval cannot load a task.
    """
    if not isinstance(speaker, LocalSpeaker):
        raise ModelError(f"{speaker.label}: lm-eval compares likelihoods, which an API does not give; leave it out")
    library, manager, wrapper = _library()
    with _calm(online):
        model = _scored_by(speaker, wrapper, batch_size)
        try:
            found = library(
                model=model,
                tasks=list(tasks),
                task_manager=manager(include_defaults=online),
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
            )
        except LmdistillError:
            raise  # ours already: a stop by a signal above all
        except (KeyError, ValueError, OSError, RuntimeError) as error:
            names = ", ".join(str(task.get("task")) if isinstance(task, dict) else task for task in tasks)
            advice = "check the names and the network" if online else "look at the file"
            raise DataError(f"lm-eval cannot run {names} ({type(error).__name__}: {error}); {advice}") from error
    samples: dict[str, list[Sample]] = found["samples"]
    return {name: sorted(rows, key=lambda row: int(row["doc_id"])) for name, rows in samples.items()}


def _scored_by(speaker: LocalSpeaker, wrapper: Any, batch_size: int) -> Any:
    """lm-eval's own wrapper of a loaded model, but for the likelihoods, which come from the speaker.

    The wrapper makes and normalises logits of every position (800 MB for 16 texts of 250 tokens of SmolLM2), where
    those of the options are wanted; the figures are the same, and a test holds the two against each other.
    """

    def loglikelihood(self: Any, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        found = speaker.likelihoods([request.args for request in requests], batch_size)
        return [(one.logprob, one.greedy) for one in found]

    return type("ScoredBySpeaker", (wrapper,), {"loglikelihood": loglikelihood})(
        pretrained=speaker.model, tokenizer=speaker.tokenizer, batch_size=batch_size, max_length=speaker.context
    )


def _library() -> tuple[Any, Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from lm_eval.evaluator import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra(_MISSING) from error
    return simple_evaluate, TaskManager, HFLM


@contextmanager
def _calm(online: bool) -> Iterator[None]:
    """Without lm-eval's notices, its seeds and, unless wanted, the network."""
    import datasets
    import huggingface_hub.constants as hub

    level = logging.root.manager.disable
    python, numpy_state = random.getstate(), np.random.get_state()
    offline = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    bars = datasets.are_progress_bars_disabled()
    try:
        logging.disable(logging.ERROR)
        datasets.disable_progress_bars()
        if not online:
            datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
        # lm-eval's progress bars go to stderr whatever one says.
        hidden = contextlib.redirect_stderr(io.StringIO())
        with quiet_transformers(), torch.random.fork_rng(), hidden, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        random.setstate(python)
        np.random.set_state(numpy_state)
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = offline
        if not bars:
            datasets.enable_progress_bars()
