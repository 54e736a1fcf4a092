"""Means, ratios, equivalence and composites against R survey, scipy, statsmodels, tea-tasting and gbstats."""

from __future__ import annotations

import numpy as np
from oracle_cases import Case, oracle

from evalpipe.stats.clusters import PairedAggregate, arm_aggregate, paired_aggregate
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.means import arm_interval, paired_difference, unpaired_difference
from evalpipe.stats.multiplicity import composite
from evalpipe.stats.proportions import tost


def paired(case: Case) -> PairedAggregate:
    return paired_aggregate(*(case.input[key] for key in ("ST", "WT", "SC", "WC")), plain_df=True)


def unpaired(case: Case, scale: str) -> Estimate:
    control = arm_aggregate(case.input["SC"], case.input["WC"])
    treatment = arm_aggregate(case.input["ST"], case.input["WT"])
    alpha = case.input["alpha"]
    return unpaired_difference(control, treatment, alpha=alpha, scale=scale, variance="linearised")


@oracle("paired_mean")
def test_oracle_paired_mean(case: Case) -> None:
    t, c = np.array(case.input["t"]), np.array(case.input["c"])
    ones = np.ones(len(t))
    estimate = paired_difference(paired_aggregate(t, ones, c, ones), alpha=case.input["alpha"])
    case.equal("diff", estimate.point)
    if estimate.status == "zero_variance":
        return
    assert estimate.point is not None and estimate.standard_error
    if "statistic" in case.expected:
        case.equal("statistic", estimate.point / estimate.standard_error)
    case.equal("p", estimate.p_value)
    case.equal("df", estimate.df)
    for low, high in (("lo", "hi"), ("lo_statsmodels", "hi_statsmodels")):
        if low not in case.expected:
            continue
        case.equal(low, estimate.ci_low, scale=estimate.standard_error)
        case.equal(high, estimate.ci_high, scale=estimate.standard_error)


@oracle("cluster_ratio_jackknife")
def test_oracle_cluster_ratio_jackknife(case: Case) -> None:
    estimate = arm_interval(arm_aggregate(case.input["S"], case.input["W"]))
    case.equal("ratio", estimate.point)
    case.equal("se", estimate.standard_error)


@oracle("cluster_ratio_paired")
def test_oracle_cluster_ratio_paired(case: Case) -> None:
    aggregate, alpha = paired(case), case.input["alpha"]
    absolute = paired_difference(aggregate, alpha=alpha, variance="linearised")
    relative = paired_difference(aggregate, alpha=alpha, variance="linearised", scale="relative")
    case.equal("diff", absolute.point)
    case.equal("se", absolute.standard_error)
    case.equal("df", absolute.df)
    case.equal("ci", [absolute.ci_low, absolute.ci_high])
    case.equal("log_ratio", float(np.log1p(relative.point)))
    case.equal("log_se", relative.standard_error)
    case.equal("rel_ci", [relative.ci_low, relative.ci_high])


@oracle("cluster_ratio_paired_jackknife")
def test_oracle_cluster_ratio_paired_jackknife(case: Case) -> None:
    aggregate, alpha = paired(case), case.input["alpha"]
    absolute = paired_difference(aggregate, alpha=alpha)
    relative = paired_difference(aggregate, alpha=alpha, scale="relative")
    case.equal("diff", absolute.point)
    case.equal("se", absolute.standard_error)
    case.equal("df", absolute.df)
    case.equal("ci", [absolute.ci_low, absolute.ci_high])
    case.equal("log_ratio", float(np.log1p(relative.point)))
    case.equal("log_se", relative.standard_error)


@oracle("cluster_ratio_unpaired")
def test_oracle_cluster_ratio_unpaired(case: Case) -> None:
    absolute, relative = unpaired(case, "absolute"), unpaired(case, "relative")
    case.equal("diff", absolute.point)
    case.equal("se", absolute.standard_error)
    case.equal("log_ratio", float(np.log1p(relative.point)))
    case.equal("log_se", relative.standard_error)


@oracle("cluster_ratio_unpaired_gbstats")
def test_oracle_cluster_ratio_unpaired_gbstats(case: Case) -> None:
    absolute = unpaired(case, "absolute")
    case.equal("diff", absolute.point)
    case.equal("ci", [absolute.ci_low, absolute.ci_high])
    case.equal("p", absolute.p_value)
    case.equal("se", absolute.standard_error)
    case.equal("df", absolute.df)


@oracle("cluster_ratio_unpaired_teatasting")
def test_oracle_cluster_ratio_unpaired_teatasting(case: Case) -> None:
    absolute, relative = unpaired(case, "absolute"), unpaired(case, "relative")
    case.equal("RT", arm_aggregate(case.input["ST"], case.input["WT"]).ratio)
    case.equal("RC", arm_aggregate(case.input["SC"], case.input["WC"]).ratio)
    case.equal("diff", absolute.point)
    case.equal("lo", absolute.ci_low)
    case.equal("hi", absolute.ci_high)
    case.equal("p", absolute.p_value)
    case.equal("rel", relative.point)
    case.equal("rel_lo", relative.ci_low)
    case.equal("rel_hi", relative.ci_high)


@oracle("cuped")
def test_oracle_cuped_unadjusted(case: Case) -> None:
    """Only the block without variance reduction is built: a plain comparison of means."""
    control, treatment = (arm_aggregate(case.input[k], np.ones(len(case.input[k]))) for k in ("yC", "yT"))
    estimate = unpaired_difference(control, treatment, alpha=case.input["alpha"])
    case.equal("unadjusted|diff", estimate.point)
    case.equal("unadjusted|lo", estimate.ci_low)
    case.equal("unadjusted|hi", estimate.ci_high)


@oracle("equivalence")
def test_oracle_equivalence(case: Case) -> None:
    d, y = (np.array(case.input[key]) for key in ("d", "y"))
    mean_d, mean_y = arm_aggregate(d, np.ones(len(d))), arm_aggregate(y, np.ones(len(y)))
    for block, estimate in (
        ("paired", arm_interval(mean_d)),
        ("unpaired_welch", unpaired_difference(mean_y, mean_d)),
    ):
        result = tost(estimate, low=case.input["low"], high=case.input["high"])
        assert result is not None
        case.equal(f"{block}|p", result.p)
        case.equal(f"{block}|p_lower", result.p_lower)
        case.equal(f"{block}|p_upper", result.p_upper)


@oracle("composite")
def test_oracle_composite(case: Case) -> None:
    estimate = composite(case.input["S"], case.input["W"], case.input["weights"], alpha=case.input["alpha"])
    case.equal("score", estimate.point)
    case.equal("se", estimate.standard_error)
    case.equal("df", estimate.df)
    case.equal("ci", [estimate.ci_low, estimate.ci_high])
