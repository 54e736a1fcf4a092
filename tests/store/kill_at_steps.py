"""Runs a compaction of a copy of a folder again and again, killed -9 before its 1st, 2nd, … change of the disk, until it ends.

`kill_at_steps.py SOURCE TARGET [--grace-minutes M]`: leaves TARGET/1, TARGET/2, … as the killed processes left them, and
TARGET/last. A process that has imported everything and started no thread is forked for each.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("fsync", "rename", "replace", "unlink", "mkdir", "utime")
"""every call of these is a step; what is written between two of them counts only once it is renamed"""


def kill_before(step: int) -> None:
    """Arm this process: it is killed at its `step`-th change."""
    left = [step]

    def armed(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return counting

    for name in CHANGES:
        setattr(os, name, armed(getattr(os, name)))


def main(source: Path, target: Path, grace_minutes: float) -> None:
    from evalpipe.workspace.compact import compact
    from evalpipe.workspace.paths import open_workspace

    target.mkdir()
    step = 0
    while True:
        step += 1
        root = target / str(step)
        shutil.copytree(source, root)
        child = os.fork()
        if not child:
            kill_before(step)
            compact(open_workspace(root=root), grace_minutes=grace_minutes, show_progress=False)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            root.rename(target / "last")
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
