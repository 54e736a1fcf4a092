"""`evalpipe run`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from evalpipe.cli import options
from evalpipe.text import printable

if TYPE_CHECKING:
    from evalpipe.workspace.run import JobResult


def run(
    experiment: options.Experiment = None,
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", "-j", help="Judge by name; several make a panel.  [default: [judge] name]"),
    ] = None,
    no_judge: Annotated[bool, typer.Option("--no-judge", help="Load and report only; ask no judge.")] = False,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="The judge stops when more verdicts change nothing.")
    ] = False,
    batch: Annotated[bool, typer.Option("--batch", help="The judge asks by the provider's batches.")] = False,
    every: Annotated[
        str | None,
        typer.Option("--every", metavar="DURATION", help="Again after each such time, e.g. 1h, until stopped."),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit as `evalpipe gate` does: 0 ship, 10 keep, 11 collect_more, 12 invalid.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only failures and a decision that changed: for cron.")
    ] = False,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """The job of every morning: load the log, judge what is new, write the report and the verdict.

    One such job at a time works on a data folder. The judge stays within `[judge] max_usd` and `max_usd_per_day`. Every step is
    tried, also after one that failed. With `[alerts] webhook` a message goes out where the decision changed or something is
    wrong.

    Exit code 0 where every step worked, 1 where one failed or another run is at work; `--gate`: the gate's codes where every
    step worked. With `--every` a failure is printed and the next run is awaited; Ctrl-C or SIGTERM ends it.

    ```
    evalpipe run
    evalpipe run --quiet --until-decided
    evalpipe run --every 1h
    evalpipe run --gate --json
    ```
    """
    from evalpipe.cli.options import interrupt_on_sigterm
    from evalpipe.errors import ConfigError, EvalpipeError
    from evalpipe.workspace.alerts import webhook_address
    from evalpipe.workspace.collect import read_duration
    from evalpipe.workspace.paths import open_workspace
    from evalpipe.workspace.run import RunOptions, alert, run_every, run_job

    interrupt_on_sigterm()
    every_s = None if every is None else read_duration(every, "--every")
    if every is not None and gate:
        raise ConfigError("--gate is the exit code of one run, --every has many: leave one out")
    workspace = open_workspace(config, data)
    if workspace.config is not None:
        webhook_address(workspace.config.alerts)  # an alert that cannot be sent is an error before anything is paid
    chosen = RunOptions(
        experiment=experiment,
        judges=tuple(judges or ()),
        skips_judge=no_judge,
        until_decided=until_decided,
        batch=batch,
        show_progress=False if quiet or as_json else None,
    )

    def once() -> int:
        result = run_job(workspace, chosen)
        alerts, problem = alert(workspace, result)
        if as_json:
            document = {**result.as_json(), "alerts": [one.text for one in alerts], "alerts_problem": problem}
            typer.echo(json.dumps(document, ensure_ascii=True))
        elif not quiet or result.failed or result.is_changed or problem:
            for line in summary_lines(result):
                typer.echo(printable(line))
        if problem and not as_json:
            typer.echo(f"evalpipe: {printable(problem)}", err=True)
        return 1 if problem else result.exit_code(gate=gate)

    if every_s is None:
        return once()

    def go_on() -> None:
        try:
            once()
        except ConfigError:
            raise
        except EvalpipeError as error:  # the next run may find it mended
            typer.echo(f"evalpipe: {printable(str(error))}", err=True)

    run_every(go_on, every_s)
    return 0


def summary_lines(result: JobResult) -> list[str]:
    """The summary of one run: a line a step, then the decision."""
    from evalpipe.cli.judge_text import summary_lines

    details = {
        "load": [] if result.loaded is None else result.loaded.lines(),
        "judge": summary_lines(result.judged),
        "report": []
        if result.report is None
        else [line for line in (f"wrote {result.report.html}", printable(result.report.since)) if line],
        "gate": [] if result.verdict is None else [f"{result.verdict['recommendation']}: {result.verdict['headline']}"],
    }
    lines = [f"{result.experiment}, {result.started_at:%Y-%m-%d %H:%M} UTC"]
    for step in result.steps:
        if step.status == "done":
            found = details[step.name] or ["done"]
            lines.append(f"{step.name:<7} {found[0]}")
            lines += [f"        {line}" for line in found[1:]]
        else:
            word = "FAILED: " if step.status == "failed" else "nothing to do: "
            lines.append(f"{step.name:<7} {word}{step.why}")
    if result.is_changed and result.verdict_before is not None and result.verdict is not None:
        lines.append(
            f"the decision changed: {result.verdict_before['recommendation']} before, {result.verdict['recommendation']} now"
        )
    return lines
