"""Set-up faults of an experiment: the rule of `providers.setup_faults` over its stored exchanges.

Read from a few narrow columns: one scan counts the failures by message; only where their number could make a fault are
rows put in the order of time. Time is that of the user's request, also for a shadow request that was sent later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from evalpipe.analysis.distributed import over_files
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.sql import Connection, rows, scalar
from evalpipe.models import ANSWERED, FAILED, Arm
from evalpipe.providers.setup_faults import (
    FIRST_IN_A_ROW,
    IN_A_ROW,
    MIN_USERS,
    NEVER_MIN,
    NO_CONNECTION,
    FaultKind,
    SetupFault,
    Signature,
    is_fault,
    provider_words,
    signature_of,
)

_ANSWERED = ", ".join(f"'{outcome}'" for outcome in sorted(ANSWERED))
_FAILED = ", ".join(f"'{outcome}'" for outcome in sorted(FAILED))
_UNIT = "coalesce(unit_id, conversation_id, request_id)"
_FAILURE_FIELDS = {
    "outcome": "outcome",
    "status": "status",
    "error_type": "error_type",
    "unconnected": f"coalesce(starts_with(error_message, '{NO_CONNECTION}'), false)",
    "is_page": r"coalesce(regexp_matches(error_message, '^\s*<'), false)",
}
"""The fields of a failed row that `signature_of` reads."""
MAX_COPY_DELAY = timedelta(hours=1)
"""A shadow request is sent this long after its request at most: the collector drops those that wait longer than 30 s."""
_UNDER = "AND arm = ? AND config_fingerprint IS NOT DISTINCT FROM ?"


def setup_faults(connection: Connection, *, experiment: str, mode: str, settings: Settings) -> list[SetupFault]:
    """The set-up faults in the exchanges of an experiment, by their beginning.

    Args:
        connection: with the view `exchanges`.
        experiment: its name.
        mode: "shadow" | "ab" | "canary"; in shadow mode a request's time is control's, for both arms.
        settings: `exclusions` are taken out before anything is counted; `passes_through`: see `is_fault`.

    Returns:
        Faults per arm and configuration. Rows of requests that testers forced, and later repetitions, are left out.
    """
    source = _Source(connection, experiment, paired=mode == "shadow", exclusions=_exclusions(settings))
    configurations = _configurations(source)
    found: list[SetupFault] = []
    for one in configurations:
        passes_through = settings.passes_through.get(one.arm, one.arm == Arm.CONTROL)
        if not one.answered:
            found += _never_answered(source, one)
        found += _refused(source, one, passes_through=passes_through)
    return sorted(found, key=lambda fault: (fault.first_at, fault.arm))


@dataclass(slots=True)
class _Configuration:
    """One arm under one configuration. `failures`: by signature, the failures' number and messages."""

    arm: str
    fingerprint: str | None
    first_at: datetime
    answered: bool = False
    failures: dict[Signature, list[dict[str, Any]]] = field(default_factory=dict)

    def count(self, signature: Signature) -> int:
        return sum(one["n"] for one in self.failures[signature])

    def words(self, signature: Signature) -> str:
        return provider_words(min(self.failures[signature], key=lambda one: one["first_at"])["message"])


