"""From intervals to findings to the decision: roles, margins, rules and utility, without words and without data.

Everything is oriented so that above 0 = treatment better; δ is a metric's margin. With G goals, B benefits and K metrics that
decide (goals, benefits, guardrails):

| role | may win | must be shown not worse than δ before a ship | may stop by harm |
|---|---|---|---|
| goal (`primary`) | lo(α/G) > 0 | at α | hi(α/K) < −δ |
| benefit | lo(α/B) > 0 | at α | hi(α/K) < −δ |
| guardrail | no | at α | hi(α/K) < −δ |
| diagnostic | no | no | no |

G, B and K count what the mode, the configuration and the source of the log make measurable, never what happens to have data.
A win is one-sided: goals err with α/2 and benefits with α/2, so a false ship when nothing differs has probability at most α
over all looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from evalpipe.analysis.intervals import Measured
from evalpipe.analysis.metrics import Metric, Quantile, Ratio
from evalpipe.analysis.result import ArmValue, Basis, BasisMetric, MetricResult
from evalpipe.analysis.settings import LookPlan, Settings
from evalpipe.analysis.sql import Connection, rows
from evalpipe.models import MetricRole, Policy, Recommendation
from evalpipe.stats.estimates import Estimate, IntervalConclusion, label
from evalpipe.stats.means import Scale
from evalpipe.stats.multiplicity import UtilityGroup, utility

Limits = tuple[float | None, float | None]
NO_VALUE = frozenset({"no_data", "missing_arm", "too_few_labels"})
"""statuses of a metric that has no difference yet"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricEvidence:
    """One metric before the rules.

    Attributes:
        name: the metric's name.
        role: its role in this experiment.
        margin: δ ≥ 0, in the unit of the limits.
        status: the estimate's status; only `ok` can win, hold or harm.
        limits: `limits(alpha)` = (low, high) of the two-sided interval at level 1 − alpha, oriented.
        weight: of the metric in the utility (policy `utility`).
        measurable: whether the source of the log can measure it at all. What it cannot is listed and decides nothing.
        blocks: whether it can block a ship yet. The share of empty answers blocks from the treatment's first empty answer on.
        by_default: the margin is the default one of a cost or latency metric.
    """

    name: str
    role: MetricRole
    margin: float
    status: str
    limits: Callable[[float], Limits]
    weight: float = 1.0
    measurable: bool = True
    blocks: bool = True
    by_default: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionContext:
    """What the rules need beside the metrics.

    Attributes:
        alpha: two-sided level, in (0, 1).
        policy: superiority | noninferiority | utility.
        min_effect_of_interest: smallest win worth waiting for, in the goals' unit; 0 = futility off.
        max_reached: the planned end of the experiment is reached.
        setup: set-up faults of an arm (wrong key, wrong model name), each in a sentence; empty: none.
        invalid: why the data cannot support a decision (sample ratio, lost copies, pairing); empty: nothing.
        utility_low: lower limit of the weighted sum (policy `utility`); None where it is not known.
        utility_high: upper limit of the weighted sum.
    """

    alpha: float
    policy: Policy = Policy.SUPERIORITY
    min_effect_of_interest: float = 0.0
    max_reached: bool = False
    setup: Sequence[str] = ()
    invalid: Sequence[str] = ()
    utility_low: float | None = None
    utility_high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionOutcome:
    """What the rules conclude.

    Attributes:
        recommendation: ship | keep | collect_more | invalid.
        rule: setup | harm | data | unmeasured | ship | no_gain | max_reached | futility | collect_more.
        policy: the configured policy.
        verdicts: the finding of every metric at the level of its role.
        levels: that level, by metric.
        harm_level: α/K.
        harmful: metrics with a loss beyond their margin at α/K, goals first.
        winning: goals and benefits with a win at their level.
        losing: goals with a loss at α/K.
        slightly_worse: goals with a loss at α that is shown to lie within the margin.
        blocking: metrics not shown to be within their margin.
        unmeasured: goals without a value.
        not_measurable: metrics the source of the log cannot measure.
        worse_diagnostics: diagnostics worse than their margin at α/(number of diagnostics).
        strong_win: a goal or benefit is better by more than its margin.
        default_harm: a goal wins, and only default margins of cost or latency are passed.
        all_within: every goal and benefit lies within ±δ and every guardrail holds.
        outweighed: by the user's weights the losses exceed the gains.
    """

    recommendation: Recommendation
    rule: str
    policy: Policy
    verdicts: dict[str, IntervalConclusion]
    levels: dict[str, float]
    harm_level: float
    harmful: list[str] = field(default_factory=list)
    winning: list[str] = field(default_factory=list)
    losing: list[str] = field(default_factory=list)
    slightly_worse: list[str] = field(default_factory=list)
    blocking: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)
    not_measurable: list[str] = field(default_factory=list)
    worse_diagnostics: list[str] = field(default_factory=list)
    strong_win: bool = False
    default_harm: bool = False
    all_within: bool = False
    outweighed: bool = False


