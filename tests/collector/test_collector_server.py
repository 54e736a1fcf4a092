"""The server's own behaviour: routes, refusals, pipelining, tokens, losslessness under kill -9. One collector where possible."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from collector_harness import (
    CHAT,
    MESSAGES,
    RawUpstream,
    Received,
    Running,
    chat_request,
    chat_stream,
    chunked,
    eventually,
    exchange,
    plain,
    start_collector,
)

from evalpipe.collector import is_compiled


def script(request: Received) -> list[bytes | float | str]:
    """Echoes the body; told otherwise by a header."""
    what = request.header("x-do")
    if what == b"stall":
        return [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "hang"]
    if what == b"silent":
        return ["hang"]
    if what == b"stream":
        return [*chunked(chat_stream(["a"] * 200))[:50], "hang"]
    if what == b"junk":
        return [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"]
    if what == b"two lengths":
        return [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!"]
    return [plain(b'{"echo": "%b"}' % request.body[:100].replace(b'"', b"'"))]


POST_HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[RawUpstream]:
    running = RawUpstream(script)
    yield running
    running.close()


@pytest.fixture(scope="module")
def running(server: RawUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("server")
    started = start_collector(root, server.url, collector="timeout_s = 1.0\nidle_timeout_s = 0.4")
    yield started
    assert started.stop() == 0


def call(running: Running, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urlopen(Request(running.url + path, body, names), timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def raw(path: str, body: bytes = b"", *, headers: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: %d\r\n\r\n%b" % (
        path.encode(),
        headers,
        len(body),
        body,
    )


def test_health_and_ready_and_metrics(running: Running) -> None:
    assert call(running, CHAT, chat_request())[0] == 200
    status, _, body = call(running, "/_evalpipe/health")
    assert json.loads(body)["compiled"] is is_compiled(), "the processes run what the tests run"
    assert (status, json.loads(body)["status"]) == (200, "ok")
    assert call(running, "/_evalpipe/ready")[0] == 200
    text = call(running, "/_evalpipe/metrics")[2].decode()
    assert 'evalpipe_requests_total{arm="control",experiment="test",outcome="ok",role="served"}' in text
    assert "evalpipe_proxy_overhead_seconds_count" in text and "evalpipe_request_duration_seconds_bucket" in text
    assert call(running, "/_evalpipe/nothing")[0] == 404
    assert call(running, "/_evalpipe/health", b"x")[0] == 405


def test_feedback_is_tied_to_request_and_arm(running: Running) -> None:
    request_id = call(running, CHAT, chat_request())[1]["x-evalpipe-request-id"]
    good = [("up", 1.0), ("down", 0.0), (0.25, 0.25)]
    for rating, _ in good:
        assert (
            call(running, "/_evalpipe/feedback", json.dumps({"request_id": request_id, "rating": rating}).encode())[0]
            == 200
        )
    for rating in ("fine", True, 1.5, -1, None, float("nan")):
        assert (
            call(running, "/_evalpipe/feedback", json.dumps({"request_id": request_id, "rating": rating}).encode())[0]
            == 400
        )
    for body in (b"{", b"[]", b'{"rating": "up"}', b'{"request_id": 7, "rating": "up"}'):
        assert call(running, "/_evalpipe/feedback", body)[0] == 400
    found = [r for r in running.records() if type(r).__name__ == "FeedbackRecord"]
    assert [(r.request_id, r.arm, r.rating) for r in found] == [(request_id, "control", rating) for _, rating in good]  # type: ignore[union-attr]


def test_the_verdict_is_served_with_its_age(running: Running) -> None:
    assert call(running, "/_evalpipe/gate")[0] == 404
    assert call(running, "/_evalpipe/gate", b"")[0] == 409
    (running.data / "verdict.json").write_text('{"recommendation": "ship", "reasons": ["x"]}')
    status, _, body = call(running, "/_evalpipe/gate", b"")
    assert status == 200 and json.loads(body)["age_s"] >= 0
    (running.data / "verdict.json").write_text('{"recommendation": "keep"}')
    assert call(running, "/_evalpipe/gate")[0] == 200 and call(running, "/_evalpipe/gate", b"")[0] == 409


@pytest.mark.parametrize(
    ("name", "request_bytes"),
    [
        ("length and chunked", POST_HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("two lengths", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        ("same length twice", b"POST / HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        ("length list", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 5\r\n\r\nhello"),
        ("negative length", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n"),
        ("signed length", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nhello"),
        ("hex length", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x5\r\n\r\nhello"),
        ("huge length", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n"),
        ("over the limit", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n"),
        ("xchunked", b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("te twice", b"POST / HTTP/1.1\r\nHost: [::1]\r\n" + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n"),
        ("chunked, identity", b"POST / HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ("gzip, chunked", b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ("te with blank before colon", b"POST / HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        ("te with tab", b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n"),
        ("obs-fold", b"POST / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
        ("folded te", b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
        ("bare lf", b"POST / HTTP/1.1\r\nHost: localhost\nContent-Length: 0\r\n\r\n"),
        ("bare cr", b"POST / HTTP/1.1\r\nHost: localhost\rX: b\r\n\r\n"),
        ("nul in header", b"POST / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n"),
        ("no host", b"GET / HTTP/1.1\r\n\r\n"),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: b\r\n\r\n"),
        ("blank in name", b"GET / HTTP/1.1\r\nHost: localhost\r\nX Y: b\r\n\r\n"),
        ("no colon", b"GET / HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n"),
        ("http/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("http/0.9", b"GET / HTTP/0.9\r\nHost: localhost\r\n\r\n"),
        ("connect", b"CONNECT evil:443 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("trace", b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("odd target", b"GET evil HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ("head bomb", b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"a" * 70_000 + b"\r\n\r\n"),
        ("endless head", b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000),
        ("bad chunk size", b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"),
        ("negative chunk", b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nab\r\n"),
        ("chunk size overflow", POST_HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nab\r\n"),
        ("chunk without crlf", b"POST / HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n"),
        ("chunk with bare lf", b"POST / HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n"),
    ],
)  # fmt: skip
def test_what_is_not_one_clear_request_is_refused(
    name: str, request_bytes: bytes, running: Running, server: RawUpstream
) -> None:
    n_before = len(server.received)
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = exchange(running.port, request_bytes + smuggled, until_close=False)
    assert answer.count(b"HTTP/1.1 ") <= 1, name
    assert answer[:10] in {b"HTTP/1.1 4", b"HTTP/1.1 5", b""}, name
    assert [r.line for r in server.received[n_before:]] == [], name


def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    chunked_request = (
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
    )
    last = raw("/v1/x", b"four", headers=b"Connection: close\r\n")
    answer = exchange(running.port, raw("/v1/x", b"one") + chunked_request + b"\r\n" + raw(CHAT, b"three") + last)
    assert [part[:12] for part in answer.split(b'"echo": "')[1:]] and answer.count(b"HTTP/1.1 200 OK") == 4
    order = [answer.index(word) for word in (b'"one"', b'"two"', b'"three"', b'"four"')]
    assert order == sorted(order)


def test_bytes_behind_an_answer_reach_nobody(running: Running) -> None:
    answer = exchange(
        running.port, raw(CHAT, b"x", headers=b"x-do: junk\r\n") + raw(CHAT, b"y", headers=b"Connection: close\r\n")
    )
    assert b"stolen" not in answer and answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"\r\n\r\nok" in answer and b"'y'" not in answer and b'"y"' in answer


def test_an_upstream_that_is_not_http_is_a_provider_shaped_502(running: Running) -> None:
    status, _, body = call(running, CHAT, b"x", x_do="two lengths")
    assert status == 502 and "error" in json.loads(body)


def test_timeouts_are_provider_shaped_504s(running: Running) -> None:
    status, headers, body = call(running, CHAT, b"x", x_do="silent")
    assert status == 504 and json.loads(body)["error"]["type"] == "timeout"
    chat_id = headers["x-evalpipe-request-id"]
    status, headers, body = call(running, MESSAGES, b"x", x_do="silent")
    assert status == 504 and json.loads(body)["error"]["type"] == "timeout_error"
    found = running.responses()
    assert found[chat_id].ended == "timeout" and found[chat_id].timeout_ms == 1000


def test_a_stalled_answer_ends_visibly_cut(running: Running) -> None:
    answer = exchange(running.port, raw(CHAT, b"x", headers=b"x-do: stall\r\n"), until_close=False)
    assert answer.endswith(b"abc") and b"Content-Length: 10" in answer


def test_a_client_that_leaves_cancels_the_upstream(running: Running, server: RawUpstream) -> None:
    n_broken, before = server.broken, set(running.responses())
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as sock:
        sock.sendall(raw(CHAT, chat_request(stream=True), headers=b"x-do: stream\r\n"))
        seen = b""
        while b"data: " not in seen:
            seen += sock.recv(1000)
    request_id = re.search(rb"x-evalpipe-request-id: (\w+)", seen, re.IGNORECASE)
    assert request_id is not None
    name = request_id.group(1).decode()
    assert name not in before
    eventually(lambda: server.broken > n_broken)
    eventually(lambda: name in running.responses())
    left = running.responses()[name]
    assert left.ended == "client_closed" and left.status == 200 and left.body.data.startswith(b"data: ")


def test_files_are_private_and_hold_no_credentials(running: Running) -> None:
    secrets = ["sk-live-abcdef0123456789", "cookie-value-77", "sk-ant-secret-1234", "query-key-99"]
    call(
        running,
        CHAT + f"?api_key={secrets[3]}",
        chat_request(),
        authorization=f"Bearer {secrets[0]}",
        cookie=f"a={secrets[1]}",
        x_api_key=secrets[2],
    )
    for path in (running.data / "spool").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert not any(secret.encode() in path.read_bytes() for secret in secrets)


def test_kill_9_of_a_worker_under_load_loses_no_finished_exchange(server: RawUpstream, tmp_path: Path) -> None:
    started = start_collector(tmp_path, server.url)
    seen: list[str] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", started.port), timeout=5) as sock:
                    while not stop.is_set():
                        sock.sendall(raw(CHAT, b"q"))
                        answer = b""
                        while not answer.endswith(b'{"echo": "q"}'):
                            piece = sock.recv(65536)
                            if not piece:
                                raise ConnectionError
                            answer += piece
                        seen.append(answer.partition(b"x-evalpipe-request-id: ")[2][:33].decode())
            except OSError:
                continue

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        n_before = len(seen)
        eventually(lambda n_before=n_before: len(seen) > n_before + 100, timeout=60)  # type: ignore[misc]
        os.kill(started.child("serve"), signal.SIGKILL)
    n_before = len(seen)
    eventually(lambda: len(seen) > n_before + 50, timeout=60)
    started.process.kill()  # and the supervisor: the rest ends by itself
    stop.set()
    for thread in threads:
        thread.join()
    started.process.wait()
    started.close()
    eventually(lambda: not _someone_listens(started.port))
    assert len(set(seen)) == len(seen) > 300
    assert set(seen) <= started.responses().keys()


def _someone_listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_client_token_is_asked_for(server: RawUpstream, collector: Callable[..., Running]) -> None:
    started = collector(server.url, arm='api_key_env = "C_KEY"', env={"EVALPIPE_TOKEN": "right", "C_KEY": "sk-ours"})
    assert call(started, CHAT, b"x")[0] == 401
    assert call(started, CHAT, b"x", x_evalpipe_token="wrong")[0] == 401
    assert call(started, "/_evalpipe/metrics")[0] == 401
    assert call(started, "/_evalpipe/health")[0] == 200
    assert call(started, CHAT, b"x", x_evalpipe_token="right")[0] == 200
    assert call(started, CHAT, b"x", authorization="Bearer right")[0] == 200
    assert server.received[-1].header("authorization") == b"Bearer sk-ours"
    assert not any(name.startswith(b"x-evalpipe") for name in server.received[-1].head.lower().split(b"\r\n"))
