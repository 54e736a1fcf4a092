"""A server of `evalpipe.serve` on a loopback port, and requests to it as a program or a browser sends them."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlencode

import uvicorn
from starlette.types import ASGIApp

TOKEN = "a-token-of-the-tests"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str


@dataclass(frozen=True)
class Served:
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        form: Mapping[str, str] | None = None,
        headers: list[tuple[str, str]] | None = None,
        host: str | None = None,
    ) -> Answer:
        """One request with exactly these header lines; `host`: instead of the address; "" sends none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = None if form is None else urlencode(form).encode()
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if host != "":
            connection.putheader("Host", host or f"127.0.0.1:{self.port}")
        for name, value in headers or []:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Type", "application/x-www-form-urlencoded")
        if method == "POST":
            connection.putheader("Content-Length", str(len(body or b"")))
        connection.endheaders(body)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, text)

    def post(
        self, path: str, form: Mapping[str, str] | None = None, *, token: str | None = TOKEN, **more: str
    ) -> Answer:
        headers = [] if token is None else [("x-evalpipe-token", token)]
        return self.ask(path, method="POST", form=form or {}, headers=[*headers, *more.items()])


@contextmanager
def serving(app: ASGIApp) -> Iterator[Served]:
    """`app` served by uvicorn in a thread, as `evalpipe serve` serves it."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        (sock,) = server.servers[0].sockets
        yield Served(sock.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
