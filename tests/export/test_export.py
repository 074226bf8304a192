"""Exporting a real run's student: what is measured again, and what the card says of it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from lmdistill.cli import app
from lmdistill.errors import CorruptFile, ModelError
from lmdistill.export import export_student, find_student, read_records, write_card
from lmdistill.export.source import load_student
from lmdistill.models import load_model, load_tokenizer
from lmdistill.pipeline import run_recipe
from lmdistill.recipe import ExportSpec, ModelSpec, load_recipe
from lmdistill.report.markdown import code, plain
from small import small_overrides

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tiny_llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of forward KL that exports int8 at its end."""
    recipe = ROOT / "recipes" / "forward_kl.yaml"
    small = small_overrides(recipe, tiny_llama_folder, text_file)
    folder = tmp_path_factory.mktemp("runs")
    change = ["evaluation.baselines=[none]", "export=[int8]", f"runs={folder}", "name=run"]
    return run_recipe(load_recipe(recipe, [*small, *change])).folder


def test_a_run_exports_what_its_recipe_names_and_says_what_it_kept(run: Path) -> None:
    (record,) = read_records(run / "export.json")
    assert (record.name, record.path) == ("int8", "exports/int8")
    assert record.bytes == (run / "exports" / "int8" / "int8.safetensors").stat().st_size
    kept = record.texts["held"]
    assert kept.student.tokens > 50
    assert 0 < kept.student.forward_kl.value < 0.01
    assert kept.student.forward_kl.low <= kept.student.forward_kl.value <= kept.student.forward_kl.high
    assert 0.5 < kept.student.agreement.value <= 1
    assert kept.teacher is not None
    assert kept.student_to_teacher is not None
    assert abs(kept.teacher.forward_kl.value - kept.student_to_teacher.forward_kl.value) < 0.01
    page = (run / "report.html").read_text()
    assert '<section id="exports">' in page
    stages = json.loads((run / "accounting.json").read_text())["stages"]
    assert [stage["part"] for stage in stages if stage["name"] == "export-int8"] == ["comparison"]


def test_the_same_run_again_exports_nothing_anew(run: Path) -> None:
    file = run / "exports" / "int8" / "int8.safetensors"
    before = file.stat().st_ino
    run_recipe(load_recipe(run / "recipe.yaml"))
    assert file.stat().st_ino == before


def test_the_card_is_one_that_the_hub_reads(run: Path) -> None:
    write_card(run)
    text = (run / "student" / "README.md").read_text()
    card = ModelCard(text)
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "other"
    assert {"lmdistill", "knowledge-distillation", "forward_kl"} <= set(data["tags"])
    evaluation = json.loads((run / "evaluation.json").read_text())
    student = next(model for model in evaluation["models"] if model["role"] == "student")["texts"]["held"]
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["perplexity"].metric_value == pytest.approx(student["perplexity"]["value"], abs=1e-6)
    assert found["kl_divergence"].metric_args["low"] == pytest.approx(student["forward_kl"]["low"], abs=1e-6)
    for heading in ("Lineage", "Method", "Data", "Exports", "Cost", "Licence notes", "Limits"):
        assert f"\n## {heading}\n" in text
    assert "https://arxiv.org/abs/1606.07947" in text
    assert "| int8 | held |" in text


