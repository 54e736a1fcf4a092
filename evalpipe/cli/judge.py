"""`evalpipe judge` and its sub-commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from evalpipe.cli import options
from evalpipe.errors import ConfigError

if TYPE_CHECKING:
    from evalpipe.workspace.judge_setup import JudgeOptions
    from evalpipe.workspace.paths import Workspace


# The commands of `evalpipe judge`: `self-test`, `audit`, `list`, `show-prompt`, `reparse` and `settle`.


commands = typer.Typer(add_completion=False, rich_markup_mode="markdown")


class JudgeCommand(TyperCommand):
    """`evalpipe judge`, whose first word may be one of its commands; any other first word is a file (`./audit` for one of
    that name). The flags that the commands once were still work."""

    NAMES = ("audit", "list", "reparse", "self-test", "settle", "show-prompt")

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        args = self._by_name(args)
        if args[:1] and args[0] in self.NAMES:
            return typer.main.get_command(commands).make_context("judge", args, parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)

    def _by_name(self, args: list[str]) -> list[str]:
        """`--audit` becomes `audit`, and so on. Raises ConfigError where two of them are given."""
        found = [word for word in args if word.partition("=")[0].removeprefix("--") in self.NAMES and word[:2] == "--"]
        if not found:
            return args
        if len(found) > 1 or args[0] in self.NAMES:
            names = ", ".join(word.partition("=")[0] for word in found)
            raise ConfigError(f"{names}: each is a command of its own; run one at a time")
        place = args.index(found[0])
        name, _, value = found[0].removeprefix("--").partition("=")
        rest = [*args[:place], *args[place + 1 :]]
        if name == "show-prompt":
            value = value or (args[place + 1] if place + 1 < len(args) else "")
            if not value:
                raise ConfigError("--show-prompt needs a REQUEST_ID: evalpipe judge show-prompt REQUEST_ID")
            rest.remove(value) if value in rest else None
            return [name, value, *rest]
        return [name, *rest]


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
    max_usd: options.MaxUsd = None,
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
    ray: options.Ray = None,
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
    - `evalpipe judge settle`: calls that broke off, whose cost is unknown and counts against the cap

    Exit code 1 where nothing can be judged or no call gave a verdict, 2 where the experiment has no data or the judge is
    unknown, 130 after Ctrl-C.

    ```
    evalpipe judge self-test
    evalpipe judge --estimate
    evalpipe judge --limit 100 --max-usd 0.50
    evalpipe judge this_week.jsonl --until-decided
    evalpipe judge --batch
    evalpipe judge --ray 10.0.0.1:6379
    ```
    """
    from evalpipe.cli import judge_text
    from evalpipe.store.query import read_selection
    from evalpipe.workspace import judge as workspace_judge
    from evalpipe.workspace.judge import batch_statuses, cancel_batches, judge_by_batches, judge_online
    from evalpipe.workspace.judge_setup import JudgeOptions
    from evalpipe.workspace.paths import open_workspace

    _check_flags(estimate=estimate, batch=batch, status=status, cancel=cancel, until_decided=until_decided)
    options.check_ray(ray, batch=batch)
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
        estimates = workspace_judge.estimate_judging(workspace, chosen)
        print_result(
            {"estimates": [one.as_json() for one in estimates]}, judge_text.estimate_lines(estimates), as_json=as_json
        )
        return 0
    if status or cancel:
        batches = (cancel_batches if cancel else batch_statuses)(workspace, chosen)
        print_result({"batches": batches}, judge_text.batch_lines(batches), as_json=as_json)
        return 0
    if ray is not None:
        from evalpipe.cluster.judge import judge_on
        from evalpipe.cluster.nodes import joined

        with joined(workspace, ray) as cluster:
            summaries = workspace_judge.judge(workspace, chosen, by=judge_on(cluster))
    else:
        summaries = workspace_judge.judge(workspace, chosen, by=judge_by_batches if batch else judge_online)
    print_result(
        {"runs": [summary.as_json() for summary in summaries]}, judge_text.summary_lines(summaries), as_json=as_json
    )
    if any(summary.stopped == "interrupted" for summary in summaries):
        return 130
    return 1 if any(summary.is_failure for summary in summaries) else 0


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


