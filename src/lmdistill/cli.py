"""The command line: parse and call, nothing else.

Results go to standard output, progress and errors to standard error.

With `--json`, standard output holds exactly one JSON object, `{"ok": true, ...}` or `{"ok": false, "error": {"kind",
"message"}, "exit_code"}`, and standard error JSON lines of progress (`event`, `seconds` and more). The object of `run`
holds `folder`, `report`, `summary` and `steps`; of `doctor`, `findings` and `memory`; of `evaluate`, what
evaluation.json of a run holds; of `methods`, `methods`; of `new`, `recipe`; of `report`, `report`. Wrong usage, such as
an unknown option, is told on standard error alone.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong, 75 interrupted and resumable by the same command, 130
interrupted with nothing to resume.

Everything heavy (torch, transformers) is imported inside the command that needs it.
"""

from __future__ import annotations

import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from lmdistill import __version__
from lmdistill.console import clean, make_console_progress, to_json
from lmdistill.errors import EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED, DataError, LmdistillError

EXIT_STOPPED = 130
"""Interrupted where there is nothing to resume, as shells count it (128 + SIGINT)."""

EPILOG = "Exit codes: 0 done, 1 failed, 2 wrong input, 75 interrupted (the same command resumes), 130 interrupted."

app = typer.Typer(
    name="lmdistill",
    help="Distil a large language model into a small one, and prove what the student kept.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe; see recipes/ or lmdistill new.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field, as in training.max_steps=50. Repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only the result and errors.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, progress as JSON lines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

Command = TypeVar("Command", bound=Callable[..., None])


def _answering(*, resumable: bool = False) -> Callable[[Command], Command]:
    """Turn what a command raises into one clear message and an exit code."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def answered(*args: Any, **options: Any) -> None:
            debug, as_json = options.get("debug", False), options.get("as_json", False)
            try:
                command(*args, **options)
            except LmdistillError as error:
                _end(error, clean(str(error), lines=True), error.exit_code, debug, as_json)
            except KeyboardInterrupt as error:
                if resumable:
                    _end(error, "interrupted; the same command resumes", EXIT_INTERRUPTED, debug, as_json)
                _end(error, "interrupted", EXIT_STOPPED, debug, as_json)
            except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
                raise
            except Exception as error:
                said = textwrap.shorten(clean(str(error)), 300, placeholder=" …")
                what = f"{type(error).__name__}: {said}" if said else type(error).__name__
                message = f"unexpected error: {what}; run again with --debug and report it"
                _end(error, message, EXIT_FAILED, debug, as_json)

        return answered  # type: ignore[return-value]

    return decorate


@app.command(epilog=EPILOG)
@_answering(resumable=True)
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    only_said: Annotated[
        bool, typer.Option("--dry-run", help="Say what the teacher behind an API would be asked and cost; ask nothing.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Carry out a recipe: build the student, distil, evaluate, report.

    What an earlier run of the same recipe finished is not done again, and training goes on from its last checkpoint.
    """
    progress = make_console_progress(quiet, as_json)
    with progress.stage("start", str(recipe)):
        from lmdistill.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or [])
        from lmdistill.pipeline import run_recipe
    if only_said:
        from lmdistill.pipeline import dry_run

        found = dry_run(loaded, progress=progress)
        _answer(**asdict(found)) if as_json else _say(found.sentence)
        return
    result = run_recipe(loaded, progress=progress)
    if as_json:
        _answer(folder=result.folder, report=result.report, summary=result.summary, steps=result.steps)
    else:
        _say(result.summary)
        _say(f"student  {result.folder / 'student'}")
        _say(f"report   {result.report}")


