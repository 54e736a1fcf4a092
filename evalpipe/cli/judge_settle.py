"""`evalpipe judge settle`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from evalpipe.cli import options


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


class JudgeCommand(TyperCommand):
    """`evalpipe judge`, which has one command of its own, `settle`; any other first word is a file (`./settle` for one of that
    name)."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if args[:1] == ["settle"]:
            app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
            app.command("settle")(settle)
            return typer.main.get_command(app).make_context("judge settle", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)
