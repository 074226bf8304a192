"""Exporting what a run made, as its recipe says; each export is a stage of its own, so that none is made twice."""

from __future__ import annotations

from lmdistill.export import export_student, find_student, yardstick_of_run
from lmdistill.export.make import RESULTS, drop_stale, read_records, results_file, student_key
from lmdistill.report import read_run, stated_licence
from lmdistill.run_folder import fingerprint as fingerprint_of
from lmdistill.stages.context import Context

STAGE = "export-"


def export_all(context: Context) -> dict[str, bool]:
    """Every export that the recipe names, and of each whether it was there already.

    Raises what `export_student` raises. What an export is measured by (held-out texts, the teacher) is the run's own.
    """
    specs = context.recipe.export
    if not specs and not context.folder.file(RESULTS).is_file():
        return {}
    source = find_student(context.folder.path)
    drop_stale(source)
    there = {}
    for spec in specs:
        stage = f"{STAGE}{spec.name}"
        key = fingerprint_of(
            student_key(source),
            spec.model_dump(mode="json"),
            context.recipe.data.model_dump(mode="json", include={"evaluation", "max_length"}),
            context.recipe.teacher.model_dump(mode="json"),
        )
        known = any(record.name == spec.name for record in read_records(results_file(source)))
        there[stage] = known and context.folder.is_done(stage, key)
        if there[stage]:
            continue
        with context.stage(stage, key, "for other programs") as facts:
            record = export_student(
                source,
                spec,
                by=yardstick_of_run(context.folder.path, spec, context.progress),
                licence=stated_licence(read_run(context.folder.path)),
                speed=context.recipe.evaluation.speed is not None,
                threads=context.recipe.machine.threads,
                progress=context.progress,
            )
            facts["bytes"] = record.bytes
            facts["tokens"] = sum(text.student.tokens for text in record.texts.values())
    return there
