"""A judge's verdicts as a guardrail: the treatment's win rate on the shadowed share must not prove to be under a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from evalpipe.core.canary import GuardrailVerdict
from evalpipe.errors import ConfigError
from evalpipe.rollout.observation import Observation
from evalpipe.stats.betting import log_wealth, tuned_bets

N_STAR = 500
"""judged users at which the bets are best (half the fixed sample for a win rate of .45 against .5)"""


class WinRateLimit:
    """`limit` in (0, 1): e.g. 0.45. `read` gives (user, mean preference for the treatment in [0, 1]) of the present stage."""

    def __init__(self, limit: float, read: Callable[[], Sequence[tuple[str, float]]]) -> None:
        if not 0 < limit < 1:
            raise ConfigError(f"canary.guardrails.win_rate = {limit:g}: a win rate lies between 0 and 1 (0.45, say)")
        self.limit, self._read = limit, read

    def add(self, seen: Observation) -> None:
        """Served answers say nothing about verdicts."""

    def verdict(self, *, percentage: float, alpha: float) -> GuardrailVerdict:
        values = [preference for _, preference in self._read()]
        log_alarm = -math.log(alpha)
        if not values:
            return GuardrailVerdict(
                guardrail="win_rate",
                kind="absolute",
                status="no_data",
                limit=self.limit,
                log_alarm=log_alarm,
                note="win_rate: nothing judged in this stage yet (run `evalpipe load` and `evalpipe judge`)",
            )
        mean = sum(values) / len(values)
        _, log_e = log_wealth(values, [1] * len(values), self.limit, tuned_bets(N_STAR, alpha=2 * alpha))
        return GuardrailVerdict(
            guardrail="win_rate",
            kind="absolute",
            status="breached" if log_e >= log_alarm else "doubtful" if mean < self.limit else "holds",
            value=mean,
            limit=self.limit,
            log_e=log_e,
            log_alarm=log_alarm,
            n=len(values),
            note=f"win_rate: {mean:.3f} over {len(values)} judged users, at least {self.limit:g} wanted",
        )
