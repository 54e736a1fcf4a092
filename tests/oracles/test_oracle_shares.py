"""Proportions, verdicts, quantiles, agreement, length control and status words against their libraries."""

from __future__ import annotations

import numpy as np
from oracle_cases import Case, oracle
from scipy.special import ndtri

from evalpipe.stats import agreement, estimates, ppi, proportions, quantiles, winrate
from evalpipe.stats.clusters import ArmAggregate, arm_aggregate, paired_aggregate
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.event_rates import paired_events
from evalpipe.stats.length import length_controlled
from evalpipe.stats.means import paired_difference, unpaired_difference
from evalpipe.stats.proportions import wilson
from evalpipe.stats.sequential import Anytime, Fixed


@oracle("wilson")
def test_oracle_wilson(case: Case) -> None:
    estimate = wilson(case.input["x"], case.input["n"], alpha=case.input["alpha"])
    case.equal("lo", estimate.ci_low)
    case.equal("hi", estimate.ci_high)


@oracle("mcnemar")
def test_oracle_mcnemar(case: Case) -> None:
    result = proportions.mcnemar(case.input["t_only"], case.input["c_only"])
    case.equal("p_exact", result.p_exact)
    case.equal("p_exact_scipy", result.p_exact)
    case.equal("chi2", result.chi2)
    case.equal("p_chi2", result.p_chi2)


def _one_request_each(i: dict, *, alpha: float = 0.05) -> Estimate:
    """The table's pairs, each of its own user."""
    counts = [i["both"], i["t_only"], i["c_only"], i["neither"]]
    failed_t, failed_c, ones = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts), np.ones(sum(counts))
    users = paired_aggregate(failed_t, ones, failed_c, ones)
    return paired_events(t_only=i["t_only"], c_only=i["c_only"], n=sum(counts), users=users, alpha=alpha)


@oracle("paired_proportion_ci_frozen")
def test_oracle_paired_proportion(case: Case) -> None:
    i = case.input
    estimate = _one_request_each(i, alpha=i["alpha"])
    case.equal("diff", estimate.point)
    case.equal("tango", [estimate.ci_low, estimate.ci_high])
    case.equal("tango_contingencytables", [estimate.ci_low, estimate.ci_high])
    c = -float(ndtri(i["alpha"] / 2))
    newcombe = proportions.newcombe_paired_limits(i["both"], i["t_only"], i["c_only"], i["neither"], c)
    case.equal("newcombe", newcombe)
    case.equal("newcombe_contingencytables", newcombe)
    case.equal("p_mid_contingencytables", proportions.mcnemar(i["t_only"], i["c_only"]).p_mid)


@oracle("pairwise_swapped")
def test_oracle_pairwise_swapped(case: Case) -> None:
    score = {"T": 1.0, "tie": 0.5, "C": 0.0}
    s1, s2 = (np.array([score[v] for v in case.input[k]]) for k in ("order_t_first", "order_c_first"))
    alpha = case.input["alpha"]
    x, f, ones = (s1 + s2) / 2, (s1 + 1 - s2) / 2, np.ones(len(s1))
    estimate = winrate.win_rate(x, ones, alpha=alpha)
    case.equal("win_rate", estimate.point)
    case.equal("se", estimate.standard_error or 0.0)
    case.equal("lo", estimate.ci_low)
    case.equal("hi", estimate.ci_high)
    case.equal("p", estimate.p_value)
    table = winrate.order_table(s1, s2)
    same = sum(table.counts[k][k] for k in range(3))
    steady = winrate.consistency(same, table.n, alpha=alpha)
    case.equal("consistency", steady.point)
    case.equal("consistency_ci", [steady.ci_low, steady.ci_high])
    seat = winrate.first_seat_rate(arm_aggregate(f, ones), alpha=alpha)
    case.equal("first_position_rate", seat.point)
    case.equal("first_position_p", seat.p_value)
    case.equal("order_kappa", winrate.order_kappa(table).point)
    for value in ("0", "0.25", "0.5", "0.75", "1"):
        case.equal(f"counts|{value}", table.by_value[float(value)])


@oracle("agreement")
def test_oracle_agreement(case: Case) -> None:
    q = case.input["categories"]
    r1, r2 = (np.array(case.input[k]) for k in ("r1", "r2"))
    table = np.bincount(q * r1 + r2, minlength=q * q).reshape(q, q)
    result = agreement.agreement(table)
    case.equal("kappa", result.kappa.point)
    case.equal("kappa_sklearn", result.kappa.point)
    case.equal("se", result.kappa.standard_error)
    case.equal("agreement", result.accuracy.point)
    case.equal("gwet_ac1", result.ac1)
    case.equal("gwet_ac1_se", result.ac1_se)
    chosen = np.zeros((len(r1), q))
    for r in (r1, r2):
        chosen[np.arange(len(r)), r] += 1
    case.equal("alpha_nominal", agreement.krippendorff_alpha(chosen))
    if "kappa_quadratic" in case.expected:
        linear = agreement.kappa(table, weighting="linear")
        quadratic = agreement.kappa(table, weighting="quadratic")
        case.equal("kappa_linear", linear.point)
        case.equal("se_linear", linear.standard_error)
        case.equal("kappa_quadratic", quadratic.point)
        case.equal("kappa_quadratic_sklearn", quadratic.point)
        case.equal("se_quadratic", quadratic.standard_error)
        case.equal("spearman", agreement.spearman(r1, r2))


