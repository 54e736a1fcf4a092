"""A mean over all pairs from few people's labels and a judge's verdicts on all: prediction-powered inference
(docs/statistics.md#corrected-win-rate).

Y are labels, f the judge's values of the labelled items, F those of the others. The judge's mean is moved by what it gets wrong
on the labelled items; λ in [0, 1] is how much of the judge is used, chosen to give the least variance. λ = 0 is the labels'
plain mean, and no judge, however bad, makes the result wrong. Values may be in any unit; results are in the same.

Sources: Angelopoulos, Duchi & Zrnic 2023 (PPI++); Zrnic & Candès 2024 (unequal probabilities); Waudby-Smith et al. 2024
(confidence sequences). Checked against ppi-python and fewhumans, which divide by n and use the normal quantile (ppi-python);
here variances divide by n − 1 and the quantile is Student's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from evalpipe.stats.agreement import MIN_LABELS, MIN_RARE
from evalpipe.stats.estimates import Estimate, cluster_status
from evalpipe.stats.sequential import Anytime, Fixed, Multiplier

Array = npt.NDArray[np.float64]
LABELS_FOR_LAMBDA = 20
"""labelled users before which a running λ is 0"""
LABELS_ANYTIME = 50
"""labelled users before which an early look may not decide"""
LABELS_PER_STRATUM = 20
REFRESH = 200
"""users between two updates of a running λ, at most"""
DEFAULT_N_STAR_LABELS = 200
"""labelled users at which the confidence sequence is tightest"""
LEAST_LEFT = 0.2
"""a user's residual is divided by 1 − leverage, or by this where that is less"""
METHOD = "prediction-powered"


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrected:
    """A mean corrected by labels.

    Attributes:
        estimate: the mean with its interval; `n` labels, `n_clusters` labelled users.
        lam: λ in [0, 1], the judge's share; 0: the labels alone.
        gain: labels that one label is worth with the judge beside it: the variance of the labels alone over this one's; None
            where either is 0 or not known.
        v_labels: variance of the mean of Y − λf.
        v_judge: variance of λ times the mean of F. se² is the sum of both, and twice their covariance where users have labelled
            and other pairs.
        terms: each user's part of the error of the mean, Σ terms² = se²; empty where not known.
    """

    estimate: Estimate
    lam: float
    gain: float | None = None
    v_labels: float = 0.0
    v_judge: float = 0.0
    terms: Array = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class UserSums:
    """Sums per user, arrays of one length; a user may have labelled pairs, others, or both.

    Attributes:
        y: Σ labels.
        f: Σ judge's values of the labelled pairs.
        n: their number, or the sum of their weights; 0: no label.
        rest: Σ judge's values of the pairs without a label.
        n_rest: their number or weight.
        n_labels: labels in all; by default the users with one.
    """

    y: npt.ArrayLike
    f: npt.ArrayLike
    n: npt.ArrayLike
    rest: npt.ArrayLike
    n_rest: npt.ArrayLike
    n_labels: int | None = None


def ppi_mean(
    y: npt.ArrayLike,
    f: npt.ArrayLike,
    rest: npt.ArrayLike,
    *,
    lam: float | None = None,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
) -> Corrected:
    """The mean of independent items, of which a random sample is labelled.

    θ = λ·mean(F) + mean(Y − λf); se² = λ²·var(F)/N + var(Y − λf)/n, variances by n − 1; t with n − 2 degrees of freedom (n − 1
    where λ is given, or 0 because there is no judge's value or it never varies).

    Args:
        y: labels of the n labelled items.
        f: the judge's values of the same.
        rest: the judge's values of the N others; none: the labels alone.
        lam: λ; None: clip(mean[(Y − Ȳ)(f − f̄)] / ((1 + n/N)·var(f and F)), 0, 1).
        multiplier: the plan of looks; one look by default.
        alpha: two-sided level.

    Returns:
        Status ok, no_data, n_lt_2, one_cluster, too_few_clusters or too_few_labels (fewer than 10, or of two different labels
        fewer than 5 of the rarer).

    Raises:
        ValueError: where `y` and `f` differ in length, or a value is not a number.
    """
    labels, judged, others = _numbers(y, "y"), _numbers(f, "f"), _numbers(rest, "rest")
    if labels.shape != judged.shape:
        raise ValueError(f"every label needs the judge's value: {len(labels)} labels, {len(judged)} values")
    n, m = len(labels), len(others)
    sums = UserSums(
        y=np.concatenate([labels, np.zeros(m)]),
        f=np.concatenate([judged, np.zeros(m)]),
        n=np.concatenate([np.ones(n), np.zeros(m)]),
        rest=np.concatenate([np.zeros(n), others]),
        n_rest=np.concatenate([np.zeros(n), np.ones(m)]),
    )
    found = ppi_users(sums, lam=lam, multiplier=multiplier, alpha=alpha)
    status = labels_status(labels)
    if found.estimate.status == "ok" and status is not None:
        found = replace(found, estimate=replace(found.estimate, status="too_few_labels", note=status))
    return found


