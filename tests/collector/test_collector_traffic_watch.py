"""The collector's log on traffic that cannot be compared as it is: units that are no users, requests for one arm only."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from collector_harness import CHAT, RawUpstream, Running, Script, chat_answer, eventually, plain

from evalpipe.analysis.checks.traffic import uncopied_found, units_found
from evalpipe.store.query import open_store
from evalpipe.workspace.doctor import check_traffic
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

pytestmark = pytest.mark.uncompiled
Start = Callable[..., Running]
Upstream = Callable[[Script], RawUpstream]


def send(running: Running, requests: Iterator[tuple[dict[str, Any], dict[str, str]]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    for body, headers in requests:
        connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json", **headers})
        connection.getresponse().read()
    connection.close()


def talk(number: int, turn: int = 0, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": f"talk {number}"}]
    for _ in range(turn):
        said += [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    return {"model": "gpt-4o", "messages": said, **more}


SESSIONS = [(talk(n, turn, user=f"s{n}"), {}) for n in range(100) for turn in range(2)]
REQUESTS = [(talk(n, user=f"r{n}"), {}) for n in range(200)]
ONE = [(talk(n, user="app" if n % 4 else f"u{n % 7}"), {}) for n in range(200)]
UNNAMED = [(talk(n), {}) for n in range(200)]
USERS = [(talk(n, user=f"u{n % 40}"), {}) for n in range(200)]
AGENT = {"user-agent": "codex_cli_rs/0.98.0 (Debian 12; x86_64) xterm"}
CODEX = [(talk(n, user=f"u{n % 40}", **({"client_metadata": {}} if n % 2 else {})), AGENT) for n in range(200)]
CASES = {
    "sessions": (
        SESSIONS,
        "100 of 100 units with several requests (100%) have one conversation each: they look like sessions",
    ),
    "requests": (REQUESTS, "200 of 200 units (100%) have one request: they look like requests"),
    "one": (ONE, "one unit holds 150 of 200 requests (75%)"),
    "unnamed": (UNNAMED, "200 of 200 requests (100%) name no user"),
    "codex": (
        CODEX,
        "100 of 200 requests of codex_cli_rs (50%) cannot be given to the treatment: unknown_parameter:client_metadata 50%",
    ),
    "users": (USERS, ""),
}


@pytest.mark.parametrize(
    ("case", "mode"), [*((case, "shadow") for case in CASES), ("sessions", "ab"), ("unnamed", "ab"), ("codex", "ab")]
)
def test_what_is_unusual_is_reported_once(case: str, mode: str, upstream: Upstream, collector: Start) -> None:
    requests, expected = CASES[case]
    server = upstream(lambda r: [plain(chat_answer())])
    other = "anthropic" if case == "codex" and mode == "ab" else "openai"
    running = collector(
        server.url, server.url, mode=mode, treatment_provider=other, collector='stream_usage = "inject"'
    )
    send(running, iter(requests))
    send(running, iter(requests[:50]))

    def found() -> list[str]:
        return [line for line in running.lines if "requests of" in line or "unit" in line or "name no user" in line]

    if expected:
        eventually(lambda: bool(found()))
    if mode == "shadow":
        eventually(lambda: len(running.fates()) == 250, timeout=30)
    assert running.stop() == 0
    assert [expected in line for line in found()] == ([True] if expected else []), found()


def test_doctor_and_report_say_it_too(upstream: Upstream, collector: Start) -> None:
    server = upstream(lambda r: [plain(chat_answer())])
    running = collector(server.url, server.url)
    assert any("NO TOKENS AND NO COST" in line for line in running.lines)
    send(running, iter([*SESSIONS, *CODEX]))
    eventually(lambda: len(running.fates()) == 400, timeout=30)
    assert running.stop() == 0
    workspace = open_workspace(running.root / "evalpipe.toml", data=running.data)
    load(workspace)
    told = [(found.name, found.status, found.detail) for found in check_traffic(workspace, workspace.require_config())]
    (found,) = told
    assert found[:2] == ("uncopied", "warn") and "unknown_parameter:client_metadata 50%" in found[2]
    with open_store(running.data, "test") as store:
        assert uncopied_found(store.connection, "test") and not units_found(store.connection, "test")
        store.connection.execute(
            "CREATE TEMP TABLE named AS SELECT * FROM exchanges WHERE json_extract_string(request, '$.user') LIKE 's%'; "
            "CREATE OR REPLACE TEMP VIEW exchanges AS SELECT * FROM named"
        )
        (sessions,) = units_found(store.connection, "test")
        assert sessions.key == "sessions"
