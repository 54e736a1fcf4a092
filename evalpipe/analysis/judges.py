"""What each judge found, and how far it agrees with people's labels: win rate, consistency, seat bias, length, coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evalpipe.analysis.result import Agreement, DimensionResult, JudgeResult, LengthBin, WinRate
from evalpipe.analysis.settings import JudgeInfo, LookPlan, Settings
from evalpipe.analysis.sql import Connection, rows
from evalpipe.analysis.verdicts import (
    METRIC,
    Array,
    JudgeSummary,
    Verdicts,
    by_user,
    preference_estimate,
    read_verdicts,
)
from evalpipe.files import sql_statements
from evalpipe.models import ASKED_MODEL, COST_AT_MOST
from evalpipe.stats import betting, winrate
from evalpipe.stats.agreement import agreement
from evalpipe.stats.clusters import arm_aggregate
from evalpipe.stats.estimates import Estimate, label
from evalpipe.stats.length import is_length_confounded, length_controlled
from evalpipe.stats.proportions import mcnemar
from evalpipe.stats.sequential import Fixed
from evalpipe.stats.srm import win_rate_bounds

_SQL = sql_statements("evalpipe.analysis", "judges.sql")

LENGTH_BINS = 5
SETTLED = "CREATE TEMP TABLE IF NOT EXISTS judging_settled (judgment_id VARCHAR, usd DOUBLE)"
"""The settled cost of calls whose cost was not reported; filled before an analysis."""


def judge_results(
    connection: Connection,
    judges: Sequence[JudgeSummary],
    deciding: JudgeSummary | None,
    *,
    experiment: str,
    settings: Settings,
    look_plan: LookPlan,
    margin: float,
) -> list[JudgeResult]:
    """Every judge that names winners, the deciding one first."""
    wanted = [judge for judge in judges if judge.pairwise]
    if not wanted:
        return []
    connection.execute(_SQL["lengths"], {"experiment": experiment})
    wanted.sort(key=lambda judge: judge is not deciding)
    return [
        _judge_result(
            connection,
            judge,
            experiment=experiment,
            settings=settings,
            look_plan=look_plan,
            margin=margin,
            deciding=judge is deciding,
        )
        for judge in wanted
    ]


def _judge_result(
    connection: Connection,
    judge: JudgeSummary,
    *,
    experiment: str,
    settings: Settings,
    look_plan: LookPlan,
    margin: float,
    deciding: bool,
) -> JudgeResult:
    verdicts = read_verdicts(connection, judge, deciding=deciding)
    alpha = look_plan.alpha
    counted = _counted(verdicts)
    estimate = preference_estimate(counted.x, counted.users, look_plan, alpha, sigma2=judge.sigma2)
    both = verdicts.both_orders
    first, second = _winner(verdicts.treatment_first[both]), _winner(verdicts.control_first[both])
    n_both = int(both.sum())
    consistent = winrate.consistency(
        int((first == second).sum()), n_both, alpha=alpha, minimum=settings.min_consistency
    )
    seat = _mean_over_users(
        (verdicts.treatment_first[both] + 1 - verdicts.control_first[both]) / 2, verdicts.users[both], alpha
    )
    info = next((one for one in settings.judges if one.name == judge.name), None)
    shows = winrate.effect_shown(verdicts.treatment_first[both], verdicts.control_first[both])
    calls = _calls(connection, judge, experiment, (info or JudgeInfo(name=judge.name)).max_attempts)
    n, total = len(verdicts.x), float(verdicts.x.sum())
    bounds = win_rate_bounds(total, n, max(0, calls["asked"] - n))
    controlled, status, note = _length(counted, look_plan, margin, judge.sigma2)
    if consistent.status == "unreliable_judge":
        status, note = "unreliable_judge", consistent.note
    agreements = agreements_of(connection, judge, alpha=alpha)
    return JudgeResult(
        name=judge.name,
        fingerprint=judge.fingerprint,
        mode="pairwise",
        model=judge.model,
        simulated=judge.simulated,
        imported=judge.imported,
        feeds_decision=deciding,
        win_rate=estimate.point,
        ci_low=estimate.ci_low,
        ci_high=estimate.ci_high,
        standard_error=_standard_error(counted),
        confidence_level=1 - alpha,
        n_pairs=len(counted.x),
        n_clusters=estimate.n_clusters,
        p_value=estimate.p_value,
        method=estimate.method,
        win_rate_over_pairs=float(counted.x.mean()) if len(counted.x) else None,
        win_rate_over_judged=total / n if n else None,
        n_judged=n,
        n_beyond=n - len(counted.x),
        wins=int((counted.x > 0.5).sum()),
        ties=int((counted.x == 0.5).sum()),
        losses=int((counted.x < 0.5).sum()),
        consistency=consistent.point,
        consistency_low=consistent.ci_low,
        consistency_high=consistent.ci_high,
        n_both_orders=n_both,
        flips=int((np.abs(first - second) == 2).sum()),
        first_seat_rate=seat.point,
        first_seat_low=seat.ci_low,
        first_seat_high=seat.ci_high,
        rules=_rules(counted, look_plan, estimate),
        length_controlled=controlled,
        dimensions=_dimensions(connection, judge),
        length_bins=_length_bins(counted),
        agreement=agreements[0] if agreements else Agreement(),
        agreements=agreements,
        asked_pairs=calls["asked"],
        failures=calls["failures"],
        given_up=calls["given_up"],
        given_up_requests=calls["given_up_requests"],
        other_models=calls["other_models"],
        missing_low=None if bounds is None else bounds[0],
        missing_high=None if bounds is None else bounds[1],
        cost_usd=calls["cost_usd"],
        cost_at_most_usd=calls["cost_at_most_usd"],
        simulated_rule=simulated_rule(connection, judge, experiment) if judge.simulated else None,
        graded=bool((np.abs(4 * verdicts.x - np.round(4 * verdicts.x)) > 1e-9).any()),  # two orders make quarters
        shows_at_least=None if shows is None else shows[0],
        shows_at_most=None if shows is None else shows[1],
        rubric=info.rubric if info and info.fingerprint in {None, judge.fingerprint} else None,
        status=estimate.status if status == "ok" else status,
        note=note or estimate.note,
    )


def _mean_over_users(values: Array, users: npt.NDArray[np.int64], alpha: float) -> Estimate:
    sums, counts = by_user(values, users)
    return winrate.first_seat_rate(arm_aggregate(sums, counts, n=len(values)), alpha=alpha)


def _standard_error(verdicts: Verdicts) -> float | None:
    """The plain standard error of the mean over users of their mean preference; 0 where all verdicts are alike."""
    sums, counts = by_user(verdicts.x, verdicts.users)
    spread = arm_aggregate(sums / counts, np.ones(len(counts))).spread
    variance = None if spread is None else spread.variance("jackknife")
    return None if variance is None else math.sqrt(variance)


def _winner(scores: Array) -> npt.NDArray[np.int64]:
    """−1 control, 0 tie, 1 treatment."""
    return np.sign(scores - 0.5).astype(np.int64)


def _counted(verdicts: Verdicts) -> Verdicts:
    """The pairs that count in the win rate."""
    kept = verdicts.counts
    return Verdicts(
        x=verdicts.x[kept],
        treatment_first=verdicts.treatment_first[kept],
        control_first=verdicts.control_first[kept],
        length_difference=verdicts.length_difference[kept],
        users=verdicts.users[kept],
        counts=kept[kept],
    )


def _rules(verdicts: Verdicts, look_plan: LookPlan, average: Estimate) -> list[WinRate]:
    """The win rate under each way to count pairs whose two orders disagree."""
    shown = [_shown("average", average)]
    both = verdicts.both_orders
    if not both.any():
        return shown
    first, second = _winner(verdicts.treatment_first[both]), _winner(verdicts.control_first[both])
    tied = np.where(first == second, verdicts.x[both], 0.5)
    shown.append(_shown("tie", preference_estimate(tied, verdicts.users[both], look_plan, look_plan.alpha)))
    agreed = np.flatnonzero(both)[first == second]
    shown.append(
        _shown("left_out", preference_estimate(verdicts.x[agreed], verdicts.users[agreed], look_plan, look_plan.alpha))
    )
    return shown


def _shown(rule: str, estimate: Estimate) -> WinRate:
    return WinRate(rule=rule, value=estimate.point, ci_low=estimate.ci_low, ci_high=estimate.ci_high, n=estimate.n)


def _length(
    verdicts: Verdicts, look_plan: LookPlan, margin: float, sigma2: float
) -> tuple[WinRate | None, str, str | None]:
    """The length-controlled win rate, and whether length explains the raw one away.

    Both are over the pairs with two answers that are not empty, so that the correction never hides what empty answers lose;
    where there are empty answers it can take away a win, but no loss.
    """
    known = ~np.isnan(verdicts.length_difference)
    if known.sum() < 10 or np.ptp(verdicts.x[known]) == 0:
        return None, "ok", None
    fitted = length_controlled(
        verdicts.x[known],
        verdicts.length_difference[known],
        verdicts.users[known],
        multiplier=look_plan.multiplier(METRIC),
        alpha=look_plan.alpha,
    ).win_rate
    raw = preference_estimate(verdicts.x[known], verdicts.users[known], look_plan, look_plan.alpha, sigma2=sigma2)
    labels = [_label(raw, margin), _label(fitted, margin)]
    if is_length_confounded(*labels) and (labels[0] == "better" or known.all()):
        shown = 100 * (fitted.point or 0.5)
        return (
            _shown("length_controlled", fitted),
            "length_confounded",
            f"at equal length the win rate is {shown:.0f} %",
        )
    return _shown("length_controlled", fitted), "ok", fitted.note


def _label(estimate: Estimate, margin: float) -> str:
    low = None if estimate.ci_low is None else estimate.ci_low - 0.5
    high = None if estimate.ci_high is None else estimate.ci_high - 0.5
    return label(low, high, margin=margin, status=estimate.status).label


def _length_bins(verdicts: Verdicts) -> list[LengthBin]:
    known = ~np.isnan(verdicts.length_difference)
    if known.sum() < 2 * LENGTH_BINS:
        return []
    dl = verdicts.length_difference[known]
    edges = np.unique(np.quantile(dl, np.linspace(0, 1, LENGTH_BINS + 1), method="inverted_cdf"))
    if len(edges) < 2:
        return []
    both = verdicts.both_orders[known]
    x = verdicts.x[known]
    alike = _winner(np.nan_to_num(verdicts.treatment_first[known], nan=0.5)) == _winner(
        np.nan_to_num(verdicts.control_first[known], nan=0.5)
    )
    bins = []
    for position, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (dl >= low if position == 0 else dl > low) & (dl <= high)
        n, n_both = int(inside.sum()), int((inside & both).sum())
        if n:
            bins.append(
                LengthBin(
                    low=float(low),
                    high=float(high),
                    n=n,
                    win_rate=float(x[inside].mean()),
                    consistency=float(alike[inside & both].mean()) if n_both else None,
                )
            )
    return bins


def _dimensions(connection: Connection, judge: JudgeSummary) -> list[DimensionResult]:
    found = rows(
        connection,
        "SELECT dimension AS name, count(*) FILTER (treatment > control) AS wins, count(*) FILTER (treatment = control) AS ties, "
        "count(*) FILTER (treatment < control) AS losses, avg(control) AS control, avg(treatment) AS treatment "
        "FROM ev_scores WHERE judge = ? AND fingerprint = ? AND control IS NOT NULL AND treatment IS NOT NULL "
        "GROUP BY dimension ORDER BY dimension",
        [judge.name, judge.fingerprint],
    )
    return [DimensionResult(**row) for row in found]


def _calls(connection: Connection, judge: JudgeSummary, experiment: str, max_attempts: int) -> dict[str, Any]:
    """Pairs asked, failures by kind after the last attempt, and what all attempts cost."""
    failures = {
        row["status"]: row["n"]
        for row in rows(
            connection,
            "SELECT status, count(*) AS n FROM ev_calls WHERE judge = ? AND fingerprint = ? AND NOT final "
            "GROUP BY status ORDER BY status",
            [judge.name, judge.fingerprint],
        )
    }
    connection.execute(SETTLED)
    asked, cost, more = connection.execute(
        _SQL["cost"].format(at_most=COST_AT_MOST),
        {"experiment": experiment, "judge": judge.name, "fingerprint": judge.fingerprint},
    ).fetchall()[0]
    at_most = None if more is None or cost is None else cost + more
    given_up = connection.execute(
        """
        SELECT any_value(request_id) AS request_id FROM judgments WHERE experiment = ? AND judge = ? AND judge_fingerprint = ?
        GROUP BY key HAVING NOT bool_or(status IN ('ok', 'identical')) AND count(*) FILTER (
          status IN ('unparseable', 'refused', 'truncated') AND NOT coalesce(contains(note, 'reparsed_attempt'), false)) >= ?
        ORDER BY request_id""",
        [experiment, judge.name, judge.fingerprint, max_attempts],
    ).fetchall()
    others = connection.execute(
        f"SELECT judge_model, count(*) FROM judgments WHERE experiment = ? AND judge = ? AND judge_fingerprint = ? "
        f"AND judge_model IS NOT NULL AND json_extract(CASE WHEN json_valid(note) THEN note END, '$.{ASKED_MODEL}') "
        "IS NOT NULL GROUP BY judge_model ORDER BY judge_model",
        [experiment, judge.name, judge.fingerprint],
    ).fetchall()
    return {
        "asked": asked,
        "cost_usd": cost,
        "cost_at_most_usd": at_most,
        "failures": failures,
        "given_up": len(given_up),
        "given_up_requests": list(dict.fromkeys(request_id for (request_id,) in given_up)),
        "other_models": dict(others),
    }


# People's labels: as judges of their own (`label:SOURCE`), and as what the judges are measured against.


PREFIX = "label:"


def prepare_labels(connection: Connection, *, experiment: str) -> None:
    """`ev_label_rows`: every label; `ev_labels`: one preference per source and pair (the mean where several labelled it)."""
    connection.execute(_SQL["label_rows"], {"experiment": experiment})
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_labels AS SELECT source, id, any_value(u) AS u, avg(preference) AS preference "
        "FROM ev_label_rows GROUP BY source, id"
    )


def label_results(connection: Connection, look_plan: LookPlan) -> list[JudgeResult]:
    """Every source of labels as a judge: win rate, and McNemar's exact p of wins against losses."""
    results = []
    for row in rows(connection, "SELECT source, count(*) AS n FROM ev_labels GROUP BY source ORDER BY n DESC, source"):
        found = connection.execute(
            "SELECT sum(preference) AS s, count(*) AS w FROM ev_labels WHERE source = ? GROUP BY u ORDER BY u",
            [row["source"]],
        ).fetchnumpy()
        sums, counts = np.asarray(found["s"], float), np.asarray(found["w"], float)
        means, units = np.unique(np.round(sums / counts, 12), return_counts=True)
        users = arm_aggregate(sums / counts, np.ones(len(counts)))
        estimate = winrate.win_rate(
            means,
            units,
            n=row["n"],
            multiplier=look_plan.multiplier("win_rate"),
            alpha=look_plan.alpha,
            bets=look_plan.bets("win_rate", look_plan.alpha, sigma2=betting.SIGMA2_ONE_ORDER),
        )
        wins, ties, losses = connection.execute(
            "SELECT count(*) FILTER (preference > 0.5), count(*) FILTER (preference = 0.5), "
            "count(*) FILTER (preference < 0.5) FROM ev_labels WHERE source = ?",
            [row["source"]],
        ).fetchall()[0]
        variance = None if users.spread is None else users.spread.variance("jackknife")
        results.append(
            JudgeResult(
                name=PREFIX + row["source"],
                fingerprint="",
                mode="label",
                model=None,
                simulated=False,
                imported=False,
                feeds_decision=False,
                win_rate=estimate.point,
                ci_low=estimate.ci_low,
                ci_high=estimate.ci_high,
                standard_error=None if variance is None else math.sqrt(variance),
                confidence_level=1 - look_plan.alpha,
                n_pairs=row["n"],
                n_clusters=users.n_clusters,
                p_value=mcnemar(wins, losses).p_exact,
                method=f"{estimate.method}; p: exact McNemar, one look",
                wins=wins,
                ties=ties,
                losses=losses,
                asked_pairs=row["n"],
                status=estimate.status,
                note=estimate.note,
            )
        )
    return results


