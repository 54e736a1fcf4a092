"""One line of the printed table: what was simulated, what was seen, what the design's own simulation saw, and the bound."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """`bound` is the largest `seen` that passes, or the smallest where `at_least`; None = shown, not judged."""

    name: str
    seen: float
    designed: str
    bound: float | None
    at_least: bool = False
    detail: str = ""

    @property
    def passed(self) -> bool:
        if self.bound is None:
            return True
        return self.seen >= self.bound if self.at_least else self.seen <= self.bound

    def render(self) -> str:
        sign = ">=" if self.at_least else "<="
        bound = "" if self.bound is None else f"{sign} {self.bound:.4g}"
        verdict = "" if self.bound is None else ("ok" if self.passed else "FAILED")
        return (
            f"{self.name:66s} {self.seen:9.4g}  {self.designed:>12s}  {bound:>10s}  {verdict:6s} {self.detail}".rstrip()
        )


HEADER = f"{'simulated':66s} {'seen':>9s}  {'designed':>12s}  {'bound':>10s}"


def standard_error(share: float, replications: float) -> float:
    """Monte-Carlo standard error of a share."""
    return math.sqrt(share * (1 - share) / replications)


def at_most(share: float, replications: float) -> float:
    """`share` plus two Monte-Carlo standard errors."""
    return share + 2 * standard_error(share, replications)


def at_least(share: float, replications: float) -> float:
    """`share` minus two Monte-Carlo standard errors."""
    return share - 2 * standard_error(share, replications)


def type_one_bound(replications: float, alpha: float = 0.05) -> float:
    """alpha plus two Monte-Carlo standard errors."""
    return at_most(alpha, replications)
