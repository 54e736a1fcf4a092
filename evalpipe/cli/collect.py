"""`evalpipe collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options


def collect(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Workspaces, each with a collector of its own.  [default: this folder]")
    ] = None,
    config: options.Config = None,
    data: options.Data = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.  [default: collector.host]")] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.  [default: collector.port]"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=256, help="Serving processes.  [default: collector.workers]")
    ] = None,
    load_every: Annotated[
        str | None,
        typer.Option("--load-every", help="Load the log into Parquet files this often, e.g. 10m, from start to start."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on other than loopback without a client token.")
    ] = False,
    log_format: options.LogFormat = options.LogFormats.TEXT,
    log_level: options.LogLevel = options.LogLevels.INFO,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True, help="End when stdin closes.")] = False,
) -> None:
    """Run the proxy between your application and its provider: it forwards everything unchanged and records both arms' responses.

    Point the SDK's base_url at it. Ctrl-C or SIGTERM drains in-flight requests, then exits.

    With folders it runs a collector for each, at the address of its own evalpipe.toml: one that ends is started again, log lines
    name the experiment, and a signal ends all.

    ```
    evalpipe collect --port 8400 --load-every 10m
    evalpipe collect ~/experiments/*
    curl http://127.0.0.1:8400/_evalpipe/health
    ```
    """
    from evalpipe.errors import ConfigError
    from evalpipe.workspace.collect import collect as run
    from evalpipe.workspace.collect import collect_several
    from evalpipe.workspace.paths import open_workspace

    if folders and (config is not None or data is not None):
        raise ConfigError("folders and --config or --data (EVALPIPE_DATA) exclude each other: leave one out")
    if folders and len(folders) > 1:
        if port is not None:
            raise ConfigError("--port is one port, and each folder needs its own: set [collector] port in each")
        shared = [] if workers is None else ["--workers", str(workers)]
        shared += [] if load_every is None else ["--load-every", load_every]
        shared += ["--insecure"] if insecure else []
        collect_several(folders, host=host, options=shared, log_format=log_format.value, log_level=log_level.value)
        return
    run(
        open_workspace(root=folders[0].resolve()) if folders else open_workspace(config, data, pull=False),
        host=host,
        port=port,
        workers=workers,
        load_every=load_every,
        insecure=insecure,
        log_format=log_format.value,
        log_level=log_level.value,
        ends_with_stdin=with_parent,
    )