@app.command(epilog=EPILOG)
@_answering(resumable=True)
def label(
    recipe: RecipeFile,
    overrides: Overrides = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Who lets the teacher speak: local (this process), ray (workers) or server."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The server, as in http://127.0.0.1:8000/v1; implies server.")
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The teacher's name on the server, if not teacher.model.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask the teacher once about a recipe's training text and keep what it says.

    Fills the recipe's store of signals (signals.store); what is there already is not computed again, and what is
    damaged is computed anew. `lmdistill run` with the same recipe then trains from it.
    """
    progress = make_console_progress(quiet, as_json)
    with progress.stage("start", str(recipe)):
        from lmdistill.arguments import engine_overrides
        from lmdistill.recipe import load_recipe

        loaded = load_recipe(recipe, [*(overrides or []), *engine_overrides(engine, base_url, served_model)])
        from lmdistill.pipeline import label_recipe
    folder = label_recipe(loaded, progress=progress)
    if as_json:
        _answer(store=folder)
    else:
        _say(f"store    {folder}")


@app.command(epilog=EPILOG)
@_answering()
def doctor(
    recipe: RecipeFile,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a recipe before anything is spent.

    Teacher and student (tokenizers, vocabularies, licences), data, memory, disk and processor. Exit code 2 if the run
    would fail.
    """
    progress = make_console_progress(quiet, as_json)
    with progress.stage("start", str(recipe)):
        from lmdistill.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or [])
        from lmdistill.doctor import examine
    found = examine(loaded, progress=progress)
    sound = all(finding.severity != "error" for finding in found.findings)
    if as_json:
        _answer(sound, **found.model_dump(mode="json"))
    else:
        from lmdistill import display

        display.show(display.diagnosis(found))
    if not sound:
        raise typer.Exit(EXIT_INPUT)


@app.command(epilog=EPILOG)
@_answering()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Folders of models or runs, Hugging Face names, or package:NAME; a GGUF file by its path; "
            "api:NAME with --base-url.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="[NAME=]PATH", help="Held-out text: a file or a data set. Repeatable."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="NAME[,NAME]",
            help="tasks, instruction, reasoning, robustness, fidelity, calibration, efficiency. Repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Items of each set of a suite, if not 100.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Measure agreement with this model and divergence from it.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Server of the models api:NAME; the key is in LMDISTILL_API_KEY.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep that server's answers here: none is paid for twice.")
    ] = None,
    text: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the text in the data.")] = "text",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of a recipe's evaluation. Repeatable."),
    ] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Longest sequence in tokens.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamplings.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all figures to this JSON file.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score models on held-out text (--data), on suites (--suite), or on both.

    On text: perplexity, bits per byte and calibration, size and speed, and with a teacher agreement with it and
    divergence from it, all with bootstrap intervals. Suites: docs/evaluation.md.
    """
    progress = make_console_progress(quiet, as_json)
    if not data and not suite:
        raise DataError("nothing to measure: name held-out text (--data) or a suite (--suite tasks)")
    with progress.stage("start"):
        from lmdistill.arguments import evaluation_spec, named_model, sources
        from lmdistill.pipeline import evaluate_models
    evaluation = evaluate_models(
        [named_model(model, base_url, ledger) for model in models],
        teacher=named_model(teacher, base_url, ledger) if teacher is not None else None,
        data=sources(data or [], text),
        spec=evaluation_spec(overrides or [], suite or [], limit),
        max_length=max_length,
        seed=seed,
        device=device,
        progress=progress,
    )
    found = evaluation.model_dump(mode="json")
    if output is not None:
        from lmdistill.io import write_json

        write_json(output, found)
    if as_json:
        _answer(**found)
    else:
        from lmdistill import display

        display.show(display.scores(evaluation, display.width()))


@app.command(epilog=EPILOG)
@_answering()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this method in full.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the published methods, with their papers.

    With a name: one of them, with its formula, its defaults and its traps.
    """
    from dataclasses import asdict

    from lmdistill import display
    from lmdistill.methods import METHODS, find_method

    chosen = find_method(name) if name is not None else None
    if as_json:
        _answer(methods=[asdict(method) for method in ([chosen] if chosen else METHODS.values())])
    else:
        display.show(display.method_page(chosen) if chosen else display.methods_table(display.width()))