def decide(evidence: Sequence[MetricEvidence], situation: DecisionContext) -> DecisionOutcome:
    """Apply the rules; the first that matches decides.

    Args:
        evidence: every metric of the experiment, the diagnostics among them.
        situation: level, policy and what else the rules read.

    Returns:
        The ruling, with the finding of every metric.
    """
    alpha, policy = situation.alpha, situation.policy
    deciding = [item for item in evidence if item.role is not MetricRole.DIAGNOSTIC and item.measurable]
    goals = [item for item in deciding if item.role is MetricRole.PRIMARY]
    benefits = [item for item in deciding if item.role is MetricRole.BENEFIT]
    guardrails = [item for item in deciding if item.role is MetricRole.GUARDRAIL]
    diagnostics = [item for item in evidence if item.role is MetricRole.DIAGNOSTIC and item.measurable]
    harm_level = alpha / max(1, len(deciding))
    shared = {MetricRole.PRIMARY: len(goals), MetricRole.BENEFIT: len(benefits)}
    levels = {item.name: alpha / max(1, shared.get(item.role, 1)) for item in evidence}
    verdicts = {item.name: _verdict(item, levels[item.name]) for item in evidence}

    def low(item: MetricEvidence, level: float) -> float | None:
        return item.limits(level)[0] if item.status == "ok" else None

    def high(item: MetricEvidence, level: float) -> float | None:
        return item.limits(level)[1] if item.status == "ok" else None

    def better(item: MetricEvidence, by: float = 0.0) -> bool:
        limit = low(item, levels[item.name])
        return limit is not None and limit > by

    def worse(item: MetricEvidence, level: float, by: float = 0.0) -> bool:
        limit = high(item, level)
        return limit is not None and limit < -by

    def not_worse(item: MetricEvidence) -> bool:
        limit = low(item, alpha)
        # A win at the stricter level implies it; the bets of the two levels differ, so it is asked, too.
        return (limit is not None and limit > -item.margin) or better(item)

    def within(item: MetricEvidence) -> bool:
        below, above = low(item, alpha), high(item, alpha)
        return below is not None and above is not None and -item.margin < below and above < item.margin

    candidates = [*goals, *benefits]
    harmful = [item for item in [*goals, *benefits, *guardrails] if worse(item, harm_level, item.margin)]
    winning = [item for item in candidates if better(item)]
    strong = [item for item in candidates if better(item, item.margin)]
    slightly_worse = [item for item in goals if worse(item, alpha)]
    blocking = [item for item in deciding if item.blocks and not not_worse(item)]
    unmeasured = [item for item in goals if item.status in NO_VALUE]
    all_within = bool(candidates) and all(within(item) for item in candidates) and not blocking
    wins = strong if slightly_worse else winning
    outweighed = policy is Policy.UTILITY and situation.utility_high is not None and situation.utility_high < 0
    if policy is Policy.SUPERIORITY:
        won = bool(wins)
    elif policy is Policy.UTILITY:
        won = situation.utility_low is not None and situation.utility_low > 0
    else:
        won = any(item.status == "ok" for item in deciding)
    no_gain = bool(candidates) and all(within(item) or worse(item, levels[item.name]) for item in candidates)
    futile = situation.min_effect_of_interest > 0 and bool(goals)
    futile = futile and all(
        (limit := high(item, levels[item.name])) is not None and limit < situation.min_effect_of_interest
        for item in goals
    )
    futile = futile and all((limit := high(item, levels[item.name])) is not None and limit <= 0 for item in benefits)

    if situation.setup:
        rule = "setup"
    elif harmful:
        rule = "harm"
    elif situation.invalid:
        rule = "data"
    elif policy is not Policy.NONINFERIORITY and (not goals or unmeasured):
        rule = "unmeasured"
    elif not blocking and won:
        rule = "ship"
    elif policy is not Policy.NONINFERIORITY and no_gain:
        rule = "no_gain"
    elif situation.max_reached:
        rule = "max_reached"
    elif futile or outweighed:
        rule = "futility"
    else:
        rule = "collect_more"
    return DecisionOutcome(
        recommendation=RECOMMENDATIONS[rule],
        rule=rule,
        policy=policy,
        verdicts=verdicts,
        levels=levels,
        harm_level=harm_level,
        harmful=_names(harmful),
        winning=_names(winning),
        losing=_names(item for item in goals if worse(item, harm_level)),
        slightly_worse=_names(slightly_worse),
        blocking=_names(blocking),
        unmeasured=_names(unmeasured),
        not_measurable=_names(
            item for item in evidence if item.role is not MetricRole.DIAGNOSTIC and not item.measurable
        ),
        worse_diagnostics=_names(
            item for item in diagnostics if worse(item, alpha / max(1, len(diagnostics)), item.margin)
        ),
        strong_win=bool(strong),
        default_harm=bool(harmful)
        and all(item.by_default for item in harmful)
        and any(item.role is MetricRole.PRIMARY for item in winning),
        all_within=all_within,
        outweighed=outweighed,
    )


