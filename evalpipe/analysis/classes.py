"""Requests in classes: alike in all that is counted without sizes, that is how each arm ended, the kind of request, which values
are known and whether times are in order. Of millions of requests there are some hundred classes, and counting these instead of
those is one pass over the log for all counts.

A class has the columns of its requests. In place of a value it has one that stands for it: NULL where that is unknown, and of
times such that their signs and order are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

_LATENCY, _TTFT = "{side}latency_ms", "{side}ttft_ms"
_CONDITIONS = {
    "cost": "{side}cost_usd IS NOT NULL",
    "input": "{side}input_tokens IS NOT NULL",
    "output": "{side}output_tokens IS NOT NULL",
    "latency": f"{_LATENCY} IS NOT NULL",
    "ttft": f"{_TTFT} IS NOT NULL",
    "negative": f"{_LATENCY} < 0",
    "after_end": f"{_TTFT} > {_LATENCY}",
    "well_after_end": f"{_TTFT} > {_LATENCY} + 1",
}
"""of a side; bits of one integer, so that rows are grouped by that alone"""
_VALUES = {
    "cost_usd": "CASE WHEN {cost} THEN 1 END",
    "input_tokens": "CASE WHEN {input} THEN 1 END",
    "output_tokens": "CASE WHEN {output} THEN 1 END",
    "latency_ms": "CASE WHEN {negative} THEN -100 WHEN {latency} THEN 100 END",
    "ttft_ms": "CASE WHEN {ttft} THEN CASE WHEN {negative} THEN -100 ELSE 100 END "
    "+ CASE WHEN {well_after_end} THEN 2 WHEN {after_end} THEN 1 ELSE 0 END END",
}
"""what stands for the values, from the conditions"""


def in_classes(source: str, keys: Sequence[str], *, sides: Sequence[str], columns: Sequence[str]) -> str:
    """The query of the classes of the rows of `source`, with their number `n`. It may be run on parts of them: the same classes
    are then in several parts, and those with their number summed are the classes of all.

    Args:
        source: a relation with the columns that `prepare` measures of each side.
        keys: its columns that are the same in a class.
        sides: what those columns begin with.
        columns: of a side, further ones of which only is counted whether they are known.
    """
    bits = [
        f"(CASE WHEN {condition.format(side=side)} THEN {1 << _bit(position, name)}::UINTEGER ELSE 0::UINTEGER END)"
        for position, side in enumerate(sides)
        for name, condition in _CONDITIONS.items()
    ]
    known = [f"CASE WHEN {side}{name} IS NOT NULL THEN 1 END AS {side}{name}" for side in sides for name in columns]
    grouped = ", ".join([*keys, f"{' | '.join(bits)} AS bits", *known])
    return f"SELECT {grouped}, count(*) AS n FROM {source} GROUP BY ALL"


def with_values(source: str, *, sides: Sequence[str]) -> str:
    """The query of `source`, classes, with what stands for the values of each side."""
    values = []
    for position, side in enumerate(sides):
        conditions = {name: f"(bits & {1 << _bit(position, name)} <> 0)" for name in _CONDITIONS}
        values += [f"({sql.format(**conditions)})::DOUBLE AS {side}{name}" for name, sql in _VALUES.items()]
    return f"SELECT * EXCLUDE (bits), {', '.join(values)} FROM {source}"


def number_of(condition: str) -> str:
    """SQL: how many requests are in classes of which the condition holds."""
    return f"coalesce(sum(n) FILTER ({condition}), 0)::BIGINT"


def _bit(position: int, name: str) -> int:
    return position * len(_CONDITIONS) + list(_CONDITIONS).index(name)
