"""Checks of the traffic: did both arms get the requests they were promised?"""

from __future__ import annotations

import math

from evalpipe.analysis.checks import FAIL, PASS, WARN, CheckFunction, Evidence
from evalpipe.analysis.connection import rows
from evalpipe.analysis.result import Check, Funnel
from evalpipe.analysis.wording import count, percent
from evalpipe.stats import srm
from evalpipe.stats.missing import MAX_SHED_SHARE, losses, too_much_shed, worst_case_win_rate

MAX_CONTAMINATED = 0.001
MIN_LOST_SHARE = 0.005
"""lopsided losses below this share of the requests are named but do not forbid a decision: they cannot turn it"""


def empty_arm(funnel: Funnel, *, paired: bool) -> str | None:
    """What to say where one arm has no exchange at all; None where both have some."""
    seen = {arm: sum(outcomes.values()) for arm, outcomes in funnel.outcomes.items()}
    empty = [arm for arm in ("control", "treatment") if not seen.get(arm)]
    if not empty:
        return None
    arm, other = empty[0], "treatment" if empty[0] == "control" else "control"
    n = count(seen.get(other, 0))
    what = f"0 of {n} requests have a copy" if paired and arm == "treatment" else f"there are {n} of {other}"
    return f"the {arm} has no answer in the log ({what}), so nothing can be compared"


def both_arms(evidence: Evidence) -> Check | None:
    """Is there anything to compare?"""
    said = empty_arm(evidence.funnel, paired=evidence.prepared.paired)
    if said is None:
        return None
    return Check(
        name="both_arms",
        status=WARN,
        detail=said,
        remedy="see that the collector sends copies (`evalpipe doctor`), or name the experiment with --experiment",
    )


def sample_ratio(evidence: Evidence) -> Check | None:
    """Ab and canary: the arms' shares of users against the planned ones, per stage (statistics.md 13)."""
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
    from scipy import stats as distributions

    p = float(distributions.chi2.sf(chi2, stages))
    broken = log_e >= math.log(srm.ALARM_E) if evidence.looking.mode == "anytime" else p < srm.ALARM_P
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


def arm_contamination(evidence: Evidence) -> Check | None:
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


def pairing(evidence: Evidence) -> Check | None:
    """Shadow: rows that we lost, and whether they are lost on one side (statistics.md 1.5)."""
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


def shed(evidence: Evidence) -> Check | None:
    """Shadow: copies that were shed because the treatment could not keep up; a busy hour is not a random sample."""
    if not evidence.prepared.paired:
        return None
    n_shed = evidence.funnel.shadow.get("shed", 0)
    n_sampled = evidence.funnel.shadow.get("sampled", 0) + n_shed
    if n_sampled == 0:
        return None
    detail = f"{count(n_shed)} of {count(n_sampled)} copies were shed ({percent(n_shed / n_sampled)})"
    if too_much_shed(n_shed, n_sampled):
        return Check(
            name="shed",
            status=FAIL,
            detail=f"{detail}, more than {percent(MAX_SHED_SHARE)}: the busiest moments are missing",
            remedy="lower sample_percent, raise shadow_concurrency, or give the treatment more capacity",
        )
    return Check(name="shed", status=PASS, detail=detail)


def missing_answers(evidence: Evidence) -> Check | None:
    """Shadow: pairs that cannot be judged because an arm failed, and on which side."""
    if not evidence.prepared.paired:
        return None
    row = rows(
        evidence.connection,
        "SELECT count(*) AS n, count(*) FILTER (treatment_failed AND NOT control_failed) AS t, "
        "count(*) FILTER (control_failed AND NOT treatment_failed) AS c, "
        "count(*) FILTER (control_failed AND treatment_failed) AS both FROM ev_ids "
        "WHERE control_attempted AND treatment_attempted",
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
        and judge.n_pairs
        and row["t"] + row["c"]
        and judge.n_pairs > 0.9 * (row["n"] - row["t"] - row["c"])
    ):
        worst = worst_case_win_rate(
            (judge.win_rate or 0.0) * judge.n_pairs,
            judge.n_pairs,
            control_failed=row["c"],
            treatment_failed=row["t"],
            both_failed=row["both"],
        )
        detail += f" (each lost pair counted against the side that failed, the win rate would be {percent(worst)})"
    share = (row["t"] + row["c"] + row["both"]) / row["n"]
    lopsided = losses(row["t"], row["c"]).lopsided
    return Check(name="missing_answers", status=WARN if lopsided or share > 0.1 else PASS, detail=detail)


CHECKS: list[CheckFunction] = [both_arms, sample_ratio, arm_contamination, pairing, shed, missing_answers]
