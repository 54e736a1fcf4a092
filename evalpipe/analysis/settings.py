"""What an analysis needs to be told: plain values, so that no configuration format reaches this room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from evalpipe.core.uncollected import UncollectedPath


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRule:
    """What the user says of one metric; None = the default.

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
    """Everything the analysis is told beside the data.

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

    @property
    def alpha(self) -> float:
        return 1 - self.confidence_level

    @property
    def mode_of_looking(self) -> str:
        """fixed | anytime | scheduled"""
        return self.looks if isinstance(self.looks, str) else "scheduled"

    def rule(self, metric: str) -> MetricRule:
        return self.metrics.get(metric, MetricRule())