def ppi_users(
    sums: UserSums,
    *,
    lam: float | None = None,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
) -> Corrected:
    """`ppi_mean` with users as clusters: both means are ratios of sums over users, Σ(y − λf)/Σn and Σrest/Σn_rest.

    The variance is the delete-one-user jackknife of both parts together (docs/statistics.md#means), so a user with labelled and
    other pairs counts once. λ is that of the users' means. With one pair a user it is exactly `ppi_mean`.

    Returns:
        As `ppi_mean`, with n the labelled users; whether labels are too few or too much alike is the caller's
        (`labels_status`), who has them.

    Raises:
        ValueError: for arrays of different lengths or negative weights.
    """
    y, f, w, rest, w_rest = (_numbers(part, "a sum") for part in (sums.y, sums.f, sums.n, sums.rest, sums.n_rest))
    if len({len(part) for part in (y, f, w, rest, w_rest)}) != 1:
        raise ValueError("the sums of the users must be lists of one length")
    if (w < 0).any() or (w_rest < 0).any():
        raise ValueError("the number of a user's pairs is never negative")
    labelled, others = w > 0, w_rest > 0
    n, m = int(labelled.sum()), int(others.sum())
    n_labels = n if sums.n_labels is None else sums.n_labels
    if n == 0:
        return Corrected(estimate=_empty("no_data", alpha), lam=0.0)
    tuned = None
    if m >= 2 and lam is None:
        tuned = _tuned(y[labelled] / w[labelled], f[labelled] / w[labelled], rest[others] / w_rest[others])
    lam = (lam or 0.0) if m >= 2 and tuned is None else tuned or 0.0
    mean = float(rest.sum() / w_rest.sum()) if m else 0.0
    point = lam * mean + float((y - lam * f).sum() / w.sum())
    if n < 2:
        return Corrected(estimate=replace(_empty("one_cluster", alpha), point=point, n=n_labels, n_clusters=1), lam=lam)
    label_terms = _jackknife_terms(y - lam * f, w)
    judge_terms = lam * _jackknife_terms(rest, w_rest) if m >= 2 and lam else np.zeros(len(y))
    terms = label_terms + judge_terms
    se = math.sqrt(float(terms @ terms))
    alone = _jackknife_terms(y, w)
    return Corrected(
        estimate=_interval(
            point, se, df=n - (1 if tuned is None else 2), n=n, n_labels=n_labels, multiplier=multiplier, alpha=alpha
        ),
        lam=lam,
        gain=_gain(float(alone @ alone), se**2) if lam else 1.0,
        v_labels=float(label_terms @ label_terms),
        v_judge=float(judge_terms @ judge_terms),
        terms=terms,
    )


