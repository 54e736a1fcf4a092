"""Canary stages: each percentage is analysed on its own and the stages are combined (docs/statistics.md#stages).

Mixing stages would compare early control traffic with late treatment traffic. The weights depend on sizes only
(Cochran 1954: n_T n_C/(n_T + n_C)), never on outcomes, so that peeking stays valid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evalpipe.stats.cluster import ArmAggregate, Spread


def stage_weights(sizes: Sequence[tuple[float, float]]) -> list[float]:
    """Weights that add to 1 from each stage's (control, treatment) denominators; a stage with an empty arm gets 0."""
    raw = [c * t / (c + t) if c > 0 and t > 0 else 0.0 for c, t in sizes]
    total = sum(raw)
    return [w / total for w in raw] if total > 0 else raw


def combine_arm(
    stages: Sequence[ArmAggregate], weights: Sequence[float], *, n_clusters: int | None = None
) -> ArmAggregate:
    """One arm over all stages: ratio Σ w_s R_s, variance Σ w_s² v_s (users of different stages taken as independent).

    Give `n_clusters` where users stay over stages; better still, add w_s·e_us per user in SQL before squaring and build the
    `ArmAggregate` from that. Stages of weight 0 are left out.
    """
    used = [(s, w) for s, w in zip(stages, weights, strict=True) if w > 0]
    n = sum(s.n for s, _ in used)
    ratio = sum(w * (s.ratio or 0.0) for s, w in used)
    denominator = sum(s.denominator for s, _ in used)
    spreads = [(s.spread, w) for s, w in used]
    spread = None
    if spreads and all(s is not None for s, _ in spreads):
        spread = Spread(
            v_jack=_weighted([(s.v_jack, w) for s, w in spreads if s], 2),
            v_lin=_weighted([(s.v_lin, w) for s, w in spreads if s], 2),
            m3sum=_weighted([(s.m3sum, w) for s, w in spreads if s], 3),
        )
    events = None
    if used and all(s.n_events is not None for s, _ in used):
        events = sum(s.n_events or 0 for s, _ in used)
    clusters = sum(s.n_clusters for s, _ in used) if n_clusters is None else n_clusters
    return ArmAggregate(
        n=n,
        n_clusters=clusters,
        numerator=ratio * denominator,
        denominator=denominator,
        spread=spread,
        n_events=events,
    )


def combine(
    stages: Sequence[tuple[ArmAggregate, ArmAggregate]],
) -> tuple[ArmAggregate, ArmAggregate]:
    """(control, treatment) over the stages' (control, treatment), weighed alike; feed to `unpaired_difference`."""
    weights = stage_weights([(c.denominator, t.denominator) for c, t in stages])
    control = combine_arm([c for c, _ in stages], weights)
    treatment = combine_arm([t for _, t in stages], weights)
    return control, treatment


def _weighted(terms: Sequence[tuple[float | None, float]], power: int) -> float | None:
    if any(v is None for v, _ in terms):
        return None
    return math.fsum((v or 0.0) * w**power for v, w in terms)
