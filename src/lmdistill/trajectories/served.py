"""Text that a vLLM server writes with the student's weights, which it takes over from a folder as training goes on.

What vLLM 0.32 offers for that, tried on its build for processors: `collective_rpc` with `reload_weights` reads a folder
into the running engine (0.3 s for SmolLM2-135M); its weight transfer needs CUDA (NCCL, IPC or RDT). The endpoint exists
where the server was started with VLLM_SERVER_DEV_MODE=1, which is for machines that strangers cannot reach.
Two things that it does not do by itself: what its prefix cache holds is of the old weights, so that is reset; and an
output head that is tied to the embeddings keeps its old weights, so the folder holds them untied.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdistill.errors import MissingExtra, ModelError, RecipeError, ServerLost, TrainingError
from lmdistill.models import save_model
from lmdistill.recipe import GenerationSpec
from lmdistill.trajectories.decode import Text, begin, check_room, limits_of
from lmdistill.trajectories.reader import context_of
from lmdistill.trajectories.types import Author, Trajectory
from lmdistill.trajectories.weights import WeightCopy

SERVED_NAME = "student"
TIMEOUT_SECONDS = 600.0
_AWAY = (429, 502, 503, 504)
"""What a server or what stands before it answers while it starts or ends."""
_TOO_FAR = 0.5
"""Mean difference in nats between the server's log-probabilities of a text and the student's own from which on the
server cannot hold the student's weights; rounding to bfloat16 makes some hundredths."""


@dataclass(frozen=True)
class Patience:
    """How long a server that went away is waited for."""

    rounds: int = 3
    """So often the same texts are asked for again."""
    seconds: float = 300.0
    """So long each time; vLLM for processors needs about two minutes to start."""
    every: float = 2.0
    """Seconds between two looks."""


