"""Prediction-powered means against ppi-python and fewhumans.

Ours divides variances by n − 1 and takes Student's t; ppi-python divides by n and takes the normal quantile; fewhumans divides by
n − 1 (unequal probabilities) or by n (strata) and has n − 1, n − H degrees of freedom. The tests convert, to 1e-9.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from oracle_cases import Case, oracle
from scipy.special import ndtri, stdtrit

from evalpipe.stats import ppi
from evalpipe.stats.ppi import Corrected, Items, UserSums


def _half_width(found: Corrected, *, quantile: float, n: int, n_rest: int) -> float:
    """ppi-python's: variances by n, not n − 1."""
    return quantile * math.sqrt(found.v_labels * (n - 1) / n + found.v_judge * (n_rest - 1) / n_rest)


@oracle("ppi_mean")
def test_oracle_ppi_mean(case: Case) -> None:
    y, f, rest = (np.array(case.input[key]) for key in ("Y", "f", "F"))
    alpha = case.input["alpha"]
    z = -float(ndtri(alpha / 2))
    for name, lam in (("tuned", None), ("lam1", 1.0), ("lam0", 0.0)):
        if name not in case.expected:
            continue
        found = ppi.ppi_mean(y, f, rest, lam=lam, alpha=alpha)
        half = _half_width(found, quantile=z, n=len(y), n_rest=len(rest))
        assert found.estimate.point is not None
        case.equal(f"{name}|est", found.estimate.point, rel=1e-9)
        case.equal(f"{name}|lo_z_ddof0", found.estimate.point - half, rel=1e-9)
        case.equal(f"{name}|hi_z_ddof0", found.estimate.point + half, rel=1e-9)
        # Ours: the same variances by n − 1, and t with one degree of freedom less for the mean, one less where λ is tuned.
        se = math.sqrt(found.v_labels + found.v_judge)
        df = len(y) - (2 if lam is None and np.ptp(np.concatenate([f, rest])) > 0 else 1)
        assert found.estimate.df == df
        assert found.estimate.ci_high == pytest.approx(found.estimate.point - stdtrit(df, alpha / 2) * se, rel=1e-12)


@oracle("ppi_active_stratified")
def test_oracle_ppi_active_stratified(case: Case) -> None:
    i = case.input
    f = np.array(i["f"])
    labelled = np.array(i["active_labeled"])
    y = np.where(labelled, np.array([math.nan if one is None else one for one in i["y"]]), math.nan)
    active = ppi.active_mean(Items(f=f, y=y, probability=np.array(i["pi"])), lam=1.0, scaled=False)
    assert active.estimate.point is not None and active.estimate.standard_error is not None
    half = -float(stdtrit(case.expected["active"]["df"], 0.025)) * active.estimate.standard_error
    case.equal("active|est", active.estimate.point)
    case.equal("active|df", active.estimate.df)
    case.equal("active|lo_t", active.estimate.point - half)
    case.equal("active|hi_t", active.estimate.point + half)

    strata, labels, judged = np.array(i["strata"]), np.array(i["strat_labeled"]), i["y"]
    names = sorted(set(i["strata"]))
    sums, shares, variance = [], [], 0.0
    for name in names:
        inside, rest = np.flatnonzero((strata == name) & labels), np.flatnonzero((strata == name) & ~labels)
        parts = ppi.ppi_mean([judged[k] for k in inside], f[inside], f[rest])
        share, n, m = float(np.mean(strata == name)), len(inside), len(rest)
        variance += share**2 * (parts.v_labels * (n - 1) / n + parts.v_judge * (m - 1) / m)
        ones, zeros = np.ones, np.zeros
        sums.append(
            UserSums(
                y=np.concatenate([[judged[k] for k in inside], zeros(m)]),
                f=np.concatenate([f[inside], zeros(m)]),
                n=np.concatenate([ones(n), zeros(m)]),
                rest=np.concatenate([zeros(n), f[rest]]),
                n_rest=np.concatenate([zeros(n), ones(m)]),
            )
        )
        shares.append(share)
    found = ppi.stratified_mean(sums, shares)
    assert found.estimate.point is not None and found.estimate.df is not None
    half = -float(stdtrit(case.expected["stratified"]["df"], 0.025)) * math.sqrt(variance)
    case.equal("stratified|est", found.estimate.point)
    case.equal("stratified|df", found.estimate.df + len(names))  # n − 2H: λ is tuned in each stratum, too
    case.equal("stratified|lo_t", found.estimate.point - half)
    case.equal("stratified|hi_t", found.estimate.point + half)

    plan = i["neyman"]
    found_plan = ppi.neyman_allocation(plan["sizes"], plan["sds"], plan["budget"])
    for name, n in case.expected["neyman"].items():
        case.equal(f"neyman|{name}", found_plan[name])
        assert n == found_plan[name]
