"""The tables that are summed: first turns, repeated lines; and what the source of the log can measure."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from experiment_builders import EXPERIMENT, both_arms, connect, frame, metric, run, verdicts

from evalpipe.analysis.prepare import Prepared, find_sources, prepare_rows
from evalpipe.analysis.record import ExperimentRecord
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.verdicts import Chosen, choose_pairs, prepare_verdicts


def prepared_from(
    exchanges: pd.DataFrame, *, mode: str = "shadow", **options: Any
) -> tuple[duckdb.DuckDBPyConnection, Prepared]:
    connection = connect(exchanges=exchanges)
    return connection, prepare_rows(connection, experiment=EXPERIMENT, mode=mode, **options)


def later_turns(connection: duckdb.DuckDBPyConnection, head: dict[str, int] | None = None) -> tuple[int, Chosen]:
    """How many requests are later turns, and what is chosen at this look after one that fixed `head`."""
    record = ExperimentRecord(
        experiment=EXPERIMENT, created_at="", n_star={}, confidence_level=0.95, rules="", head=head or {}
    )
    found = choose_pairs(connection, None, Settings(), record, experiment=EXPERIMENT)
    return connection.execute("SELECT count(*) FROM ev_ids SEMI JOIN ev_later USING (id)").fetchall()[0][0], found


def test_first_turns_of_a_shadow_are_read_from_the_prepared_tables() -> None:
    place = {"turn": np.arange(90) % 3 + 1, "step": 0, "conversation_id": [f"c{i // 3}" for i in range(90)]}
    place["unit_id"] = [f"u{i // 3}" for i in range(90)]
    connection, _ = prepared_from(both_arms(90, control=place, treatment=place))
    n_later, found = later_turns(connection)
    assert (n_later, found.n_conversations, found.first_share, found.later_share) == (60, 30, 1.0, 2 / 3)


def test_a_head_that_is_fixed_stays() -> None:
    place = {"turn": 3, "step": 0, "request": '{"messages": [{"role": "system", "content": "With examples."}]}'}
    connection, _ = prepared_from(both_arms(240, control=place, treatment=place))
    n_later, found = later_turns(connection)
    assert (n_later, list(found.fixed_head.values())) == (0, [3])
    fixed = dict.fromkeys(found.fixed_head, 2)
    n_later, again = later_turns(connection, fixed)
    assert (n_later, again.fixed_head) == (240, fixed)


@pytest.mark.parametrize("arm", ["control", "treatment"])
def test_lines_logged_many_times_do_not_multiply(arm: str) -> None:
    exchanges = both_arms(40)
    again = exchanges[(exchanges.arm == arm) & (exchanges.request_id == "r3")]
    connection, found = prepared_from(pd.concat([exchanges, *[again] * 500], ignore_index=True))
    assert (found.n_duplicates, found.n_rows) == (500, 80)
    assert connection.execute("SELECT count(*) FROM ev_ids").fetchall() == [(40,)]


@pytest.mark.parametrize("sampled", [1, 20_000])
@pytest.mark.parametrize(("arm", "alone"), [("control", False), ("treatment", False), ("control", True)])
def test_a_line_logged_twice_is_found_with_or_without_its_other_arm(
    monkeypatch: pytest.MonkeyPatch, sampled: int, arm: str, alone: bool
) -> None:
    monkeypatch.setattr("evalpipe.analysis.prepare.SAMPLED_ROWS", sampled)
    exchanges = both_arms(40)
    if alone:  # the request was never copied
        exchanges = exchanges[(exchanges.request_id != "r3") | (exchanges.arm == arm)]
    again = exchanges[(exchanges.arm == arm) & (exchanges.request_id == "r3")]
    connection, found = prepared_from(pd.concat([exchanges, again], ignore_index=True))
    assert (found.n_duplicates, found.n_rows) == (1, 78 if alone else 80)
    assert connection.execute("SELECT count(*) FROM ev_ids").fetchall() == [(40,)]


def sources_of(exchanges: pd.DataFrame, *, mode: str = "shadow", **settings: Any) -> dict[str, bool]:
    with connect(exchanges=exchanges) as connection:
        prepare_rows(connection, experiment=EXPERIMENT, mode=mode)
        chosen = Settings(**settings)
        prepare_verdicts(connection, experiment=EXPERIMENT, settings=chosen)
        return find_sources(connection, chosen, paired=mode == "shadow")


FROM_FILE = {"role": "imported", "cost_usd": np.nan}


@pytest.mark.parametrize(
    ("control", "treatment", "failures", "latency", "cost"),
    [
        ({}, {}, True, True, True),
        (FROM_FILE, FROM_FILE, False, False, False),
        ({**FROM_FILE, "status": 200}, {**FROM_FILE, "status": 200}, True, False, False),
        ({**FROM_FILE, "status": 200}, FROM_FILE, False, False, False),
        ({"role": "imported"}, {"role": "imported"}, False, False, True),
        ({}, FROM_FILE, False, False, False),
    ],
)
def test_what_an_import_measures(
    control: dict[str, Any], treatment: dict[str, Any], failures: bool, latency: bool, cost: bool
) -> None:
    found = sources_of(both_arms(20, control=control, treatment=treatment))
    assert (found["error_rate"], found["timeout_rate"]) == (failures, failures)
    assert (found["p50_latency_ms"], found["p99_latency_ms"]) == (latency, latency)
    assert found["cost_per_request_usd"] == cost


def test_a_logged_failure_measures_failures_but_an_absent_answer_does_not() -> None:
    def row(outcome: str) -> Any:
        outcomes = [outcome] * 4 + ["ok"] * 96
        imported = {"role": "imported", "outcome": "ok", "text": "an answer"}
        return run(
            both_arms(100, control={**imported, "outcome": outcomes}, treatment={**imported, "outcome": outcomes})
        )

    silent = metric(row("unreadable"), "error_rate")
    assert (silent.status, silent.control.value, silent.n) == ("not_measured", None, 0)
    for outcome in ("http_error", "timeout"):
        assert metric(row(outcome), "error_rate").control.value == 0.04


def test_imported_rows_beside_served_ones_leave_the_error_row_where_they_show_no_status() -> None:
    exchanges = both_arms(100, treatment={"outcome": ["http_error"] * 10 + ["ok"] * 90})
    exchanges.loc[exchanges.request_id.isin([f"r{i}" for i in range(50, 100)]), "role"] = "imported"
    found = metric(run(exchanges), "error_rate")
    assert (found.n, found.treatment.value, found.status) == (50, 0.2, "ok")
    assert sources_of(exchanges)["error_rate"]
    assert not sources_of(exchanges)["p50_latency_ms"]


def test_an_arm_whose_model_has_no_price_cannot_measure_cost() -> None:
    exchanges = both_arms(20, treatment={"cost_usd": np.nan})
    assert sources_of(exchanges, priced={"control": True, "treatment": False})["cost_per_request_usd"] is False
    assert sources_of(exchanges, priced={"control": True})["cost_per_request_usd"] is True
    found = metric(run(exchanges, priced={"treatment": False}), "cost_per_request_usd")
    assert (found.status, found.control.value) == ("not_measured", None)


def test_goals_of_a_split_need_somebody_who_rates_or_judges() -> None:
    exchanges = frame(20, arm="control", seed=1, mode="ab")
    found = sources_of(exchanges, mode="ab")
    assert {name for name, measured in found.items() if not measured} == {
        "user_rating",
        "relevance_score",
        "faithfulness_score",
    }
    assert "user_rating" not in sources_of(both_arms(20))


def test_the_win_rate_counts_a_user_once() -> None:
    exchanges = both_arms(6, n_users=2)  # u0: r0 r2 r4, u1: r1 r3 r5
    row = metric(run(exchanges, verdicts([1.0, 0.0, 0.5, 0.0, 0.0, 1.0])), "win_rate")
    assert row.treatment.value == pytest.approx((1.5 / 3 + 1 / 3) / 2)
    assert (row.treatment.n, row.n, row.n_clusters) == (6, 6, 2)
