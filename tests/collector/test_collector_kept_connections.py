"""Servers close kept connections when they like: a request that runs into that is sent once more, over a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from collector_harness import CHAT, RawUpstream, Received, Running, Script, chat_answer, chat_request, plain

Start = Callable[..., Running]
Upstream = Callable[[Script], RawUpstream]


def ask(running: Running, text: str) -> bytes:
    request = Request(running.url + CHAT, chat_request(text), {"content-type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def closing_on_the_second(name: str) -> Script:
    """Answers the first request of a connection, and breaks the connection on the next one: every even request here."""
    count = 0

    def script(received: Received) -> Iterable[bytes | float | str]:
        nonlocal count
        count += 1
        return ["reset"] if count % 2 == 0 else [plain(chat_answer(name))]

    return script


def test_neither_the_user_nor_the_log_sees_a_connection_that_was_closed_while_idle(
    upstream: Upstream, collector: Start
) -> None:
    control = upstream(closing_on_the_second("control"))
    treatment = upstream(closing_on_the_second("treatment"))
    running = collector(control.url, treatment.url + "/v1", collector="shadow_concurrency = 1")
    for n in range(4):
        assert b"control" in ask(running, f"question {n}")
    assert running.stop() == 0
    assert {record.ended for record in running.responses().values()} == {"complete"}
    assert {record.ended for record in running.responses("shadow").values()} == {"complete"}
    assert len(running.responses()) == len(running.responses("shadow")) == 4


def test_a_new_connection_that_closes_is_the_servers_answer(upstream: Upstream, collector: Start) -> None:
    control = upstream(lambda received: ["reset"])
    running = collector(control.url)
    with pytest.raises(HTTPError) as caught:
        ask(running, "hi")
    assert caught.value.code == 502
    caught.value.close()
    assert len(control.received) == 1, "sent once"
