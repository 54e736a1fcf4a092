"""Means and ratios over users: the aggregates behind error rates, tokens, cost and scores (statistics.md 3).

A metric is R = ΣS/ΣW, with S and W summed per user (W = 1 per request for a mean). The variance is the delete-one-user
jackknife (default) or its linearisation. Rows never come here: the aggregates below are what one SQL pass gives, and
`arm_aggregate` / `paired_aggregate` make them from per-user arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """The aggregate of per-user sums S and W; `n` defaults to ΣW, rounded.

    A user with W = 0 counts only where S ≠ 0: the cost of a user none of whose answers succeeded is in the numerator of the
    cost per good answer. `plain_df`: G − 1 degrees of freedom, however unequal the users.
    """
    s, w = _users(numerators, denominators)
    if w.sum() <= 0:
        return ArmAggregate(n=0 if n is None else n, n_clusters=0, numerator=0.0, denominator=0.0, n_events=n_events)
    return _arm(s, w, *_terms(s, w), None if plain_df else _degrees(w), n=n, n_events=n_events)


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
    """The aggregate of per-user sums of both arms; a user may miss a side (its W = 0 there). `plain_df`: G − 1 degrees of
    freedom, however unequal the users."""
    st, wt = np.asarray(treatment_numerators, float), np.asarray(treatment_denominators, float)
    sc, wc = np.asarray(control_numerators, float), np.asarray(control_denominators, float)
    st, wt, sc, wc = _users(st, wt, sc, wc)
    pairs = int(min(wt.sum(), wc.sum())) if n_pairs is None else n_pairs
    absolute = relative = difference = None
    if wt.sum() <= 0 or wc.sum() <= 0:
        treatment, control = arm_aggregate(st, wt, plain_df=plain_df), arm_aggregate(sc, wc, plain_df=plain_df)
    else:
        # Every array is passed over once: with millions of users that is what the analysis waits for.
        (et, tt), (ec, tc) = _terms(st, wt), _terms(sc, wc)
        balanced = bool(np.array_equal(wt, wc))
        df_t = None if plain_df else _degrees(wt)
        df_c = df_t if balanced or plain_df else _degrees(wc)
        df = df_t if balanced or plain_df else _degrees(wt + wc)
        treatment, control = _arm(st, wt, et, tt, df_t), _arm(sc, wc, ec, tc, df_c)
        if balanced:
            difference = float((st - sc).sum() / wt.sum())
            absolute = _spread(*_terms(st - sc, wt), df)
        else:
            absolute = _spread(et - ec, None if tt is None or tc is None else tt - tc, df)
        ratio_t, ratio_c = treatment.ratio, control.ratio
        if ratio_t is not None and ratio_c is not None and ratio_t > 0 and ratio_c > 0:
            relative = _relative_spread(et / ratio_t - ec / ratio_c, tt, tc, ratio_t, ratio_c, df)
    return PairedAggregate(
        control=control,
        treatment=treatment,
        n_pairs=pairs,
        n_clusters=len(wt),
        absolute=absolute,
        relative=relative,
        n_discordant=n_discordant,
        difference=difference,
    )


def _users(*sums: npt.ArrayLike) -> tuple[Array, ...]:
    """The users that carry anything: a denominator above 0 or a numerator. `sums`: numerators and denominators in turn."""
    arrays = tuple(np.asarray(one, float) for one in sums)
    seen = arrays[1] > 0
    for s, w in zip(arrays[::2], arrays[1::2], strict=True):
        seen = seen | (w > 0) | (s != 0)
    return arrays if seen.all() else tuple(one[seen] for one in arrays)


def _terms(s: Array, w: Array) -> tuple[Array, Array | None]:
    """Linearised terms e and jackknife terms t of every user; t None where one user holds all of W."""
    total = w.sum()
    residual = s - (s.sum() / total) * w
    rest = total - w
    return residual / total, (residual / rest if rest.min() > 0 else None)


def _arm(
    s: Array,
    w: Array,
    e: Array,
    t: Array | None,
    df: float | None,
    *,
    n: int | None = None,
    n_events: int | None = None,
) -> ArmAggregate:
    """One arm from its users' sums and terms; users that carry nothing in it (both sums 0) do not count."""
    total = float(w.sum())
    n_clusters = int(np.count_nonzero(w))
    if n_clusters < len(w):
        carries = (w > 0) | (s != 0)
        e, t = e[carries], None if t is None else t[carries]
    return ArmAggregate(
        n=round(total) if n is None else n,
        n_clusters=n_clusters,
        numerator=float(s.sum()),
        denominator=total,
        spread=_spread(e, t, df),
        n_events=n_events,
    )


def _spread(e: Array, t: Array | None, df: float | None) -> Spread | None:
    """`df`: the effective degrees of freedom; None = G − 1 of them."""
    g = len(e)
    if g < 2:
        return None
    squares = e * e
    return Spread(
        v_jack=None if t is None else float((g - 1) / g * (t * t).sum()),
        v_lin=float(g / (g - 1) * squares.sum()),
        m3sum=float((squares * e).sum()),
        df=None if t is None else df,
    )


def _degrees(w: Array) -> float | None:
    """Of the users' W; None where one user holds all of it."""
    rest = w.sum() - w
    if rest.min() <= 0:
        return None
    q = w / rest
    q2 = q * q
    return effective_df(float(q.sum()), float(q2.sum()), float((q2 * q2).sum()))


def _relative_spread(
    e: Array, tt: Array | None, tc: Array | None, ratio_t: float, ratio_c: float, df: float | None
) -> Spread | None:
    t = None
    if tt is not None and tc is not None and tt.max() < ratio_t and tc.max() < ratio_c:
        t = np.log1p(-tt / ratio_t) - np.log1p(-tc / ratio_c)
    return _spread(e, t, df)


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