class ServerWriter:
    """Writes through vLLM's OpenAI-compatible completions: token ids in, token ids and log-probabilities out."""

    def __init__(
        self,
        spec: GenerationSpec,
        *,
        end_ids: Collection[int],
        tokenizer: PreTrainedTokenizerBase,
        base_url: str,
        folder: Path,
        served_name: str = SERVED_NAME,
        patience: Patience | None = None,
    ) -> None:
        """`folder` must have the same path for the server; `spec.batch_size` requests are under way at a time.

        The key comes from the variable LMDISTILL_API_KEY or OPENAI_API_KEY, where the server wants one. Raises
        MissingExtra without the openai package, RecipeError for beams.
        """
        try:
            import openai
        except ImportError as error:
            raise MissingExtra("asking a server needs the openai package: pip install 'lmdistill[api]'") from error
        if spec.num_beams > 1:
            raise RecipeError(f"generation.num_beams = {spec.num_beams}: the student samples; use 1")
        key = os.environ.get("LMDISTILL_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        self.spec = spec
        self.end_ids = sorted(end_ids)
        self.tokenizer = tokenizer
        self.base_url = base_url.rstrip("/")
        self.folder = folder.resolve()
        self.served_name = served_name
        self.patience = patience or Patience()
        # No retries of the SDK's: a server that was started anew is given the weights before it is asked again.
        options: Any = {"api_key": key, "max_retries": 0, "timeout": TIMEOUT_SECONDS}
        self._openai = openai
        self._mendable = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError, _Stopped)
        self._client = openai.OpenAI(base_url=self.base_url, **options)
        self._engine = openai.OpenAI(base_url=self.base_url.removesuffix("/v1"), **options)
        self._copy = WeightCopy(torch.bfloat16, untied=True)
        self._context: int | None = None
        self._unproved = True

    @property
    def command(self) -> str:
        """How the server is started, once the folder holds weights."""
        host = self.base_url.removesuffix("/v1").rpartition("/")[2]
        name, _, port = host.partition(":")
        return (
            f"VLLM_SERVER_DEV_MODE=1 vllm serve {self.folder} --served-model-name {self.served_name} "
            f"--dtype bfloat16 --host {name} --port {port or 8000}"
        )

    def refresh(self, model: PreTrainedModel, step: int) -> None:
        """Save the student's present weights and have the server read them.

        Raises ServerLost where the server is not there in time, ModelError where it cannot take weights over.
        """
        copied = self._copy.take(model)
        self._context = context_of(copied)
        save_model(copied, self.tokenizer, self.folder)
        self._patiently(self._take_over, f"step {step}: the student's weights are in {self.folder}, but")
        self._unproved = True

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        step: int,
        row_ids: Sequence[str],
        max_new_tokens: int | None = None,
        told: Callable[[int], None] = lambda tokens: None,
    ) -> list[Trajectory]:
        """See `Writer.write`; a server's sums depend on what else it computes, so that a text may end differently.

        A server that goes away is waited for and asked again for what is missing. Raises ServerLost after that.
        """
        texts = begin(prompts, row_ids, seed, self.spec, limits_of(self.spec, self.end_ids, max_new_tokens))
        check_room(texts, self._context, "the student")
        missing = {text.place: text for text in texts}

        def ask() -> None:
            errors: list[BaseException] = []
            with ThreadPoolExecutor(self.spec.batch_size) as pool:
                asked = {pool.submit(self._ask, text, seed, step): text for text in missing.values()}
                for future in as_completed(asked):
                    if (error := future.exception()) is not None:
                        errors.append(error)
                        continue
                    told(len(asked[future].answer_ids))
                    del missing[asked[future].place]
            # What no waiting can mend is told first.
            for error in sorted(errors, key=lambda error: isinstance(error, self._mendable)):
                raise error

        self._patiently(ask, f"step {step}: texts are missing;", again=self._take_over)
        if self._unproved and texts:
            self._prove(max(texts, key=lambda text: len(text.answer_ids)))
        return [text.trajectory(step) for text in texts]

    def close(self) -> None:
        """Close the connections; the server goes on."""
        self._client.close()
        self._engine.close()

    def _patiently(self, action: Callable[[], None], what: str, again: Callable[[], None] | None = None) -> None:
        """Do it, and do it again where the server was away and is back; `again` comes before each further time."""
        for number in range(self.patience.rounds + 1):
            try:
                if number > 0 and again is not None:
                    again()
                return action()
            except self._mendable as error:
                if number == self.patience.rounds or not self._is_back():
                    raise ServerLost(
                        f"{what} {self.base_url} cannot be asked ({type(error).__name__}: {str(error)[:200]}), "
                        f"{number + 1} times. Start it again, then run the same command, which resumes: {self.command}"
                    ) from error

    def _is_back(self) -> bool:
        """Wait until the server answers, at most as long as patience lasts."""
        until = time.monotonic() + self.patience.seconds
        while True:
            try:
                self._engine.with_options(timeout=self.patience.every + 1).get("/health", cast_to=object)
                return True
            except self._openai.OpenAIError:
                if time.monotonic() > until:
                    return False
                time.sleep(self.patience.every)

    def _take_over(self) -> None:
        """Have the server read the folder, and forget what its cache holds of the old weights."""
        order = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
        try:
            self._engine.post("/collective_rpc", body=order, cast_to=object)
            self._engine.post("/reset_prefix_cache", body={}, cast_to=object)
        except self._openai.APIStatusError as error:
            if error.status_code in _AWAY:
                raise
            advice = f"is {self.folder} the same folder for the server, and the model there the student's kind?"
            if error.status_code in (404, 405):
                advice = f"it lets no weights be read: start it as {self.command}"
            raise ModelError(
                f"{self.base_url} does not take over the student's weights ({error.status_code}: "
                f"{str(error.message)[:300]}); {advice}"
            ) from error

    def _ask(self, text: Text, seed: int, step: int) -> None:
        """One text. Raises ModelError where the server refuses it or leaves out what is needed."""
        own_seed = int(np.random.default_rng((seed % 2**64, text.place)).integers(2**63))
        try:
            answer = self._client.completions.create(
                model=self.served_name,
                prompt=text.prompt_ids,
                max_tokens=text.limits.max_new_tokens,
                temperature=self.spec.temperature,
                top_p=self.spec.top_p,
                seed=own_seed,
                logprobs=0,
                # What is not said would be taken from the model's generation_config.json.
                extra_body={
                    "return_token_ids": True,
                    "stop_token_ids": self.end_ids,
                    "top_k": 0,
                    "min_p": 0.0,
                    "repetition_penalty": 1.0,
                },
            )
        except self._openai.APIStatusError as error:
            if error.status_code in (*_AWAY, 500):
                raise
            raise ModelError(
                f"{self.base_url} refused the prompt of {text.row_id} ({error.status_code}: "
                f"{str(error.message)[:300]}); it is started as {self.command}"
            ) from error
        self._add(text, answer.choices[0] if answer.choices else None, step)

    def _add(self, text: Text, choice: Any, step: int) -> None:
        """Check what came back and add it to the text."""
        ids = getattr(choice, "token_ids", None)
        logprobs = getattr(getattr(choice, "logprobs", None), "token_logprobs", None)
        if choice is not None and choice.finish_reason not in ("stop", "length"):
            raise _Stopped(f"{text.row_id} ended with {choice.finish_reason!r}")
        if not isinstance(ids, list) or not isinstance(logprobs, list) or len(ids) != len(logprobs) or not ids:
            raise ModelError(
                f"{self.base_url} gave no token ids with their log-probabilities for {text.row_id}; use a server that "
                "does, such as vLLM 0.32"
            )
        if any(value is None or not math.isfinite(value) for value in logprobs):
            raise TrainingError(
                f"step {step}: {self.base_url} gave a log-probability that is no number for {text.row_id}; the last "
                "checkpoint is intact. Lower training.learning_rate, or serve in float32"
            )
        plain = self.spec.temperature == 1.0 and self.spec.top_p == 1.0
        for token, logprob in zip(ids, logprobs, strict=True):
            text.add(int(token), Author.STUDENT, float(logprob), float(logprob) if plain else None)
        text.finished = choice.finish_reason == "stop"

    @torch.no_grad()
    def _prove(self, text: Text) -> None:
        """Compare the server's log-probabilities of one text with the student's own, once after each refresh."""
        model: Any = self._copy.model
        ids_1L = torch.tensor([[*text.prompt_ids, *text.answer_ids]], device=model.device)
        logits_NV = model(ids_1L).logits[0, len(text.prompt_ids) - 1 : -1].float()
        own_N = logits_NV.log_softmax(-1).gather(1, ids_1L[0, len(text.prompt_ids) :, None])[:, 0].cpu()
        off = float((own_N - torch.tensor(text.logprobs)).abs().mean())
        if not off < _TOO_FAR:
            raise ModelError(
                f"{self.base_url} finds a text of its own likelier or less likely than the student does, by {off:.2f} "
                f"nats a token where rounding makes less than {_TOO_FAR}: it does not hold the student's weights. "
                f"Start it anew on the folder that they are in: {self.command}"
            )
        self._unproved = False


class _Stopped(Exception):
    """The server ended a text by force, as vLLM does where it pauses."""
