"""The narrow tables every metric is summed from, read once from the store.

Only the columns the metrics need are read, never the requests and answers themselves (but of files older than the column
`answer_empty`), and ids become 64-bit hashes: four million exchanges are about half a gigabyte, and nothing larger is touched
again. Of larger experiments the tables are in a database on disk, and the files are read and joined a part at a time (sql.py).
Tables made here (all temporary):

- `ev_requests`: one row per request: both sides' values (shadow mode), how they ended, and the status of its shadow request. In
  shadow mode it is a view of `ev_joined`, where the small values are packed (state.py).
- `ev_ids`: the same, in words: which sides it has, how they ended, its place in its conversation.
- `ev_pairs` (shadow mode): the requests that both arms attempted, failures included, so that both arms answer the same questions;
  the columns of control begin with `c_`, the treatment's with `t_`, and flags mark the rows of the decision table a pair is in
  (see populations.py).
- `ev_rows`: one row per exchange that counts: both sides of every pair; in ab and canary mode each served exchange.
- `ev_classes`: how many requests (in ab and canary mode exchanges) there are of each class (classes.py), and
  `ev_counted_classes` those that count, with the flags.
- `ev_outcomes` (shadow mode): the classes in words, as `ev_ids`.
- `ev_census`: how many exchanges there are by arm, role, outcome, model and kind of request, forced ones and all roles included.
- `ev_sources`: roles, statuses and costs by arm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from evalpipe.analysis.classes import in_classes, with_values
from evalpipe.analysis.distributed import (
    DistributedConnection,
    Statement,
    as_distributed,
    define_view,
    over_files,
    over_pairs,
)
from evalpipe.analysis.metrics import JudgmentValue, Ratio, metrics
from evalpipe.analysis.populations import (
    OUTCOMES,
    PAIRED_SIDES,
    VALUES,
    Missing,
    Value,
    count_unknown,
    custom_value,
    find_missing,
    flagged,
    kinds_left_out,
)
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.sql import (
    Connection,
    file_parts,
    fill_large,
    hash_ranges,
    large_table,
    made_while_reading,
    reading_parts,
    rows,
    scalar,
)
from evalpipe.analysis.state import packed, unpacked
from evalpipe.errors import NoDataError
from evalpipe.text import BLANK

SHADOW_STATUSES = ("sampled", "not_sampled", "not_shadowable", "shed")

# What the client asked for before any arm answered; in files older than the column, what is known of it.
KIND = "coalesce(request_kind, coalesce(endpoint, 'request') || CASE WHEN streamed THEN ', streamed' ELSE '' END)"
# Nearly every text begins with a visible character of ASCII, so the expression is asked of few.
_EMPTY = f"""CASE WHEN tool_calls IS NOT NULL AND tool_calls <> '[]' THEN false WHEN text IS NULL THEN true
  WHEN text < '!' OR text >= chr(127) THEN regexp_full_match(text, '{BLANK}') ELSE false END"""
ANSWERED = "outcome IN ('ok', 'refused', 'truncated')"
# An error's status instead of an answer, and a request that was never sent (the collector's only failure without a status), are
# billed nothing by either vendor. `load` writes that as a cost of 0, or as a note why it is not known; files from before the
# notes have neither, nor have other tools' logs.
UNBILLED = """outcome = 'http_error' AND cost_usd IS NULL AND cost_note IS NULL
  AND coalesce(status >= 300, role <> 'imported')"""

COLUMNS = f"""
  hash(request_id) AS id,
  hash(coalesce(unit_id, conversation_id, request_id)) AS u,
  arm = 'treatment' AS treatment,
  epoch_us(started_at) AS at_us,
  list_position({list(OUTCOMES)!r}, outcome)::UTINYINT AS code,
  coalesce(streamed, false) AS streamed,
  latency_ms::DOUBLE AS latency_ms,
  ttft_ms::DOUBLE AS ttft_ms,
  input_tokens::DOUBLE AS input_tokens,
  output_tokens::DOUBLE AS output_tokens,
  cost_usd::DOUBLE AS cost_usd,
  {UNBILLED} AS unbilled"""
MEASURED = ("at_us", "latency_ms", "ttft_ms", "input_tokens", "output_tokens", "cost_usd")
_FLAGS = ("empty", "streamed", "silent", "unbilled")
OF_A_SIDE = (*MEASURED, "code", *_FLAGS)
"""what `ev_requests` holds of each side"""
OF_A_REQUEST = ("id", "u", "conv")
_BOTH_ARMS = "c_at_us IS NOT NULL AND t_at_us IS NOT NULL"
PART_ROWS = 4_000_000
"""exchanges of a large experiment that are read and joined at a time"""
USER_BITS = 6
"""first bits of a user's hash in whose order the rows of such a part are kept"""
SAMPLED_ROWS = 20_000
"""rows in which repeated lines are looked for before the arms are joined"""
_REPEATS = f"""SELECT coalesce(max(n) > 1, false) AS repeats FROM (
  SELECT count(*) AS n FROM ev_exchanges WHERE rowid % (SELECT greatest(1, count(*) // {SAMPLED_ROWS}) FROM ev_exchanges) = 0
  GROUP BY id, treatment)"""