def agreements_of(connection: Connection, judge: JudgeSummary, *, alpha: float) -> list[Agreement]:
    """The judge against every source of labels on the pairs that have both, most labels first.

    Categories: control, tie, treatment, as far as either side uses them.
    """
    found = rows(
        connection,
        "SELECT source, sign(x - 0.5)::INTEGER AS judged, sign(l.preference - 0.5)::INTEGER AS labelled, count(*) AS n "
        "FROM ev_verdicts v JOIN ev_labels l USING (id) WHERE judge = ? AND fingerprint = ? AND complete GROUP BY ALL",
        [judge.name, judge.fingerprint],
    )
    by_source = {
        source: [row for row in found if row["source"] == source] for source in {row["source"] for row in found}
    }
    results = [_agreement(cells, source, alpha=alpha) for source, cells in sorted(by_source.items())]
    return sorted(results, key=lambda one: -one.n_labels)


def agreements_by_labeller(connection: Connection, judge: str, fingerprint: str, *, alpha: float) -> list[Agreement]:
    """The judge against every person who labelled, most labels first; labels without a name are one of their source."""
    found = rows(
        connection,
        "SELECT source, labeller, sign(x - 0.5)::INTEGER AS judged, sign(l.preference - 0.5)::INTEGER AS labelled, count(*) AS n "
        "FROM ev_verdicts v JOIN ev_label_rows l USING (id) WHERE judge = ? AND fingerprint = ? AND complete GROUP BY ALL",
        [judge, fingerprint],
    )
    people = sorted({(row["source"], row["labeller"] or "") for row in found})
    results = [
        _agreement(
            [row for row in found if (row["source"], row["labeller"] or "") == (source, labeller)],
            source,
            alpha=alpha,
            labeller=labeller or None,
        )
        for source, labeller in people
    ]
    return sorted(results, key=lambda one: -one.n_labels)


