"""Set-up faults of stored exchanges: the same as the detector finds row by row, at the users' times, without what is excluded."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pandas as pd
import pytest
from experiment_builders import EXPERIMENT, START, both_arms, connect, run
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from evalpipe.analysis.settings import Exclusion, Settings
from evalpipe.analysis.setup_faults import setup_faults
from evalpipe.models import ANSWERED
from evalpipe.providers.setup_faults import FaultDetector, SetupFault, signature_of
from evalpipe.report.text import render_markdown
from evalpipe.report.view import report_view

WORDS: dict[str, dict[str, Any]] = {
    ".": {"outcome": "ok", "status": 200},
    "r": {"outcome": "refused", "status": 200},
    "k": {"outcome": "http_error", "status": 401, "error_type": "authentication_error", "error_message": "bad key"},
    "m": {"outcome": "http_error", "status": 404, "error_type": "not_found_error", "error_message": "model: x"},
    "q": {"outcome": "http_error", "status": 429, "error_type": "insufficient_quota"},
    "l": {"outcome": "http_error", "status": 429, "error_type": "rate_limit_exceeded"},
    "b": {"outcome": "http_error", "status": 400, "error_type": "invalid_request_error"},
    "n": {"outcome": "http_error", "error_type": "connect_error", "error_message": "no connection to h:1: refused"},
    "N": {"outcome": "timeout", "error_type": "timeout", "error_message": "no connection to h:1 in time"},
    "t": {"outcome": "timeout", "error_type": "timeout", "error_message": "no whole answer within 120 s"},
    "h": {"outcome": "http_error", "status": 502, "error_type": "http_502", "error_message": "  <html>"},
    "5": {"outcome": "http_error", "status": 502, "error_type": "http_502", "error_message": "bad gateway"},
    "u": {"outcome": "unreadable", "status": 200, "error_type": "malformed"},
    "c": {"outcome": "client_closed"},
}
LAG = timedelta(milliseconds=400)
"""between a request and its copy"""


def rows(
    outcomes: str, arm: str = "treatment", *, start: int = 0, users: int = 1, **columns: Any
) -> list[dict[str, Any]]:
    """One request a second from second `start` on, each outcome by its letter in `WORDS`."""
    found = []
    for second, letter in enumerate(outcomes, start):
        found.append(
            {
                "request_id": f"r{second}",
                "arm": arm,
                "role": "served" if arm == "control" else "shadow",
                "unit_id": f"u{second % users}",
                "started_at": START + timedelta(seconds=second) + (LAG if arm == "treatment" else timedelta()),
                "config_fingerprint": "f",
                "simulated": False,
                **WORDS[letter],
                **columns,
            }
        )
    return found


def faults(exchanges: list[dict[str, Any]], *, mode: str = "shadow", **settings: Any) -> list[SetupFault]:
    table = pd.DataFrame(exchanges)
    if "status" in table:
        table["status"] = table["status"].astype("Int32")
    with connect(exchanges=table) as connection:
        return setup_faults(connection, experiment=EXPERIMENT, mode=mode, settings=Settings(**settings))


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def test_a_refused_key_of_the_treatment() -> None:
    """Twelve copies refused with 401, then 600 answered: the fault stays, at the times of the users' requests."""
    treatment = rows("k" * 12) + rows("." * 600, start=12, config_fingerprint="corrected")
    (fault,) = faults(treatment + rows("." * 612, "control"))
    assert (fault.arm, fault.status, fault.code, fault.message) == ("treatment", 401, "authentication_error", "bad key")
    assert (fault.count, fault.fingerprint, fault.first_at, fault.last_at) == (12, "f", at(0), at(11))


def test_an_excluded_time_takes_the_fault_away() -> None:
    exchanges = rows("k" * 12) + rows("." * 50, start=12) + rows("." * 62, "control")
    (fault,) = faults(exchanges)
    whole = Exclusion(since=fault.since, until=fault.until, why="wrong key", declared_at="2026-06-02T00:00:00Z")
    assert faults(exchanges, exclusions=(whole,)) == []
    # Half of it: what is left begins after the time and is six refusals from the first answer on.
    half = Exclusion(since=fault.since, until=f"{at(6):%Y-%m-%dT%H:%M:%SZ}", why="", declared_at="")
    assert [(one.count, one.first_at) for one in faults(exchanges, exclusions=(half,))] == [(6, at(6))]
    # A time without a zone is UTC; one that begins after the copies' requests leaves them in.
    after = Exclusion(since=f"{at(12):%Y-%m-%dT%H:%M:%S}", until="2027-01-01T00:00:00", why="", declared_at="")
    assert [one.count for one in faults(exchanges, exclusions=(after,))] == [12]


