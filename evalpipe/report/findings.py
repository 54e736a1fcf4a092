"""What is known, what is not, and what to do next: short sentences for people who decide and do not compute."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.metric_formatting import at_most
from evalpipe.analysis.result import Analysis, Horizon
from evalpipe.analysis.settings import CORRECTED, LABELS_TO_DECIDE
from evalpipe.report.metrics import MetricRow, is_win_rate, margin_text
from evalpipe.report.monthly_cost import MonthlyCost, dollars
from evalpipe.report.terms import ROLE_ORDER, ArmNames, plain
from evalpipe.text import (
    NBSP,
    format_count,
    format_counted,
    format_instant,
    format_usd,
    full_sentence,
    together,
    within_sentence,
)

MOST_NAMED = 4
"""sentences of a column; the decision in full has the rest"""
WIN_RATE = "win_rate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """A sentence with the finding it rests on, which picks its mark."""

    finding: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """How a metric's findings are said: "Slower", "Faster", "As fast", and what is asked: "it is slower"."""

    better: str
    worse: str
    equal: str
    ask: str
    name: str


_WORDS = {
    "win_rate": Words(
        better="Better answers",
        worse="Worse answers",
        equal="Equally good answers",
        ask="the answers are worse",
        name="Answers",
    ),
    CORRECTED: Words(
        better="Better answers, by people's labels",
        worse="Worse answers, by people's labels",
        equal="Equally good answers, by people's labels",
        ask="the answers are worse, by people's labels",
        name="Answers",
    ),
    "win_rate_later_turns": Words(
        better="Better answers later in conversations",
        worse="Worse answers later in conversations",
        equal="Equally good answers later in conversations",
        ask="answers later in conversations are worse",
        name="Answers later in conversations",
    ),
    "error_rate": Words(
        better="Fewer errors", worse="More errors", equal="As few errors", ask="there are more errors", name="Errors"
    ),
    "timeout_rate": Words(
        better="Fewer timeouts",
        worse="More timeouts",
        equal="As few timeouts",
        ask="there are more timeouts",
        name="Timeouts",
    ),
    "empty_rate": Words(
        better="Fewer empty answers",
        worse="More empty answers",
        equal="As few empty answers",
        ask="there are more empty answers",
        name="Empty answers",
    ),
    "p50_latency_ms": Words(better="Faster", worse="Slower", equal="As fast", ask="it is slower", name="Speed"),
    "p99_latency_ms": Words(
        better="Its slowest answers are faster",
        worse="Its slowest answers are slower",
        equal="Its slowest answers are as fast",
        ask="its slowest answers are slower",
        name="The slowest answers",
    ),
    "cost_per_request_usd": Words(
        better="Cheaper", worse="More expensive", equal="Costs as much", ask="it is more expensive", name="Cost"
    ),
}
_EVENT = {"error_rate": "error", "timeout_rate": "timeout", "empty_rate": "empty answer", "refusal_rate": "refusal"}
"""a single one, for the sentence that none occurred"""


def words_of(row: MetricRow) -> Words:
    """The words of a metric, the label where it has none of its own."""
    label = within_sentence(row.label)
    return _WORDS.get(
        row.name,
        Words(
            better=f"Better {label}",
            worse=f"Worse {label}",
            equal=f"No difference in {label} that matters",
            ask=f"{label} is worse",
            name=row.label,
        ),
    )


def known_and_open(
    rows: list[MetricRow], *, stop_level: float | None = None
) -> tuple[list[Statement], list[Statement]]:
    """What the metrics that decide show, and what they leave open; goals first, then benefits, then guardrails.

    Args:
        stop_level: the level of the harm rule, where nothing is shown at it: a loss beyond the margin then names it.
    """
    order = {role: place for place, role in enumerate(ROLE_ORDER)}
    deciding = sorted((row for row in rows if row.raw.role != "diagnostic"), key=lambda row: order.get(row.raw.role, 9))
    known: list[Statement] = []
    unknown: list[Statement] = []
    none = [row for row in deciding if is_zero(row) and not row.raw.non_inferior and row.finding == "inconclusive"]
    for row in deciding:
        if row in none:
            continue
        statement, is_known = _statement(row, stop_level)
        (known if is_known else unknown).append(statement)
    unknown += _none_seen(none)
    worst_first = {"worse": 0, "better": 1}
    known.sort(key=lambda one: worst_first.get(one.finding, 2))
    unknown.sort(key=lambda one: one.finding == "undefined")  # what the log cannot show last
    return known, unknown


