"""The stores of signals that belong to a run: what is in them, and their first rows."""

from __future__ import annotations

from pathlib import Path

from lmdistill.errors import LmdistillError
from lmdistill.signals.inspect import first_rows, statistics
from lmdistill.signals.manifest import MANIFEST
from lmdistill.studio import page
from lmdistill.studio.runs import recipe_of


def stores_of(folder: Path) -> list[Path]:
    """The run's own store, and the one that its recipe names, where they are there."""
    places = [folder / "signals"]
    section = recipe_of(folder).get("signals")
    named = section.get("store") if isinstance(section, dict) else None
    if isinstance(named, str):
        places.append(Path(named).expanduser())
    return [place for place in dict.fromkeys(places) if (place / MANIFEST).is_file()]


def signals_page(folder: Path, rows: int = 3, positions: int = 12) -> str:
    """All stores of a run."""
    stores = stores_of(folder)
    if not stores:
        return page.whole(page.note("This run keeps no signals: its teacher is asked while it trains (signals.kind)."))
    parts = []
    for store in stores:
        parts.append(page.heading(store, 2))
        try:
            found = statistics(store)
            parts.append(page.table(("what", "value"), [(name, str(value)) for name, value in found.items()], "Store"))
            for row in first_rows(store, rows, positions):
                said = f"{row['key']}: {row['tokens']} tokens, {row['positions']} positions, {row['bytes']} bytes"
                lines = [line.partition(": ")[::2] for line in row["signal"]]
                parts += [
                    page.heading(said),
                    page.table(("place", "token:probability"), lines, f"Signals of {row['key']}"),
                ]
        except (LmdistillError, OSError, ValueError) as error:
            parts.append(page.problem(error))
    return page.whole(*parts)