def stratified_mean(
    strata: Sequence[UserSums],
    weights: Sequence[float],
    *,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
) -> Corrected:
    """The mean over strata of which each has a random sample of labels: θ = Σ W_h θ_h, V = Σ W_h² V_h, df = n − 2H.

    Args:
        strata: each stratum's sums. Where a user may be in several, all have the same users in the same order, and the
            user's parts of all strata are added before squaring; lists of different lengths are different users.
        weights: W_h ≥ 0, each stratum's share of all pairs; they are divided by their sum.
        multiplier: the plan of looks.
        alpha: two-sided level.

    Returns:
        Status too_few_labels where a stratum has fewer than 20 labelled users, no_data without labels or where a stratum with a
        weight has none.

    Raises:
        ValueError: where the lists differ in length or no weight is above 0.
    """
    if len(strata) != len(weights) or not strata:
        raise ValueError(f"each stratum needs a weight: {len(strata)} strata, {len(weights)} weights")
    shares = np.asarray(weights, float)
    if not ((shares >= 0).all() and shares.sum() > 0):
        raise ValueError(f"weights must not be negative, and some must be above 0: {list(weights)}")
    shares = shares / shares.sum()
    parts = [ppi_users(one, alpha=alpha) for one in strata]
    known = [(share, part) for share, part in zip(shares, parts, strict=True) if share > 0]
    labels = sum(part.estimate.n_clusters for _, part in known)
    if any(part.estimate.point is None for _, part in known):
        return Corrected(estimate=_empty("no_data", alpha), lam=0.0)
    point = sum(share * (part.estimate.point or 0.0) for share, part in known)
    if any(part.estimate.standard_error is None for _, part in known):
        return Corrected(
            estimate=replace(_empty("one_cluster", alpha), point=point, n=labels, n_clusters=labels), lam=0.0
        )
    scaled = [share * part.terms for share, part in known]
    alike = len({len(terms) for terms in scaled}) == 1
    terms = np.sum(scaled, axis=0) if alike else np.concatenate(scaled)
    se = math.sqrt(float(terms @ terms))
    estimate = _interval(
        point, se, df=labels - 2 * len(known), n=labels, n_labels=labels, multiplier=multiplier, alpha=alpha
    )
    fewest = min(part.estimate.n_clusters for _, part in known)
    if estimate.status == "ok" and fewest < LABELS_PER_STRATUM:
        note = f"{fewest} labels in a stratum, at least {LABELS_PER_STRATUM} needed"
        estimate = replace(estimate, status="too_few_labels", note=note)
    return Corrected(
        estimate=estimate,
        lam=sum(share * part.lam for share, part in known),
        v_labels=sum(share**2 * part.v_labels for share, part in known),
        v_judge=sum(share**2 * part.v_judge for share, part in known),
        terms=terms,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """All items, labelled or not, as arrays of one length.

    Attributes:
        f: the judge's values.
        y: labels; NaN where there is none.
        probability: with which each item was drawn for labelling, in (0, 1]; read where there is a label.
        users: each item's user, from 0; None: each is its own.
    """

    f: npt.ArrayLike
    y: npt.ArrayLike
    probability: npt.ArrayLike
    users: npt.ArrayLike | None = None


def active_mean(
    items: Items,
    *,
    lam: float | None = None,
    scaled: bool = True,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
) -> Corrected:
    """The mean over users of their items, of which some were labelled with unequal known probabilities π.

    δ_i = g_i + (ξ_i/π_i)(Y_i − g_i), ξ_i = 1 where there is a label; a user's δ is the mean over their items; θ = mean δ,
    se² = var(δ)/users with n − 1 (`scaled`: with residuals over 1 − leverage, as c and λ are fitted to the same labels), t with
    labelled users − 2 degrees of freedom (− 1 where λ is given).

    Args:
        items: all items.
        lam: λ; None: the one that makes the variance of δ least, clipped to [0, 1].
        scaled: g_i = c + λ(f_i − f̄) with c and f̄ the labelled items' means weighted by 1/π, and the weights 1/π scaled to add
            up to the number of users. The result then holds where only a random part of the drawn items has been labelled so
            far, and at equal probabilities is PPI++. False: g_i = λf_i and the weights as they are.
        multiplier: the plan of looks.
        alpha: two-sided level.

    Returns:
        Status as `ppi_users`.

    Raises:
        ValueError: for lists of different lengths, a judge's value that is not a number, or a labelled item whose probability
            is not in (0, 1].
    """
    drawn = _drawn(items)
    return _active(_scaled(drawn) if scaled else drawn, centred=scaled, lam=lam, multiplier=multiplier, alpha=alpha)


def delta_stream(items: Items, *, refresh: int = REFRESH) -> Array:
    """The users' δ in the order in which the users first come, each made from what came before it only.

    g_i = c + λ(f_i − f̄) with c, f̄ and λ of the users before, weighted by 1/π, renewed every `refresh` users; λ = 0 before 20
    labelled users, c = the middle of the judge's values before the first renewal. So δ is unbiased at any sample, and its running
    mean may be looked at any time.

    Raises:
        ValueError: as `active_mean`.
    """
    return _stream(_drawn(items), refresh)


def anytime_mean(
    items: Items,
    *,
    n_star: float = DEFAULT_N_STAR_LABELS,
    refresh: int = REFRESH,
    alpha: float = 0.05,
) -> Corrected:
    """The mean of `delta_stream` with an asymptotic confidence sequence: valid however often one looks.

    The clock is the number of labelled users, which the information is in proportion to: labels come in while the judged pairs
    stay. Weights 1/π are scaled to the number of users, as in `active_mean`. `lam` and `gain` are those of all items together.

    Args:
        items: all items, the users in an order that has nothing to do with their values or labels.
        n_star: labelled users at which the interval is tightest, fixed before the first look.
        refresh: users between two renewals of λ.
        alpha: two-sided level.

    Returns:
        Status burn_in below 50 labelled users, too_few_clusters below 5, no_data without labels.

    Raises:
        ValueError: as `active_mean`.
    """
    drawn = _drawn(items)
    if not (drawn.inverse > 0).any():
        return Corrected(estimate=_empty("no_data", alpha), lam=0.0)
    drawn = _scaled(drawn)
    whole = _active(drawn, centred=True, lam=None, multiplier=None, alpha=alpha)
    if whole.estimate.standard_error is None:
        return whole
    delta = _stream(drawn, refresh)
    variance = float(delta.var(ddof=1)) / len(delta)
    n = whole.estimate.n_clusters
    estimate = _interval(
        float(delta.mean()),
        math.sqrt(variance),
        df=n - 2,
        n=n,
        n_labels=whole.estimate.n,
        multiplier=Anytime(n_star=n_star, alpha=alpha),
        alpha=alpha,
    )
    terms = (delta - delta.mean()) / math.sqrt(len(delta) * (len(delta) - 1))
    return replace(whole, estimate=estimate, v_labels=variance, terms=terms)


def neyman_allocation(sizes: Mapping[str, float], sds: Mapping[str, float], budget: int) -> dict[str, int]:
    """How many labels each stratum gets: in proportion to size times standard deviation, rounded by the largest remainder so that
    they add up to `budget`. Where no stratum varies: in proportion to size; without sizes or a budget: 0 each.

    Raises:
        ValueError: for a negative size, standard deviation or budget.
    """
    if budget < 0 or any(value < 0 for value in [*sizes.values(), *sds.values()]):
        raise ValueError("sizes, standard deviations and the budget must not be negative")
    weights = {name: size * sds.get(name, 1.0) for name, size in sizes.items()}
    if sum(weights.values()) <= 0:
        weights = {name: float(size) for name, size in sizes.items()}
    total = sum(weights.values())
    if total <= 0 or budget == 0:
        return dict.fromkeys(sizes, 0)
    exact = {name: budget * weight / total for name, weight in weights.items()}
    found = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: exact[name] - found[name], reverse=True)
    for name in by_remainder[: budget - sum(found.values())]:
        found[name] += 1
    return found


