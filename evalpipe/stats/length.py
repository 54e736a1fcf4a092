"""The win rate with the length of the answers held equal: AlpacaEval 2's idea in its two-arm form
(docs/statistics.md#length).

logit E[x] = b0 + b1 tanh(dl/sd(dl)), dl = treatment's minus control's length in characters; the length-controlled win rate
is sigmoid(b0). Quasi-binomial, unpenalised, with the users' sandwich variance. Source: Dubois et al. 2024, without their
L1 penalty and private difficulty table; checked against R survey (svyglm) and statsmodels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalpipe.stats.estimates import Estimate
from evalpipe.stats.sequential import Fixed, Multiplier

Array = npt.NDArray[np.float64]
RIDGE = 0.01
MAX_COEFFICIENT = 15.0
MAX_STEPS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthControlled:
    """`win_rate` at equal length; `intercept`, `slope` with standard errors on the logit scale (slope > 0: longer wins).

    `regularised`: the two lengths separate the verdicts and a ridge of .01 was needed.
    """

    win_rate: Estimate
    intercept: float | None = None
    intercept_se: float | None = None
    slope: float | None = None
    slope_se: float | None = None
    regularised: bool = False


def length_controlled(
    preferences: npt.ArrayLike,
    length_differences: npt.ArrayLike,
    users: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
) -> LengthControlled:
    """Fit over pairs: preferences x in [0, 1], length differences (any unit), users (cluster labels).

    Rows may be groups of equal (x, dl, user) with `weights` counts. sd(dl) = 0: the raw win rate. Statuses: no_data,
    n_lt_2, one_cluster, too_few_clusters, zero_variance.
    """
    x, dl, names = np.asarray(preferences, float), np.asarray(length_differences, float), np.asarray(users)
    k = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    _, user_index = np.unique(names, return_inverse=True)
    g, n = (int(user_index.max()) + 1 if len(x) else 0), round(float(k.sum()))
    if n == 0:
        return LengthControlled(win_rate=_estimate(None, alpha, n, g, status="no_data"))
    if n < 2:
        return LengthControlled(win_rate=_estimate(float(x[0]), alpha, n, g, status="n_lt_2"))
    mean = float(k @ dl / n)
    sd = math.sqrt(float(k @ (dl - mean) ** 2) / (n - 1))
    columns = [np.ones(len(x))]
    if sd > 0:
        columns.append(np.tanh(dl / sd))
    design = np.column_stack(columns)
    beta, regularised = _fit(design, x, k)
    p = _expit(design @ beta)
    win_rate = float(_expit(beta[:1])[0])
    if g < 2:
        return LengthControlled(
            win_rate=_estimate(win_rate, alpha, n, g, status="one_cluster"), intercept=float(beta[0])
        )
    bread = np.linalg.inv(
        (design * (k * p * (1 - p))[:, None]).T @ design + (RIDGE if regularised else 0) * np.eye(len(beta))
    )
    scores = np.zeros((g, len(beta)))
    np.add.at(scores, user_index, design * (k * (x - p))[:, None])
    covariance = g / (g - 1) * bread @ (scores.T @ scores) @ bread
    errors = np.sqrt(np.diag(covariance))
    se = win_rate * (1 - win_rate) * float(errors[0])
    status = "too_few_clusters" if g < 5 else ("ok" if se > 1e-13 else "zero_variance")
    estimate = _estimate(
        win_rate,
        alpha,
        n,
        g,
        se=se if se > 1e-13 else None,
        mode=multiplier or Fixed(),
        status=status,
        note="answer length separates the verdicts: fitted with a small ridge" if regularised else None,
    )
    return LengthControlled(
        win_rate=estimate,
        intercept=float(beta[0]),
        intercept_se=float(errors[0]),
        slope=float(beta[1]) if len(beta) > 1 else None,
        slope_se=float(errors[1]) if len(beta) > 1 else None,
        regularised=regularised,
    )


def is_length_confounded(raw_label: str, controlled_label: str) -> bool:
    """Raw and length-controlled labels contradict each other (one better, one worse): status length_confounded."""
    return {raw_label, controlled_label} == {"better", "worse"}


def _fit(design: Array, x: Array, k: Array) -> tuple[Array, bool]:
    for ridge in (0.0, RIDGE):
        beta = _newton(design, x, k, ridge)
        if beta is not None and (ridge > 0 or np.abs(beta).max() <= MAX_COEFFICIENT):
            return beta, ridge > 0
    raise ArithmeticError("the ridge fit of the length-controlled win rate did not converge")


def _newton(design: Array, x: Array, k: Array, ridge: float) -> Array | None:
    """Newton's method (= IRLS for the logit link) to 1e-12 with halved steps; None where it diverges or is singular."""
    beta = np.zeros(design.shape[1])
    penalty = ridge * np.eye(len(beta))
    value = _objective(design, x, k, beta, ridge)
    for _ in range(MAX_STEPS):
        p = _expit(design @ beta)
        gradient = design.T @ (k * (x - p)) - penalty @ beta
        hessian = (design * (k * p * (1 - p))[:, None]).T @ design + penalty
        if np.linalg.cond(hessian) > 1e13:
            return None
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and _objective(design, x, k, beta + size * step, ridge) < value - 1e-12 * abs(value):
            size /= 2
        beta = beta + size * step
        value = _objective(design, x, k, beta, ridge)
        if not np.isfinite(beta).all() or (ridge == 0 and np.abs(beta).max() > 2 * MAX_COEFFICIENT):
            return None
        if np.abs(size * step).max() <= 1e-12 * (1 + np.abs(beta).max()):
            return beta
    return beta


def _objective(design: Array, x: Array, k: Array, beta: Array, ridge: float) -> float:
    eta = design @ beta
    return float(k @ (x * eta - np.logaddexp(0, eta)) - ridge / 2 * beta @ beta)


def _expit(eta: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(eta, -500, 500))))


def _estimate(
    value: float | None,
    alpha: float,
    n: int,
    clusters: int,
    *,
    se: float | None = None,
    mode: Multiplier | None = None,
    status: str = "ok",
    note: str | None = None,
) -> Estimate:
    low = high = p = None
    df = clusters - 1
    if value is not None and se is not None and mode is not None:
        c = mode.critical(alpha, df=df, n=clusters, standard_error=se)
        low, high = max(0.0, value - c * se), min(1.0, value + c * se)
        p = mode.p_value((value - 0.5) / se, df=df, n=clusters, standard_error=se)
    return Estimate(
        point=value,
        ci_low=low,
        ci_high=high,
        confidence_level=1 - alpha,
        n=n,
        n_clusters=clusters,
        standard_error=se,
        df=df if se is not None else None,
        p_value=p,
        method="length-controlled logit, users' sandwich",
        estimand="win rate at equal length",
        status=status,
        note=note,
    )
