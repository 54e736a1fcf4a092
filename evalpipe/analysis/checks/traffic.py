"""Checks of the traffic: did both arms get the requests they were promised, and do its units look like users?"""

from __future__ import annotations

import math
from typing import Final

from evalpipe.analysis.checks.base import FAIL, PASS, WARN, CheckContext, CheckFunction
from evalpipe.analysis.classes import number_of
from evalpipe.analysis.metric_formatting import count, percent
from evalpipe.analysis.prepare import Prepared
from evalpipe.analysis.result import Check, Funnel, MetricResult
from evalpipe.analysis.sql import Connection, rows
from evalpipe.files import sql_statements
from evalpipe.stats import srm
from evalpipe.stats.srm import MAX_SHED_SHARE, losses, too_much_shed, worst_case_win_rate
from evalpipe.traffic_shape import REMEDY, Finding, UnitCounts, client_name, summary, uncopied_findings, unit_findings

_SQL = sql_statements("evalpipe.analysis.checks", "traffic.sql")

MAX_CONTAMINATED = 0.001
MAX_EMPTY = 0.01
FEW_FIRST_SHARE = 0.10
"""share of conversations with a first turn below which a check reports how few there are"""
FULL_WEEK_DAYS = 7
DAY_US = 86_400_000_000
_SHED_BY_LOAD: Final = (
    "the busiest moments are missing",
    "lower sample_percent, raise shadow_concurrency, or give the treatment more capacity",
)
"""what is missing, and what to do"""
_SHED_BY_BUDGET: Final = (
    "mostly because shadow_budget_usd had no room for what a copy may cost at most",
    "raise shadow_budget_usd, lower sample_percent, or set max_tokens on the requests (a copy reserves its longest answer)",
)
MIN_LOST_SHARE = 0.005
"""lopsided losses below this share of the requests are named but do not forbid a decision: they cannot turn it"""


def empty_arm(funnel: Funnel, *, paired: bool) -> str | None:
    """The failure where one arm has no exchange at all; None where both have some."""
    seen = {arm: sum(outcomes.values()) for arm, outcomes in funnel.outcomes.items()}
    empty = [arm for arm in ("control", "treatment") if not seen.get(arm)]
    if not empty:
        return None
    arm, other = empty[0], "treatment" if empty[0] == "control" else "control"
    n = count(seen.get(other, 0))
    what = f"0 of {n} requests have a copy" if paired and arm == "treatment" else f"there are {n} of {other}"
    return f"the {arm} has no answer in the log ({what}), so nothing can be compared"


def uncollected_calls(evidence: CheckContext) -> Check | None:
    """Calls of a model that went through the collector without a record: the log is not the whole traffic."""
    found = evidence.settings.uncollected
    if not found:
        return None
    return Check(name="uncollected_calls", status=WARN, detail=summary(found), remedy=REMEDY)


def both_arms(evidence: CheckContext) -> Check | None:
    """Is there anything to compare?"""
    problem = empty_arm(evidence.funnel, paired=evidence.prepared.paired)
    if problem is None:
        return None
    return Check(
        name="both_arms",
        status=WARN,
        detail=problem,
        remedy="see that the collector sends copies (`evalpipe doctor`), or name the experiment with --experiment",
    )


def sample_ratio(evidence: CheckContext) -> Check | None:
    """Ab and canary: the arms' shares of users against the planned ones, per stage (docs/statistics.md#srm)."""
    if evidence.prepared.paired:
        return None
    found = rows(
        evidence.connection,
        "SELECT stage, count(DISTINCT u) FILTER (treatment) AS t, count(DISTINCT u) FILTER (NOT treatment) AS c "
        "FROM ev_rows GROUP BY stage ORDER BY stage",
    )
    log_e, chi2, n_t, n_c, expected = 0.0, 0.0, 0, 0, 0.0
    stages = 0
    for row in found:
        planned = row["stage"] or evidence.settings.treatment_percent
        if not planned or not 0 < planned < 100:
            continue
        shares = [planned / 100, 1 - planned / 100]
        counts = [row["t"], row["c"]]
        tested = srm.chi_square(counts, shares)
        log_e += srm.log_e(counts, shares)
        chi2 += 0.0 if tested is None else tested[0]
        n_t, n_c, stages = n_t + row["t"], n_c + row["c"], stages + 1
        expected += shares[0] * (row["t"] + row["c"])
    if not stages or n_t + n_c == 0:
        return Check(name="sample_ratio", status=WARN, detail="the planned share of the treatment is not known")
    p = srm.chi_square_p(chi2, stages)
    broken = log_e >= math.log(srm.ALARM_E) if evidence.look_plan.mode == "anytime" else p < srm.ALARM_P
    seen = (
        f"{count(n_t)} of {count(n_t + n_c)} users ({percent(n_t / (n_t + n_c))}) got the treatment, "
        f"{percent(expected / (n_t + n_c))} were planned"
    )
    if broken:
        return Check(
            name="sample_ratio",
            status=FAIL,
            detail=f"{seen}: more than chance allows, so the arms do not hold the same kind of users",
            remedy="look for requests of one arm that are lost before they are logged, or a changed percentage",
        )
    return Check(name="sample_ratio", status=PASS, detail=seen)


