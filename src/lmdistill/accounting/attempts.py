"""How often each stage was begun, and what of that is not in the result: read from a run's events.jsonl."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Attempt:
    """One start of a stage."""

    stage: str
    seconds: float
    outcome: Literal["done", "failed", "killed"]


def attempts_of(events: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """All attempts, in order of their ends; one that is still going on, as far as events tell, is left out.

    A killed one takes as long as its pulse says (`lmdistill.accounting.pulse`), and where there is none until its last
    event before the next start.
    """
    found: list[Attempt] = []
    begun: dict[str, float] = {}
    heard: dict[str, float] = {}
    for event in events:
        stage, kind, now = str(event.get("stage")), event.get("kind"), _seconds(event.get("time"))
        if now is None:
            continue
        if kind == "stage_started":
            if stage in begun:
                found.append(Attempt(stage, heard[stage] - begun[stage], "killed"))
            begun[stage] = heard[stage] = now
        elif kind in ("stage_finished", "stage_failed") and stage in begun:
            found.append(Attempt(stage, now - begun.pop(stage), "done" if kind == "stage_finished" else "failed"))
        elif kind == "stage_killed":
            begun.pop(stage, None)
            found.append(Attempt(stage, float(event.get("seconds", 0.0)), "killed"))
        elif stage in heard:
            heard[stage] = now
    return found


def lost_seconds(attempts: Iterable[Attempt], stage: str, resumed: float = 0.0) -> float:
    """Seconds of a stage's attempts that are not in its result.

    The last finished attempt is, and so are the `resumed` seconds that it took over from earlier ones by a checkpoint.
    """
    own = [attempt for attempt in attempts if attempt.stage == stage]
    last = next((place for place in reversed(range(len(own))) if own[place].outcome == "done"), None)
    lost = sum(attempt.seconds for place, attempt in enumerate(own) if place != last)
    return max(0.0, lost - (resumed if last is not None else 0.0))


def _seconds(time: Any) -> float | None:
    try:
        return datetime.datetime.fromisoformat(str(time)).timestamp()
    except ValueError:
        return None
