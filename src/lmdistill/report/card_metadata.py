"""The head of a model card: what the Hugging Face hub reads of it, in YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from lmdistill.evaluation.results import Interval
from lmdistill.report.markdown import one_line
from lmdistill.report.run_data import RunData
from lmdistill.report.task import card_head

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst", ".md")
_LICENCES = {
    r"apache[- ]?(licen[sc]e,? ?)?(version ?)?2(\.0)?": "apache-2.0",
    r"mit( licen[sc]e)?": "mit",
    r"bsd[- ]3[- ]clause.*": "bsd-3-clause",
    r"cc[- ]by[- ]4\.0": "cc-by-4.0",
    r"cc[- ]by[- ]nc[- ]4\.0": "cc-by-nc-4.0",
    r"gemma": "gemma",
    r"llama2": "llama2",
    r"llama3(\.[123])?": "",
}
"""Words of files, and the hub's names; an empty one stands for itself."""
_MEASURES = {
    "perplexity": ("perplexity", "perplexity"),
    "bits_per_byte": ("bits_per_byte", "bits per byte"),
    "accuracy": ("accuracy", "next-token accuracy"),
    "agreement": ("agreement", "agreement with the teacher's top choice"),
    "forward_kl": ("kl_divergence", "KL(teacher‖student), nats a token"),
    "calibration_error": ("ece", "expected calibration error"),
}


def metadata(run: RunData, recipe: Mapping[str, Any]) -> str:
    """The block of YAML between the lines of dashes, these included."""
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": tag_and_class(run)[0]}
    licence = stated_licence(run)
    head["license"] = licence or "other"
    if not licence:
        head |= {"license_name": "see-licence-notes", "license_link": "README.md"}
    base, relation = _base(recipe)
    if base is not None:
        head |= {"base_model": base, "base_model_relation": relation}
    method = recipe.get("method")
    tags = ["lmdistill", "knowledge-distillation", *([one_line(method)] if isinstance(method, str) else [])]
    head["tags"] = tags
    datasets = sorted({path for path in sources_of(recipe) if is_hub_name(path)})
    if datasets:
        head["datasets"] = datasets
    results = _results(run, recipe)
    if results:
        head["model-index"] = [{"name": one_line(run.name), "results": results}]
    return "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120).strip() + "\n---"


def tag_and_class(run: RunData) -> tuple[str, str]:
    """The hub's name of what the student does, and the class of transformers that loads it."""
    if run.evaluation is not None and run.evaluation.task is not None:
        return card_head(run)
    return "text-generation", "AutoModelForCausalLM"


def stated_licence(run: RunData) -> str:
    """The licence of the student by the hub's name, where all models that it comes from state one and the same.

    Empty where one states none, or another: what then applies is for a person to find out.
    """
    found = [finding for finding in (run.doctor or {}).get("findings", []) if finding.get("check") == "licence"]
    named = {_hub_licence(str(finding.get("message", ""))) for finding in found}
    return named.pop() if len(named) == 1 else ""


def is_hub_name(text: str) -> bool:
    """Whether this names something on the hub, as OWNER/NAME does."""
    return bool(_HUB_NAME.fullmatch(text)) and not text.lower().endswith(_FILES)


def public_name(text: str) -> str:
    """A model or a source as a card names it: of a path outside the run only its last two parts, nobody's home."""
    if text.startswith(("/", "~", ".")):
        return "/".join(("…", *text.rstrip("/").split("/")[-2:]))
    return text


def sources_of(recipe: Mapping[str, Any]) -> list[str]:
    """Where the training text comes from, stages included."""
    lists = [(recipe.get("data") or {}).get("train") or []]
    lists += [stage.get("train") or [] for stage in recipe.get("stages") or []]
    return list(dict.fromkeys(str(source.get("path")) for sources in lists for source in sources))


def teacher_of(recipe: Mapping[str, Any]) -> str:
    """The teacher's name."""
    return str((recipe.get("teacher") or {}).get("model", "unknown"))


def started_from(recipe: Mapping[str, Any]) -> str:
    """The model whose weights the student began with; empty where these were random."""
    student = recipe.get("student") or {}
    if student.get("start") == "config":
        return ""
    return str(student["model"]["model"]) if student.get("model") else teacher_of(recipe)


def _base(recipe: Mapping[str, Any]) -> tuple[str | None, str]:
    name = started_from(recipe)
    lora = (recipe.get("student") or {}).get("lora")
    relation = "adapter" if isinstance(lora, Mapping) and lora.get("merge") is False else "finetune"
    return (name if is_hub_name(name) else None), relation


def _hub_licence(message: str) -> str:
    """The hub's name of the licence in a finding of the doctor; empty for others."""
    words = message.partition(": ")[2].partition(" (")[0].strip().strip("\"'").lower()
    for pattern, name in _LICENCES.items():
        if re.fullmatch(pattern, words):
            return name or words
    return ""


def _results(run: RunData, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    student = run.model("student")
    if student is None or run.evaluation is None:
        return []
    confidence = run.evaluation.confidence
    sources = (recipe.get("data") or {}).get("evaluation") or {}
    results = []
    for text, scores in student.texts.items():
        found = [
            _metric(kind, name, interval, confidence)
            for field, (kind, name) in _MEASURES.items()
            if (interval := getattr(scores, field)) is not None
        ]
        results.append(_result("text-generation", text, sources.get(text), found))
    for text, task in student.task.items():
        found = [_metric(name, name, interval, confidence) for name, interval in task.metrics.items()]
        results.append(_result(tag_and_class(run)[0], text, sources.get(text), found))
    for suite in run.evaluation.suites:
        for one in suite.sets:
            model = next((model for model in one.models if model.role == "student"), None)
            if model is not None and one.main in model.measures:
                measure = _metric(one.main, one.main, model.measures[one.main].interval, confidence)
                results.append(_result("text-generation", f"{suite.suite}: {one.name}", None, [measure]))
    return results


def _metric(kind: str, name: str, interval: Interval, confidence: float) -> dict[str, Any]:
    bounds = {"low": round(interval.low, 6), "high": round(interval.high, 6), "confidence": confidence}
    return {"type": one_line(kind), "value": round(interval.value, 6), "name": one_line(name), "args": bounds}


def _result(task: str, text: str, source: Mapping[str, Any] | None, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    path = str((source or {}).get("path") or text)
    dataset = {"type": path if is_hub_name(path) else "custom", "name": one_line(text)}
    if source and is_hub_name(path):
        dataset |= {"split": one_line(source.get("split") or "train")}
    return {
        "task": {"type": task, "name": "held-out text" if task == "text-generation" else task},
        "dataset": dataset,
    } | {"metrics": metrics}