"""whether a sample of the rows holds an exchange twice"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What `prepare_rows` found.

    Attributes:
        mode: shadow | ab | canary, as analysed; `paired` where it is shadow.
        n_rows: exchanges that count.
        n_users: their users, once they are counted (`count_users`); 0 before.
        n_duplicates: exchanges logged twice (the first one counts).
        n_contaminated: users seen in both arms (dropped in ab and canary mode).
        first_us: the first instant, µs since 1970 (UTC); `last_us` the last.
        has_texts: some answer has a text or a tool call; in a log without any (metadata only) none counts as empty.
        missing: what is unknown of each nullable value, by the flag that its metrics count (`Ratio.rows`).
    """

    mode: str
    paired: bool
    n_rows: int
    n_duplicates: int
    n_contaminated: int
    first_us: int | None
    last_us: int | None
    n_users: int = 0
    missing: Mapping[str, Missing] = field(default_factory=dict)
    has_texts: bool = True

    complete: Mapping[str, str] = field(default_factory=dict)
    """flags of values that are known of all their requests → the flag of these requests"""

    @property
    def source(self) -> str:
        """The table that users are summed from."""
        return "ev_pairs" if self.paired else "ev_rows"

    def counted(self, values: Ratio) -> Ratio:
        """The same sums; rows that have the same requests get the same flag, so that what they share is summed once."""
        return replace(values, rows=self.complete.get(values.rows, values.rows))


def prepare_rows(
    connection: Connection,
    *,
    experiment: str,
    mode: str,
    extra: Sequence[tuple[str, str]] = (),
    until_us: int | None = None,
) -> Prepared:
    """Read the experiment's exchanges into the tables above.

    Args:
        experiment: the name.
        mode: shadow | ab | canary.
        extra: (column, checked SQL expression over `exchanges`) pairs, for metrics of the user's own.
        until_us: requests that came later do not count (looks on dates).

    Raises:
        NoDataError: the experiment has no exchanges at all.
    """
    paired = mode == "shadow"
    chosen = _read_query(connection, experiment, paired=paired, extra=extra)
    columns = [name for name, _ in extra]
    n_contaminated = 0
    if paired:
        n_duplicates = _join_arms(connection, chosen, columns, until_us)
        _read_reasons(connection, experiment)
    else:
        _read(connection, chosen)
        n_duplicates = _drop_duplicates(connection)
        n_contaminated = _separate(connection, until_us)
    _classify(connection, columns, paired=paired)
    values = [*VALUES, *(custom_value(column) for column in columns)]
    missing, complete = _flag(connection, values, chosen, paired=paired, columns=columns)
    first = "min(least(c_at_us, t_at_us))" if paired else "min(at_us)"
    last = "max(greatest(c_at_us, t_at_us))" if paired else "max(at_us)"
    found = rows(
        connection,
        f"SELECT count(*) AS n, {first} AS a, {last} AS b FROM {'ev_pairs' if paired else 'ev_rows'}",
    )[0]
    return Prepared(
        mode=mode,
        paired=paired,
        n_rows=found["n"] * (2 if paired else 1),
        n_duplicates=n_duplicates,
        n_contaminated=n_contaminated,
        first_us=found["a"],
        last_us=found["b"],
        missing=missing,
        has_texts=chosen.has_texts,
        complete=complete,
    )


def count_users(connection: Connection, prepared: Prepared) -> int:
    """The users of the exchanges that count, after the metrics are summed by user (`ev_users`). A user of a canary may be in
    several stages."""
    found = "SELECT count(*) FROM ev_users" if prepared.paired else "SELECT count(DISTINCT u) FROM ev_rows"
    return int(scalar(connection, found))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chosen:
    """The query of the columns of every exchange of the experiment (`ev_exchanges`).

    Attributes:
        kinds: of requests by number, from 1.
        has_texts: see `Prepared`.
        billed_arms: arms (True = treatment) of which some answer has a cost.
    """

    query: str
    parameters: list[Any]
    kinds: list[str]
    has_texts: bool
    billed_arms: list[bool]


def _read(connection: Connection, chosen: _Chosen) -> None:
    scanned, parameters = over_files(connection, chosen.query, chosen.parameters)
    connection.execute(f"CREATE OR REPLACE {large_table(connection)}ev_exchanges AS FROM {scanned}", parameters)


