"""The harnesses of the collector, the judge and the store are shared; workspaces that a server shows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "collector"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "judging"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "store"))

from collector_fixtures import collector, upstream
from serve_harness import HOSTILE, Served, serving_experiments

from evalpipe.workspace import canary
from evalpipe.workspace.paths import Workspace, open_workspace

__all__ = ["collector", "upstream"]

CANARY = """
[experiment]
name = "rollout"
mode = "canary"
[arms.control]
provider = "openai"
base_url = "http://127.0.0.1:9/v1"
[arms.treatment]
provider = "openai"
base_url = "http://127.0.0.1:9/v1"
[collector]
port = 9
[canary]
stages = [ { percentage = 10 }, { percentage = 50 }, { percentage = 100 } ]
"""


@pytest.fixture
def rollout(tmp_path: Path) -> Workspace:
    """A canary that was paused by a person in its first stage, with hostile words as the reason."""
    folder = tmp_path / "rollout"
    folder.mkdir()
    (folder / "evalpipe.toml").write_text(CANARY)
    found = open_workspace(root=folder)
    steps = iter(range(1))
    canary.run(found, on_event=lambda event: None, wait=lambda seconds: next(steps, None) is None)
    canary.change_state(found, "pause", why=HOSTILE, by="ann <b>")
    return found


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """`serve(folder, …, token=…)` serves workspaces until the test ends."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda *folders, **options: stack.enter_context(serving_experiments(*folders, **options))
