"""`evalpipe sql`."""

from __future__ import annotations

from typing import Annotated

import typer

from evalpipe.cli import options


def sql(
    query: Annotated[str, typer.Argument(help="The query, in DuckDB's SQL.")],
    form: Annotated[str, typer.Option("--format", "-f", help="table, csv or json.")] = "table",
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Query the datasets: views `exchanges`, `pairs`, `judgments`, `labels`, `feedback`.

    They hold the workspace's experiment; without a configuration all that were loaded (the column `experiment` names
    theirs). Queries read: nothing can be changed, no other file can be reached. `describe pairs` lists a view's columns.

    ```
    evalpipe sql "select arm, outcome, count(*), avg(latency_ms) from exchanges group by all"
    evalpipe sql --format csv "from judgments" > judgments.csv
    ```
    """
    from evalpipe.workspace.paths import open_workspace
    from evalpipe.workspace.query import sql as run

    run(open_workspace(config, data), query, experiment=experiment, form="json" if as_json else form)
