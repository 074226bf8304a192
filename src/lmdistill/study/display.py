"""What `lmdistill study --dry-run` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmdistill.console import clean, duration
from lmdistill.display import size


def cells_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A line for each cell and their sum."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("cell", "state", "time", "memory", "disk", "TFLOP", ""):
        table.add_column(title, justify="left" if title in ("cell", "state", "") else "right", overflow="fold")
    left = 0.0
    for row in rows:
        seconds = row.get("seconds")
        left += (seconds or 0.0) if row["state"] != "done" else 0.0
        table.add_row(
            clean(row["cell"]),
            row["state"],
            "" if seconds is None else duration(seconds),
            size(row["memory_bytes"]) if "memory_bytes" in row else "",
            size(row["disk_bytes"]) if "disk_bytes" in row else "",
            f"{row['flops'] / 1e12:.1f}" if "flops" in row else "",
            clean(row["problem"]),
        )
    missing = sum(row["state"] != "done" for row in rows)
    return Group(table, "", Text(f"{missing} of {len(rows)} are not done yet: about {duration(left)}", style="bold"))
