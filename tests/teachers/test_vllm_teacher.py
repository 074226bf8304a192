"""A teacher behind a real vLLM (`make test-vllm` makes its environment): the real model, in float32 on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch

from lmdistill.data import Collator
from lmdistill.errors import ModelError, ServerLost
from lmdistill.models import load_model, load_tokenizer
from lmdistill.objectives import divergence
from lmdistill.recipe import ModelSpec
from lmdistill.signals import HiddenSignal
from lmdistill.teachers import LocalTeacher, ServedTeacher, served_bias, teacher_columns, with_context
from vllm_server import VLLM, serving_vllm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VLLM.is_file(), reason="needs .venv-vllm (make test-vllm)")]

TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Photosynthesis is the process by which plants turn light, water and carbon dioxide into sugar.",
    "A home run derby is a contest in which players try to hit as many home runs as they can.",
]


@pytest.fixture(scope="module")
def served(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Popen[bytes]]]:
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    options = ["--dtype", "float32", "--max-model-len", "512", "--max-logprobs", "64", "--max-num-seqs", "8"]
    with serving_vllm(smollm2_folder, log, *options) as found:
        yield found


@pytest.fixture(scope="module")
def ids(smollm2_folder: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(ModelSpec(model=str(smollm2_folder)))
    return [tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.fixture(scope="module")
def local(smollm2_folder: Path) -> LocalTeacher:
    model = load_model(ModelSpec(model=str(smollm2_folder)), dtype=torch.float32, device=torch.device("cpu"))
    return LocalTeacher(model, len(load_tokenizer(ModelSpec(model=str(smollm2_folder)))))


def packed(ids: list[list[int]]) -> dict[str, Any]:
    """Two rows of a batch, the first with two packed rows; the first tokens of each are not trained."""
    columns = []
    for texts in (ids[:2], ids[2:]):
        columns.append(
            {
                "input_ids": [token for text in texts for token in text],
                "labels": [-100 if place < 3 else token for text in texts for place, token in enumerate(text)],
                "position_ids": [place for text in texts for place in range(len(text))],
                "row_ids": [str(number) for number in range(len(texts))],
            }
        )
    return Collator()(columns)


def log_probabilities(local: LocalTeacher, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own log-probabilities where something is trained, (n, V), and which positions these are."""
    part = local.speak(given).parts[0]
    assert isinstance(part.signal, HiddenSignal)
    wanted_N = torch.zeros(given["input_ids"].shape, dtype=torch.bool)
    wanted_N[:, :-1] = given["labels"][:, 1:] != -100
    index_n = wanted_N.flatten().nonzero()[:, 0]
    with torch.no_grad():
        return (part.signal.hidden_NK[index_n] @ part.signal.head_VK.T).log_softmax(-1), index_n


@pytest.mark.parametrize("own_text", [False, True], ids=["the student's text", "a text of its own"])
def test_a_real_vllm_says_what_the_model_says(
    own_text: bool, served: tuple[str, Any], ids: list[list[int]], local: LocalTeacher, smollm2_folder: Path
) -> None:
    given = packed(ids)
    if own_text:
        retold = [[with_context(text, 2, ids[1][:5]) for text in texts] for texts in (ids[:2], ids[2:])]
        given = {**given, **teacher_columns(given, retold)}
    log_nV, index_n = log_probabilities(local, given)
    teacher = ServedTeacher(served[0], str(smollm2_folder), log_nV.shape[1], k=64)
    (part,) = teacher.speak(given).parts
    teacher.close()
    signal: Any = part.signal
    assert part.mask_N is not None
    assert part.mask_N.nonzero()[:, 0].tolist() == index_n.tolist()
    found_nk, ids_nk = signal.logprobs_Nk[index_n], signal.ids_Nk[index_n]
    filled_nk = found_nk > -torch.inf
    assert bool((filled_nk.sum(1) >= 64).all())
    torch.testing.assert_close(found_nk[filled_nk], log_nV.gather(1, ids_nk)[filled_nk], rtol=1e-3, atol=5e-3)
    # A student that has learned nothing: every term of the bucketed divergence counts.
    hidden_NH = torch.zeros(len(part.mask_N), 4).requires_grad_()
    loss = divergence(hidden_NH, torch.randn(log_nV.shape[1], 4), signal, mask_N=part.mask_N)
    kept_nV = torch.zeros_like(log_nV, dtype=torch.bool).scatter_(1, ids_nk, filled_nk)
    p_nV, size_n = log_nV.exp(), kept_nV.sum(1)
    tail_n = 1 - (p_nV * kept_nV).sum(1)
    uniform = 1 / log_nV.shape[1]
    exact_n = (p_nV * kept_nV * (log_nV - torch.tensor(uniform).log())).sum(1)
    exact_n += tail_n * (tail_n / (1 - size_n * uniform)).clamp_min(1e-30).log()
    torch.testing.assert_close(loss.detach(), exact_n.mean(), rtol=1e-3, atol=1e-3)


def test_the_mass_that_a_real_vllm_can_tell_is_measured(
    served: tuple[str, Any], ids: list[list[int]], local: LocalTeacher, smollm2_folder: Path
) -> None:
    with torch.no_grad():
        logs = [local.model(torch.tensor([text])).logits[0, :-1].log_softmax(-1) for text in ids]
    for k in (20, 64):
        teacher = ServedTeacher(served[0], str(smollm2_folder), logs[0].shape[1], k=k)
        measured = teacher.measure(ids)
        teacher.close()
        mass = torch.cat(logs).exp().topk(k).values.sum(1)
        assert measured.positions == len(mass)
        assert measured.mean == pytest.approx(float(mass.mean()), abs=1e-3)
        assert measured.low == pytest.approx(float(mass.quantile(0.05)), abs=5e-3)
        assert f"{measured.mean:.1%} of its probability" in served_bias(k, measured=measured)


def test_more_than_the_server_gives_is_refused_with_what_to_do(
    served: tuple[str, Any], ids: list[list[int]], smollm2_folder: Path
) -> None:
    teacher = ServedTeacher(served[0], str(smollm2_folder), 49152, k=65)
    with pytest.raises(ModelError, match="--max-logprobs 65"):
        teacher.speak(packed(ids))
    teacher.close()


def test_a_vllm_that_is_killed_pauses_the_run(
    served: tuple[str, Popen[bytes]], ids: list[list[int]], smollm2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of this module: it kills the server."""
    monkeypatch.setattr("lmdistill.signals.server.RETRIES", 2)
    teacher = ServedTeacher(served[0], str(smollm2_folder), 49152, k=20)
    assert len(teacher.speak(packed(ids)).parts) == 1
    served[1].kill()
    served[1].wait(timeout=60)
    with pytest.raises(ServerLost, match="run the same command again"):
        teacher.speak(packed(ids))
    teacher.close()