def arm_contamination(evidence: CheckContext) -> Check | None:
    """Ab and canary: users who saw both arms at one percentage; they are left out of the metrics."""
    if evidence.prepared.paired:
        return None
    mixed, users = evidence.prepared.n_contaminated, evidence.prepared.n_users
    share = mixed / (users + mixed) if users + mixed else 0.0
    detail = f"{count(mixed)} of {count(users + mixed)} users saw both arms ({percent(share)}) and are left out"
    if share > MAX_CONTAMINATED:
        return Check(
            name="arm_contamination",
            status=WARN,
            detail=detail,
            remedy="make sure that every request carries the user's id, and that the percentage is not lowered",
        )
    return Check(name="arm_contamination", status=PASS, detail=detail)


def pairing(evidence: CheckContext) -> Check | None:
    """Shadow: rows that evalpipe lost, and whether they are lost on one side (docs/statistics.md#missing)."""
    if not evidence.prepared.paired or empty_arm(evidence.funnel, paired=True):
        return None
    lost = evidence.funnel.exclusions
    lost_t = sum(n for reason, n in lost.items() if reason.startswith("treatment_"))
    lost_c = lost.get("control_missing", 0)
    requests = evidence.funnel.requests
    found = losses(lost_t, lost_c)
    if lost_t + lost_c == 0:
        return Check(name="pairing", status=PASS, detail="every copied request has both answers in the log")
    detail = f"of {count(requests)} requests {count(lost_t)} miss the treatment's row and {count(lost_c)} control's"
    if found.lopsided and (lost_t + lost_c) > MIN_LOST_SHARE * requests:
        return Check(
            name="pairing",
            status=FAIL,
            detail=f"{detail}: what is left may not be what was asked",
            remedy="run `evalpipe load` once the collector is idle; see the collector's log for what stopped it",
        )
    return Check(name="pairing", status=WARN if found.lopsided else PASS, detail=detail)


def shed(evidence: CheckContext) -> Check | None:
    """Shadow requests that were shed because the treatment could not keep up, or the budget had no room for them: what is left is
    not a random sample."""
    if not evidence.prepared.paired:
        return None
    n_shed = evidence.funnel.shadow.get("shed", 0)
    n_sampled = evidence.funnel.shadow.get("sampled", 0) + n_shed
    if n_sampled == 0:
        return None
    detail = f"{count(n_shed)} of {count(n_sampled)} copies were shed ({percent(n_shed / n_sampled)})"
    if too_much_shed(n_shed, n_sampled):
        missing, remedy = (
            _SHED_BY_BUDGET if _mostly_by_budget(evidence.connection, evidence.experiment) else _SHED_BY_LOAD
        )
        return Check(
            name="shed",
            status=FAIL,
            detail=f"{detail}, more than {percent(MAX_SHED_SHARE)}: {missing}",
            remedy=remedy,
        )
    return Check(name="shed", status=PASS, detail=detail)


def _mostly_by_budget(connection: Connection, experiment: str) -> bool:
    """Whether the copies' budget is the most frequent reason."""
    found = rows(
        connection,
        "SELECT coalesce(shadow_reason, '') AS reason, count(*) AS n FROM exchanges WHERE experiment = ? AND role = 'served' "
        "AND shadow_status = 'shed' AND hash(request_id) IN (SELECT id FROM ev_ids WHERE shadow_status = 'shed') "
        "GROUP BY ALL ORDER BY n DESC, reason LIMIT 1",
        [experiment],
    )
    return bool(found) and found[0]["reason"] == "budget"


