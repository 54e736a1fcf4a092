"""Which requests a row of the decision table is about, as columns: the populations, and which values are known.

Both values of a row, their difference and its interval come from the same requests. In shadow mode a request counts where *both*
arms did what the row is about, so a flag belongs to the pair; in ab and canary mode a flag belongs to the served exchange.

| flag | requests |
|---|---|
| `in_measured` | answered or failed, where the source of the log measures failures |
| `in_answered` | answered |
| `in_nonempty` | answered, with text or a tool call |
| `in_timed` | the same, and timeouts (their latency is their limit) |
| `in_streamed` | answered as a stream |
| `has_…` | those of the value's population of which the value is known, without the kinds of requests that are left out |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

OUTCOMES = ("ok", "refused", "truncated", "http_error", "timeout", "unreadable", "client_closed", "shed")
"""as the codes 1, 2, …: up to 3 answered, up to 6 attempted"""
PAIRED_SIDES = ("c_", "t_")
CLOCK_RESOLUTION_MS = 20.0
"""what the collector's own processes may add to a time under load: the copy of an answer is timed by another process"""
"""what the columns of control and of the treatment begin with in `ev_pairs`"""
_ANSWERED = "@code BETWEEN 1 AND 3"
_POPULATIONS = {
    "in_answered": _ANSWERED,
    "in_nonempty": f"{_ANSWERED} AND NOT @empty",
    "in_timed": f"@code = {OUTCOMES.index('timeout') + 1} OR ({_ANSWERED} AND NOT @empty)",
    "in_streamed": f"{_ANSWERED} AND @streamed",
}
"""by the flag, of one side (@)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A value that may be unknown.

    Attributes:
        flag: the column that says a request counts, both sides known.
        population: the flag of the requests it is about.
        columns: what has to be known of each side.
        answers_only: only of an answer it is expected to be known (the bill of a timeout is not).
        optional: NULL on both sides of a pair means that it does not apply there (a user's own metric).
    """

    flag: str
    population: str
    columns: tuple[str, ...]
    answers_only: bool = False
    optional: bool = False

    def known(self, side: str) -> str:
        """SQL: the value of the side `side` (a prefix of columns) is known."""
        return " AND ".join(f"{side}{column} IS NOT NULL" for column in self.columns)


VALUES = (
    Value(flag="has_cost", population="in_nonempty", columns=("cost_usd",)),
    Value(flag="has_bill", population="in_attempted", columns=("billed_usd",), answers_only=True),
    Value(flag="has_input", population="in_nonempty", columns=("input_tokens",)),
    Value(flag="has_output", population="in_nonempty", columns=("output_tokens",)),
    Value(flag="has_tokens", population="in_nonempty", columns=("tokens_used",)),
    Value(flag="has_speed", population="in_nonempty", columns=("output_tokens", "generation_s")),
    Value(flag="has_latency", population="in_timed", columns=("latency_ms",)),
    Value(flag="has_ttft", population="in_streamed", columns=("ttft_ms",)),
)


def custom_value(column: str) -> Value:
    """The value of a user's own metric that is the column `column`."""
    return Value(flag=f"has_{column}", population="in_answered", columns=(column,), optional=True)


def population_columns(sides: Sequence[str]) -> list[str]:
    """SQL of the populations' flags: true where every side (a prefix of columns, such as `c.`) belongs to it."""
    return [
        f"coalesce({_of_every_side(condition, sides)}, false) AS {flag}" for flag, condition in _POPULATIONS.items()
    ]


def _of_every_side(condition: str, sides: Sequence[str]) -> str:
    """SQL: the condition on one side (@) holds for all."""
    return " AND ".join(f"({condition.replace('@', side)})" for side in sides)


def flagged(
    source: str,
    values: Sequence[Value],
    *,
    paired: bool,
    billed_arms: Sequence[bool],
    silent_arms: Sequence[bool],
    left_out: Mapping[str, Sequence[int]],
    complete: Collection[str] = (),
) -> str:
    """The SELECT of the attempted requests with every flag, from the plain columns of `source`.

    Args:
        source: `ev_requests` (columns of control and treatment, `c_…` and `t_…`, and the populations' flags) where `paired`,
            else a table of exchanges.
        values: those that get a flag.
        billed_arms: arms (True = treatment) of which some answer has a cost: a request that the provider refused to serve is then
            billed nothing. Where no price is known, nothing is. What a timeout, an error within a 200 or an answer that broke
            off cost stays unknown: it may well be billed.
        silent_arms: arms of which an imported log shows no failures; such rows are not in `in_measured`.
        left_out: kinds of requests (their numbers) that are left out, by the value's flag.
        complete: flags of values that are known of all their requests: they need no test.
    """
    sides = PAIRED_SIDES if paired else ("",)
    columns = [column for side in sides for column in _derived(side, _arms(side, billed_arms))]
    silent = [f"{side}silent AND {_arms(side, silent_arms)}" for side in sides if silent_arms]

    flags = {
        "in_attempted": "true",
        "in_measured": " AND ".join(f"NOT ({one})" for one in silent) or "true",
    }
    for value in values:
        if value.flag in complete:
            flags[value.flag] = value.population
            continue
        known = " AND ".join(value.known(side) for side in sides)
        kinds = ", ".join(str(kind) for kind in left_out.get(value.flag, ()))
        kept = f" AND coalesce(kind NOT IN ({kinds}), true)" if kinds else ""
        flags[value.flag] = f"{value.population} AND {known}{kept}"
    computed = [
        *columns,
        *([] if paired else population_columns(sides)),
        *(f"({sql}) AS {flag}" for flag, sql in flags.items()),
    ]
    attempted = _of_every_side(f"@code BETWEEN 1 AND {OUTCOMES.index('unreadable') + 1}", sides)
    when = "c_at_us" if paired else "at_us"
    plain = "*, c_at_us AS at_us" if paired else "*"
    return (
        f"SELECT {plain}, {when} // 3600000000 AS hour, {when} // 86400000000 AS day, {', '.join(computed)} "
        f"FROM {source} WHERE {attempted}"
    )


def _arms(side: str, arms: Sequence[bool]) -> str:
    """SQL: the row (or the side of the pair) is of one of these arms."""
    if side:
        return str((side == "t_") in arms).lower()
    return f"(treatment IN ({', '.join(str(arm).lower() for arm in arms)}))" if arms else "false"


def _derived(side: str, billed: str) -> list[str]:
    """What follows from an exchange's plain columns. An answer that ended before it began has a wrong clock: its time is
    unknown."""
    code = f"{side}code"
    elapsed = f"CASE WHEN {side}streamed THEN {side}latency_ms - {side}ttft_ms ELSE {side}latency_ms END"
    columns = {
        "answered": f"{code} <= 3",
        "failed": f"{code} > 3",
        "ok": f"{code} = {OUTCOMES.index('ok') + 1}",
        "refused": f"{code} = {OUTCOMES.index('refused') + 1}",
        "truncated": f"{code} = {OUTCOMES.index('truncated') + 1}",
        "timed_out": f"{code} = {OUTCOMES.index('timeout') + 1}",
        "generation_s": f"CASE WHEN ({elapsed}) >= 0 THEN greatest({elapsed}, {CLOCK_RESOLUTION_MS}) / 1000 END",
        "tokens_used": f"{side}input_tokens + {side}output_tokens",
        "billed_usd": f"coalesce({side}cost_usd, CASE WHEN {billed} AND {side}unbilled THEN 0 END)",
    }
    return [f"({sql}) AS {side}{name}" for name, sql in columns.items()]
