"""Checks of the log itself: duplicates, clocks, prices, usage, one user's weight, drift."""

from __future__ import annotations

import math
import re

from evalpipe.analysis.checks import PASS, WARN, CheckFunction, Evidence
from evalpipe.analysis.checks_prices import TELL_TOKENS, price_unknown
from evalpipe.analysis.connection import rows
from evalpipe.analysis.metrics import Ratio, metrics
from evalpipe.analysis.result import Check
from evalpipe.analysis.sums import UserSums, sum_by_user
from evalpipe.analysis.verdicts import sum_wins
from evalpipe.analysis.wording import amount, count, listed, percent
from evalpipe.stats.difference import paired_difference, unpaired_difference

MAX_USER_SHARE = 0.2
MAX_UNMETERED = 0.05
MAX_EARLY_US = 1_000_000
MAX_DRIFT_ROWS = 1_000_000
DRIFT_Z = 3.29
"""two-sided p = .001: two halves of a steady experiment differ by more once in a thousand"""
DRIFTING = ("error_rate", "cost_per_request_usd", "output_tokens")
MAX_OTHER_MODEL = 0.01


def duplicates(evidence: Evidence) -> Check:
    """The same request logged twice."""
    n = evidence.prepared.n_duplicates
    if n:
        return Check(
            name="duplicate_requests",
            status=WARN,
            detail=f"{count(n)} exchanges are in the log twice; the first of each counts",
            remedy="give every request its own id, and load a log only once",
        )
    return Check(name="duplicate_requests", status=PASS, detail="no exchange is in the log twice")


def clock_skew(evidence: Evidence) -> Check | None:
    """Copies that seem to start before the request they copy, or answers that end before they begin."""
    early = 0
    if evidence.prepared.paired:
        early = rows(evidence.connection, f"SELECT count(*) AS n FROM ev_ids WHERE lead_us < {-MAX_EARLY_US}")[0]["n"]
    odd = rows(
        evidence.connection, "SELECT count(*) AS n FROM ev_rows WHERE latency_ms < 0 OR ttft_ms > latency_ms + 1"
    )[0]["n"]
    if early or odd:
        return Check(
            name="clock_skew",
            status=WARN,
            detail=f"{count(early)} copies start a second or more before their request, "
            f"{count(odd)} answers end before they begin",
            remedy="check the clocks of the machines that write the log",
        )
    return Check(name="clock_skew", status=PASS, detail="the instants in the log are in order")


def no_usage_in_streams(evidence: Evidence) -> Check | None:
    """Streamed answers that never reported their tokens."""
    row = rows(
        evidence.connection,
        "SELECT count(*) AS n, count(*) FILTER (output_tokens IS NULL) AS unknown FROM ev_rows WHERE answered AND streamed",
    )[0]
    if not row["n"]:
        return None
    detail = f"{count(row['unknown'])} of {count(row['n'])} streamed answers did not report their tokens"
    if row["unknown"] > MAX_UNMETERED * row["n"]:
        return Check(
            name="no_usage_in_streams",
            status=WARN,
            detail=detail,
            remedy=TELL_TOKENS,
        )
    return Check(name="no_usage_in_streams", status=PASS, detail=detail)


def arm_models(evidence: Evidence) -> Check | None:
    """Did the models that answered bear the names that the configuration gives the arms?"""
    said: list[str] = []
    for arm, expected in evidence.settings.arms.items():
        wanted = expected.get("model")
        if not wanted:
            continue
        seen = rows(
            evidence.connection,
            "SELECT model_requested AS asked, model AS answered, count(*) AS n FROM exchanges WHERE experiment = ? "
            "AND arm = ? AND role <> 'replay' AND coalesce(model_requested, model) IS NOT NULL "
            "GROUP BY ALL ORDER BY n DESC, 1, 2",
            [evidence.experiment, arm],
        )
        others = [row for row in seen if not any(_same_model(wanted, row[name]) for name in ("asked", "answered"))]
        n = sum(row["n"] for row in others)
        if n > MAX_OTHER_MODEL * sum(row["n"] for row in seen):
            names = list(dict.fromkeys(str(row["answered"] or row["asked"]) for row in others))
            said.append(
                f"{count(n)} of {count(sum(row['n'] for row in seen))} {arm} exchanges are of {listed(names[:3])}, "
                f"not of {wanted}"
            )
    if not evidence.settings.arms:
        return None
    if said:
        return Check(
            name="arm_models",
            status=WARN,
            detail=f"{'; '.join(said)}: the arms are not as configured in [arms]",
            remedy="correct model in [arms], or look at one model only (--where \"model_requested = '…'\")",
        )
    return Check(name="arm_models", status=PASS, detail="the arms' models are those of [arms]")


