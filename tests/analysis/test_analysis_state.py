"""The small values of an exchange, packed while the arms are joined, are the same afterwards."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.analysis.populations import OUTCOMES
from evalpipe.analysis.state import packed, unpacked

SMALL = st.none() | st.integers(min_value=0, max_value=65_534)
FLAG = st.none() | st.booleans()


def read(turn: int | None, step: int | None, code: int, flags: tuple[bool | None, ...], kind: int) -> dict[str, object]:
    """A request that both arms answered alike, packed and unpacked."""
    with duckdb.connect() as connection:
        empty, streamed, silent, unbilled = flags
        connection.execute(
            "CREATE TABLE one AS SELECT 7 AS id, $1::INTEGER AS turn, $2::INTEGER AS step, $3::UTINYINT AS code, "
            "$4::BOOLEAN AS empty, $5::BOOLEAN AS streamed, $6::BOOLEAN AS silent, $7::BOOLEAN AS unbilled, "
            "NULL::UTINYINT AS shadow_code, $8::USMALLINT AS kind",
            [turn, step, code, empty, streamed, silent, unbilled, kind],
        )
        connection.execute(f"CREATE TABLE sides AS {packed('FROM one', 'id')}")
        connection.execute("CREATE TABLE joined AS SELECT id, place, state AS c_state, state AS t_state FROM sides")
        found = connection.execute(unpacked("id", "joined"))
        names = [column[0] for column in found.description]
        return dict(zip(names, found.fetchall()[0], strict=True))


@given(SMALL, SMALL, st.integers(1, len(OUTCOMES)), st.tuples(FLAG, FLAG, FLAG, FLAG), st.integers(1, 65_535))
def test_values_are_the_same_afterwards(
    turn: int | None, step: int | None, code: int, flags: tuple[bool | None, ...], kind: int
) -> None:
    found = read(turn, step, code, flags, kind)
    assert (found["turn"], found["step"], found["kind"], found["shadow_code"]) == (turn, step, kind, None)
    for side in ("c_", "t_"):
        assert found[f"{side}code"] == code
        known = [found[f"{side}{name}"] for name in ("empty", "streamed", "silent", "unbilled")]
        assert known == [bool(flag) for flag in flags]
    empty, streamed = bool(flags[0]), bool(flags[1])
    assert found["in_answered"] == (code <= 3)
    assert found["in_nonempty"] == (code <= 3 and flags[0] is not None and not empty)
    assert found["in_streamed"] == (code <= 3 and streamed)


@pytest.mark.parametrize(("turn", "expected"), [(65_535, 65_534), (10_000_000, 65_534), (-1, None), (-70_000, None)])
def test_a_turn_beyond_its_bits_is_the_highest_and_no_number_is_none(turn: int, expected: int | None) -> None:
    assert read(turn, 0, 1, (False,) * 4, 1)["turn"] == expected