def _read_query(connection: Connection, experiment: str, *, paired: bool, extra: Sequence[tuple[str, str]]) -> _Chosen:
    """What to read, and `ev_sources`."""
    # A later repetition is not what the request's users got; a split serves its treatment and sends no shadow requests.
    # (`replayed`: one that is an arm's only response, paired with control's of the log or of the same run.)
    roles = "role <> 'replay'" if paired else "role NOT IN ('replay', 'replayed', 'shadow')"
    counted = f"{roles} AND NOT coalesce(forced, false)"
    chosen = f"FROM exchanges WHERE experiment = ? AND {counted}"
    _take_census(connection, experiment)
    imported = _read_sources(connection, counted)
    kinds = [row["kind"] for row in rows(connection, f"SELECT DISTINCT kind FROM ev_census WHERE {counted} ORDER BY 1")]
    if not kinds:
        raise NoDataError(
            f"experiment {experiment!r} has no exchanges in the selection: widen --since, --until or --where, run "
            "`evalpipe collect` and `evalpipe load`, or name another with --experiment"
        )
    found = rows(
        connection,
        "SELECT sum(n_of_unknown_text)::BIGINT AS unknown, sum(n_with_text)::BIGINT AS known "
        f"FROM ev_census WHERE {counted}",
    )[0]
    # The texts are read only where a file is older than `answer_empty`.
    empty = f"coalesce(answer_empty, {_EMPTY})" if found["unknown"] else "answer_empty"
    has_texts = bool(found["known"]) or bool(found["unknown"] and _has_texts(connection, chosen, empty, experiment))
    columns = {
        "empty": f"{ANSWERED} AND {empty}" if has_texts else "false",
        # An imported row without a failure field: whether that means success depends on the source.
        "silent": "role = 'imported' AND status IS NULL AND outcome NOT IN ('http_error', 'timeout')"
        if imported
        else "false",
        "kind": f"list_position(?::VARCHAR[], {KIND})::USMALLINT",
        "stage": "0::FLOAT" if paired else "coalesce(percentage, 0)::FLOAT",
        "turn": "turn::INTEGER",
        "step": "step::INTEGER",
        "conv": "hash(coalesce(unit_id, ''), coalesce(conversation_id, request_id))" if paired else "NULL::UBIGINT",
        "shadow_code": f"list_position({list(SHADOW_STATUSES)!r}, shadow_status)::UTINYINT"
        if paired
        else "NULL::UTINYINT",
        **{name: f"({expression}\n)::DOUBLE" for name, expression in extra},
    }
    more = ",\n  ".join(f"{sql} AS {name}" for name, sql in columns.items())
    query = f"SELECT {COLUMNS},\n  {more}\n{chosen}"
    if paired:
        query = packed(query, ", ".join([*OF_A_REQUEST, "treatment", *MEASURED, *(name for name, _ in extra)]))
    billed = "SELECT DISTINCT arm = 'treatment' AS treatment FROM ev_census "
    billed += f"WHERE {counted} AND {ANSWERED} AND n_priced > 0 ORDER BY treatment"
    return _Chosen(
        query=query,
        parameters=[kinds, experiment],
        kinds=kinds,
        has_texts=has_texts,
        billed_arms=[row["treatment"] for row in rows(connection, billed)],
    )


def _take_census(connection: Connection, experiment: str) -> None:
    """`ev_census`, from which everything is taken that depends on these few columns alone."""
    # Grouped by the columns as they are: what is computed of each row costs more than a few more groups.
    groups = "arm, role, forced, outcome, model, provider, simulated, request_kind, endpoint, streamed"
    counted = {
        "n": "count(*)",
        "n_status": "count(status)",
        "n_priced": "count(cost_usd)",
        "n_timed": "count(latency_ms)",
        "n_known_text": "count(answer_empty)",
        "n_empty": "count(CASE WHEN answer_empty THEN 1 END)",
    }
    scanned, parameters = over_files(
        connection,
        f"SELECT {groups}, {', '.join(f'{sql} AS {name}' for name, sql in counted.items())} FROM exchanges "
        "WHERE experiment = ? GROUP BY ALL",
        [experiment],
    )
    counts = {
        "n": "n",
        "n_with_status": "CASE WHEN outcome IN ('http_error', 'timeout') THEN n ELSE n_status END",
        "n_priced": "n_priced",
        "n_timed": "n_timed",
        "n_with_text": f"CASE WHEN {ANSWERED} THEN n_known_text - n_empty ELSE 0 END",
        "n_of_unknown_text": f"CASE WHEN {ANSWERED} THEN n - n_known_text ELSE 0 END",
    }
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_census AS SELECT arm, role, forced, outcome, model, provider, "
        f"coalesce(simulated, false) AS simulated, {KIND} AS kind, "
        f"{', '.join(f'sum({sql})::BIGINT AS {name}' for name, sql in counts.items())} FROM {scanned} GROUP BY ALL",
        parameters,
    )


