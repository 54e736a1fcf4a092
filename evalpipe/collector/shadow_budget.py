"""What the copies' budget has left, and the line that names it where a copy has no room in it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from evalpipe.collector.metrics import Metrics

if TYPE_CHECKING:
    from evalpipe.collector.portions import Portions

logger = logging.getLogger(__name__)


class BudgetWatch:
    """Follows one process's copies.

    Args:
        budget_usd: the whole budget.
        portions: where other replicas spend it, too.
    """

    def __init__(self, budget_usd: float, portions: Portions | None, metrics: Metrics) -> None:
        self._budget_usd, self._portions, self._metrics = budget_usd, portions, metrics
        self._refused_usd = 0.0

    def refused(self, worst_usd: float, booked_usd: float) -> None:
        """A copy that may cost so much at most was shed. The first one is a line in the log."""
        if not self._refused_usd:
            logger.warning("%s", budget_refusal(worst_usd, self.left_usd(booked_usd), self._budget_usd))
        self._refused_usd = worst_usd

    def tick(self, spent_usd: float, booked_usd: float) -> None:
        """To be called once a second, with this process's own account."""
        portions = self._portions
        if portions is not None:
            portions.settle(spent_usd, booked_usd)
            if portions.balance is None:
                return
            spent_usd = portions.balance.spent_usd
        left_usd = self.left_usd(booked_usd)
        is_refused = self._refused_usd > left_usd
        self._metrics.budget(
            spent_usd=spent_usd, left_usd=left_usd, refused_usd=self._refused_usd if is_refused else 0.0
        )

    def left_usd(self, booked_usd: float) -> float:
        """What the next copy may cost. `booked_usd`: this process's own account."""
        portions = self._portions
        if portions is None:
            return max(0.0, self._budget_usd - booked_usd)
        balance = portions.balance
        elsewhere_usd = self._budget_usd if balance is None else self._budget_usd - balance.booked_usd
        return max(0.0, elsewhere_usd) + max(0.0, portions.limit_usd - booked_usd)


def budget_refusal(worst_usd: float, left_usd: float, budget_usd: float) -> str:
    """What is wrong and what to do, in one line."""
    return (
        f"the copies' budget has no room: a copy may cost ${worst_usd:.4f} at most, ${left_usd:.4f} of ${budget_usd:g} is left; "
        "such requests are not copied (shed: budget). Set max_tokens on the requests (a copy reserves its longest answer), or "
        "raise [collector] shadow_budget_usd"
    )