def _same_model(wanted: str, name: str | None) -> bool:
    """A provider's prefix and a date behind the name do not make another model: openai/gpt-4o, gpt-4o-2024-08-06."""
    if not name:
        return False
    expected, found = (text.lower().rsplit("/", 1)[-1] for text in (wanted, name))
    return re.fullmatch(re.escape(expected) + r"([-@:](latest|\d{4,}[\d-]*(preview)?))?", found) is not None


def one_user_dominates(evidence: Evidence) -> Check | None:
    """One user who makes up much of the traffic: their habits are then the result."""
    if not evidence.prepared.n_rows:
        return None
    row = rows(
        evidence.connection,
        "SELECT max(n) AS top, sum(n) AS total FROM (SELECT sum(requests) AS n FROM ev_users GROUP BY u)",
    )[0]
    share = row["top"] / row["total"]
    users = evidence.prepared.n_users
    detail = f"the busiest of {count(users)} users made {percent(share)} of the requests"
    if share > MAX_USER_SHARE:
        return Check(
            name="one_user_dominates",
            status=WARN,
            detail=f"{detail}: the result is largely theirs",
            remedy="look at the result without them (--where), or wait for more users",
        )
    return Check(name="one_user_dominates", status=PASS, detail=detail)


def drift(evidence: Evidence) -> Check | None:
    """Did the difference between the arms, or the win rate, change from the first to the second half of the experiment?"""
    first, last = evidence.prepared.first_us, evidence.prepared.last_us
    if first is None or last is None or last <= first:
        return None
    middle = first + (last - first) // 2
    chosen = [item for item in metrics() if item.name in DRIFTING]
    every = max(1, -(-evidence.prepared.n_rows // MAX_DRIFT_ROWS))  # whole users, by hash
    half_of = f"CASE WHEN at_us < {middle} THEN 'first' ELSE 'second' END"
    sum_by_user(
        evidence.connection,
        [item.values for item in chosen if isinstance(item.values, Ratio)],
        paired=evidence.prepared.paired,
        table="ev_halves",
        group=half_of,
        condition=f"u % {every} = 0",
    )
    users = UserSums(evidence.connection, "ev_halves")
    measured = [(item, users.aggregate(f"m{position}")) for position, item in enumerate(chosen)]
    if evidence.judge is not None:
        wins = sum_wins(evidence.connection, evidence.judge.name, evidence.judge.fingerprint, group=half_of)
        measured.append((next(item for item in metrics() if item.name == "win_rate"), wins))
    moved = []
    for item, halves in measured:
        if set(halves) != {"first", "second"}:
            continue
        estimates = []
        for name in ("first", "second"):
            half = halves[name]
            estimates.append(
                paired_difference(half.paired)
                if evidence.prepared.paired
                else unpaired_difference(half.control, half.treatment)
            )
        before, after = estimates
        if not all(one.status == "ok" and one.standard_error for one in estimates):
            continue
        assert before.point is not None and after.point is not None
        se = math.hypot(before.standard_error or 0.0, after.standard_error or 0.0)
        if abs(after.point - before.point) > DRIFT_Z * se:
            moved.append(
                f"{item.label.lower()} from {amount(before.point, item.unit, signed=True)} "
                f"to {amount(after.point, item.unit, signed=True)}"
            )
    if moved:
        return Check(
            name="drift",
            status=WARN,
            detail=f"the difference between the arms changed from the first half to the second: {listed(moved)}",
            remedy="look at the series: did a model, a prompt or the traffic change?",
        )
    return Check(name="drift", status=PASS, detail="the first and the second half agree")


CHECKS: list[CheckFunction] = [
    duplicates,
    clock_skew,
    price_unknown,
    no_usage_in_streams,
    arm_models,
    one_user_dominates,
    drift,
]