@app.command(epilog=EPILOG)
@_answering()
def new(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method of the catalogue (lmdistill methods).")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write it (METHOD.yaml); - prints it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a commented recipe for a method.

    Every field has a comment. It runs as it is, on the demo's model and text; an existing file is left alone.
    """
    from lmdistill.methods import find_method
    from lmdistill.template import recipe_template, write_recipe

    chosen = find_method(method)
    if output == Path("-"):
        _say(recipe_template(chosen).removesuffix("\n"))
        return
    target = output or Path(f"{chosen.name}.yaml")
    write_recipe(target, chosen, force)
    if as_json:
        _answer(recipe=target)
    else:
        _say(f"written: {target}\ncheck it:  lmdistill doctor {target}\nrun it:    lmdistill run {target}")


@app.command(epilog=EPILOG)
@_answering()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Run folders.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page that compares several runs.")
    ] = Path("comparison.html"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the report page of a run again, or compare runs.

    With one folder: its report.html. With several: one page that puts the runs side by side.
    """
    from lmdistill.report import compare_runs, write_report

    page = write_report(folders[0]) if len(folders) == 1 else compare_runs(folders, output)
    if as_json:
        _answer(report=page)
    else:
        _say(str(page))


@app.command(epilog=EPILOG)
@_answering()
def rollouts(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run's folder.")],
    last: Annotated[int, typer.Option(min=1, metavar="N", help="Texts to show, the latest ones.")] = 5,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read what the student wrote while it trained.

    A share of its texts is kept (trajectories.rollouts.kept_share); the run may still be going on.
    """
    from lmdistill.trajectories.journal import FILE, recent

    found = recent(folder, last)
    if not found:
        raise DataError(f"{folder}: no {FILE} with a text in it; does its recipe let the student write?")
    if as_json:
        _answer(texts=[asdict(entry) for entry in found])
        return
    for entry in found:
        ending = "" if entry.finished else ", cut by the limit"
        mean = "" if entry.mean_logprob is None else f", mean log-probability {entry.mean_logprob:.2f}"
        _say(f"step {entry.step} {entry.stage} {entry.row_id}: {entry.tokens} tokens{mean}{ending}")
        _say(f"  prompt  {clean(entry.prompt)}")
        _say(f"  answer  {clean(entry.completion)}\n")


signals = typer.Typer(
    name="signals",
    help="Look at stores of signals, check them, and merge them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(signals)

StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a store.")]


@signals.command(epilog=EPILOG)
@_answering()
def stat(store: StoreFolder, as_json: Json = False, debug: Debug = False) -> None:
    """Say what a store holds: sources, rows, tokens, bytes a position."""
    from lmdistill.signals.inspect import statistics

    found = statistics(store)
    if as_json:
        _answer(**found)
    else:
        from lmdistill import display

        display.show(display.facts(found))


@signals.command(epilog=EPILOG)
@_answering()
def head(
    store: StoreFolder,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 1,
    positions: Annotated[int, typer.Option(min=1, help="Positions of each row.")] = 8,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the first rows: keys, ids and what the teacher says of them."""
    from lmdistill.signals.inspect import first_rows

    found = first_rows(store, rows, positions)
    if as_json:
        _answer(rows=found)
    else:
        for row in found:
            _say(f"{row['key']}  {row['tokens']} tokens, {row['positions']} positions, {row['bytes']} bytes")
            for line in row["signal"]:
                _say(f"  {line}")


@signals.command(epilog=EPILOG)
@_answering()
def verify(
    store: StoreFolder,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Compute some rows again with this model and print the divergence."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to compute again, spread over the store.")] = 16,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every file's checksum and, with the teacher, how far what is stored is from what it says.

    Exit code 1 where a file is damaged; `lmdistill label` mends it.
    """
    from lmdistill.arguments import model_spec
    from lmdistill.signals.inspect import check_store

    progress = make_console_progress(quiet, as_json)
    problems, fidelity = check_store(store, model_spec(teacher) if teacher is not None else None, rows, progress)
    if as_json:
        _answer(not problems, problems=problems, fidelity=fidelity)
    else:
        from lmdistill import display

        for problem in problems:
            _say(problem)
        if fidelity is not None:
            display.show(display.facts(fidelity))
        if not problems:
            _say("all checksums hold")
    if problems:
        raise typer.Exit(EXIT_FAILED)


@signals.command(epilog=EPILOG)
@_answering()
def merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE", help="Folders of stores.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The new store.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one store with the rows of several, each once; several teachers may speak in it."""
    from lmdistill.signals.store import SignalStore
    from lmdistill.signals.store import merge as merge_stores

    merged = merge_stores([SignalStore(store) for store in stores], output)
    rows = sum(shard.rows for shard in merged.shards)
    if as_json:
        _answer(store=output, rows=rows, sources=len(merged.sources))
    else:
        _say(f"store    {output}: {rows} rows of {len(merged.sources)} sources")


@signals.command("import", epilog=EPILOG)
@_answering(resumable=True)
def import_answers(
    answers: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWERS", help="JSONL: prompt or messages, answer, and the API's logprobs, one a line."
        ),
    ],
    tokenizer: Annotated[
        str, typer.Option(metavar="MODEL", help="The model whose tokenizer reads the answers: the student.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where all is written.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The API's model, for the records.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Most log-probabilities kept at a position.")] = 20,
    max_length: Annotated[int, typer.Option(min=2, help="Longest sequence in tokens.")] = 512,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a store of what an API returned: answers with token log-probabilities.

    Writes the training data, a store of the signals and a recipe into one folder; `lmdistill run` with that recipe
    trains from them. Tokens of the API are found in the vocabulary by their bytes. Nothing is asked of anyone.
    """
    progress = make_console_progress(quiet, as_json)
    with progress.stage("start", str(answers)):
        from lmdistill.arguments import model_spec
        from lmdistill.pipeline import label_recipe
        from lmdistill.recipe import load_recipe
        from lmdistill.signals.importing import write_import
    with progress.stage("import", f"{answers} to {output}"):
        made = write_import(answers, model_spec(tokenizer), output, name=name, k=k, max_length=max_length)
        if made.was_there:
            progress.note(f"{made.recipe} was there and is left as it is")
    store = label_recipe(load_recipe(made.recipe), progress=progress)
    if as_json:
        _answer(store=store, recipe=made.recipe, answers=made.answers)
    else:
        _say(f"store    {store}: {made.answers} answers\ntrain:   lmdistill run {made.recipe}")


ledger = typer.Typer(
    name="ledger",
    help="Look at what a teacher behind an API answered, and take it along.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(ledger)

LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger: ledger.sqlite in a run's folder.")]


@ledger.command("stat", epilog=EPILOG)
@_answering()
def ledger_stat(
    file: LedgerFile,
    verify: Annotated[bool, typer.Option("--verify", help="Check every answer; exit code 1 for damage.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a ledger holds: answers, models, tokens, money, calls by how they ended, and what each run used.

    A run may be writing into it meanwhile.
    """
    from lmdistill.teachers.ledger_statistics import statistics

    found = statistics(file, verify)
    sound = not found.get("damaged")
    if as_json:
        _answer(sound, **found)
    else:
        from lmdistill import display

        display.show(display.ledger_page(found))
    if not sound:
        raise typer.Exit(EXIT_FAILED)


