"""Which requests a row is about, counted by hand: pairs in shadow mode, each arm's own requests in ab and canary mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from experiment_builders import NOW, START, both_arms, failing, frame, metric, run

from evalpipe.analysis.settings import CustomMetric
from evalpipe.models import Arm, Exchange, Role
from evalpipe.store.exchange_rows import BROKEN_OFF
from evalpipe.store.schema import EXCHANGES, to_table


def values(found: Any, name: str) -> tuple[float | None, float | None]:
    row = metric(found, name)
    return row.control.value, row.treatment.value


# Ten pairs: what each arm did, in the order of the requests.
CONTROL = ["ok", "ok", "ok", "timeout", "ok", "refused", "ok", "http_error", "ok", "ok"]
TREATMENT = ["ok", "http_error", "timeout", "ok", "truncated", "ok", "ok", "timeout", "ok", "ok"]
CONTROL_TEXT = ["a", "a", "a", None, "a", "a", "a", None, "", "a"]
TREATMENT_TEXT = ["a", None, None, "a", "a", "\n\t ", "a", None, "a", None]
TREATMENT_TOOLS = [None, None, None, None, None, "[]", None, None, None, '[{"name": "search"}]']
# Answered by both: requests 0, 4, 5, 6, 8, 9; of these the treatment is empty at 5, control at 8.


@pytest.fixture(scope="module")
def ten() -> Any:
    known = np.arange(1.0, 11.0)
    exchanges = both_arms(
        10,
        control={
            "outcome": CONTROL,
            "text": CONTROL_TEXT,
            "input_tokens": 10.0,
            "output_tokens": known,
            "cost_usd": known / 1000,
            "latency_ms": [100.0, 200, 300, 9000, 500, 600, 700, 800, 900, 1000],
            "streamed": True,
            "ttft_ms": known,
        },
        treatment={
            "outcome": TREATMENT,
            "text": TREATMENT_TEXT,
            "tool_calls": TREATMENT_TOOLS,
            "input_tokens": 20.0,
            "output_tokens": 2 * known,
            "cost_usd": 2 * known / 1000,
            "latency_ms": [150.0, 250, 9000, 450, 550, 650, 750, 9000, 950, 1050],
            "streamed": [True] * 9 + [False],
            "ttft_ms": 2 * known,
        },
    )
    return run(exchanges)


def test_errors_and_timeouts_are_over_pairs_that_both_arms_answered_or_failed(ten: Any) -> None:
    assert values(ten, "error_rate") == (0.2, 0.3)
    assert values(ten, "timeout_rate") == (0.1, 0.2)
    assert metric(ten, "error_rate").n == 10


def test_empty_answers_refusals_truncations_are_over_pairs_that_both_answered(ten: Any) -> None:
    assert values(ten, "empty_rate") == (1 / 6, 1 / 6)
    assert values(ten, "refusal_rate") == (1 / 6, 0.0)
    assert values(ten, "truncation_rate") == (0.0, 1 / 6)


def test_tokens_and_cost_are_over_pairs_in_which_neither_answer_is_empty(ten: Any) -> None:
    known = [1, 5, 7, 10]  # requests 0, 4, 6, 9
    mean = sum(known) / 4
    assert values(ten, "output_tokens") == pytest.approx((mean, 2 * mean))
    assert values(ten, "tokens_used") == pytest.approx((10 + mean, 20 + 2 * mean))
    assert values(ten, "cost_per_request_usd") == pytest.approx((mean / 1000, 2 * mean / 1000))
    seconds = [(latency - first) / 1000 for latency, first in zip([100, 500, 700, 1000], known, strict=True)]
    assert values(ten, "tokens_per_second")[0] == pytest.approx(sum(known) / sum(seconds))


def test_latency_counts_timeouts_too_and_first_tokens_only_streams_of_both(ten: Any) -> None:
    # Request 3 (control timed out) and 2 (the treatment did) count; 1 and 7 hold another failure.
    assert values(ten, "p50_latency_ms") == (500.0, 550.0)  # of 100 300 500 700 1000 9000 and 150 450 550 750 1050 9000
    # Both answered and both streamed: requests 0, 4, 5, 6, 8.
    assert values(ten, "p50_ttft_ms") == (6.0, 12.0)


def test_the_bill_is_over_all_attempts_of_which_it_is_known(ten: Any) -> None:
    # Failures of an arm whose answers have prices cost nothing; timeouts are unknown: requests 2, 3, 7 are left out.
    control = [1, 2, 5, 6, 7, 9, 10]
    assert values(ten, "cost_per_1000_requests_usd")[0] == pytest.approx(sum(control) / 7)
    assert values(ten, "cost_per_1000_requests_usd")[1] == pytest.approx((sum(control) - 2) * 2 / 7)
    assert values(ten, "cost_per_ok_answer_usd")[0] == pytest.approx(sum(control) / 1000 / 6)  # request 5 was refused


def test_a_split_takes_each_arms_own_requests() -> None:
    control = frame(8, arm="control", seed=1, mode="ab", outcome=["ok"] * 6 + ["timeout", "http_error"])
    control["text"] = ["", "a", "a", "a", "a", "a", None, None]
    control["cost_usd"] = np.arange(1.0, 9.0)
    control["latency_ms"] = [10.0, 20, 30, 40, 50, 60, 9000, 1]
    treatment = frame(6, arm="treatment", seed=2, mode="ab")
    treatment["request_id"], treatment["unit_id"] = "t" + treatment.request_id, "t" + treatment.unit_id
    found = run(pd.concat([control, treatment], ignore_index=True), mode="ab")
    assert values(found, "error_rate") == (2 / 8, 0.0)
    assert values(found, "empty_rate") == (1 / 6, 0.0)
    assert values(found, "cost_per_request_usd")[0] == pytest.approx((2 + 3 + 4 + 5 + 6) / 5)
    assert values(found, "p50_latency_ms")[0] == 40.0  # of 20 30 40 50 60 9000
    assert (metric(found, "empty_rate").control.n, metric(found, "empty_rate").treatment.n) == (6, 6)


@pytest.mark.parametrize(
    ("text", "tools", "empty"),
    [
        ("", None, True),
        (None, None, True),
        (" \r\n\t\u00a0\u200b", "[]", True),
        ("\u3000" * 5, None, True),
        ("", '[{"name": "f"}]', False),
        (None, '[{"name": "f"}]', False),
        ("  0", None, False),
        ("…", None, False),
        ("。", "[]", False),
        (" " * 20 + "x", None, False),
        ("\n" * 40, None, True),
    ],
)
def test_an_answer_is_empty_without_text_and_tool_calls(text: str | None, tools: str | None, empty: bool) -> None:
    """By its text and tool calls, and alike by the column that is made of them when rows are written."""
    found = run(both_arms(20, treatment={"text": [text] + ["a"] * 19, "tool_calls": [tools] + [None] * 19}))
    assert metric(found, "empty_rate").treatment.value == (0.05 if empty else 0.0)
    exchange = Exchange(
        request_id="r", arm=Arm.CONTROL, role=Role.SERVED, unit_id=None, conversation_id=None, started_at=NOW,
        text=text, tool_calls=tools,
    )  # fmt: skip
    assert to_table(EXCHANGES, [exchange])["answer_empty"].to_pylist() == [empty]


def test_texts_are_not_read_where_every_file_has_the_column() -> None:
    empty = np.arange(20) < 3
    found = run(both_arms(20, control={"answer_empty": False}, treatment={"answer_empty": empty, "text": "unread"}))
    assert metric(found, "empty_rate").treatment.value == 0.15


def test_an_own_metric_that_does_not_apply_to_a_pair_is_not_missing() -> None:
    own = (CustomMetric(name="score", sql="try_cast(meta AS DOUBLE)"),)
    applies = np.arange(60) % 3 > 0  # the value is there on both sides of two pairs of three
    meta = np.where(applies, "4", None)
    found = metric(run(both_arms(60, control={"meta": meta}, treatment={"meta": meta}), custom=own), "score")
    assert (found.control.value, found.n, found.status) == (4.0, 40, "zero_variance")
    one_sided = run(both_arms(60, control={"meta": meta}, treatment={"meta": "5"}), custom=own)
    assert metric(one_sided, "score").status == "missing_differs"


def test_one_user_with_much_of_the_traffic_is_named() -> None:
    users = ["busy"] * 30 + [f"u{i}" for i in range(70)]
    imported = {"unit_id": users, "role": "imported"}
    found = run(both_arms(100, control=imported, treatment=imported))
    check = next(one for one in found.checks if one.name == "one_user_dominates")
    assert (check.status, "the busiest of 71 users made 30" in check.detail) == ("warn", True)


def test_failures_of_one_hour_are_one_event_of_time() -> None:
    """A/A over 10 days: each arm is down for three hours of its own, and every user of these hours is hit."""
    n = 4800
    minutes = np.arange(n) * 3.0
    hours = (minutes // 60).astype(int)
    at = [START + pd.Timedelta(minutes=float(m)) for m in minutes]
    arms = {}
    for arm, down, seed in (("control", [30, 31, 32], 1), ("treatment", [130, 131, 132, 200, 201, 202], 2)):
        calm = failing(n, 0.003, seed=seed)
        arms[arm] = {"started_at": at, "outcome": np.where(np.isin(hours, down), "http_error", calm)}
    found = metric(run(both_arms(n, n_users=1200, **arms), looks="anytime"), "error_rate")
    assert found.difference == pytest.approx(found.treatment.value - found.control.value)
    assert found.ci_low < 0 < found.ci_high
    # The same failures spread over the hours are a finding.
    rng = np.random.default_rng(3)
    spread = {arm: {**changes, "outcome": rng.permutation(changes["outcome"])} for arm, changes in arms.items()}
    spread_row = metric(run(both_arms(n, n_users=1200, **spread), looks="anytime"), "error_rate")
    assert spread_row.difference == pytest.approx(found.difference)
    assert spread_row.ci_low > 0
    # The arm's own interval is as wide.
    assert found.treatment.ci_high - found.treatment.ci_low > 2 * (
        spread_row.treatment.ci_high - spread_row.treatment.ci_low
    )


def test_incidents_of_eight_hours_are_few_events() -> None:
    """A/A over four days: on two of them a fifth of the treatment's requests fails for eight hours."""
    n = 3840
    minutes = np.arange(n) * 1.5
    at = [START + pd.Timedelta(minutes=float(m)) for m in minutes]
    rng = np.random.default_rng(4)
    down = np.isin((minutes // 60).astype(int), [*range(20, 28), *range(68, 76)]) & (rng.random(n) < 0.2)
    control = {"started_at": at, "outcome": failing(n, 0.003, seed=1)}
    treatment = {"started_at": at, "outcome": np.where(down, "http_error", failing(n, 0.003, seed=2))}
    found = metric(run(both_arms(n, n_users=960, control=control, treatment=treatment), looks="anytime"), "error_rate")
    assert found.difference == pytest.approx(down.sum() / n, abs=0.003)
    assert found.ci_low < 0 < found.ci_high
    # The same failures at any time are a finding.
    spread = {"started_at": at, "outcome": rng.permutation(treatment["outcome"])}
    elsewhere = metric(run(both_arms(n, n_users=960, control=control, treatment=spread), looks="anytime"), "error_rate")
    assert elsewhere.difference == pytest.approx(found.difference)
    assert elsewhere.ci_low > 0


@pytest.mark.parametrize(
    ("failure", "usd"),
    [
        ({"status": 429}, 0.0),  # neither vendor bills an error's status
        ({"status": None}, 0.0),  # never sent
        ({"status": 429, "cost_note": "no price is known for m"}, None),  # it reported tokens
        ({"status": 502, "cost_note": BROKEN_OFF}, None),
        ({"status": 200, "cost_note": BROKEN_OFF}, None),  # an error within a 200
        ({"status": 200, "outcome": "unreadable", "cost_note": BROKEN_OFF}, None),
        ({"status": 200, "outcome": "unreadable"}, None),  # of a file from before the notes
        ({"status": 504, "outcome": "timeout"}, None),
        ({"status": 429, "role": "imported"}, 0.0),
        ({"status": None, "role": "imported"}, None),  # another tool's log that says no more than "failed"
    ],
)
@pytest.mark.parametrize("mode", ["shadow", "ab"])
def test_a_failures_bill_is_nothing_only_where_nothing_is_billed(
    mode: str, failure: dict[str, Any], usd: float | None
) -> None:
    """Eight requests: the treatment's answers cost 1 $ each, its last two attempts failed."""
    exchanges = both_arms(8, treatment={"status": 200, "cost_note": None, "cost_usd": 1.0})
    treatment = exchanges["arm"] == "treatment"
    failed = treatment & exchanges["request_id"].isin(["r6", "r7"])
    for column, value in {"outcome": "http_error", **failure}.items():
        exchanges.loc[failed, column] = value
    exchanges.loc[failed, "cost_usd"] = None
    if mode == "ab":
        exchanges.loc[treatment, ["request_id", "unit_id"]] = "t" + exchanges.loc[treatment, ["request_id", "unit_id"]]
        exchanges["role"] = np.where(exchanges["role"] == "shadow", "served", exchanges["role"])
    bill = values(run(exchanges, mode=mode), "cost_per_1000_requests_usd")[1]
    assert bill == pytest.approx(1000 * 6 / 8 if usd == 0 else 1000.0)
