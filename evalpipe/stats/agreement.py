"""Does the judge agree with people? Agreement, kappa, Gwet's AC1, Krippendorff's alpha (docs/statistics.md#agreement).

Tables are counts [judge's category][person's category]. Sources: Fleiss, Cohen & Everitt 1969 (kappa's standard error);
Gwet 2008 (AC1); Krippendorff 2011. Checked against statsmodels, irrCAC and krippendorff.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from evalpipe.stats import special
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.proportions import wilson

Weighting = Literal["identity", "linear", "quadratic"]
MIN_LABELS = 10
MIN_RARE = 5
LABELS_FOR_A_GATE = 100
KAPPA_GATE = 0.4
"""default gate: kappa's lower limit must reach this, else a warning"""


def kappa(table: npt.ArrayLike, *, weighting: Weighting = "identity", alpha: float = 0.05) -> Estimate:
    """Cohen's (weighted) kappa with its asymptotic standard error; limits tanh(atanh(kappa) ± z·se/(1−kappa²)).

    Expected agreement of 1 (one category on both sides) → undefined_kappa. kappa = 1 has limits (1, 1) by its own standard
    error of 0: then no limits are given.
    """
    counts = np.asarray(table, float)
    n = float(counts.sum())
    if n == 0:
        return _kappa_estimate(None, None, 0, alpha, "no_data")
    p = counts / n
    a = _weights(len(counts), weighting)
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, expected = float(np.sum(p * a)), float(rows @ a @ columns)
    if 1 - expected <= 1e-12:
        return _kappa_estimate(None, None, n, alpha, "undefined_kappa")
    value = (observed - expected) / (1 - expected)
    spread = a - ((a @ columns)[:, None] + (a.T @ rows)[None, :]) * (1 - value)
    inner = float(np.sum(p * spread**2)) - (value - expected * (1 - value)) ** 2
    return _kappa_estimate(value, math.sqrt(max(0.0, inner) / n) / (1 - expected), n, alpha, "ok")


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreementResult:
    """`accuracy` (Wilson), `kappa` (limits on the atanh scale) and `ac1`, side by side: kappa collapses where one class
    dominates, AC1 does not. `status`: ok, no_data, too_few_labels, undefined_kappa."""

    n: int
    accuracy: Estimate
    kappa: Estimate
    ac1: float | None
    ac1_se: float | None
    status: str


def agreement(table: npt.ArrayLike, *, weighting: Weighting = "identity", alpha: float = 0.05) -> AgreementResult:
    """Everything about one square table of counts of independent items."""
    counts = np.asarray(table, float)
    n = float(counts.sum())
    accuracy = wilson(float(np.trace(counts)), n, alpha=alpha)
    estimate = kappa(counts, weighting=weighting, alpha=alpha)
    coefficient = gwet_ac1(counts)
    status = "no_data" if n == 0 else labels_status(counts)
    if status == "ok":
        status = estimate.status
    return AgreementResult(
        n=round(n),
        accuracy=accuracy,
        kappa=estimate,
        ac1=None if coefficient is None else coefficient[0],
        ac1_se=None if coefficient is None else coefficient[1],
        status=status,
    )


def labels_status(table: npt.ArrayLike) -> str:
    """too_few_labels below 10 labels, or with two categories and fewer than 5 labels of the rarer one; else ok."""
    counts = np.asarray(table, float)
    by_person = counts.sum(axis=0)
    if counts.sum() < MIN_LABELS or (len(by_person) == 2 and by_person.min() < MIN_RARE):
        return "too_few_labels"
    return "ok"


