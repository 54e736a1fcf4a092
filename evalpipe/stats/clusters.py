"""Means and ratios over users: the aggregates behind error rates, tokens, cost and scores (statistics.md 3).

A metric is R = ΣS/ΣW, with S and W summed per user (W = 1 per request for a mean). The variance is the delete-one-user
jackknife (default) or its linearisation. Rows never come here: the aggregates below are what one SQL pass gives, and
`arm_aggregate` / `paired_aggregate` make them from per-user arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Variance = Literal["jackknife", "linearised"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The spread of an estimator over G users, with t_u the user's term in it.

    `v_jack` = (G−1)/G Σ t_u² with t_u = (S_u − R W_u)/(W. − W_u); None where one user holds all of W.
    `v_lin` = G/(G−1) Σ e_u² with e_u = (S_u − R W_u)/W. ; `m3sum` = Σ e_u³ (the skewness gate).
    None where G < 2. Paired: t and e are the treatment's minus the control's, subtracted before squaring. `df`: effective
    degrees of freedom (`effective_df`); None = G − 1.
    """

    v_jack: float | None
    v_lin: float | None
    m3sum: float | None = None
    df: float | None = None

    def variance(self, kind: Variance) -> float | None:
        return self.v_lin if kind == "linearised" or self.v_jack is None else self.v_jack

    def degrees(self, n_clusters: int) -> float:
        return n_clusters - 1 if self.df is None else self.df


def effective_df(q: float, q2: float, q4: float) -> float | None:
    """Degrees of freedom of the jackknife variance from the users' weights: (Σq)² / (Σq² + (Σq²)² − Σq⁴), q = W_u/(W. − W_u).

    Satterthwaite's: tr(M)²/tr(M²) with M the covariance of the jackknife terms when the rows are alike (Bell & McCaffrey 2002,
    Pustejovsky & Tipton 2018). G − 1 where all users weigh the same, fewer where a few carry the mean: with ten heavy users
    4.5 on average, and the 95 % interval covers .96 rather than .92. None where it cannot be had.
    """
    squares = q2 + q2 * q2 - q4
    return q * q / squares if squares > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmAggregate:
    """One arm's ratio metric over its users.

    `n` rows (requests), `n_clusters` users with W > 0, `numerator` ΣS, `denominator` ΣW. `n_events` (binary metrics
    only): rows with the event, for the ten-events gate; None otherwise.
    """

    n: int
    n_clusters: int
    numerator: float
    denominator: float
    spread: Spread | None = None
    n_events: int | None = None

    @property
    def ratio(self) -> float | None:
        return self.numerator / self.denominator if self.n > 0 and self.denominator > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedAggregate:
    """Both arms of the same users (shadow mode). `absolute` is the spread of R_T − R_C, `relative` that of ln R_T − ln R_C.

    relative.v_jack = (G−1)/G Σ (ln(1 − t_Tu/R_T) − ln(1 − t_Cu/R_C))² with t = (S − R W)/(W. − W_u), the jackknife of the
    log ratio itself; relative.v_lin and m3sum divide each arm's e_u by its R. `relative` is None unless both ratios are > 0
    (leave its v_jack None where leaving one user out makes a ratio ≤ 0). `n_pairs` = requests with both sides;
    `n_discordant` (binary metrics only): pairs in which exactly one arm has the event. `difference`: where every user has
    the same W in both arms, Σ(S_T − S_C)/W. with the subtraction done per row or user: R_T − R_C loses the digits of a small
    difference between large values (and so do the terms: make them from S_T − S_C then).
    """

    control: ArmAggregate
    treatment: ArmAggregate
    n_pairs: int
    n_clusters: int
    absolute: Spread | None
    relative: Spread | None = None
    n_discordant: int | None = None
    difference: float | None = None


