"""Text from a server: a small one here, with real models behind vLLM's protocol, that can also misbehave and die."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from writing import names

from lmdistill.errors import EXIT_INTERRUPTED, DataError, ModelError, RecipeError, ServerLost, TrainingError
from lmdistill.models import load_model, load_tokenizer
from lmdistill.recipe import GenerationSpec, ModelSpec
from lmdistill.trajectories.served import Patience, ServerWriter
from lmdistill.trajectories.types import Trajectory

PROMPTS = [[504, 3575, 282], [19556], [28, 597, 1343, 347, 5145], [7042, 30], [198, 198, 504], [253, 260]]


class Server(ThreadingHTTPServer):
    """Completions of token ids from the model in a folder, which it reads when it is told to."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model: Any = None
        self.lock = threading.Lock()
        self.calls: list[str] = []
        self.die_after: int | None = None
        self.misbehave = ""
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        random = torch.Generator().manual_seed(body["seed"] % 2**62)
        ids, logprobs = [], []
        while len(ids) < body["max_tokens"] and not set(ids[-1:]) & set(body["stop_token_ids"]):
            logs_V = self.model(torch.tensor([body["prompt"] + ids])).logits[0, -1].float().log_softmax(-1)
            heat = body["temperature"]
            token = int((logs_V / heat).softmax(-1).multinomial(1, generator=random)) if heat else int(logs_V.argmax())
            ids.append(token)
            logprobs.append(float(logs_V[token]))
        reason = "stop" if ids[-1] in body["stop_token_ids"] else "length"
        return {"token_ids": ids, "logprobs": {"token_logprobs": logprobs}, "finish_reason": reason}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.answer(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.calls.append(self.path)
            asked = server.calls.count("/v1/completions")
            if server.die_after is not None and asked > server.die_after:
                self.close_connection = True
                return self.connection.close()
            if self.path == "/collective_rpc":
                return self.take_over(body)
            if self.path == "/reset_prefix_cache":
                return self.answer(200, {"success": True})
            if server.misbehave == "400":
                return self.answer(400, {"error": {"message": "too long"}})
            choice = {"index": 0, "text": "", **server.complete(body)}
            if server.misbehave == "no ids":
                del choice["token_ids"]
            if server.misbehave == "nan":
                choice["logprobs"]["token_logprobs"][0] = None
            if server.misbehave == "abort":
                server.misbehave, choice["finish_reason"] = "", "abort"
        value = {"id": "1", "object": "text_completion", "created": 0, "model": "student", "choices": [choice]}
        return self.answer(200, value)

    def take_over(self, body: dict[str, Any]) -> None:
        if self.server.misbehave == "no dev mode":
            return self.answer(404, {"error": {"message": "Not Found"}})
        if self.server.misbehave == "wrong folder":
            return self.answer(500, {"error": {"message": "no such folder"}})
        assert body["method"] == "reload_weights"
        if self.server.misbehave != "stale" or self.server.model is None:
            self.server.model = AutoModelForCausalLM.from_pretrained(
                body["kwargs"]["weights_path"], dtype=torch.float32, local_files_only=True
            )
        return self.answer(200, {"results": [None]})

    def answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_folder: Path) -> Any:
    return load_tokenizer(ModelSpec(model=str(tiny_llama_folder)))


