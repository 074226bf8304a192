"""The page: everything on it, nothing loaded, nothing executed, readable on a phone and in the dark."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lmdistill.errors import DataError
from lmdistill.evaluation.results import (
    CalibrationBin,
    Comparison,
    Efficiency,
    Evaluation,
    ExposurePoint,
    FrequencyBand,
    Generation,
    Interval,
    LengthBucket,
    ModelScores,
    ResponseScores,
    TextScores,
    TokenHeat,
)
from lmdistill.io import append_line, write_json, write_text
from lmdistill.report import compare_runs, student_card, summary_sentence, write_report

HOSTILE = "</script><script>window.owned=1</script><img src=x onerror=window.owned=1>\x1b[31m\x00"


def interval(value: float) -> Interval:
    return Interval(value=value, low=value * 0.9, high=value * 1.1)


def scores(quality: float, teacher: bool = False) -> TextScores:
    return TextScores(
        tokens=1000,
        bytes=4200,
        sequences=10,
        perplexity=interval(30 / quality),
        bits_per_byte=interval(1 / quality),
        accuracy=interval(0.4 * quality),
        calibration_error=interval(0.05),
        calibration=[CalibrationBin(confidence=0.1 * i, accuracy=0.09 * i, tokens=10) for i in range(1, 10)],
        agreement=None if teacher else interval(0.6 * quality),
        forward_kl=None if teacher else interval(1 / quality),
        reverse_kl=None if teacher else interval(1.2 / quality),
        by_frequency=[] if teacher else [FrequencyBand(label="1-9", tokens=99, agreement=0.3, forward_kl=2.0)],
    )


def written(quality: float, teacher: bool = False) -> ResponseScores:
    lengths = (1, 8, 16, 32, 64)
    return ResponseScores(
        prompts=50,
        answers=100,
        tokens=6400,
        rouge_teacher=interval(0.3 * quality),
        rouge_reference=interval(0.2 * quality),
        by_teacher_length=[
            LengthBucket(label=label, answers=30, rouge=interval(share * quality))
            for label, share in (("6-10", 0.3), ("11-30", 0.25), ("31-100", 0.2))
        ],
        length=interval(50 * quality),
        unfinished=interval(0.2),
        repetition=interval(0.1 / quality),
        distinct={"1": 0.3, "2": 0.7, "4": 0.9},
        own_nll=interval(2.0),
        coverage=interval(3 / quality),
        likelihood=interval(4 / quality),
        forward_kl_own=None if teacher else interval(1.5 / quality),
        forward_kl_teacher=None if teacher else interval(1 / quality),
        reverse_kl_own=None if teacher else interval(1.2 / quality),
        excess_error=None if teacher else interval(20 / quality),
        excess_length=None if teacher else 64,
        exposure=[]
        if teacher
        else [
            ExposurePoint(length=n, answers=100 - n, regret=1.2 * n, expected=1.0 * n, excess=interval(n / 3 / quality))
            for n in lengths
        ],
    )


def evaluation(student: float = 0.8, sft: float = 0.6, extra: str = "", answers: bool = True) -> Evaluation:
    """Invented scores: a fixture, not a measurement."""
    speed = Efficiency(
        parameters=70_000_000,
        embedding_parameters=28_000_000,
        bytes=140_000_000,
        prefill_tokens_per_second=900.0,
        decode_tokens_per_second=40.0,
        peak_memory_bytes=900_000_000,
        dtype="bfloat16",
    )
    roles: list[tuple[Any, float]] = [("teacher", 1.0), ("student", student), ("none", 0.1), ("sft", sft)]
    better = "student" if student > sft else "other"
    comparisons = [
        Comparison(other="sft", text="boolq", metric=metric, difference=interval(0.1), better=better)  # type: ignore[arg-type]
        for metric in ("agreement", "forward_kl", "log_perplexity")
    ]
    comparisons += [
        Comparison(other="sft", text="boolq", metric="rouge_teacher", difference=interval(0.1), better=better),  # type: ignore[arg-type]
        Comparison(other="sft", text="boolq", metric="length", difference=interval(-7.0), better="neither"),
        Comparison(other="teacher", text="boolq", metric="coverage", difference=interval(-7.7), better="other"),
    ]
    return Evaluation(
        models=[
            ModelScores(
                role=r,
                label=r,
                texts={"boolq": scores(q, r == "teacher")},
                responses={"boolq": written(q, r == "teacher")} if answers else {},
                efficiency=speed,
            )
            for r, q in roles
        ],
        comparisons=comparisons,
        heat=[
            TokenHeat(
                text="boolq",
                tokens=["The", " cat", " sat" + extra],
                forward_kl=[math.nan, 0.2, 3.0],
                teacher_top=["", " cat", " sat"],
                student_top=["", " dog", " on" + extra],
            )
        ],
        generations=[Generation(prompt="Hello" + extra, answers={"teacher": "world" + extra, "student": "word"})],
        responses=[
            Generation(
                prompt="<|im_start|>user\nA question" + extra,
                answers={"teacher": "An answer." + extra, "student": "Another one.\n" * 3 + extra, "sft": ""},
                text="boolq",
                reference="The right one" + extra,
            )
        ]
        if answers
        else [],
        confidence=0.95,
        bootstrap_samples=1000,
        seconds=3.0,
    )


def run_folder(path: Path, extra: str = "", **quality: Any) -> Path:
    path.mkdir(parents=True)
    write_text(path / "recipe.yaml", f"name: fixture\nteacher:\n  model: '{extra}'\ndata:\n  train: []\n")
    write_json(path / "evaluation.json", evaluation(extra=extra, **quality).model_dump(mode="json"))
    finding = {"check": "licence", "severity": "note", "message": "unknown" + extra, "fix": ""}
    write_json(path / "doctor.json", {"findings": [finding], "memory": [{"term": "weights", "bytes": 10**9}]})
    write_json(
        path / "student.json",
        {
            "start": "teacher",
            "parameters_before": 135e6,
            "parameters_after": 70e6,
            "layers_before": 4,
            "kept_layers": [0, 3],
            "importance": "perplexity",
            "layer_importance": {"1": 0.1, "2": math.nan},
            "removal_order": [1, 2],
        },
    )
    stage = {"name": "distil", "seconds": 60.0, "tokens": 1000, "flops": 1e12, "skipped": False}
    machine = {"processor": "fixture" + extra, "cores": 2}
    write_json(path / "accounting.json", {"stages": [stage], "machine": machine})
    report = dict.fromkeys(
        ("rows_read", "documents", "bad", "duplicates", "split", "dropped", "sequences", "trained_tokens"), 3
    )
    shared = {"exact": 0, "heldout_documents": 5, "overlapping": 1, "ngram": 13}
    write_json(
        path / "data.json",
        {
            "train": {"distil" + extra: report},
            "evaluation": {"boolq": report},
            "contamination": {"boolq": shared},
        },
    )
    for step in range(5):
        append_line(
            path / "events.jsonl",
            f'{{"kind":"step","stage":"distil","step":{step},"tokens":{step * 100},"loss":{5 - step},"divergence":1}}',
        )
    append_line(path / "events.jsonl", '{"kind":"step","stage":"distil","loss":"nan"')  # cut by a kill
    return path


def test_every_part_is_there_and_nothing_is_loaded(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run")).read_text(encoding="utf-8")
    for section in ("comparison", "training", "where", "writing", "student", "data", "cost", "recipe"):
        assert f'<section id="{section}">' in page
    assert "default-src 'none'" in page
    assert '<link rel="stylesheet"' not in page
    assert "<script src" not in page


def test_the_summary_says_when_the_student_wins_and_when_it_loses(tmp_path: Path) -> None:
    won = summary_sentence(run_folder(tmp_path / "won"))
    assert "better in agreement, divergence and perplexity on boolq" in won
    assert "to 50 prompts of boolq have a ROUGE-L of 0.240 to the teacher's (the teacher itself 0.300, " in won
    assert "the teacher finds 5.00 nats of surprise a token in them, 2.00 in its own." in won
    assert "48.0 %" in won
    lost = summary_sentence(run_folder(tmp_path / "lost", student=0.5, sft=0.7))
    assert "worse in agreement, divergence and perplexity on boolq" in lost
    assert "better in" not in lost


@pytest.mark.parametrize("name", ["evaluation", "doctor", "student", "accounting", "data"])
def test_a_missing_part_is_said_not_hidden(tmp_path: Path, name: str) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / f"{name}.json").unlink()
    page = write_report(folder).read_text(encoding="utf-8")
    assert name == "doctor" or "in this folder yet" in page


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder"):
        write_report(tmp_path)


def test_runs_are_compared_and_the_card_has_the_figures(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / name) for name in ("one", "two")]
    page = compare_runs(runs, tmp_path / "compare.html").read_text(encoding="utf-8")
    assert page.count("48.00%") == 2
    assert page.count("<td>0.2400<small>0.2160 to 0.2640</small>") == 2
    assert page.count("<td>+25.0 %<small>+22.5 % to +27.5 %</small>") == 2
    card = student_card(runs[0])
    assert card.startswith("---\nlibrary_name: transformers")
    assert "| student | 37.50 (33.75 to 41.25)" in card


def test_what_models_wrote_has_a_section_of_its_own(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run")).read_text(encoding="utf-8")
    section = page.partition('<section id="answers">')[2].partition("</section>")[0]
    for text in ("50 prompts of boolq", "ROUGE-L to the teacher&#39;s answers", "up to 64 tokens", "30.0%, 90.0%",
                 "Another one.", "The right one", "nothing: it ended at once"):  # fmt: skip
        assert text in section, text
    assert section.count('class="best"') == 7  # one for each measure that has a better side
    assert '<td>+0.1000 <span class="better">better</span><small>+0.0900 to +0.1100</small></td>' in section
    # what has no better side gets no verdict, and differences from the teacher are not listed
    assert "<td>-7.0<small>-6.3 to -7.7</small></td>" in section
    assert "-7.7000" not in section
    without = write_report(run_folder(tmp_path / "old", answers=False)).read_text(encoding="utf-8")
    assert 'id="answers"' not in without
    assert "#answers" not in without


def test_hostile_text_is_shown_escaped(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run", HOSTILE)).read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "<script>window.owned" not in page
    assert "\x1b" not in page
    assert "\x00" not in page


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_the_page_works_in_a_real_browser(tmp_path: Path, browser: Any, width: int, scheme: str) -> None:
    page_file = write_report(run_folder(tmp_path / "run", HOSTILE))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-drawn=yes]", timeout=20000)
    assert problems == []
    assert [url for url in requests if not url.startswith(("file://", "data:", "blob:"))] == []
    assert page.evaluate("window.owned") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.locator(".chart .main-svg").count()
    assert drawn >= 7
    assert page.locator("#chart-exposure .main-svg").count() > 0
    assert page.locator("#answers .answer").count() == 4
    assert HOSTILE[:60] in page.locator("#answers .answer").first.inner_text()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    page.locator("[data-tip]").nth(2).click()
    assert "nats" in page.locator("#tip").inner_text()
    context.close()