def _read_sources(connection: Connection, counted: str) -> bool:
    """`ev_sources` (treatment, imported, replayed, n, n_with_status, n_priced, n_timed); returns whether any was imported.
    `n_timed`: of those that were replayed."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_sources AS SELECT arm = 'treatment' AS treatment, role = 'imported' AS imported, "
        "role = 'replayed' AS replayed, sum(n)::BIGINT AS n, sum(n_with_status)::BIGINT AS n_with_status, "
        "sum(n_priced)::BIGINT AS n_priced, sum(CASE WHEN role = 'replayed' THEN n_timed ELSE 0 END)::BIGINT AS n_timed "
        f"FROM ev_census WHERE {counted} GROUP BY ALL"
    )
    return bool(scalar(connection, "SELECT count(*) FROM ev_sources WHERE imported"))


def _has_texts(connection: Connection, chosen: str, empty: str, experiment: str) -> bool:
    """Whether the log has the answers' texts at all. Where it has none, their absence shows nothing about the answers."""
    some = f"SELECT 1 {chosen} AND {ANSWERED} AND NOT {empty} LIMIT 1"
    return bool(scalar(connection, f"SELECT count(*) FROM ({some})", [experiment]))


def _drop_duplicates(connection: Connection) -> int:
    """An exchange has one row; another of the same request and arm is a repeated line of the log. Returns how many."""
    found = rows(
        connection,
        "SELECT count(*) AS n, count(DISTINCT id) AS ids FROM ev_exchanges GROUP BY treatment",
    )
    n_duplicates = sum(int(row["n"]) - int(row["ids"]) for row in found)
    if n_duplicates:
        connection.execute(
            f"CREATE OR REPLACE {large_table(connection)}ev_exchanges AS SELECT * FROM ev_exchanges "
            "QUALIFY row_number() OVER (PARTITION BY id, treatment ORDER BY at_us) = 1"
        )
    return n_duplicates


def _join_arms(connection: Connection, chosen: _Chosen, columns: Sequence[str], until_us: int | None) -> int:
    """`ev_requests` from both arms' exchanges; returns how many were duplicates. Codes are 0 for a missing side.

    It is a view of `ev_joined`, which has the small values of each side in its state. `columns`: of the user's own metrics.
    """
    requests = _requests(columns)
    columns = [*MEASURED, "state", *columns]
    distributed = as_distributed(connection)
    if distributed is not None and _join_by_workers(distributed, chosen, columns, until_us):
        _name_ids(connection, requests)
        return 0
    n_duplicates = 0
    parts = file_parts(connection, PART_ROWS)
    # A request counts by its own instant: its shadow request starts a moment later.
    early = "" if until_us is None else f"WHERE coalesce(c.at_us, t.at_us) < {until_us}"
    if not (parts and _join_parts(connection, chosen, columns, parts, until_us)):
        join = f"CREATE OR REPLACE {large_table(connection)}ev_joined AS {_joined(columns)} {early}"
        _read(connection, chosen)
        joined = not _repeats_much(connection)
        if joined:
            connection.execute(join)
        if not joined or not _each_once(connection, whole=not early):
            n_duplicates = _drop_duplicates(connection)
            connection.execute(join)
        connection.execute("DROP TABLE ev_exchanges")
    _name_ids(connection, requests)
    return n_duplicates


def _requests(columns: Sequence[str]) -> str:
    """The query of `ev_requests`."""
    sides = [f"{side}{name}" for side in PAIRED_SIDES for name in (*MEASURED, *columns)]
    return unpacked(", ".join([*OF_A_REQUEST, "0::FLOAT AS stage", *sides]), "ev_joined")


def _joined(columns: Sequence[str], *, source: str = "ev_exchanges") -> str:
    """The query of `ev_joined` from `ev_exchanges`, or from some of its rows."""
    sides = ", ".join(f"{side}.{name} AS {side}_{name}" for side in "ct" for name in columns)
    return f"""
        SELECT coalesce(c.id, t.id) AS id, coalesce(c.u, t.u) AS u, coalesce(c.conv, t.conv) AS conv,
          c.place AS place, {sides}
        FROM (FROM {source} WHERE NOT treatment) c FULL JOIN (FROM {source} WHERE treatment) t ON c.id = t.id"""


