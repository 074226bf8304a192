"""Read a source of data into documents: JSONL, Parquet and text files, folders of them, data sets of `datasets`.

What a source may be (`SourceSpec.path`):

- `*.jsonl`, `*.ndjson`, `*.json`: one JSON object a line; a BOM, CRLF and blank lines are accepted;
- `*.parquet`: one row a document;
- `*.csv`, `*.tsv`: the first line names the columns; `*.conll`: one sentence a row, with the lists `tokens` and `tags`;
- `*.txt`, `*.md`: each paragraph (block of lines between blank lines) is a document;
- a folder saved by `Dataset.save_to_disk`;
- any other folder, hidden files left out, in the order of names: all `*.jsonl`, `*.ndjson` and `*.parquet` files
  below it; if there are none, all `*.json` files; if there are none, all text files, each of which is then **one**
  document (so a README.md or a dataset_infos.json beside the data is not taken for data);
- `package:NAME/path`: any of these inside an installed Python package;
- otherwise the name of a data set on the Hugging Face hub (the only case that uses the network).

Nothing depends on Python's hash seed, the locale or the order in which a file system lists names.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from lmdistill.data.documents import BadRow, DataReport, Document, EmptyRow, detect_format, to_document
from lmdistill.data.tables import read_conll, read_csv
from lmdistill.errors import DataError
from lmdistill.packages import resolve_path
from lmdistill.progress import Progress
from lmdistill.recipe import SourceSpec

LINE_LIMIT = 16 * 2**20
"""Longest line of a JSONL file and longest text document, in bytes."""

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".csv", ".tsv", ".conll")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Row:
    """What a reader found at one place: a mapping of columns, or the reason why there is none."""

    origin: str
    row: dict[str, Any] | None
    problem: str = ""


def load_documents(
    source: SourceSpec, *, seed: int, on_bad_rows: Literal["stop", "skip"], progress: Progress
) -> tuple[list[Document], DataReport]:
    """Read a source, drop duplicates, take its part and its limit.

    Rows keep their order unless `limit` is given: then they come in an order shuffled by the seed. Raises DataError
    for a source that cannot be read, for the first bad row (`on_bad_rows="stop"`), and when nothing is left.
    """
    report = DataReport(sources=[source.path])
    documents: list[Document] = []
    with progress.task(f"reading {source.path}", unit="rows") as task:
        try:
            for document in _documents(source, report, on_bad_rows, progress):
                documents.append(document)
                task.advance()
        except OSError as error:
            raise DataError(f"{error.filename or source.path}: cannot be read ({error.strerror or error})") from error
    documents = choose(documents, source, seed, report)
    if not documents:
        raise DataError(f"{source.path}: nothing to read; {report.explain()}. {_advice(source, report)}")
    if report.bad:
        share = report.bad / report.rows_read
        tell = progress.warn if share > 0.01 else progress.note
        tell(f"{source.path}: {report.bad} of {report.rows_read} rows are bad and skipped; {report.explain()}")
    return documents, report


def read_rows(source: SourceSpec, progress: Progress) -> Iterator[Row]:
    """The rows of a source as they stand there, bad ones with their reason. Raises DataError."""
    try:
        for rows in _open_source(source, progress):
            yield from rows
    except OSError as error:
        raise DataError(f"{error.filename or source.path}: cannot be read ({error.strerror or error})") from error


def first_documents(source: SourceSpec, rows: int, on_bad_rows: Literal["stop", "skip"]) -> list[Document]:
    """The first documents of a source, to see whether it can be read. Raises DataError as `load_documents` does."""
    report = DataReport(sources=[source.path])
    try:
        found = list(itertools.islice(_documents(source, report, on_bad_rows, Progress()), rows))
    except OSError as error:
        raise DataError(f"{error.filename or source.path}: cannot be read ({error.strerror or error})") from error
    if not found:
        raise DataError(f"{source.path}: nothing to read; {report.explain()}. {_advice(source, report)}")
    return found


def _advice(source: SourceSpec, report: DataReport) -> str:
    if report.rows_read == 0:
        return "Is this the right file?"
    if report.other_part:
        return f"Change heldout_share (now {source.heldout_share}), or take part: all"
    return "Repair the rows, or name the right columns in the source's `fields`"


def _documents(
    source: SourceSpec, report: DataReport, on_bad_rows: Literal["stop", "skip"], progress: Progress
) -> Iterator[Document]:
    """Good rows as documents; bad ones are counted or raised."""
    for file_rows in _open_source(source, progress):
        kind, has_response = None, False
        for found in file_rows:
            report.rows_read += 1
            try:
                if found.row is None:
                    raise BadRow(found.problem)
                if kind is None:
                    kind = detect_format(found.row, source.fields, source.format, found.origin)
                    has_response = source.fields.response in found.row
                yield to_document(found.row, kind, source.fields, found.origin, has_response)
            except EmptyRow:
                report.empty += 1
            except BadRow as problem:
                if on_bad_rows == "stop":
                    raise DataError(
                        f"{found.origin}: {problem}. Repair this row, or set data.on_bad_rows: skip to leave such rows "
                        "out and count them"
                    ) from None
                report.add_bad(found.origin, str(problem))


def choose(documents: list[Document], source: SourceSpec, seed: int, report: DataReport) -> list[Document]:
    """The documents that a source's `unique`, `part` and `limit` leave; what they take away is counted in `report`."""
    if source.unique:
        first = {document.normal_id: document for document in reversed(documents)}
        kept = [document for document in documents if first[document.normal_id] is document]
        report.duplicates, documents = len(documents) - len(kept), kept
    if source.part != "all":
        heldout = source.part == "heldout"
        kept = [document for document in documents if is_heldout(document, source.heldout_share) == heldout]
        report.other_part, documents = len(documents) - len(kept), kept
    if source.limit is not None:
        kept = shuffled(documents, seed, "limit")[: source.limit]
        report.beyond_limit, documents = len(documents) - len(kept), kept
    report.documents = len(documents)
    return documents


