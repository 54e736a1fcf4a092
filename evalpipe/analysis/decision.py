"""From intervals to findings to the decision: the rules, without words and without data.

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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from evalpipe.core.experiment import MetricRole, Policy, Recommendation
from evalpipe.stats.labels import Verdict, label

Limits = tuple[float | None, float | None]
NO_VALUE = frozenset({"no_data", "missing_arm"})
"""statuses of a metric that has no difference yet"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
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
        by_default: the margin is the default one of a cost or latency metric: nobody chose it.
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
class Situation:
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
class Ruling:
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
    verdicts: dict[str, Verdict]
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


def decide(evidence: Sequence[Evidence], situation: Situation) -> Ruling:
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

    def low(item: Evidence, level: float) -> float | None:
        return item.limits(level)[0] if item.status == "ok" else None

    def high(item: Evidence, level: float) -> float | None:
        return item.limits(level)[1] if item.status == "ok" else None

    def better(item: Evidence, by: float = 0.0) -> bool:
        limit = low(item, levels[item.name])
        return limit is not None and limit > by

    def worse(item: Evidence, level: float, by: float = 0.0) -> bool:
        limit = high(item, level)
        return limit is not None and limit < -by

    def not_worse(item: Evidence) -> bool:
        limit = low(item, alpha)
        # A win at the stricter level implies it; the bets of the two levels differ, so it is asked, too.
        return (limit is not None and limit > -item.margin) or better(item)

    def within(item: Evidence) -> bool:
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
    return Ruling(
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


def _verdict(item: Evidence, alpha: float) -> Verdict:
    low, high = item.limits(alpha)
    return label(low, high, margin=item.margin, status=item.status)


def _names(items: Iterable[Evidence]) -> list[str]:
    return [item.name for item in items]
