"""`evalpipe plan`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from evalpipe.cli import options


def plan(
    config: options.Config = None,
    data: options.Data = None,
    experiment: options.Experiment = None,
    metric: Annotated[
        str | None, typer.Option("--metric", "-m", help="The metric to plan for.  [default: every one that decides]")
    ] = None,
    effect: Annotated[
        str | None,
        typer.Option("--effect", help="Smallest effect worth seeing: 0.05 (win rate of 55 %), or 10% of control."),
    ] = None,
    power: Annotated[float, typer.Option("--power", min=0.5, max=0.999, help="Chance to see it if it is there.")] = 0.8,
    save: Annotated[
        bool, typer.Option("--save", help="Fix the plan in the experiment record (before the first look only).")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """How many pairs, days and judge dollars it takes to see an effect, before anything is spent.

    Noise and traffic are taken from the log where there is one, else typical values are named.

    ```
    evalpipe plan
    evalpipe plan --metric win_rate --effect 0.03
    evalpipe plan --effect 5% --metric cost_per_request_usd --power 0.9 --json
    ```
    """
    from evalpipe.pipeline.plan import plan as run
    from evalpipe.pipeline.workspace import open_workspace

    found = run(
        open_workspace(config, data), metric=metric, effect=effect, power=power, experiment=experiment, save=save
    )
    if as_json:
        typer.echo(json.dumps(found.as_json(), ensure_ascii=False, indent=2))
        return
    for line in _lines(found):
        typer.echo(line)


def _lines(found: Any) -> list[str]:
    unit = "pairs" if found.mode == "shadow" else "users"
    lines = []
    for one in found.metrics:
        size = f"{one.effect:.3g}" if one.scale == "absolute" else f"{100 * one.effect:.3g} %"
        lines.append(
            f"{one.label}: to see {size} at {100 * one.power:.0f} % power {one.n_fixed:,} {unit} in one look, "
            f"at most {one.n_max:,} when looking {found.looks} (noise from {one.sd_source})"
        )
        if one.n_equivalent:
            margin = f"{one.margin:.3g}" if one.scale == "absolute" else f"{100 * one.margin:.3g} %"
            lines.append(
                f"  no loss beyond {margin}: {one.n_noninferior:,} {unit}; no difference of {margin}: {one.n_equivalent:,}"
            )
    lines += [f"{name}: cannot be planned without a log" for name in found.unplanned]
    if found.days is not None:
        lines.append(
            f"At {found.requests_per_day:,.0f} requests a day, {100 * found.share_of_requests:.0f} % of them compared: "
            f"{found.requests:,} requests, {found.days:,.1f} days"
        )
    elif found.requests:
        lines.append(f"{found.requests:,} requests, {100 * found.share_of_requests:.0f} % of them compared")
    if found.judge_usd is not None:
        lines.append(
            f"Judging with {found.judge}: {found.judge_calls:,} calls, ${found.judge_usd:,.2f} "
            f"(${found.judge_usd_max:,.2f} at most; ${found.judge_usd_per_pair:.5f} a pair)"
        )
    return [*lines, *found.notes]