def of_no_use(problems: list[str]) -> tuple[list[Statement], list[Statement]]:
    """What is known and open where the data cannot support a decision: the problems, and everything else."""
    known = [Statement(finding="worse", text=full_sentence(title)) for title in problems]
    return known, [Statement(finding="undefined", text="Which model is better: this data cannot show it.")]


def is_zero(row: MetricRow) -> bool:
    """Whether it is an event that occurred in neither arm."""
    raw = row.raw
    return (
        raw.unit == "ratio"
        and row.name in _EVENT
        and bool(raw.control.denominator and raw.treatment.denominator)
        and not raw.control.numerator
        and not raw.treatment.numerator
        and raw.status not in {"not_measured", "no_data", "missing_arm"}
    )


def zero_sentence(rows: list[MetricRow]) -> str:
    """ "no error, timeout or empty answer in 204 answers of each; up to 1.8 % would be compatible"; "" for no row.

    The limit is the treatment's own, the largest of the rows'.
    """
    if not rows:
        return ""
    named = [_EVENT[row.name] for row in rows]
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} or {named[-1]}"
    control = int(min(row.raw.control.denominator or 0 for row in rows))
    treatment = int(min(row.raw.treatment.denominator or 0 for row in rows))
    size = (
        f"{format_counted(treatment, 'answer')} of each"
        if control == treatment
        else f"{format_count(treatment)} and {format_count(control)} answers"
    )
    most = max((row.raw.treatment.ci_high or 0.0 for row in rows), default=0.0)
    limit = f"; up to {together(at_most(most))} would be compatible" if most else ""
    return f"no {listed} in {size}{limit}"


def _none_seen(rows: list[MetricRow]) -> list[Statement]:
    """Events that were not observed and that are not shown to be rare enough: one sentence for all of them."""
    if not rows:
        return []
    margins = {margin_text(row.raw) for row in rows}
    allowed = f"; you allow {margins.pop()} more" if len(margins) == 1 else ""
    named = _listed([within_sentence(words_of(row).name) for row in rows])
    return [Statement(finding="inconclusive", text=full_sentence(f"{named}: {zero_sentence(rows)}{allowed}"))]


def _statement(row: MetricRow, stop_level: float | None) -> tuple[Statement, bool]:
    """(the sentence, whether it is known) of one metric that decides."""
    words, allowed = words_of(row), margin_text(row.raw)
    if row.raw.status == "not_measured":
        return Statement(finding="undefined", text=f"{words.name}: the source of this log does not record them."), False
    if row.finding == "undefined":
        nobody = "too few pairs are labelled" if row.name == CORRECTED else "nobody judged them yet"
        why = nobody if is_win_rate(row.raw) and not row.raw.n else row.finding_note or "no conclusion"
        return Statement(finding="undefined", text=full_sentence(f"{words.name}: {why}")), False
    if row.finding == "equivalent":
        return Statement(finding="equivalent", text=f"{words.equal}: no difference beyond {allowed}."), True
    if row.finding == "better":
        return Statement(finding="better", text=f"{words.better}."), True
    has_margin = row.raw.margin > 0
    seen = f" (so far {row.difference}; {row.interval} would be compatible)" if row.has_interval else ""
    if row.finding == "worse" and has_margin and not row.is_beyond_margin and not row.raw.non_inferior:
        return Statement(
            finding="worse", text=f"{words.worse}: whether by more than the {allowed} you allow{seen}."
        ), False
    if row.finding == "worse":
        much = "by more than" if row.is_beyond_margin else "but by less than"
        stop = (
            f"; a stop for it takes {100 * (1 - stop_level):.4g}{NBSP}% confidence"
            if stop_level is not None and row.is_beyond_margin
            else ""
        )
        return Statement(
            finding="worse", text=f"{words.worse}{f', {much} the {allowed} you allow{stop}' if has_margin else ''}."
        ), True
    if row.raw.non_inferior:
        return Statement(
            finding="equivalent", text=f"{words.name}: not worse by more than the {allowed} you allow."
        ), True
    beyond = f" by more than the {allowed} you allow" if has_margin else ""
    return Statement(finding="inconclusive", text=f"Whether {words.ask}{beyond}{seen}."), False