@ledger.command("export", epilog=EPILOG)
@_answering()
def ledger_export(
    file: LedgerFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The recording, as JSON lines.")],
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Only what this run asked for.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a recording: the answers with what was asked, one a line, in an order that is always the same.

    A recipe that names it (api.recording) runs without any server. What is damaged is left out and told.
    """
    from lmdistill.teachers.ledger import reading
    from lmdistill.teachers.recordings import write_recording

    with reading(file) as connection:
        count, damaged = write_recording(file, connection, output, run)
    if as_json:
        _answer(not damaged, recording=output, answers=count, damaged=damaged)
    else:
        _say(f"recording  {output}: {count} answers")
        for problem in damaged:
            _say(f"left out   {problem}")
    if damaged:
        raise typer.Exit(EXIT_FAILED)


@ledger.command("replay", epilog=EPILOG)
@_answering()
def ledger_replay(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="What `lmdistill ledger export` wrote.")],
    file: LedgerFile,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Lay a recording's answers into a ledger, which is made where it is not there.

    A run with this ledger asks for none of them; unlike with api.recording, what is missing is asked for. Answers that
    the ledger has already stay as they are.
    """
    from contextlib import closing

    from lmdistill.teachers.ledger import Ledger
    from lmdistill.teachers.recordings import Recording, add_recording

    with closing(Recording(recording)) as source, Ledger(file, run="replay") as target:
        added = add_recording(target, source)
    if as_json:
        _answer(ledger=file, answers=len(source), added=added)
    else:
        _say(f"ledger   {file}: {added} of {len(source)} answers were new")


@app.command(epilog=EPILOG)
@_answering()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also on this device: t4, l4, l40s, a100, h100, h200, b200, ...")
    ] = None,
    hardware_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON list of devices of your own; see docs/accounting.md.")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Share of the device's peak that is reached.")
    ] = 0.35,
    price: Annotated[float | None, typer.Option(min=0.0, metavar="USD", help="Price of an hour of the device.")] = None,
    tokens: Annotated[
        float | None, typer.Option(min=1.0, metavar="N", help="Also with so many training tokens, as in 1e12.")
    ] = None,
    law: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Coefficients of the distillation scaling law (JSON).")
    ] = None,
    ask: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Ask a teacher behind an API about so many questions now; 0 asks none."),
    ] = 8,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict a run before it: time, memory, disk, operations, energy and money by stage.

    Takes a few real steps of the recipe with its own teacher and a student of its size in a temporary folder, and
    scales them. A teacher behind an API is asked a few questions, which the run then finds in its ledger and does not
    pay for again. Kept as plan.json in the run's folder: the report sets it against what then happened.
    """
    progress = make_console_progress(quiet, as_json)
    with progress.stage("start", str(recipe)):
        from lmdistill.planning import make_plan, write_plan
        from lmdistill.planning.options import elsewhere_of, load_law
        from lmdistill.recipe import load_recipe

        loaded = load_recipe(recipe, overrides or [])
        elsewhere = elsewhere_of(hardware, hardware_file, utilisation, price)
        given = load_law(law) if law is not None else None
    found = make_plan(loaded, elsewhere=elsewhere, tokens=tokens, law=given, ask=ask, progress=progress)
    file = write_plan(found, loaded.folder)
    if as_json:
        _answer(file=file, **found.model_dump(mode="json"))
    else:
        from lmdistill.planning.display import plan_page

        _show(plan_page(found))
        _say(f"\nkept     {file}")


@app.command(epilog=EPILOG)
@_answering(resumable=True)
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="A YAML study; see studies/ and docs/study.md.")],
    cells: Annotated[
        list[str] | None,
        typer.Option("--cells", metavar="PATTERN", help="Only cells with such names, as in 'gkd-*'. Repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells with what is planned for each, and run none.")
    ] = False,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="Run none; write the pages and tables again.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Carry out a study: methods, students, budgets and seeds, each cell an ordinary run, compared at equal cost.

    Cells that are done are not done again; after an interruption the page says how far the study has come. Exit code 1
    where a cell failed: the others go on, and the same command tries it again.
    """
    progress = make_console_progress(quiet, as_json)
    with progress.stage("start", str(file)):
        from lmdistill.study import carry_out, load_study, states_of, write_study

        spec = load_study(file)
    if dry_run:
        from lmdistill.study.dry import dry_cells

        rows = dry_cells(spec, cells or [], progress)
        if as_json:
            _answer(study=spec.name, cells=rows)
        else:
            from lmdistill.study.display import cells_table

            _show(cells_table(rows))
        return
    try:
        if not write_only:
            carry_out(spec, cells or [], progress)
    finally:
        files = write_study(spec, file)
    states = states_of(spec)
    found = {state: sum(each.state == state for each in states.values()) for state in ("done", "failed", "open")}
    if as_json:
        _answer(not found["failed"], **asdict(files), **found)
    else:
        _say(", ".join(f"{count} cells {state}" for state, count in found.items() if count))
        _say(f"page     {files.page}\ntables   {files.markdown}, {files.cells}, {files.latex}")
    if found["failed"]:
        raise typer.Exit(EXIT_FAILED)


