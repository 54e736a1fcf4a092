"""Requests are counted by class: what stands for the values of a class satisfies what its requests' own values do."""

from __future__ import annotations

import duckdb
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.analysis.classes import in_classes, with_values
from evalpipe.analysis.populations import PAIRED_SIDES

MEASURED = ("cost_usd", "input_tokens", "output_tokens", "latency_ms", "ttft_ms")
NUMBER = st.none() | st.sampled_from([-250.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 100.0, 1e9])
SIDE = st.tuples(*[NUMBER] * len(MEASURED), NUMBER, st.booleans())
Value = float | None


def facts(
    cost: Value, tokens_in: Value, tokens_out: Value, latency: Value, ttft: Value, own: Value, streamed: bool
) -> tuple[bool, ...]:
    """What is counted of one side, in Python: which values are known, whether times are in order, whether it has a speed."""
    known = [value is not None for value in (cost, tokens_in, tokens_out, latency, ttft, own)]
    elapsed = latency if not streamed else None if latency is None or ttft is None else latency - ttft
    return (
        *known,
        latency is not None and latency < 0,
        latency is not None and ttft is not None and ttft > latency + 1,
        elapsed is not None and elapsed >= 0,
    )


FACTS = [
    *(f"@{name} IS NOT NULL" for name in (*MEASURED, "own")),
    "coalesce(@latency_ms < 0, false)",
    "coalesce(@ttft_ms > @latency_ms + 1, false)",
    "coalesce(CASE WHEN @streamed THEN @latency_ms - @ttft_ms ELSE @latency_ms END >= 0, false)",
]


@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=30))
def test_a_class_is_counted_as_its_requests(requests: list[tuple[tuple[Value | bool, ...], ...]]) -> None:
    names = [f"{side}{name}" for side in PAIRED_SIDES for name in (*MEASURED, "own", "streamed")]
    columns = zip(*[[*control, *treatment] for control, treatment in requests], strict=True)
    kinds = [pa.bool_() if name.endswith("streamed") else pa.float64() for name in names]
    given_rows = pa.table([pa.array(values, kind) for values, kind in zip(columns, kinds, strict=True)], names=names)  # noqa: F841
    keys = [f"{side}streamed" for side in PAIRED_SIDES]
    query = with_values(f"({in_classes('given_rows', keys, sides=PAIRED_SIDES, columns=['own'])})", sides=PAIRED_SIDES)
    conditions = [fact.replace("@", side) for side in PAIRED_SIDES for fact in FACTS]
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT n, {', '.join(conditions)} FROM ({query})").fetchall()
    expected = [facts(*control) + facts(*treatment) for control, treatment in requests]  # type: ignore[arg-type]
    counted: dict[tuple[bool, ...], int] = {}
    for n, *own in found:
        counted[tuple(own)] = counted.get(tuple(own), 0) + n
    assert counted == {one: expected.count(one) for one in expected}
    assert sum(counted.values()) == len(requests)