@pytest.fixture
def student(tiny_llama_folder: Path) -> Any:
    """A random model whose output head is its embeddings; large weights, so that it prefers some tokens."""
    model = load_model(ModelSpec(model=str(tiny_llama_folder)), dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    return model


@pytest.fixture
def writer(server: Server, tokenizer: Any, tmp_path: Path) -> Iterator[ServerWriter]:
    made = ServerWriter(
        GenerationSpec(max_new_tokens=6, batch_size=2),
        end_ids=[2],
        tokenizer=tokenizer,
        base_url=server.url,
        folder=tmp_path / "served",
        patience=Patience(rounds=1, seconds=3, every=0.05),
    )
    yield made
    made.close()


def write(made: ServerWriter, **options: Any) -> list[Trajectory]:
    return made.write(PROMPTS, seed=4, step=7, row_ids=names(len(PROMPTS)), **options)


def test_text_and_log_probabilities_are_those_of_the_weights_that_it_was_told_to_read(
    server: Server, writer: ServerWriter, student: Any
) -> None:
    writer.refresh(student, 0)
    assert server.calls == ["/collective_rpc", "/reset_prefix_cache"]
    heard: list[int] = []
    first = write(writer, told=heard.append)
    assert [one.prompt_ids for one in first] == PROMPTS
    assert [(one.row_id, one.step) for one in first] == [(name, 7) for name in names(6)]
    assert sorted(heard) == sorted(len(one.answer_ids) for one in first)
    assert write(writer) == first
    assert first[0].behaviour_logprobs == first[0].logprobs
    for one in first:
        assert len(one.answer_ids) == 6 or one.finished
        with torch.no_grad():
            logs = student(torch.tensor([[*one.prompt_ids, *one.answer_ids]])).logits[0].log_softmax(-1)
        own = logs[len(one.prompt_ids) - 1 : -1].gather(1, torch.tensor(one.answer_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.logprobs), own, atol=0.3, rtol=0.1)  # weights in bfloat16
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    assert write(writer) == first
    writer.refresh(student, 1)
    second = write(writer)
    assert [one.answer_ids for one in second] != [one.answer_ids for one in first]
    assert [len(one.answer_ids) <= 2 for one in write(writer, max_new_tokens=2)] == [True] * 6


def test_the_folder_holds_an_output_head_of_its_own(writer: ServerWriter, student: Any) -> None:
    writer.refresh(student, 0)
    assert student.config.tie_word_embeddings
    assert not json.loads((writer.folder / "config.json").read_text())["tie_word_embeddings"]
    weights = load_file(writer.folder / "model.safetensors")
    assert torch.equal(weights["lm_head.weight"], student.get_input_embeddings().weight.to(torch.bfloat16))
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_a_server_that_dies_and_comes_back_is_asked_for_what_is_missing(
    server: Server, writer: ServerWriter, student: Any
) -> None:
    # The dying server may still say that it is well.
    writer.patience = Patience(rounds=5, seconds=20, every=0.05)
    writer.refresh(student, 0)
    undisturbed = write(writer)
    port = server.server_address[1]
    server.die_after = server.calls.count("/v1/completions") + 3
    revived: list[Server] = []

    def kill_and_revive() -> None:
        while server.calls.count("/v1/completions") <= (server.die_after or 0):
            time.sleep(0.01)
        server.shutdown()
        server.server_close()
        time.sleep(0.3)
        revived.append(Server(port))

    killer = threading.Thread(target=kill_and_revive)
    killer.start()
    heard: list[int] = []
    try:
        assert write(writer, told=heard.append) == undisturbed
    finally:
        killer.join()
        for one in revived:
            one.stop()
    assert sorted(heard) == sorted(len(one.answer_ids) for one in undisturbed)
    assert revived[0].calls[:2] == ["/collective_rpc", "/reset_prefix_cache"]  # the new process gets the weights first
    assert revived[0].calls.count("/v1/completions") == 3


def test_a_server_that_stays_away_pauses_the_run(server: Server, writer: ServerWriter, student: Any) -> None:
    writer.refresh(student, 0)
    server.die_after = 2
    with pytest.raises(ServerLost, match=r"step 7: texts are missing; .* 2 times.*VLLM_SERVER_DEV_MODE=1 vllm serve"):
        write(writer)
    assert ServerLost("").exit_code == EXIT_INTERRUPTED
    server.die_after = None
    assert len(write(writer)) == 6  # what asks again, goes on


def test_a_server_that_is_not_there_at_the_beginning_finds_its_folder_written(
    writer: ServerWriter, student: Any
) -> None:
    writer.close()
    away = ServerWriter(
        writer.spec,
        end_ids=[2],
        tokenizer=writer.tokenizer,
        base_url="http://127.0.0.1:9/v1",
        folder=writer.folder,
        patience=Patience(rounds=0, seconds=0, every=0.05),
    )
    with pytest.raises(ServerLost, match=r"weights are in .*served, but .*--host 127.0.0.1 --port 9"):
        away.refresh(student, 0)
    assert (writer.folder / "model.safetensors").is_file()
    away.close()


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("no dev mode", ModelError, "start it as VLLM_SERVER_DEV_MODE=1"),
        ("wrong folder", ModelError, "no such folder.*the same folder for the server"),
        ("400", ModelError, r"refused the prompt of row \d \(400: .*too long"),
        ("no ids", ModelError, "gave no token ids"),
        ("nan", TrainingError, r"step 7: .* no number for row \d"),
        ("stale", ModelError, r"by \d+\.\d+ nats a token .* does not hold the student's weights"),
    ],
)
def test_servers_that_will_not_do_are_named(
    how: str, error: type[Exception], words: str, server: Server, writer: ServerWriter, student: Any
) -> None:
    if how == "stale":
        writer.refresh(student, 0)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.copy_(torch.randn_like(parameter))
    server.misbehave = how

    def both() -> None:
        writer.refresh(student, 0)
        write(writer)

    with pytest.raises(error, match=words):
        both()


def test_a_text_that_the_server_ended_by_force_is_asked_for_again(
    server: Server, writer: ServerWriter, student: Any
) -> None:
    writer.refresh(student, 0)
    expected = write(writer)
    server.misbehave = "abort"
    assert write(writer) == expected


def test_what_cannot_be_written_is_refused(writer: ServerWriter, student: Any) -> None:
    writer.refresh(student, 0)
    with pytest.raises(DataError, match="row 0: a prompt of 251 tokens and up to 6 new ones do not fit into the 256"):
        writer.write([[5] * 251], seed=0, step=0, row_ids=names(1))
    with pytest.raises(RecipeError, match="num_beams = 3"):
        ServerWriter(
            GenerationSpec(num_beams=3), end_ids=[2], tokenizer=writer.tokenizer, base_url="x", folder=writer.folder
        )