data = typer.Typer(
    name="data",
    help="What a teacher wrote for a run: take it along in other tools' formats.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data)


@data.command("export", epilog=EPILOG)
@_answering()
def data_export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or one of its files (generated/round-1/*.jsonl).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where it goes, as JSON lines.")],
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="trl_prompt_completion, trl_preference, trl_unpaired (each with _chat), alpaca, alpaca_preference, "
            "sharegpt or messages.",
        ),
    ] = "messages",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's generated rows, or its preference pairs, for TRL, Alpaca's scripts, ShareGPT or OpenAI's format.

    Preference formats take preferences.jsonl (generation.preferences), the others examples.jsonl. Where each row comes
    from goes along in the column `lmdistill`.
    """
    from lmdistill.generation.exporting import export_run

    count = export_run(source, output, format)
    if as_json:
        _answer(file=output, rows=count)
    else:
        _say(f"{output}: {count:,} rows")


@app.command(epilog=EPILOG)
@_answering()
def studio(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="The folder of your runs, or one run.")] = Path("runs"),
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="N", help="Port of 127.0.0.1; a free one if not given.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Open a local page over your runs: live progress, comparison, chat, heat maps, data and signals.

    It is served on 127.0.0.1 alone, until Ctrl-C, and loads nothing from elsewhere. With --json, one object with its
    address once it can be opened.
    """
    from lmdistill.studio.server import launch

    def told(url: str) -> None:
        if as_json:
            _answer(url=url)
        else:
            _say(f"studio   {url}\nruns     {runs}\nCtrl-C ends it.")
        sys.stdout.flush()

    launch(runs, port, browser, told)


@app.command(epilog=EPILOG)
@_answering()
def export(
    student: Annotated[Path, typer.Argument(metavar="RUN_OR_STUDENT", help="A run's folder, or a student's.")],
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="safetensors, gguf or int8.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="The file (gguf) or folder; else in exports/ of the run."),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="gguf: q8_0, f16, bf16, f32, q4_0, ...; safetensors: bf16, f16, f32."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="[NAME=]PATH", help="Held-out text in place of the run's own. Repeatable."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="MODEL", help="With --data: compare with this teacher too.")
    ] = None,
    text: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the text in the data.")] = "text",
    max_tokens: Annotated[int, typer.Option(min=1, help="Held-out tokens of each text to compare on.")] = 2048,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Measure tokens a second.")] = True,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a student for other programs, and measure again what it kept.

    Merged safetensors, GGUF for llama.cpp, or weights of 8 bits for processors. Agreement and divergence against the
    student and its teacher, size and speed go to export.json and into the card.
    """
    progress = make_console_progress(quiet, as_json)
    with progress.stage("start", str(student)):
        from lmdistill.arguments import export_spec, model_spec, sources
        from lmdistill.export import export_from_run, export_student, find_student
        from lmdistill.export.make import results_file
        from lmdistill.export.run import yardstick_of_data

        spec = export_spec(format, quantization, max_tokens)
        source = find_student(student)
    if source.run is not None and not data:
        record = export_from_run(source, spec, output=output, speed=speed, progress=progress)
    else:
        named = model_spec(teacher) if teacher is not None else None
        by = yardstick_of_data(source, sources(data or [], text), named, spec, progress=progress)
        record = export_student(source, spec, output=output, by=by, speed=speed, progress=progress)
    if as_json:
        _answer(**record.model_dump(mode="json"), results=results_file(source))
    else:
        from lmdistill import display

        display.show(display.export_page(record, results_file(source)))


@app.command(epilog=EPILOG)
@_answering()
def version(as_json: Json = False, debug: Debug = False) -> None:
    """Show versions."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    found: dict[str, Any] = {"lmdistill": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "accelerate", "datasets"):
        try:
            found[package] = version_of(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if as_json:
        _answer(**found)
    else:
        from lmdistill import display

        display.show(display.facts(found))


def main() -> NoReturn:
    """The entry point: `lmdistill`, `python -m lmdistill`."""
    _calm_libraries(debug="--debug" in sys.argv)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 must not end a run
    code: int | str | None = 0
    try:
        app(prog_name="lmdistill")
    except SystemExit as end:
        code = end.code
    try:
        sys.stdout.flush()
    except OSError:
        # The reader has gone (`lmdistill methods | head`). Python flushes once more at exit: let that not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or EXIT_FAILED
    sys.exit(code)


def _say(text: str) -> None:
    typer.echo(clean(text, lines=True))


def _show(renderable: Any) -> None:
    from lmdistill import display

    display.show(renderable)


def _answer(ok: bool = True, **fields: Any) -> None:
    """The one JSON object of `--json`."""
    typer.echo(to_json({"ok": ok, **fields}))


def _end(error: BaseException, message: str, code: int, debug: bool, as_json: bool) -> NoReturn:
    """Say what went wrong, once, and end."""
    if debug:
        traceback.print_exception(error)
    if as_json:
        _answer(False, error={"kind": type(error).__name__, "message": message}, exit_code=code)
    else:
        typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code) from None


def _calm_libraries(debug: bool) -> None:
    """Keep the chatter of libraries out of our output; what matters of it is told as a note or a warning."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")  # their bars would be drawn across ours
    if not debug:
        warnings.simplefilter("ignore")
        for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"):
            os.environ.setdefault(name, "error")
