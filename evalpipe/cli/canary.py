"""`evalpipe canary …`."""

from __future__ import annotations

import json
import logging
from typing import Annotated

import typer

from evalpipe.cli import options

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="A progressive rollout with guardrails: watch it, approve its gates, roll it back.\n\n"
    "Example: `evalpipe canary run` beside `evalpipe collect`, then `evalpipe canary status`",
)

Why = Annotated[str, typer.Option("--why", help="The reason, kept in the history.")]
By = Annotated[str | None, typer.Option("--by", help="Who decides.  [default: your user name]")]


@app.command()
def run(
    config: options.Config = None,
    data: options.Data = None,
    until_done: Annotated[bool, typer.Option("--until-done", help="End when done (0) or rolled back (1).")] = False,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True, help="End when stdin closes.")] = False,
    log_format: options.LogFormat = options.LogFormats.TEXT,
) -> None:
    """Evaluate continuously and move the traffic: the controller.

    `evalpipe collect` runs one by itself; a second one waits and takes over when the first ends.

    Example: `evalpipe canary run`
    """
    from evalpipe.collector.logs import log_event, set_up_logging
    from evalpipe.models import CanaryEvent, CanaryStatus
    from evalpipe.workspace import canary
    from evalpipe.workspace.paths import open_workspace

    set_up_logging("canary", log_format=log_format.value)
    logger = logging.getLogger("evalpipe.canary")
    workspace = open_workspace(config, data, pull=False)
    standing_by: list[bool] = []

    def show(event: CanaryEvent) -> None:
        state = event.state
        log_event(
            logger,
            logging.ERROR if state.status is CanaryStatus.ROLLED_BACK else logging.INFO,
            f"{event.action}: {state.percentage:g} % ({state.status}): {event.why}",
            action=str(event.action),
            percentage=state.percentage,
            status=str(state.status),
        )

    def standby() -> None:
        if not standing_by:
            standing_by.append(True)
            logger.info("another controller is at work: standing by")

    wait = canary.wait_for_parent if with_parent else canary.sleep
    canary.run(workspace, on_event=show, on_standby=standby, wait=wait, until_done=until_done)
    if until_done and canary.read_status(workspace).state.status is CanaryStatus.ROLLED_BACK:
        raise typer.Exit(1)


@app.command()
def status(config: options.Config = None, data: options.Data = None, as_json: options.Json = False) -> None:
    """The canary's state: percentage, requests, guardrails, and the reason.

    Example: `evalpipe canary status --json`
    """
    from evalpipe.text import printable
    from evalpipe.workspace.canary import read_status, status_document, status_lines
    from evalpipe.workspace.paths import open_workspace

    found = read_status(open_workspace(config, data, pull=False))
    if as_json:
        typer.echo(json.dumps(status_document(found), indent=2))
        return
    for line in status_lines(found):
        typer.echo(printable(line))


@app.command()
def history(config: options.Config = None, data: options.Data = None, as_json: options.Json = False) -> None:
    """Every change with its author, time and reason.

    Example: `evalpipe canary history`
    """
    from evalpipe.text import printable
    from evalpipe.workspace.canary import event_document, event_line, open_history
    from evalpipe.workspace.paths import open_workspace

    events = open_history(open_workspace(config, data, pull=False)).events()
    if as_json:
        typer.echo(json.dumps([event_document(event) for event in events], indent=2))
        return
    if not events:
        typer.echo("nothing yet: the canary has not begun", err=True)
    for event in events:
        typer.echo(printable(event_line(event)))


@app.command()
def approve(
    why: Why = "approved",
    by: By = None,
    force: Annotated[bool, typer.Option("--force", help="Skip the rest of a running stage.")] = False,
    config: options.Config = None,
    data: options.Data = None,
) -> None:
    """Let the canary pass a gate (or an inconclusive stage) into the next stage; a paused one goes on.

    Example: `evalpipe canary approve --why "dashboards look fine"`
    """
    _print_status("approve", why, by, config, data, force=force)


@app.command()
def pause(why: Why = "paused", by: By = None, config: options.Config = None, data: options.Data = None) -> None:
    """Hold the present percentage; guardrails stay watched.

    Example: `evalpipe canary pause --why "release freeze"`
    """
    _print_status("pause", why, by, config, data)


@app.command()
def rollback(
    why: Why = "rolled back by hand", by: By = None, config: options.Config = None, data: options.Data = None
) -> None:
    """Everyone back to control, at once.

    Example: `evalpipe canary rollback --why "complaints"`
    """
    _print_status("rollback", why, by, config, data)


@app.command()
def reset(why: Why = "reset", by: By = None, config: options.Config = None, data: options.Data = None) -> None:
    """Start over from the first stage, also after a rollback: only a person can.

    Example: `evalpipe canary reset --why "fixed in build 42"`
    """
    _print_status("reset", why, by, config, data)


def _print_status(
    action: str, why: str, by: str | None, config: options.Config, data: options.Data, *, force: bool = False
) -> None:
    from evalpipe.text import printable
    from evalpipe.workspace.canary import change_state, event_line
    from evalpipe.workspace.paths import open_workspace

    event = change_state(open_workspace(config, data, pull=False), action, why=why, by=by, force=force)
    typer.echo(printable(event_line(event)))
