"""Rounds in which the student takes part: each is trained before the next is written, also when a run stops between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from echo_server import EchoServer
from http_server import serving
from lmdistill.errors import BudgetSpent
from lmdistill.generation.exporting import examples_of
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import Recipe, resolve_recipe
from lmdistill.run_folder import RunFolder


class Referee(EchoServer):
    """Prefers long answers, and writes a new instruction from the words of the one that it is shown."""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        found = super().answer(body)
        asked = body["messages"][-1]["content"]
        if "response_format" in body:
            one = len(asked.split("[begin answer one")[1].split("[end answer one")[0])
            two = len(asked.split("[begin answer two")[1].split("[end answer two")[0])
            first = asked.index("[begin answer one") < asked.index("[begin answer two")
            high, low = ("first", "second") if (one > two) == first else ("second", "first")
            found["choices"][0]["message"]["content"] = json.dumps({high: 9, low: 2})
        elif "brand new instruction" in asked:
            number = sum("brand new instruction" in prompt for prompt in self.asked)
            words = ["tell", "sing", "draw up", "weigh", "count", "paint", "praise", "mend"][number % 8]
            found["choices"][0]["message"]["content"] = f"Please {words} {number * 7} kinds of {words} {number}"
        return found


def recipe_for(url: str, folder: Path, model: Path, calls: int) -> Recipe:
    seeds = folder / "seeds.jsonl"
    rows = [{"prompt": f"Say {n} long words about the {name} sea."} for n, name in enumerate(("red", "dead", "north"))]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return resolve_recipe(
        {
            "name": "run",
            "runs": str(folder),
            "method": "lion",
            "teacher": {"base_url": f"{url}/v1", "model": "echo"},
            "api": {"requests": 1, "limits": {"calls": calls}},
            "student": {"start": "pretrained", "model": {"model": str(model)}},
            "generation": {
                "rounds": 2,
                "seeds": [{"path": str(seeds), "answer": None}],
                "ask": {"max_tokens": 4},
                "adversarial": {"new_per_kind": 2, "judged": 3},
                "filters": {"near_duplicate": None},
            },
            "data": {"max_length": 64},
            "training": {"max_steps": 1, "per_device_train_batch_size": 2},
            "evaluation": {"speed": None, "baselines": ["none"], "max_tokens": 64, "bootstrap_samples": 100},
            "machine": {"compile": False},
        }
    )


def test_a_run_that_stops_between_its_rounds_goes_on(
    tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMDISTILL_API_KEY", "key-for-the-referee")
    with serving(Referee()) as server:
        with pytest.raises(BudgetSpent):
            run_recipe(recipe_for(server.url, tmp_path, tiny_llama_folder, calls=5))
        folder = RunFolder(tmp_path / "run")
        first = folder.record("round-1")
        assert first is not None
        assert folder.record("round-2") is None
        asked = server.calls
        result = run_recipe(recipe_for(server.url, tmp_path, tiny_llama_folder, calls=500))
        assert folder.record("round-1") == first
        assert result.steps == 2
        second = list(examples_of(tmp_path / "run" / "generated" / "round-2" / "examples.jsonl"))
        again = server.calls
        run_recipe(recipe_for(server.url, tmp_path, tiny_llama_folder, calls=500))
        assert server.calls == again
    assert asked == 5
    assert {row.fields["kind"] for row in second} <= {"hard", "easy"}
    assert second
    judged = [prompt for prompt in server.asked if "[begin answer one" in prompt]
    assert len(judged) == 6
    assert not (tmp_path / "run" / "checkpoints" / "after-round-1").exists()
