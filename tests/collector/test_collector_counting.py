"""Tokens and dollars are counted behind the traffic, and keep up with a rate that lasts."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from collector_harness import CHAT, RawUpstream, Received, Running, Script, chat_answer, chat_request, plain

TOKENS = 15
"""of an answer, in and out"""
RATE = 700
"""a request comes between any two looks of the treatment process at the log (every 2 ms)"""
AT_LEAST, AT_MOST_S = 300, 80.0


def answering(request: Received) -> Iterable[bytes | float | str]:
    return [plain(chat_answer())]


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_evalpipe/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0] == name)


def test_tokens_are_counted_while_requests_come_without_a_pause(
    upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running], tmp_path: Path
) -> None:
    url = upstream(answering).url
    port = collector(url, url).port
    body = chat_request()
    request = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began, n, counted = time.monotonic(), 0, 0.0
        while n < AT_LEAST or counted <= n:  # of 2 n: control's answers and treatment's
            passed = time.monotonic() - began
            assert passed < AT_MOST_S, (counted, n)
            if n >= RATE * passed:
                time.sleep(0.0002)
                continue
            client.sendall(request)
            answer = b""
            while not answer.endswith(b"}"):
                piece = client.recv(1 << 16)
                assert piece
                answer += piece
            n += 1
            if n % AT_LEAST == 0:
                counted = metric(port, "evalpipe_tokens_total") / TOKENS
