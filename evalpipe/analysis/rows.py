"""The narrow table every metric is summed from: one row per exchange that counts, read once from the store.

Only the columns the metrics need are read, never the requests and answers themselves, and ids become 64-bit hashes:
ten million exchanges are under a gigabyte, and nothing larger is touched again. Tables made here (all temporary):

- `ev_rows`: the exchanges in the comparison. In shadow mode both sides of every pair, failures included, so that both arms
  answer the same questions; in ab and canary mode each served exchange.
- `ev_ids`: one row per request: which sides it has, how they ended, and what became of its copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evalpipe.analysis.connection import Connection, rows, scalar
from evalpipe.errors import NoDataError

OUTCOMES = ("ok", "refused", "truncated", "http_error", "timeout", "unreadable", "client_closed", "shed")
"""as the codes 1, 2, … of `ev_ids`: up to 3 answered, up to 6 attempted"""
FATES = ("sampled", "not_sampled", "not_shadowable", "shed")

COLUMNS = f"""
  hash(request_id) AS id,
  hash(coalesce(unit_id, conversation_id, request_id)) AS u,
  arm = 'treatment' AS treatment,
  epoch_us(started_at) AS at_us,
  list_position({list(OUTCOMES)!r}, outcome)::UTINYINT AS code,
  outcome IN ('ok', 'refused', 'truncated') AS answered,
  outcome IN ('http_error', 'timeout', 'unreadable') AS failed,
  outcome IN ('ok', 'refused', 'truncated', 'http_error', 'timeout', 'unreadable') AS attempted,
  outcome = 'ok' AS ok,
  outcome = 'timeout' AS timed_out,
  outcome = 'refused' AS refused,
  outcome = 'truncated' AS truncated,
  coalesce(streamed, false) AS streamed,
  latency_ms::DOUBLE AS latency_ms,
  ttft_ms::DOUBLE AS ttft_ms,
  CASE WHEN streamed THEN latency_ms - ttft_ms ELSE latency_ms END / 1000.0 AS generation_s,
  input_tokens::DOUBLE AS input_tokens,
  output_tokens::DOUBLE AS output_tokens,
  cost_usd::DOUBLE AS cost_usd"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What `prepare_rows` found: `mode` as analysed, `n_duplicates` exchanges logged twice (the first one counts),
    `n_contaminated` users seen in both arms (dropped in ab and canary mode), `n_users`, first and last instant (µs)."""

    mode: str
    paired: bool
    n_rows: int
    n_users: int
    n_duplicates: int
    n_contaminated: int
    first_us: int | None
    last_us: int | None


def prepare_rows(
    connection: Connection,
    *,
    experiment: str,
    mode: str,
    extra: Sequence[tuple[str, str]] = (),
    until_us: int | None = None,
) -> Prepared:
    """Read the experiment's exchanges into `ev_rows` and `ev_ids`.

    `extra` are (column, checked SQL expression over `exchanges`) pairs for metrics of the user's own. `until_us`: requests
    that came later do not count (looks on dates). Raises NoDataError where the experiment has no exchanges at all.
    """
    paired = mode == "shadow"
    stage = "0::FLOAT" if paired else "coalesce(percentage, 0)::FLOAT"
    more = "".join(f",\n  ({expression}\n)::DOUBLE AS {name}" for name, expression in extra)
    fate = f"list_position({list(FATES)!r}, shadow_status)::UTINYINT" if paired else "NULL::UTINYINT"
    # A later repetition is not what the request's users got; a split serves its treatment, it does not copy to it.
    roles = "role <> 'replay'" if paired else "role NOT IN ('replay', 'shadow')"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE ev_rows AS SELECT {COLUMNS},\n  {stage} AS stage, {fate} AS fate{more}\n"
        f"FROM exchanges WHERE experiment = ? AND {roles} AND NOT coalesce(forced, false)",
        [experiment],
    )
    if not scalar(connection, "SELECT count(*) FROM ev_rows"):
        raise NoDataError(
            f"experiment {experiment!r} has no exchanges in the selection: run `evalpipe collect` and `evalpipe load`, "
            "or name another with --experiment"
        )
    _by_request(connection)
    # An exchange has one row; more than two rows of a request, or two of one arm, are repeated lines of the log.
    n_duplicates = int(
        scalar(connection, "SELECT coalesce(sum(n - (control > 0)::INT - (treatment > 0)::INT), 0) FROM ev_requests")
    )
    if n_duplicates:
        _replace(connection, "QUALIFY row_number() OVER (PARTITION BY id, treatment ORDER BY at_us) = 1")
        _by_request(connection)
    _bill_failures(connection)
    if paired:
        _pair(connection, experiment, until_us)
        n_contaminated = 0
    else:
        n_contaminated = _separate(connection, until_us)
    found = rows(
        connection, "SELECT count(*) AS n, min(at_us) AS a, max(at_us) AS b, count(DISTINCT u) AS users FROM ev_rows"
    )[0]
    return Prepared(
        mode=mode,
        paired=paired,
        n_rows=found["n"],
        n_users=found["users"],
        n_duplicates=n_duplicates,
        n_contaminated=n_contaminated,
        first_us=found["a"],
        last_us=found["b"],
    )


def _replace(connection: Connection, rest: str, columns: str = "r.*") -> None:
    connection.execute(f"CREATE OR REPLACE TEMP TABLE ev_rows AS SELECT {columns} FROM ev_rows r {rest}")


def _by_request(connection: Connection) -> None:
    """`ev_requests`: few and small aggregates, as there are as many groups as requests. Codes are 0 for a missing side."""
    connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE ev_requests AS
        SELECT id, count(*)::USMALLINT AS n,
          coalesce(max(CASE WHEN NOT treatment THEN code END), 0) AS control,
          coalesce(max(CASE WHEN treatment THEN code END), 0) AS treatment,
          max(CASE WHEN NOT treatment THEN u END) AS u, max(u) AS any_u,
          max(CASE WHEN NOT treatment THEN at_us END) AS control_us, max(CASE WHEN treatment THEN at_us END) AS treatment_us,
          coalesce(max(fate), 0) AS fate
        FROM ev_rows GROUP BY id"""
    )
    sides = ", ".join(
        f"{side} > 0 AS has_{side}, {side} BETWEEN 1 AND 6 AS {side}_attempted, {side} BETWEEN 4 AND 6 AS {side}_failed, "
        f"{side} = 5 AS {side}_timed_out, {side} = 2 AS {side}_refused, {side} = 3 AS {side}_truncated, "
        f"CASE WHEN {side} > 6 THEN {list(OUTCOMES)!r}[{side}] END AS {side}_lost"
        for side in ("control", "treatment")
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW ev_ids AS SELECT id, coalesce(u, any_u) AS u, "
        f"coalesce(control_us, treatment_us) AS at_us, treatment_us - control_us AS lead_us, "
        f"CASE WHEN fate > 0 THEN {list(FATES)!r}[fate] END AS shadow_status, {sides} FROM ev_requests"
    )


