"""`--estimate`: pairs, calls, tokens and dollars of a plan, without a call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from evalpipe.judging.budget import CostOf
from evalpipe.judging.plan import Ask, Plan
from evalpipe.judging.record import message_of
from evalpipe.judging.spec import JudgeSpec
from evalpipe.providers.base import Usage

TOKENS_PER_CHAR = 0.27
"""English prose and code; other scripts are denser. A run learns the true ratio, an estimate has only this."""
REASONING_TOKENS, SCORE_TOKENS = 120, 12
_SAMPLE_CALLS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class CostEstimate:
    """What a run will probably use. Tokens from the characters of a sample of the plan; `usd` at list price, `batch_usd`
    at the batch price; None where the model has no known price. `identical`: calls nobody has to make. `left_out`: pairs whose
    user has enough others; `later`, `later_left_out`: pairs of later turns in the plan and beyond their share;
    `unjudgeable`: left out since an answer holds no text, by kind; `given_up`: calls that are not made
    again, with their requests; `warning`: what speaks against this judge, for these arms."""

    judge: str
    fingerprint: str
    model: str
    units: int
    calls: int
    known: int
    identical: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    batch_usd: float | None
    left_out: int = 0
    later: int = 0
    later_left_out: int = 0
    unjudgeable: dict[str, int] = field(default_factory=dict)
    given_up: int = 0
    given_up_requests: list[str] = field(default_factory=list)
    warning: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    spec: JudgeSpec,
    plan: Plan,
    pages: Iterator[list[Ask]],
    cost_of: CostOf,
    batch_cost_of: CostOf,
    *,
    warning: str | None = None,
) -> CostEstimate:
    """Extrapolates from the first 400 calls of the plan, which are a random sample of it."""
    sample: list[Ask] = []
    for page in pages:
        sample += page[: _SAMPLE_CALLS - len(sample)]
        if len(sample) >= _SAMPLE_CALLS:
            break
    asked = [ask for ask in sample if not ask.is_identical]
    share = len(asked) / len(sample) if sample else 1.0
    n_calls = round(plan.n_calls * share)
    chars = sum(len(spec.system) + len(str(spec.schema)) + len(message_of(ask, spec, "0" * 16).text) for ask in asked)
    per_call = chars / len(asked) * TOKENS_PER_CHAR if asked else 0.0
    seats = 1 if sample and sample[0].arm is not None else 2
    reply = (REASONING_TOKENS if spec.reasoning else 0) + SCORE_TOKENS * len(spec.dimensions) * seats + 20
    usage = Usage(input_tokens=round(per_call * n_calls), output_tokens=min(reply, spec.max_tokens) * n_calls)
    return CostEstimate(
        judge=spec.name,
        fingerprint=spec.fingerprint,
        model=spec.model,
        units=plan.n_units,
        calls=n_calls,
        known=plan.n_done,
        identical=plan.n_calls - n_calls,
        input_tokens=usage.input_tokens or 0,
        output_tokens=usage.output_tokens or 0,
        usd=cost_of(usage),
        batch_usd=batch_cost_of(usage),
        left_out=plan.n_over_cap,
        later=plan.n_later,
        later_left_out=plan.n_later_left_out,
        unjudgeable=dict(plan.unjudgeable),
        given_up=plan.n_given_up,
        given_up_requests=list(plan.given_up),
        warning=warning,
    )
