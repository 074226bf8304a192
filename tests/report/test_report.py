"""The page: everything on it, nothing loaded, nothing executed, readable on a phone and in the dark."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmdistill.errors import DataError
from lmdistill.evaluation.results import (
    CalibrationBin,
    Comparison,
    Efficiency,
    Evaluation,
    FrequencyBand,
    Generation,
    Interval,
    ModelScores,
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


def evaluation(student: float = 0.8, sft: float = 0.6, extra: str = "") -> Evaluation:
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
    return Evaluation(
        models=[
            ModelScores(role=r, label=r, texts={"boolq": scores(q, r == "teacher")}, efficiency=speed) for r, q in roles
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
        confidence=0.95,
        bootstrap_samples=1000,
        seconds=3.0,
    )


def run_folder(path: Path, extra: str = "", **quality: float) -> Path:
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
    card = student_card(runs[0])
    assert card.startswith("---\nlibrary_name: transformers")
    assert "| student | 37.50 (33.75 to 41.25)" in card


def test_hostile_text_is_shown_escaped(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run", HOSTILE)).read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "<script>window.owned" not in page
    assert "\x1b" not in page
    assert "\x00" not in page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("LMDISTILL_REQUIRE_BROWSER") == "1":
            pytest.fail("no Chromium on the PATH, and LMDISTILL_REQUIRE_BROWSER=1 asks for one")
        pytest.skip("no Chromium on the PATH (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=flags)
        yield opened
        opened.close()


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
    assert drawn >= 5
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    page.locator("[data-tip]").nth(2).click()
    assert "nats" in page.locator("#tip").inner_text()
    context.close()
