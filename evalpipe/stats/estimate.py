"""The one shape every number comes in: a point with its interval, and how it was made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """An estimate with its interval. `status` other than "ok" means: do not conclude from it (numbers may still be given).

    `point`, `ci_low`, `ci_high`, `standard_error` are in the estimand's unit; None = not defined. `df` None = normal limit.
    `n` counts observations (requests, pairs), `n_clusters` the independent units behind them. Statuses: ok, not_measured,
    missing_differs, no_data, missing_arm, n_lt_2, one_cluster, too_few_clusters, zero_variance, tail_too_small,
    too_few_events, burn_in, too_few_labels, undefined_kappa, relative_undefined, unreliable_judge, length_confounded,
    invalid_srm. NaN and infinities never get in: they become None. `skewness`: of the estimator, Σe³/se³, which falls with
    1/√n (the gate of early looks); None where it is not known.
    """

    point: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    confidence_level: float = 0.95
    n: int = 0
    n_clusters: int = 0
    standard_error: float | None = None
    df: float | None = None
    p_value: float | None = None
    method: str = ""
    estimand: str = ""
    status: str = "ok"
    note: str | None = None
    skewness: float | None = None

    def __post_init__(self) -> None:
        for name in ("point", "ci_low", "ci_high", "standard_error", "df", "p_value", "skewness"):
            value = getattr(self, name)
            if value is not None:
                number = float(value)
                object.__setattr__(self, name, number if math.isfinite(number) else None)

    @property
    def reaches_zero(self) -> bool:
        """Whether there is an interval and it contains 0."""
        return self.ci_low is not None and self.ci_high is not None and self.ci_low <= 0 <= self.ci_high

    def extended_to_zero(self) -> Estimate:
        """The same with an interval that contains 0; unchanged where there is none or it does already."""
        if self.ci_low is None or self.ci_high is None or self.reaches_zero:
            return self
        return replace(self, ci_low=min(self.ci_low, 0.0), ci_high=max(self.ci_high, 0.0))
