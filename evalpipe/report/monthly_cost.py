"""What the arms cost a month: the cost of a request times the requests a month, as configured or as measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from evalpipe.analysis.forecast import requests_per_day
from evalpipe.analysis.result import Analysis, MetricResult
from evalpipe.text import MINUS, NBSP, format_count, format_counted, format_number, format_usd

DAYS_A_MONTH = 365.25 / 12
COST = "cost_per_request_usd"
MONEY_DIGITS = 3
"""significant digits of dollars a month from 100 dollars on"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonthlyRequests:
    """Requests a month. `source`: where the number is from, in words."""

    requests: float
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MonthlyCost:
    """Dollars of both arms and what a switch changes, over `unit` ("a month", or "per 1,000 requests" where the traffic is
    not known). `change`: dollars more (above 0) or less, with its interval; None without a valid one."""

    control: float
    treatment: float
    unit: str
    source: str
    change: float | None
    change_low: float | None
    change_high: float | None


def monthly_requests(analysis: Analysis) -> MonthlyRequests | None:
    """The configured requests a month, else the traffic of the log; None where it has no usable times or spans under an hour."""
    configured = about(analysis.provenance).get("requests_per_month")
    if isinstance(configured, int | float) and configured > 0:
        return MonthlyRequests(requests=float(configured), source=f"{format_count(configured)} requests a month")
    first, last = (_instant(analysis.provenance.get(key)) for key in ("first_at", "last_at"))
    if first is None or last is None:
        return None
    # The copies' own tally counts every request that could have been copied, whether it was or not.
    seen = sum(analysis.funnel.shadow.values()) or analysis.funnel.requests
    per_day = requests_per_day(first.isoformat(), (last - _excluded(analysis, first, last)).isoformat(), seen)
    if not per_day:
        return None
    requests = per_day * DAYS_A_MONTH
    days = (last - first).total_seconds() / 86400
    span = format_counted(round(days), "day") if days >= 1.5 else format_counted(round(days * 24), "hour")
    return MonthlyRequests(
        requests=requests, source=f"{format_count(_significant(requests))} requests a month, as measured over {span}"
    )


def monthly_cost(analysis: Analysis) -> MonthlyCost | None:
    """None where the cost of either arm is not known."""
    metric = next((one for one in analysis.metrics if one.name == COST), None)
    if metric is None or metric.status == "not_measured":
        return None
    control, treatment = metric.control.value, metric.treatment.value
    if control is None or treatment is None:
        return None
    traffic = monthly_requests(analysis)
    requests = traffic.requests if traffic else 1000.0
    low, high = _change(metric, control) if metric.finding != "undefined" else (None, None)
    return MonthlyCost(
        control=control * requests,
        treatment=treatment * requests,
        unit="a month" if traffic else f"per 1,000{NBSP}requests",
        source=traffic.source if traffic else "",
        change=(treatment - control) * requests if low is not None and high is not None else None,
        change_low=None if low is None else low * requests,
        change_high=None if high is None else high * requests,
    )


def about(provenance: Mapping[str, Any]) -> dict[str, object]:
    """What the configuration holds on the experiment itself: question, owner, link, requests_per_month."""
    found = provenance.get("about")
    return found if isinstance(found, dict) else {}


def dollars(amount: float, *, signed: bool = False) -> str:
    """An amount as it is planned with: three significant digits from 100 dollars on, cents below."""
    sign = "+" if signed and amount > 0 else ""
    if abs(amount) < 100:
        return f"{sign}{format_usd(amount)}"
    number = format_number(abs(_significant(amount)), 0)
    return f"{MINUS if amount < 0 else sign}${number}"


def _change(metric: MetricResult, control: float) -> tuple[float | None, float | None]:
    """The interval of the difference per request, on the scale the decision uses."""
    if metric.scale == "relative" and metric.relative_low is not None and metric.relative_high is not None:
        return metric.relative_low * control, metric.relative_high * control
    return metric.ci_low, metric.ci_high


def _significant(value: float) -> float:
    if value == 0:
        return 0.0
    return round(value, MONEY_DIGITS - 1 - math.floor(math.log10(abs(value))))


def _instant(value: object) -> datetime | None:
    """An instant of the log; None for imports without a time, which count up from the epoch."""
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return at if at.year > 1970 else None


def _excluded(analysis: Analysis, first: datetime, last: datetime) -> timedelta:
    """How long the excluded periods between the first and the last request are: nothing was counted in them."""
    total = timedelta()
    for entry in analysis.exclusions:
        since, until = _instant(entry.get("since")), _instant(entry.get("until"))
        if since is not None and until is not None and min(until, last) > max(since, first):
            total += min(until, last) - max(since, first)
    return total
