"""How many units it takes until a difference of two event rates (errors, timeouts, empty answers) excludes a line.

Rare events are not normal: an interval of few events shrinks faster than with 1/√n, and one of no event has a width. So the
units are found with the very intervals of `events.py`: betting or Tango's score interval where both arms answer the same
requests, Newcombe's where they do not, each against the asymptotic confidence sequence that takes over once there are enough
events.

Everything is oriented so that above 0 = treatment better: for errors the difference is control's rate minus the treatment's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import optimize

from evalpipe.stats import betting, gates
from evalpipe.stats.events import DEFAULT_SIGMA2
from evalpipe.stats.paired import tango_statistic
from evalpipe.stats.planning import Looks, smallest
from evalpipe.stats.proportion import newcombe_limits

MIN_EVENTS_FIXED = {True: 25, False: gates.MIN_EVENTS_ANYTIME}
"""events from which a fixed or scheduled look takes the normal interval, by whether the arms are paired (`events.py`)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedRates:
    """Paired yes/no outcomes as a forecast reads them.

    Attributes:
        discordant: share of the pairs in which exactly one arm has the event, in [0, 1].
        per_unit: a unit's pairs divided by the design effect: what they are worth as independent pairs, above 0.
        one_each: every unit has one pair; looking at any time, the betting interval is used then.
    """

    discordant: float
    per_unit: float = 1.0
    one_each: bool = True

    @property
    def sd(self) -> float:
        """Standard deviation of a unit's difference when the arms are alike."""
        return math.sqrt(self.discordant / self.per_unit)

    def needed(self, point: float, line: float, looks: Looks, *, half: bool = False) -> float:
        """Units at which the expected difference `point` excludes `line`.

        Args:
            point: the true difference, oriented; the share of discordant pairs is at least its size.
            line: the difference to be excluded, at whichever side of `point` it lies.
            looks: level and way of looking.
            half: by which half of the experiments have excluded it (`Looks.in_half`), rather than their expected values.

        Returns:
            Units as a real number; infinity where `point` is `line` or no number suffices.
        """
        if point < line:
            point, line = -point, -line
        if point == line:
            return math.inf
        discordant = max(self.discordant, abs(point))
        gains, losses = (discordant + point) / 2, (discordant - point) / 2
        statistic = tango_statistic(line, gains, losses, 1.0)
        by_score = smallest(lambda n: statistic * math.sqrt(n * self.per_unit) >= looks.critical(n))
        # Without events there is no chance in it.
        passed = looks.in_half if half and discordant > 0 else float
        if self.one_each and looks.way == "anytime":
            stakes = betting.tuned_bets(looks.n_star, sigma2=DEFAULT_SIGMA2, alpha=looks.alpha)
            return passed(min(by_score, self._by_betting(gains, losses, line, looks.alpha, stakes)))
        events = MIN_EVENTS_FIXED[True] if looks.way != "anytime" else gates.MIN_EVENTS_ANYTIME
        floor = max(_ratio(events, discordant * self.per_unit), gates.MIN_PAIRS_ANYTIME)
        sd = math.sqrt(max(discordant - point**2, 0.0) / self.per_unit)
        by_normal = looks.needed(sd, point - line)
        return passed(by_score) if self.one_each else min(passed(by_score), max(floor, passed(by_normal)))

    def _by_betting(self, gains: float, losses: float, line: float, alpha: float, bets: betting.Bets) -> float:
        mean = (1 + line) / 2
        if not 0 < mean < 1:
            return math.inf
        shares = [losses, max(0.0, 1 - gains - losses), gains]
        needed = math.log(2 / alpha)

        def enough(n: float) -> bool:
            counts = [n * self.per_unit * share for share in shares]
            return betting.log_wealth([0.0, 0.5, 1.0], counts, mean, bets)[0] >= needed

        return smallest(enough)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpairedRates:
    """Yes/no outcomes of arms with different users, as a forecast reads them.

    Attributes:
        control: control's event rate, in [0, 1].
        share: the treatment's share of the requests, in (0, 1).
        per_unit: a user's requests divided by the design effect, above 0.
        sign: −1 where the event is bad (errors), +1 where it is good.
    """

    control: float
    share: float = 0.5
    per_unit: float = 1.0
    sign: int = -1

    @property
    def sd(self) -> float:
        """Standard deviation per user of both arms (se·√users) when the arms are alike."""
        return self._sd(self.control)

    def needed(self, point: float, line: float, looks: Looks, *, half: bool = False) -> float:
        """Users of both arms at which the expected difference `point` excludes `line`; arguments as `PairedRates.needed`."""
        if point == line:
            return math.inf
        treatment = self.control + self.sign * point
        control = self.control - self.sign * point if not 0 <= treatment <= 1 else self.control
        control, treatment = (min(1.0, max(0.0, rate)) for rate in (control, treatment))

        def enough(n: float) -> bool:
            low, high = self.limits(n, control, treatment, looks.critical(n))
            return low > line if point > line else high < line

        events = gates.MIN_EVENTS_ANYTIME
        rarer = min(control * (1 - self.share), treatment * self.share) * self.per_unit
        floor = max(_ratio(events, rarer), gates.MIN_CLUSTERS_ANYTIME / min(self.share, 1 - self.share))
        by_normal = looks.needed(self._sd(treatment, control), abs(point - line))
        passed = looks.in_half if half and max(control, treatment) > 0 else float
        return min(passed(smallest(enough)), max(floor, passed(by_normal)))

    def limits(self, n: float, control: float, treatment: float, c: float) -> tuple[float, float]:
        """Newcombe's limits of the oriented difference after `n` users of both arms, at critical value `c`."""
        size_c, size_t = n * self.per_unit * (1 - self.share), n * self.per_unit * self.share
        low, high = newcombe_limits(control * size_c, size_c, treatment * size_t, size_t, c)
        return (low, high) if self.sign > 0 else (-high, -low)

    def _sd(self, treatment: float, control: float | None = None) -> float:
        control = self.control if control is None else control
        parts = control * (1 - control) / (1 - self.share) + treatment * (1 - treatment) / self.share
        return math.sqrt(parts / self.per_unit)


