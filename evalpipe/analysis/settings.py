"""Configuration of the analysis, and the monitoring plan: fixed, anytime-valid, or group-sequential."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from evalpipe.stats import betting
from evalpipe.stats.group_sequential import Scheduled
from evalpipe.stats.ppi import DEFAULT_N_STAR_LABELS
from evalpipe.stats.sequential import DEFAULT_N_STAR_PAIRS, DEFAULT_N_STAR_USERS, Anytime, Fixed, Multiplier
from evalpipe.traffic_shape import UncollectedPath

CORRECTED = "win_rate_corrected"
"""the name of the win rate corrected by labels"""
LABELS_TO_DECIDE = 50
"""labelled pairs from which on it is the goal in place of the judge's own"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRule:
    """The configuration of one metric; None = the default.

    `margin` is the largest acceptable loss: in the metric's unit, or with `margin_relative` as a share of control's value.
    """

    role: str | None = None
    margin: float | None = None
    margin_relative: bool = False
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomMetric:
    """A metric of the user's own: a read-only SQL expression over `exchanges`, or "module:name" of a Python function
    that takes a pandas frame of exchanges and returns one number (or None) per row."""

    name: str
    sql: str | None = None
    function: str | None = None
    direction: str = "higher"
    unit: str = ""
    label: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeInfo:
    """A judge as configured. `orders`: both | calibrated | balanced (what every pair was promised). `fingerprint` None:
    the one judged last is taken."""

    name: str
    fingerprint: str | None = None
    mode: str = "pairwise"
    orders: str = "both"
    rubric: str | None = None
    model: str | None = None
    max_attempts: int = 3
    """answers without a verdict after which a question is given up"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """A period whose requests are in no metric.

    Attributes:
        since: its first instant, ISO 8601 in UTC.
        until: its end, not included.
        why: the reason given.
        declared_at: when.
        seen: some look had used requests of the period before it was declared.
        fault: a set-up fault was found in the period, so that excluding it follows from a rule and not from its results.
    """

    since: str
    until: str
    why: str
    declared_at: str
    seen: bool = False
    fault: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of an analysis.

    `looks`: "anytime" | "fixed" | the dates of planned looks. `judges`: the first one feeds the decision; `judge` (a name)
    overrides it. `n_star`: planned sample of the confidence sequences by metric (units), from the experiment record.
    `treatment_percent`: the planned share in ab mode. `arms`: what is expected of the arms ({control: {provider, model}, …}).
    """

    confidence_level: float = 0.95
    looks: str | tuple[date, ...] = "anytime"
    policy: str = "superiority"
    primary: tuple[str, ...] | None = None
    min_effect_of_interest: float = 0.0
    max_requests: int = 0
    metrics: Mapping[str, MetricRule] = field(default_factory=dict)
    custom: tuple[CustomMetric, ...] = ()
    segments: Mapping[str, str] = field(default_factory=dict)
    judges: tuple[JudgeInfo, ...] = ()
    judge: str | None = None
    treatment_percent: float | None = None
    n_star: Mapping[str, float] = field(default_factory=dict)
    seed: str = ""
    """what orders the users for judging (the experiment's salt); empty: the experiment's name"""
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    n_examples: int = 20
    """per kind of example; 0 = none"""
    n_segment_bins: int = 4
    turns: str = "first"
    """"first" | "all": the turns of shadowed conversations that the win rate is about"""
    pairs_per_unit: int = 3
    """at most so many judged pairs of a user count; 0 = all"""
    later_turns_percent: float = 20.0
    prices: str = ""
    """a fingerprint of the prices costs are computed with"""
    priced: Mapping[str, bool] = field(default_factory=dict)
    """whether the configured model of an arm has a price; an arm that is not named: not known"""
    passes_through: Mapping[str, bool] = field(default_factory=dict)
    """whether an arm takes its key or its model from the client; an arm that is not named: control does, treatment does not"""
    exclusions: tuple[Exclusion, ...] = ()
    """periods taken out of both arms"""
    uncollected: tuple[UncollectedPath, ...] = ()
    """what passed the collector and looks like a model call, the most frequent first"""
    min_consistency: float = 0.5
    """a judge whose consistency is shown to lie below it decides nothing"""
    labels: str = "auto"
    """"auto" | "off" | "required": whether the win rate corrected by people's labels decides in place of the judge's own"""

    @property
    def alpha(self) -> float:
        return 1 - self.confidence_level

    @property
    def look_mode(self) -> str:
        """fixed | anytime | scheduled"""
        return self.looks if isinstance(self.looks, str) else "scheduled"

    def rule(self, metric: str) -> MetricRule:
        return self.metrics.get(metric, MetricRule())


# The monitoring plan: one fixed look, any number of looks, or looks on planned dates; each described in one sentence.


SIGMA2_PAIRED_BINARY = 0.02 / 4
"""planned variance of (1+d)/2 of a paired yes/no outcome: a quarter of the share of discordant pairs, 2 %"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LookPlan:
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
        default = DEFAULT_N_STAR_PAIRS if self.paired else DEFAULT_N_STAR_USERS
        return float(self.n_star.get(metric) or (DEFAULT_N_STAR_LABELS if metric == CORRECTED else default))

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


def resolve_look(
    looks: str | Sequence[date],
    *,
    alpha: float,
    paired: bool,
    n_star: Mapping[str, float],
    first_us: int | None,
    now: datetime,
) -> LookPlan:
    """The look that `now` is. Planned dates count to their end (UTC); the information fraction of a date is its share of the
    time from the first request to the last planned date."""
    if isinstance(looks, str):
        return LookPlan(mode=looks, alpha=alpha, paired=paired, n_star=n_star)
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
        return LookPlan(
            mode="scheduled",
            alpha=alpha,
            paired=paired,
            n_star=n_star,
            waiting=waiting,
            n_looks=len(dates),
            next_date=waiting,
        )
    following = [entry[0] for entry in usable if entry[1] > now]
    return LookPlan(
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