def draw_probabilities(uncertainty: npt.ArrayLike, n: float, *, uniform: float = 0.5) -> Array:
    """With what probability to draw each item for about `n` labels: π_i = min(1, n·[(1 − τ)·u_i/Σu + τ/N]), τ = `uniform`.

    Args:
        uncertainty: u_i ≥ 0, such as √(p_i(1 − p_i)) with p_i the calibrated probability that the judge is wrong. Where all are
            0, every item has the same probability.
        n: labels to draw, ≥ 0.
        uniform: τ in (0, 1], the share drawn whatever the judge holds: an overconfident judge then costs little.

    Raises:
        ValueError: for a negative uncertainty or n, or τ outside (0, 1].
    """
    u = _numbers(uncertainty, "uncertainty")
    if n < 0 or (u < 0).any() or not 0 < uniform <= 1:
        raise ValueError(
            f"uncertainty and n must not be negative and uniform must lie in (0, 1], got n = {n}, {uniform}"
        )
    if not len(u):
        return np.zeros(0)
    even = np.full(len(u), 1 / len(u))
    shares = u / u.sum() if u.sum() > 0 else even
    return np.minimum(1.0, n * ((1 - uniform) * shares + uniform * even))


def labels_status(labels: npt.ArrayLike) -> str | None:
    """Why labels are too few: fewer than 10, or fewer than 5 beside the commonest one (of two kinds: of the rarer); else None."""
    values = np.asarray(labels, float)
    if len(values) < MIN_LABELS:
        return f"{len(values)} labels, at least {MIN_LABELS} needed"
    kinds, counts = np.unique(values, return_counts=True)
    rare = len(values) - int(counts.max())
    if len(kinds) <= 3 and rare < MIN_RARE:
        return f"{rare} of {len(values)} labels differ from the commonest one, at least {MIN_RARE} needed"
    return None


