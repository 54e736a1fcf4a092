"""Answers and requests that were once misread: through a running collector and `evalpipe load` into the store's columns.

Each file holds a request, the bytes of the provider's answer, and what the store must hold. The recorded answer is served by
the control arm's provider, and by the treatment's for the copy.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from collector_harness import RawUpstream, Received, Running, Script, eventually
from command_line import run_here

CASES = "review/cases/wire/inputs"
PIECES = "upstream_pieces"


def recorded(shared: Path) -> dict[str, dict[str, Any]]:
    folder = shared / CASES
    if not folder.is_dir():
        pytest.skip(f"no recorded cases at {folder}")
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    assert len(found) >= 30
    return found


def answer_of(case: dict[str, Any]) -> list[bytes | str]:
    pieces: list[bytes | str] = [base64.b64decode(piece["base64"]) for piece in case[PIECES] if "base64" in piece]
    return [*pieces, "close"]


def send(running: Running, name: str, case: dict[str, Any]) -> str:
    """The request id the collector gave; the whole answer is read first."""
    request = case["request"]
    body = base64.b64decode(request["body_base64"])
    lines = [
        f"{request['method']} {request['path']} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"X-Case: {name}",
        "Connection: close",
        *request["headers"],
    ]
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    head = received.partition(b"\r\n\r\n")[0].decode("latin-1")
    named = [line.partition(":") for line in head.split("\r\n")[1:]]
    ids = [value.strip() for key, _, value in named if key.lower() == "x-evalpipe-request-id"]
    assert ids, f"{name}: not collected: {head[:200]}"
    return ids[0]


def stored_rows(running: Running) -> dict[tuple[str, str], dict[str, Any]]:
    """(request id, role) → the row of the store, after `evalpipe load`."""
    assert running.stop() == 0
    done = run_here("load", cwd=running.root)
    assert done.returncode == 0, done.stderr
    files = str(running.data / "exchanges" / "**" / "*.parquet")
    table = duckdb.sql(f"SELECT * FROM read_parquet('{files}', union_by_name = true)")
    names = table.columns
    rows = [dict(zip(names, row, strict=True)) for row in table.fetchall()]
    return {(row["request_id"], row["role"]): row for row in rows}


def assert_stored(name: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if key == "or":
            continue
        if key == "collected":
            assert row["text"] or row["tool_calls"], name
        elif key == "marked":
            assert row["error_type"] == "not_text", name
        elif value == "not ok":
            assert row["outcome"] != "ok", name
        elif key == "cost_usd" and isinstance(value, float):
            may_be_null = expected.get("or") == "null"
            assert (row[key] is None and may_be_null) or row[key] == pytest.approx(value, rel=1e-9), (
                f"{name}: {row[key]}"
            )
        elif key == "tool_calls":
            calls = [{"name": call["name"], "arguments": call["arguments"]} for call in json.loads(row[key] or "[]")]
            assert calls == value, name
        else:
            assert row[key] == value, f"{name}: {key} is {row[key]!r}"


@pytest.mark.shared
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_recorded_answers_are_stored_as_their_files_state(
    shared: Path, upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running], provider: str
) -> None:
    cases = {
        name: case
        for name, case in recorded(shared).items()
        if PIECES in case and case["request"]["path"].endswith("/messages") == (provider == "anthropic")
    }
    assert len(cases) >= (3 if provider == "anthropic" else 20)

    def script(request: Received) -> list[bytes | str]:
        return answer_of(cases[(request.header("x-case") or b"").decode()])

    served = upstream(script)
    copied = upstream(lambda request: [b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"])
    running = collector(served.url, copied.url, provider=provider, treatment_provider=provider)
    ids = {name: send(running, name, case) for name, case in cases.items()}
    eventually(lambda: len(running.fates()) == len(cases))
    rows = stored_rows(running)
    for name, case in cases.items():
        row = rows[ids[name], "served"]
        assert_stored(name, row, case["expected"])


@pytest.mark.shared
def test_requests_reach_the_path_of_the_arms_address(
    shared: Path, upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]
) -> None:
    cases = {name: case for name, case in recorded(shared).items() if "arm_base_url_path" in case}
    assert len(cases) >= 2
    for name, case in cases.items():
        server = upstream(lambda request: [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"])
        address = server.url + case["arm_base_url_path"]
        running = collector(address, address)
        body = base64.b64encode(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}').decode()
        send(
            running,
            name,
            {"request": {"method": "POST", "path": case["client_path"], "headers": [], "body_base64": body}},
        )
        eventually(lambda server=server: len(server.received) == 2)
        asked = {request.line.split()[1].decode() for request in server.received}
        assert asked == {case["expected_path"]}, name
        assert running.stop() == 0
