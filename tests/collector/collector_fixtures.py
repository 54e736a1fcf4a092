"""Fixtures of every folder whose tests start collectors: its conftest.py imports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from collector_harness import RawUpstream, Running, Script, start_collector


@pytest.fixture
def upstream() -> Iterator[Callable[[Script], RawUpstream]]:
    """`upstream(script)` starts a raw upstream."""
    started: list[RawUpstream] = []

    def start(script: Script) -> RawUpstream:
        started.append(RawUpstream(script))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """`collector(control_url, treatment_url, …)` starts a collector on a free port."""
    started: list[Running] = []

    def start(*arguments: Any, **options: Any) -> Running:
        root = options.pop("root", tmp_path / f"workspace{len(started)}")
        started.append(start_collector(root, *arguments, **options))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait(10)
        running.close()
