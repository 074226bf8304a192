"""What the studio's tabs show, without a browser: from real tiny runs, half-written files and hostile text."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import Markup
from torch import Tensor
from typer.testing import CliRunner

from lmdistill import cli
from lmdistill.errors import DataError, MissingExtra, TokenizerMismatch
from lmdistill.evaluation.results import Evaluation
from lmdistill.generation.types import Drop, Example
from lmdistill.io import RunLock, append_line, read_json, write_json, write_lines, write_text
from lmdistill.studio import chat, compare, page, signals
from lmdistill.studio import runs as standing
from lmdistill.studio.data import RowFiles, Wanted, card_page, chosen, read_rows, rounds_of, rows_page, values_of
from lmdistill.studio.heat import heat_of
from lmdistill.studio.heat_view import NAMES, Heat, HeatToken, heat_page
from lmdistill.studio.live import LiveRun, LiveRuns, Tail, curves
from lmdistill.studio.server import launch, reachable
from lmdistill.studio.shelf import Choice, Shelf, choices_of, teacher_label

HOSTILE = (
    "</p><script>window.owned=1</script><img src=x onerror=window.owned=1>\x1b[31m\x00\u202egnp.exe"
    "${window.owned=1}{{7*7}}**bold**"
)


def step(number: int, loss: float = 1.0, stage: str = "distil") -> str:
    return json.dumps({"kind": "step", "stage": stage, "step": number, "tokens": 10 * number, "loss": loss})


def begun(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.yaml", "name: x\nmethod: forward_kl\ntraining:\n  max_steps: 8\n")
    for line in lines or ('{"kind": "stage_started", "stage": "distil"}',):
        append_line(folder / "events.jsonl", line)
    return folder


def state(folder: Path) -> standing.RunState:
    return standing.state_of(folder.name, folder, LiveRuns().of(folder))


# -- events as they come -------------------------------------------------------------------------------------------


def test_each_look_reads_only_what_is_new_and_a_cut_line_waits(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    tail = Tail(file)
    assert tail.read() == ([], False)
    file.write_text('{"a": 1}\n[1]\nnot json\n{"a": ' + "[" * 100_000 + '\n{"a": 2', encoding="utf-8")
    assert tail.read() == ([{"a": 1}], False)
    with open(file, "a", encoding="utf-8") as log:
        log.write('2}\n{"a": 3}\n')
    assert tail.read() == ([{"a": 22}, {"a": 3}], False)
    assert tail.read() == ([], False)
    file.write_text('{"b": 1}\n', encoding="utf-8")  # the run was begun anew
    assert tail.read() == ([{"b": 1}], True)
    file.unlink()
    assert tail.read() == ([], True)


def test_a_look_costs_what_was_appended_and_not_the_whole_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(tmp_path / "run", *(step(number) for number in range(500)))
    live = LiveRun(folder)
    live.refresh()
    read: list[int] = []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda text: read.append(len(text)) or real(text))
    append_line(folder / "events.jsonl", step(500))
    before = live.version
    assert live.refresh() > before
    assert len(read) == 1
    assert live.refresh() == before + 1  # nothing new, nothing to draw
    assert live.last_step == {"kind": "step", "stage": "distil", "step": 500, "tokens": 5000, "loss": 1.0}


def test_curves_are_the_reports_and_name_their_ends(runs: Path) -> None:
    live = LiveRuns().of(runs / "written")  # in the other one the student is still its teacher: a loss of 0
    drawn = str(curves(live))
    steps = [event for event in live.curves if event["kind"] == "step" and event["stage"] == "distil"]
    assert steps
    assert (
        f"distil: {steps[0]['loss']:.4g} at the beginning, {steps[-1]['loss']:.4g} at {steps[-1]['tokens']:g}" in drawn
    )
    assert drawn.count('<svg viewBox="0 0 520') >= 2
    assert "rgb(0,1," not in drawn  # the report's placeholders have become colours of the theme


def test_hostile_events_are_only_shown(tmp_path: Path) -> None:
    lines = [json.dumps({"kind": "stage_started", "stage": HOSTILE}), step(1, stage=HOSTILE), step(2, stage=HOSTILE)]
    lines += [json.dumps({"kind": "step", "stage": "x", "step": "1", "tokens": [], "loss": "NaN"})]
    folder = begun(tmp_path / "run", *lines, json.dumps({"kind": "warning", "text": HOSTILE}))
    live = LiveRuns().of(folder)
    harmless(runs_page := runs_module_page(folder, live))
    assert "⟨U+202E⟩" in runs_page


def runs_module_page(folder: Path, live: LiveRun) -> str:
    return standing.run_page(standing.state_of(HOSTILE, folder, live), live)


def harmless(text: str) -> None:
    for forbidden in ("<script", "<img", "\x1b", "\x00", "\u202e"):
        assert forbidden not in text


# -- how runs stand ------------------------------------------------------------------------------------------------


def test_finished_runs_are_found_and_done(runs: Path) -> None:
    found = runs_states(runs)
    assert {run.name: run.state for run in found} == {"offline": "done", "written": "done"}
    assert {run.step for run in found} == {2}
    assert runs_states(runs / "offline")[0].name == "offline"
    table = runs_table(runs)
    assert "2 runs: 2 done" in table
    assert "2 of 2" in table


def runs_states(root: Path) -> list[standing.RunState]:
    return standing.states(root, LiveRuns())


def runs_table(root: Path) -> str:
    return standing.runs_table(runs_states(root), root)


def test_a_run_is_running_as_long_as_its_process_lives(tmp_path: Path) -> None:
    folder = begun(tmp_path / "runs" / "deep" / "er", '{"kind": "stage_started", "stage": "distil"}', step(3))
    code = "import sys, time; from pathlib import Path; from lmdistill.io import RunLock\n"
    code += "with RunLock(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    (found,) = runs_states(tmp_path / "runs")
    assert (found.name, found.state, found.step, found.steps) == ("deep/er", "running", 3, 8)
    assert '<progress max="8" value="3"' in standing.run_page(found, LiveRuns().of(folder))
    with pytest.raises(Exception, match=f"process {child.pid}"), RunLock(folder):  # the studio took nothing from it
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    assert (state(folder).state, state(folder).why) == ("interrupted", "its process ended in distil")
    # The number of the dead process now belongs to somebody who is younger than the lock.
    write_text(folder / ".lock", f"process {os.getpid()} on {os.uname().nodename} since 2001-01-01T00:00:00+00:00\n")
    assert state(folder).state == "interrupted"
    write_text(folder / ".lock", "process 1 on another.machine since 2001-01-01T00:00:00+00:00\n")
    assert state(folder).state == "interrupted"
    write_json(folder / "pulse.json", {"stage": "distil", "seconds": 5.0})
    assert (state(folder).state, state(folder).why) == ("running", "on another.machine")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ['{"kind": "stage_failed", "stage": "distil", "error": "NonFiniteLoss"}'],
            ("failed", "NonFiniteLoss in distil"),
        ),
        (
            ['{"kind": "stage_failed", "stage": "distil", "error": "Interrupted"}'],
            ("interrupted", "Interrupted in distil"),
        ),
        (['{"kind": "stage_finished", "stage": "student"}'], ("interrupted", "its process ended after student")),
        (["{"], ("not started", "")),
    ],
)
def test_what_became_of_a_run_is_told(tmp_path: Path, lines: list[str], expected: tuple[str, str]) -> None:
    found = state(begun(tmp_path / "run", *lines))
    assert (found.state, found.why) == expected


@pytest.mark.parametrize(
    "content", ["", "a: [", "- 1", "!!python/object:os.system x", "a: 1\na: 2", "\x00", "[" * 2_000]
)
def test_a_recipe_that_cannot_be_read_hides_no_run(tmp_path: Path, content: str) -> None:
    folder = begun(tmp_path / "run", step(1))
    (folder / "recipe.yaml").write_text(content, encoding="utf-8")
    write_text(folder / "evaluation.json", '{"models": 1}')
    assert standing.recipe_of(folder) == {}
    assert [run.step for run in runs_states(tmp_path)] == [1]
    assert choices_of({"run": folder}) == {}
    assert signals.stores_of(folder) == []
    assert compare.judged(folder) is None
    assert "cannot be read" in standing.run_page(state(folder), LiveRuns().of(folder))


# -- comparison ----------------------------------------------------------------------------------------------------


def test_runs_are_compared_by_every_measure_with_its_interval(runs: Path) -> None:
    folders = {name: runs / name for name in ("offline", "written")}
    found = {name: judged for name, folder in folders.items() if (judged := compare.judged(folder)) is not None}
    evaluation = Evaluation.model_validate(read_json(runs / "offline" / "evaluation.json"))
    student = evaluation.scores("student")
    assert student is not None
    agreement = student.texts["held"].agreement
    assert agreement is not None
    live = {name: LiveRuns().of(folder) for name, folder in folders.items()}
    drawn = compare.comparison(found, "held/agreement", live)
    assert f"offline: {agreement.value * 100:.1f} ({agreement.low * 100:.1f} to {agreement.high * 100:.1f})" in drawn
    assert "offline, teacher" not in drawn  # a teacher has no agreement with itself
    assert "Higher is better" in drawn
    assert "Loss of the students" in drawn
    assert next(iter(compare.measures_of(found))) == "held/agreement"
    assert "offline, teacher" in compare.comparison(found, "held/perplexity", live)
    assert "Choose the runs" in compare.comparison({}, None, {})
    missing = compare.comparison({}, None, {HOSTILE: LiveRun(runs / "none")})
    assert "No evaluation yet" in missing
    harmless(missing)


# -- models --------------------------------------------------------------------------------------------------------


def test_models_of_runs_are_offered_and_two_are_kept(runs: Path) -> None:
    folders = runs_found(runs)
    choices = choices_of(folders)
    students = [label for label in choices if label.endswith("· student")]
    assert sorted(students) == ["offline · student", "written · student"]
    assert sum(choice.role == "teacher" for choice in choices.values()) == 1  # both have the same one
    assert {teacher_label(choices, folder) for folder in folders.values()} == {next(iter(teachers(choices)))}
    shelf = Shelf()
    for label in [*choices][:4]:
        shelf.get(choices[label])
        assert len(shelf.labels) <= 2
    assert shelf.labels == [*choices][2:4]
    last = choices[shelf.labels[-1]]
    kept = shelf.get(last)
    assert shelf.get(last) is kept
    os.utime(Path(last.model) / "model.safetensors")  # trained again
    assert shelf.get(last) is not kept


def runs_found(root: Path) -> dict[str, Path]:
    return standing.find_runs(root)


def teachers(choices: dict[str, Choice]) -> list[str]:
    return [label for label, choice in choices.items() if choice.role == "teacher"]


@pytest.fixture(scope="module")
def pair(runs: Path) -> Iterator[tuple[Shelf, Choice, Choice]]:
    """A shelf, a teacher and a student, in float32: in bfloat16 many of 49,000 random logits are equal."""
    choices = choices_of(runs_found(runs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmdistill.studio.shelf.fastest_dtype", lambda device: torch.float32)
        yield Shelf(), choices[teachers(choices)[0]], choices["offline · student"]


def test_an_answer_is_what_generate_writes_and_equal_models_answer_alike(pair: tuple[Shelf, Choice, Choice]) -> None:
    shelf, teacher, student = pair
    greedy = chat.ChatSettings(temperature=0.0, max_new_tokens=6)
    *_, turn = chat.converse(shelf, [teacher, student], [], "Hello", greedy)
    for choice, answer in zip((teacher, student), turn.answers, strict=True):
        loaded = shelf.get(choice)
        ids, plain = chat.prompt_ids(loaded, [], "Hello")
        assert not plain
        asked = torch.tensor([ids])
        model: Any = loaded.model
        wanted = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=6, do_sample=False)
        expected = loaded.tokenizer.decode(wanted[0, len(ids) :], skip_special_tokens=True)
        assert answer.text == str(expected).strip()
        assert answer.state in ("ended", "cut")
    drawn = chat.ChatSettings(temperature=1.0, max_new_tokens=8, seed=3)
    *_, twins = chat.converse(shelf, [student, student], [], "Hello", drawn)
    *_, twins = chat.converse(shelf, [student, student], [twins], "And now?", drawn)
    assert twins.answers[0].text == twins.answers[1].text
    *_, other = chat.converse(shelf, [student, student], [], "Hello", chat.ChatSettings(1.0, 8, seed=4))
    assert other.answers[0].text != twins.answers[0].text


def test_a_side_that_fails_leaves_the_other_alone(pair: tuple[Shelf, Choice, Choice], tmp_path: Path) -> None:
    shelf, _, student = pair
    broken = Choice("broken", "student", str(tmp_path))
    *_, turn = chat.converse(shelf, [broken, student], [], HOSTILE, chat.ChatSettings(max_new_tokens=3))
    assert turn.answers[0].state == "failed"
    assert turn.answers[0].error
    assert turn.answers[1].tokens > 0
    *_, long = chat.converse(shelf, [student, student], [], "word " * 400, chat.ChatSettings(max_new_tokens=3))
    assert "do not fit" in long.answers[0].error
    shown = chat.side([turn], 0, "broken")
    assert 'role="alert"' in shown
    harmless(shown)
    turn.answers[1].text = HOSTILE
    harmless(chat.side([turn], 1, "student"))


# -- heat maps -----------------------------------------------------------------------------------------------------


def by_definition(name: str, log_s_LV: Tensor, log_t_LV: Tensor) -> Tensor:
    """The divergences in float64, from their formulas."""
    s, t = log_s_LV.exp(), log_t_LV.exp()

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p.log() - q.log())).sum(-1)

    if name == "alpha_beta":
        a, b = 0.2, 0.7
        return -(t**a * s**b - a / (a + b) * t ** (a + b) - b / (a + b) * s ** (a + b)).sum(-1) / (a * b)
    if name == "adaptive_kl":
        order = t.argsort(-1, descending=True)
        head = torch.zeros_like(t).scatter(-1, order, (t.gather(-1, order).cumsum(-1) <= 0.5).double())
        head.scatter_(-1, order[:, :1], 1.0)
        gap = (t - s).abs()
        weight = (gap * head).sum(-1) / gap.sum(-1)
        return weight * kl(t, s) + (1 - weight) * kl(s, t)
    return {
        "forward_kl": lambda: kl(t, s),
        "reverse_kl": lambda: kl(s, t),
        "jsd": lambda: (kl(t, (s + t) / 2) + kl(s, (s + t) / 2)) / 2,
        "total_variation": lambda: (s - t).abs().sum(-1) / 2,
        "skew_forward_kl": lambda: kl(t, 0.1 * t + 0.9 * s),
        "skew_reverse_kl": lambda: kl(s, 0.1 * s + 0.9 * t),
    }[name]()


@pytest.mark.parametrize("name", NAMES)
def test_every_divergence_of_a_heat_map_is_that_of_its_formula(pair: tuple[Shelf, Choice, Choice], name: str) -> None:
    shelf, teacher, student = pair
    models = [shelf.get(teacher), shelf.get(student)]
    text = "Rivers carry water down to the sea, and 7 + 5 is 12." * 6  # more than one chunk
    heat = heat_of(*models, text, name)
    ids = models[1].tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logs = [loaded.model(ids).logits[0, :-1].double().log_softmax(-1) for loaded in models]
    assert len(heat.tokens) == ids.shape[1] > 65
    assert "".join(token.token for token in heat.tokens) == text
    found = torch.tensor([token.value for token in heat.tokens[1:]], dtype=torch.float64)
    torch.testing.assert_close(found, by_definition(name, logs[1], logs[0]), rtol=2e-3, atol=1e-4)
    assert found.max() > 1e-3
    token = heat.tokens[5]
    best = logs[0][4].exp().topk(5)
    assert [share for _, share in token.teacher_top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert token.student_logprob == pytest.approx(float(logs[1][4, ids[0, 5]]), abs=1e-4)


def test_models_that_cut_text_otherwise_are_refused(
    pair: tuple[Shelf, Choice, Choice], tiny_llama_folder: Path
) -> None:
    from small import foreign_folder

    shelf, _, student = pair
    foreign = shelf.get(Choice("foreign", "teacher", str(foreign_folder(tiny_llama_folder))))
    with pytest.raises(TokenizerMismatch, match="foreign has"):
        heat_of(foreign, shelf.get(student), "Some text", "forward_kl")
    with pytest.raises(DataError, match="at least 2"):
        heat_of(shelf.get(student), shelf.get(student), "a", "forward_kl")


def test_a_trimmed_vocabulary_is_compared_on_what_was_kept(
    pair: tuple[Shelf, Choice, Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the map of ids, a model is no distance from itself; through a wrong map it is."""
    shelf, teacher, _ = pair
    whole = shelf.get(teacher)
    other: Any = copy.deepcopy(whole.tokenizer)
    monkeypatch.setattr(other, "get_vocab", lambda: {**whole.tokenizer.get_vocab(), "one more": 10**6})
    kept = torch.arange(len(whole.tokenizer))
    text = "Some text of a few tokens"
    same = heat_of(whole, replace(whole, tokenizer=other, kept_ids=kept), text, "forward_kl")
    assert max(token.value for token in same.tokens[1:]) < 1e-6
    moved = heat_of(whole, replace(whole, tokenizer=other, kept_ids=kept.roll(1)), text, "forward_kl")
    assert min(token.value for token in moved.tokens[1:]) > 1e-4