def is_heldout(document: Document, share: float) -> bool:
    """Whether a document falls on the held-out side: a function of its content alone, so that equal texts stay
    together in whatever file, order or run they occur."""
    draw = hashlib.sha256(f"heldout:{document.normal_id}".encode()).digest()
    return int.from_bytes(draw[:8], "big") < share * 2**64


def shuffled(documents: Sequence[Document], seed: int, purpose: str) -> list[Document]:
    """Documents in an order that depends on seed, purpose and content alone.

    Sorting by a hash (instead of shuffling positions) keeps the order of all others when a row is added or removed,
    and makes a smaller `limit` a beginning of a larger one.
    """
    prefix = f"{purpose}:{seed}:".encode()
    keys = [hashlib.sha256(prefix + document.id.encode()).digest() for document in documents]
    order = sorted(range(len(documents)), key=lambda index: (keys[index], index))
    return [documents[index] for index in order]


# --- Where rows come from -------------------------------------------------------------------------------------------


def _open_source(source: SourceSpec, progress: Progress) -> Iterator[Iterator[Row]]:
    """An iterator of rows for each file of a source."""
    text = resolve_path(source.path)
    path = Path(text).expanduser()
    if path.is_dir():
        yield from _read_folder(path, source, progress)
    elif path.is_file():
        yield _read_file(path, _printable(source.path), source)
    elif _looks_like_a_file(text):
        raise DataError(f"{text}: no such file or folder (working folder {Path.cwd()})")
    else:
        yield _read_hub(text, source)


def _looks_like_a_file(text: str) -> bool:
    known = Path(text).suffix.lower() in (*JSON_SUFFIXES, *TEXT_SUFFIXES, *TABLE_SUFFIXES, ".parquet")
    return known or not _HUB_NAME.fullmatch(text)


def _printable(name: str) -> str:
    """A file's name for origins and messages; bytes that are not UTF-8 are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _read_file(path: Path, name: str, source: SourceSpec) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix in JSON_SUFFIXES:
        return _read_jsonl(path, name)
    if suffix == ".parquet":
        return _read_parquet(path, name, source)
    if suffix in TEXT_SUFFIXES:
        return _read_paragraphs(path, name, source.fields.text)
    if suffix in TABLE_SUFFIXES:
        read = read_conll if suffix == ".conll" else read_csv
        return (Row(*found) for found in read(path, name))
    known = ", ".join((*JSON_SUFFIXES, ".parquet", *TEXT_SUFFIXES, *TABLE_SUFFIXES))
    raise DataError(f"{path}: files ending in {suffix or 'nothing'!r} are not known; known are {known}")


def _read_folder(folder: Path, source: SourceSpec, progress: Progress) -> Iterator[Iterator[Row]]:
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        yield _read_saved(folder, source)
        return
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    # as_posix, not Path: Windows would compare names without case and give another order
    files = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    kinds = ((".jsonl", ".ndjson", ".parquet"), (".json",), TEXT_SUFFIXES)
    chosen = next((kind for kind in kinds if any(_suffix(name) in kind for name in files)), ())
    taken = [name for name in files if _suffix(name) in chosen]
    if not taken:
        raise DataError(f"{folder}: no JSONL, Parquet or text file in this folder ({len(files)} other files)")
    if len(taken) < len(files):
        progress.note(f"{folder}: {len(taken)} files ({', '.join(chosen)}) are read, {len(files) - len(taken)} are not")
    shown = {name: _printable(f"{source.path.rstrip('/')}/{name}") for name in taken}
    if chosen == TEXT_SUFFIXES:
        yield (_read_whole_text(folder / name, shown[name], source.fields.text) for name in taken)
    else:
        for name in taken:
            yield _read_file(folder / name, shown[name], source)


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


# --- JSONL ----------------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path, name: str) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if number == 1 and line is not None:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line is not None and not line.strip():
                continue
            origin = f"{name}:{number}"
            try:
                yield Row(origin, parse_json_line(None if line is None else line.rstrip(b"\r\n")))
            except BadRow as problem:
                yield Row(origin, None, str(problem))


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines of a file; None for one above LINE_LIMIT, of which no more than that is ever held."""
    while line := file.readline(LINE_LIMIT + 1):
        if len(line) <= LINE_LIMIT:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(2**20)
        yield None


