"""`evalpipe gate`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from evalpipe.cli import options


def gate(
    config: options.Config = None,
    data: options.Data = None,
    experiment: options.Experiment = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="The judge that decides.  [default: the first configured]")
    ] = None,
    since: options.Since = None,
    until: options.Until = None,
    where: options.Where = None,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch", metavar="SECONDS", min=0.1, help="Renew data/verdict.json every SECONDS, until stopped."
        ),
    ] = None,
    ray: options.RayTables = None,
    as_json: options.Json = False,
) -> None:
    """The decision as an exit code, for pipelines: 0 ship, 10 keep, 11 collect_more, 12 invalid.

    Prints the reasons, what is not settled yet and how much longer it takes. Also writes `data/verdict.json`, which the
    collector serves at `/_evalpipe/gate`.

    Exit code 2 where the experiment has no data yet or the judge is unknown; `--watch` waits for data instead.

    ```
    evalpipe gate && kubectl apply -f treatment.yaml
    evalpipe gate --json
    evalpipe gate --watch 10
    evalpipe gate --ray 10.0.0.1:6379
    ```
    """
    from evalpipe.errors import ConfigError
    from evalpipe.report.text import gate_lines
    from evalpipe.text import printable
    from evalpipe.workspace import decide
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(config, data)
    if watch is not None:
        if any(option is not None for option in (judge, since, until, where)):
            raise ConfigError("--watch looks at the whole experiment: leave out --judge, --since, --until and --where")
        if ray is not None:
            raise ConfigError("--watch looks again and again on this machine: leave out --ray")
        for document in decide.watch(workspace, every_s=watch, experiment=experiment):
            if as_json:
                typer.echo(json.dumps(document, ensure_ascii=False))
            else:
                typer.echo(
                    printable(f"{document['computed_at']}  {document['recommendation']}  {document['headline']}")
                )
        return
    with options.reading(workspace, ray) as connect:
        document = decide.verdict(
            workspace, experiment=experiment, judge=judge, since=since, until=until, where=where, connect=connect
        )
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        for line in gate_lines(document):
            typer.echo(printable(line))
    raise typer.Exit(decide.exit_code(document))
