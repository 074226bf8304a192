"""What a study says of its cells: tests over seeds against their definitions, tables in which nothing escapes."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.evaluation.results import Interval
from lmdistill.study import Cell, CellResult, StudySpec, contrasts
from lmdistill.study.carry import CellState
from lmdistill.study.chart import LEFT, WIDTH, strip_of
from lmdistill.study.compare import spread, t_cdf, t_quantile
from lmdistill.study.results import Measure
from lmdistill.study.tables import (
    Table,
    cells_csv,
    contrasts_csv,
    latex_text,
    result_tables,
    to_latex,
    to_markdown,
)
from lmdistill.study.words import limits, progress_of, verdicts

KL = Measure("held/forward_kl", "KL(teacher‖student), nats", True)
LENGTH = Measure("held/length", "length of its answers, tokens", None)
WORK = dict.fromkeys(
    ("steps", "tokens", "written", "training_seconds", "teacher_seconds", "seconds", "student_flops", "flops"), 1.0
)


def study(methods: dict[str, list[float]], seeds: int = 3) -> tuple[StudySpec, list[CellResult]]:
    """A study whose cells came to these values of KL, one a seed."""
    spec = StudySpec.model_validate(
        {"name": "s", "base": {}, "methods": {name: {} for name in methods}, "seeds": list(range(seeds))}
    )
    results = [
        CellResult(
            cell=Cell(f"{method}-s{seed}", {"runs": "runs/s"}, method, "", "", seed),
            values={
                KL.key: Interval(value=value, low=value - 1, high=value + 1),
                LENGTH.key: Interval(value=10 + value, low=0, high=20),
            },
            teacher={},
            untrained={},
            measures={KL.key: KL, LENGTH.key: LENGTH},
            work=WORK,
        )
        for method, values in methods.items()
        for seed, value in enumerate(values)
    ]
    return spec, results


# Upper 2.5 % points of printed tables of Student's t.
@pytest.mark.parametrize(
    ("freedom", "point"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (7, 2.3646), (10, 2.2281), (29, 2.0452)]
)
def test_quantiles_of_t_are_those_of_the_tables(freedom: int, point: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(point, abs=5e-5)
    assert t_cdf(-point, freedom) == pytest.approx(0.025, abs=3e-6)
    assert t_cdf(0, freedom) == pytest.approx(0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.floats(-20, 20))
def test_the_distribution_of_t_is_the_integral_of_its_density(freedom: int, value: float) -> None:
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    steps = 800
    width = value / steps
    area = sum(
        constant * (1 + ((number + 0.5) * width) ** 2 / freedom) ** (-(freedom + 1) / 2) * width
        for number in range(steps)
    )
    assert t_cdf(value, freedom) == pytest.approx(0.5 + area, abs=2e-4)


def test_methods_are_compared_seed_by_seed_and_corrected_together() -> None:
    # The seeds differ much more than the methods: paired, the difference is plain.
    spec, results = study({"KD": [1.0, 2.0, 3.0], "near": [1.01, 1.97, 3.02], "worse": [1.50, 2.51, 3.49]})
    found = {(each.method, each.measure.name): each for each in contrasts(spec, results)}
    worse = found["worse", "forward_kl"]
    assert worse.difference == pytest.approx(0.5)
    pairs = [0.50, 0.51, 0.49]
    error = 0.01 / math.sqrt(3)
    assert worse.half == pytest.approx(t_quantile(0.975, 2) * error)
    assert worse.p == pytest.approx(2 * (1 - t_cdf(0.5 / error, 2)))
    assert worse.detectable == pytest.approx((t_quantile(0.975, 2) + t_quantile(0.8, 2)) * error)
    assert worse.p_adjusted == pytest.approx(2 * worse.p)  # of two comparisons of main measures
    assert worse.verdict == "worse"
    assert found["near", "forward_kl"].verdict == "not told apart"
    assert found["worse", "length"].p_adjusted is None
    assert found["worse", "length"].verdict == ""
    assert spread(pairs)[0] == pytest.approx(0.5)


def test_one_seed_tells_nothing_apart() -> None:
    spec, results = study({"KD": [1.0], "other": [9.0]}, seeds=1)
    (found,) = [each for each in contrasts(spec, results) if each.measure is KL]
    assert math.isnan(found.p)
    assert found.verdict == ""
    assert any("One seed" in sentence for sentence in limits(spec, results, [found]))


def test_seeds_that_differ_alike_have_no_spread_to_test_with() -> None:
    """One question of sixteen, the same in all three seeds, is no certainty."""
    spec, results = study({"KD": [1.0, 2.0, 3.0], "other": [1.0625, 2.0625, 3.0625]})
    (found,) = [each for each in contrasts(spec, results) if each.measure is KL]
    assert found.difference == pytest.approx(0.0625)
    assert math.isnan(found.p)
    assert math.isnan(found.half)
    assert math.isnan(found.detectable)
    assert found.verdict == ""


def test_a_missing_cell_leaves_the_seeds_that_both_have() -> None:
    spec, results = study({"KD": [1.0, 2.0, 3.0], "other": [2.0, 3.5]})
    (found,) = [each for each in contrasts(spec, results) if each.measure is KL]
    assert found.seeds == 2
    assert found.difference == pytest.approx(1.25)


def test_words_follow_the_numbers() -> None:
    spec, results = study({"KD": [1.0, 2.0, 3.0], "worse": [1.50, 2.51, 3.49], "better": [0.5, 1.49, 2.51]})
    found = contrasts(spec, results)
    (said,) = verdicts(spec, results, found)
    assert "better: better; worse: worse" in said
    assert any("2 comparisons of main measures" in sentence for sentence in limits(spec, results, found))
    states = {"a": CellState("done"), "b": CellState("failed", message="no memory"), "c": CellState("open")}
    assert progress_of(states) == "Partial: 1 of 3 cells are done; 1 failed (b: no memory)."
    assert progress_of({"a": CellState("done")}) == ""


HARD = r"50 % & more_of {this} | ~x^2 \ #1 $5 <b> ± ‖ é 漢"


def test_no_character_of_a_name_means_something_in_a_table() -> None:
    table = Table(HARD, ["method", HARD], [[HARD, "1"]])
    body = to_markdown(table).splitlines()[4]
    assert body.replace(r"\\", "").replace(r"\|", "").count("|") == 3  # as many cells as columns
    latex = to_latex(table)
    assert r"50 \% \& more\_of \{this\}" in latex
    assert r"\textasciitilde{}x\textasciicircum{}2 \textbackslash{} \#1 \$5 \textless{}b\textgreater{}" in latex
    assert "漢" not in latex
    assert latex.count(" & ") == 2


@given(st.text(max_size=40))
def test_latex_text_has_no_active_character_left(text: str) -> None:
    left = latex_text(text)
    for spelled in (
        r"\textbackslash{}",
        r"\textasciitilde{}",
        r"\textasciicircum{}",
        r"\textless{}",
        r"\textgreater{}",
    ):
        left = left.replace(spelled, "")
    for spelled in (r"\&", r"\%", r"\$", r"\#", r"\_", r"\{", r"\}", r"$\pm$", r"$\|$", r"$\cdot$", r"$-$"):
        left = left.replace(spelled, "")
    assert not set(left) & set("\\&%$#_{}~^")


def test_tables_hold_every_method_and_csv_every_value() -> None:
    spec, results = study({"=KD()": [1.0, 2.0, 3.0], "other": [1.5, 2.5, 3.25]})
    found = contrasts(spec, results)
    first = result_tables(spec, results, found)[0]
    assert first.title.startswith("held: KL(teacher‖student), nats")
    assert [row[0] for row in first.rows] == ["=KD()", "other"]
    assert first.rows[1][3].startswith("+0.417 ± ")
    rows = list(csv.DictReader(io.StringIO(cells_csv(results))))
    assert {row["method"] for row in rows} == {"'=KD()", "other"}  # no formula for a spreadsheet
    values = [float(row["value"]) for row in rows if row["measure"] == KL.key]
    assert values == [1.0, 2.0, 3.0, 1.5, 2.5, 3.25]
    compared = list(csv.DictReader(io.StringIO(contrasts_csv(found))))
    assert float(compared[0]["difference"]) == pytest.approx(1.25 / 3)


def test_a_picture_keeps_every_dot_inside() -> None:
    spec, results = study({"KD": [1.0, 2.0, 3.0], "other": [100.0, 2.5, 3.25]})
    strip = strip_of(spec, results, ("", ""), KL)
    assert [line.label for line in strip.lines] == ["KD", "other"]
    for line in strip.lines:
        assert len(line.dots) == 3
        assert all(LEFT <= x <= WIDTH for x in (*line.dots, line.low, line.high))


def test_the_folder_of_a_cell_lies_in_its_study() -> None:
    cell = Cell("kd-s0", {"runs": "runs/s"})
    assert cell.folder == Path("runs/s/kd-s0")
    assert cell.file == Path("runs/s/kd-s0.yaml")
