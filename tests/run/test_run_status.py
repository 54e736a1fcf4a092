"""`evalpipe status`: what waits in the spool."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from spool_builders import T0, request, served

from evalpipe.spool.writer import SpoolWriter
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import init_workspace, open_workspace
from evalpipe.workspace.status import spool_facts


def test_a_segment_of_a_running_collector_waits_until_it_was_loaded(tmp_path: Path) -> None:
    init_workspace(tmp_path, name="exp")
    workspace = open_workspace(root=tmp_path)
    writer = SpoolWriter(workspace.spool, "served-1-1", segment_bytes=1 << 30, segment_s=1e9)
    try:
        writer.append(request("r1c", at=T0))
        writer.append(served("r1c", at=T0))
        assert spool_facts(workspace)["waiting_bytes"] > 0
        assert load(workspace, show_progress=False).n_exchanges == 1
        facts = spool_facts(workspace)
        assert facts["is_collecting"] and facts["waiting_bytes"] == 0
        (segment,) = workspace.spool.glob("served-1-1.*")
        writer.append(request("r2c", at=T0 + 1))
        os.utime(segment, (T0 + 10**9, T0 + 10**9))  # later than the load, whatever the clock's resolution
        assert spool_facts(workspace)["waiting_bytes"] > 0
    finally:
        writer.close()
