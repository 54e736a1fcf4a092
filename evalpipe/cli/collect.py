"""`evalpipe collect`."""

from __future__ import annotations

from typing import Annotated

import typer

from evalpipe.cli import options


def collect(
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
        str | None, typer.Option("--load-every", help="Compact the spool to Parquet now and then, e.g. 10m.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on other than loopback without a client token.")
    ] = False,
    log_format: options.LogFormat = options.LogFormats.TEXT,
    log_level: options.LogLevel = options.LogLevels.INFO,
) -> None:
    """Run the proxy between your application and its provider: it forwards everything unchanged and records both arms' responses.

    Point the SDK's base_url at it. Ctrl-C or SIGTERM drains in-flight requests, then exits.

    ```
    evalpipe collect --port 8400 --load-every 10m
    curl http://127.0.0.1:8400/_evalpipe/health
    ```
    """
    from evalpipe.workspace.collect import collect as run
    from evalpipe.workspace.paths import open_workspace

    run(
        open_workspace(config, data),
        host=host,
        port=port,
        workers=workers,
        load_every=load_every,
        insecure=insecure,
        log_format=log_format.value,
        log_level=log_level.value,
    )
