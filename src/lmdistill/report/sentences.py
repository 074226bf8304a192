"""The verdict in words: made from the numbers, saying so plainly where the student loses."""

from __future__ import annotations

from pathlib import Path

from lmdistill.evaluation.results import Interval, ModelScores
from lmdistill.report.run_data import RunData, read_run
from lmdistill.report.task import task_summary


def summary_sentence(folder: Path) -> str:
    """The verdict on a run in one or two sentences."""
    return summary_of(read_run(folder))


def summary_of(run: RunData) -> str:
    """`summary_sentence` of a run that is read already."""
    if run.evaluation is not None and run.evaluation.task is not None:
        return task_summary(run)
    student, teacher = run.model("student"), run.model("teacher")
    if student is None or not student.texts:
        return "This run has no evaluation yet."
    text = next(iter(student.texts))
    scores = student.texts[text]
    parts, whom = ["The student"], "its teacher"
    if teacher is not None and teacher.efficiency and student.efficiency:
        share = student.efficiency.parameters / teacher.efficiency.parameters
        parts.append(f"keeps {share:.0%} of its teacher's parameters and")
        whom = "it"
    if scores.agreement is not None:
        parts.append(f"agrees with {whom} on {percent(scores.agreement)} of the tokens of held-out {text}")
        others = [
            f"{label} {percent(found)}"
            for label, model in (("before training", run.model("none")), ("fine-tuned without it", run.model("sft")))
            if (found := _agreement(model, text)) is not None
        ]
        if others:
            parts.append(f"({', '.join(others)})")
    parts.append(f"at a perplexity of {scores.perplexity.value:.1f}")
    if teacher is not None:
        parts.append(f"(teacher {teacher.texts[text].perplexity.value:.1f})")
    if teacher is not None and teacher.efficiency and student.efficiency:
        ratio = student.efficiency.decode_tokens_per_second / teacher.efficiency.decode_tokens_per_second
        parts.append(f"and writes {ratio:.1f} times as fast")
    minutes = _training_minutes(run)
    ending = f", after {minutes:.1f} minutes of training." if minutes else "."
    return " ".join(parts) + ending + _against_sft(run) + _written(run)


def percent(interval: Interval) -> str:
    """A share as a percentage."""
    return f"{100 * interval.value:.1f} %"


def _against_sft(run: RunData) -> str:
    """Whether the teacher was worth it, over all texts and the three measures that matter most."""
    names = {"agreement": "agreement", "forward_kl": "divergence", "log_perplexity": "perplexity"}
    texts_of: dict[str, dict[str, list[str]]] = {"student": {}, "other": {}, "undecided": {}}
    for text in run.texts:
        for metric, name in names.items():
            found = run.comparison("sft", text, metric)
            if found is not None:
                texts_of[found.better].setdefault(name, []).append(text)
    said = {"student": "better in", "other": "worse in", "undecided": "not to be told apart in"}
    words = [f"{said[which]} {_grouped(found, len(run.texts))}" for which, found in texts_of.items() if found]
    if not words:
        return ""
    return " Against the same student fine-tuned for as many steps without the teacher it is " + "; ".join(words) + "."


def _written(run: RunData) -> str:
    """How like the teacher's the student's own answers are, on the first text that was answered."""
    student, teacher = run.model("student"), run.model("teacher")
    if student is None or not student.responses:
        return ""
    text, scores = next(iter(student.responses.items()))
    if scores.rouge_teacher is None:
        return ""
    others = [
        f"{label} {found.value:.3f}"
        for label, model in (
            ("the teacher itself", teacher),
            ("before training", run.model("none")),
            ("fine-tuned without it", run.model("sft")),
        )
        if model is not None and text in model.responses and (found := model.responses[text].rouge_teacher) is not None
    ]
    said = f" Its own answers to {scores.prompts} prompts of {text} have a ROUGE-L of {scores.rouge_teacher.value:.3f} "
    said += f"to the teacher's ({', '.join(others)})"
    if scores.likelihood is None or teacher is None:
        return said + "."
    surprise, own = scores.likelihood.value, teacher.responses[text].own_nll.value
    return f"{said}; the teacher finds {surprise:.2f} nats of surprise a token in them, {own:.2f} in its own."


def _grouped(texts_of: dict[str, list[str]], count: int) -> str:
    """Measures with the texts they hold for: those of the same texts together, many texts by their number."""
    measures_of: dict[tuple[str, ...], list[str]] = {}
    for measure, texts in texts_of.items():
        measures_of.setdefault(tuple(texts), []).append(measure)
    parts = []
    for held, measures in measures_of.items():
        where = _list(list(held)) if len(held) <= 2 else f"{len(held)} of {count} texts"
        parts.append(f"{_list(measures)} on {where}")
    return ", ".join(parts)


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _agreement(model: ModelScores | None, text: str) -> Interval | None:
    return model.texts[text].agreement if model is not None and text in model.texts else None


def _training_minutes(run: RunData) -> float:
    """Minutes of the student's own stages of training."""
    if run.accounting is None:
        return 0.0
    other = ("student", "evaluate", "sft", "generate-", "suite-", "label-", "select-", "sft-", "export-")
    return sum(float(s["seconds"]) for s in run.accounting["stages"] if not s["name"].startswith(other)) / 60
