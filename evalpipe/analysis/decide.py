"""From intervals to findings to the decision: the rules of statistics.md 12, without words and without data.

Everything is oriented so that above 0 = treatment better. A metric's intervals are asked for at three levels: its own
(alpha; goals alpha/S) and the harm stop's (alpha/K).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from evalpipe.core.experiment import MetricRole, Policy, Recommendation
from evalpipe.stats.labels import Verdict, label

Limits = tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One metric before the rules: `limits(alpha)` = (low, high) oriented, `margin` in the same unit, `status` the
    estimate's."""

    name: str
    role: MetricRole
    margin: float
    status: str
    limits: Callable[[float], Limits]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What the rules need beside the metrics. `invalid`: why the data may not be believed (empty: they may)."""

    alpha: float
    policy: Policy = Policy.SUPERIORITY
    min_effect_of_interest: float = 0.0
    max_reached: bool = False
    invalid: Sequence[str] = ()
    utility_low: float | None = None
    utility_high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruling:
    """What the rules say. `rule`: harm | invalid | ship | max_reached | futility | collect_more.

    `verdicts`: the finding of every metric at the level its role is judged at. `harmful`: metrics that lose more than their
    margin for certain; `losing`: goals that lose for certain; `winning`: goals that win; `blocking`: guardrails not yet
    shown to be non-inferior. `policy`: the one in force (no goal at hand means noninferiority). `outweighed`: by the user's
    own weights the losses outweigh the gains for certain, whatever a goal won.
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
    blocking: list[str] = field(default_factory=list)
    outweighed: bool = False


def decide(evidence: Sequence[Evidence], situation: Situation) -> Ruling:
    """The first rule that matches, in the order of statistics.md 12."""
    deciding = [item for item in evidence if item.role is not MetricRole.DIAGNOSTIC]
    goals = [item for item in deciding if item.role is MetricRole.PRIMARY]
    guardrails = [item for item in deciding if item.role is MetricRole.GUARDRAIL]
    alpha = situation.alpha
    harm_level = alpha / max(1, len(deciding))
    levels = {item.name: alpha / max(1, len(goals)) if item.role is MetricRole.PRIMARY else alpha for item in evidence}
    verdicts = {item.name: _verdict(item, levels[item.name]) for item in evidence}
    policy = situation.policy if goals or situation.policy is Policy.UTILITY else Policy.NONINFERIORITY

    at_harm = {item.name: _verdict(item, harm_level) for item in deciding}
    harmful = [item.name for item in deciding if at_harm[item.name].inferior]
    losing = [item.name for item in goals if _certain_loss(item, harm_level)]
    # "Better at alpha/S" is its lower limit above 0, whatever the label: equivalent outranks better in the table.
    winning = [item.name for item in goals if _certain_win(item, levels[item.name])]
    blocking = [item.name for item in guardrails if not verdicts[item.name].non_inferior]

    # Mixed results are for the stated weights to decide: a goal that wins does not ship what they condemn.
    outweighed = policy is Policy.UTILITY and situation.utility_high is not None and situation.utility_high < 0

    def ruling(recommendation: Recommendation, rule: str) -> Ruling:
        return Ruling(
            recommendation=recommendation,
            rule=rule,
            policy=policy,
            verdicts=verdicts,
            levels=levels,
            harm_level=harm_level,
            harmful=harmful,
            winning=winning,
            losing=losing,
            blocking=blocking,
            outweighed=outweighed,
        )

    if harmful:
        return ruling(Recommendation.KEEP, "harm")
    if situation.invalid:
        return ruling(Recommendation.INVALID, "invalid")
    won = (
        bool(winning)
        or (policy is Policy.NONINFERIORITY and bool(guardrails))
        or (policy is Policy.UTILITY and situation.utility_low is not None and situation.utility_low > 0)
    )
    if not blocking and not losing and won and not outweighed:
        return ruling(Recommendation.SHIP, "ship")
    if situation.max_reached:
        return ruling(Recommendation.KEEP, "max_reached")
    small = situation.min_effect_of_interest > 0 and goals and all(_futile(item, levels, situation) for item in goals)
    if small or outweighed:
        return ruling(Recommendation.KEEP, "futility")
    return ruling(Recommendation.COLLECT_MORE, "collect_more")


def _verdict(item: Evidence, alpha: float) -> Verdict:
    low, high = item.limits(alpha)
    return label(low, high, margin=item.margin, status=item.status)


def _certain_win(item: Evidence, alpha: float) -> bool:
    low, _ = item.limits(alpha)
    return item.status == "ok" and low is not None and low > 0


def _certain_loss(item: Evidence, alpha: float) -> bool:
    _, high = item.limits(alpha)
    return item.status == "ok" and high is not None and high < 0


def _futile(item: Evidence, levels: dict[str, float], situation: Situation) -> bool:
    _, high = item.limits(levels[item.name])
    return item.status == "ok" and high is not None and high < situation.min_effect_of_interest