def _join_parts(
    connection: Connection,
    chosen: _Chosen,
    columns: Sequence[str],
    parts: Sequence[Sequence[str]],
    until_us: int | None,
) -> bool:
    """`ev_joined` of a large experiment: the arms are joined within each part of the files, as an exchange and its shadow
    request are mostly near each other, and at last what was left alone. False where the log holds repeated lines.

    The rows of a part are in the order of their users' ranges, so that sums of a range of users read little else."""
    repeats = False
    joined = f"FROM ({_joined(columns)}) ORDER BY u >> {64 - USER_BITS}"
    with reading_parts(connection, parts) as numbers:
        for number in numbers:
            connection.execute(f"CREATE OR REPLACE TEMP TABLE ev_exchanges AS {chosen.query}", chosen.parameters)
            repeats = _repeats_much(connection)
            if repeats:
                break
            connection.execute(f"{fill_large(connection, 'ev_joined', is_first=not number)} {joined}")
    connection.execute("DROP TABLE ev_exchanges")
    if repeats:
        return False
    _join_alone(connection, columns)
    if not _all_differ(connection):
        return False
    if until_us is not None:
        connection.execute(f"DELETE FROM ev_joined WHERE coalesce(c_at_us, t_at_us) >= {until_us}")
    return True


def _join_by_workers(
    connection: DistributedConnection, chosen: _Chosen, columns: Sequence[str], until_us: int | None
) -> bool:
    """`ev_joined` of parts of the files that workers read and join. They keep the rows with both arms, by user; of these the
    driver has only what is not measured. What was left alone is joined here. False where the log holds repeated lines."""
    workers = connection.workers
    both = _BOTH_ARMS
    early = "true" if until_us is None else f"coalesce(c_at_us, t_at_us) < {until_us}"
    users = hash_ranges("u", workers.n_parts)
    unrepeated = "(FROM ev_exchanges WHERE NOT (SELECT repeats FROM ev_repeats))"
    steps: list[Statement] = [
        (f"CREATE TEMP TABLE ev_exchanges AS {chosen.query}", chosen.parameters),
        (f"CREATE TEMP TABLE ev_repeats AS {_REPEATS}", []),
        (f"CREATE TEMP TABLE ev_joined AS {_joined(columns, source=unrepeated)}", []),
    ]
    here = [*OF_A_REQUEST, "place", "c_at_us", "c_state", "t_at_us", "t_state"]
    outputs: list[Statement] = [(f"FROM ev_joined WHERE {both} AND {early} AND {within}", []) for within in users]
    outputs += [
        (f"SELECT {', '.join(here)} FROM ev_joined WHERE {both} AND {early}", []),
        (f"FROM ev_joined WHERE NOT ({both})", []),
        ("FROM ev_repeats", []),
    ]
    *by_user, whole, alone, repeats = workers.over_files(steps, outputs, "read")
    connection.attach("ev_repeats", repeats)
    if scalar(connection, "SELECT bool_or(repeats) FROM ev_repeats"):
        return False
    connection.attach("ev_read_alone", alone)
    connection.execute(f"CREATE OR REPLACE {large_table(connection)}ev_alone AS FROM ev_read_alone")
    _join_alone(connection, columns, "ev_alone")
    connection.execute(f"DELETE FROM ev_alone WHERE NOT ({early})")
    connection.attach("ev_whole", whole)
    elsewhere = ", ".join(
        f"error('{name} of pairs is summed by workers')::DOUBLE AS {name}"
        for name in (f"{side}_{column}" for side in "ct" for column in columns)
        if name not in here
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW ev_joined AS SELECT *, {elsewhere} FROM ev_whole UNION ALL BY NAME FROM ev_alone"
    )
    if not _all_differ(connection):
        connection.execute("DROP VIEW ev_joined")
        return False
    connection.by_user = [
        [*parts, connection.share(f"FROM ev_alone WHERE {both} AND {within}")]
        for parts, within in zip(by_user, users, strict=True)
    ]
    return True


def _join_alone(connection: Connection, columns: Sequence[str], table: str = "ev_joined") -> None:
    """Join requests whose arms are in different parts: rows of `table` of which each has one side."""
    one_side = f"SELECT id FROM {table} WHERE {{}}_at_us IS NULL"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE ev_apart AS {one_side.format('t')} INTERSECT {one_side.format('c')}"
    )
    if scalar(connection, "SELECT count(*) FROM ev_apart"):
        both = [f"coalesce(c.{name}, t.{name}) AS {name}" for name in OF_A_REQUEST] + ["c.place"]
        both += [f"{side}.{side}_{name}" for side in "ct" for name in columns]
        sides = [
            f"(FROM {table} SEMI JOIN ev_apart USING (id) WHERE {missing}_at_us IS NULL) {side}"
            for side, missing in (("c", "t"), ("t", "c"))
        ]
        connection.execute(
            f"CREATE OR REPLACE {large_table(connection)}ev_brought AS "
            f"SELECT {', '.join(both)} FROM {sides[0]} JOIN {sides[1]} ON c.id = t.id"
        )
        connection.execute(f"DELETE FROM {table} WHERE (c_at_us IS NULL OR t_at_us IS NULL) AND id IN (FROM ev_apart)")
        connection.execute(f"INSERT INTO {table} FROM ev_brought")
        connection.execute("DROP TABLE ev_brought")
    connection.execute("DROP TABLE ev_apart")


