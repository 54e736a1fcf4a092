"""Options that several commands share, and SIGTERM for commands that clean up."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from evalpipe.errors import ConfigError

if TYPE_CHECKING:
    from evalpipe.workspace.analyze import Connect
    from evalpipe.workspace.paths import Workspace

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file.  [default: ./evalpipe.toml]")]
Data = Annotated[
    Path | None,
    typer.Option("--data", envvar="EVALPIPE_DATA", help="Data folder, or s3://bucket/prefix.  [default: ./data]"),
]
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


def check_ray(ray: str | None, *, batch: bool) -> None:
    """Raises ConfigError where a cluster would have nothing to do."""
    if ray is not None and batch:
        raise ConfigError(
            "--ray spreads single calls over nodes, a batch is the provider's own: leave --ray or --batch out"
        )


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end this command as Ctrl-C does: unfinished files are removed, helper processes are stopped, exit code 130."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the cleaning up
    raise KeyboardInterrupt


MaxUsd = Annotated[
    float | None, typer.Option("--max-usd", min=0.0, help="Hard cap over all runs of this experiment and judge.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Make the calls from the nodes of a Ray cluster: host:port, auto or local.  [default: [cluster] address]",
    ),
]
RayTables = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Read and sum on the nodes of a Ray cluster: host:port, auto or local.  [default: [cluster] address]",
    ),
]
RayRows = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Read and write rows on the nodes of a Ray cluster: host:port, auto or local.  [default: [cluster] address]",
    ),
]


def reading(workspace: Workspace, ray: str | None) -> AbstractContextManager[Connect | None]:
    """How analyses in the block read the store: with --ray by the nodes of a cluster."""
    if ray is None:
        return nullcontext()
    from evalpipe.cluster.analysis import read_by_cluster

    return read_by_cluster(workspace, ray)


Judges = Annotated[
    list[str] | None,
    typer.Option("--judge", "-j", help="Judge by name; several at once.  [default: [judge] name]"),
]
