"""The metrics: one small function each. To add one, add a function here (or SQL in the configuration).

Names are what scripts and dashboards rely on; rows, roles and default margins follow the rules of the decision.
"""

from __future__ import annotations

from evalpipe.analysis.metrics import Quantile, Ratio, Values, Verdict, metric
from evalpipe.analysis.populations import CLOCK_RESOLUTION_MS

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
    return Verdict(source="preference", bounds=(0.0, 1.0))


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
    return Verdict(source="preference", bounds=(0.0, 1.0))


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
        return Verdict(source=f"dimension:{name}", bounds=(0.0, 10.0))


_dimension("accuracy", "Accuracy score")
_dimension("clarity", "Clarity score")
_dimension("completeness", "Completeness score")


@metric("judge_score", label="Judge score", group="quality", unit="score_10", direction="higher", margin=0.25)
def _judge_score() -> Values:
    """mean of the judge's accuracy, clarity and completeness scores (0-10) over judged pairs"""
    return Verdict(source="mean_dimension", bounds=(0.0, 10.0))


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
    return Verdict(source="dimension:relevance", bounds=(0.0, 1.0))


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
    return Verdict(source="dimension:faithfulness", bounds=(0.0, 1.0))


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
    return Verdict(source="rating", bounds=(0.0, 1.0))