@oracle("length_controlled")
def test_oracle_length_controlled(case: Case) -> None:
    result = length_controlled(case.input["x"], case.input["dl"], case.input["user"])
    case.equal("b0", result.intercept)
    case.equal("b1", result.slope)
    case.equal("se_b0", result.intercept_se)
    case.equal("se_b1", result.slope_se)
    case.equal("lc_win_rate", result.win_rate.point)
    case.equal("se", result.win_rate.standard_error)
    case.equal("raw_win_rate", float(np.mean(case.input["x"])))
    case.equal("statsmodels_params", [result.intercept, result.slope])


@oracle("quantile_type1")
def test_oracle_quantile_type1(case: Case) -> None:
    x, p = np.sort(case.input["x"]), case.input["p"]
    case.equal("quantile", quantiles.type1_quantile(x, p))
    limits = quantiles.arm_limits(x, np.arange(len(x)), p, quantiles.critical(len(x), len(x), paired=True))
    # the exact binomial interval is a sanity band: one request per user stays within two order statistics of it
    for key, limit in (("exact_binomial_lo", limits.low), ("exact_binomial_hi", limits.high)):
        case.seen.add(key)
        if limits.status == "ok" and case.expected[key] is not None:
            case.n_compared += 1
            assert limit is not None
            assert abs(np.searchsorted(x, limit) - np.searchsorted(x, case.expected[key])) <= 2


@oracle("quantile_cluster")
def test_oracle_quantile_cluster(case: Case) -> None:
    users = len(set(case.input["user"]))
    c = quantiles.critical(users, users, paired=True, alpha=case.input["alpha"])
    for p in case.input["p"]:
        limits = quantiles.arm_limits(case.input["y"], case.input["user"], p, c)
        case.equal(f"{p}|q", limits.quantile)
        case.equal(f"{p}|lo", limits.low)
        case.equal(f"{p}|hi", limits.high)


@oracle("quantile_paired_diff_bootstrap")
def test_oracle_quantile_paired_difference(case: Case) -> None:
    t, c, p = np.array(case.input["t"]), np.array(case.input["c"]), case.input["p"]
    users = np.arange(len(t))
    z = quantiles.critical(len(t), len(t), paired=True, alpha=case.input["alpha"])
    arms = [quantiles.arm_limits(y, users, p, z) for y in (c, t)]
    below = [(y <= quantiles.type1_quantile(y, p)).astype(float) for y in (c, t)]
    correlation = float(np.corrcoef(*below)[0, 1])
    estimate = quantiles.quantile_difference(
        *arms, correlation=correlation, paired=True, scale="absolute", alpha=case.input["alpha"]
    )
    case.equal("diff", estimate.point, rel=1e-9)
    width = case.expected["hi"] - case.expected["lo"]
    assert estimate.ci_low is not None and estimate.ci_high is not None
    assert abs((estimate.ci_high - estimate.ci_low) / width - 1) <= case.rel_tol
    case.equal("lo", estimate.ci_low, scale=width)
    case.equal("hi", estimate.ci_high, scale=width)


def _users(n: int, seed: int) -> ArmAggregate:
    rng = np.random.default_rng(seed)
    return arm_aggregate(rng.normal(size=n), np.ones(n))


@oracle("edge_status_rules")
def test_oracle_edge_status(case: Case) -> None:
    i = case.input
    status = {
        "ppi": lambda: _ppi_status(i["n_labels"]),
        "paired_mean": lambda: _paired_mean_status(i),
        "cluster_ratio": lambda: unpaired_difference(_users(i["clusters_c"], 1), _users(i["clusters_t"], 2)).status,
        "paired_proportion": lambda: _one_request_each(i).status,
        "quantile": lambda: quantiles.arm_limits(np.arange(i["n"]) + 1.0, np.arange(i["n"]), i["p"], 1.96).status,
        "kappa": lambda: agreement.kappa(i["table"]).status,
        "winrate": lambda: winrate.win_rate(i["pair_scores"], np.ones(len(i["pair_scores"]))).status,
        "canary_binary": lambda: _canary_status(i),
    }[i["method"]]()
    case.equal("status", status)


def _paired_mean_status(i: dict) -> str:
    d = np.array(i["d"], float) if "d" in i else np.arange(i["n"], dtype=float)
    ones = np.ones(len(d))
    return paired_difference(paired_aggregate(d, ones, np.zeros(len(d)), ones)).status


def _canary_status(i: dict) -> str:
    def arm(events: int, n: int) -> ArmAggregate:
        failed = np.zeros(n)
        failed[:events] = 1
        return arm_aggregate(failed, np.ones(n), n_events=events)

    assert estimates.MIN_EVENTS_ANYTIME == 10
    return unpaired_difference(arm(i["events_c"], 9000), arm(i["events_t"], 1000), multiplier=Anytime()).status


@oracle("decision_table_rules")
def test_oracle_decision_labels(case: Case) -> None:
    """The labels only; a metric without an interval is called inconclusive there and undefined here."""
    metrics, alpha = case.input["metrics"], case.input["alpha"]
    n_goals = sum(m["role"] == "goal" for m in metrics)
    found = []
    for m in metrics:
        if m["se"] is None:
            assert estimates.label(None, None, margin=m["delta"]).label == "undefined"
            found.append("inconclusive")
            continue
        reach = Fixed().critical(alpha / n_goals if m["role"] == "goal" else alpha) * m["se"]
        found.append(estimates.label(m["est"] - reach, m["est"] + reach, margin=m["delta"]).label)
    case.equal("labels", found)


def _ppi_status(n_labels: int) -> str:
    """So many labels, half of them wins, and a judge who is mostly right."""
    labels = np.arange(n_labels) % 2
    return ppi.ppi_mean(
        labels, np.where(np.arange(n_labels) % 5 == 0, 1 - labels, labels), np.arange(50) % 2
    ).estimate.status