def missing_answers(evidence: CheckContext) -> Check | None:
    """Shadow: pairs that cannot be judged because an arm failed, and on which side."""
    if not evidence.prepared.paired:
        return None
    row = rows(
        evidence.connection,
        f"SELECT {number_of('true')} AS n, {number_of('t_failed AND NOT c_failed')} AS t, "
        f"{number_of('c_failed AND NOT t_failed')} AS c, {number_of('c_failed AND t_failed')} AS both FROM ev_counted_classes",
    )[0]
    if not row["n"]:
        return None
    detail = (
        f"of {count(row['n'])} pairs the treatment alone failed in {count(row['t'])}, control alone in {count(row['c'])}, "
        f"both in {count(row['both'])}; quality is compared on the rest only"
    )
    judge = evidence.judge
    if (
        judge is not None
        and judge.n_judged
        and row["t"] + row["c"]
        and judge.n_judged > 0.9 * (row["n"] - row["t"] - row["c"])
    ):
        worst = worst_case_win_rate(
            (judge.win_rate_over_judged or 0.0) * judge.n_judged,
            judge.n_judged,
            control_failed=row["c"],
            treatment_failed=row["t"],
            both_failed=row["both"],
        )
        detail += f" (each lost pair counted against the side that failed, the win rate would be {percent(worst)})"
    share = (row["t"] + row["c"] + row["both"]) / row["n"]
    lopsided = losses(row["t"], row["c"]).lopsided
    return Check(name="missing_answers", status=WARN if lopsided or share > 0.1 else PASS, detail=detail)


def empty_answers(evidence: CheckContext) -> Check | None:
    """Answers with neither text nor tool call: no error, no refusal, and nothing a judge can read."""
    result = evidence.results.get("empty_rate")
    if result is None or not result.measurable or result.control.value is None or result.treatment.value is None:
        return None
    parts = [
        f"{count(arm.numerator or 0)} of {count(arm.n)} {name} answers"
        for name, arm in (("treatment", result.treatment), ("control", result.control))
    ]
    detail = f"{' and '.join(parts)} hold neither text nor a tool call"
    if result.treatment.numerator or (result.control.value or 0) > MAX_EMPTY:
        return Check(
            name="empty_answers",
            status=WARN,
            detail=detail,
            remedy="read some of them in the report's examples: a stop sequence, a token limit or a filter may cut answers off",
        )
    return Check(name="empty_answers", status=PASS, detail=detail)


def later_turns(evidence: CheckContext) -> Check | None:
    """Shadow: how much of the log are later turns, on which the treatment answers users who replied to control."""
    chosen = evidence.chosen
    if chosen is None or not chosen.later_share:
        return None
    part = percent(chosen.later_share)
    share = f"{part} of the pairs are later turns of a conversation, whose users replied to control's words"
    if chosen.by_data:
        return Check(
            name="later_turns",
            status=WARN,
            detail=f"{share}; only {percent(chosen.first_share)} of {count(chosen.n_conversations)} conversations show a first "
            "turn, so the win rate is about all turns",
            remedy="collect conversations from their start, or compare by users (mode ab)",
        )
    if chosen.turns == "all":
        return Check(name="later_turns", status=PASS, detail=f'{share}; they count, as turns = "all" asks')
    first, later = evidence.results.get("win_rate"), evidence.results.get("win_rate_later_turns")
    detail = f"{share}; the win rate is about first turns"
    if (
        first is not None
        and later is not None
        and first.treatment.value is not None
        and later.treatment.value is not None
    ):
        detail += (
            f": first turns {percent(first.treatment.value)}, later turns {percent(later.treatment.value)} "
            f"({percent(later.treatment.ci_low)} to {percent(later.treatment.ci_high)})"
        )
    if chosen.first_share is not None and chosen.first_share < FEW_FIRST_SHARE and chosen.n_conversations >= 20:
        return Check(
            name="later_turns",
            status=WARN,
            detail=f"{detail}; only {percent(chosen.first_share)} of {count(chosen.n_conversations)} conversations show their "
            f"first turn: a verdict on first turns takes {count(1 / max(chosen.first_share, 1e-3))} times the traffic",
            remedy='collect conversations from their start, set turns = "all", or compare by users (mode ab)',
        )
    apart = first is not None and later is not None and _apart(first, later)
    return Check(
        name="later_turns",
        status=WARN if apart else PASS,
        detail=detail + (": they differ by more than chance" if apart else ""),
        remedy="first turns compare the arms; what users do with the treatment's own words takes mode ab"
        if apart
        else None,
    )