def _tuned(y: Array, f: Array, rest: Array) -> float | None:
    """λ of the least variance; None where the judge's values never vary."""
    both = np.concatenate([f, rest])
    variance = float(both.var(ddof=1)) if len(both) > 1 else 0.0
    if np.ptp(both) == 0 or variance == 0:
        return None
    together = float(np.mean((y - y.mean()) * (f - f.mean())))
    return float(np.clip(together / ((1 + len(f) / len(rest)) * variance), 0.0, 1.0))


def _jackknife_terms(sums: Array, weights: Array) -> Array:
    """Each user's part of the error of Σsums/Σweights; their squares add up to the jackknife variance. 0 without a weight."""
    seen = weights > 0
    total, g = float(weights.sum()), int(seen.sum())
    left = total - weights
    if g < 2 or (left[seen] <= 0).any():
        return np.zeros(len(sums))
    ratio = float(sums.sum()) / total
    terms = np.zeros(len(sums))
    terms[seen] = math.sqrt((g - 1) / g) * (sums[seen] - ratio * weights[seen]) / left[seen]
    return terms


def _interval(
    point: float,
    se: float,
    *,
    df: float,
    n: int,
    n_labels: int,
    multiplier: Multiplier | None,
    alpha: float,
) -> Estimate:
    """The estimate ± c·se; `n` labelled users."""
    mode = multiplier or Fixed()
    status, note = cluster_status(n)
    if status == "ok" and se == 0:
        status, note = "zero_variance", "the labels never vary"
    if status == "ok" and mode.mode == "anytime" and n < LABELS_ANYTIME:
        status, note = "burn_in", f"{n} users with labels, {LABELS_ANYTIME} needed before an early look may decide"
    c = mode.critical(alpha, df=df, n=n, standard_error=se) if df > 0 else math.inf
    bounded = math.isfinite(c)
    return Estimate(
        point=point,
        ci_low=point - c * se if bounded else None,
        ci_high=point + c * se if bounded else None,
        confidence_level=1 - alpha,
        n=n_labels,
        n_clusters=n,
        standard_error=se,
        df=df,
        method=f"{METHOD}, {mode.mode}",
        estimand="mean over all items, corrected by labels",
        status=status,
        note=note,
    )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Checked items: `inverse` = ξ/π (0 without a label), `label` (0 without one), `users` numbered by arrival, `per_item` = 1 /
    items of the user."""

    f: Array
    label: Array
    inverse: Array
    users: npt.NDArray[np.int64]
    per_item: Array

    def by_user(self, values: Array) -> Array:
        """Each user's mean."""
        return np.asarray(np.bincount(self.users, weights=values * self.per_item), float)


def _drawn(items: Items) -> _Drawn:
    f, y, probability = _numbers(items.f, "f"), np.asarray(items.y, float), np.asarray(items.probability, float)
    named = np.arange(len(f)) if items.users is None else np.asarray(items.users)
    if not len(f) == len(y) == len(probability) == len(named):
        sizes = ", ".join(str(len(part)) for part in (f, y, probability, named))
        raise ValueError(f"values, labels, probabilities and users differ in length: {sizes}")
    labelled = ~np.isnan(y)
    given = probability[labelled]
    if not ((given > 0) & (given <= 1)).all():
        raise ValueError("a labelled item needs the probability it was drawn with, above 0 and at most 1")
    inverse = np.zeros(len(f))
    inverse[labelled] = 1 / given
    _, first, users = np.unique(named, return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first, kind="stable")] = np.arange(len(first))
    users = place[users]
    return _Drawn(f, np.where(labelled, y, 0.0), inverse, users, 1 / np.bincount(users, minlength=1)[users])


def _scaled(drawn: _Drawn) -> _Drawn:
    """The weights of the labelled items add up to the number of users."""
    total = float(drawn.per_item @ drawn.inverse)
    if total <= 0:
        return drawn
    return replace(drawn, inverse=drawn.inverse * (float(drawn.per_item.sum()) / total))