def arm_aggregate(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    n: int | None = None,
    n_events: int | None = None,
    plain_df: bool = False,
) -> ArmAggregate:
    """The aggregate of per-user sums S and W ≥ 0; `n` defaults to ΣW, rounded.

    A user with W = 0 counts only where S ≠ 0: the cost of a user none of whose answers succeeded is in the numerator of the
    cost per good answer. `plain_df`: G − 1 degrees of freedom, however unequal the users.
    """
    s, w = np.asarray(numerators, float), np.asarray(denominators, float)
    total = float(w.sum())
    if total <= 0:
        return ArmAggregate(n=0 if n is None else n, n_clusters=0, numerator=0.0, denominator=0.0, n_events=n_events)
    arm = _Arm(s, w)
    for block in _blocks(s, w):
        arm.add(*block)
    return arm.aggregate(None if plain_df else _degrees(w), n=n, n_events=n_events)


def paired_aggregate(
    treatment_numerators: npt.ArrayLike,
    treatment_denominators: npt.ArrayLike,
    control_numerators: npt.ArrayLike,
    control_denominators: npt.ArrayLike,
    *,
    n_pairs: int | None = None,
    n_discordant: int | None = None,
    plain_df: bool = False,
) -> PairedAggregate:
    """The aggregate of per-user sums of both arms, W ≥ 0; a user may miss a side (its W = 0 there). `plain_df`: G − 1 degrees of
    freedom, however unequal the users."""
    st, wt = np.asarray(treatment_numerators, float), np.asarray(treatment_denominators, float)
    sc, wc = np.asarray(control_numerators, float), np.asarray(control_denominators, float)
    pairs = int(min(wt.sum(), wc.sum())) if n_pairs is None else n_pairs
    if wt.sum() <= 0 or wc.sum() <= 0:
        return PairedAggregate(
            control=arm_aggregate(sc, wc, plain_df=plain_df),
            treatment=arm_aggregate(st, wt, plain_df=plain_df),
            n_pairs=pairs,
            n_clusters=int(np.count_nonzero(carrying(st, wt) | carrying(sc, wc))),
            absolute=None,
            n_discordant=n_discordant,
        )
    treatment, control = _Arm(st, wt), _Arm(sc, wc)
    balanced = bool(np.array_equal(wt, wc))
    between = _Arm(st - sc, wt) if balanced else None
    absolute, relative = _Moments(), _Moments()
    both_positive = treatment.ratio > 0 and control.ratio > 0
    n_clusters = 0
    for s_t, w_t, s_c, w_c in _blocks(st, wt, sc, wc):
        n_clusters += int(np.count_nonzero(carrying(s_t, w_t) | carrying(s_c, w_c)))
        (e_t, t_t), (e_c, t_c) = treatment.add(s_t, w_t), control.add(s_c, w_c)
        if between is not None:
            between.add(s_t - s_c, w_t)
        else:
            absolute.add(e_t - e_c, t_t - t_c)
        if both_positive:
            with np.errstate(
                divide="ignore", invalid="ignore"
            ):  # without some user a ratio is 0 or less: not used then
                logs = np.log1p(-t_t / treatment.ratio) - np.log1p(-t_c / control.ratio)
            relative.add(e_t / treatment.ratio - e_c / control.ratio, logs)
    df_t, df_c, df = (None, None, None) if plain_df else _paired_degrees(wt, wc, balanced=balanced)
    has_terms = treatment.has_terms and control.has_terms
    stays_positive = treatment.stays_positive and control.stays_positive
    return PairedAggregate(
        control=control.aggregate(df_c),
        treatment=treatment.aggregate(df_t),
        n_pairs=pairs,
        n_clusters=n_clusters,
        absolute=(absolute if between is None else between.moments).spread(n_clusters, df, jackknife=has_terms),
        relative=relative.spread(n_clusters, df, jackknife=has_terms and stays_positive) if both_positive else None,
        n_discordant=n_discordant,
        difference=None if between is None else between.ratio,
    )


BLOCK = 1 << 14
"""users whose terms are made at a time: with millions of users, arrays of all their terms do not fit into a cache"""


