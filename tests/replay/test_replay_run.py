"""`evalpipe replay`: what is sent, what is stored, and that nothing is asked or paid twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from replay_harness import TREATMENT, logged, query, run, workspace

from evalpipe.sim.app import Simulator, start_sim
from evalpipe.sim.settings import SimSettings


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with start_sim(SimSettings(ttft_ms=1, tokens_per_second=100_000, batch_seconds=0.2)) as found:
        yield found


@pytest.fixture(autouse=True)
def empty_ledger(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    sim.reset()
    monkeypatch.setattr("evalpipe.calls.batches.FIRST_POLL_S", 0.05)


def test_every_request_is_answered_once_in_the_treatments_own_dialect(tmp_path: Path, sim: Simulator) -> None:
    found = workspace(tmp_path, sim.base_url, [logged(number) for number in range(12)])
    summary = run(found)
    assert (summary.n_answered, summary.stopped) == (12, None)
    rows = query(
        found,
        "SELECT role, arm, endpoint, model_requested, unit_id, turn, outcome, status, request FROM exchanges "
        "WHERE role = 'replay' ORDER BY request_id",
    )
    assert len(rows) == 12
    role, arm, endpoint, model, unit, turn, outcome, status, request = rows[3]
    assert (role, arm, endpoint, model, unit, turn) == ("replay", "treatment", "messages", TREATMENT, "u3", 1)
    assert (outcome, status) == ("ok", 200)
    sent = json.loads(request)
    assert (sent["system"], sent["model"], sent["max_tokens"]) == ("Be brief.", TREATMENT, 2000)
    ledger = sim.ledger()
    assert ledger["calls"] == 12
    assert summary.account.known_usd == pytest.approx(ledger["billed"]["usd"])
    again = run(found)
    assert (again.n_planned, again.n_known, sim.ledger()["calls"]) == (0, 12, 12)


def test_a_batch_costs_half_and_says_nothing_of_latency(tmp_path: Path, sim: Simulator) -> None:
    found = workspace(tmp_path, sim.base_url, [logged(number) for number in range(10)])
    summary = run(found, batch=True, with_control=True)
    ledger = sim.ledger()
    assert (summary.n_answered, ledger["calls"], ledger["n_answered_again"]) == (20, 20, 0)
    assert summary.account.known_usd == pytest.approx(ledger["billed"]["usd"])
    rows = query(
        found,
        "SELECT arm, count(*), count(latency_ms), count(status), sum(cost_usd) FROM exchanges WHERE role = 'replay' GROUP BY arm "
        "ORDER BY arm",
    )
    assert [row[:4] for row in rows] == [("control", 10, 0, 0), ("treatment", 10, 0, 0)]
    assert sum(row[4] for row in rows) == pytest.approx(2 * summary.account.known_usd)
    assert run(found, batch=True, with_control=True).n_planned == 0
    assert sim.ledger()["calls"] == 20
