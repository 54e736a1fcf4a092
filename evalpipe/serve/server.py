"""`evalpipe serve`: the address, the token and the server process around the application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn

from evalpipe.collector.logs import set_up_logging
from evalpipe.config import HOST, CollectorConfig, secret
from evalpipe.errors import ConfigError
from evalpipe.serve.access import Access
from evalpipe.serve.app import build_app
from evalpipe.serve.experiments import Experiment, open_experiments
from evalpipe.workspace.collect import is_loopback
from evalpipe.workspace.paths import Workspace, no_workspace

DEFAULT_PORT = 8600
_ENDS_S = 3

logger = logging.getLogger("evalpipe.serve")


def serve(
    folders: Sequence[Path],
    workspace: Workspace | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    token_env: str | None = None,
    allow_hosts: Sequence[str] = (),
    log_format: str = "text",
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        folders: workspaces; `workspace` instead, where there are none.
        token_env: the environment variable that holds the token; None: the one that the folders' collectors use.
        allow_hosts: names, other than loopback's, that the page is asked by.

    Raises:
        ConfigError: where the folder is no workspace, the address cannot be had, the folders name different variables, or other
            machines could reach it without a token.
    """
    set_up_logging("serve", log_format=log_format)
    experiments = open_experiments(folders, workspace)
    if workspace is not None and not experiments:
        raise ConfigError(no_workspace(workspace))
    variable = token_env or _token_variable(experiments)
    token = secret(variable)
    loopback = is_loopback(host)
    if token is None and not loopback:
        raise ConfigError(f"--host {host!r} is reachable from other machines: set a token in ${variable}")
    allowed = frozenset(name.lower() for name in allow_hosts)
    for name in allowed:
        if not re.fullmatch(HOST, name):
            raise ConfigError(f"--allow-host {name!r} is no host name such as 'box.internal' or 'box.internal:8600'")
    access = Access(token=token, is_loopback=loopback, allowed_hosts=allowed)
    app = build_app(experiments, access)
    with _listen(host, port) as sock:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=_ENDS_S,
        )
        number = sock.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        what = "" if token is not None else f"; read-only: nothing can be changed without a token in ${variable}"
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        logger.info("listening on http://%s:%d%s", shown, number, what)
        asyncio.run(_Server(config, app.state.pages.live.close).serve(sockets=[sock]))
        logger.info("stopped")


class _Server(uvicorn.Server):
    """Ends its event streams first, which would else hold it until it gives up on them; its end is no error."""

    def __init__(self, config: uvicorn.Config, close_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._close_streams = close_streams

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._stop)
        yield
        for number in numbers:
            loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self._close_streams()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # asked twice: the application still ends in order, else its end is logged as an error
            await self.lifespan.shutdown()


def _token_variable(experiments: Sequence[Experiment]) -> str:
    """The variable of the collectors' client token: one token opens the page."""
    names = {
        one.workspace.config.collector.client_token_env
        for one in experiments
        if one.workspace is not None and one.workspace.config is not None
    }
    if len(names) > 1:
        raise ConfigError(
            f"the folders name different [collector] client_token_env ({', '.join(sorted(names))}): choose one with --token-env"
        )
    return next(iter(names), CollectorConfig().client_token_env)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--host {host!r}: {error.strerror or error}") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(512)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port with --port"
        ) from None
    return sock
