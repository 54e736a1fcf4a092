"""Mixed results weighed by the user: U = Σ weight · difference / margin with one interval (policy `utility`)."""

from __future__ import annotations

from collections.abc import Sequence

from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.findings import Placed
from evalpipe.analysis.looking import Looking
from evalpipe.analysis.metrics import Quantile, Ratio
from evalpipe.core.experiment import MetricRole
from evalpipe.stats.estimate import Estimate
from evalpipe.stats.utility import UtilityGroup, utility


def measure_utility(connection: Connection, placed: Sequence[Placed], look: Looking) -> Estimate | None:
    """The weighted sum over goals, benefits and guardrails, each in units of its margin, above 0 = treatment better.

    Per user the linearised terms of all metrics are added before squaring, so that correlated metrics are not counted
    twice. Quantiles have no per-user sum and are left out, as are metrics without data, margin or weight. None where
    nothing is left.
    """
    chosen = [
        one
        for one in placed
        if one.role is not MetricRole.DIAGNOSTIC
        and one.terms.measurable
        and one.terms.weight > 0
        and one.terms.margin > 0
        and not isinstance(one.metric.values, Quantile)
        and one.measured.control.value is not None
        and one.measured.treatment.value is not None
    ]
    ratios = [
        one.metric.name for one in placed if isinstance(one.metric.values, Ratio)
    ]  # the columns m0, m1, … in order
    score = 0.0
    parts: list[str] = []
    for position, one in enumerate(chosen):
        point = one.measured.at(look.alpha, one.terms.scale).point
        if point is None:
            continue
        factor = one.terms.weight / one.terms.margin * one.metric.sign
        score += factor * point
        parts.append(_terms(one, factor, position, ratios, paired=look.paired))
    if not parts:
        return None
    connection.execute("CREATE OR REPLACE TEMP TABLE ev_terms AS " + " UNION ALL ".join(parts))
    sides = ["true"] if look.paired else ["NOT treated", "treated"]
    groups = []
    for side in sides:
        row = rows(
            connection,
            "WITH e AS (SELECT u, sum(e) AS e FROM ev_terms WHERE " + side + " GROUP BY u), "
            "m AS (SELECT avg(e) AS mean FROM e) "
            "SELECT count(*) AS g, sum((e - mean) * (e - mean)) AS squares, sum(pow(e - mean, 3)) AS cubes FROM e, m",
        )[0]
        groups.append(UtilityGroup(n_clusters=row["g"], sum_squares=row["squares"] or 0.0, m3sum=row["cubes"]))
    n = max((one.measured.treatment.n for one in chosen), default=0)
    return utility(score, groups, n=n, multiplier=look.multiplier("utility"), alpha=look.alpha)


def _terms(one: Placed, factor: float, position: int, ratios: Sequence[str], *, paired: bool) -> str:
    """SELECT of (u, treated, e): the users' linearised terms of one metric, times its weight.

    Relative metrics: each arm's term over its own value (the log's derivative).
    """
    if isinstance(one.metric.values, Ratio):
        column, source, condition = f"m{ratios.index(one.metric.name)}", "ev_users", "true"
        st, wt, sc, wc = (f"{column}_{part}" for part in ("st", "wt", "sc", "wc"))
    else:
        source, condition = "ev_quality", f"metric = '{one.metric.name}'"
        st, wt, sc, wc = "st", "wt", "sc", "wc"
    divided = one.terms.scale == "relative"
    by_t, by_c = ("/ r_t", "/ r_c") if divided else ("", "")
    if one.metric.name == "win_rate" and divided:
        by_t = by_c = "/ 0.5"
    total = f"t{position}"
    treated = f"(sum({st}) - r_t * sum({wt})) / w_t {by_t}"
    control = f"(sum({sc}) - r_c * sum({wc})) / w_c {by_c}"
    head = (
        f"(SELECT sum({wt}) AS w_t, sum({wc}) AS w_c, sum({st}) / sum({wt}) AS r_t, sum({sc}) / sum({wc}) AS r_c "
        f"FROM {source} WHERE {condition}) {total}"
    )
    body = f"FROM {source}, {head} WHERE {condition} GROUP BY u, w_t, w_c, r_t, r_c"
    if paired:
        return f"SELECT u, true AS treated, {factor!r}::DOUBLE * ({treated} - ({control})) AS e {body}"
    return (
        f"SELECT u, true AS treated, {factor!r}::DOUBLE * ({treated}) AS e {body} HAVING sum({wt}) > 0 "
        f"UNION ALL SELECT u, false AS treated, {factor!r}::DOUBLE * ({control}) AS e {body} HAVING sum({wc}) > 0"
    )