def kappa_over_users(tables: npt.ArrayLike, *, weighting: Weighting = "identity", alpha: float = 0.05) -> Estimate:
    """Kappa with the delete-one-user jackknife; `tables` of shape (users, q, q). Fewer than two users: one_cluster."""
    per_user = np.asarray(tables, float)
    total = per_user.sum(axis=0)
    whole = kappa(total, weighting=weighting, alpha=alpha)
    g = len(per_user)
    if whole.point is None:
        return whole
    if g < 2:
        return _kappa_estimate(whole.point, None, float(total.sum()), alpha, "one_cluster", g)
    rest = total[None] - per_user
    n = rest.sum(axis=(1, 2))
    if (n <= 0).any():
        return _kappa_estimate(whole.point, None, float(total.sum()), alpha, "one_cluster", g)
    p, a = rest / n[:, None, None], _weights(total.shape[0], weighting)
    observed = np.einsum("uij,ij->u", p, a)
    expected = np.einsum("ui,ij,uj->u", p.sum(axis=2), a, p.sum(axis=1))
    if (1 - expected <= 1e-12).any():
        return _kappa_estimate(whole.point, None, float(total.sum()), alpha, "undefined_kappa", g)
    values = (observed - expected) / (1 - expected)
    se = math.sqrt((g - 1) / g * float(np.sum((values - values.mean()) ** 2)))
    return _kappa_estimate(whole.point, se, float(total.sum()), alpha, "ok", g)


def gwet_ac1(table: npt.ArrayLike) -> tuple[float, float | None] | None:
    """Gwet's AC1 and its standard error: (pa − pe)/(1 − pe) with pe = Σ pi_k(1−pi_k)/(q−1). None without data or q < 2."""
    counts = np.asarray(table, float)
    n, q = float(counts.sum()), len(counts)
    if n == 0 or q < 2:
        return None
    p = counts / n
    share = (p.sum(axis=0) + p.sum(axis=1)) / 2
    expected = float(np.sum(share * (1 - share))) / (q - 1)
    value = (float(np.trace(p)) - expected) / (1 - expected)
    if n < 2:
        return value, None
    per_item = (np.eye(q) - expected) / (1 - expected)
    expected_item = ((1 - share)[:, None] + (1 - share)[None, :]) / 2 / (q - 1)
    adjusted = per_item - 2 * (1 - value) * (expected_item - expected) / (1 - expected)
    return value, math.sqrt(float(np.sum(counts * (adjusted - value) ** 2)) / (n * (n - 1)))


def krippendorff_alpha(ratings: npt.ArrayLike) -> float | None:
    """Nominal alpha for any number of raters with gaps; `ratings` of shape (items, categories): how many raters chose it.

    Items with fewer than two ratings carry nothing. None where nothing could disagree (no data, one category).
    """
    counts = np.asarray(ratings, float)
    per_item = counts.sum(axis=1)
    counts, per_item = counts[per_item >= 2], per_item[per_item >= 2]
    totals, n = counts.sum(axis=0), float(per_item.sum())
    expected = n * n - float(np.sum(totals**2))
    if len(counts) == 0 or expected <= 0:
        return None
    disagreement = float(np.sum((per_item**2 - np.sum(counts**2, axis=1)) / (per_item - 1)))
    return 1 - (n - 1) * disagreement / expected


def spearman(judge: npt.ArrayLike, person: npt.ArrayLike) -> float | None:
    """Rank correlation of two lists of scores; None below 3 items or where one never varies."""
    x, y = np.asarray(judge, float), np.asarray(person, float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    from scipy import stats as distributions  # slow to load, and few have scores of people

    return float(distributions.spearmanr(x, y).statistic)


def _weights(q: int, weighting: Weighting) -> npt.NDArray[np.float64]:
    if weighting == "identity" or q < 2:
        return np.eye(q)
    distance = np.abs(np.subtract.outer(np.arange(q), np.arange(q))) / (q - 1)
    return 1 - (distance if weighting == "linear" else distance**2)


def _kappa_estimate(
    value: float | None, se: float | None, n: float, alpha: float, status: str, clusters: int | None = None
) -> Estimate:
    low = high = None
    if value is not None and se is not None and se > 0 and abs(value) < 1:
        reach = -float(special.ndtri(alpha / 2)) * se / (1 - value**2)
        low, high = math.tanh(math.atanh(value) - reach), math.tanh(math.atanh(value) + reach)
    return Estimate(
        point=value,
        ci_low=low,
        ci_high=high,
        confidence_level=1 - alpha,
        n=round(n),
        n_clusters=round(n) if clusters is None else clusters,
        standard_error=se,
        method="kappa, atanh limits",
        estimand="kappa",
        status=status,
    )
