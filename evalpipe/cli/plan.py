"""`evalpipe plan`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from evalpipe.cli import options

if TYPE_CHECKING:
    from evalpipe.workspace.plan import Plan


def plan(
    config: options.Config = None,
    data: options.Data = None,
    experiment: options.Experiment = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", "-m", help="Plan for an effect of this metric only.  [default: every metric that decides]"
        ),
    ] = None,
    effect: Annotated[
        str | None,
        typer.Option(
            "--effect",
            help="Effect to show, of the metric or of the goals: 0.05 (a win rate of 55 %), or 10% of control.",
        ),
    ] = None,
    power: Annotated[
        float, typer.Option("--power", min=0.5, max=0.999, help="Chance to show it if it is there.")
    ] = 0.8,
    save: Annotated[
        bool, typer.Option("--save", help="Fix the plan in the experiment record (before the first look only).")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """How many requests, days and judge dollars the decision takes, before anything is spent.

    Goals and benefits need enough to show their effect, and everything that decides enough to be shown not worse than its
    margin. The slowest of them is named, and what a wider margin would save. Noise and traffic come from the log where there
    is one; otherwise typical noise is used, and named.

    ```
    evalpipe plan                                    # every metric that decides
    evalpipe plan --metric win_rate --effect 0.03    # one effect of one metric
    evalpipe plan --power 0.9 --json
    ```

    prints, without a log, among others:

    ```
    Slowest: error rate, about 7,300 requests in half of the experiments, at most 14,000: the planned size
    With a margin of 1 point instead of 0.5 points: about 1,900
    ```
    """
    from evalpipe.cli.plan_text import plan_lines
    from evalpipe.workspace.paths import open_workspace
    from evalpipe.workspace.plan import plan as run

    found: Plan = run(
        open_workspace(config, data), metric=metric, effect=effect, power=power, experiment=experiment, save=save
    )
    if as_json:
        typer.echo(json.dumps(found.as_json(), ensure_ascii=False, indent=2))
        return
    for line in plan_lines(found):
        typer.echo(line)