def test_a_copy_is_excluded_by_its_requests_time_not_its_own() -> None:
    late = rows("k" * 12)
    for row in late:  # the copies waited half a minute
        row["started_at"] += timedelta(seconds=30)
    exchanges = late + rows("." * 12, "control")
    (fault,) = faults(exchanges)
    assert (fault.first_at, fault.last_at) == (at(0), at(11))
    whole = Exclusion(since=fault.since, until=fault.until, why="", declared_at="")
    assert faults(exchanges, exclusions=(whole,)) == []


def test_imported_answers_are_excluded_by_controls_time_or_their_own() -> None:
    changes = {"role": "imported", "status": 401}
    exchanges = rows("k" * 5, **changes) + rows("k" * 5, start=100, config_fingerprint="alone", **changes)
    exchanges += rows("." * 5, "control", start=0, role="imported")
    for row in exchanges[:5]:  # answered on another day than control's
        row["started_at"] += timedelta(days=3)
    assert [(one.fingerprint, one.first_at) for one in faults(exchanges)] == [("f", at(0)), ("alone", at(100) + LAG)]
    first = Exclusion(since="2026-06-01T00:00:00Z", until="2026-06-01T00:00:05Z", why="", declared_at="")
    assert [one.fingerprint for one in faults(exchanges, exclusions=(first,))] == ["alone"]
    second = Exclusion(since="2026-06-01T00:01:40Z", until="2026-06-01T00:01:45Z", why="", declared_at="")
    assert [one.fingerprint for one in faults(exchanges, exclusions=(second,))] == ["f"]
    assert faults(exchanges, exclusions=(first, second)) == []


def test_each_configuration_begins_anew() -> None:
    """Five refusals from the first answer of the second configuration; the first one's answers do not matter."""
    exchanges = rows("." * 30) + rows("kkkkk", start=30, config_fingerprint="g")
    assert [(one.fingerprint, one.count) for one in faults(exchanges)] == [("g", 5)]
    assert faults(rows("." * 30) + rows("kkkkk", start=30)) == []


def test_old_rows_without_a_fingerprint_are_one_configuration() -> None:
    assert [(one.fingerprint, one.count) for one in faults(rows("kkkkk", config_fingerprint=None))] == [(None, 5)]


def test_both_arms_with_the_same_wrong_key() -> None:
    exchanges = rows("k" * 8, "control", users=3) + rows("k" * 8)
    assert [(one.arm, one.count) for one in faults(exchanges)] == [("control", 8), ("treatment", 8)]


def test_controls_key_is_its_clients_own_unless_configured() -> None:
    exchanges = rows("k" * 40, "control", users=2)
    assert faults(exchanges) == []
    assert [one.count for one in faults(exchanges, passes_through={"control": False})] == [40]
    copies = rows("k" * 40, users=2)
    assert [one.count for one in faults(copies)] == [40]
    assert faults(copies, passes_through={"treatment": True}) == []


@pytest.mark.parametrize(
    "changed", [{"role": "replay"}, {"forced": True}, {"outcome": "client_closed", "status": None}]
)
def test_rows_that_do_not_count(changed: dict[str, Any]) -> None:
    assert faults(rows("k" * 12, **changed)) == []


def test_another_experiment_is_not_looked_at() -> None:
    with connect(exchanges=pd.DataFrame(rows("k" * 12)).astype({"status": "Int32"})) as connection:
        assert setup_faults(connection, experiment="other", mode="shadow", settings=Settings()) == []


def test_an_import_of_pairs_has_no_set_up() -> None:
    """Null responses, and failures without a status, are no refusals."""
    for outcome in ("unreadable", "http_error"):
        changes = {"role": "imported", "outcome": outcome, "status": None, "error_type": "no_answer"}
        assert faults(rows("k" * 40, users=40, **changes, error_message=None)) == []


