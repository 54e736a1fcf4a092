"""`evalpipe serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options


def serve(
    folders: Annotated[list[Path] | None, typer.Argument(help="Workspaces.  [default: this folder]")] = None,
    config: options.Config = None,
    data: options.Data = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")] = 8600,
    token_env: Annotated[
        str | None,
        typer.Option(
            "--token-env", help="Environment variable with the token.  [default: [collector] client_token_env]"
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A name, other than loopback's, that the page is asked by.")
    ] = None,
    log_format: options.LogFormat = options.LogFormats.TEXT,
) -> None:
    """A local page of the experiments: live counters, decisions and their history, reports, canaries, and what is wrong.

    It reads what the other commands store and asks the running collectors. With a token in the environment (`EVALPIPE_TOKEN`,
    as the collector's) a person who signs in with it can approve, pause and roll back a canary and start `evalpipe run`; who and
    why are recorded. Without a token the page is read-only. Ctrl-C or SIGTERM ends it.

    ```
    evalpipe serve
    evalpipe serve ~/experiments/* --port 8700
    ```
    """
    from evalpipe.errors import ConfigError
    from evalpipe.serve.server import serve as run
    from evalpipe.workspace.paths import open_workspace

    if folders and (config is not None or data is not None):
        raise ConfigError("folders and --config or --data (EVALPIPE_DATA) exclude each other: leave one out")
    for folder in folders or []:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}; `evalpipe init` makes a workspace")
    run(
        folders or [],
        None if folders else open_workspace(config, data),
        host=host,
        port=port,
        token_env=token_env,
        allow_hosts=allow_host or [],
        log_format=log_format.value,
    )
