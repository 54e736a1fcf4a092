"""The commands of `evalpipe judge`: `self-test`, `audit`, `list`, `show-prompt`, `reparse` and `settle`."""

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
    from evalpipe.pipeline.judge_setup import JudgeOptions
    from evalpipe.pipeline.workspace import Workspace

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

Judges = Annotated[
    list[str] | None,
    typer.Option("--judge", "-j", help="Judge by name; several at once.  [default: [judge] name]"),
]
Paths = Annotated[
    list[Path] | None,
    typer.Argument(help="Log files: load them, and read their requests only.  [default: what is loaded]"),
]


@app.command("self-test")
def self_test(
    judges: Judges = None,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", min=0.0, help="Hard cap over all runs of this experiment and judge.")
    ] = None,
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
    from evalpipe.cli import judge_text as text
    from evalpipe.pipeline import judge_trust as pipeline

    workspace, chosen = _opened(config, data, judges=judges, experiment=experiment, max_usd=max_usd)
    tests = pipeline.self_test(workspace, chosen)
    print_result({"self_tests": [test.as_json() for test in tests]}, text.self_test_lines(tests), as_json=as_json)
    return 0 if all(test.trusted for test in tests) else 1


@app.command()
def audit(
    paths: Paths = None,
    judges: Judges = None,
    since: options.Since = None,
    until: options.Until = None,
    where: options.Where = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Seat bias, consistency, length effect and agreement with labels, from the stored verdicts. Sends nothing.

    ```
    evalpipe judge audit --json
    ```
    """
    from evalpipe.cli import judge_text as text
    from evalpipe.pipeline import judge_trust as pipeline

    workspace, chosen = _opened(
        config, data, paths=paths, judges=judges, since=since, until=until, where=where, experiment=experiment
    )
    audits = pipeline.audit_judges(workspace, chosen)
    print_result({"audits": [one.as_json() for one in audits]}, text.audit_lines(audits), as_json=as_json)
    return 0


@app.command("list")
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
    from evalpipe.cli import judge_text as text
    from evalpipe.pipeline import judge as pipeline
    from evalpipe.pipeline.workspace import open_workspace

    found = pipeline.list_judges(open_workspace(config, data))
    print_result({"judges": found}, text.judge_lines(found), as_json=as_json)
    return 0


@app.command("show-prompt")
def show_prompt(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The pair's request id.")],
    paths: Paths = None,
    judges: Judges = None,
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
    from evalpipe.cli import judge_text as text
    from evalpipe.pipeline import judge as pipeline

    workspace, chosen = _opened(config, data, paths=paths, judges=judges, experiment=experiment)
    prompts = pipeline.show_prompts(workspace, request_id, chosen)
    print_result({"prompts": prompts}, text.prompt_lines(prompts), as_json=as_json)
    return 0


@app.command()
def reparse(
    paths: Paths = None,
    judges: Judges = None,
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
    from evalpipe.cli import judge_text as text
    from evalpipe.pipeline import judge_trust as pipeline

    workspace, chosen = _opened(
        config, data, paths=paths, judges=judges, since=since, until=until, where=where, experiment=experiment
    )
    changes = pipeline.reparse(workspace, chosen)
    print_result({"reparsed": changes}, text.reparse_lines(changes), as_json=as_json)
    return 0


@app.command()
def settle(
    judges: Annotated[
        list[str] | None, typer.Option("--judge", "-j", help="Judge by name.  [default: [judge] name]")
    ] = None,
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
    """Settle calls that broke off, or were in flight when a run was killed: nobody has reported what they cost.

    Until then each is held against the cap at the most it can have cost. Without an amount the command prints what is held and
    settles nothing. A settlement is kept on the record (`data/judgments/experiment=NAME/settled/`) and changes no judgment.

    ```
    evalpipe judge settle
    evalpipe judge settle --bill 1.23
    evalpipe judge settle --worst-case
    ```
    """
    from evalpipe.pipeline import judge_settle as pipeline
    from evalpipe.pipeline.judge_setup import JudgeOptions
    from evalpipe.pipeline.workspace import open_workspace

    workspace = open_workspace(config, data)
    chosen = JudgeOptions(judges=judges or (), experiment=experiment)
    found = pipeline.settle(workspace, chosen, bill=bill, usd=usd, worst_case=worst_case)
    if as_json:
        typer.echo(json.dumps({"settlements": [one.as_json() for one in found]}, ensure_ascii=True))
        return 0
    for one in found:
        before = one.before
        if not before.n_unsettled:
            typer.echo(f"{one.judge}: nothing to settle; ${before.known_usd:,.4f} spent")
            continue
        typer.echo(
            f"{one.judge}: {before.n_unsettled:,} calls whose cost nobody reported, estimated at ${before.estimated_usd:,.4f} "
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
    from evalpipe.pipeline.load import load, requests_in

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
    from evalpipe.pipeline.judge_setup import JudgeOptions
    from evalpipe.pipeline.workspace import open_workspace
    from evalpipe.store.selection import read_selection

    workspace = open_workspace(config, data)
    chosen = JudgeOptions(
        judges=judges or (), max_usd=max_usd, selection=read_selection(since, until, where), experiment=experiment
    )
    return workspace, only_requests_of(workspace, paths, chosen) if paths else chosen


class JudgeCommand(TyperCommand):
    """`evalpipe judge`, whose first word may be one of its commands; any other first word is a file (`./audit` for one of
    that name). The flags that the commands once were still work."""

    NAMES = ("audit", "list", "reparse", "self-test", "settle", "show-prompt")

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        args = self._by_name(args)
        if args[:1] and args[0] in self.NAMES:
            return typer.main.get_command(app).make_context("judge", args, parent=parent, **extra)
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
