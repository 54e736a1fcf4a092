"""What an analysis needs to be told: plain values, so that no configuration format reaches this room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRule:
    """What the user says of one metric; None = the contract's default.

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
    min_consistency: float = 0.5
    """a judge whose consistency lies below it for certain decides nothing"""

    @property
    def alpha(self) -> float:
        return 1 - self.confidence_level

    @property
    def mode_of_looking(self) -> str:
        """fixed | anytime | scheduled"""
        return self.looks if isinstance(self.looks, str) else "scheduled"

    def rule(self, metric: str) -> MetricRule:
        return self.metrics.get(metric, MetricRule())