def paired_rates(
    *,
    point: float,
    edge: float,
    n: int,
    n_units: int,
    most_discordant: float,
    c: float,
    stakes: betting.Bets | None = None,
    alpha: float = 0.05,
) -> PairedRates:
    """The share of discordant pairs and the design effect behind a score or betting interval.

    Of a report only the estimate, one limit and both arms' rates are known. The share that gives that limit is found between
    its bounds, |point| and the sum of both arms' rates; a limit still wider is put down to a design effect.

    Args:
        point: the estimated difference, oriented (above 0 = treatment better).
        edge: a limit of its interval, on the side of the line a forecast is about.
        n: pairs.
        n_units: users.
        most_discordant: both arms' rates together.
        c: critical value of the interval (Tango's); not used with `stakes`.
        stakes: of a betting interval at two-sided level `alpha`.

    Returns:
        The rates; `per_unit` is at most n / n_units.
    """
    upper = edge < point
    gain, limit = (point, edge) if upper else (-point, -edge)
    low, high = abs(point), min(1.0, max(most_discordant, abs(point)))

    def evidence(discordant: float) -> float:
        """That against `limit`, in units of what the interval asks for; falls with the share of discordant pairs."""
        gains, losses = (discordant + gain) / 2 * n, (discordant - gain) / 2 * n
        if stakes is None:
            return (tango_statistic(limit, gains, losses, n) / c) ** 2
        values = [0.0, 0.5, 1.0]
        counts = [max(0.0, losses), max(0.0, n - gains - losses), max(0.0, gains)]
        wealth = betting.log_wealth(values, counts, (1 + limit) / 2, stakes)[0]
        return wealth / math.log(2 / alpha)

    if not -1 < limit < 1:
        return PairedRates(discordant=high, per_unit=n / n_units, one_each=n == n_units)
    if evidence(low) <= 1:
        discordant = low
    elif evidence(high) >= 1:
        discordant = high
    else:
        discordant = float(optimize.brentq(lambda share: evidence(share) - 1, low, high, xtol=1e-9))
    worth = 1.0 if low < discordant < high else min(1.0, 1 / evidence(discordant)) if evidence(discordant) > 0 else 1.0
    return PairedRates(discordant=discordant, per_unit=n / n_units * worth, one_each=n == n_units)


def unpaired_rates(
    *,
    control: float,
    treatment: float,
    edge: float,
    n_control: int,
    n_treatment: int,
    n_units: int,
    c: float,
    sign: int = -1,
) -> UnpairedRates:
    """The design effect behind a Newcombe interval of two arms.

    Args:
        control, treatment: both arms' rates.
        edge: a limit of the oriented difference, at critical value `c`.
        n_control, n_treatment: their requests.
        n_units: users of both arms.
        sign: −1 where the event is bad.
    """
    n = n_control + n_treatment
    plain = UnpairedRates(control=control, share=n_treatment / n, per_unit=n / n_units, sign=sign)
    lower = edge < sign * (treatment - control)

    def excess(log_worth: float) -> float:
        size = n_units * math.exp(log_worth)
        low, high = plain.limits(size, control, treatment, c)
        return low - edge if lower else edge - high

    if excess(0.0) <= 0:  # no wider than independent requests give
        return plain
    floor = -math.log(n)
    worth = float(optimize.brentq(excess, floor, 0.0)) if excess(floor) < 0 else floor
    return UnpairedRates(control=control, share=plain.share, per_unit=plain.per_unit * math.exp(worth), sign=sign)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf
