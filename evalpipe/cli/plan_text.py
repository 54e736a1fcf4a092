"""What `evalpipe plan` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalpipe.analysis.metric_formatting import amount, percent
from evalpipe.analysis.planning import PlannedMetric

if TYPE_CHECKING:
    from evalpipe.workspace.plan import Plan


ROLES = {"primary": "goal"}


def plan_lines(plan: Plan) -> list[str]:
    """A table of what every metric needs, the slowest of them, days, the judge's dollars, and notes."""
    power, confidence = f"{100 * plan.power:.3g} %", f"{100 * plan.confidence_level:.4g} %"
    lines = []
    if plan.metrics:
        lines += [f"{plan.experiment}: what each metric has to show ({power} power, {confidence} confidence)", ""]
        lines += _table(plan)
        lines += ["", *_noise(plan)]
    if plan.unplanned:
        lines.append(f"Cannot be planned without a log: {_names(plan, plan.unplanned)}")
    if plan.not_measured:
        lines.append(f"Not measured by this log, so deciding nothing: {_names(plan, plan.not_measured)}")
    lines += _slowest(plan)
    lines += _judging(plan)
    return [*lines, *plan.notes]


def _table(plan: Plan) -> list[str]:
    """Metric, what it has to show, and the units: in one look, in half of the experiments, at most."""
    anytime = plan.looks == "anytime"
    head = ["", "to show", "in one look", "half are through by", "at most", "", "(noise)"]
    rows = [head]
    for one in plan.metrics:
        unit = ("judged pairs" if one.name == "win_rate" else "pairs") if plan.mode == "shadow" else "users"
        name = f"{one.label} ({ROLES.get(one.role, one.role)})"
        if one.may_win:
            rows.append(
                [name, f"better by {_size(one, one.effect)}", *_counts(one.n_fixed, one.n_typical, one.n_max), unit]
            )
            name = ""
        if (one.margin_counts or not one.may_win or plan.bottleneck is None) and one.n_noninferior is not None:
            held = _counts(one.n_noninferior, one.n_noninferior_typical, one.n_noninferior_max)
            rows.append([name, f"not worse by {_size(one, one.margin)}", *held, unit])
    kept = [row[:6] if anytime else [*row[:3], *row[4:6]] for row in rows]
    if not anytime and plan.looks == "fixed":
        kept = [[*row[:3], row[4]] for row in kept]
    numeric = range(2, len(kept[0]) - 1)
    widths = [max(len(row[column]) for row in kept) for column in range(len(kept[0]))]
    return [
        "  ".join(
            cell.rjust(widths[column]) if column in numeric else cell.ljust(widths[column])
            for column, cell in enumerate(row)
        ).rstrip()
        for row in kept
    ]


def _counts(fixed: int, typical: int | None, most: int | None) -> list[str]:
    return [f"{fixed:,}", "" if typical is None else f"{typical:,}", "" if most is None else f"{most:,}"]


def _size(one: PlannedMetric, size: float) -> str:
    """0.05 of a share: "5 points"; relative: "10 %"."""
    if one.scale == "relative":
        return percent(size)
    text = amount(size, one.unit, signed=True).lstrip("+")
    return "1 point" if text == "1 points" else text


def _noise(plan: Plan) -> list[str]:
    """Where the noise was taken from, the same source once."""
    sources: dict[str, list[str]] = {}
    for one in plan.metrics:
        sources.setdefault(one.sd_source, []).append(_lower(one.label))
    parts = [f"{', '.join(names)} from {source}" for source, names in sources.items()]
    lines = [f"Noise of {'; of '.join(parts)}."]
    if len(plan.metrics) == 1 and plan.metrics[0].n_equivalent and plan.metrics[0].may_win:
        one = plan.metrics[0]
        unit = "pairs" if plan.mode == "shadow" else "users"
        lines.append(
            f"If nothing differs: {one.n_noninferior or 0:,} {unit} show no loss of {_size(one, one.margin)}, "
            f"{one.n_equivalent:,} no difference of {_size(one, one.margin)} (one look)."
        )
    return lines


def _slowest(plan: Plan) -> list[str]:
    found = plan.bottleneck
    if found is None:
        return []
    labels = {one.name: _lower(one.label) for one in plan.metrics}
    anytime = plan.looks == "anytime"
    what = f"Slowest: {labels[found.metric]}, " if len(plan.metrics) > 1 else ""
    if anytime:
        half = f"about {found.requests:,} requests{_days(found.days)} in half of the experiments, "
        lines = [f"{what}{half}at most {found.requests_max:,}{_days(found.days_max)}: the planned size"]
    else:
        lines = [f"{what}{found.requests_max:,} requests{_days(found.days_max)}: the planned size"]
    lines[0] = lines[0][:1].upper() + lines[0][1:]
    if plan.requests_per_day is not None:
        lines.append(
            f"Traffic: {plan.requests_per_day:,.0f} requests a day, {100 * plan.share_of_requests:.3g} % of them compared"
        )
    elif plan.share_of_requests < 1:
        lines.append(f"{100 * plan.share_of_requests:.3g} % of the requests are compared")
    wider = plan.wider_margin
    if wider is not None:
        one = next(one for one in plan.metrics if one.name == wider.metric)
        count = wider.requests if anytime else wider.requests_max
        then = ""
        if wider.next != wider.metric:
            then = f"; then {labels[wider.next]} would be the slowest (about {wider.next_requests:,})"
        lines.append(
            f"With a margin of {_size(one, wider.margin)} instead of {_size(one, one.margin)}: about {count:,}{then}"
        )
    return lines


def _judging(plan: Plan) -> list[str]:
    if plan.judge is None or plan.judge_pairs is None:
        return []
    counts = f"{plan.judge_pairs:,} pairs, {plan.judge_calls or 0:,} calls"
    if plan.judge_usd is None:
        return [f"Judging with {plan.judge} (`--until-decided`): {counts}"]
    most = f", ${plan.judge_usd_max or 0:,.2f} at most" if plan.judge_usd_max != plan.judge_usd else ""
    return [
        f"Judging with {plan.judge} (`--until-decided`): {counts}, ${plan.judge_usd:,.2f}{most} "
        f"(${plan.judge_usd_per_pair or 0:.5f} a pair)"
    ]


def _days(days: float | None) -> str:
    return "" if days is None else f" ({days:,.1f} days)"


def _names(plan: Plan, names: list[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def _lower(label: str) -> str:
    return label[:1].lower() + label[1:]
