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
            f"{self.name:58s} {self.seen:9.4g}  {self.designed:>12s}  {bound:>10s}  {verdict:6s} {self.detail}".rstrip()
        )


def type_one_bound(replications: int, alpha: float = 0.05) -> float:
    """alpha plus two Monte-Carlo standard errors."""
    return alpha + 2 * math.sqrt(alpha * (1 - alpha) / replications)
