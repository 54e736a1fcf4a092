"""`evalpipe judge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options


def judge(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Log files to load first.  [default: what is loaded]")
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", "-j", help="Judge by name; several make a panel.  [default: [judge] name]"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, help="Judge only the first N pairs of the (random, fixed) order."),
    ] = None,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", min=0.0, help="Hard cap over all runs of this experiment and judge.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print pairs, calls, tokens and dollars; send nothing.")
    ] = False,
    list_judges: Annotated[bool, typer.Option("--list", help="Show the judges with their fingerprints.")] = False,
    show_prompt: Annotated[
        str | None, typer.Option("--show-prompt", metavar="REQUEST_ID", help="Print exactly what would be sent.")
    ] = None,
    since: options.Since = None,
    until: options.Until = None,
    where: options.Where = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Let a cheap model compare both arms' answers, in both orders, within the provider's limits and your budget.

    It may be stopped (Ctrl-C, or harder) and started again at any time: what is answered is never asked or paid again.

    ```
    evalpipe judge --estimate
    evalpipe judge --limit 100 --max-usd 0.50
    ```
    """
    from evalpipe.cli.judge_text import estimate_lines, judge_lines, prompt_lines, tally_lines
    from evalpipe.pipeline import judge as pipeline
    from evalpipe.pipeline.load import load
    from evalpipe.pipeline.workspace import open_workspace
    from evalpipe.store.selection import read_selection

    workspace = open_workspace(config, data)
    chosen = pipeline.JudgeOptions(
        judges=judges or (),
        limit=limit,
        max_usd=max_usd,
        selection=read_selection(since, until, where),
        experiment=experiment,
    )

    def tell(document: object, lines: list[str]) -> None:
        if as_json:
            typer.echo(json.dumps(document, ensure_ascii=True))
        else:
            typer.echo("\n".join(lines))

    if list_judges:
        found = pipeline.list_judges(workspace)
        tell({"judges": found}, judge_lines(found))
        return 0
    if paths:
        load(workspace, paths, experiment=experiment)
    if show_prompt is not None:
        prompts = pipeline.show_prompts(workspace, show_prompt, chosen)
        tell({"prompts": prompts}, prompt_lines(prompts))
        return 0
    if estimate:
        estimates = pipeline.estimate_judging(workspace, chosen)
        tell({"estimates": [one.as_json() for one in estimates]}, estimate_lines(estimates))
        return 0
    tallies = pipeline.judge(workspace, chosen)
    tell({"runs": [tally.as_json() for tally in tallies]}, tally_lines(tallies))
    return 130 if any(tally.stopped == "interrupted" for tally in tallies) else 0