_ONE_A_LINE = "write one object a line (for a file that is an array: jq -c '.[]' file.json > file.jsonl)"


def parse_json_line(line: bytes | None) -> dict[str, Any]:
    """One JSON object, strictly: no duplicate keys, no NaN or infinities, nothing after it. Raises BadRow."""
    if line is None:
        raise BadRow(f"longer than {LINE_LIMIT} bytes; split it")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 (byte {error.start + 1}: 0x{line[error.start]:02x})") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise BadRow(f"more than one JSON value (the second at column {error.colno})") from None
        hint = f"; {_ONE_A_LINE}" if text.lstrip()[:1] == "[" or text.strip() == "{" else ""
        raise BadRow(f"not valid JSON: {error.msg} (column {error.colno}){hint}") from None
    except RecursionError:
        raise BadRow("nested too deeply") from None
    except ValueError as error:  # integers of more than 4300 digits
        raise BadRow(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRow(f"a JSON {type(value).__name__}, not an object; {_ONE_A_LINE}")
    return value


def _no_constants(text: str) -> Any:
    raise BadRow(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadRow(f"the number {text[:20]} is too large")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise BadRow(f"duplicate key {counts.most_common(1)[0][0]!r}")
    return result


_DECODER = json.JSONDecoder(parse_constant=_no_constants, parse_float=_finite, object_pairs_hook=_no_duplicates)


# --- Text -----------------------------------------------------------------------------------------------------------


def _read_paragraphs(path: Path, name: str, column: str) -> Iterator[Row]:
    """Blocks of lines between blank lines; a block's origin is its first line."""
    block: list[bytes] = []
    size, start = 0, 1
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            if number == 1 and line is not None:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line is None or line.strip():
                start = start if size else number
                size += len(line) if line is not None else LINE_LIMIT + 1
                if line is not None and size <= LINE_LIMIT:
                    block.append(line)
            elif size:
                yield _text_row(f"{name}:{start}", block, size, column)
                block, size = [], 0
    if size:
        yield _text_row(f"{name}:{start}", block, size, column)


def _read_whole_text(path: Path, name: str, column: str) -> Row:
    """A file as one document."""
    with path.open("rb") as file:
        data = file.read(LINE_LIMIT + 1)
    return _text_row(f"{name}:1", [data.removeprefix(codecs.BOM_UTF8)], len(data), column)


def _text_row(origin: str, block: Sequence[bytes], size: int, column: str) -> Row:
    if size > LINE_LIMIT:
        return Row(origin, None, f"a text longer than {LINE_LIMIT} bytes; split it")
    data = b"".join(block)
    if b"\0" in data:
        return Row(origin, None, "holds a NUL byte: binary data, not text")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Row(origin, None, f"not UTF-8 (byte {error.start + 1}: 0x{data[error.start]:02x})")
    return Row(origin, {column: text.replace("\r\n", "\n").strip("\n")})


# --- Tables ---------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, name: str, source: SourceSpec) -> Iterator[Row]:
    """Rows of a Parquet file; columns that no format reads are left on the disk where any is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            wanted = [column for column in file.schema_arrow.names if column in dict(source.fields).values()]
            for batch in file.iter_batches(batch_size=1024, columns=wanted or None):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(f"{name}:{number}", row)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: expected a whole Parquet file of {path.stat().st_size} bytes, but reading failed after row "
            f"{number}: {reason}. Copy or write the file again"
        ) from error


def _read_saved(folder: Path, source: SourceSpec) -> Iterator[Row]:
    """A folder saved by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise DataError(f"{folder}: not a whole data set folder ({error}); save it again with save_to_disk") from error
    if isinstance(loaded, datasets.DatasetDict):
        if source.split not in loaded:
            raise DataError(f"{folder}: no split {source.split!r}; it has {', '.join(loaded)}. Set the source's split")
        loaded = loaded[source.split]
    yield from _dataset_rows(loaded, str(folder))


def _read_hub(name: str, source: SourceSpec) -> Iterator[Row]:
    """A data set on the Hugging Face hub; the library runs no code of the data set's (datasets >= 4)."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, source.subset, split=source.split)
    except Exception as error:  # network, names, splits, formats: the library raises a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name}: no such file or folder here, and as a Hugging Face data set it cannot be loaded: {reason}"
        ) from error
    yield from _dataset_rows(loaded, name)


def _dataset_rows(loaded: Any, name: str) -> Iterator[Row]:
    for number, row in enumerate(loaded, start=1):
        yield Row(f"{name}:{number}", dict(row))