def test_a_heat_map_of_hostile_tokens_shows_them(pair: tuple[Shelf, Choice, Choice]) -> None:
    tokens = [HeatToken(HOSTILE, float("nan"), float("nan"), float("nan"), [], [])]
    tokens.append(HeatToken(HOSTILE, 3.0, -1.0, -2.0, [(HOSTILE, 0.5)], [('"><script>', 0.4)]))
    drawn = heat_page(Heat(tokens, "forward_kl", cut=3), HOSTILE, HOSTILE)
    harmless(drawn)
    assert "last 3 tokens were not read" in drawn
    assert 'class="t h4"' in drawn


# -- generated data ------------------------------------------------------------------------------------------------


def test_rows_of_a_real_round_are_those_of_its_card(runs: Path) -> None:
    (folder,) = rounds_of(runs / "written").values()
    card = read_json(folder / "data_card.json")
    kept, dropped = read_rows(folder / "examples.jsonl"), read_rows(folder / "drops.jsonl")
    assert (len(kept.rows), len(dropped.rows)) == (card["accepted"], card["dropped"])
    checks, _ = values_of(dropped.rows)
    assert checks == {name: found["count"] for name, found in card["drops"].items()}
    assert values_of(kept.rows)[1] == card["by_task"]
    assert f"<dd>{card['accepted']}</dd>" in card_page(folder)
    assert rounds_of(runs / "offline") == {}


