"""Excluded periods are kept, each until it is taken back, and nothing of them is judged."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from spool_builders import T0, copy, request, served, shadow, write_segment

from evalpipe.errors import ConfigError
from evalpipe.store.query import open_store
from evalpipe.workspace.decide import exclude, exclusions, include_again
from evalpipe.workspace.judge_setup import build_plan, load_specs
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace

DAY = 86_400
CONFIG = '[experiment]\nname = "exp"\n[arms.control]\nprovider = "openai"\n[arms.treatment]\nprovider = "anthropic"\n'


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Four pairs, a day apart."""
    (tmp_path / "evalpipe.toml").write_text(CONFIG)
    found = open_workspace(root=tmp_path)
    records = [(f"r{n}", T0 + n * DAY) for n in range(4)]
    write_segment(
        found.spool,
        "served-1.000001",
        [part for name, at in records for part in (request(name, at=at), served(name, at=at))],
    )
    write_segment(
        found.spool,
        "shadow-1.000001",
        [part for name, at in records for part in (shadow(name, at=at), copy(name, at=at))],
    )
    load(found)
    return found


def day(n: float) -> str:
    return datetime.fromtimestamp(T0 + n * DAY, UTC).isoformat()


def n_judged(workspace: Workspace) -> int:
    (spec,) = load_specs(workspace)
    with open_store(workspace.data, "exp") as store:
        return build_plan(workspace, store, spec, limit=None).n_eligible


def test_each_exclusion_stays_until_it_is_taken_back(workspace: Workspace) -> None:
    assert n_judged(workspace) == 4
    for n in (0, 2):
        exclude(workspace, since=day(n - 0.5), until=day(n + 0.5), why=f"outage {n}")
    assert [one.why for one in exclusions(workspace)] == ["outage 0", "outage 2"]
    assert n_judged(workspace) == 2
    with pytest.raises(ConfigError, match="excluded already"):
        exclude(workspace, since=day(-0.5), until=day(0.5), why="again")
    include_again(workspace, 1)
    assert [one.why for one in exclusions(workspace)] == ["outage 2"]
    assert n_judged(workspace) == 3