def test_hub_names_become_metadata_and_foreign_text_stays_text(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("data", "student-initial", "checkpoints", "exports"))
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["teacher"]["model"] = "org/teacher"
    recipe["student"] = {"start": "pretrained", "model": {"model": "org/small"}}
    recipe["data"]["train"] = [{"path": "org/set"}, {"path": "x`|<script>alert(1)</script>\n---\n# no"}]
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    finding = {
        "check": "licence",
        "severity": "ok",
        "message": "teacher: Apache-2.0 (stated)",
        "fix": "<b>*x*</b> ![a](http://b)",
    }
    (copy / "doctor.json").write_text(json.dumps({"findings": [finding], "memory": []}))
    write_card(copy)
    text = (copy / "student" / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "apache-2.0"
    assert (data["base_model"], data["base_model_relation"]) == ("org/small", "finetune")
    assert data["datasets"] == ["org/set"]
    assert "<b>" not in text
    assert "![a]" not in text
    assert "``x`\\|<script>alert(1)</script> --- # no``" in text  # code shows what is in it
    assert "\n# no" not in text


@pytest.mark.parametrize("text", ["a|b", "``", "`", "x\ny", "<img src=x>", "[a](b)", "\x1b[31m", "# h", "&amp;", "‮x"])
def test_escaped_text_has_no_markup(text: str) -> None:
    for shown in (plain(text), code(text)):
        assert "\n" not in shown
        assert "\x1b" not in shown
        assert "‮" not in shown
    assert "<" not in plain(text)
    assert not code(text).replace("\\|", "").count("|")


def test_a_student_without_its_run(run: Path, text_file: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run / "student", tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--format", "safetensors", "--quantization", "f16"]
    done = CliRunner().invoke(
        app, [*words, "--no-speed", "--json", "--data", f"held={text_file}", "--max-tokens", "200"]
    )
    found = json.loads(done.stdout)
    assert found["ok"], found
    assert found["texts"]["held"]["student"]["forward_kl"]["value"] < 1e-4
    folder = tmp_path / "model-exports" / "safetensors-f16"
    assert load_model(ModelSpec(model=str(folder)), dtype=torch.float16, device=CPU).dtype == torch.float16
    assert read_records(tmp_path / "model-exports" / "export.json")[0].name == "safetensors-f16"


def test_adapters_are_merged(run: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = run / "student"
    model = load_model(ModelSpec(model=str(base)), dtype=torch.float32, device=CPU)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 for a name it has renamed
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(base)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    load_tokenizer(ModelSpec(model=str(base))).save_pretrained(tmp_path / "adapter")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = adapted.eval()(ids).logits
        merged = load_student(find_student(tmp_path / "adapter"), torch.float32, CPU)
        assert torch.allclose(merged(ids).logits, wanted, atol=1e-5)


def test_bad_wishes_are_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    source = find_student(run)
    with pytest.raises(ModelError, match="would replace the student itself"):
        export_student(source, ExportSpec(format="int8"), output=run)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="holds something else"):
        export_student(source, ExportSpec(format="int8"), output=tmp_path)
    with pytest.raises(ModelError, match="a GGUF export is one file"):
        export_student(source, ExportSpec(format="gguf"), output=tmp_path)
    with pytest.raises(ValueError, match="int8 cannot hold q8_0"):
        ExportSpec(format="int8", quantization="q8_0")
    answer = CliRunner().invoke(app, ["export", str(run), "--format", "onnx"])
    assert answer.exit_code == 2
    assert "choose one of safetensors, gguf, int8" in answer.output
    (tmp_path / "export.json").write_text('{"exports": [{}]}')
    with pytest.raises(CorruptFile, match="delete it and export again"):
        read_records(tmp_path / "export.json")


@pytest.mark.slow
def test_a_real_student_as_gguf_in_a_real_llama_cpp(smollm2_folder: Path, text_file: Path) -> None:
    pytest.importorskip("xllamacpp")
    from lmdistill.export.run import yardstick_of_data
    from lmdistill.recipe import SourceSpec

    source = find_student(smollm2_folder)
    for kind, bound in (("f16", 1e-4), ("q8_0", 5e-3)):
        spec = ExportSpec(format="gguf", quantization=kind, max_tokens=400)
        by = yardstick_of_data(source, {"held": SourceSpec(path=str(text_file))}, None, spec)
        record = export_student(source, spec, by=by, threads=1)
        assert record.texts["held"].student.forward_kl.value < bound
        check = record.llamacpp
        assert check is not None
        assert check.probes_equal == check.probes
        assert check.tokens_equal >= check.tokens - 2
        assert check.mean_difference is not None
        assert check.mean_difference < 0.05
