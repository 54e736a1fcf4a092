"""The decision in sentences: a headline to quote, the reasons in order of weight, and what would change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evalpipe.analysis.decide import Ruling
from evalpipe.analysis.result import Check, MetricResult
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.wording import allowed, change, count, percent, sentence
from evalpipe.core.experiment import MetricRole, Policy
from evalpipe.core.format import MINUS
from evalpipe.stats.estimate import Estimate

WAITING = {
    "no_data": "nothing was measured",
    "missing_arm": "one arm has no values",
    "n_lt_2": "there is one value only",
    "one_cluster": "all values come from one user",
    "too_few_clusters": "fewer than five users with values in an arm were seen",
    "zero_variance": "the values never vary, so no interval can be had (where that is by design, make it a diagnostic)",
    "tail_too_small": "too few requests lie beyond the quantile",
    "too_few_events": "too few events were seen to look early",
    "burn_in": "it is too early to look",
    "relative_undefined": "a ratio needs both arms above zero (give an absolute margin, or make it a diagnostic)",
    "unreliable_judge": "the judge cannot be relied on",
    "length_confounded": "longer answers win, and at equal length the other arm does",
    "invalid_srm": "the data cannot be believed",
}


def headline(ruling: Ruling, results: Mapping[str, MetricResult], settings: Settings, invalid: Sequence[str]) -> str:
    """One sentence."""
    if ruling.rule == "harm":
        return sentence(f"Keep control: {_harm(results[ruling.harmful[0]])}")
    if ruling.rule == "invalid":
        return sentence(f"No decision can be made: {invalid[0]}")
    if ruling.rule == "ship":
        if ruling.winning:
            return sentence(
                f"Ship the treatment: {change(results[ruling.winning[0]], subject='its')}, and every guardrail holds"
            )
        if ruling.policy is Policy.UTILITY:
            return "Ship the treatment: weighed as you asked, its gains outweigh its losses, and every guardrail holds."
        return "Ship the treatment: every guardrail holds, none got worse by more than you allow."
    if ruling.rule in {"max_reached", "futility"}:
        return sentence(f"Keep control: {_ended(ruling, settings)}")
    blocked = _blocked(ruling, results)
    return sentence("Collect more data" + (f": {blocked}" if blocked else ""))


def reasons(
    ruling: Ruling,
    results: Mapping[str, MetricResult],
    settings: Settings,
    *,
    invalid: Sequence[str],
    checks: Sequence[Check],
    utility: Estimate | None,
    unmeasured: Sequence[MetricResult],
) -> list[str]:
    """Most important first: what decided, what else was found on the metrics that decide, what qualifies it."""
    deciding = _by_weight(ruling, results)
    found: list[str] = []
    found += [_harm(results[name]) for name in ruling.harmful]
    if ruling.rule in {"max_reached", "futility"}:
        found.append(_ended(ruling, settings))
    if ruling.rule == "invalid":
        found += list(invalid)
    elif ruling.harmful and invalid:
        found += [f"besides, {reason}" for reason in invalid]
    if ruling.policy is Policy.NONINFERIORITY and not any(r.role == MetricRole.PRIMARY for r in deciding):
        found.append(
            "no goal was measured, so the guardrails alone decide: ship when none is worse by more than its margin"
        )
    for result in deciding:
        if result.name not in ruling.harmful:
            found.append(_statement(result, ruling))
    if utility is not None and utility.point is not None and utility.ci_low is not None and utility.ci_high is not None:
        side = (
            "gains outweigh losses"
            if utility.ci_low > 0
            else ("losses outweigh gains" if utility.ci_high < 0 else "it is open which way it leans")
        )
        sums = f"{utility.point:+.2f} ({utility.ci_low:+.2f} to {utility.ci_high:+.2f})".replace("-", MINUS)
        found.append(f"weighed by your weights in units of the margins, the sum is {sums}: {side}")
    for result in unmeasured:
        found.append(f"{_lower(result.label)} was not measured in either arm, so it is not part of the decision")
    levels = _levels(ruling, deciding, settings)
    if levels:
        found.append(levels)
    found += [f"warning: {check.detail}" for check in checks if check.status == "warn" and check.name in NOTABLE]
    return [sentence(text) for text in found]


NOTABLE = frozenset({"simulated_judge", "judge_family", "price_unknown", "one_user_dominates", "arm_models", "drift"})


def what_would_change(ruling: Ruling, results: Mapping[str, MetricResult], checks: Sequence[Check]) -> list[str]:
    """What stands in the way of another verdict, and how many more requests it would take.

    After proven harm only the harm; where the data may not be believed only what mends them: nothing else would help."""
    if ruling.rule == "ship":
        return []
    if ruling.rule == "harm":
        return [
            sentence(f"if the {_lower(results[name].label)} were shown to lose no more than {allowed(results[name])}")
            for name in ruling.harmful
        ]
    if ruling.rule == "invalid":
        return [sentence(check.remedy) for check in checks if check.status == "fail" and check.remedy]
    found = [_open(results[name]) for name in _in_the_way(ruling, results)]
    if ruling.rule == "max_reached" and found:
        found.insert(0, "a larger max_requests: the end you set is reached")
    if ruling.rule == "futility" and not ruling.outweighed:
        found.insert(0, "a smaller min_effect_of_interest")
    if ruling.outweighed:
        found = ["other weights or margins, or smaller losses"]
    return [sentence(text) for text in found if text]


def more_requests(ruling: Ruling, results: Mapping[str, MetricResult]) -> int | None:
    """The longest wait: every guardrail has to hold, and one goal has to win."""
    if ruling.rule != "collect_more":
        return None

    def waits(names: Sequence[str]) -> list[int]:
        return [wait for name in names if (wait := results[name].expected_more_requests)]

    goals = waits([name for name in _in_the_way(ruling, results) if name not in ruling.blocking])
    return max([*waits(ruling.blocking), *([min(goals)] if goals else [])], default=None)


def _in_the_way(ruling: Ruling, results: Mapping[str, MetricResult]) -> list[str]:
    """What keeps the treatment from being shipped: losing goals, guardrails not shown to hold, and (where a goal has to win
    and none does) the goals."""
    missing = [] if ruling.winning or ruling.policy is Policy.NONINFERIORITY else _goals(results)
    return list(dict.fromkeys([*ruling.losing, *ruling.blocking, *missing]))


def _open(result: MetricResult) -> str:
    """What is still needed of one metric."""
    what = result.label
    if result.status != "ok":
        return f"{what}: {_why(result)}"
    if result.finding == "equivalent":
        return (
            f'{what}: there is no difference that matters; to ship without a win set policy = "noninferiority", '
            "to stop without one set max_requests or min_effect_of_interest"
        )
    if result.expected_more_requests:
        unit = "judged pairs" if result.name == "win_rate" else "requests"
        return (
            f"{what}: about {count(result.expected_more_requests)} more {unit} at the present noise, "
            "if the difference stays as it is"
        )
    return f"{what}: more requests" if result.finding == "inconclusive" else ""


def _goals(results: Mapping[str, MetricResult]) -> list[str]:
    return [r.name for r in results.values() if r.role == MetricRole.PRIMARY.value and r.status != "no_data"]


def _by_weight(ruling: Ruling, results: Mapping[str, MetricResult]) -> list[MetricResult]:
    """The metrics that decide, what decided first: the goals that won, or what stands in the way of shipping; then the goals,
    then what is settled, then what is open."""
    deciding = [
        result
        for name, result in results.items()
        if name in ruling.verdicts and result.role != MetricRole.DIAGNOSTIC.value
    ]
    decisive = {"ship": ruling.winning, "collect_more": _in_the_way(ruling, results)}.get(ruling.rule, [])

    def weight(result: MetricResult) -> tuple[int, int]:
        if result.name in decisive:
            return 0, decisive.index(result.name)
        if result.role == MetricRole.PRIMARY.value:
            return 1, 0
        return (2 if result.non_inferior or result.finding in {"better", "worse"} else 3), 0

    return sorted(deciding, key=weight)


def _ended(ruling: Ruling, settings: Settings) -> str:
    """Why control is kept although nothing was proven against the treatment."""
    if ruling.rule == "max_reached":
        return f"the planned {count(settings.max_requests)} requests are in, and the treatment has not won"
    if ruling.outweighed:
        return "weighed as you asked, the treatment's losses outweigh its gains"
    return "whatever the treatment gains is less than the effect you said is worth having"


def _harm(result: MetricResult) -> str:
    return f"{change(result)}: for certain a loss of more than the {allowed(result)} you allow"


def _statement(result: MetricResult, ruling: Ruling) -> str:
    if result.status != "ok":
        return f"{_lower(result.label)}: no conclusion yet, {_why(result)}"
    what = change(result)
    goal = result.role == MetricRole.PRIMARY.value
    if goal and result.name in ruling.winning:
        small = ", a real difference but smaller than you said matters" if result.finding == "equivalent" else ""
        return f"{what}: better{small}"
    if goal and result.name in ruling.losing:
        return f"{what}: worse"
    if result.finding == "equivalent":
        return f"{what}: no difference that matters (less than {allowed(result)} either way)"
    if result.finding == "better":
        return f"{what}: better"
    if result.finding == "worse":
        if result.non_inferior:
            return f"{what}: worse, but within the {allowed(result)} you allow"
        if result.margin > 0 and not goal:
            return f"{what}: worse, and perhaps by more than the {allowed(result)} you allow"
        return f"{what}: worse"
    if not goal and result.non_inferior:
        return f"{what}: at worst within the {allowed(result)} you allow"
    if not goal:
        return f"{what}: a loss of more than the {allowed(result)} you allow cannot be ruled out yet"
    return f"{what}: not decided yet"


def _blocked(ruling: Ruling, results: Mapping[str, MetricResult]) -> str:
    return next((_statement(results[name], ruling) for name in _in_the_way(ruling, results)), "")


def _levels(ruling: Ruling, deciding: Sequence[MetricResult], settings: Settings) -> str:
    goals = [r for r in deciding if r.role == MetricRole.PRIMARY.value]
    if len(goals) > 1:
        level = ruling.levels[goals[0].name]
        return (
            f"with {len(goals)} goals each is judged at the {100 * (1 - level):g} % level, guardrails at "
            f"{percent(settings.confidence_level)}, harm at {100 * (1 - ruling.harm_level):.4g} %"
        )
    if len(deciding) > 1:
        return (
            f"goals and guardrails are judged at the {percent(settings.confidence_level)} level, harm at "
            f"{100 * (1 - ruling.harm_level):.4g} % because {len(deciding)} metrics can raise it"
        )
    return ""


def _why(result: MetricResult) -> str:
    why = WAITING.get(result.status, result.status)
    return f"{why} ({result.note})" if result.note and "(" not in why else why


def _lower(label: str) -> str:
    return label[:1].lower() + label[1:]
