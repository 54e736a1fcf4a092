"""The small values of an exchange as bits of one integer, its `state`, and its place in its conversation as those of another,
while both arms' exchanges are joined.

To read, join, write and read again, a column costs about the same whether it holds a bit or a number: one column in place of
fifteen halves it.
"""

from __future__ import annotations

from evalpipe.analysis.populations import OUTCOMES, PAIRED_SIDES, POPULATIONS, population_columns

_BITS = {
    "code": 4,
    "empty": 1,
    "streamed": 1,
    "silent": 1,
    "unbilled": 1,
    **dict.fromkeys(POPULATIONS, 1),
    "shadow_code": 3,
    "kind": 16,
}
"""of each value, from the lowest; 31 in all"""
_OF_A_SIDE = {"empty", "streamed", "silent", "unbilled"}
assert sum(_BITS.values()) <= 32
assert len(OUTCOMES) < 2 ** _BITS["code"]


_HALF = 16
_MOST = (1 << _HALF) - 2
"""the highest turn and step: beyond, a conversation is as long as that"""


def packed(query: str, columns: str) -> str:
    """The query's exchanges with `columns`, their place (turn and step) and their state. A small value that is NULL is 0 here."""
    turn, step = (f"(least(greatest(coalesce({name}, -1), -1), {_MOST}) + 1)::UINTEGER" for name in ("turn", "step"))
    parts = [
        f"(coalesce({name}, 0)::UINTEGER << {_shift(name)})"
        if bits > 1
        else f"(CASE WHEN {name} THEN {1 << _shift(name)}::UINTEGER ELSE 0::UINTEGER END)"
        for name, bits in _BITS.items()
    ]
    flagged = f"SELECT *, {', '.join(population_columns(('',)))} FROM ({query})"
    return f"SELECT {columns}, ({turn} << {_HALF}) | {step} AS place, {' | '.join(parts)} AS state FROM ({flagged})"


def unpacked(columns: str, source: str) -> str:
    """The query of `source`, a table of requests with control's place and each side's state (`c_state`, `t_state`; NULL for a
    missing side), with the values that are in them. A request's own values are control's, and the treatment's where control has
    none."""
    halves = {"turn": f"place >> {_HALF}", "step": f"place & {(1 << _HALF) - 1}"}
    values = [f"nullif({half}, 0)::INTEGER - 1 AS {name}" for name, half in halves.items()]
    for name, kind in (("shadow_code", "UTINYINT"), ("kind", "USMALLINT")):
        own = ", ".join(f"nullif({_number(f'{side}state', name)}, 0)" for side in PAIRED_SIDES)
        values.append(f"coalesce({own})::{kind} AS {name}")
    for side in PAIRED_SIDES:
        state = f"{side}state"
        values.append(f"coalesce({_number(state, 'code')}, 0)::UTINYINT AS {side}code")
        values += [f"{_flag(state, name)} AS {side}{name}" for name in _BITS if name in _OF_A_SIDE]
    values += [f"coalesce({_flag('c_state & t_state', name)}, false) AS {name}" for name in POPULATIONS]
    return f"SELECT {columns}, {', '.join(values)} FROM {source}"


def _shift(name: str) -> int:
    names = list(_BITS)
    return sum(_BITS[one] for one in names[: names.index(name)])


def _number(state: str, name: str) -> str:
    return f"(({state} >> {_shift(name)}) & {2 ** _BITS[name] - 1})"


def _flag(state: str, name: str) -> str:
    return f"(({state} & {1 << _shift(name)}) <> 0)"
