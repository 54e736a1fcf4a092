"""What is done to make rows fast changes none of them: entries packed for another process, columns of one value."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spool_builders import T0, copy, request, served, shadow, write_segment

from evalpipe.models import Arm
from evalpipe.spool.format import Body, read_record, render_record
from evalpipe.spool.join import LOST, PendingRequest
from evalpipe.store.parsing import pack, unpack
from evalpipe.store.schema import to_table

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
HEADERS = st.dictionaries(TEXTS, TEXTS, max_size=3)
BODIES = st.binary(max_size=20).map(Body.of)


@st.composite
def entries(draw: st.DrawFn) -> PendingRequest:
    """An entry as it is read from a log, some of its records missing."""
    asked = request("r1", at=T0 + draw(st.floats(0, 1e6)), headers=draw(HEADERS), unit_id=draw(st.none() | TEXTS))
    answer = served(
        "r1",
        body=draw(st.binary(max_size=20)),
        headers=draw(HEADERS),
        marks=draw(st.lists(st.tuples(st.integers(0, 2**40), st.floats(0, 1e6)), max_size=3)),
        sent=draw(st.none() | BODIES),
        status=draw(st.none() | st.integers(100, 599)),
    )
    made = PendingRequest(
        read_record(render_record(asked)),  # type: ignore[arg-type]
        draw(st.sampled_from([None, read_record(render_record(answer))])),  # type: ignore[arg-type]
        at=draw(st.sampled_from([T0, float("inf")])),
        lost_reason=draw(st.sampled_from([None, LOST])),
    )
    made.shadow = draw(st.sampled_from([None, shadow("r1", reason=None), shadow("r1", "shed", reason="full")]))
    made.copy = draw(st.sampled_from([None, copy("r1")]))
    return made


@settings(deadline=None)
@given(st.lists(entries(), max_size=4))
def test_entries_reach_another_process_as_they_were(sent: list[PendingRequest]) -> None:
    def records(entry: PendingRequest) -> list[Any]:
        return [entry.request, entry.served, entry.shadow, entry.copy, entry.at, entry.lost_reason]

    assert [records(entry) for entry in unpack(pack(sent))] == [records(entry) for entry in sent]


@dataclass(frozen=True)
class Row:
    value: Any
    number: int = 1


def columns(kind: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field("value", kind), pa.field("number", pa.int64())])


@settings(deadline=None)
@given(st.lists(st.sampled_from([None, "", "control", Arm.CONTROL, "\ud83d"]), max_size=3), st.sampled_from([1, 2, 50]))
def test_a_column_of_one_value_is_as_any_other(values: list[str | None], n_times: int) -> None:
    repeated = [value for value in values for _ in range(n_times)]
    table = to_table(columns(pa.string()), [Row(value) for value in repeated])
    assert table["value"].type == pa.string()
    assert table["value"].to_pylist() == [None if v is None else str(v).replace("\ud83d", "\ufffd") for v in repeated]


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us", tz="UTC")])
def test_a_column_without_a_value_has_its_type(kind: pa.DataType) -> None:
    table = to_table(columns(kind), [Row(None)] * 3)
    assert (table["value"].type, table["value"].null_count) == (kind, 3)


ZONES = st.sampled_from([None, UTC, timezone(timedelta(hours=-7)), timezone(timedelta(hours=5, minutes=45))])
FIRST, LAST = datetime(1, 1, 3), datetime(9999, 12, 29)  # noqa: DTZ001 - the zone is drawn
INSTANTS = st.datetimes(FIRST, LAST, timezones=ZONES)


@settings(deadline=None)
@given(st.lists(st.none() | INSTANTS, min_size=1, max_size=5))
def test_instants_are_stored_as_arrow_reads_them(values: list[datetime | None]) -> None:
    kind = pa.timestamp("us", tz="UTC")
    table = to_table(columns(kind), [Row(value) for value in values])
    assert table["value"].combine_chunks().equals(pa.array(values, kind))
    assert [value if value is None else (value if value.tzinfo else value.replace(tzinfo=UTC)) for value in values] == (
        table["value"].to_pylist()
    )


def test_rows_are_made_without_pandas(tmp_path: Path) -> None:
    write_segment(tmp_path, "served-1.000001", [request("r1"), served("r1"), shadow("r1"), copy("r1")])
    code = """
import sys
from pathlib import Path
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.load import SpoolLoad
from evalpipe.store.schema import forgo_pandas

forgo_pandas()
root = Path(sys.argv[1])
print(SpoolLoad(root / "data", root, rules=ReadingRules(), now=2e9).run().n_exchanges, "pandas" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["2", "False"]