class _Source:
    """The rows that count: attempted, of this experiment, not forced, not a repetition, outside the exclusions."""

    def __init__(
        self, connection: Connection, experiment: str, *, paired: bool, exclusions: Sequence[tuple[datetime, datetime]]
    ) -> None:
        self.connection = connection
        self._experiment = experiment
        self._times: list[datetime] = []
        # A shadow row has control's time; every other row its own.
        self.is_copy = "(role = 'shadow' OR arm = 'treatment')" if paired else "role = 'shadow'"
        self._from = "exchanges"
        if exclusions:
            self._exclude(exclusions)

    def query(self, columns: str, more: str = "", parameters: Sequence[Any] = ()) -> tuple[str, list[Any]]:
        """SELECT `columns` of the rows that count, and the parameters in their order; `more`: what follows WHERE …"""
        return (
            f"SELECT {columns} FROM {self._from} WHERE experiment = ? AND role NOT IN ('replay', 'replayed') "
            "AND NOT coalesce(forced, false) "
            f"AND outcome IN ({_ANSWERED}, {_FAILED}) {more}",
            [*self._times, self._experiment, *parameters],
        )

    def grouped(self, groups: Sequence[str], aggregates: str, merged: str, more: str = "") -> list[dict[str, Any]]:
        """Groups of the rows that count, by `groups` (columns, or SQL with AS) and `aggregates`; `merged`: the aggregates of
        a group's rows, which has one for each part of the files where these are read apart."""
        query, values = self.query(f"{', '.join(groups)}, {aggregates}", f"{more} GROUP BY ALL")
        if self._times:  # with a table of the excluded requests
            scanned = f"({query})"
        else:
            scanned, values = over_files(self.connection, query, values)
        names = ", ".join(one.rpartition(" AS ")[2] for one in groups)
        return rows(self.connection, f"SELECT {names}, {merged} FROM {scanned} GROUP BY ALL", values)

    def _exclude(self, exclusions: Sequence[tuple[datetime, datetime]]) -> None:
        """Leave out requests by their own time, and shadow requests by the time of their request: these are looked up,
        except shadow requests sent at a quite different time."""
        inside = "(" + " OR ".join("(started_at >= ? AND started_at < ?)" for _ in exclusions) + ")"
        times = [instant for period in exclusions for instant in period]
        later = [instant for since, until in exclusions for instant in (since, until + MAX_COPY_DELAY)]
        self.connection.execute(
            f"CREATE OR REPLACE TEMP TABLE setup_excluded AS SELECT DISTINCT hash(request_id) AS id FROM exchanges "
            f"WHERE experiment = ? AND role <> 'replay' AND NOT {self.is_copy} AND {inside}",
            [self._experiment, *times],
        )
        # Answers of the treatment alone, in an import: nothing but their own time is known.
        alone = f"WHERE experiment = ? AND role NOT IN ('replay', 'shadow') AND {self.is_copy} AND {inside}"
        if scalar(self.connection, f"SELECT count(*) FROM exchanges {alone}", [self._experiment, *times]):
            self.connection.execute(
                f"INSERT INTO setup_excluded SELECT DISTINCT hash(request_id) FROM exchanges {alone} "
                "AND request_id NOT IN (SELECT request_id FROM exchanges WHERE experiment = ? AND arm = 'control' "
                "AND role <> 'replay')",
                [self._experiment, *times, self._experiment],
            )
        self._from = (
            f"(FROM exchanges WHERE NOT {self.is_copy} AND NOT {inside} UNION ALL "
            f"FROM exchanges WHERE {self.is_copy} AND role = 'shadow' AND NOT {inside} UNION ALL "
            f"FROM exchanges WHERE {self.is_copy} AND (role <> 'shadow' OR {inside}) "
            "AND hash(request_id) NOT IN (SELECT id FROM setup_excluded))"
        )
        self._times = [*times, *later, *later]

    def period(
        self, matching: str, parameters: Sequence[Any], first: datetime, last: datetime
    ) -> tuple[datetime, datetime]:
        """First and last instant of the users' requests behind the rows that match, which are from `first` to `last`."""
        own = f"CASE WHEN NOT {self.is_copy} THEN started_at END"
        ends = (
            "AND (role <> 'shadow' OR started_at <= ? OR started_at >= ?)"  # those between come from requests between
        )
        query, values = self.query(
            f"request_id, started_at, {own} AS own",
            f"{matching} {ends}",
            [*parameters, first + MAX_COPY_DELAY, last - MAX_COPY_DELAY],
        )
        first, last = self.connection.execute(
            f"WITH failed AS ({query}), served AS (SELECT request_id, min(started_at) AS asked_at FROM exchanges "
            "WHERE experiment = ? AND role <> 'replay' AND arm = 'control' "
            "AND request_id IN (SELECT request_id FROM failed WHERE own IS NULL) GROUP BY request_id) "
            "SELECT min(coalesce(own, asked_at, started_at)), max(coalesce(own, asked_at, started_at)) "
            "FROM failed LEFT JOIN served USING (request_id)",
            [*values, self._experiment],
        ).fetchall()[0]
        return first, last


def _exclusions(settings: Settings) -> list[tuple[datetime, datetime]]:
    return [(_instant(one.since), _instant(one.until)) for one in settings.exclusions]