Paths = Annotated[
    list[Path] | None,
    typer.Argument(help="Log files: load them, and read their requests only.  [default: what is loaded]"),
]


@commands.command("self-test")
def self_test(
    judges: options.Judges = None,
    max_usd: options.MaxUsd = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Put known cases to the judge before it is paid for real ones: may it be trusted? Exit code 1 where not.

    ```
    evalpipe judge self-test
    ```
    """
    from evalpipe.cli import judge_text
    from evalpipe.workspace import judge_review

    workspace, chosen = _opened(config, data, judges=judges, experiment=experiment, max_usd=max_usd)
    tests = judge_review.self_test(workspace, chosen)
    print_result({"self_tests": [test.as_json() for test in tests]}, judge_text.self_test_lines(tests), as_json=as_json)
    return 0 if all(test.trusted for test in tests) else 1


@commands.command()
def audit(
    paths: Paths = None,
    judges: options.Judges = None,
    n_next: Annotated[
        int, typer.Option("--next", min=0, metavar="N", help="How many pairs to label next are listed.")
    ] = 10,
    since: options.Since = None,
    until: options.Until = None,
    where: options.Where = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Seat bias, consistency, length effect, agreement with each person's labels, and what to label next. Sends nothing.

    The pairs listed are those whose label would narrow the interval of the corrected win rate most: the judge is often wrong
    on verdicts of their kind. Chosen like this they are no random sample; `--json` has the probability to draw each pair with.

    ```
    evalpipe judge audit
    evalpipe judge audit --next 30 --json
    ```
    """
    from evalpipe.cli import judge_text
    from evalpipe.workspace import judge_review

    workspace, chosen = _opened(
        config, data, paths=paths, judges=judges, since=since, until=until, where=where, experiment=experiment
    )
    audits = judge_review.audit_judges(workspace, chosen, n_next=n_next)
    print_result({"audits": [one.as_json() for one in audits]}, judge_text.audit_lines(audits), as_json=as_json)
    return 0


@commands.command("list")
def list_judges(
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """The judges that can be named, with their fingerprints.

    ```
    evalpipe judge list
    ```
    """
    from evalpipe.cli import judge_text
    from evalpipe.workspace import judge as workspace_judge
    from evalpipe.workspace.paths import open_workspace

    found = workspace_judge.list_judges(open_workspace(config, data))
    print_result({"judges": found}, judge_text.judge_lines(found), as_json=as_json)
    return 0


@commands.command("show-prompt")
def show_prompt(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The pair's request id.")],
    paths: Paths = None,
    judges: options.Judges = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Print exactly what would be sent for a pair, in both orders. Sends nothing.

    ```
    evalpipe judge show-prompt 0199a3c4-1f7e-7d40-8f57-2e5b0f6f1d11
    ```
    """
    from evalpipe.cli import judge_text
    from evalpipe.workspace import judge as workspace_judge

    workspace, chosen = _opened(config, data, paths=paths, judges=judges, experiment=experiment)
    prompts = workspace_judge.show_prompts(workspace, request_id, chosen)
    print_result({"prompts": prompts}, judge_text.prompt_lines(prompts), as_json=as_json)
    return 0


@commands.command()
def reparse(
    paths: Paths = None,
    judges: options.Judges = None,
    since: options.Since = None,
    until: options.Until = None,
    where: options.Where = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Read the stored raw replies again by today's rules, and store the verdicts that change. Sends nothing.

    ```
    evalpipe judge reparse
    ```
    """
    from evalpipe.cli import judge_text
    from evalpipe.workspace import judge_review

    workspace, chosen = _opened(
        config, data, paths=paths, judges=judges, since=since, until=until, where=where, experiment=experiment
    )
    changes = judge_review.reparse(workspace, chosen)
    print_result({"reparsed": changes}, judge_text.reparse_lines(changes), as_json=as_json)
    return 0


@commands.command()
def settle(
    judges: options.Judges = None,
    bill: Annotated[
        float | None,
        typer.Option(
            "--bill", min=0.0, metavar="USD", help="What the provider billed for all calls of the judge here."
        ),
    ] = None,
    usd: Annotated[
        float | None, typer.Option("--usd", min=0.0, metavar="USD", help="What the unsettled calls alone have cost.")
    ] = None,
    worst_case: Annotated[bool, typer.Option("--worst-case", help="They have cost the most they can have.")] = False,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Settle calls that broke off, or were in flight when a run was killed: their cost was not reported.

    Until then each is held against the cap at the most it can have cost. Without an amount the command prints what is held and
    settles nothing. A settlement is kept on the record (`data/judgments/experiment=NAME/settled/`) and changes no judgment.

    ```
    evalpipe judge settle
    evalpipe judge settle --bill 1.23
    evalpipe judge settle --worst-case
    ```
    """
    from evalpipe.workspace import judge_review
    from evalpipe.workspace.judge_setup import JudgeOptions
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(config, data)
    chosen = JudgeOptions(judges=judges or (), experiment=experiment)
    found = judge_review.settle(workspace, chosen, bill=bill, usd=usd, worst_case=worst_case)
    if as_json:
        typer.echo(json.dumps({"settlements": [one.as_json() for one in found]}, ensure_ascii=True))
        return 0
    for one in found:
        before = one.before
        if not before.n_unsettled:
            typer.echo(f"{one.judge}: nothing to settle; ${before.known_usd:,.4f} spent")
            continue
        typer.echo(
            f"{one.judge}: {before.n_unsettled:,} calls whose cost was not reported, estimated at ${before.estimated_usd:,.4f} "
            f"and held at ${before.at_most_usd:,.4f}; ${before.known_usd:,.4f} is known to be spent"
        )
        if one.settlement is None:
            typer.echo("  settle them with --bill USD (from the provider's bill), --usd USD or --worst-case")
        else:
            typer.echo(f"  settled at ${one.settlement.usd:,.4f}; ${one.after.cap_usd:,.4f} counts against the cap now")
    return 0


def print_result(document: object, lines: Sequence[str], *, as_json: bool) -> None:
    """One JSON document, or the lines."""
    typer.echo(json.dumps(document, ensure_ascii=True) if as_json else "\n".join(lines))


def only_requests_of(workspace: Workspace, paths: Sequence[Path], chosen: JudgeOptions) -> JudgeOptions:
    """Load the files; the options with their requests, and their experiment where no configuration names one."""
    from evalpipe.workspace.load import load, requests_in

    named = requests_in(workspace, paths)
    experiment = chosen.experiment
    loaded = load(workspace, paths, experiment=experiment).experiments
    if workspace.config is None and len(loaded) == 1:
        (experiment,) = loaded
    return replace(chosen, experiment=experiment, selection=replace(chosen.selection, request_ids=named))


def _opened(
    config: Path | None,
    data: Path | None,
    *,
    paths: Sequence[Path] | None = None,
    judges: Sequence[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    where: str | None = None,
    experiment: str | None = None,
    max_usd: float | None = None,
) -> tuple[Workspace, JudgeOptions]:
    from evalpipe.store.query import read_selection
    from evalpipe.workspace.judge_setup import JudgeOptions
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(config, data)
    chosen = JudgeOptions(
        judges=judges or (), max_usd=max_usd, selection=read_selection(since, until, where), experiment=experiment
    )
    return workspace, only_requests_of(workspace, paths, chosen) if paths else chosen