def _blocks(*sums: Array) -> Iterator[tuple[Array, ...]]:
    """The users' sums, some users at a time. Raises ValueError where they are not of the same users."""
    n = len(sums[0])
    if any(len(one) != n for one in sums):
        raise ValueError(f"sums of different numbers of users: {', '.join(str(len(one)) for one in sums)}")
    for start in range(0, n, BLOCK):
        yield tuple(one[start : start + BLOCK] for one in sums)


def carrying(s: Array, w: Array) -> npt.NDArray[np.bool_]:
    """Which users carry anything: a denominator above 0 or a numerator."""
    found: npt.NDArray[np.bool_] = (w > 0) | (s != 0)
    return found


@dataclass(slots=True)
class _Moments:
    """Sums over users of the linearised terms e and the jackknife terms t of one estimator: Σe², Σe³, Σt²."""

    e2: float = 0.0
    e3: float = 0.0
    t2: float = 0.0

    def add(self, e: Array, t: Array) -> None:
        squares = e * e
        self.e2 += float(squares.sum())
        self.e3 += float((squares * e).sum())
        self.t2 += float((t * t).sum())

    def spread(self, g: int, df: float | None, *, jackknife: bool) -> Spread | None:
        """`g` users; `df`: the effective degrees of freedom, None = G − 1 of them; `jackknife`: every t is defined."""
        if g < 2:
            return None
        return Spread(
            v_jack=(g - 1) / g * self.t2 if jackknife else None,
            v_lin=g / (g - 1) * self.e2,
            m3sum=self.e3,
            df=df if jackknife else None,
        )


class _Arm:
    """The sums over users of one arm's terms. Users that carry nothing (S = W = 0) have terms of 0, and are not counted."""

    def __init__(self, s: Array, w: Array) -> None:
        self.numerator, self.total = float(s.sum()), float(w.sum())
        self.ratio = self.numerator / self.total
        self.has_terms = float(w.max()) < self.total
        """false: one user holds all of W, and nothing is left without that user"""
        self.stays_positive = True
        """the ratio is above 0 without any one user"""
        self.moments = _Moments()
        self._n_weighing = self._n_carrying = 0

    def add(self, s: Array, w: Array) -> tuple[Array, Array]:
        """Add some users; returns their terms e and t (0 where the arm has none)."""
        residual = s - self.ratio * w
        e = residual / self.total
        t = residual / (self.total - w) if self.has_terms else np.zeros(len(s))
        self.moments.add(e, t)
        self.stays_positive &= bool((t < self.ratio).all())
        self._n_weighing += int(np.count_nonzero(w))
        self._n_carrying += int(np.count_nonzero(carrying(s, w)))
        return e, t

    def aggregate(self, df: float | None, *, n: int | None = None, n_events: int | None = None) -> ArmAggregate:
        return ArmAggregate(
            n=round(self.total) if n is None else n,
            n_clusters=self._n_weighing,
            numerator=self.numerator,
            denominator=self.total,
            spread=self.moments.spread(self._n_carrying, df, jackknife=self.has_terms),
            n_events=n_events,
        )


def _paired_degrees(wt: Array, wc: Array, *, balanced: bool) -> tuple[float | None, float | None, float | None]:
    """Of the treatment, of control, and of their difference. `balanced`: every user has the same W in both arms."""
    of_treatment = _degrees(wt)
    return (of_treatment,) * 3 if balanced else (of_treatment, _degrees(wc), _degrees(wt + wc))


def _degrees(w: Array) -> float | None:
    """Of the users' W; None where one user holds all of it."""
    total = float(w.sum())
    if float(w.max()) >= total:
        return None
    sums = [0.0, 0.0, 0.0]
    for (block,) in _blocks(w):
        q = block / (total - block)
        q2 = q * q
        for power, values in enumerate((q, q2, q2 * q2)):
            sums[power] += float(values.sum())
    return effective_df(*sums)


# Canary stages: each percentage is analysed on its own and the stages are combined (docs/statistics.md#stages).
#
# Mixing stages would compare early control traffic with late treatment traffic. The weights depend on sizes only
# (Cochran 1954: n_T n_C/(n_T + n_C)), never on outcomes, so that peeking stays valid.


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