def _all_differ(connection: Connection) -> bool:
    """Whether no id is in `ev_joined` twice. Sorting them, a part of their range at a time, needs the least memory and time."""
    n_parts = scalar(connection, "SELECT count(*) FROM ev_joined") // PART_ROWS + 1
    parts = (
        connection.execute(f"SELECT id FROM ev_joined WHERE {within}").fetchnumpy()["id"]
        for within in hash_ranges("id", n_parts)
    )
    return not any(made_while_reading(parts, _has_equal))


def _has_equal(ids: npt.NDArray[np.uint64]) -> bool:
    """Whether two are the same; sorts them."""
    ids.sort()
    return bool((ids[1:] == ids[:-1]).any())


def _repeats_much(connection: Connection) -> bool:
    """Whether a sample of the rows holds an exchange twice: a line repeated so often would multiply in a join."""
    return bool(scalar(connection, _REPEATS))


def _each_once(connection: Connection, *, whole: bool) -> bool:
    """Whether every request is one row of `ev_joined`. Where its arms came together, a repeated line of one has repeated
    the other's, so that only the rest has to be counted apart. `whole`: no request was left out of the join."""
    if not whole:
        return bool(scalar(connection, "SELECT count(*) = count(DISTINCT id) FROM ev_joined"))
    of_arms = "count(*) FILTER (treatment) AS t, count(*) FILTER (NOT treatment) AS c"
    before = rows(connection, f"SELECT {of_arms} FROM ev_exchanges")[0]
    alone = "c_at_us IS NULL OR t_at_us IS NULL"
    after = rows(
        connection,
        f"SELECT count(t_at_us) AS t, count(c_at_us) AS c, count(*) FILTER ({alone}) AS alone, "
        f"(SELECT count(DISTINCT id) FROM ev_joined WHERE {alone}) AS ids FROM ev_joined",
    )[0]
    return bool(before["t"] == after["t"] and before["c"] == after["c"] and after["alone"] == after["ids"])


def _classify(connection: Connection, columns: Sequence[str], *, paired: bool) -> None:
    """`ev_classes`, and `ev_outcomes` of shadow mode. `columns`: of the user's own metrics."""
    sides = PAIRED_SIDES if paired else ("",)
    keys = [f"{side}state" for side in sides] if paired else ["treatment", "kind", "code", *_FLAGS]

    def classes(source: str) -> str:
        return in_classes(source, keys, sides=sides, columns=columns)

    (found,) = over_pairs(connection, [classes("ev_joined" if paired else "ev_exchanges")])
    if (distributed := as_distributed(connection)) is not None and distributed.by_user:
        found = f"(FROM {found} UNION ALL {classes(f'(FROM ev_alone WHERE NOT ({_BOTH_ARMS}))')})"
    classed = with_values(f"(SELECT * EXCLUDE (n), sum(n)::BIGINT AS n FROM {found} GROUP BY ALL)", sides=sides)
    names = [f"{side}{name}" for side in sides for name in (*MEASURED, *columns)]
    no_place = ", ".join(f"NULL::BIGINT AS {side}at_us" for side in sides) + ", NULL::UINTEGER AS place"
    source = f"(SELECT *, {no_place} FROM ({classed}))"
    requests = unpacked(", ".join(["n", *names]), source) if paired else f"FROM {source}"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE ev_classes AS {requests}")
    if paired:
        connection.execute(f"CREATE OR REPLACE TEMP VIEW ev_outcomes AS SELECT n, {_outcomes()} FROM ev_classes")


def _name_ids(connection: Connection, requests: str | None = None) -> None:
    """`ev_ids` from `ev_requests`, which is made a view of the query `requests` where that is given."""
    if requests is not None:
        define_view(connection, "ev_requests", requests)
    connection.execute(
        "CREATE OR REPLACE TEMP VIEW ev_ids AS SELECT id, u, coalesce(c_at_us, t_at_us) AS at_us, "
        f"t_at_us - c_at_us AS lead_us, conv, turn, step, {_outcomes()} FROM ev_requests"
    )


def _outcomes() -> str:
    """SQL of what became of a request, in words."""
    sides = ", ".join(
        f"{short}_code > 0 AS has_{side}, {short}_code BETWEEN 1 AND 6 AS {side}_attempted, "
        f"{short}_code BETWEEN 1 AND 3 AS {side}_answered, {short}_code BETWEEN 4 AND 6 AS {side}_failed, "
        f"{short}_code = 5 AS {side}_timed_out, {short}_code = 2 AS {side}_refused, {short}_code = 3 AS {side}_truncated, "
        f"coalesce({short}_empty, false) AS {side}_empty, "
        f"CASE WHEN {short}_code > 6 THEN {list(OUTCOMES)!r}[{short}_code] END AS {side}_lost"
        for short, side in (("c", "control"), ("t", "treatment"))
    )
    return f"CASE WHEN shadow_code > 0 THEN {list(SHADOW_STATUSES)!r}[shadow_code] END AS shadow_status, {sides}"


