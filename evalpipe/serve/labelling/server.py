"""The address and the server process around the page."""

from __future__ import annotations

import asyncio
import re
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from evalpipe.errors import ConfigError
from evalpipe.serve.access import Access, host_name
from evalpipe.serve.labelling.app import START, label_app
from evalpipe.workspace.collect import is_loopback
from evalpipe.workspace.label import Labelling

DEFAULT_PORT = 8420
_NAME = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_ENDS_S = 3
_KEPT_S = 120
"""a person reads for longer than a browser's connection usually waits"""


def serve_labelling(
    labelling: Labelling,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    token: str | None = None,
    token_env: str = "EVALPIPE_TOKEN",
    allow_hosts: Sequence[str] = (),
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Args:
        labelling: whose pairs are asked; the caller closes it.
        host: to listen on.
        port: 0: any free one.
        token: that opens the page; None: one is made up, which other machines may not be given.
        token_env: the variable that holds it, for messages.
        allow_hosts: names, other than loopback's, that the page is asked by.
        announce: gets the page's address.

    Raises:
        ConfigError: where the address cannot be had, or other machines could reach it without a token of the user's own.
    """
    loopback = is_loopback(host)
    if token is None and not loopback:
        raise ConfigError(f"--host {host!r} is reachable from other machines: set a token in ${token_env}")
    allowed = frozenset(name.lower() for name in allow_hosts)
    for name in allowed:
        if not _NAME.fullmatch(host_name(name)):
            raise ConfigError(f"--allow-host {name!r} is no host name such as 'box.internal' or 'box.internal:8420'")
    own = token or secrets.token_urlsafe(18)
    app = label_app(labelling, Access(token=own, is_loopback=loopback, allowed_hosts=allowed))
    with _listen(host, port) as listening:
        number = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        # A token of the user's own is a secret: it is asked for on the page and never printed.
        path = f"{START}?token={own}" if token is None else "/"
        announce(f"http://{shown}:{number}{path}")
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            timeout_keep_alive=_KEPT_S,
            timeout_graceful_shutdown=_ENDS_S,
        )
        asyncio.run(_Server(config).serve(sockets=[listening]))


class _Server(uvicorn.Server):
    """Its end by a signal is no error: what people labelled is stored afterwards."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host!r}: no such address: {error.strerror or error}") from error
    listening = socket.socket(found[0], socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port with --port"
        ) from error
    return listening
