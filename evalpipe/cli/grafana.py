"""`evalpipe grafana`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options


def grafana(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("monitoring"),
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="A collector's host:port, once each.  [default: the configured one]"),
    ] = None,
    prometheus: Annotated[
        str, typer.Option("--prometheus", help="Where Grafana finds Prometheus.")
    ] = "http://127.0.0.1:9090",
    token_file: Annotated[
        str | None, typer.Option("--token-file", help="File with the collector's token, on Prometheus' machine.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    config: options.Config = None,
    data: options.Data = None,
) -> None:
    """A Grafana dashboard with the arms side by side, its provisioning, and Prometheus' scrape and alert rules.

    ```
    evalpipe grafana -o monitoring
    prometheus --config.file monitoring/prometheus.yml
    ```
    """
    from evalpipe.config import secret
    from evalpipe.workspace.manifests import write_monitoring
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(config, data, pull=False)
    written = write_monitoring(
        workspace,
        out,
        targets=tuple(target or ()),
        prometheus=prometheus,
        token_file=token_file,
        force=force,
    )
    for path in written:
        typer.echo(f"wrote {path}")
    if token_file is None and secret(workspace.require_config().collector.client_token_env):
        typer.echo(
            "the collector asks for a token: name a file that holds it for Prometheus with --token-file", err=True
        )
