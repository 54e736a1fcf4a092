"""What an interval says of a metric: the label and its flags
(docs/statistics.md#findings). The overall decision is not here."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.stats.estimate import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """`label`: better | equivalent | worse | inconclusive | undefined. `non_inferior`: no loss beyond the margin;
    `inferior`: a loss beyond the margin is proven (what the harm stop asks)."""

    label: str
    non_inferior: bool
    inferior: bool


def label(low: float | None, high: float | None, *, margin: float, status: str = "ok") -> Verdict:
    """The verdict of an interval oriented so that above 0 = treatment better; `margin` ≥ 0 in the same unit.

    Strict inequalities, in this order: any status but ok (or an interval without limits on both sides) → undefined;
    margin > 0 and inside ±margin → equivalent; low > 0 → better; high < 0 → worse; else inconclusive. A limit of None is
    unbounded on that side.
    """
    if margin < 0:
        raise ValueError(f"a margin is never negative, got {margin}")
    if status != "ok" or (low is None and high is None):
        return Verdict(label="undefined", non_inferior=False, inferior=False)
    non_inferior = low is not None and low > -margin
    inferior = high is not None and high < -margin
    if margin > 0 and non_inferior and high is not None and high < margin:
        name = "equivalent"
    elif low is not None and low > 0:
        name = "better"
    elif high is not None and high < 0:
        name = "worse"
    else:
        name = "inconclusive"
    return Verdict(label=name, non_inferior=non_inferior, inferior=inferior)


def orient(estimate: Estimate, *, higher_is_better: bool) -> tuple[float | None, float | None]:
    """(low, high) of a treatment − control difference with above 0 = treatment better."""
    if higher_is_better:
        return estimate.ci_low, estimate.ci_high
    return (
        None if estimate.ci_high is None else -estimate.ci_high,
        None if estimate.ci_low is None else -estimate.ci_low,
    )


def label_estimate(estimate: Estimate, *, margin: float, higher_is_better: bool) -> Verdict:
    """The verdict of an estimate of treatment − control, or of treatment/control − 1 with the margin as a share.

    A relative margin m allows a ratio up to 1 + m where lower is better and down to 1 − m where higher is better.
    """
    low, high = orient(estimate, higher_is_better=higher_is_better)
    return label(low, high, margin=margin, status=estimate.status)