def test_rows_are_filtered_paged_and_only_shown(tmp_path: Path) -> None:
    examples = [
        Example(id=str(n), prompt=f"Question {n}", response=HOSTILE, task="odd" if n % 2 else "even") for n in range(45)
    ]
    drops = [Drop(each, by="verify" if n % 3 else "empty", reason=f"reason {n}") for n, each in enumerate(examples)]
    write_lines(tmp_path / "examples.jsonl", [json.dumps(each.row()) for each in examples])
    write_lines(tmp_path / "drops.jsonl", [*(json.dumps(each.row()) for each in drops), "{cut", "[]", '{"other": 1}'])
    files = RowFiles()
    kept = files.read(tmp_path / "examples.jsonl")
    assert files.read(tmp_path / "examples.jsonl") is kept
    dropped = files.read(tmp_path / "drops.jsonl")
    assert (len(kept.rows), len(dropped.rows), dropped.bad) == (45, 45, 3)
    assert len(chosen(dropped.rows, Wanted(check="empty"))) == 15
    assert len(chosen(dropped.rows, Wanted(check="empty", task="odd"))) == 7
    assert [row.number for row in chosen(dropped.rows, Wanted(text="REASON 44"))] == [45]
    shown = rows_page(dropped, Wanted(first=40))
    assert "45 of 45 rows, 41 to 45" in shown
    assert shown.count("<article") == 5
    assert "3 lines cannot be read" in shown
    harmless(shown)
    assert "45 of 45 rows, 41 to 45" in rows_page(kept, Wanted(first=10**9))
    assert "0 of 45 rows" in rows_page(kept, Wanted(text="nowhere"))
    assert files.read(tmp_path / "missing.jsonl").rows == []
    assert "no data card" in card_page(tmp_path)


