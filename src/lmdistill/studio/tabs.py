"""The six tabs: which controls they have, and which function of the studio answers to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lmdistill.errors import LmdistillError
from lmdistill.studio import chat, compare, page, scripts
from lmdistill.studio.data import PAGE, Rows, Wanted, card_page, chosen, rounds_of, rows_page, values_of
from lmdistill.studio.heat import heat_of
from lmdistill.studio.heat_view import NAMES, heat_page
from lmdistill.studio.runs import run_page, runs_table, states
from lmdistill.studio.shelf import teacher_label
from lmdistill.studio.signals import signals_page, stores_of

if TYPE_CHECKING:
    from lmdistill.studio.app import Studio

_EVERY = 2.0
"""Seconds between two looks at the runs."""
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_LAST: dict[str, Any] = {**_QUIET, "trigger_mode": "always_last"}
"""For events that come fast: none is dropped because an earlier one is not answered yet."""
_MODELS: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "models"}
"""One computation with models at a time, whoever asks."""


@dataclass(frozen=True)
class Opened:
    """What happens whenever a tab is opened: its choices are those of the runs that there are now."""

    work: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def connect(opened: Opened, tab: gr.Tab, blocks: gr.Blocks, first: bool) -> None:
    """Do a tab's first work when it is opened: that of the first one when the page is loaded.

    Not that of all then: its answer could come after somebody's choice in an opened tab, and undo it.
    """
    for event in (blocks.load, tab.select) if first else (tab.select,):
        event(opened.work, list(opened.inputs), list(opened.outputs), **_QUIET)


def _block(script: str | None = None, **options: Any) -> gr.HTML:
    return gr.HTML(page.whole(page.note("…")), js_on_load=script, apply_default_css=False, **options)


def _told(work: Callable[..., str]) -> Callable[..., str]:
    """A function whose errors are a message on the page."""

    @wraps(work)
    def answered(*args: Any) -> str:
        try:
            return work(*args)
        except LmdistillError as error:
            return page.whole(page.problem(error))
        except Exception as error:
            return page.whole(page.problem(f"{type(error).__name__}: {error}"))

    return answered


def _choices(names: Sequence[str], value: Any, fallback: Any = None) -> Any:
    """Choices, with the present one kept as long as it is there."""
    kept = value if value in names else fallback if fallback in names else next(iter(names), None)
    return gr.update(choices=list(names), value=kept)


def runs_tab(studio: Studio) -> Opened:
    """The list of runs and one of them, as they go on."""
    table = _block(scripts.KEEP_FOCUS, elem_id="runs")
    run = gr.Dropdown([], label="Run to look at", interactive=True, elem_id="run")
    detail = _block(scripts.KEEP_FOCUS, elem_id="detail")
    seen, timer = gr.State({}), gr.Timer(_EVERY)

    def look(name: str | None, before: dict[str, Any]) -> tuple[Any, ...]:
        found = states(studio.root, studio.live)
        names = [state.name for state in found]
        now = next((state for state in found if state.name == name), found[0] if found else None)
        shown: dict[str, Any] = {"table": found, "names": names, "detail": now}
        changed = {key for key in shown if key not in before or before[key] != shown[key]}
        return (
            runs_table(found, studio.root) if "table" in changed else gr.skip(),
            _choices(names, name) if "names" in changed else gr.skip(),
            _detail(studio, now) if "detail" in changed else gr.skip(),
            shown,
        )

    timer.tick(look, [run, seen], [table, run, detail, seen], **_QUIET)
    run.input(look, [run, seen], [table, run, detail, seen], **_LAST)
    return Opened(look, [run, seen], [table, run, detail, seen])


def _detail(studio: Studio, state: Any) -> str:
    if state is None:
        return page.whole(page.note("No run is chosen."))
    return _told(lambda: run_page(state, studio.live.of(state.folder)))()


def compare_tab(studio: Studio) -> Opened:
    """Any runs side by side."""
    picked = gr.CheckboxGroup([], label="Runs to compare", elem_classes="picked", elem_id="picked")
    measure = gr.Dropdown([], label="Measure", interactive=True)
    result = _block(elem_id="comparison")

    def show(names: list[str], key: str | None) -> tuple[Any, str]:
        folders = {name: folder for name, folder in studio.runs().items() if name in names}
        found = {name: judged for name, folder in folders.items() if (judged := compare.judged(folder)) is not None}
        measures = compare.measures_of(found)
        titles = [(compare.title_of(each), each.key) for each in measures.values()]
        kept = key if key in measures else next(iter(measures), None)
        live = {name: studio.live.of(folder) for name, folder in folders.items()}
        drawn = _told(lambda: compare.comparison(found, kept, live))()
        return gr.update(choices=titles, value=kept), drawn

    def opened(names: list[str], key: str | None) -> tuple[Any, ...]:
        runs = studio.runs()
        kept = [name for name in names or [] if name in runs]
        if not kept:
            kept = [name for name, folder in runs.items() if (folder / "evaluation.json").is_file()][:2]
        return gr.update(choices=list(runs), value=kept), *show(kept, key)

    picked.input(show, [picked, measure], [measure, result], **_LAST)
    measure.input(show, [picked, measure], [measure, result], **_LAST)
    return Opened(opened, [picked, measure], [picked, measure, result])


def _pair(studio: Studio, left: str | None, right: str | None) -> tuple[Any, Any]:
    """Choices of a teacher and a student: at first those of the newest run that has both."""
    models, runs = studio.models(), studio.runs()
    found = (
        (teacher, f"{name} · student")
        for name, folder in runs.items()
        if (teacher := teacher_label(models, folder)) is not None and f"{name} · student" in models
    )
    teacher, student = next(found, (None, None))
    return _choices(list(models), left, teacher), _choices(list(models), right, student)


def chat_tab(studio: Studio) -> Opened:
    """Two models answer the same."""
    with gr.Row():
        left = gr.Dropdown([], label="Model on the left", interactive=True, elem_id="left")
        right = gr.Dropdown([], label="Model on the right", interactive=True, elem_id="right")
    with gr.Row():
        sides = [_block(elem_id=name, min_width=280) for name in ("chat-left", "chat-right")]
    question = gr.Textbox(
        label="Message", lines=1, max_lines=6, info="Enter sends, Shift+Enter begins a line.", elem_id="message"
    )
    with gr.Row():
        send = gr.Button("Send", variant="primary", min_width=90)
        stop, clear = gr.Button("Stop", min_width=90), gr.Button("Clear", min_width=90)
    with gr.Accordion("How answers are drawn", open=False):
        temperature = gr.Slider(0, 2, 0.7, step=0.1, label="Temperature (0: always the likeliest token)")
        tokens = gr.Number(128, label="Longest answer, tokens", precision=0, minimum=1, maximum=4096)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    turns, named = gr.State([]), gr.State([])

    def drawn(said: list[chat.Turn], names: Sequence[str | None]) -> tuple[str, str]:
        first, second = (chat.side(said, number, name) for number, name in enumerate(names))
        return first, second

    def answer(
        prompt: str, one: str, two: str, heat_: float, longest: float, number: float, said: list[chat.Turn]
    ) -> Iterator[Any]:
        models = studio.models()
        if not prompt.strip() or one not in models or two not in models:
            yield *drawn(said, (one, two)), said, prompt
            return
        said = _of_these(said, one, two)
        how = chat.ChatSettings(float(heat_), max(1, int(longest or 1)), max(0, int(number or 0)))
        for turn in chat.converse(studio.shelf, [models[one], models[two]], said, prompt, how):
            yield *drawn([*said, turn], (one, two)), [*said, turn], ""

    def stopped(said: list[chat.Turn], one: str, two: str) -> tuple[Any, ...]:
        for each in said[-1].answers if said else ():
            if each.state in ("waits", "is loaded", "writes"):
                each.state = "stopped"
        return *drawn(said, (one, two)), said

    def emptied(one: str | None, two: str | None) -> tuple[Any, ...]:
        return *drawn([], (one, two)), []

    def other_models(
        said: list[chat.Turn], one: str | None, two: str | None, before: list[str | None]
    ) -> tuple[Any, ...]:
        if before == [one, two]:  # set by the page itself: a late answer must not undo what was asked meanwhile
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        kept = _of_these(said, one, two)
        return *drawn(kept, (one, two)), kept, [one, two]

    def opened(one: str | None, two: str | None, said: list[chat.Turn]) -> tuple[Any, ...]:
        first, second = _pair(studio, one, two)
        names = [first["value"], second["value"]]
        return first, second, *drawn(said, names), names

    asked = [question, left, right, temperature, tokens, seed, turns]
    sent = gr.on([send.click, question.submit], answer, asked, [*sides, turns, question], **_QUIET, **_MODELS)
    stop.click(stopped, [turns, left, right], [*sides, turns], cancels=[sent], **_QUIET)
    clear.click(emptied, [left, right], [*sides, turns], cancels=[sent], **_QUIET)
    # Not on `input`, which a list of choices also says when the focus leaves it.
    gr.on([left.change, right.change], other_models, [turns, left, right, named], [*sides, turns, named], **_LAST)
    return Opened(opened, [left, right, turns], [left, right, *sides, named])


def _of_these(said: list[chat.Turn], one: str | None, two: str | None) -> list[chat.Turn]:
    """The conversation, as long as it is one with these two models."""
    return said if said and [answer.model for answer in said[-1].answers] == [one, two] else []


def heat_tab(studio: Studio) -> Opened:
    """Where on a text the student is far from the teacher."""
    with gr.Row():
        teacher = gr.Dropdown([], label="Teacher", interactive=True, elem_id="heat-teacher")
        student = gr.Dropdown([], label="Student", interactive=True, elem_id="heat-student")
        kind = gr.Dropdown([(title, name) for name, title in NAMES.items()], value="forward_kl", label="Divergence")
    text = gr.Textbox(
        label="Text", lines=4, max_lines=12, info="Its tokens are coloured by the divergence.", elem_id="heat-text"
    )
    colour = gr.Button("Colour", variant="primary")
    result = _block(scripts.HEAT_TOKENS, elem_id="heat")

    @_told
    def coloured(one: str, two: str, name: str, given: str) -> str:
        models = studio.models()
        if one not in models or two not in models:
            return page.whole(page.problem("no run here has models that can be loaded; choose a teacher and a student"))
        loaded = [studio.shelf.get(models[label]) for label in (one, two)]
        return heat_page(heat_of(loaded[0], loaded[1], given, name), one, two)

    colour.click(coloured, [teacher, student, kind, text], result, **{**_QUIET, "show_progress": "minimal"}, **_MODELS)

    def opened(one: str | None, two: str | None, given: str, shown: str) -> tuple[Any, ...]:
        first = page.whole(page.note("Type a text and press Colour."))
        return *_pair(studio, one, two), gr.skip() if given else first

    return Opened(opened, [teacher, student, text, result], [teacher, student, result])


def data_tab(studio: Studio) -> Opened:
    """What was generated."""
    with gr.Row():
        run = gr.Dropdown([], label="Run with generated data", interactive=True)
        round_ = gr.Dropdown([], label="Round", interactive=True)
    which = gr.Radio([("kept", "examples"), ("dropped", "drops")], value="examples", label="Rows")
    card = _block(elem_id="card")
    with gr.Row():
        check = gr.Dropdown([("any", "")], value="", label="Dropped by", interactive=True)
        task = gr.Dropdown([("any", "")], value="", label="Task", interactive=True)
        words = gr.Textbox(label="With this text in it", max_lines=1)
    rows = _block(elem_id="rows")
    with gr.Row():
        back, on = gr.Button("Earlier rows"), gr.Button("Later rows")
    place = gr.State({})  # the first row that is shown, and of what

    def read(name: str | None, number: str | None, kind: str) -> tuple[Path | None, Rows]:
        folder = studio.runs().get(name or "")
        where = rounds_of(folder).get(number or "") if folder is not None else None
        return where, studio.files.read(where / f"{kind}.jsonl") if where is not None else Rows([], 0, False)

    def filled(name: str | None, number: str | None, *rest: Any, step: int = 0) -> tuple[Any, ...]:
        kind, by, job, said, before = rest
        where, found = read(name, number, kind)
        checks, jobs = values_of(found.rows)
        by, job = by if by in checks else "", job if job in jobs else ""
        of = [name, number, kind, by, job, said]
        at = before["at"] + step * PAGE if before.get("of") == of else 0
        last = len(chosen(found.rows, Wanted(by, job, said or ""))) - 1
        at = before["at"] if at < 0 or at > max(last, 0) else at
        drawn = _told(lambda: rows_page(found, Wanted(by, job, said or "", at)))()
        shown = card_page(where) if where is not None else page.whole(page.note("No run here has generated data."))
        return _counted(checks, by), _counted(jobs, job), shown, drawn, {"of": of, "at": at}

    def other_run(name: str | None, number: str | None, *rest: Any) -> tuple[Any, ...]:
        folder = studio.runs().get(name or "")
        found = list(rounds_of(folder)) if folder is not None else []
        kept = number if number in found else next(iter(found), None)
        return gr.update(choices=found, value=kept), *filled(name, kept, *rest)

    def opened(name: str | None, *rest: Any) -> tuple[Any, ...]:
        names = [each for each, folder in studio.runs().items() if rounds_of(folder)]
        choice = _choices(names, name)
        return choice, *other_run(choice["value"], *rest)

    asked, answered = [run, round_, which, check, task, words, place], [check, task, card, rows, place]
    run.input(other_run, asked, [round_, *answered], **_LAST)
    gr.on([round_.input, which.input, check.input, task.input, words.change], filled, asked, answered, **_LAST)
    back.click(partial(filled, step=-1), asked, answered, **_QUIET)
    on.click(partial(filled, step=1), asked, answered, **_QUIET)
    return Opened(opened, asked, [run, round_, *answered])


def _counted(values: dict[str, int], value: str) -> Any:
    named = [("any", ""), *((f"{page.shown(name)} ({count:,})", name) for name, count in values.items())]
    return gr.update(choices=named, value=value)


def signals_tab(studio: Studio) -> Opened:
    """What is stored of the teacher."""
    run = gr.Dropdown([], label="Run with signals", interactive=True)
    result = _block(elem_id="signals")

    def show(name: str | None) -> str:
        folder = studio.runs().get(name or "")
        if folder is None:
            return page.whole(page.note("No run here keeps signals. See signals.kind in docs/signals.md."))
        return _told(signals_page)(folder)

    def opened(name: str | None) -> tuple[Any, ...]:
        choice = _choices([each for each, folder in studio.runs().items() if stores_of(folder)], name)
        return choice, show(choice["value"])

    run.input(show, run, result, **_LAST)
    return Opened(opened, [run], [run, result])


TABS: dict[str, Callable[[Studio], Opened]] = {
    "Runs": runs_tab,
    "Compare": compare_tab,
    "Chat": chat_tab,
    "Heat map": heat_tab,
    "Data": data_tab,
    "Signals": signals_tab,
}