def test_a_split_has_no_copies() -> None:
    """In ab and canary mode an arm's own time counts, for its exclusions too."""
    exchanges = rows("k" * 12, role="served") + rows("." * 30, "control", start=100)
    (fault,) = faults(exchanges, mode="ab")
    assert (fault.first_at, fault.last_at) == (at(0) + LAG, at(11) + LAG)
    whole = Exclusion(since=fault.since, until=fault.until, why="", declared_at="")
    assert faults(exchanges, mode="ab", exclusions=(whole,)) == []


def detected(exchanges: list[dict[str, Any]], passes_through: dict[str, bool]) -> list[tuple[Any, ...]]:
    """What the detector finds when it is fed row by row."""
    detectors: dict[tuple[str, str | None], FaultDetector] = {}
    for row in sorted(exchanges, key=lambda row: row["started_at"]):
        if row["outcome"] == "client_closed":
            continue
        arm, mark = row["arm"], row["config_fingerprint"]
        detector = detectors.setdefault(
            (arm, mark), FaultDetector(arm=arm, fingerprint=mark, passes_through=passes_through[arm])
        )
        if row["outcome"] in ANSWERED:
            detector.answered()
            continue
        values = {name: row.get(name) for name in ("outcome", "status", "error_type", "error_message")}
        asked_at = row["started_at"] - (LAG if arm == "treatment" else timedelta())
        detector.failed(
            signature_of(**values), at=asked_at.timestamp(), unit=row["unit_id"], message=row.get("error_message")
        )
    return sorted(map(shown, (fault for detector in detectors.values() for fault in detector.faults)))


def shown(fault: SetupFault) -> tuple[Any, ...]:
    moments = (fault.first_at.isoformat(), fault.last_at.isoformat())
    return (*moments, fault.arm, fault.fingerprint, fault.kind, str(fault.status), str(fault.code), fault.count)


@hypothesis_settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 9]), st.booleans())
def test_the_store_and_the_detector_agree(seed: int, users: int, passes: bool) -> None:
    """Random histories with long rows of one failure, on both arms, under two configurations."""
    chance = random.Random(seed)
    exchanges = []
    for arm in ("control", "treatment"):
        for start, mark in ((0, "f"), (1000, "g")):
            parts = [
                chance.choice(list(WORDS)) * chance.choice([1, 1, 2, 4, 5, 6, 19, 20, 24])
                for _ in range(chance.randint(1, 8))
            ]
            letters = "".join(letter for part in parts for letter in part)
            exchanges += rows(letters, arm, start=start, users=users, config_fingerprint=mark)
    served = {row["request_id"] for row in exchanges if row["arm"] == "control"}
    exchanges += [  # a copy is of a request that was served
        one
        for row in exchanges
        if row["arm"] == "treatment" and row["request_id"] not in served
        for one in rows(".", "control", start=int(row["request_id"][1:]), config_fingerprint="h")
    ]
    passes_through = {"control": passes, "treatment": not passes}
    found = faults(exchanges, passes_through=passes_through)
    assert sorted(map(shown, found)) == detected(exchanges, passes_through)


def test_only_reads(tmp_path: Any) -> None:
    """It works where nothing but the view can be reached."""
    with connect(exchanges=pd.DataFrame(rows("k" * 12)).astype({"status": "Int32"})) as connection:
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        found = setup_faults(connection, experiment=EXPERIMENT, mode="shadow", settings=Settings())
        assert [one.count for one in found] == [12]
        assert isinstance(connection, duckdb.DuckDBPyConnection)
    assert found[0].first_at.tzinfo is not None and found[0].first_at.astimezone(UTC) == at(0) + LAG


def test_a_fault_is_once_at_the_top_of_the_report() -> None:
    refused = {"outcome": "http_error", "status": 401, "error_type": "authentication_error", "error_message": "bad key"}
    found = run(both_arms(40, treatment={**refused, "config_fingerprint": "f"}))
    view = report_view(found)
    assert [one.level for one in view.problems if "et-up fault" in one.title] == ["setup"]
    assert view.problems[0].title == "Set-up fault of the treatment arm"
    # START + 39 minutes and one second, which ends the excluded time.
    assert view.problems[0].detail == (
        "40 requests in a row failed: HTTP 401: bad key (1 Jun 2026, 00:00 to 00:39 UTC)."
    )
    assert view.summary.headline == "No decision can be made before the problem above is corrected."
    assert "bad key" not in " ".join(view.summary.reasons)
    assert render_markdown(found).count("evalpipe exclude") == 1