def _read_reasons(connection: Connection, experiment: str) -> None:
    """`ev_reasons`: why shadow requests were never sent."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_reasons AS SELECT hash(request_id) AS id, any_value(shadow_reason) AS reason "
        "FROM exchanges WHERE experiment = ? AND shadow_status = 'not_shadowable' AND shadow_reason <> '' GROUP BY request_id",
        [experiment],
    )


def _separate(connection: Connection, until_us: int | None) -> int:
    """Ab and canary: each exchange by itself; users seen in both arms at one percentage are dropped. Returns how many."""
    if until_us is not None:
        connection.execute("DELETE FROM ev_exchanges WHERE at_us >= ?", [until_us])
    side = ", ".join(
        f"any_value({name}) FILTER ({arm}) AS {short}_{name}"
        for short, arm in (("c", "NOT treatment"), ("t", "treatment"))
        for name in ("at_us", "empty")
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_requests AS SELECT id, any_value(u) AS u, NULL::UTINYINT AS shadow_code, "
        "NULL::UBIGINT AS conv, any_value(turn) AS turn, any_value(step) AS step, "
        "coalesce(max(CASE WHEN NOT treatment THEN code END), 0) AS c_code, "
        f"coalesce(max(CASE WHEN treatment THEN code END), 0) AS t_code, {side} FROM ev_exchanges GROUP BY id"
    )
    _name_ids(connection)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_mixed AS SELECT u, stage, true AS mixed FROM ev_exchanges GROUP BY u, stage "
        "HAVING bool_or(treatment) AND bool_or(NOT treatment)"
    )
    attempted = "coalesce(code BETWEEN 1 AND 6, false)"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE ev_lost AS SELECT CASE WHEN code > 6 THEN {list(OUTCOMES)!r}[code] "
        "ELSE 'user_in_both_arms' END AS reason, count(*) AS n FROM ev_exchanges r LEFT JOIN ev_mixed m "
        f"ON r.u = m.u AND r.stage = m.stage WHERE NOT {attempted} OR mixed GROUP BY ALL"
    )
    if scalar(connection, "SELECT count(*) FROM ev_mixed"):
        connection.execute(
            f"CREATE OR REPLACE {large_table(connection)}ev_exchanges AS SELECT r.* FROM ev_exchanges r "
            "ANTI JOIN ev_mixed m ON r.u = m.u AND r.stage = m.stage"
        )
    return int(scalar(connection, "SELECT count(*) FROM ev_mixed"))


def _flag(
    connection: Connection, values: Sequence[Value], chosen: _Chosen, *, paired: bool, columns: Sequence[str]
) -> tuple[dict[str, Missing], dict[str, str]]:
    """`ev_pairs` (shadow mode) and `ev_rows` with the flags of populations.py; returns what is unknown of each value, and the
    flags of values that are known of all their requests."""
    silent = [
        row["treatment"]
        for row in rows(
            connection, "SELECT treatment FROM ev_sources WHERE imported AND n_with_status = 0 ORDER BY treatment"
        )
    ]

    def query(source: str, left_out: Mapping[str, Sequence[int]], complete: Collection[str] = ()) -> str:
        return flagged(
            source,
            values,
            paired=paired,
            billed_arms=chosen.billed_arms,
            silent_arms=silent,
            left_out=left_out,
            complete=complete,
        )

    connection.execute(f"CREATE OR REPLACE TEMP VIEW ev_counted_classes AS {query('ev_classes', {})}")
    counted = count_unknown(connection, values, paired=paired)
    complete = {
        value.flag: value.population
        for value in values
        if not (value.optional or value.answers_only or any(sum(one.unknown) for one in counted[value.flag]))
    }
    view = "ev_pairs" if paired else "ev_rows"
    known = query("ev_requests" if paired else "ev_exchanges", kinds_left_out(counted), complete)
    define_view(connection, view, known)
    if paired:
        _unpair(connection, [value.flag for value in values], columns)
    return find_missing(connection, values, counted, source=view, kinds=chosen.kinds, paired=paired), complete


def _unpair(connection: Connection, flags: Sequence[str], columns: Sequence[str]) -> None:
    """`ev_rows` of shadow mode: both sides of every pair, with the pair's flags."""
    shared = ["id", "u", "kind", "stage", "hour", "day", "turn", "step"]
    shared += ["in_attempted", "in_measured", "in_answered", "in_nonempty", "in_timed", "in_streamed", *flags]
    own = [*OF_A_SIDE, "answered", "failed", "ok", "refused", "truncated", "timed_out", "generation_s", "tokens_used"]
    own += ["billed_usd", *columns]
    parts = [
        f"SELECT {arm} AS treatment, {', '.join(shared)}, {', '.join(f'{side}{name} AS {name}' for name in own)} FROM ev_pairs"
        for side, arm in (("c_", "false"), ("t_", "true"))
    ]
    define_view(connection, "ev_rows", " UNION ALL ".join(parts))