RECOMMENDATIONS = {
    "setup": Recommendation.INVALID,
    "harm": Recommendation.KEEP,
    "data": Recommendation.INVALID,
    "unmeasured": Recommendation.COLLECT_MORE,
    "ship": Recommendation.SHIP,
    "no_gain": Recommendation.KEEP,
    "max_reached": Recommendation.KEEP,
    "futility": Recommendation.KEEP,
    "collect_more": Recommendation.COLLECT_MORE,
}
"""What each rule recommends, in the order in which they are asked."""


def _verdict(item: MetricEvidence, alpha: float) -> IntervalConclusion:
    low, high = item.limits(alpha)
    return label(low, high, margin=item.margin, status=item.status)


def _names(items: Iterable[MetricEvidence]) -> list[str]:
    return [item.name for item in items]


# A measured metric and its terms → one row of the decision table, and the evidence the rules read.


FROM_FIRST_EVENT = frozenset({"empty_rate"})
"""guardrails that block only from the treatment's first event on: with none seen, so rare an event would block for ever"""
DEFAULT_MARGIN_GROUPS = frozenset({"cost", "performance"})


# Which role and margin a metric has in this experiment: the user's where given, else the default for mode and source.


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What holds for a metric here.

    Attributes:
        role: goal, benefit, guardrail or diagnostic.
        scale: of the margin and the deciding interval.
        margin: δ ≥ 0, a share where `scale` is relative.
        weight: in the utility.
        measurable: whether the source of the log can measure it.
        default_margin: the margin is not configured.
    """

    role: MetricRole
    scale: Scale
    margin: float
    weight: float = 1.0
    measurable: bool = True
    default_margin: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionMetric:
    """A measured metric with the terms it has in this experiment."""

    measured: Measured
    terms: Terms

    @property
    def metric(self) -> Metric:
        return self.measured.metric

    @property
    def role(self) -> MetricRole:
        return self.terms.role

    @property
    def margin(self) -> float:
        """δ ≥ 0 on the margin's scale: the terms', but where it is not configured no less than the metric's resolution."""
        control = self.measured.control.value
        if not (self.terms.default_margin and self.terms.scale == "relative" and control):
            return self.terms.margin
        return max(self.terms.margin, self.metric.resolution / abs(control))


def assign_role(measured: Measured, settings: Settings, *, mode: str, sources: Mapping[str, bool]) -> DecisionMetric:
    """The metric under its terms (see `terms_of`)."""
    return DecisionMetric(measured=measured, terms=terms_of(measured.metric, settings, mode=mode, sources=sources))


def basis_of(placed: list[DecisionMetric], judge: str | None) -> Basis:
    """What decides: every goal, benefit and guardrail with its terms."""
    return Basis(
        metrics={
            one.metric.name: BasisMetric(
                role=one.role.value,
                margin=one.terms.margin,
                scale=one.terms.scale,
                weight=one.terms.weight,
                measurable=one.terms.measurable,
            )
            for one in placed
            if one.role is not MetricRole.DIAGNOSTIC
        },
        judge=judge,
    )


def evidence_of(placed: DecisionMetric, *, alpha: float) -> MetricEvidence:
    """What the rules read of a metric."""
    terms = placed.terms
    estimate = placed.measured.deciding(alpha, terms.scale)
    sign = placed.metric.sign

    @lru_cache(maxsize=8)
    def limits(level: float) -> Limits:
        found = placed.measured.deciding(level, terms.scale)
        low, high = found.ci_low, found.ci_high
        return (low, high) if sign > 0 else (_negative(high), _negative(low))

    name = placed.metric.name
    return MetricEvidence(
        name=name,
        role=terms.role,
        margin=placed.margin,
        status=estimate.status,
        limits=limits,
        weight=terms.weight,
        measurable=terms.measurable,
        blocks=not (name in FROM_FIRST_EVENT and not placed.measured.treatment.numerator),
        by_default=terms.default_margin and placed.metric.group in DEFAULT_MARGIN_GROUPS,
    )