# -- signals, pages, the server ------------------------------------------------------------------------------------


def test_signals_of_a_real_run_are_shown_and_damage_is_told(runs: Path, tmp_path: Path) -> None:
    drawn = signals.signals_page(runs / "offline")
    assert "signal bytes a position" in drawn
    assert drawn.count("Signals of ") >= 2
    assert "keeps no signals" in signals.signals_page(runs / "written")
    shutil.copytree(runs / "offline", tmp_path / "run")
    write_text(tmp_path / "run" / "signals" / "manifest.json", "{")
    assert "Not done" in signals.signals_page(tmp_path / "run")


def test_text_that_was_not_escaped_makes_no_page() -> None:
    with pytest.raises(TypeError, match="plain text"):
        page.whole("<b>")
    harmless(page.whole(page.table([HOSTILE], [[HOSTILE, HOSTILE]], HOSTILE), page.facts([(HOSTILE, HOSTILE)])))
    assert page.shown("a\x85b\ufeff") == "a⟨U+0085⟩b⟨U+FEFF⟩"
    assert isinstance(page.html("x"), Markup)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", True),
        ("/assets/index.js", True),
        ("/gradio_api/queue/join", True),
        ("/gradio_api/heartbeat/abc", True),
        ("/gradio_api/file=/etc/passwd", False),
        ("/gradio_api/file/etc/passwd", False),
        ("/gradio_api/proxy=http://example.org", False),
        ("/gradio_api/upload", False),
        ("/gradio_api/info", False),
        ("/gradio_api/openapi.json", False),
        ("/docs", False),
        ("/openapi.json", False),
        ("/monitoring", False),
        ("/assets/../config", False),
        ("/gradio_api/vibe-edit", False),
    ],
)
def test_only_the_addresses_of_the_page_are_reachable(path: str, allowed: bool) -> None:
    assert reachable(path) is allowed


def test_without_gradio_the_command_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("app", "tabs"):
        monkeypatch.delitem(sys.modules, f"lmdistill.studio.{name}", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'lmdistill\[studio\]'"):
        launch(tmp_path)
    result = CliRunner().invoke(cli.app, ["studio", str(tmp_path / "none"), "--no-browser", "--json"])
    assert result.exit_code == 2
    assert "no such folder" in json.loads(result.stdout)["error"]["message"]