def _listed(names: list[str]) -> str:
    """ "errors, timeouts and empty answers"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


LEADS = {
    "setup": "A model was set up wrongly, so its answers are no evidence.",
    "data": "The data failed a check, so they cannot support a decision.",
    "unmeasured": "Nothing measures yet which answers are better.",
    "no_gain": "A switch would gain nothing that matters.",
    "max_reached": "The planned number of requests is reached without a gain.",
    "futility": "What a switch can still gain is too little to wait for.",
}
"""the rule of the decision in a plain sentence; the others name what decided"""


def lead(analysis: Analysis, names: ArmNames, rows: list[MetricRow]) -> str:
    """The recommendation's reason in one sentence."""
    rule = analysis.decision.rule
    if rule == "unmeasured" and any(row.name == CORRECTED for row in rows) and analysis.funnel.judged_pairs:
        return "Too few pairs are labelled by people."
    if rule in LEADS:
        return LEADS[rule]
    deciding = [row for row in rows if row.raw.role != "diagnostic"]
    better = [row for row in deciding if row.finding == "better"]
    if rule == "ship":
        gains = _listed([within_sentence(words_of(row).better) for row in better]) if better else ""
        return f"{names.treatment}: {gains + ', and ' if gains else ''}nothing that matters is worse by more than you allow."
    if rule == "harm":
        harmful = [row for row in deciding if row.is_beyond_margin] or [
            row for row in deciding if row.finding == "worse"
        ]
        if harmful:
            return f"{names.treatment}: {_listed([within_sentence(words_of(row).worse) for row in harmful])}."
        return f"{names.treatment} was worse than you allow when this was decided."
    if rule == "collect_more":
        n = len(analysis.decision.blocking)
        return (
            f"{_counted_things(n)} to be shown before a switch is safe."
            if n
            else "Not everything that decides is settled yet."
        )
    return ""


def _counted_things(n: int) -> str:
    words = ("nothing", "One thing is", "Two things are", "Three things are", "Four things are", "Five things are")
    return f"{words[n] if n < len(words) else f'{n} things are'} still"


def next_steps(analysis: Analysis, names: ArmNames, cost: MonthlyCost | None, *, has_remedy: bool) -> list[str]:
    """What to do, and what waiting brings or costs: at most three sentences.

    Args:
        has_remedy: what mends the data is in a problem above.
    """
    decision = analysis.decision
    if decision.recommendation == "invalid":
        what = "it as described above" if has_remedy else "what the checks name below"
        return [f"Correct {what}, then look again: `evalpipe report`."]
    if decision.recommendation == "ship":
        gradual = (
            "Go on to the next stage of the canary."
            if analysis.mode == "canary"
            else (f"Move the traffic to {names.treatment} step by step, and watch errors and speed: `evalpipe canary`.")
        )
        return [gradual, *_price_of_waiting(cost)]
    if decision.recommendation == "keep":
        if decision.rule == "harm":
            first = f"Leave the traffic with {names.control}. More data will not change this."
        else:
            first = f"Leave the traffic with {names.control}, and stop copying requests to save their cost."
        return [first, "To try another model, prompt or setting, start an experiment under a new name."]
    return _collect_more(analysis)


