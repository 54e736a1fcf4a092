"""Options that several commands share, SIGTERM, and the lines of `prune` and `forget`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from evalpipe.workspace.retention import Removal


Config = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file.  [default: ./evalpipe.toml]")]
Data = Annotated[Path | None, typer.Option("--data", envvar="EVALPIPE_DATA", help="Data folder.  [default: ./data]")]
Experiment = Annotated[
    str | None, typer.Option("--experiment", "-e", help="Experiment name.  [default: the workspace's]")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Since = Annotated[
    str | None,
    typer.Option("--since", help="Only requests served from this instant on (ISO 8601; UTC where no zone is given)."),
]
Until = Annotated[str | None, typer.Option("--until", help="Only requests served before this instant.")]


class LogFormats(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


class LogLevels(StrEnum):
    """The least level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


LogFormat = Annotated[
    LogFormats, typer.Option("--log-format", help="Log lines on stderr: text, or one JSON object each.")
]
LogLevel = Annotated[LogLevels, typer.Option("--log-level", help="The least level that is logged.")]
Where = Annotated[str | None, typer.Option("--where", help="Only requests whose served row meets this SQL expression.")]


# SIGTERM for commands that clean up behind themselves.


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end this command as Ctrl-C does: unfinished files are removed, helper processes are stopped, exit code 130."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the cleaning up
    raise KeyboardInterrupt


# What `prune` and `forget` did, as lines.


_COUNTED = {
    "exchanges": "answer",
    "judgments": "judgment",
    "feedback": "comment",
    "labels": "label",
    "rejected": "rejected line",
    "reports": "report page",
}


def lines(removal: Removal) -> Iterator[str]:
    """The counts in one line, then what is left, and why."""
    counts = [f"{n:,} {word}{'s' * (n != 1)}" for name, word in _COUNTED.items() if (n := getattr(removal, name))]
    done = "would take" if removal.dry_run else "took"
    whose = f" before {removal.before}" if removal.before else ""
    if counts:
        yield f"{removal.experiment}: {done} the texts out of {', '.join(counts)}{whose}"
    else:
        hint = "" if removal.before else "; is it the plain id, as the app sends it?"
        yield f"{removal.experiment}: nothing to remove{whose}{hint}"
    yield from (f"  {note}" for note in removal.notes)
