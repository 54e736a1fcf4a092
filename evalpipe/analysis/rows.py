"""The narrow table every metric is summed from: one row per exchange that counts, read once from the store.

Only the columns the metrics need are read, never the requests and answers themselves, and ids become 64-bit hashes:
ten million exchanges are under a gigabyte, and nothing larger is touched again. Tables made here (all temporary):

- `ev_rows`: the exchanges in the comparison. In shadow mode both sides of every pair, failures included, so that both arms
  answer the same questions; in ab and canary mode each served exchange.
- `ev_ids`: one row per request: which sides it has and what became of its copy (the funnel and the pairing check).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evalpipe.analysis.connection import Connection, scalar
from evalpipe.errors import DataError

COLUMNS = """
  hash(request_id) AS id,
  hash(coalesce(unit_id, conversation_id, request_id)) AS u,
  arm = 'treatment' AS treatment,
  epoch_us(started_at) AS at_us,
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
    that came later do not count (looks on dates). Raises DataError where the experiment has no exchanges at all.
    """
    paired = mode == "shadow"
    stage = "0::FLOAT" if paired else "coalesce(percentage, 0)::FLOAT"
    more = "".join(f",\n  ({expression}\n)::DOUBLE AS {name}" for name, expression in extra)
    fate = ", outcome, shadow_status, shadow_reason" if paired else ", outcome"
    # A later repetition is not what the request's users got; a split serves its treatment, it does not copy to it.
    roles = "role <> 'replay'" if paired else "role NOT IN ('replay', 'shadow')"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE ev_all AS SELECT {COLUMNS},\n  {stage} AS stage{more}{fate}\n"
        f"FROM exchanges WHERE experiment = ? AND {roles} AND NOT coalesce(forced, false)",
        [experiment],
    )
    if not scalar(connection, "SELECT count(*) FROM ev_all"):
        raise DataError(
            f"experiment {experiment!r} has no exchanges in the selection: run `evalpipe collect` and `evalpipe load`, "
            "or name another with --experiment"
        )
    _bill_failures(connection)
    _by_request(connection, paired=paired)
    n_duplicates = int(
        scalar(connection, "SELECT coalesce(sum(n - has_control::INT - has_treatment::INT), 0) FROM ev_ids")
    )
    if n_duplicates:
        _drop_duplicates(connection)
        _by_request(connection, paired=paired)
    if paired:
        _pair(connection, until_us)
        n_contaminated = 0
    else:
        n_contaminated = _separate(connection, until_us)
    connection.execute("DROP TABLE IF EXISTS ev_all")
    n_rows, first_us, last_us = connection.execute("SELECT count(*), min(at_us), max(at_us) FROM ev_rows").fetchone()
    n_users = scalar(connection, "SELECT count(DISTINCT u) FROM ev_rows")
    return Prepared(
        mode=mode,
        paired=paired,
        n_rows=n_rows,
        n_users=n_users,
        n_duplicates=n_duplicates,
        n_contaminated=n_contaminated,
        first_us=first_us,
        last_us=last_us,
    )


def _drop_duplicates(connection: Connection) -> None:
    """Keep the first of exchanges that were logged twice."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_all AS SELECT * FROM ev_all "
        "QUALIFY row_number() OVER (PARTITION BY id, treatment ORDER BY at_us) = 1"
    )


def _bill_failures(connection: Connection) -> None:
    """A request the provider refused to serve is billed nothing. Only in an arm whose answers have prices: where no price
    is known, nothing is (null, never 0). Timeouts stay unknown: the provider may well bill them."""
    connection.execute(
        "UPDATE ev_all SET cost_usd = 0 WHERE cost_usd IS NULL AND failed AND NOT timed_out "
        "AND treatment IN (SELECT DISTINCT treatment FROM ev_all WHERE answered AND cost_usd IS NOT NULL)"
    )


def _by_request(connection: Connection, *, paired: bool) -> None:
    """`ev_ids`: one row per request. A split has no copies, so only the sides are needed there."""
    if not paired:
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE ev_ids AS SELECT id, count(*) AS n, bool_or(NOT treatment) AS has_control, "
            "bool_or(treatment) AS has_treatment FROM ev_all GROUP BY id"
        )
        return
    connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE ev_ids AS
        SELECT id,
          any_value(u) FILTER (NOT treatment) AS u,
          min(at_us) FILTER (NOT treatment) AS at_us,
          min(at_us) FILTER (treatment) - min(at_us) FILTER (NOT treatment) AS lead_us,
          count(*) AS n,
          bool_or(NOT treatment) AS has_control,
          bool_or(treatment) AS has_treatment,
          bool_or(attempted) FILTER (NOT treatment) AS control_attempted,
          bool_or(attempted) FILTER (treatment) AS treatment_attempted,
          bool_or(failed) FILTER (NOT treatment) AS control_failed,
          bool_or(failed) FILTER (treatment) AS treatment_failed,
          bool_or(timed_out) FILTER (NOT treatment) AS control_timed_out,
          bool_or(timed_out) FILTER (treatment) AS treatment_timed_out,
          bool_or(refused) FILTER (NOT treatment) AS control_refused,
          bool_or(refused) FILTER (treatment) AS treatment_refused,
          bool_or(truncated) FILTER (NOT treatment) AS control_truncated,
          bool_or(truncated) FILTER (treatment) AS treatment_truncated,
          any_value(outcome) FILTER (NOT treatment AND NOT attempted) AS control_lost,
          any_value(outcome) FILTER (treatment AND NOT attempted) AS treatment_lost,
          any_value(shadow_status) FILTER (NOT treatment) AS shadow_status,
          any_value(shadow_reason) FILTER (NOT treatment) AS shadow_reason
        FROM ev_all GROUP BY id"""
    )


def _pair(connection: Connection, until_us: int | None) -> None:
    if until_us is not None:  # a request counts by its own instant: its copy starts a moment later
        connection.execute("DELETE FROM ev_ids WHERE at_us >= ?", [until_us])
    # The unit of a pair is its control row's: whatever the copy's row says, both sides are one user's request.
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_rows AS "
        "SELECT a.* EXCLUDE (u, at_us, shadow_status, shadow_reason, outcome), i.u, i.at_us "
        "FROM ev_all a JOIN ev_ids i USING (id) WHERE i.control_attempted AND i.treatment_attempted"
    )


def _separate(connection: Connection, until_us: int | None) -> int:
    """Ab and canary: each exchange by itself; users seen in both arms at one percentage are dropped. Returns how many."""
    if until_us is not None:
        connection.execute("DELETE FROM ev_all WHERE at_us >= ?", [until_us])
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_mixed AS SELECT u, stage FROM ev_all GROUP BY u, stage "
        "HAVING bool_or(treatment) AND bool_or(NOT treatment)"
    )
    n_mixed = int(scalar(connection, "SELECT count(*) FROM ev_mixed"))
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_lost AS SELECT CASE WHEN NOT attempted THEN outcome ELSE 'user_in_both_arms' END "
        "AS reason, count(*) AS n FROM ev_all a LEFT JOIN (SELECT u, stage, true AS mixed FROM ev_mixed) m "
        "ON a.u = m.u AND a.stage = m.stage WHERE NOT attempted OR mixed GROUP BY ALL"
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_rows AS SELECT * EXCLUDE (outcome) FROM ev_all a ANTI JOIN ev_mixed m ON a.u = m.u AND a.stage = m.stage "
        "WHERE attempted"
    )
    return n_mixed