# What the source of the log can measure: fixed by roles, statuses and configuration, not by what happens to have
# happened.
#
# Answers imported from a file carry no status unless the file has one: that none of them failed is then not a
# measurement, and neither are latencies that another tool measured. What cannot be measured is listed and decides nothing.


FAILURES = ("error_rate", "timeout_rate")
LATENCIES = ("p50_latency_ms", "p99_latency_ms")
TIMES = (*LATENCIES, "p50_ttft_ms", "p99_ttft_ms", "tokens_per_second")
IN_ONE_RUN = "in_one_run"
"""key of `find_sources`, no metric: False where responses of a replay are compared with those of production"""
COSTS = ("cost_per_request_usd", "cost_per_1000_requests_usd", "cost_per_ok_answer_usd")


def find_sources(
    connection: Connection, settings: Settings, *, paired: bool, has_texts: bool = True
) -> dict[str, bool]:
    """Whether the source of the log can measure a metric, by name; a name that is missing: it can.

    Args:
        connection: after `prepare_rows` (it reads `ev_sources`).
        settings: `priced` and the judges count.
        paired: shadow mode.
        has_texts: the log has answers' texts.

    Returns:
        False for: error and timeout rate where all of an arm's rows are imported and none shows a status, a failure or a timeout
        (beside served rows such rows are left out of both rates); latencies where any row is imported; costs where an arm was
        imported without costs, or its configured model has no price; the share of empty answers where the log has no texts; in
        ab and canary mode, ratings and a pointwise judge's scores where there are none; with answers of a replay, what only
        production shows (`_of_a_replay`).
    """
    arms: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for row in rows(connection, "SELECT * FROM ev_sources ORDER BY treatment, imported"):
        arms[row["treatment"]].append(row)
    found: dict[str, bool] = {"empty_rate": has_texts}
    failures = all(not arm or any(not one["imported"] or one["n_with_status"] for one in arm) for arm in arms.values())
    found |= dict.fromkeys(FAILURES, failures)
    found |= dict.fromkeys(LATENCIES, not any(one["imported"] for arm in arms.values() for one in arm))
    priced = all(
        _has_costs(connection, name, arm, settings.priced.get(name))
        for arm, name in ((arms[False], "control"), (arms[True], "treatment"))
    )
    found |= dict.fromkeys(COSTS, priced)
    if not paired:
        found |= _judged(connection)
    if any(one["replayed"] for arm in arms.values() for one in arm):
        found |= _of_a_replay(arms)
    return found


def _of_a_replay(arms: Mapping[bool, Sequence[Mapping[str, Any]]]) -> dict[str, bool]:
    """What answers of a replay can be compared in: failures and times only where control answered in the same run, and one by
    one (a batch reports neither); ratings never, as no user received them."""
    replayed = [[one for one in arms[treatment] if one["replayed"]] for treatment in (False, True)]
    in_one_run = all(replayed) and not any(one["imported"] for one in arms[True])
    failures = in_one_run and all(one["n_with_status"] for arm in replayed for one in arm)
    timed = in_one_run and all(one["n_timed"] for arm in replayed for one in arm)
    return {
        **dict.fromkeys(FAILURES, failures),
        **dict.fromkeys(TIMES, timed),
        "user_rating": False,
        IN_ONE_RUN: timed,
    }


def _has_costs(connection: Connection, name: str, arm: list[dict[str, Any]], priced: bool | None) -> bool:
    """Costs come with an import, from the price of the arm's model, or from the provider."""
    if any(one["imported"] and one["n_priced"] for one in arm):
        return True
    if arm and all(one["imported"] for one in arm):
        return False
    if priced is not False:
        return True
    billed = "SELECT count(*) FROM exchanges WHERE arm = ? AND outcome = 'ok' AND cost_usd IS NOT NULL"
    return bool(scalar(connection, billed, [name]))


def _judged(connection: Connection) -> Mapping[str, bool]:
    """The goals of a split that exist only where users rate or a judge scores the responses."""
    scored = {row["dimension"] for row in rows(connection, "SELECT DISTINCT dimension FROM ev_scores")}
    rated = bool(scalar(connection, "SELECT count(*) FROM feedback"))
    return {
        item.name: rated if item.values.source == "rating" else item.values.source.removeprefix("dimension:") in scored
        for item in metrics()
        if isinstance(item.values, JudgmentValue) and item.role_split == "primary"
    }
