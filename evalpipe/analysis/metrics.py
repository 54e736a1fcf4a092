"""The metrics: what a metric is, and the list of those there are.

A metric names what to sum over which requests (columns of `ev_rows`, see prepare.py and populations.py): everything else
(clusters, intervals, margins, findings) is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from evalpipe.analysis.populations import CLOCK_RESOLUTION_MS

Direction = Literal["lower", "higher"]
Scale = Literal["absolute", "relative"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Σ `numerator` ÷ Σ `denominator` over the requests for which `rows` holds.

    Attributes:
        numerator: a column of `ev_rows`.
        rows: the flag of the requests that count (populations.py): in shadow mode it belongs to the pair, so both arms' sums are
            over the same requests. A flag `has_…` where the columns may be unknown.
        denominator: a column, or "1": a mean per request.
        binary: the numerator is an event that happened or not.
        factor: of the numerator: the same sums in another unit.
    """

    numerator: str
    rows: str
    denominator: str = "1"
    binary: bool = False
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantile:
    """The `share` quantile (in (0, 1)) of the column `value` over the requests for which the flag `rows` holds."""

    value: str
    share: float
    rows: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgmentValue:
    """A value per judged pair or answer, summed from the judgments: the preference, or one dimension's scores.

    `bounds`: the smallest and largest value there can be.
    """

    source: str
    """preference | dimension:NAME | mean_dimension | rating"""
    bounds: tuple[float, float]


Values = Ratio | Quantile | JudgmentValue


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is measured and how it may decide. `role_shadow`, `role_split`: its role by default in shadow mode, and in ab and
    canary mode. `margin` is relative where `scale` is; `resolution` is in the metric's unit: a smaller difference is no finding
    of an arm, whatever share of control's value it is. `only_measured`: it is left out where no judge scored it."""

    name: str
    label: str
    group: str
    unit: str
    direction: Direction
    role_shadow: str
    role_split: str
    scale: Scale
    margin: float
    estimand: str
    values: Values
    resolution: float = 0.0
    only_measured: bool = False

    @property
    def sign(self) -> int:
        return 1 if self.direction == "higher" else -1


_REGISTRY: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    label: str,
    group: str,
    unit: str,
    direction: Direction,
    roles: tuple[str, str] = ("diagnostic", "diagnostic"),
    scale: Scale = "absolute",
    margin: float,
    resolution: float = 0.0,
    estimand: str | None = None,
    only_measured: bool = False,
) -> Callable[[Callable[[], Values]], Callable[[], Values]]:
    """Register a metric; `estimand` in words, by default the function's docstring."""

    def register(values: Callable[[], Values]) -> Callable[[], Values]:
        if name in _REGISTRY:
            raise ValueError(f"two metrics are called {name!r}")
        _REGISTRY[name] = Metric(
            name=name,
            label=label,
            group=group,
            unit=unit,
            direction=direction,
            role_shadow=roles[0],
            role_split=roles[1],
            scale=scale,
            margin=margin,
            estimand=estimand or " ".join((values.__doc__ or label).split()),
            values=values(),
            resolution=resolution,
            only_measured=only_measured,
        )
        return values

    return register


def metrics() -> list[Metric]:
    """Every registered metric, in the order of the report."""
    return list(_REGISTRY.values())


def custom_metric(name: str, *, label: str | None, direction: Direction, unit: str, column: str) -> Metric:
    """A user's own metric: the mean of `column` of `ev_rows` over answered requests where it is not NULL (in shadow mode on
    both sides)."""
    return Metric(
        name=name,
        label=label or name,
        group="custom",
        unit=unit,
        direction=direction,
        role_shadow="diagnostic",
        role_split="diagnostic",
        scale="relative",
        margin=0.10,
        estimand="mean per answered request",
        values=Ratio(numerator=column, rows=f"has_{column}"),
    )


# The metrics: one small function each. To add one, add a function here (or SQL in the configuration).
#
# Names are what scripts and dashboards rely on; rows, roles and default margins follow the rules of the decision.


# --- reliability -----------------------------------------------------------------------------------------------------


@metric(
    "error_rate",
    label="Error rate",
    group="reliability",
    unit="ratio",
    direction="lower",
    roles=("guardrail", "guardrail"),
    margin=0.005,
)
def _error_rate() -> Values:
    """share of requests that ended in an error, a timeout or an unreadable answer"""
    return Ratio(numerator="failed", rows="in_measured", binary=True)


