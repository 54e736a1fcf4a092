"""What a metric is, and the registry of those there are (`@metric`). The metrics themselves stand in definitions.py.

A metric names what to sum over which requests (columns of `ev_rows`, see prepare.py and populations.py): everything else
(clusters, intervals, margins, findings) is the same for all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher"]
Scale = Literal["absolute", "relative"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Σ `numerator` ÷ Σ `denominator` over the requests for which `rows` holds.

    Attributes:
        numerator: a column of `ev_rows`.
        rows: the flag of the requests that count (populations.py): in shadow mode it belongs to the pair, so both arms' sums are
            over the same requests. A flag `has_…` where the columns may be unknown.
        denominator: a column, or "1": a mean per request.
        binary: the numerator is an event that happened or not.
        factor: of the numerator: the same sums in another unit.
    """

    numerator: str
    rows: str
    denominator: str = "1"
    binary: bool = False
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantile:
    """The `share` quantile (in (0, 1)) of the column `value` over the requests for which the flag `rows` holds."""

    value: str
    share: float
    rows: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A value per judged pair or answer, summed from the judgments: the preference, or one dimension's scores.

    `bounds`: the smallest and largest value there can be.
    """

    source: str
    """preference | dimension:NAME | mean_dimension | rating"""
    bounds: tuple[float, float]


Values = Ratio | Quantile | Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is measured and how it may decide. `role_shadow`, `role_split`: its role by default in shadow mode, and in ab and
    canary mode. `margin` is relative where `scale` is; `resolution` is in the metric's unit: a smaller difference is no finding
    of an arm, whatever share of control's value it is."""

    name: str
    label: str
    group: str
    unit: str
    direction: Direction
    role_shadow: str
    role_split: str
    scale: Scale
    margin: float
    estimand: str
    values: Values
    resolution: float = 0.0

    @property
    def sign(self) -> int:
        return 1 if self.direction == "higher" else -1


_REGISTRY: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    label: str,
    group: str,
    unit: str,
    direction: Direction,
    roles: tuple[str, str] = ("diagnostic", "diagnostic"),
    scale: Scale = "absolute",
    margin: float,
    resolution: float = 0.0,
    estimand: str | None = None,
) -> Callable[[Callable[[], Values]], Callable[[], Values]]:
    """Register a metric; `estimand` in words, by default the function's docstring."""

    def register(values: Callable[[], Values]) -> Callable[[], Values]:
        if name in _REGISTRY:
            raise ValueError(f"two metrics are called {name!r}")
        _REGISTRY[name] = Metric(
            name=name,
            label=label,
            group=group,
            unit=unit,
            direction=direction,
            role_shadow=roles[0],
            role_split=roles[1],
            scale=scale,
            margin=margin,
            estimand=estimand or " ".join((values.__doc__ or label).split()),
            values=values(),
            resolution=resolution,
        )
        return values

    return register


def metrics() -> list[Metric]:
    """Every registered metric, in the order of the report."""
    importlib.import_module("evalpipe.analysis.definitions")  # it registers them by being read
    return list(_REGISTRY.values())


def custom_metric(name: str, *, label: str | None, direction: Direction, unit: str, column: str) -> Metric:
    """A user's own metric: the mean of `column` of `ev_rows` over answered requests where it is not NULL (in shadow mode on
    both sides)."""
    return Metric(
        name=name,
        label=label or name,
        group="custom",
        unit=unit,
        direction=direction,
        role_shadow="diagnostic",
        role_split="diagnostic",
        scale="relative",
        margin=0.10,
        estimand="mean per answered request",
        values=Ratio(numerator=column, rows=f"has_{column}"),
    )
