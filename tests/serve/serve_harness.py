"""A server of `evalpipe.serve` on a loopback port, and requests to it as a program or a browser sends them."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from collector_harness import CHAT, chat_request
from starlette.types import ASGIApp

from evalpipe.serve.access import Access
from evalpipe.serve.app import build_app
from evalpipe.serve.experiments import open_experiments

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
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, loop="asyncio", log_config=None, timeout_graceful_shutdown=2)
    )
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


HOSTILE = "<script>window.HIT=1</script> \"'>& \u202ebackwards <img src=x onerror=window.HIT=1>"


@contextmanager
def serving_experiments(*folders: Path, token: str | None = TOKEN, every_s: float = 0.05) -> Iterator[Served]:
    """The experiments of these folders, served; the stream polls often."""
    app = build_app(open_experiments(folders), Access(token=token), every_s=every_s)
    with serving(app) as one:
        yield one


def decided(folder: Path, headline: str, **changes: Any) -> None:
    """A verdict as `evalpipe gate` leaves it."""
    verdict = {
        "experiment": "rollout",
        "recommendation": "collect_more",
        "headline": headline,
        "decided_at": None,
        "setup_faults": [],
        "failed_checks": [],
        **changes,
    }
    (folder / "data" / "verdict.json").write_text(json.dumps(verdict))


def chat(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", CHAT, body=chat_request(), headers={"Content-Type": "application/json"})
    assert connection.getresponse().status == 200
    connection.close()
