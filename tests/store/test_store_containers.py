"""What a file is, is told by its content; what is broken in it is told, and the rest is loaded."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard

from evalpipe.errors import ConfigError, DataError
from evalpipe.store.importers.containers import sources_of
from evalpipe.store.importers.documents import Document
from evalpipe.workspace.load import LoadOptions, load
from evalpipe.workspace.paths import Workspace

ROWS: list[dict[str, Any]] = [
    {"pair_id": f"p{n}", "prompt": f"é {n}?", "response_a": "a", "response_b": f"b\n{n}"} for n in range(5)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def documents(path: Path) -> tuple[list[Document], list[str]]:
    found: list[Document] = []
    faults: list[str] = []
    for source in sources_of(path):
        found += source.documents()
        faults += source.faults
    return found, faults


def table(delimiter: str, end: str = "\r\n") -> str:
    names = list(ROWS[0])
    rows = [names, *([f'"{row[name]}"' for name in names] for row in ROWS)]
    return end.join(delimiter.join(row) for row in rows) + end


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        info = tarfile.TarInfo("day=1/log.jsonl")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def parquet(write: Callable[[pa.Table, Any], object]) -> bytes:
    file = io.BytesIO()
    write(pa.Table.from_pylist(ROWS), file)
    return file.getvalue()


def workbook() -> bytes:
    """A workbook as spreadsheets write it: shared texts, a sheet with references to them."""
    texts = list(dict.fromkeys([*ROWS[0], *(str(value) for row in ROWS for value in row.values())]))
    shared = "".join(f"<si><t xml:space='preserve'>{text}</t></si>" for text in texts)
    lines = [list(ROWS[0]), *(list(map(str, row.values())) for row in ROWS)]
    rows = "".join(
        f"<row r='{number}'>"
        + "".join(f"<c r='{chr(65 + at)}{number}' t='s'><v>{texts.index(text)}</v></c>" for at, text in enumerate(line))
        + "</row>"
        for number, line in enumerate(lines, 1)
    )
    space = "xmlns='http://schemas.openxmlformats.org/spreadsheetml/2006/main'"
    return zipped(
        {
            "[Content_Types].xml": b"<Types/>",
            "xl/workbook.xml": b"<workbook/>",
            "xl/sharedStrings.xml": f"<sst {space}>{shared}</sst>".encode(),
            "xl/worksheets/sheet1.xml": f"<worksheet {space}><sheetData>{rows}</sheetData></worksheet>".encode(),
        }
    )


WHOLE: dict[str, bytes] = {
    "json lines": LINES,
    "carriage returns": LINES.replace(b"\n", b"\r"),
    "byte order mark": b"\xef\xbb\xbf" + LINES,
    "list": json.dumps(ROWS).encode(),
    "printed list": json.dumps(ROWS, indent=2).encode(),
    "printed one after another": "\n".join(json.dumps(row, indent=4) for row in ROWS).encode(),
    "comma at the end of lines": LINES.replace(b"}\n", b"},\n"),
    "list with a line for each": b"[\n" + LINES.replace(b"}\n", b"},\n").rstrip(b",\n") + b"\n]\n",
    "record separators": b"".join(b"\x1e" + line + b"\n" for line in LINES.splitlines()),
    "utf-16": LINES.decode().encode("utf-16"),
    "utf-16 without a mark": LINES.decode().encode("utf-16-le"),
    "utf-16 big": LINES.decode().encode("utf-16-be"),
    "utf-32": LINES.decode().encode("utf-32"),
    "gzip": gzip.compress(LINES),
    "two gzip members": gzip.compress(LINES[:100]) + gzip.compress(LINES[100:]),
    "zstd": zstandard.compress(LINES),
    "gzip of zstd": gzip.compress(zstandard.compress(LINES)),
    "csv": table(",").encode(),
    "csv of excel": b"\xef\xbb\xbf" + table(";").encode(),
    "tsv": table("\t", "\n").encode(),
    "csv in utf-16": table(",").encode("utf-16"),
    "gzip of csv": gzip.compress(table(",").encode()),
    "zip": zipped({"logs/a.jsonl": LINES, "__MACOSX/x": b"?"}),
    "tar": tarred(LINES),
    "parquet": parquet(pq.write_table),
    "gzip of parquet": gzip.compress(parquet(pq.write_table)),
    "feather": parquet(pyarrow.feather.write_feather),
    "excel": workbook(),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_the_name_of_a_file_says_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "export.bin"
    path.write_bytes(WHOLE[kind])
    found, faults = documents(path)
    assert [one.value for one in found] == ROWS
    assert not faults


CUT = {
    "json lines": LINES[:-20],
    "list": json.dumps(ROWS).encode()[:-20],
    "printed list": json.dumps(ROWS, indent=2).encode()[:-20],
    "wrapped": json.dumps({"total": 5, "data": ROWS}).encode()[:-22],
    "gzip": gzip.compress(LINES[:-20])[:-9],
}


@pytest.mark.parametrize("kind", CUT)
def test_of_a_cut_file_what_is_whole_is_read_and_one_line_says_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cut.json"
    path.write_bytes(CUT[kind])
    found, faults = documents(path)
    assert [one.value for one in found if one.problem is None] == ROWS[:4]
    assert [one.problem is not None for one in found][4:] == [True]
    assert any("cut" in fault for fault in faults)


def test_every_kind_of_broken_line_is_counted_and_the_rest_is_loaded(tmp_path: Path) -> None:
    broken = [
        b"null", b"17", b'"text"', b"[1, 2]", b'{"foo": 1}', b'{"pair_id": "x", ', b'{"pair_id":"\x00"}', b"\xff\xfe\xfd",
        b'{"pair_id": "n", "prompt": "q", "response_a": "a", "response_b": "b", "latency_ms_a": ' + b"9" * 400 + b"}",
        b'{"pair_id": "n", "prompt": "q", "response_a": {"a": 1}, "response_b": "b"}',
    ]  # fmt: skip
    good = [json.dumps({**ROWS[0], "pair_id": f"g{n}"}).encode() for n in range(190)]
    lines = [*good[:10], *[line for pair in zip(broken, good[10:20], strict=True) for line in pair], *good[20:]]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    summary = load(Workspace(root=tmp_path, data=tmp_path / "data", config=None), [path])
    assert (summary.n_exchanges, summary.n_rejected) == (2 * 190, len(broken))
    assert sum(summary.reasons.values()) == len(broken)
    assert 190 + summary.n_rejected == len(lines)


def test_rows_of_a_table_that_have_other_columns_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('pair_id,prompt,response_a,response_b\n1,q,a,b\n2,q,a\n3,q,a,b,c\n4,"q\nq",a,b\n')
    summary = load(Workspace(root=tmp_path, data=tmp_path / "data", config=None), [path])
    assert (summary.n_exchanges, summary.n_rejected) == (4, 2)
    assert any("fewer columns" in reason for reason in summary.reasons)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"%PDF-1.7 x", "a PDF"),
        (b"SQLite format 3\x00" + b"\0" * 100, "an SQLite database"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "a PNG image"),
        (b"<html><body>no</body></html>", "a web page"),
        (b"model: x\nprompt: y\nanswer: z\nlist:\n", "YAML"),
        (b"just some words\nand more of them\n", "plain text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "Git LFS"),
    ],
)
def test_a_file_that_is_no_log_is_named_for_what_it_is(tmp_path: Path, data: bytes, word: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=word):
        load(Workspace(root=tmp_path, data=tmp_path / "data", config=None), [path])


def test_a_column_that_is_there_twice_is_read_under_a_number_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("question,old,x,x,new,x (2)\nq1,a,1,2,b,3\nq2,c,4,5,d,6\n")
    found, faults = documents(path)
    assert [one.value for one in found] == [
        {"question": "q1", "old": "a", "x": "1", "x (3)": "2", "new": "b", "x (2)": "3"},
        {"question": "q2", "old": "c", "x": "4", "x (3)": "5", "new": "d", "x (2)": "6"},
    ]
    assert faults == ["the header names the column 'x' more than once: this one is read as 'x (3)'"]


@pytest.mark.parametrize("text", ["one, two, one, one\n", "a word, a word, and more\n", "no, no, no\nno, no, no\n"])
def test_a_text_whose_words_repeat_is_no_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match="plain text"):
        documents(path)


def test_a_nul_in_a_cell_is_replaced_and_the_file_remains_a_table(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'question,answer\nq1,a\nq2,"b\0c"\nq3,\0\nq4,d\n')
    found, faults = documents(path)
    assert [(one.number, one.value["answer"]) for one in found] == [(2, "a"), (3, "b\ufffdc"), (4, "\ufffd"), (5, "d")]
    assert faults == ["NUL characters are read as U+FFFD: lines 3, 4"]


def test_one_nul_makes_no_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"words and more words " * 20 + b"\0 and words\n")
    with pytest.raises(ConfigError, match="plain text, neither JSON nor a table"):
        documents(path)


@pytest.mark.parametrize("data", [parquet(pq.write_table)[:-10], zipped({"a.jsonl": LINES})[:-30], b""])
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.parquet"):
        load(Workspace(root=tmp_path, data=tmp_path / "data", config=None), [path])


def test_a_folder_with_days_in_it_is_one_experiment(tmp_path: Path) -> None:
    for day in (1, 2):
        folder = tmp_path / "s3" / f"2026-11-0{day}"
        folder.mkdir(parents=True)
        for n in range(2):
            (folder / f"{n}.json").write_text(json.dumps({**ROWS[0], "pair_id": f"{day}-{n}"}))
    (tmp_path / "s3" / "README.txt").write_text("what this is")
    (tmp_path / "s3" / "_SUCCESS").write_text("")
    summary = load(Workspace(root=tmp_path, data=tmp_path / "data", config=None), [tmp_path / "s3"])
    assert (summary.experiments, summary.n_exchanges) == ({"s3"}, 8)
    assert len(summary.skipped) == 1 and "README.txt" in summary.skipped[0]


def test_a_dry_run_stores_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES)
    summary = load(
        Workspace(root=tmp_path, data=tmp_path / "data", config=None), [path], options=LoadOptions(dry_run=True)
    )
    assert "pairs" in summary.lines()[0] and not (tmp_path / "data").exists()
