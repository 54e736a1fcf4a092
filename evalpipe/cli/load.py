"""`evalpipe load`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evalpipe.cli import options
from evalpipe.text import printable

if TYPE_CHECKING:
    from evalpipe.store.row_tasks import OpenWorkers
    from evalpipe.workspace.paths import Workspace


def load(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders to load.  [default: the workspace's spool]")
    ] = None,
    spool: Annotated[
        Path | None,
        typer.Option(
            "--spool", metavar="DIR", help="Load the spool of another collector, and empty it like the own one."
        ),
    ] = None,
    log_format: Annotated[
        str, typer.Option("--format", "-f", help="auto, spool, pairs, or one of the formats listed above.")
    ] = "auto",
    arm: Annotated[
        str, typer.Option("--arm", help="control or treatment: whose answers a log without arms holds.")
    ] = "control",
    mapping: Annotated[
        str | None,
        typer.Option(
            "--map", help='Where things are in a log of your own: "prompt=question, text=answer, user=uid, time=ts".'
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option("--arms", metavar="CONTROL,TREATMENT", help="Values of the arm column: control's, treatment's."),
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="Read it by [sources.NAME] of evalpipe.toml.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Load a guessed mapping without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be loaded and how; store nothing.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take out what earlier loads of these files brought in first.")
    ] = False,
    price: Annotated[
        bool, typer.Option("--price", help="Compute costs a log does not have, by list prices ([prices] first).")
    ] = False,
    no_compact: Annotated[bool, typer.Option("--no-compact", help="Leave small stored files as they are.")] = False,
    ray: options.RayRows = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Turn the collector's log, or another tool's, into the datasets the other commands read.

    Loading twice adds nothing. A broken entry is written to `data/rejected/` with its file, line number and reason,
    and stops nothing. It may run while the collector writes. Files that are named are kept; the workspace's spool, and one named
    by `--spool`, are emptied of what is stored.

    A file's format is detected from its content: JSON lines, JSON, CSV, TSV, Parquet, Excel, zip, tar, gzip, zstd, UTF-8 or
    UTF-16. A folder is read with the folders in it, as one experiment.

    Formats: `spool` (the collector's), `pairs` (pair_id, prompt, response_a for control, response_b for treatment,
    label, judgements), and other tools' logs: `openai`, `anthropic`, `litellm`, `langfuse`, `langsmith`, `otel`
    (gen_ai, OpenLLMetry, OpenInference, Vercel), `promptfoo`, `inspect`, `helicone`, `portkey`, `cloudflare`, `bedrock`,
    `posthog`, `braintrust`, `weave`, `mlflow`, `deepeval`, `ragas`, `lm-eval`, `mt-bench`, `alpacaeval`, `arena`, `preferences`,
    `tensorzero`, `http` (recorded requests). `auto` finds out. In a table of your own the columns are guessed, shown
    and asked for; `--map` names them (`text=answer|reply`: the first that a file has).

    ```
    evalpipe load
    evalpipe load --spool /mnt/other-machine/data/spool
    evalpipe load exports/langfuse/
    evalpipe load --arm treatment new_model.json
    evalpipe load answers.csv --map "prompt=question, text_a=old_answer, text_b=new_answer"
    evalpipe load ab.jsonl --map "prompt=question, text=answer, arm=variant, user=uid, time=ts"
    evalpipe load --ray 10.0.0.1:6379
    ```

    Where a day has many small files they are merged in the end, for some seconds (`evalpipe compact`; `[compact]`).

    Exit code 1 where nothing could be stored of what was named, 2 where a mapping has to be confirmed and no terminal can
    be asked.
    """
    from evalpipe.cli.options import interrupt_on_sigterm
    from evalpipe.store.schema import forgo_pandas
    from evalpipe.workspace.load import LoadOptions
    from evalpipe.workspace.load import load as run
    from evalpipe.workspace.paths import open_workspace

    interrupt_on_sigterm()
    forgo_pandas()
    chosen = LoadOptions(
        spool=spool,
        format_name=log_format,
        arm=arm,
        mapping=mapping,
        arms=tuple(value.strip() for value in arms.split(",")) if arms else (),
        source=source,
        yes=yes,
        dry_run=dry_run,
        replace=replace,
        price=price,
        compact=not no_compact,
    )
    workspace = open_workspace(config, data)
    summary = run(
        workspace,
        paths or [],
        experiment=experiment,
        options=chosen,
        confirm=_confirm(dry_run=dry_run),
        open_workers=None if ray is None else _on_cluster(workspace, ray),
    )
    if as_json:
        typer.echo(json.dumps(summary.as_json()))
    else:
        for line in summary.lines():
            typer.echo(printable(line))
    return 1 if summary.is_failure else 0


def _on_cluster(workspace: Workspace, address: str) -> OpenWorkers:
    """Where rows are read and written with --ray."""
    from evalpipe.cluster.load import workers_of

    return workers_of(workspace, address)


def _confirm(*, dry_run: bool) -> Callable[[Sequence[str]], bool]:
    def ask(lines: Sequence[str]) -> bool:
        for line in lines:
            typer.echo(printable(line), err=True)
        return dry_run or typer.confirm("Load it so?", err=True)

    return ask