def _bill_failures(connection: Connection) -> None:
    """A request the provider refused to serve is billed nothing. Only in an arm whose answers have prices: where no price
    is known, nothing is (null, never 0). Timeouts stay unknown: the provider may well bill them."""
    connection.execute(
        "UPDATE ev_rows SET cost_usd = 0 WHERE cost_usd IS NULL AND failed AND NOT timed_out "
        "AND treatment IN (SELECT DISTINCT treatment FROM ev_rows WHERE answered AND cost_usd IS NOT NULL)"
    )


def _pair(connection: Connection, experiment: str, until_us: int | None) -> None:
    """Leave the rows of requests that both arms attempted; `ev_reasons` says why copies were never sent."""
    if until_us is not None:  # a request counts by its own instant: its copy starts a moment later
        connection.execute("DELETE FROM ev_requests WHERE coalesce(control_us, treatment_us) >= ?", [until_us])
        _replace(connection, "SEMI JOIN ev_requests USING (id)")
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_unpaired AS SELECT id FROM ev_ids "
        "WHERE NOT (control_attempted AND treatment_attempted)"
    )
    if scalar(connection, "SELECT count(*) FROM ev_unpaired"):
        _replace(connection, "ANTI JOIN ev_unpaired USING (id)")
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_reasons AS SELECT hash(request_id) AS id, any_value(shadow_reason) AS reason "
        "FROM exchanges WHERE experiment = ? AND shadow_status = 'not_shadowable' AND shadow_reason <> '' GROUP BY request_id",
        [experiment],
    )


def _separate(connection: Connection, until_us: int | None) -> int:
    """Ab and canary: each exchange by itself; users seen in both arms at one percentage are dropped. Returns how many."""
    if until_us is not None:
        connection.execute("DELETE FROM ev_rows WHERE at_us >= ?", [until_us])
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_mixed AS SELECT u, stage, true AS mixed FROM ev_rows GROUP BY u, stage "
        "HAVING bool_or(treatment) AND bool_or(NOT treatment)"
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE ev_lost AS SELECT CASE WHEN code > 6 THEN {list(OUTCOMES)!r}[code] "
        "ELSE 'user_in_both_arms' END AS reason, count(*) AS n FROM ev_rows r LEFT JOIN ev_mixed m "
        "ON r.u = m.u AND r.stage = m.stage WHERE NOT attempted OR mixed GROUP BY ALL"
    )
    _replace(connection, "ANTI JOIN ev_mixed m ON r.u = m.u AND r.stage = m.stage WHERE attempted")
    return int(scalar(connection, "SELECT count(*) FROM ev_mixed"))
