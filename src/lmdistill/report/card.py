"""The model card of a student: what it is, how it was made, what it kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lmdistill.evaluation.results import Interval
from lmdistill.report.charts import LABELS
from lmdistill.report.run_data import RunData, read_run
from lmdistill.report.sentences import summary_of
from lmdistill.report.task import card_head, card_table


def student_card(folder: Path) -> str:
    """README.md of the student folder, for people and for the Hugging Face hub."""
    run = read_run(folder)
    recipe: dict[str, Any] = yaml.safe_load(run.recipe or "") or {}
    teacher = (recipe.get("teacher") or {}).get("model", "unknown")
    tag, kind = "text-generation", "AutoModelForCausalLM"
    if run.evaluation is not None and run.evaluation.task is not None:
        tag, kind = card_head(run)
    header = {
        "library_name": "transformers",
        "pipeline_tag": tag,
        "tags": ["lmdistill", "knowledge-distillation"],
    }
    if "/" in teacher and not teacher.startswith((".", "/", "package:")):
        header["base_model"] = teacher
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        "",
        f"# {run.name}",
        "",
        summary_of(run),
        "",
    ]
    lines += ["Made with lmdistill; it loads with transformers alone:", ""]
    lines += [f"    from transformers import {kind}, AutoTokenizer"]
    lines += [f"    model = {kind}.from_pretrained('path/to/this/folder')", ""]
    lines += [
        "## How it was made",
        "",
        f"- Teacher: `{teacher}`",
        f"- Method: {recipe.get('method') or _objective(recipe)}",
    ]
    lines += [f"- Training text: {', '.join('`' + s['path'] + '`' for s in recipe.get('data', {}).get('train', []))}"]
    lines += [f"- Licence: {_licence(run)}", ""]
    for text in run.texts:
        lines += _table(run, text)
    lines += card_table(run)
    lines += ["## Limits", ""]
    lines += ["It was measured on the texts above and on nothing else: no safety, bias or task evaluation was made."]
    lines += ["It can repeat what its teacher and its training text say, mistakes included."]
    return "\n".join(lines) + "\n"


def _objective(recipe: dict[str, Any]) -> str:
    divergence = (recipe.get("objective") or {}).get("divergence") or {}
    return f"{divergence.get('kind', 'unknown')} and cross-entropy, see recipe.yaml of the run"


def _licence(run: RunData) -> str:
    for finding in (run.doctor or {}).get("findings", []):
        if finding["check"] == "licence":
            return f"{finding['message']} {finding['fix']}".strip()
    return "the teacher's terms apply; they were not found in its files"


def _table(run: RunData, text: str) -> list[str]:
    models = run.evaluation.models if run.evaluation else []
    lines = [
        f"## Held-out {text}",
        "",
        "| | perplexity | bits per byte | agreement | KL(teacher‖student) | ECE |",
        "|---|---|---|---|---|---|",
    ]
    for model in models:
        s = model.texts[text]
        cells = [_cell(s.perplexity, 2), _cell(s.bits_per_byte, 3), _cell(s.agreement, 3), _cell(s.forward_kl, 3)]
        lines.append(f"| {LABELS[model.role]} | " + " | ".join([*cells, _cell(s.calibration_error, 3)]) + " |")
    return [*lines, ""]


def _cell(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "–"
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
