"""The client gets control's bytes: every case of `conformance_cases` against a direct call, and every one is recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from collector_harness import CHAT, MESSAGES, RawUpstream, Running, exchange
from conformance_cases import Case, cases, comparable, script_of


@pytest.fixture
def served(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running]
) -> Callable[[list[Case]], tuple[RawUpstream, Running]]:
    def start(found: list[Case]) -> tuple[RawUpstream, Running]:
        server = upstream(script_of(found))
        return server, collector(server.url)

    return start


def body_of(request: bytes) -> bytes:
    return request.partition(b"\r\n\r\n")[2]


def test_every_case_equals_a_direct_call(served: Callable[[list[Case]], tuple[RawUpstream, Running]]) -> None:
    found = list(cases())
    assert len(found) >= 60
    server, running = served(found)
    different = []
    for case in found:
        direct = exchange(server.port, case.request)
        seen_direct = server.received[-1]
        through = exchange(running.port, case.request)
        seen = server.received[-1]
        if comparable(direct) != comparable(through):
            different.append((case.name, comparable(direct)[:300], comparable(through)[:300]))
        assert seen.line.split()[:2] == seen_direct.line.split()[:2] and seen.body == seen_direct.body, case.name
    assert not different
    collected = [c for c in found if c.request.startswith((b"POST /v1/chat", b"POST /v1/mess", b"POST /v1/resp"))]
    assert running.stop() == 0
    assert len(running.requests()) == len(running.responses()) == len(collected)


def test_records_hold_what_passed(served: Callable[[list[Case]], tuple[RawUpstream, Running]]) -> None:
    found = [
        case for case in cases() if case.request.startswith((f"POST {CHAT}".encode(), f"POST {MESSAGES}".encode()))
    ]
    server, running = served(found)
    bodies = []
    for case in found:
        exchange(running.port, case.request)
        bodies.append(server.received[-1].body)
    running.stop()
    requests, responses = running.requests(), running.responses()
    assert sorted(r.body.data for r in requests.values()) == sorted(bodies)
    assert requests.keys() == responses.keys()
    ended = {r.ended for r in responses.values()}
    assert ended == {"complete", "closed_by_upstream", "cut"}