def _apart(first: MetricResult, later: MetricResult) -> bool:
    """Whether the intervals of the two win rates do not overlap."""
    low, high, other_low, other_high = first.ci_low, first.ci_high, later.ci_low, later.ci_high
    return (low is not None and other_high is not None and other_high < low) or (
        high is not None and other_low is not None and other_low > high
    )


def period_check(prepared: Prepared) -> Check | None:
    """Beside a ship: traffic of less than a week has not seen every day of the week, nor a rare incident."""
    if prepared.first_us is None or prepared.last_us is None or prepared.first_us < DAY_US:
        return None
    days = (prepared.last_us - prepared.first_us) / DAY_US
    if days >= FULL_WEEK_DAYS:
        return Check(name="short_period", status=PASS, detail=f"the traffic spans {days:.0f} days")
    return Check(
        name="short_period",
        status=WARN,
        detail=f"the traffic spans {days:.1f} days, less than a week: other weekdays and rare incidents are not in it",
        remedy="let it run for a full week before switching everybody, or roll out in stages (mode canary)",
    )


CHECKS: list[CheckFunction] = [
    both_arms,
    uncollected_calls,
    sample_ratio,
    arm_contamination,
    pairing,
    shed,
    missing_answers,
    empty_answers,
    later_turns,
]


# Checks of who the traffic comes from: units that do not look like users, and requests that one arm alone can answer.


MAX_READ: Final = 20_000
"""requests whose `meta` is read"""


def units_found(connection: Connection, experiment: str) -> list[Finding]:
    """What is unusual about the units of the requests that a collector served. Empty where nothing is, or none was."""
    found = rows(connection, _SQL["units"], {"experiment": experiment, "most": MAX_READ})[0]
    return unit_findings(
        UnitCounts(
            n_requests=int(found["n"]),
            n_unnamed=int(found["unnamed"]),
            n_units=found["units"],
            n_single=found["single"],
            n_of_one_conversation=found["one"],
            largest=found["largest"],
        )
    )


def uncopied_found(connection: Connection, experiment: str) -> list[Finding]:
    """Clients of whose requests a large share cannot be given to the treatment, and why."""
    chosen = "FROM exchanges WHERE experiment = ? AND role = 'served' AND shadow_status"
    if not rows(connection, f"SELECT 1 {chosen} = 'not_shadowable' LIMIT 1", [experiment]):
        return []
    found = rows(
        connection,
        "SELECT agent, reason, count(*) AS n FROM (SELECT "
        "CASE WHEN json_valid(meta) THEN json_extract_string(meta, '$.request_headers.\"user-agent\"') END AS agent, "
        "CASE WHEN shadow_status = 'not_shadowable' THEN coalesce(shadow_reason, 'unknown') END AS reason "
        f"FROM exchanges WHERE experiment = ? AND role = 'served' LIMIT {MAX_READ}) GROUP BY ALL",
        [experiment],
    )
    clients: dict[str, dict[str | None, int]] = {}
    for row in found:
        reasons = clients.setdefault(client_name(row["agent"]), {})
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["n"]
    return uncopied_findings(clients)


def units(evidence: CheckContext) -> Check | None:
    """Units that look like sessions or single requests, one that holds most, and traffic that names no user."""
    found = units_found(evidence.connection, evidence.experiment)
    if not found:
        return None
    detail = "; ".join(finding.detail for finding in found)
    return Check(name="units", status=WARN, detail=detail, remedy=found[0].remedy)


def uncopied(evidence: CheckContext) -> Check | None:
    """The share of a client's requests that cannot be given to the treatment, and why."""
    found = uncopied_found(evidence.connection, evidence.experiment)
    if not found:
        return None
    detail = "; ".join(finding.detail for finding in found)
    return Check(name="uncopied", status=WARN, detail=detail, remedy=found[0].remedy)


UNIT_CHECKS: list[CheckFunction] = [units, uncopied]