@metric(
    "timeout_rate",
    label="Timeout rate",
    group="reliability",
    unit="ratio",
    direction="lower",
    roles=("guardrail", "guardrail"),
    margin=0.005,
)
def _timeout_rate() -> Values:
    """share of requests that timed out"""
    return Ratio(numerator="timed_out", rows="in_measured", binary=True)


@metric(
    "empty_rate",
    label="Empty answers",
    group="reliability",
    unit="ratio",
    direction="lower",
    roles=("guardrail", "guardrail"),
    margin=0.01,
)
def _empty_rate() -> Values:
    """share of answers with neither text nor a tool call"""
    return Ratio(numerator="empty", rows="in_answered", binary=True)


@metric("refusal_rate", label="Refusal rate", group="reliability", unit="ratio", direction="lower", margin=0.01)
def _refusal_rate() -> Values:
    """share of answers in which the model refused"""
    return Ratio(numerator="refused", rows="in_answered", binary=True)


@metric("truncation_rate", label="Truncation rate", group="reliability", unit="ratio", direction="lower", margin=0.01)
def _truncation_rate() -> Values:
    """share of answers cut off at the token limit"""
    return Ratio(numerator="truncated", rows="in_answered", binary=True)


# --- performance -----------------------------------------------------------------------------------------------------


@metric(
    "p50_latency_ms",
    label="Median latency",
    group="performance",
    unit="ms",
    direction="lower",
    roles=("guardrail", "guardrail"),
    scale="relative",
    margin=0.25,
    resolution=CLOCK_RESOLUTION_MS,
)
def _p50_latency() -> Values:
    """median time to the whole answer; a timeout counts as its limit, other failures and empty answers are left out"""
    return Quantile(value="latency_ms", share=0.5, rows="has_latency")


@metric(
    "p99_latency_ms",
    label="99th percentile latency",
    group="performance",
    unit="ms",
    direction="lower",
    roles=("diagnostic", "guardrail"),
    scale="relative",
    margin=0.20,
    resolution=CLOCK_RESOLUTION_MS,
)
def _p99_latency() -> Values:
    """99th percentile of the time to the whole answer; a timeout counts as its limit, other failures and empty answers are left
    out"""
    return Quantile(value="latency_ms", share=0.99, rows="has_latency")


@metric(
    "p50_ttft_ms",
    label="Median time to first token",
    group="performance",
    unit="ms",
    direction="lower",
    scale="relative",
    margin=0.20,
    resolution=CLOCK_RESOLUTION_MS,
)
def _p50_ttft() -> Values:
    """median time to the first token of streamed answers"""
    return Quantile(value="ttft_ms", share=0.5, rows="has_ttft")


@metric(
    "p99_ttft_ms",
    label="99th percentile time to first token",
    group="performance",
    unit="ms",
    direction="lower",
    scale="relative",
    margin=0.20,
    resolution=CLOCK_RESOLUTION_MS,
)
def _p99_ttft() -> Values:
    """99th percentile of the time to the first token of streamed answers"""
    return Quantile(value="ttft_ms", share=0.99, rows="has_ttft")


@metric(
    "tokens_per_second",
    label="Tokens per second",
    group="performance",
    unit="tokens_per_second",
    direction="higher",
    scale="relative",
    margin=0.10,
)
def _tokens_per_second() -> Values:
    """output tokens over the seconds they took (after the first token where streamed; less than 20 ms count as 20 ms)"""
    # An answer that came in one piece took no time after its first token; one that ended before it began has a wrong clock.
    return Ratio(numerator="output_tokens", denominator="generation_s", rows="has_speed")


# --- cost ------------------------------------------------------------------------------------------------------------


@metric(
    "input_tokens",
    label="Input tokens",
    group="cost",
    unit="tokens",
    direction="lower",
    scale="relative",
    margin=0.10,
)
def _input_tokens() -> Values:
    """mean input tokens of an answer that is not empty, cached ones included"""
    return Ratio(numerator="input_tokens", rows="has_input")


@metric(
    "output_tokens",
    label="Output tokens",
    group="cost",
    unit="tokens",
    direction="lower",
    scale="relative",
    margin=0.10,
)
def _output_tokens() -> Values:
    """mean output tokens of an answer that is not empty, reasoning included"""
    return Ratio(numerator="output_tokens", rows="has_output")


@metric(
    "tokens_used", label="Tokens used", group="cost", unit="tokens", direction="lower", scale="relative", margin=0.10
)
def _tokens_used() -> Values:
    """mean input and output tokens of an answer that is not empty"""
    return Ratio(numerator="tokens_used", rows="has_tokens")


