"""`evalpipe replay`."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

from evalpipe.cli import options
from evalpipe.errors import ConfigError


class Turns(StrEnum):
    """Which requests of a conversation are sent."""

    first = "first"
    all = "all"


def replay(
    users: Annotated[
        int | None, typer.Option("--users", min=1, help="Only so many users, chosen by a hash.  [default: all]")
    ] = None,
    pairs_per_unit: Annotated[
        int | None,
        typer.Option(
            "--pairs-per-unit",
            min=0,
            help="At most so many requests of a user; 0 = all.  [default: [judge] pairs_per_unit]",
        ),
    ] = None,
    turns: Annotated[
        Turns,
        typer.Option(
            "--turns", help="first: only first turns of conversations, where both arms get the same question."
        ),
    ] = Turns.first,
    with_control: Annotated[
        bool,
        typer.Option(
            "--with-control", help="Ask control once more, too: latency and errors of both arms are of one run then."
        ),
    ] = False,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", min=0.0, help="Hard cap over all replays of this experiment.")
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Print requests, what is left out, calls, tokens and dollars; send nothing."),
    ] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="Use the provider's batches: half the price, done within hours; no latency.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again for answers that failed in earlier replays.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Spend without asking.")] = False,
    ray: options.Ray = None,
    since: options.Since = None,
    until: options.Until = None,
    where: options.Where = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Send the logged requests to the treatment: the answers that are missing beside a log of control's.

    Requests are sent whole, as they were (system prompt, tools, history), translated where the treatment has another dialect;
    tools are never executed. It names the cost and asks before it spends. It may be stopped (Ctrl-C, SIGTERM, or harder) and
    started again at any time: what is answered is never asked or paid again. The answers are rows of `exchanges` with role
    `replay`.

    Latency, errors and ratings in production cannot be measured by a replay. With `--with-control` control answers
    the same requests in the same run, so that latency and errors are comparable, and the report shows how its answers have
    changed (`evalpipe judge -e NAME~control` judges them).

    Exit code 1 where nothing can be replayed or no call was answered, 2 where a confirmation is needed and there is no terminal,
    130 after Ctrl-C.

    ```
    evalpipe replay --estimate
    evalpipe replay --users 500 --pairs-per-unit 3 --max-usd 10
    evalpipe replay --users 500 --with-control --yes
    evalpipe replay --batch
    evalpipe replay --ray auto --yes
    ```
    """
    from evalpipe.store.query import read_selection
    from evalpipe.text import printable
    from evalpipe.workspace import replay as workspace_replay
    from evalpipe.workspace.paths import open_workspace
    from evalpipe.workspace.replay import ReplayOptions, estimate_lines, result_lines

    if estimate and retry_failed:
        raise ConfigError("--estimate sends nothing and --retry-failed takes answers out: leave one out")
    options.check_ray(ray, batch=batch)
    workspace = open_workspace(config, data)
    chosen = ReplayOptions(
        users=users,
        pairs_per_unit=pairs_per_unit,
        turns=turns.value,
        with_control=with_control,
        max_usd=max_usd,
        batch=batch,
        retry_failed=retry_failed,
        selection=read_selection(since, until, where),
        experiment=experiment,
    )
    if estimate:
        found = workspace_replay.estimate_replay(workspace, chosen)
        typer.echo(json.dumps({"estimate": found.as_json()}) if as_json else "\n".join(estimate_lines(found)))
        return 0
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    replayed = partial(
        workspace_replay.replay,
        workspace,
        chosen,
        yes=yes,
        output=lambda line: typer.echo(printable(line), err=True),
        confirm=(lambda question: typer.confirm(question, err=True)) if can_ask else None,
    )
    if ray is not None:
        from evalpipe.cluster.nodes import joined
        from evalpipe.cluster.replay import replay_on

        with joined(workspace, ray) as cluster:
            summary = replayed(opened=replay_on(cluster))
    else:
        summary = replayed()
    lines = "\n".join(printable(line) for line in result_lines(summary))
    typer.echo(json.dumps({"replay": summary.as_json()}) if as_json else lines)
    if summary.stopped == "interrupted":
        return 130
    return 1 if summary.is_failure or summary.stopped == "failing" else 0
