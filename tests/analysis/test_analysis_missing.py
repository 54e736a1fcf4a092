"""Values that one arm's answers do not report: kinds that leave the row, what is left, and what then concludes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from experiment_builders import both_arms, frame, metric, run

from evalpipe.analysis.populations import Missing, note_of
from evalpipe.analysis.settings import MetricRule

TOLD_BY_USAGE = ("cost_per_request_usd", "input_tokens", "output_tokens", "tokens_used", "tokens_per_second")
N = 1200


def clients(n: int, *, seed: int, streamed: Any = None, known: Any = True, factor: float = 1.0) -> dict[str, Any]:
    """Half of the requests short and plain, half long and streamed: tokens, cost, latency of one arm; None where not `known`."""
    rng = np.random.default_rng(seed)
    is_streamed = np.arange(n) % 2 == 1 if streamed is None else streamed
    output = np.where(is_streamed, rng.integers(900, 1100, n), rng.integers(20, 40, n)).astype(float)
    reported = np.broadcast_to(known, n)
    return {
        "streamed": is_streamed,
        "request_kind": np.where(is_streamed, "chat.completions streamed", "chat.completions"),
        "input_tokens": np.where(reported, 100.0, np.nan),
        "output_tokens": np.where(reported, output, np.nan),
        "cost_usd": np.where(reported, factor * output * 1e-5, np.nan),
        "ttft_ms": np.where(is_streamed, 100.0, np.nan),
        "latency_ms": 200 + 2 * output * rng.uniform(0.9, 1.1, n),
    }


def test_streams_without_usage_leave_the_cost_of_both_arms_in_shadow_mode() -> None:
    """Both arms the same model: control's streams report nothing, the copies do. The known means differ 17-fold."""
    plain = np.arange(N) % 2 == 0
    found = run(
        both_arms(N, n_users=N // 2, control=clients(N, seed=1, known=plain), treatment=clients(N, seed=2)),
        looks="anytime",
    )
    for name in TOLD_BY_USAGE:
        row = metric(found, name)
        assert row.status in {"ok", "zero_variance"}, name
        assert row.control.n == row.treatment.n == row.n == N // 2, name
        assert row.finding in {"equivalent", "inconclusive", "undefined"}, name
    cost = metric(found, "cost_per_request_usd")
    expected = clients(N, seed=1)["cost_usd"][plain].mean()
    assert cost.control.value == pytest.approx(expected)
    assert "left out in both arms: chat.completions streamed (50 % of the requests)" in cost.note
    assert 'set stream_usage = "inject" in [collector]' in cost.note
    assert metric(found, "error_rate").n == N  # what every answer shows is compared on all


def test_streams_without_usage_leave_the_cost_of_both_arms_in_ab_mode() -> None:
    control = frame(N, arm="control", seed=1, mode="ab", **clients(N, seed=1, known=np.arange(N) % 2 == 0))
    treatment = frame(N, arm="treatment", seed=2, mode="ab", **clients(N, seed=2))
    treatment["request_id"], treatment["unit_id"] = "t" + treatment.request_id, "t" + treatment.unit_id
    found = run(pd.concat([control, treatment], ignore_index=True), mode="ab", looks="anytime")
    cost = metric(found, "cost_per_request_usd")
    assert (cost.status, cost.control.n, cost.treatment.n) == ("ok", N // 2, N // 2)
    assert cost.relative_low < 0 < cost.relative_high
    assert cost.treatment.value == pytest.approx(clients(N, seed=2)["cost_usd"][::2].mean())


def test_half_of_the_clients_is_half_in_any_sample() -> None:
    """Clients (users) stream by a coin: in half of the samples fewer than half of the requests are left, by chance."""
    concluded, below = 0, 0
    for seed in range(6):
        streams = np.random.default_rng(seed).random(300) < 0.5
        streamed = streams[np.arange(N) % 300]
        arms = [
            clients(N, seed=seed + arm, streamed=streamed, known=known) for arm, known in ((0, ~streamed), (1, True))
        ]
        found = run(both_arms(N, n_users=300, control=arms[0], treatment=arms[1]))
        concluded += metric(found, "cost_per_request_usd").status == "ok"
        below += streamed.mean() > 0.5
    assert concluded == 6
    assert 1 <= below <= 5


def test_fewer_than_half_left_concludes_nothing() -> None:
    streamed = np.arange(N) % 10 > 0
    arms = [clients(N, seed=1, streamed=streamed, known=~streamed), clients(N, seed=2, streamed=streamed, factor=0.5)]
    found = run(both_arms(N, n_users=600, control=arms[0], treatment=arms[1]))
    cost = metric(found, "cost_per_request_usd")
    assert (cost.status, cost.finding, cost.n) == ("missing_differs", "undefined", N // 10)
    assert cost.difference == pytest.approx(cost.treatment.value - cost.control.value)
    assert "fewer than half of the requests are left" in cost.note


def test_the_dearest_hundredth_unknown_is_no_saving() -> None:
    """The treatment's bill is unknown for its dearest 1 %: of the rest it looks 20 % cheaper."""
    rng = np.random.default_rng(4)
    shared = np.exp(rng.normal(0, 0.3, 2000))
    control, treatment = {"cost_usd": shared * 0.001}, {"cost_usd": shared * 0.0008 * rng.uniform(0.95, 1.05, 2000)}
    dearest = np.argsort(shared)[-20:]
    treatment["cost_usd"][dearest] = np.nan
    cost = metric(run(both_arms(2000, control=control, treatment=treatment)), "cost_per_request_usd")
    assert (cost.status, cost.finding) == ("missing_differs", "undefined")
    assert "unknown in 0 % of control's and 1 % of treatment's" in cost.note
    assert "add the model's price under [prices]" in cost.note  # its tokens are known
    few = treatment["cost_usd"].copy()
    few[dearest[:11]] = shared[dearest[:11]] * 0.0008  # leaves 9 of 2,000: .45 %
    row = metric(run(both_arms(2000, control=control, treatment={"cost_usd": few})), "cost_per_request_usd")
    assert (row.status, row.finding, row.n) == ("ok", "better", 1991)


def test_a_kind_leaves_at_half_unknown_in_either_arm() -> None:
    def row(n_unknown: int, arm: str) -> Any:
        kinds = np.where(np.arange(400) < 100, "rare", "usual")
        changes = {}
        for seed, name in enumerate(("control", "treatment")):
            cost = np.random.default_rng(seed).uniform(0.9, 1.1, 400)
            cost[: n_unknown if name == arm else 0] = np.nan
            changes[name] = {"request_kind": kinds, "cost_usd": cost}
        return metric(run(both_arms(400, **changes)), "cost_per_request_usd")

    for arm in ("control", "treatment"):
        assert (row(50, arm).n, row(50, arm).status) == (300, "ok")
        assert (row(49, arm).n, row(49, arm).status) == (351, "missing_differs")


def test_what_failed_is_no_answer_whose_bill_could_be_known() -> None:
    """Of one kind most requests of control time out, and all of its answers are without a bill."""
    kinds = np.where(np.arange(400) < 100, "rare", "usual")
    outcome = np.where(np.arange(400) < 60, "timeout", "ok")
    cost = np.random.default_rng(1).uniform(0.9, 1.1, 400)
    control = {"request_kind": kinds, "outcome": outcome, "cost_usd": np.where(kinds == "rare", np.nan, cost)}
    found = run(both_arms(400, control=control, treatment={"request_kind": kinds, "cost_usd": cost[::-1]}))
    bill = metric(found, "cost_per_1000_requests_usd")
    assert (bill.status, bill.n) == ("ok", 300)
    assert "left out in both arms: rare (11.8 % of the requests)" in bill.note  # 40 of 340 answers


def test_files_without_the_kind_take_endpoint_and_streaming() -> None:
    streamed = np.arange(N) % 3 == 0
    arms = [clients(N, seed=1, streamed=streamed, known=~streamed), clients(N, seed=2, streamed=streamed)]
    for arm in arms:
        arm["request_kind"] = None
    cost = metric(run(both_arms(N, control=arms[0], treatment=arms[1])), "cost_per_request_usd")
    assert cost.n == N * 2 // 3
    assert "chat.completions, streamed (33.3 % of the requests)" in cost.note


def test_what_neither_arm_reports_is_no_data() -> None:
    silent = clients(N, seed=1, known=False)
    found = run(both_arms(N, control=silent, treatment=silent))
    assert metric(found, "cost_per_request_usd").status == "no_data"
    one_sided = run(both_arms(N, control=silent, treatment=clients(N, seed=2)))
    assert metric(one_sided, "cost_per_request_usd").status == "missing_differs"
    assert metric(one_sided, "cost_per_request_usd").difference is None


@pytest.mark.parametrize("role", ["primary", "benefit", "guardrail"])
def test_no_role_makes_a_finding_of_it(role: str) -> None:
    streamed = np.arange(N) % 10 > 0
    known, dearer = (
        clients(N, seed=1, streamed=streamed, known=~streamed),
        clients(N, seed=2, streamed=streamed, factor=5.0),
    )
    rules = {"cost_per_request_usd": MetricRule(role=role)}
    row = metric(run(both_arms(N, control=known, treatment=dearer), metrics=rules), "cost_per_request_usd")
    assert (row.relative > 3, row.finding, row.non_inferior) == (True, "undefined", False)


def test_the_note_names_the_line_that_mends_it() -> None:
    partly = Missing(control=0.25, treatment=0.0, n_left=75, n_all=100)
    assert note_of(partly, "output_tokens") == (
        "unknown in 25 % of control's and 0 % of treatment's: add the tokens to the file that was imported and load it again "
        '(`--replace`), of collected streams set stream_usage = "inject" in [collector], or set role = "diagnostic" under '
        "[decision.metrics.output_tokens]"
    )
    assert note_of(Missing(control=0.0, treatment=0.004), "p50_latency_ms") is None
    slow = note_of(Missing(control=0.0, treatment=0.2), "p50_latency_ms")
    assert slow is not None and "stream_usage" not in slow


def test_speeds_that_are_not_known_although_the_tokens_are_need_no_usage() -> None:
    streams = clients(N, seed=1)
    streams["ttft_ms"] = np.where(np.arange(N) % 20 == 1, np.nan, streams["ttft_ms"])
    row = metric(run(both_arms(N, control=streams, treatment=clients(N, seed=2)), looks="anytime"), "tokens_per_second")
    assert row.missing_control == pytest.approx(0.05)
    assert "stream_usage" not in row.note and "how long these answers took to come is not known" in row.note