@metric(
    "cost_per_request_usd",
    label="Cost per request",
    group="cost",
    unit="usd",
    direction="lower",
    roles=("benefit", "benefit"),
    scale="relative",
    margin=0.10,
)
def _cost_per_request() -> Values:
    """mean dollars of an answer that is not empty, infrastructure included: failing is cheap, so it is no saving"""
    # As billed also where one looks at any time, not capped at control's p99.9
    # (docs/statistics.md#looks): a cap would hide the very
    # answers that break a bill. The skewness gate holds early conclusions: simulated error rates .03 paired, .057 in a canary.
    return Ratio(numerator="cost_usd", rows="has_cost")


@metric(
    "cost_per_1000_requests_usd",
    label="Cost per 1,000 requests",
    group="cost",
    unit="usd",
    direction="lower",
    scale="relative",
    margin=0.10,
)
def _cost_per_1000() -> Values:
    """dollars billed per thousand requests, failed ones included"""
    return Ratio(numerator="billed_usd", rows="has_bill", factor=1000.0)


@metric(
    "cost_per_ok_answer_usd",
    label="Cost per good answer",
    group="cost",
    unit="usd",
    direction="lower",
    scale="relative",
    margin=0.10,
)
def _cost_per_ok() -> Values:
    """dollars billed for all requests over the answers that were ok: failures are paid for, too"""
    return Ratio(numerator="billed_usd", denominator="ok", rows="has_bill")


# --- quality ---------------------------------------------------------------------------------------------------------


@metric(
    "win_rate",
    label="Win rate",
    group="quality",
    unit="ratio",
    direction="higher",
    roles=("primary", "diagnostic"),
    margin=0.03,
)
def _win_rate() -> Values:
    """mean over users of their mean preference for the treatment (tie = half); the difference is to one half"""
    return JudgmentValue(source="preference", bounds=(0.0, 1.0))


@metric(
    "win_rate_later_turns",
    label="Win rate on later turns",
    group="quality",
    unit="ratio",
    direction="higher",
    margin=0.03,
)
def _win_rate_later_turns() -> Values:
    """the win rate over later turns of shadowed conversations, whose users replied to control's words"""
    return JudgmentValue(source="preference", bounds=(0.0, 1.0))


def _dimension(name: str, label: str) -> None:
    @metric(
        f"{name}_score",
        label=label,
        group="quality",
        unit="score_10",
        direction="higher",
        margin=0.25,
        estimand=f"mean {name} score (0-10) the judge gave over judged pairs",
    )
    def values() -> Values:
        return JudgmentValue(source=f"dimension:{name}", bounds=(0.0, 10.0))


_dimension("accuracy", "Accuracy score")
_dimension("clarity", "Clarity score")
_dimension("completeness", "Completeness score")


@metric("judge_score", label="Judge score", group="quality", unit="score_10", direction="higher", margin=0.25)
def _judge_score() -> Values:
    """mean of the judge's accuracy, clarity and completeness scores (0-10) over judged pairs"""
    return JudgmentValue(source="mean_dimension", bounds=(0.0, 10.0))


@metric(
    "relevance_score",
    label="Relevance score",
    group="quality",
    unit="score_1",
    direction="higher",
    roles=("diagnostic", "primary"),
    margin=0.02,
)
def _relevance() -> Values:
    """mean relevance (0-1) the pointwise judge gave over judged answers"""
    return JudgmentValue(source="dimension:relevance", bounds=(0.0, 1.0))


@metric(
    "faithfulness_score",
    label="Faithfulness score",
    group="quality",
    unit="score_1",
    direction="higher",
    roles=("diagnostic", "primary"),
    margin=0.02,
)
def _faithfulness() -> Values:
    """mean faithfulness (0-1) the pointwise judge gave over judged answers"""
    return JudgmentValue(source="dimension:faithfulness", bounds=(0.0, 1.0))


@metric(
    "correctness_score",
    label="Correctness score",
    group="quality",
    unit="score_1",
    direction="higher",
    margin=0.02,
    only_measured=True,
)
def _correctness() -> Values:
    """mean agreement (0-1) with a reference answer that the pointwise judge gave over judged answers"""
    return JudgmentValue(source="dimension:correctness", bounds=(0.0, 1.0))


@metric(
    "user_rating",
    label="User rating",
    group="quality",
    unit="score_1",
    direction="higher",
    roles=("diagnostic", "primary"),
    margin=0.02,
)
def _user_rating() -> Values:
    """mean rating (0-1) of the end users over rated answers"""
    return JudgmentValue(source="rating", bounds=(0.0, 1.0))
