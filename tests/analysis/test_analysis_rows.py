"""One estimand a row: both values, the difference and the interval come from the same requests, on random experiments."""

from __future__ import annotations

import os
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from experiment_builders import START, frame, run, verdicts

from evalpipe.analysis.settings import MetricRule

SEEDS = range(int(os.environ.get("EVALPIPE_SEEDS", "10")))
"""`make check-statistics` tries 200."""
OUTCOMES = np.array(["ok", "refused", "truncated", "http_error", "timeout", "unreadable", "client_closed"])
KINDS = np.array(["chat.completions", "chat.completions streamed", "chat.completions streamed with usage"])


def random_arm(rng: np.random.Generator, n: int, *, arm: str, mode: str, shared: dict[str, Any]) -> pd.DataFrame:
    """Exchanges with failures, refusals, empty answers, streams, unknown values; `shared` belongs to the request."""
    share = rng.dirichlet([30, 1, 1, rng.choice([0.2, 3]), 0.5, 0.1, 0.1])
    outcome = OUTCOMES[rng.choice(len(OUTCOMES), n, p=share)]
    text = np.where(rng.random(n) < rng.choice([0, 0.05]), " \n", "an answer")
    table = frame(n, arm=arm, seed=int(rng.integers(1e6)), mode=mode, outcome=outcome, text=text, **shared)
    table["latency_ms"] = np.where(table.outcome == "timeout", 60_000.0, np.exp(rng.normal(6.5, 0.5, n)))
    table["ttft_ms"] = np.where(table.streamed, table.latency_ms * rng.uniform(0.1, 0.9, n), np.nan)
    table["output_tokens"] = rng.geometric(0.01, n).astype(float)
    table["input_tokens"] = rng.geometric(0.005, n).astype(float)
    table["cost_usd"] = (table.input_tokens + 4 * table.output_tokens) * 1e-6 * rng.uniform(0.8, 1.2)
    unknown = rng.random(n) < rng.choice([0, 0.002, 0.1])
    silent = (table.request_kind == "chat.completions streamed") & (rng.random() < 0.5)
    table.loc[~table.outcome.isin(["ok", "refused", "truncated"]), ["output_tokens", "input_tokens", "cost_usd"]] = None
    table.loc[unknown | silent, ["output_tokens", "cost_usd"]] = None
    return table


def random_experiment(seed: int, mode: str) -> tuple[pd.DataFrame, pd.DataFrame | None, dict[str, Any]]:
    rng = np.random.default_rng([seed, len(mode)])
    n = int(rng.choice([3, 30, 150, 600]))
    n_users = max(1, int(n * rng.choice([0.05, 0.3, 1])))
    activity = rng.pareto(1.2, n_users) + 0.2
    kind = KINDS[rng.integers(0, 3, n)]
    shared = {
        "unit_id": [f"u{k}" for k in rng.choice(n_users, n, p=activity / activity.sum())],
        "request_kind": kind,
        "streamed": [" streamed" in one for one in kind],
        "started_at": [
            START + pd.Timedelta(minutes=float(m)) for m in np.sort(rng.random(n)) * rng.choice([300, 20_000])
        ],
    }
    settings: dict[str, Any] = {"looks": str(rng.choice(["fixed", "anytime"]))}
    if rng.random() < 0.3:
        settings["metrics"] = {"error_rate": MetricRule(margin=0.2, margin_relative=True)}
    if mode == "shadow":
        arms = [random_arm(rng, n, arm=arm, mode=mode, shared=shared) for arm in ("control", "treatment")]
        return pd.concat(arms, ignore_index=True), verdicts(rng.choice([0, 0.5, 1], n)), settings
    treated = np.array([crc32(user.encode()) % 4 == seed % 4 for user in shared["unit_id"]])
    shared["percentage"] = 25.0
    if mode == "canary":  # two stages of different users: a tenth, then a quarter
        late = np.arange(n) >= n // 2
        shared["percentage"] = np.where(late, 25.0, 10.0)
        shared["unit_id"] = [
            f"{user}{'b' if second else ''}" for user, second in zip(shared["unit_id"], late, strict=True)
        ]
    both = {arm: random_arm(rng, n, arm=arm, mode=mode, shared=shared) for arm in ("control", "treatment")}
    exchanges = pd.concat([both["control"][~treated], both["treatment"][treated]], ignore_index=True)
    return exchanges, None, settings


@pytest.mark.parametrize("mode", ["shadow", "ab", "canary"])
@pytest.mark.parametrize("seed", SEEDS)
def test_values_subtract_to_the_difference_and_the_point_lies_in_its_interval(seed: int, mode: str) -> None:
    exchanges, judgments, settings = random_experiment(seed, mode)
    found = run(exchanges, judgments, mode=mode, **settings)
    shown = 0
    for row in found.metrics:
        control, treatment = row.control.value, row.treatment.value
        if row.name.startswith("win_rate") and treatment is not None:
            assert control == pytest.approx(1 - treatment, abs=1e-12)
            assert row.difference == pytest.approx(treatment - 0.5, abs=1e-12)
        elif control is not None and treatment is not None:
            shown += 1
            assert row.difference == pytest.approx(treatment - control, rel=1e-9, abs=1e-9 * abs(control)), row
            if row.relative is not None:
                assert row.relative == pytest.approx(treatment / control - 1, rel=1e-9, abs=1e-9), row
        else:
            assert row.difference is None, row
        limits = (row.ci_low, row.difference, row.ci_high)
        if None not in limits:
            assert limits[0] <= limits[1] <= limits[2], row
        relative = (row.relative_low, row.relative, row.relative_high)
        if None not in relative:
            assert relative[0] <= relative[1] <= relative[2], row
        for side in (row.control, row.treatment):
            if side.value is not None and side.ci_low is not None and side.ci_high is not None:
                assert side.ci_low <= side.value <= side.ci_high, row
    sliced = run(exchanges, judgments, mode=mode, details=True, **settings).segments if seed % 6 == 3 else []
    for one in sliced:
        if None in (one.control, one.treatment, one.difference):
            continue
        expected = one.treatment - (0.5 if one.metric == "win_rate" else one.control)
        assert one.difference == pytest.approx(expected, rel=1e-9, abs=1e-9 * abs(one.treatment)), one
        if one.ci_low is not None and one.ci_high is not None:
            assert one.ci_low <= one.difference <= one.ci_high, one
    attempted = exchanges[exchanges.outcome != "client_closed"]
    assert shown or len(attempted) < 20 or attempted.arm.nunique() < 2


@pytest.mark.parametrize("factor", [1.2, 1.3, 1.4, 1.5, 1.6, 2.6])
def test_the_two_intervals_of_a_row_agree_on_whether_there_is_a_difference(factor: float) -> None:
    # 40 skewed pairs: the interval of the ratio alone leaves 0 out from 1.3 on, that of the difference only far later
    rng = np.random.default_rng(11)
    cost = np.exp(rng.normal(-6, 0.9, 40))
    arms = [
        frame(40, arm=arm, seed=1, cost_usd=cost * change * np.exp(rng.normal(0, 0.5, 40)))
        for arm, change in (("control", 1.0), ("treatment", factor))
    ]
    found = run(pd.concat(arms, ignore_index=True), None, mode="shadow", looks="fixed")
    row = next(one for one in found.metrics if one.name == "cost_per_request_usd")
    assert row.status == "ok"
    contain_zero = [row.ci_low <= 0 <= row.ci_high, row.relative_low <= 0 <= row.relative_high]
    assert contain_zero[0] == contain_zero[1], row
    assert (row.finding == "inconclusive") == contain_zero[0]