def _active(
    drawn: _Drawn, *, centred: bool, lam: float | None, multiplier: Multiplier | None, alpha: float
) -> Corrected:
    labelled = drawn.inverse > 0
    n_labels, n = int(labelled.sum()), len(np.unique(drawn.users[labelled]))
    if n_labels == 0:
        return Corrected(estimate=_empty("no_data", alpha), lam=0.0)
    center, judged = 0.0, drawn.f
    if centred:
        weight = drawn.per_item * drawn.inverse
        center = float(weight @ drawn.label / weight.sum())
        judged = drawn.f - float(weight @ drawn.f / weight.sum())
    alone = drawn.by_user(center + drawn.inverse * np.where(labelled, drawn.label - center, 0.0))
    control = drawn.by_user((drawn.inverse - 1) * judged)
    tuned = lam is None
    if lam is None:
        spread = control - control.mean()
        squares = float(spread @ spread)
        varies = np.ptp(drawn.f) > 0 and squares > 0
        lam = float(np.clip((alone - alone.mean()) @ spread / squares, 0.0, 1.0)) if varies else 0.0
    delta = alone - lam * control
    point, users = float(delta.mean()), len(delta)
    if n < 2:
        return Corrected(estimate=replace(_empty("one_cluster", alpha), point=point, n=n_labels, n_clusters=n), lam=lam)
    terms = (delta - point) / math.sqrt(users * (users - 1))
    without = (alone - alone.mean()) / math.sqrt(users * (users - 1))
    if centred:
        terms = _regression_terms(drawn, lam, tuned=tuned)
        without = _regression_terms(drawn, 0.0, tuned=False)
    variance = float(terms @ terms)
    return Corrected(
        estimate=_interval(
            point,
            math.sqrt(variance),
            df=n - (2 if tuned else 1),
            n=n,
            n_labels=n_labels,
            multiplier=multiplier,
            alpha=alpha,
        ),
        lam=lam,
        gain=_gain(float(without @ without), variance) if lam else 1.0,
        v_labels=variance,
        terms=terms,
    )


def _regression_terms(drawn: _Drawn, lam: float, *, tuned: bool) -> Array:
    """Each user's part of the error of c + λ(f̄ of all − f̄ of the labelled): the labelled users' residuals, each over 1 − its
    leverage in the regression of labels on the judge's values, beside what the user adds to the mean of all.

    c and λ are fitted to the labels, so that the plain residuals are too small: with 20 labels the interval of their variance
    covers 91 %, this one 94 to 95 %.
    """
    labelled = drawn.inverse > 0
    weight = drawn.per_item * drawn.inverse
    total = float(weight.sum())
    deviations = np.where(labelled, drawn.f - float(weight @ drawn.f / total), 0.0)
    residuals = np.where(labelled, drawn.label - float(weight @ drawn.label / total) - lam * deviations, 0.0)
    leverage = weight / total
    squares = float(weight @ deviations**2)
    if tuned and lam > 0 and squares > 0:
        leverage = leverage + weight * deviations**2 / squares
    of_user = np.asarray(np.bincount(drawn.users, weights=leverage), float)
    label_terms = np.bincount(drawn.users, weights=weight * residuals) / total / np.maximum(1 - of_user, LEAST_LEFT)
    users = len(of_user)
    means = drawn.by_user(drawn.f)
    return np.asarray(label_terms + lam * (means - means.mean()) / math.sqrt(users * max(1, users - 1)))


def _stream(drawn: _Drawn, refresh: int) -> Array:
    if not len(drawn.f):
        return np.zeros(0)
    labelled, step = drawn.inverse > 0, max(1, refresh)
    c, mean, lam = (float(drawn.f.min()) + float(drawn.f.max())) / 2, 0.0, 0.0
    g = np.zeros(len(drawn.f))
    for start in range(0, int(drawn.users.max()) + 1, step):
        before = labelled & (drawn.users < start)
        if before.any():
            weight, label, f = (drawn.per_item * drawn.inverse)[before], drawn.label[before], drawn.f[before]
            c, mean = float(weight @ label / weight.sum()), float(weight @ f / weight.sum())
            squares = float(weight @ (f - mean) ** 2)
            enough = len(np.unique(drawn.users[before])) >= LABELS_FOR_LAMBDA and squares > 0
            lam = float(np.clip(weight @ ((label - c) * (f - mean)) / squares, 0.0, 1.0)) if enough else 0.0
        inside = (drawn.users >= start) & (drawn.users < start + step)
        g[inside] = c + lam * (drawn.f[inside] - mean)
    return drawn.by_user(g + drawn.inverse * np.where(labelled, drawn.label - g, 0.0))


def _gain(alone: float, variance: float) -> float | None:
    return alone / variance if variance > 0 and alone > 0 else None


def _numbers(values: npt.ArrayLike, name: str) -> Array:
    found = np.asarray(values, float)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"{name} must be a list of numbers")
    return found


def _empty(status: str, alpha: float) -> Estimate:
    return Estimate(point=None, confidence_level=1 - alpha, method=METHOD, status=status)
