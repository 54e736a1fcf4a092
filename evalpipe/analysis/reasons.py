"""The decision in sentences: a headline to quote, the reasons in order of weight, and what would change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evalpipe.analysis.decision import DecisionOutcome
from evalpipe.analysis.forecast import MAX_REQUESTS
from evalpipe.analysis.metric_formatting import (
    allowed,
    amount,
    at_most,
    change,
    count,
    format_metric,
    is_beyond_margin,
    listed,
    percent,
    relative_change,
    sentence,
)
from evalpipe.analysis.result import Check, Horizon, MetricResult
from evalpipe.analysis.settings import CORRECTED, Settings
from evalpipe.models import MetricRole, Policy
from evalpipe.stats.estimates import Estimate
from evalpipe.text import MINUS

WAITING = {
    "no_data": "nothing was measured",
    "missing_arm": "one arm has no values",
    "missing_differs": "too many values are unknown",
    "not_measured": "the source of the log does not measure it",
    "n_lt_2": "there is one value only",
    "one_cluster": "all values come from one user",
    "too_few_clusters": "fewer than five users with values in an arm were seen",
    "zero_variance": "the values never vary, so no interval can be computed (where that is by design, make it a diagnostic)",
    "tail_too_small": "too few requests lie beyond the quantile",
    "too_few_events": "too few events were seen to look early",
    "burn_in": "it is too early to look",
    "relative_undefined": "a ratio needs both arms above zero (set an absolute margin, or make it a diagnostic)",
    "unreliable_judge": "the judge is not reliable",
    "judge_biased": "the judge does not err alike for both arms",
    "too_few_labels": "there are too few labels",
    "length_confounded": "longer answers win, and at equal length the other arm does",
    "invalid_srm": "the data are not valid",
}
SAME_AS_COST = frozenset(
    {"input_tokens", "output_tokens", "tokens_used", "cost_per_1000_requests_usd", "cost_per_ok_answer_usd"}
)
"""what the cost of a request is made of, or nearly the same: named only where that is not measured"""
MOST_DIAGNOSTICS = 2
NO_GOAL = (
    "nothing measures the quality of the answers: judge them, collect ratings, or set "
    'policy = "noninferiority" in [decision] if the guardrails alone are to decide'
)
HARM_STANDS = (
    "No further data: a keep by harm stands. Only an exclusion of a time that it rests on (`evalpipe exclude`), or a change of "
    "what decides (metrics, roles, margins, judge, prices), undoes it."
)
NOT_JUDGED = "no pair has been judged: run `evalpipe judge`"


def headline(
    ruling: DecisionOutcome, results: Mapping[str, MetricResult], settings: Settings, problems: Sequence[str] = ()
) -> str:
    """One sentence, and a second one where a diagnostic is far beyond its margin.

    Args:
        problems: set-up faults or invalid data, in sentences, where they decide.
    """
    first = sentence(_headline(ruling, results, settings, problems))
    worse = "" if ruling.rule in {"setup", "harm", "data"} else _worse_diagnostics(ruling, results, short=True)
    return f"{first} {sentence(worse)}" if worse else first


def _headline(
    ruling: DecisionOutcome, results: Mapping[str, MetricResult], settings: Settings, problems: Sequence[str]
) -> str:
    rule = ruling.rule
    if rule in {"setup", "data"}:
        return f"No decision can be made: {problems[0]}"
    if rule == "harm":
        return f"Keep control: {_default_harm(ruling, results) if ruling.default_harm else _harm(results[ruling.harmful[0]])}"
    if rule == "ship":
        return f"Ship the treatment: {_shipped(ruling, results)}"
    if rule in {"no_gain", "max_reached", "futility"}:
        return f"Keep control: {_ended(ruling, results, settings)}"
    if rule == "unmeasured":
        return f"Collect more data: {_unmeasured(ruling, results)}"
    blocked = next((_statement(results[name], ruling) for name in _blocking(ruling, results)), "")
    return f"Collect more data: {blocked}" if blocked else "Collect more data"


def _shipped(ruling: DecisionOutcome, results: Mapping[str, MetricResult]) -> str:
    """What was won; a loss inside the margin is in the same sentence."""
    goals = [name for name in ruling.winning if results[name].role == MetricRole.PRIMARY.value]
    benefits = [name for name in ruling.winning if name not in goals]
    others = _count_within(ruling, results)
    although = ""
    if ruling.slightly_worse:
        lost = results[ruling.slightly_worse[0]]
        although = f", although {change(lost)}, a loss within the {allowed(lost)} allowed"
    if ruling.policy is Policy.UTILITY:
        return f"weighed by the configured weights, its gains outweigh its losses{although}, and {others}"
    if ruling.policy is Policy.NONINFERIORITY and not ruling.winning:
        return f"{others}, as the policy `noninferiority` asks{although}"
    if goals and not although:
        return f"{change(results[goals[0]], subject='its')}, and {others}"
    if benefits:
        won = results[benefits[0]]
        if although:
            return f"{change(won)}{although}; {others}"
        equal = "as good as control within the margin" if _goals(results) else "not worse than control"
        return f"{equal}, {relative_change(won)}, and {others}"
    return f"{change(results[goals[0]], subject='its')}{although}; {others}"


def _count_within(ruling: DecisionOutcome, results: Mapping[str, MetricResult]) -> str:
    guardrails = [
        r
        for r in results.values()
        if r.role == MetricRole.GUARDRAIL.value and r.name in ruling.verdicts and r.measurable
    ]
    if not guardrails:
        return "no guardrail was measured"
    open_ = [r.label[:1].lower() + r.label[1:] for r in guardrails if not r.non_inferior]
    if not open_:
        return "every guardrail is within its margin"
    return f"every guardrail is within its margin but {listed(open_)}, of which there was no case to measure"


def reasons(
    ruling: DecisionOutcome,
    results: Mapping[str, MetricResult],
    settings: Settings,
    *,
    problems: Sequence[str],
    invalid: Sequence[str],
    checks: Sequence[Check],
    utility: Estimate | None,
    horizon: Horizon | None = None,
) -> list[str]:
    """Most important first: what decided, what else was found on the metrics that decide, what qualifies it."""
    found: list[str] = list(problems) if ruling.rule in {"setup", "data"} else []
    if ruling.rule == "unmeasured":
        found.append(_unmeasured(ruling, results))
    found += [_harm(results[name]) for name in ruling.harmful]
    if ruling.default_harm:
        found.append(_default_harm(ruling, results))
    if ruling.rule in {"no_gain", "max_reached", "futility"}:
        found.append(_ended(ruling, results, settings))
    if ruling.rule == "harm" and invalid:
        found += [f"besides, {reason}" for reason in invalid]
    if ruling.policy is Policy.NONINFERIORITY and not _goals(results):
        found.append(
            "policy `noninferiority`: the guardrails alone decide; ship when none is worse by more than its margin"
        )
    for result in _by_weight(ruling, results):
        if result.name not in ruling.harmful and result.name not in ruling.unmeasured:
            found.append(_statement(result, ruling))
    worse = _worse_diagnostics(ruling, results)
    if worse:
        found.append(worse)
    if horizon is not None:
        found.append(horizon_sentence(horizon, results))
    if utility is not None and utility.point is not None and utility.ci_low is not None and utility.ci_high is not None:
        side = (
            "gains outweigh losses"
            if utility.ci_low > 0
            else ("losses outweigh gains" if utility.ci_high < 0 else "the sign is open")
        )
        sums = f"{utility.point:+.2f} ({utility.ci_low:+.2f} to {utility.ci_high:+.2f})".replace("-", MINUS)
        found.append(f"the weighted sum, in units of the margins, is {sums}: {side}")
    if ruling.not_measurable:
        names = listed([_lower(results[name].label) for name in ruling.not_measurable])
        found.append(f"not measured by this log, so not part of the decision: {names}")
    levels = _levels(ruling, results, settings)
    if levels:
        found.append(levels)
    found += [f"warning: {check.detail}" for check in checks if check.status == "warn" and check.name in NOTABLE]
    return [sentence(text) for text in dict.fromkeys(found)]


NOTABLE = frozenset(
    {
        "simulated_judge",
        "judge_family",
        "price_unknown",
        "one_user_dominates",
        "units",
        "uncopied",
        "arm_models",
        "drift",
        "empty_answers",
        "later_turns",
        "short_period",
        "label_sampling",
    }
)


def horizon_sentence(horizon: Horizon, results: Mapping[str, MetricResult]) -> str:
    """ "About 4,300 more requests (3 days at this traffic, $2.10 of judging) ..." """
    extra = []
    if horizon.days is not None and horizon.requests:
        extra.append(f"{_days(horizon.days)} at this traffic")
    if horizon.judge_usd is not None:
        extra.append(f"{amount(horizon.judge_usd, 'usd')} of judging")
    detail = f" ({', '.join(extra)})" if extra else ""
    label = _lower(results[horizon.metric].label) if horizon.metric in results else horizon.metric.replace("_", " ")
    # With pairs in the log that are not judged yet it takes verdicts, not requests.
    more = "more verdicts on the requests in the log"
    if horizon.requests:
        more = f"about {count(horizon.requests)} more request{'' if horizon.requests == 1 else 's'}"
    if horizon.metric == MAX_REQUESTS:
        return f"{more}{detail} until max_requests ends the experiment"
    if horizon.harm:
        return f"{more}{detail} until {label} is shown to be worse than allowed, if the differences stay as they are"
    return f"{more}{detail} until {label}, the slowest, is settled, if the differences stay as they are"


def _days(days: float) -> str:
    if days < 1:
        return "less than a day"
    return f"{days:.0f} day{'' if round(days) == 1 else 's'}"


def what_would_change(
    ruling: DecisionOutcome, results: Mapping[str, MetricResult], checks: Sequence[Check], horizon: Horizon | None
) -> list[str]:
    """What would lead to another decision. After harm no further data; with a set-up fault or invalid data only what mends
    them."""
    if ruling.rule == "ship":
        return []
    if ruling.rule == "harm":
        return [HARM_STANDS]
    if ruling.rule in {"setup", "data"}:
        return [sentence(check.remedy) for check in checks if check.status == "fail" and check.remedy]
    found = [_open(results[name]) for name in _blocking(ruling, results)]
    if ruling.rule == "unmeasured":
        found.insert(0, _unmeasured(ruling, results))
    if ruling.rule == "max_reached" and found:
        found.insert(0, "a larger max_requests: the planned end is reached")
    if ruling.rule == "futility" and not ruling.outweighed:
        found.insert(0, "a smaller min_effect_of_interest")
    if ruling.outweighed:
        found = ["other weights or margins, or smaller losses"]
    if ruling.rule == "no_gain":
        found = ["a difference that exceeds its margin, or smaller margins in [decision.metrics]"]
    if horizon is not None and ruling.rule == "collect_more":
        found.insert(0, horizon_sentence(horizon, results))
    return [sentence(text) for text in dict.fromkeys(found) if text]


def blocking_metrics(ruling: DecisionOutcome, results: Mapping[str, MetricResult]) -> list[str]:
    """The metrics that keep the treatment from being shipped, most important first."""
    return _blocking(ruling, results)


def _blocking(ruling: DecisionOutcome, results: Mapping[str, MetricResult]) -> list[str]:
    """Goals with a loss, metrics not shown to be within their margin, and (where a win is needed and none is there) the goals
    and benefits."""
    missing: list[str] = []
    if not ruling.winning and ruling.policy is not Policy.NONINFERIORITY:
        missing = [*_goals(results), *_benefits(results)]
    found = [name for name in [*ruling.losing, *ruling.blocking, *missing] if name not in ruling.not_measurable]
    return [name for name in dict.fromkeys(found) if name in results]


def _unmeasured(ruling: DecisionOutcome, results: Mapping[str, MetricResult]) -> str:
    if not ruling.unmeasured:
        return NO_GOAL
    name = ruling.unmeasured[0]
    if name == "win_rate":
        return results[name].note or NOT_JUDGED
    if name == CORRECTED and results[name].note:
        return str(results[name].note)
    return f"{_lower(results[name].label)} is a goal and was not measured yet"


def _open(result: MetricResult) -> str:
    """What is still needed of one metric."""
    what = result.label
    if result.status != "ok":
        return f"{what}: {_why(result)}"
    if result.expected_more_requests:
        unit = {"win_rate": "judged pairs", CORRECTED: "labels"}.get(result.name, "requests")
        return (
            f"{what}: about {count(result.expected_more_requests)} more {unit} at the present noise, "
            "if the difference stays as it is"
        )
    if result.finding == "worse" and is_beyond_margin(result):
        return f"{what}: it is worse by more than the {allowed(result)} allowed"
    if result.finding == "worse" and not result.non_inferior:
        return f"{what}: it is worse, and a loss of more than the {allowed(result)} allowed is not ruled out"
    return f"{what}: more requests" if result.finding == "inconclusive" else ""


def _goals(results: Mapping[str, MetricResult]) -> list[str]:
    return [r.name for r in results.values() if r.role == MetricRole.PRIMARY.value and r.measurable]


def _benefits(results: Mapping[str, MetricResult]) -> list[str]:
    return [r.name for r in results.values() if r.role == MetricRole.BENEFIT.value and r.measurable]


def _by_weight(ruling: DecisionOutcome, results: Mapping[str, MetricResult]) -> list[MetricResult]:
    """The metrics that decide: what decided first, then goals and benefits, then what is settled, then what is open."""
    deciding = [
        result
        for name, result in results.items()
        if name in ruling.verdicts and result.role != MetricRole.DIAGNOSTIC.value and result.measurable
    ]
    decisive = {"ship": ruling.winning, "collect_more": _blocking(ruling, results)}.get(ruling.rule, [])

    def weight(result: MetricResult) -> tuple[int, int]:
        if result.name in decisive:
            return 0, decisive.index(result.name)
        if result.role == MetricRole.PRIMARY.value:
            return 1, 0
        if result.role == MetricRole.BENEFIT.value:
            return 2, 0
        return (3 if result.non_inferior or result.finding in {"better", "worse"} else 4), 0

    return sorted(deciding, key=weight)


def _ended(ruling: DecisionOutcome, results: Mapping[str, MetricResult], settings: Settings) -> str:
    """Why control is kept although no harm was found."""
    if ruling.rule == "max_reached":
        return f"the planned {count(settings.max_requests)} requests are in, and the treatment has not won"
    if ruling.outweighed:
        return "weighed by the configured weights, the treatment's losses outweigh its gains"
    if ruling.rule == "futility":
        return "whatever the treatment gains is less than the configured min_effect_of_interest"
    candidates = [results[name] for name in [*_goals(results), *_benefits(results)]]
    within = [_lower(one.label) for one in candidates if one.finding == "equivalent"]
    worse = [_lower(one.label) for one in candidates if one.finding != "equivalent"]
    parts = [f"{listed(worse)} {'is' if len(worse) == 1 else 'are'} worse"] if worse else []
    if within:
        verb, whose = ("differs", "its margin") if len(within) == 1 else ("differ", "their margins")
        parts.append(f"{listed(within)} {verb} by less than {whose}")
    return f"{'no difference that matters' if ruling.all_within else 'nothing is gained'}: {', and '.join(parts)}"


def _harm(result: MetricResult) -> str:
    return f"{change(result)}, worse by more than the {allowed(result)} allowed"


def _default_harm(ruling: DecisionOutcome, results: Mapping[str, MetricResult]) -> str:
    worst = results[ruling.harmful[0]]
    won = next(results[name] for name in ruling.winning if results[name].role == MetricRole.PRIMARY.value)
    size = (
        percent(abs(worst.relative)) if worst.relative is not None else amount(abs(worst.difference or 0), worst.unit)
    )
    kind = "slower" if worst.group == "performance" else "more expensive"
    return (
        f"better ({change(won, subject='its')}), but {size} {kind} than control, beyond the {allowed(worst)} allowed by default: "
        f"set margin in [decision.metrics.{worst.name}] if that is acceptable"
    )


def _worse_diagnostics(ruling: DecisionOutcome, results: Mapping[str, MetricResult], *, short: bool = False) -> str:
    """Diagnostics beyond their margin, at most two by name (`short`: with the difference only); tokens only where cost is not
    measured."""
    cost = results.get("cost_per_request_usd")
    has_cost = cost is not None and cost.status == "ok"
    names = [name for name in ruling.worse_diagnostics if name in results and not (has_cost and name in SAME_AS_COST)]
    if not names:
        return ""
    shown = [results[name] for name in names[:MOST_DIAGNOSTICS]]
    named = "; ".join(f"{_lower(one.label)} {format_metric(one).difference}" if short else change(one) for one in shown)
    rest = len(names) - MOST_DIAGNOSTICS
    more = f", and {rest} more diagnostic{'' if rest == 1 else 's'}" if rest > 0 else ""
    return f"beyond the margin, though not deciding: {named}{more}"


def _statement(result: MetricResult, ruling: DecisionOutcome) -> str:
    if result.status != "ok":
        return f"{_lower(result.label)}: no conclusion, {_why(result)}"
    what = change(result)
    if result.name == "empty_rate" and not result.treatment.numerator:
        limit = result.treatment.ci_high
        most = f" (up to {at_most(limit)} would be compatible)" if limit else ""
        return f"none of {count(result.treatment.n)} treatment answers is empty{most}"
    candidate = result.role in {MetricRole.PRIMARY.value, MetricRole.BENEFIT.value}
    if candidate and result.name in ruling.winning:
        small = ", a difference smaller than its margin" if result.finding == "equivalent" else ""
        return f"{what}: better{small}"
    if result.name in ruling.slightly_worse and (result.non_inferior or result.finding != "worse"):
        inside = f", within the {allowed(result)} allowed" if result.non_inferior else ""
        return f"{what}: worse{inside}"
    if result.finding == "equivalent":
        return f"{what}: no difference that matters (less than {allowed(result)} either way)"
    if result.finding == "better":
        return f"{what}: better"
    if result.finding == "worse":
        if result.non_inferior:
            return f"{what}: worse, but within the {allowed(result)} allowed"
        if is_beyond_margin(result):
            return f"{what}: worse by more than the {allowed(result)} allowed{_short_of_harm(result, ruling)}"
        return f"{what}: worse, and it may be by more than the {allowed(result)} allowed"
    if result.non_inferior:
        return f"{what}: not worse by more than the {allowed(result)} allowed"
    if candidate and result.role == MetricRole.PRIMARY.value:
        return f"{what}: not decided yet"
    return f"{what}: it may still be worse by more than the {allowed(result)} allowed"


def _short_of_harm(result: MetricResult, ruling: DecisionOutcome) -> str:
    """Why a loss beyond the margin does not stop the experiment, where it does not."""
    if result.name in ruling.harmful:
        return ""
    return f", though not at the {_confidence(ruling.harm_level)} that a stop for harm takes"


def _confidence(level: float) -> str:
    return f"{100 * (1 - level):.4g} %"


def _levels(ruling: DecisionOutcome, results: Mapping[str, MetricResult], settings: Settings) -> str:
    """The levels, once."""
    n = round((1 - settings.confidence_level) / ruling.harm_level)
    parts = [f"all findings at {percent(settings.confidence_level)} confidence"]
    for names, what in ((_goals(results), "goals"), (_benefits(results), "benefits")):
        if len(names) > 1:
            parts.append(f"a win of one of {len(names)} {what} at {_confidence(ruling.levels[names[0]])}")
    if n > 1:
        parts.append(f"harm at {_confidence(ruling.harm_level)} (shared by {n} metrics)")
    return ", ".join(parts)


def _why(result: MetricResult) -> str:
    why = WAITING.get(result.status, result.status)
    return f"{why} ({result.note})" if result.note and "(" not in why else why


def _lower(label: str) -> str:
    return label[:1].lower() + label[1:]
