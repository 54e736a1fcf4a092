"""`evalpipe judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options
from evalpipe.cli.judge_commands import JudgeCommand, only_requests_of, print_result
from evalpipe.errors import ConfigError

COMMAND = JudgeCommand


def judge(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Log files: load them, and judge their requests only.  [default: what is loaded]"),
    ] = None,
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", "-j", help="Judge by name; several make a panel.  [default: [judge] name]"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, help="Judge only the first N pairs, in the order of the run."),
    ] = None,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", min=0.0, help="Hard cap over all runs of this experiment and judge.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print pairs, what is left out, calls, tokens and dollars; send nothing.")
    ] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="Use the provider's batches: half the price, done within hours.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="With --batch: show open batches; submit nothing.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="With --batch: cancel open batches.")] = False,
    until_decided: Annotated[
        bool,
        typer.Option(
            "--until-decided",
            help="Apply the report's rules after every ten users; stop when more verdicts change nothing.",
        ),
    ] = False,
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

    The win rate counts each user once, so at most `[judge] pairs_per_unit` pairs of a user are judged (3), the first by
    arrival; users that were asked before come first. In shadow mode later turns of conversations are a fifth of the pairs
    (`later_turns_percent`). `--estimate` counts what is left out.

    Commands of its own, each with `--help`:

    - `evalpipe judge self-test`: may the judge be trusted?
    - `evalpipe judge audit`: seat bias, consistency, length effect, agreement with labels
    - `evalpipe judge list`: the judges that can be named
    - `evalpipe judge show-prompt REQUEST_ID`: exactly what would be sent
    - `evalpipe judge reparse`: read the stored replies again
    - `evalpipe judge settle`: calls that broke off, whose cost nobody reported and which hold the cap

    Exit code 1 where nothing can be judged or no call gave a verdict, 2 where the experiment has no data or the judge is
    unknown, 130 after Ctrl-C.

    ```
    evalpipe judge self-test
    evalpipe judge --estimate
    evalpipe judge --limit 100 --max-usd 0.50
    evalpipe judge this_week.jsonl --until-decided
    evalpipe judge --batch
    ```
    """
    from evalpipe.cli import judge_text as text
    from evalpipe.pipeline import judge as pipeline
    from evalpipe.pipeline.judge_batches import cancel_batches, judge_by_batches, see_batches
    from evalpipe.pipeline.judge_online import judge_online
    from evalpipe.pipeline.judge_setup import JudgeOptions
    from evalpipe.pipeline.workspace import open_workspace
    from evalpipe.store.selection import read_selection

    _check_flags(estimate=estimate, batch=batch, status=status, cancel=cancel, until_decided=until_decided)
    workspace = open_workspace(config, data)
    chosen = JudgeOptions(
        judges=judges or (),
        limit=limit,
        max_usd=max_usd,
        selection=read_selection(since, until, where),
        experiment=experiment,
        until_decided=until_decided,
    )
    if paths:
        chosen = only_requests_of(workspace, paths, chosen)
    if estimate:
        estimates = pipeline.estimate_judging(workspace, chosen)
        print_result(
            {"estimates": [one.as_json() for one in estimates]}, text.estimate_lines(estimates), as_json=as_json
        )
        return 0
    if status or cancel:
        batches = (cancel_batches if cancel else see_batches)(workspace, chosen)
        print_result({"batches": batches}, text.batch_lines(batches), as_json=as_json)
        return 0
    tallies = pipeline.judge(workspace, chosen, by=judge_by_batches if batch else judge_online)
    print_result({"runs": [tally.as_json() for tally in tallies]}, text.tally_lines(tallies), as_json=as_json)
    if any(tally.stopped == "interrupted" for tally in tallies):
        return 130
    return 1 if any(tally.is_failure for tally in tallies) else 0


def _check_flags(*, estimate: bool, batch: bool, status: bool, cancel: bool, until_decided: bool) -> None:
    """Raises ConfigError for flags that exclude each other."""
    if (status or cancel) and not batch:
        raise ConfigError("--status and --cancel are about batches: add --batch")
    if batch and until_decided:
        raise ConfigError("--until-decided looks after every ten users, a batch answers all at once: leave one out")
    given = [
        flag for flag, is_given in (("--estimate", estimate), ("--status", status), ("--cancel", cancel)) if is_given
    ]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other: leave one out")
