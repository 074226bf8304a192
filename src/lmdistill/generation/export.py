"""Generated rows in the formats of other trainers, as JSON lines. Torch is not imported here.

TRL's columns are those of its documentation, "Dataset formats and types". Where a row comes from stands in the side
column `lmdistill`, a JSON text, because readers of tables want the same columns in every row. It holds what the other
columns do not, so that `read_export` gives back the very examples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from lmdistill.errors import DataError
from lmdistill.generation.types import Example
from lmdistill.io import write_lines
from lmdistill.recipe import nearest

ExportFormat = Literal[
    "trl_prompt_completion",
    "trl_prompt_completion_chat",
    "trl_preference",
    "trl_preference_chat",
    "trl_unpaired",
    "trl_unpaired_chat",
    "alpaca",
    "alpaca_preference",
    "sharegpt",
    "messages",
]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
"""TRL: SFT (prompt, completion), DPO (prompt, chosen, rejected), KTO (prompt, completion, label), each as text and as
messages. Alpaca: instruction, input, output, or chosen and rejected. ShareGPT: conversations. OpenAI: messages."""
SIDE_COLUMN = "lmdistill"
_HARMFUL = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

Row = dict[str, Any]


def export(examples: Iterable[Example], file: Path, format: ExportFormat) -> int:
    """Write examples as JSON lines; returns the number of lines. The file appears whole or not at all.

    A pair gives two lines in the unpaired formats; a row without a rejected answer gives one, labelled by its verdict.
    Raises DataError naming the row that does not fit the format, StorageError where the disk fails.
    """
    if format not in _WRITERS:
        raise DataError(f"{format!r} is no format for export{nearest(format, EXPORT_FORMATS)}")
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for example in examples:
            for row in _WRITERS[format](example):
                count += 1
                yield json_line({**row, SIDE_COLUMN: json.dumps(_rest(example), ensure_ascii=False)})

    write_lines(file, lines())
    return count


def read_export(file: Path) -> Iterator[Example]:
    """The examples of a file that `export` wrote; both lines of an unpaired pair give the pair, once.

    Raises DataError naming the line that is not one of ours.
    """
    last = None
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                rest = json.loads(row.pop(SIDE_COLUMN))
                label = row.get("label")
                if label is not None and "rejected" in rest.get("fields", {}):
                    if last == rest["id"]:
                        last = None
                        continue
                    last = rest["id"]
                prompt, response, rejected = _read(row)
                fields = {**rest.pop("fields", {})}
                if rejected is not None:
                    fields["rejected"] = rejected
                yield Example.of({"prompt": prompt, "response": response, **rest, "fields": fields})
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise DataError(f"{file}:{number}: not a line of an export with provenance ({error!r})") from error


def json_line(row: Row) -> str:
    """A row as one line of JSON; what acts on terminals or splits lines is spelled out, so nothing is lost."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return _HARMFUL.sub(lambda found: f"\\u{ord(found.group(0)):04x}", text)


def _rest(example: Example) -> Row:
    """What stands in the side column: all but the two texts that every format has."""
    row = example.row()
    return {key: value for key, value in row.items() if key not in ("prompt", "response")} | (
        {"prompt": example.prompt} if _instruction(example)[1] else {}
    )


def _turns(example: Example) -> list[Row]:
    system = example.fields.get("system")
    turns = [{"role": "system", "content": system}] if isinstance(system, str) else []
    return [*turns, {"role": "user", "content": example.prompt}]


def _reply(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def _rejected(example: Example) -> str:
    rejected = example.fields.get("rejected")
    if not isinstance(rejected, str):
        raise DataError(f"row {example.id}: no rejected answer, so it is no preference; mine pairs first")
    return rejected


def _instruction(example: Example) -> tuple[str, str]:
    """Alpaca's instruction and input: the prompt and nothing, unless the row holds the two apart."""
    instruction, given = example.fields.get("instruction"), example.fields.get("input")
    if isinstance(instruction, str) and isinstance(given, str) and given:
        return instruction, given
    return example.prompt, ""


def _labelled(example: Example) -> list[tuple[str, bool]]:
    """(completion, label) of the unpaired formats."""
    if isinstance(example.fields.get("rejected"), str):
        return [(example.response, True), (_rejected(example), False)]
    if example.verdict not in ("correct", "incorrect"):
        raise DataError(
            f"row {example.id}: neither a pair nor verified ({example.verdict}), so it has no label; mine pairs, or "
            "leave out what could not be verified"
        )
    return [(example.response, example.verdict == "correct")]


def _alpaca(example: Example) -> Row:
    instruction, given = _instruction(example)
    return {"instruction": instruction, "input": given}


def _sharegpt(example: Example) -> Row:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [*_turns(example), *_reply(example.response)]
    return {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]}


_WRITERS: dict[str, Callable[[Example], list[Row]]] = {
    "trl_prompt_completion": lambda e: [{"prompt": e.prompt, "completion": e.response}],
    "trl_prompt_completion_chat": lambda e: [{"prompt": _turns(e), "completion": _reply(e.response)}],
    "trl_preference": lambda e: [{"prompt": e.prompt, "chosen": e.response, "rejected": _rejected(e)}],
    "trl_preference_chat": lambda e: [
        {"prompt": _turns(e), "chosen": _reply(e.response), "rejected": _reply(_rejected(e))}
    ],
    "trl_unpaired": lambda e: [
        {"prompt": e.prompt, "completion": text, "label": label} for text, label in _labelled(e)
    ],
    "trl_unpaired_chat": lambda e: [
        {"prompt": _turns(e), "completion": _reply(text), "label": label} for text, label in _labelled(e)
    ],
    "alpaca": lambda e: [{**_alpaca(e), "output": e.response}],
    "alpaca_preference": lambda e: [{**_alpaca(e), "chosen": e.response, "rejected": _rejected(e)}],
    "sharegpt": lambda e: [_sharegpt(e)],
    "messages": lambda e: [{"messages": [*_turns(e), *_reply(e.response)]}],
}


def _read(row: Row) -> tuple[str, str, str | None]:
    """(prompt, response, rejected) of a row in any of the formats."""
    if "messages" in row:
        return row["messages"][-2]["content"], row["messages"][-1]["content"], None
    if "conversations" in row:
        return row["conversations"][-2]["value"], row["conversations"][-1]["value"], None
    prompt = row["prompt"] if "prompt" in row else row["instruction"]
    response = next(row[name] for name in ("completion", "chosen", "output") if name in row)
    rejected = row.get("rejected")
    return _plain(prompt), _plain(response), None if rejected is None else _plain(rejected)


def _plain(value: Any) -> str:
    return str(value if isinstance(value, str) else value[-1]["content"])