def result_of(placed: DecisionMetric, *, alpha: float, ruling: DecisionOutcome | None) -> MetricResult:
    """The row of the decision table; its finding is the ruling's, at the level of its role."""
    item, terms = placed.metric, placed.terms
    if terms.scale == "relative":
        absolute, relative = placed.measured.both(alpha)
    else:
        absolute, relative = placed.measured.at(alpha, "absolute"), None
    deciding = relative if relative is not None else absolute
    verdict = ruling.verdicts.get(item.name) if ruling else None
    level = ruling.levels.get(item.name, alpha) if ruling else alpha
    notes = [deciding.note] if deciding.note else []
    if level != alpha:
        notes.append(
            f"the finding is at the {100 * (1 - level):.4g} % level: several metrics of its role share the risk"
        )
    missing = placed.measured.missing
    control, treatment = placed.measured.control, placed.measured.treatment
    if not terms.measurable:  # what the source cannot measure is no 0
        control = treatment = ArmValue(value=None, n=0)
        absolute = Estimate(point=None, confidence_level=1 - alpha, status="not_measured")
        relative, deciding, notes = None, absolute, []
    return MetricResult(
        name=item.name,
        label=item.label,
        group=item.group,
        unit=item.unit,
        direction=item.direction,
        role=terms.role.value,
        scale=terms.scale,
        control=control,
        treatment=treatment,
        difference=absolute.point,
        ci_low=absolute.ci_low,
        ci_high=absolute.ci_high,
        confidence_level=1 - alpha,
        p_value=deciding.p_value,
        margin=placed.margin,
        relative=None if relative is None else relative.point,
        relative_low=None if relative is None else relative.ci_low,
        relative_high=None if relative is None else relative.ci_high,
        standard_error=absolute.standard_error,
        skewness=deciding.skewness,
        n=deciding.n,
        n_clusters=deciding.n_clusters,
        method=deciding.method,
        estimand=item.estimand,
        status=deciding.status if terms.measurable else "not_measured",
        finding="undefined" if verdict is None or not terms.measurable else verdict.label,
        non_inferior=verdict is not None and terms.measurable and verdict.non_inferior,
        weight=terms.weight,
        note="; ".join(notes) or None,
        measurable=terms.measurable,
        default_margin=terms.default_margin,
        missing_control=None if missing is None else missing.control,
        missing_treatment=None if missing is None else missing.treatment,
        kinds_left_out=[] if missing is None else list(missing.kinds_left_out),
        share_left_out=0.0 if missing is None else missing.share_left_out,
    )


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


BY_SOURCE = frozenset({"user_rating", "relevance_score", "faithfulness_score"})
"""goals of a split only where there are ratings, or a pointwise judge's scores"""
MEASURED_BY_US = frozenset({"p50_latency_ms", "p99_latency_ms"})
"""latencies of a log that evalpipe did not measure inform; they decide only where the user gives them a role"""


def terms_of(item: Metric, settings: Settings, *, mode: str, sources: Mapping[str, bool]) -> Terms:
    """The terms of a metric.

    Args:
        mode: shadow | ab | canary.
        sources: by metric name, whether the log's source can measure it; a name that is missing: it can.
    """
    rule = settings.rule(item.name)
    default = item.role_shadow if mode == "shadow" else item.role_split
    measurable = sources.get(item.name, True)
    role = rule.role
    if role is None and settings.primary is not None:
        if item.name in settings.primary:
            role = "primary"
        elif default == "primary":
            role = "diagnostic"
    if role is not None and item.name in MEASURED_BY_US and sources.get("in_one_run", True):
        measurable = True  # asked for by the user: the log's own figures
    if role is None:
        absent = not measurable and item.name in BY_SOURCE | MEASURED_BY_US
        role = "diagnostic" if absent else default
    scale, margin = item.scale, item.margin
    if rule.margin is not None:
        scale, margin = ("relative" if rule.margin_relative else "absolute"), rule.margin
    return Terms(
        role=MetricRole(role),
        scale=scale,
        margin=margin,
        weight=rule.weight,
        measurable=measurable,
        default_margin=rule.margin is None,
    )


# Mixed results weighed by the user: U = Σ weight · difference / margin with one interval (policy `utility`).


def measure_utility(connection: Connection, placed: Sequence[DecisionMetric], look: LookPlan) -> Estimate | None:
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
        if one.measured.user_terms is not None:
            by_half = 2 if one.terms.scale == "relative" else 1
            parts.append(_given_terms(connection, one.measured.user_terms, factor * by_half))
            continue
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


def _given_terms(connection: Connection, terms: tuple[Sequence[int], Sequence[float]], factor: float) -> str:
    """SELECT of (u, treated, e) of the corrected win rate, whose users' parts of the error were computed with it."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_given_terms AS SELECT unnest($1::UBIGINT[]) AS u, unnest($2::DOUBLE[]) AS e",
        [list(terms[0]), list(terms[1])],
    )
    return f"SELECT u, true AS treated, {factor!r}::DOUBLE * e AS e FROM ev_given_terms"


def _terms(one: DecisionMetric, factor: float, position: int, ratios: Sequence[str], *, paired: bool) -> str:
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
