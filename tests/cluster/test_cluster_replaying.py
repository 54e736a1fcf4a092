"""Replaying with shards: each request once, its answer stored as on one machine, also where a shard is lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "replay"))

from in_process import InProcessCluster
from replay_harness import logged, query, run, workspace

from evalpipe.cluster.replay import replay_on
from evalpipe.sim.app import Simulator, start_sim
from evalpipe.sim.settings import SimSettings
from evalpipe.workspace.paths import Workspace
from evalpipe.workspace.replay import ReplayOptions, replay


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with start_sim(SimSettings(ttft_ms=1, tokens_per_second=100_000)) as found:
        yield found


def on_cluster(found: Workspace, cluster: InProcessCluster, **options: Any) -> Any:
    chosen = ReplayOptions(**options)
    return replay(found, chosen, yes=True, output=lambda line: None, confirm=None, opened=replay_on(cluster))


STORED = (
    "SELECT request_id, arm, role, endpoint, model_requested, unit_id, turn, outcome, status, request, config_fingerprint "
    "FROM exchanges WHERE role = 'replay' ORDER BY ALL"
)


def test_both_arms_answers_are_stored_as_on_one_machine(tmp_path: Path, sim: Simulator) -> None:
    log = [logged(number, user=f"u{number % 7}") for number in range(20)]
    alone = workspace(tmp_path / "one", sim.base_url, log)
    together = workspace(tmp_path / "many", sim.base_url, log)
    first = run(alone, with_control=True, pairs_per_unit=0)
    sim.reset()
    second = on_cluster(together, InProcessCluster(3), with_control=True, pairs_per_unit=0)
    assert sim.ledger()["calls"] == 40
    assert query(together, STORED) == query(alone, STORED)
    assert (second.n_answered, second.n_planned, second.ended) == (40, 40, first.ended)
    assert second.account.known_usd == pytest.approx(sim.ledger()["billed"]["usd"])


def test_a_lost_shards_requests_are_sent_elsewhere(tmp_path: Path, sim: Simulator) -> None:
    sim.reset()
    found = workspace(tmp_path, sim.base_url, [logged(number) for number in range(40)], replaying="concurrency = 6\n")
    summary = on_cluster(found, InProcessCluster(3, lost_at=[None, 5, None]))
    ledger = sim.ledger()
    assert (summary.n_answered, summary.n_planned) == (40, 40)
    assert query(found, "SELECT count(*), count(DISTINCT request_id) FROM exchanges WHERE role = 'replay'") == [
        (40, 40)
    ]
    lost = summary.retried["lost"]
    assert 1 <= lost <= 6
    assert ledger["calls"] <= 40 + lost
    # The provider's bill is within what is booked: what is known and the worst case of what was lost.
    assert (
        summary.account.known_usd <= ledger["billed"]["usd"] <= summary.account.known_usd + summary.account.at_most_usd
    )
    assert summary.account.n_unsettled == lost
