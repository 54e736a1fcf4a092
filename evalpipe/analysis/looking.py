"""How the experiment is looked at: once, whenever one likes, or on planned dates; and what that means in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from evalpipe.stats import betting
from evalpipe.stats.group_sequential import Scheduled
from evalpipe.stats.multiplier import DEFAULT_N_STAR_PAIRS, DEFAULT_N_STAR_USERS, Anytime, Fixed, Multiplier

SIGMA2_PAIRED_BINARY = 0.02 / 4
"""planned variance of (1+d)/2 of a paired yes/no outcome: a quarter of the share of discordant pairs, 2 %"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Looking:
    """The present look. `until_us`: the planned date up to which data count (None = all). `waiting`: the first planned date
    where it has not come yet. `look`, `n_looks`: which planned look this is, of how many (scheduled only)."""

    mode: str
    alpha: float
    paired: bool
    n_star: Mapping[str, float]
    fractions: tuple[float, ...] = ()
    until_us: int | None = None
    waiting: date | None = None
    look: int | None = None
    n_looks: int | None = None
    next_date: date | None = None

    def multiplier(self, metric: str) -> Multiplier:
        if self.mode == "anytime":
            return Anytime(n_star=self.star(metric), alpha=self.alpha)
        if self.mode == "scheduled":
            return Scheduled(fractions=self.fractions or (1e-6,))
        return Fixed()

    def star(self, metric: str) -> float:
        """The planned sample n* of the metric, in units: from the experiment record, else the default."""
        return float(self.n_star.get(metric) or (DEFAULT_N_STAR_PAIRS if self.paired else DEFAULT_N_STAR_USERS))

    def bets(self, metric: str, alpha: float, *, sigma2: float) -> betting.Bets:
        return betting.tuned_bets(self.star(metric), sigma2=sigma2, alpha=alpha)

    @property
    def explained(self) -> str:
        """One sentence for a manager."""
        share = f"{100 * self.alpha:g} %"
        if self.mode == "anytime":
            return (
                f"You may look as often as you like: the intervals stay right at every look, and the risk of a false "
                f"conclusion on a metric stays at most {share} however long the experiment runs."
            )
        if self.mode == "fixed":
            return (
                f"These intervals are right for one look at a sample size set beforehand: looking repeatedly and stopping "
                f"when it suits raises the risk of a false conclusion above {share}."
            )
        if self.waiting is not None:
            return f"Conclusions are drawn on the planned dates only; the first one is {self.waiting.isoformat()}."
        following = f"; the next one is {self.next_date.isoformat()}" if self.next_date else ""
        return (
            f"Conclusions are drawn on the planned dates only: this is look {self.look} of {self.n_looks}, on the data up to "
            f"that date{following}. Over all looks the risk of a false conclusion on a metric is at most {share}."
        )


def looking(
    looks: str | Sequence[date],
    *,
    alpha: float,
    paired: bool,
    n_star: Mapping[str, float],
    first_us: int | None,
    now: datetime,
) -> Looking:
    """The look that `now` is. Planned dates count to their end (UTC); the information fraction of a date is its share of the
    time from the first request to the last planned date."""
    if isinstance(looks, str):
        return Looking(mode=looks, alpha=alpha, paired=paired, n_star=n_star)
    dates = sorted(set(looks))
    start = datetime.fromtimestamp((first_us or 0) / 1e6, UTC)
    ends = [datetime.combine(day, time.min, UTC) + timedelta(days=1) for day in dates]
    whole = (ends[-1] - start).total_seconds()
    usable = [
        (day, end, (end - start).total_seconds() / whole) for day, end in zip(dates, ends, strict=True) if end > start
    ]
    passed = [entry for entry in usable if entry[1] <= now]
    if not passed or whole <= 0:
        waiting = usable[0][0] if usable else dates[-1]
        return Looking(
            mode="scheduled",
            alpha=alpha,
            paired=paired,
            n_star=n_star,
            waiting=waiting,
            n_looks=len(dates),
            next_date=waiting,
        )
    following = [entry[0] for entry in usable if entry[1] > now]
    return Looking(
        mode="scheduled",
        alpha=alpha,
        paired=paired,
        n_star=n_star,
        fractions=tuple(min(1.0, entry[2]) for entry in passed),
        until_us=int(passed[-1][1].timestamp() * 1e6),
        look=len(passed),
        n_looks=len(usable),
        next_date=following[0] if following else None,
    )