def _price_of_waiting(cost: MonthlyCost | None) -> list[str]:
    if cost is None or cost.unit != "a month" or cost.change_high is None or cost.change_high >= 0:
        return []
    return [f"Each month of waiting costs about {dollars(-(cost.change or 0.0))}."]


JUDGE = "Have the answers judged: `evalpipe judge --estimate` shows what it costs, `evalpipe judge` does it."


def _collect_more(analysis: Analysis) -> list[str]:
    decision = analysis.decision
    horizon, label = decision.horizon, _label_more(analysis)
    if decision.rule == "unmeasured" and label and analysis.funnel.judged_pairs:
        return [label, "More requests alone are not enough."]
    if label and horizon is None:
        return [label, "Collect more requests, then look again: `evalpipe report`."]
    if decision.rule == "unmeasured" and horizon is None:
        return [JUDGE, "More requests alone are not enough."]
    if horizon is None:
        return ["Collect more requests, then look again: `evalpipe report`.", "No forecast can be made yet."]
    if not horizon.requests:
        return [*_without_more_requests(analysis, horizon), *([label] if label else [])]
    labels = {metric.name: metric.label or plain(metric.name) for metric in analysis.metrics}
    amounts = [f"{format_counted(horizon.requests, 'more request')}"]
    if horizon.days is not None:
        amounts.append(f"about {_days(horizon.days)} at this traffic")
    if horizon.judge_usd is not None:
        amounts.append(f"about {format_usd(horizon.judge_usd)} of judging")
    slowest = within_sentence(labels.get(horizon.metric, plain(horizon.metric)))
    end = (
        f"if the differences stay, {slowest} is then shown to be worse than you allow"
        if horizon.harm
        else (f"{slowest} takes longest, if the differences stay as they are")
    )
    unjudged = decision.rule == "unmeasured" and not analysis.funnel.judged_pairs and analysis.mode == "shadow"
    return [
        *([JUDGE] if unjudged else []),
        f"Collect about {', '.join(amounts)}.",
        full_sentence(end),
        *([label] if label else []),
    ]


def _without_more_requests(analysis: Analysis, horizon: Horizon) -> list[str]:
    """What is left to do where the log is long enough, if the differences stay as they are."""
    if not any(one.name == horizon.metric and one.group == "quality" for one in analysis.metrics):
        return ["Collect more requests, then look again: `evalpipe report`."]
    price = "" if horizon.judge_usd is None else f", for about {format_usd(horizon.judge_usd)}"
    return [
        f"Have more of the answers judged{price}: `evalpipe judge`." if analysis.funnel.judged_pairs else JUDGE,
        "The log has enough requests for a decision, if the differences stay as they are.",
    ]


def _label_more(analysis: Analysis) -> str:
    """How many pairs people are to label, where the decision waits for it; "" where it does not."""
    found = analysis.corrected
    blocking = [one for one in analysis.metrics if one.name in analysis.decision.blocking]
    row = next((one for one in blocking if one.name == CORRECTED), None)
    biased = any(one.status == "judge_biased" for one in blocking)
    if row is None and not biased:
        return ""
    needed = LABELS_TO_DECIDE if found is None else found.needed_labels
    if needed:
        return f"Label {format_counted(needed, 'more pair')}: `evalpipe label`."
    if row is None:  # labels = "off"
        return 'Set `labels = "auto"` in [decision], so that the corrected win rate decides.'
    if row.expected_more_requests:
        return f"Label about {format_counted(row.expected_more_requests, 'more pair')}: `evalpipe label`."
    return "Label more pairs: `evalpipe label`."


def _days(days: float) -> str:
    """ "3 days", "5 hours"."""
    if days < 1:
        return format_counted(max(1, round(days * 24)), "hour")
    return format_counted(round(days), "day")


def decided_at(analysis: Analysis) -> str:
    """When the decision in force was reached, where it was at another look than this one."""
    at = analysis.decision.decided_at
    return f"Decided{NBSP}{format_instant(at).split(',')[0]}" if at else ""
