"""`evalpipe judge`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evalpipe.cli import options
from evalpipe.cli.judge_settle import JudgeCommand

if TYPE_CHECKING:
    from evalpipe.pipeline.judge_setup import JudgeOptions
    from evalpipe.pipeline.workspace import Workspace

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
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Put known cases to the judge: may it be trusted? Exit 1 where not.")
    ] = False,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Seat bias, consistency, length effect, agreement with labels; sends nothing."),
    ] = False,
    reparse: Annotated[bool, typer.Option("--reparse", help="Read stored raw replies again; sends nothing.")] = False,
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

    The win rate counts each user once, so at most `[judge] pairs_per_unit` pairs of a user are judged (3), the first by
    arrival; users that were asked before come first. In shadow mode later turns of conversations are a fifth of the pairs
    (`later_turns_percent`). `--estimate` counts what is left out.

    `evalpipe judge settle` settles calls that broke off, whose cost nobody reported and which hold the cap.

    Exit code 1 where nothing can be judged or no call gave a verdict, 2 where the experiment has no data or the judge is
    unknown, 130 after Ctrl-C.

    ```
    evalpipe judge --self-test
    evalpipe judge --estimate
    evalpipe judge --limit 100 --max-usd 0.50
    evalpipe judge this_week.jsonl --until-decided
    evalpipe judge --batch
    ```
    """
    from evalpipe.cli import judge_text as text
    from evalpipe.errors import ConfigError
    from evalpipe.pipeline import judge as pipeline
    from evalpipe.pipeline.judge_setup import JudgeOptions
    from evalpipe.pipeline.load import load, requests_in
    from evalpipe.pipeline.workspace import open_workspace
    from evalpipe.store.selection import read_selection

    workspace = open_workspace(config, data)
    chosen = JudgeOptions(
        judges=judges or (),
        limit=limit,
        max_usd=max_usd,
        selection=read_selection(since, until, where),
        experiment=experiment,
        until_decided=until_decided,
    )

    def tell(document: object, lines: list[str]) -> None:
        if as_json:
            typer.echo(json.dumps(document, ensure_ascii=True))
        else:
            typer.echo("\n".join(lines))

    if (status or cancel) and not batch:
        raise ConfigError("--status and --cancel are about batches: add --batch")
    if batch and until_decided:
        raise ConfigError("--until-decided looks after every ten users, a batch answers all at once: leave one out")
    if list_judges:
        found = pipeline.list_judges(workspace)
        tell({"judges": found}, text.judge_lines(found))
        return 0
    if paths:
        named = requests_in(workspace, paths)
        loaded = load(workspace, paths, experiment=experiment).experiments
        if workspace.config is None and len(loaded) == 1:
            (experiment,) = loaded
        chosen = replace(chosen, experiment=experiment, selection=replace(chosen.selection, request_ids=named))
    if show_prompt is not None:
        prompts = pipeline.show_prompts(workspace, show_prompt, chosen)
        tell({"prompts": prompts}, text.prompt_lines(prompts))
        return 0
    if estimate:
        estimates = pipeline.estimate_judging(workspace, chosen)
        tell({"estimates": [one.as_json() for one in estimates]}, text.estimate_lines(estimates))
        return 0
    if self_test or audit or reparse:
        return _trust(workspace, chosen, tell, self_test=self_test, audit=audit)
    if status or cancel:
        from evalpipe.pipeline.judge_batches import cancel_batches, see_batches

        batches = (cancel_batches if cancel else see_batches)(workspace, chosen)
        tell({"batches": batches}, text.batch_lines(batches))
        return 0
    from evalpipe.pipeline.judge_batches import judge_by_batches
    from evalpipe.pipeline.judge_online import judge_online

    tallies = pipeline.judge(workspace, chosen, by=judge_by_batches if batch else judge_online)
    tell({"runs": [tally.as_json() for tally in tallies]}, text.tally_lines(tallies))
    if any(tally.stopped == "interrupted" for tally in tallies):
        return 130
    return 1 if any(tally.is_failure for tally in tallies) else 0


def _trust(
    workspace: Workspace,
    chosen: JudgeOptions,
    tell: Callable[[object, list[str]], None],
    *,
    self_test: bool,
    audit: bool,
) -> int:
    """What tells whether a judge may be believed."""
    from evalpipe.cli import judge_text as text
    from evalpipe.pipeline import judge_trust as pipeline

    if self_test:
        tests = pipeline.self_test(workspace, chosen)
        tell({"self_tests": [test.as_json() for test in tests]}, text.self_test_lines(tests))
        return 0 if all(test.trusted for test in tests) else 1
    if audit:
        audits = pipeline.audit_judges(workspace, chosen)
        tell({"audits": [one.as_json() for one in audits]}, text.audit_lines(audits))
        return 0
    changes = pipeline.reparse(workspace, chosen)
    tell({"reparsed": changes}, text.reparse_lines(changes))
    return 0