def _instant(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def _configurations(source: _Source) -> list[_Configuration]:
    """Every arm and configuration with failures that could be a fault, from one scan: its answers, and its failures by what
    they look like."""
    failed = f"outcome IN ({_FAILED})"
    seen = source.grouped(
        [
            "arm",
            "config_fingerprint AS fp",
            f"{failed} AS failed",
            *(f"CASE WHEN {failed} THEN {expression} END AS {name}" for name, expression in _FAILURE_FIELDS.items()),
        ],
        "count(*) AS n, min(started_at) AS first_at, max(started_at) AS last_at, "
        f"arg_min(error_message, started_at) FILTER ({failed}) AS message, "
        f"min(started_at) FILTER ({failed} AND error_message IS NOT NULL) AS message_at",
        "sum(n)::BIGINT AS n, min(first_at) AS first_at, max(last_at) AS last_at, arg_min(message, message_at) AS message",
    )
    found: dict[tuple[str, str | None], _Configuration] = {}
    n_failed: Counter[tuple[str, str | None]] = Counter()
    for one in seen:
        key = (one["arm"], one["fp"])
        configuration = found.setdefault(
            key, _Configuration(arm=one["arm"], fingerprint=one["fp"], first_at=one["first_at"])
        )
        configuration.first_at = min(configuration.first_at, one["first_at"])
        if not one["failed"]:
            configuration.answered = True
            continue
        n_failed[key] += one["n"]
        signature = signature_of(
            outcome=one["outcome"], status=one["status"], error_type=one["error_type"], error_message=one["message"]
        )
        if signature is not None:
            configuration.failures.setdefault(signature, []).append(one)
    return [one for key, one in found.items() if n_failed[key] >= min(FIRST_IN_A_ROW, NEVER_MIN)]


def _condition(configuration: _Configuration, signature: Signature) -> tuple[str, list[Any]]:
    """The condition that a failed row is of this signature, and its parameters."""
    one_of = " AND ".join(f"{expression} IS NOT DISTINCT FROM ?" for expression in _FAILURE_FIELDS.values())
    failures = configuration.failures[signature]
    return f"({' OR '.join([one_of] * len(failures))})", [one[name] for one in failures for name in _FAILURE_FIELDS]


def _of(configuration: _Configuration, signature: Signature) -> tuple[str, list[Any]]:
    """The condition that a row is a failure of this signature under this configuration, and its parameters."""
    condition, parameters = _condition(configuration, signature)
    return f"{_UNDER} AND {condition}", [configuration.arm, configuration.fingerprint, *parameters]


def _n_users(source: _Source, matching: str, parameters: Sequence[Any]) -> int:
    query, values = source.query(f"DISTINCT {_UNIT} AS unit", matching, parameters)
    return int(scalar(source.connection, f"SELECT count(*) FROM (FROM ({query}) LIMIT {MIN_USERS})", values))


def _never_answered(source: _Source, one: _Configuration) -> list[SetupFault]:
    found = []
    for signature in one.failures:
        count = one.count(signature)
        if signature.kind is not FaultKind.NEVER_ANSWERED or count < NEVER_MIN:
            continue
        matching, parameters = _of(one, signature)
        n_users = _n_users(source, matching, parameters)
        if is_fault(
            signature.kind, count=count, n_users=n_users, from_first=False, answered=False, passes_through=False
        ):
            failures = one.failures[signature]
            first, last = min(row["first_at"] for row in failures), max(row["last_at"] for row in failures)
            found.append(_fault(one, signature, count, source.period(matching, parameters, first, last)))
    return found


def _refused(source: _Source, one: _Configuration, *, passes_through: bool) -> list[SetupFault]:
    found = []
    for signature in one.failures:
        if signature.kind is not FaultKind.REFUSED or one.count(signature) < FIRST_IN_A_ROW:
            continue
        matching, parameters = _of(one, signature)
        for row in _rows_of_failures(source, one, signature):
            within = f"{matching} AND started_at BETWEEN ? AND ?"
            values = [*parameters, row["first_at"], row["last_at"]]
            if is_fault(
                signature.kind,
                count=row["n"],
                n_users=_n_users(source, within, values) if passes_through else 0,
                from_first=row["first_at"] == one.first_at,
                answered=one.answered,
                passes_through=passes_through,
            ):
                period = source.period(within, values, row["first_at"], row["last_at"])
                found.append(_fault(one, signature, row["n"], period))
    return found


def _rows_of_failures(source: _Source, one: _Configuration, signature: Signature) -> list[dict[str, Any]]:
    """Failures of this signature with nothing else between them in time: at least so many as can be a fault.

    Without a run of its own at the very beginning, a configuration needs `IN_A_ROW` of them in all.
    """
    found = one.failures[signature]
    first, last = min(row["first_at"] for row in found), max(row["last_at"] for row in found)
    if one.count(signature) < IN_A_ROW and first != one.first_at:
        return []
    condition, failures = _condition(one, signature)
    query, values = source.query(
        f"started_at AS asked_at, {condition} AS is_one",
        f"{_UNDER} AND started_at BETWEEN ? AND ?",
        [one.arm, one.fingerprint, first, last],
    )
    return rows(
        source.connection,
        f"WITH seen AS ({query}), numbered AS (SELECT asked_at, is_one, "
        "row_number() OVER (ORDER BY asked_at, is_one) AS n FROM seen), "
        "ones AS (SELECT asked_at, n - row_number() OVER (ORDER BY n) AS island FROM numbered WHERE is_one) "
        "SELECT count(*) AS n, min(asked_at) AS first_at, max(asked_at) AS last_at FROM ones GROUP BY island "
        f"HAVING count(*) >= {FIRST_IN_A_ROW} ORDER BY first_at",
        [*failures, *values],
    )


def _fault(one: _Configuration, signature: Signature, count: int, period: tuple[datetime, datetime]) -> SetupFault:
    first_at, last_at = period
    return SetupFault(
        arm=one.arm,
        kind=signature.kind,
        status=signature.status,
        code=signature.code,
        message=one.words(signature),
        count=count,
        fingerprint=one.fingerprint,
        first_at=first_at,
        last_at=last_at,
    )
