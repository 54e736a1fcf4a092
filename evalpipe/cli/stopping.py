"""SIGTERM for commands that clean up behind themselves."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end this command as Ctrl-C does: unfinished files are removed, helper processes are stopped, exit code 130."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the cleaning up
    raise KeyboardInterrupt