def agreements_of_people(connection: Connection, *, alpha: float) -> list[Agreement]:
    """Every two people on the pairs that both labelled, most pairs first; `source` is one's name, `labeller` the other's."""
    found = rows(
        connection,
        "SELECT coalesce(a.labeller, a.source) AS one, coalesce(b.labeller, b.source) AS other, "
        "sign(a.preference - 0.5)::INTEGER AS judged, sign(b.preference - 0.5)::INTEGER AS labelled, count(*) AS n "
        "FROM ev_label_rows a JOIN ev_label_rows b USING (id) "
        "WHERE coalesce(a.labeller, a.source) < coalesce(b.labeller, b.source) GROUP BY ALL",
    )
    both = sorted({(row["one"], row["other"]) for row in found})
    results = [
        _agreement([row for row in found if (row["one"], row["other"]) == pair], pair[0], alpha=alpha, labeller=pair[1])
        for pair in both
    ]
    return sorted(results, key=lambda one: -one.n_labels)


def _agreement(cells: Sequence[dict[str, Any]], source: str, *, alpha: float, labeller: str | None = None) -> Agreement:
    """From counts by the two sides' winners: −1 control, 0 tie, 1 treatment; categories as far as either side uses them."""
    used = sorted({row["judged"] for row in cells} | {row["labelled"] for row in cells})
    if len(used) < 2:
        used = sorted({*used, -1, 1})
    table = np.zeros((len(used), len(used)))
    for row in cells:
        table[used.index(row["judged"]), used.index(row["labelled"])] += row["n"]
    result = agreement(table, alpha=alpha)
    reach = None if result.ac1_se is None else Fixed().critical(alpha) * result.ac1_se
    known = result.ac1 is not None and reach is not None and reach > 0  # all alike: no spread, no interval
    return Agreement(
        source=source,
        n_labels=result.n,
        accuracy=result.accuracy.point,
        accuracy_low=result.accuracy.ci_low,
        accuracy_high=result.accuracy.ci_high,
        kappa=result.kappa.point,
        kappa_low=result.kappa.ci_low,
        kappa_high=result.kappa.ci_high,
        ac1=result.ac1,
        ac1_low=max(-1.0, (result.ac1 or 0.0) - (reach or 0.0)) if known else None,
        ac1_high=min(1.0, (result.ac1 or 0.0) + (reach or 0.0)) if known else None,
        labeller=labeller,
        status=result.status,
    )


# The rules of a simulated judge, in words: its verdicts must not be mistaken for a model's.


STATED_RULES = (
    "Stated rules broken",
    "each answer begins with 9 points and loses some for having no words, repeating the request, the wrong language, not the "
    "JSON, code or list asked for, the same sentence three times, being cut off, or being marked a refusal; more points win "
    "(evalpipe sim --judge checks)",
)
"""how the reasons of the simulated judge of stated rules begin, and its rule in words"""


def simulated_rule(connection: Connection, judge: JudgeSummary, experiment: str) -> str:
    """The rules the simulated judge applied, from its stored reasons."""
    begins, rule = STATED_RULES
    stated = rows(
        connection,
        "SELECT count(*) AS n FROM judgments WHERE experiment = ? AND judge = ? AND judge_fingerprint = ? "
        "AND starts_with(reasoning, ?)",
        [experiment, judge.name, judge.fingerprint, begins],
    )[0]["n"]
    return rule if stated else "stated rates of being right, or verdicts recorded before (evalpipe sim --judge)"
