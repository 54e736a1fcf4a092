"""Which requests a row of the decision table is about, and values that one arm's responses do not report.

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

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from evalpipe.analysis.classes import number_of
from evalpipe.analysis.distributed import over_pairs
from evalpipe.analysis.sql import Connection, rows, scalar
from evalpipe.files import sql_statements

_SQL = sql_statements("evalpipe.analysis", "populations.sql")

OUTCOMES = ("ok", "refused", "truncated", "http_error", "timeout", "unreadable", "client_closed", "shed")
"""as the codes 1, 2, …: up to 3 answered, up to 6 attempted"""
PAIRED_SIDES = ("c_", "t_")
CLOCK_RESOLUTION_MS = 20.0
"""what the collector's own processes may add to a time under load: shadow requests are timed by another process"""
"""what the columns of control and of the treatment begin with in `ev_pairs`"""
_ANSWERED = "@code BETWEEN 1 AND 3"
POPULATIONS = {
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
        flag: the column that is true where a request counts, both sides known.
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
    return [f"coalesce({_of_every_side(condition, sides)}, false) AS {flag}" for flag, condition in POPULATIONS.items()]


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


# Values that one arm's answers do not report: which kinds of requests a row leaves out, and whether the rest can be
# compared.
#
# Missing is not random: a client that streams without asking for usage gets none from control, while evalpipe's shadow requests
# ask for it. The difference of known means would then compare different requests. So a *kind* of request (what the
# client asked for before any arm answered) whose value is unknown in half or more of either arm's answers leaves the
# row in both arms; paired rows need both sides known; and where more than .5 % is still unknown in an arm, or fewer
# than half of the requests are left, the row concludes nothing (`missing_differs`).


MOSTLY_UNKNOWN = 0.5
"""share of an arm's answers of one kind from which on the kind is left out"""
MAX_UNKNOWN = 0.005
"""share of an arm's requests left whose value may be unknown"""
MIN_LEFT = 0.5
"""share of the requests that has to be left"""
BY_CHANCE = 3.0
"""standard errors (over users) by which the share left may fall short: half of the clients is half in any sample"""
STATUS = "missing_differs"


def kinds_left_out(counted: Mapping[str, Sequence[_Kind]]) -> dict[str, list[int]]:
    """The kinds (by number) that each value's row leaves out."""
    return {
        flag: left_out
        for flag, kinds in counted.items()
        if (left_out := [one.kind for one in kinds if one.is_left_out])
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """What is unknown of one value.

    Attributes:
        control: share of control's requests left in the row whose value is unknown, in [0, 1] (of all its requests, where none
            is left).
        treatment: the same of the treatment's.
        kinds_left_out: kinds of requests that are in neither arm of the row.
        share_left_out: their share of the requests.
        n_left: requests left with a known value (pairs in shadow mode, answers of both arms otherwise).
        n_all: requests the row is about.
        few_left: fewer than half are left, beyond chance.
        metered: most answers whose value is unknown report their tokens (of a cost: a price is missing, not the usage).
    """

    control: float
    treatment: float
    kinds_left_out: tuple[str, ...] = ()
    share_left_out: float = 0.0
    n_left: int = 0
    n_all: int = 0
    few_left: bool = False
    metered: bool = False

    @property
    def differs(self) -> bool:
        """The arms are not comparable on what is known."""
        return self.few_left or max(self.control, self.treatment) > MAX_UNKNOWN


def note_of(missing: Missing, metric: str) -> str | None:
    """The note on `metric`'s unknown values, with the line of evalpipe.toml that fixes it; None where nothing is
    unknown."""
    parts = []
    if missing.kinds_left_out:
        parts.append(
            f"left out in both arms: {', '.join(missing.kinds_left_out)} ({_percent(missing.share_left_out)} of the requests), "
            "which one arm's answers mostly do not report"
        )
    if missing.differs:
        parts.append(
            f"unknown in {_percent(missing.control)} of control's and {_percent(missing.treatment)} of treatment's"
        )
        if missing.few_left:
            parts.append("fewer than half of the requests are left")
    if not parts:
        return None
    return f"{'; '.join(parts)}: {_remedy(metric, missing)}"


def _remedy(metric: str, missing: Missing) -> str:
    optional = f'role = "diagnostic" under [decision.metrics.{metric}]'
    if metric.startswith("cost_") and missing.metered:
        return f"add the model's price under [prices] and load again, or set {optional}"
    if metric == "tokens_per_second" and missing.metered:
        return f"how long these answers took to come is not known; to have it decide nothing, set {optional}"
    if metric.startswith("cost_") or "tokens" in metric:
        column = "costs" if metric.startswith("cost_") else "tokens"
        return (
            f"add the {column} to the file that was imported and load it again (`--replace`), of collected streams set "
            f'stream_usage = "inject" in [collector], or set {optional}'
        )
    return f"to have it decide nothing, set {optional}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """One value's counts in one kind: requests and unknown ones of each arm (paired: the same requests)."""

    kind: int
    n: tuple[int, int]
    unknown: tuple[int, int]

    @property
    def is_left_out(self) -> bool:
        return any(n and unknown >= MOSTLY_UNKNOWN * n for n, unknown in zip(self.n, self.unknown, strict=True))


def count_unknown(connection: Connection, values: Sequence[Value], *, paired: bool) -> dict[str, list[_Kind]]:
    """Each value's counts by kind of request, from `ev_counted_classes`.

    A request counts for an arm where the value is expected of its answer.
    """
    parts: dict[str, str] = {}
    for position, value in enumerate(values):
        applies = ""
        if value.optional:  # NULL on both sides does not apply; for a single response that is unknown
            applies = f" AND (({value.known('c_')}) OR ({value.known('t_')}))" if paired else f" AND {value.known('')}"
        for side, arm in (("c", "NOT treatment"), ("t", "treatment")):
            prefix = f"{side}_" if paired else ""
            whole = value.population if paired else f"{arm} AND {value.population}"
            expected = f"{whole} AND {prefix}answered" if value.answers_only else f"{whole}{applies}"
            parts[f"n{side}{position}"] = expected
            parts[f"{side}{position}"] = f"{expected} AND NOT ({value.known(prefix)})"
    counts = ", ".join(f"{number_of(sql)} AS {name}" for name, sql in parts.items())
    found = rows(connection, f"SELECT kind, {counts} FROM ev_counted_classes GROUP BY kind ORDER BY kind")
    return {
        value.flag: [
            _Kind(
                kind=row["kind"],
                n=(row[f"nc{position}"], row[f"nt{position}"]),
                unknown=(row[f"c{position}"], row[f"t{position}"]),
            )
            for row in found
        ]
        for position, value in enumerate(values)
    }


def find_missing(
    connection: Connection,
    values: Sequence[Value],
    counted: Mapping[str, Sequence[_Kind]],
    *,
    source: str,
    kinds: Sequence[str],
    paired: bool,
) -> dict[str, Missing]:
    """What is unknown of every value, by its flag; a value no request of either arm has is not among them (no data).

    Args:
        counted: from `count_unknown`.
        source: the table with the values' flags.
        kinds: the kinds' names; a kind's number is its place among them, from 1.
    """
    found: dict[str, Missing] = {}
    unmetered = _unknown(counted.get("has_tokens", ()))
    for value in values:
        every = counted[value.flag]
        kept = [one for one in every if not one.is_left_out]
        n_all = _total(every, paired)
        if not n_all or all(n == unknown for one in every for n, unknown in zip(one.n, one.unknown, strict=True)):
            continue
        shares = [
            sum(one.unknown[arm] for one in kept or every) / max(1, sum(one.n[arm] for one in kept or every))
            for arm in (0, 1)
        ]
        n_left, left_out = n_all, [one.kind for one in every if one.is_left_out]
        if _unknown(every):
            (counted_left,) = over_pairs(connection, [f"SELECT count(*) AS n FROM {source} WHERE {value.flag}"])
            n_left = int(scalar(connection, f"SELECT sum(n) FROM {counted_left}"))
        few_left = _total(kept, paired) < MIN_LEFT * n_all and _fewer_than_half(connection, value, source, left_out)
        found[value.flag] = Missing(
            control=shares[0],
            treatment=shares[1],
            kinds_left_out=tuple(kinds[kind - 1] for kind in left_out),
            share_left_out=1 - _total(kept, paired) / n_all,
            n_left=n_left,
            n_all=n_all,
            few_left=few_left,
            metered=unmetered < MOSTLY_UNKNOWN * _unknown(every),
        )
    return found


def _total(kinds: Sequence[_Kind], paired: bool) -> int:
    """Requests: pairs, or both arms' answers."""
    return sum(one.n[0] if paired else sum(one.n) for one in kinds)


def _unknown(kinds: Sequence[_Kind]) -> int:
    return sum(sum(one.unknown) for one in kinds)


def _fewer_than_half(connection: Connection, value: Value, source: str, left_out: Sequence[int]) -> bool:
    """Whether the share left lies below one half by more than its sampling error over users."""
    of_users = _SQL["left_by_user"].format(source=source, population=value.population, left_out=list(left_out))
    (users,) = over_pairs(connection, [of_users])
    row = rows(connection, _SQL["share_left"].format(users=users))[0]
    g = row["g"]
    error = math.sqrt(row["squares"] * g / (g - 1)) if g > 1 else math.inf
    return bool(row["share"] + BY_CHANCE * error < MIN_LEFT)
