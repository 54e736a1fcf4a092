"""`evalpipe serve` as a user starts it: its address, its end, and what it refuses before it begins."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serve_harness import TOKEN, Served
from warm_start import evalpipe_program

from evalpipe.workspace import canary
from evalpipe.workspace.paths import Workspace

WORKSPACE = '[experiment]\nname = "{name}"\n[collector]\nclient_token_env = "{variable}"\n'


@contextmanager
def started(
    folder: Path, *words: str, token: str | None = TOKEN
) -> Iterator[tuple[subprocess.Popen[str], Served, str]]:
    environment = {key: value for key, value in os.environ.items() if key != "EVALPIPE_TOKEN"}
    if token is not None:
        environment["EVALPIPE_TOKEN"] = token
    process = subprocess.Popen(
        [evalpipe_program(), "serve", "--port", "0", *words],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
        assert found is not None, line
        yield process, Served(int(found[1])), line
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()


def test_it_serves_until_it_is_stopped_also_with_listeners(rollout: Workspace) -> None:
    with started(rollout.root) as (process, served, line):
        assert "read-only" not in line
        assert served.ask("/e/rollout").status == 200
        assert served.post("/e/rollout/canary", {"step": "rollback", "who": "Bo", "why": "complaints"}).status == 303
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as listener:
            listener.sendall(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n\r\n".encode())
            assert b"text/event-stream" in listener.recv(4096)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    last = canary.open_history(rollout).events()[-1]
    assert (last.action, last.who, last.why) == ("rollback", "Bo", "complaints")


def test_without_a_token_it_prints_that_it_is_read_only(rollout: Workspace) -> None:
    with started(rollout.root, token=None) as (process, served, line):
        assert "read-only: nothing can be changed without a token in $EVALPIPE_TOKEN" in line
        assert served.post("/e/rollout/canary", {"step": "rollback", "who": "Bo", "why": "x"}).status == 403
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_asked_twice_to_stop_it_ends_in_order_without_an_error_in_its_log(rollout: Workspace) -> None:
    with (
        started(rollout.root) as (process, served, _),
        socket.create_connection(("127.0.0.1", served.port), timeout=30) as listener,
    ):
        listener.sendall(b"POST /in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n")
        assert served.ask("/e/rollout").status == 200
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        log = process.stderr.read()
        assert process.wait(30) == 0
    assert log.splitlines()[-1].endswith("INFO serve: stopped")
    assert "ERROR" not in log and "Traceback" not in log


def refused(folder: Path, *words: str) -> str:
    command = [evalpipe_program(), "serve", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_what_cannot_begin_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for name, variable in (("a", "TOKEN_A"), ("b", "TOKEN_B")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evalpipe.toml").write_text(WORKSPACE.format(name=name, variable=variable))
    assert "set a token in $TOKEN_A" in refused(tmp_path / "a", "--host", "0.0.0.0")
    assert "name different [collector] client_token_env (TOKEN_A, TOKEN_B)" in refused(tmp_path, "a", "b")
    assert "'box internal' is no host name" in refused(tmp_path / "a", "--allow-host", "box internal")
    assert "exclude each other" in refused(tmp_path, "a", "--data", "x")
    assert "is it the right folder? `evalpipe init` makes a workspace" in refused(tmp_path)
    assert "there is no folder nowhere" in refused(tmp_path, "a", "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = refused(tmp_path / "a", "--port", str(port))
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in words


def test_no_other_command_loads_the_web_server() -> None:
    code = (
        "import sys, json\n"
        "from evalpipe.cli.app import build_app\n"
        "build_app()\n"
        "import evalpipe.workspace.collect, evalpipe.workspace.status, evalpipe.workspace.run\n"
        "print(json.dumps(sorted({'starlette', 'uvicorn', 'anyio'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert [name for name in json.loads(done.stdout) if name != "anyio"] == []


@pytest.mark.parametrize("path", ["/", "/e/rollout"])
def test_pages_are_small(rollout: Workspace, path: str) -> None:
    with started(rollout.root) as (_, served, _):
        assert len(served.ask(path).text) + len(served.ask("/static/page.css").text) < 60_000
