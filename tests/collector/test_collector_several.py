"""`evalpipe collect DIR…`: two collectors under one process, over loopback."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from collector_harness import CHAT, RawUpstream, Script, chat_answer, chat_request, eventually, plain, read_spool

from evalpipe.spool.format import RequestRecord

pytestmark = pytest.mark.uncompiled
CONFIG = """
[experiment]
name = "{name}"
[arms.control]
provider = "openai"
base_url = "{url}/v1"
[collector]
port = {port}
"""


class Several:
    """`evalpipe collect one two` as a user starts it, and its log."""

    def __init__(self, folder: Path, *words: str, env: dict[str, str] | None = None) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EVALPIPE_")} | (env or {})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "evalpipe", "collect", *words],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def line(self, words: str, *, after: int = 0) -> str:
        """The first line from number `after` on that matches, once there is one."""
        eventually(lambda: any(re.search(words, line) for line in self.lines[after:]), timeout=60)
        return next(line for line in self.lines[after:] if re.search(words, line))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@pytest.fixture
def folders(tmp_path: Path, upstream: Callable[[Script], RawUpstream]) -> Path:
    server = upstream(lambda request: [plain(chat_answer())])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evalpipe.toml").write_text(CONFIG.format(name=name, url=server.url, port=0))
    return tmp_path


@pytest.fixture
def start() -> Iterator[Callable[..., Several]]:
    started: list[Several] = []

    def begin(*arguments: str | Path, **options: dict[str, str]) -> Several:
        started.append(Several(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            for child in psutil.Process(one.process.pid).children(recursive=True):
                child.kill()
            one.process.kill()
            one.process.wait(10)
        assert one.process.stderr is not None
        one._reader.join(10)
        one.process.stderr.close()


def ask(url: str) -> int:
    host, _, port = url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", CHAT, body=chat_request(), headers={"Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def requests_of(folder: Path) -> list[str]:
    return [one.experiment for one in read_spool(folder / "data" / "spool") if isinstance(one, RequestRecord)]


def url_of(running: Several, name: str, *, after: int = 0) -> str:
    return running.line(rf" collect {name}: listening on ", after=after).rpartition(" ")[2]


def test_each_folder_has_a_collector_at_its_own_address_and_a_signal_ends_all(
    folders: Path, start: Callable[..., Several]
) -> None:
    running = start(folders, "one", "two")
    urls = {name: url_of(running, name) for name in ("one", "two")}
    assert urls["one"] != urls["two"]
    assert [ask(urls["one"]), ask(urls["two"]), ask(urls["two"])] == [200, 200, 200]
    everyone = psutil.Process(running.process.pid).children(recursive=True)
    assert len(everyone) >= 6  # two collectors, each with a worker and a treatment process
    assert running.end() == 0
    assert (requests_of(folders / "one"), requests_of(folders / "two")) == (["one"], ["two", "two"])
    assert not [child for child in everyone if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert all(re.match(r"\S+Z [A-Z]+ (collect|serve|shadow)( one| two)?: ", line) for line in running.lines)


def test_one_that_is_killed_is_started_again_beside_the_others(folders: Path, start: Callable[..., Several]) -> None:
    running = start(folders, "one", "two", "--log-format", "json")

    def listens(name: str, after: int = 0) -> str:
        running.line(rf'"message": "listening on .*"experiment": "{name}"', after=after)
        lines = [json.loads(line) for line in running.lines[after:]]
        return next(one["url"] for one in lines if one.get("experiment") == name and "url" in one)

    listens("one")
    other = listens("two")
    victim = json.loads((folders / "one" / "data" / "collector.json").read_text())["pid"]
    n_lines = len(running.lines)
    os.kill(victim, signal.SIGKILL)
    running.line("the collector of one ended .killed by signal 9.; another one takes its place", after=n_lines)
    url = listens("one", after=n_lines)
    assert [ask(url), ask(other)] == [200, 200]
    assert running.end(signal.SIGINT) == 0


def test_children_end_with_their_parent(folders: Path, start: Callable[..., Several]) -> None:
    running = start(folders, "one", "two")
    for name in ("one", "two"):
        url_of(running, name)
    children = psutil.Process(running.process.pid).children(recursive=True)
    running.process.kill()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert len(gone) >= 6 and alive == []


def refused(folders: Path, start: Callable[..., Several], *words: str, **options: dict[str, str]) -> str:
    running = start(folders, *words, **options)
    assert running.process.wait(60) == 2
    running._reader.join(10)
    (line,) = running.lines
    assert not (folders / "one" / "data").exists()
    return line


def test_what_cannot_go_together_is_one_line_before_anything_starts(
    folders: Path, start: Callable[..., Several], free_port: int
) -> None:
    for name in ("one", "two"):
        path = folders / name / "evalpipe.toml"
        path.write_text(path.read_text().replace("port = 0", f"port = {free_port}"))
    words = refused(folders, start, "one", "two")
    assert f"one in {folders}/one and two in {folders}/two both listen on port {free_port}" in words
    assert "have one data folder" in refused(folders, start, "one", "one")
    shared = refused(folders, start, "one", "two", env={"EVALPIPE_DATA": str(folders / "data")})
    assert "(EVALPIPE_DATA) exclude each other" in shared
    assert "--port is one port" in refused(folders, start, "one", "two", "--port", "8400")
    assert f"no evalpipe.toml in {folders}/three" in refused(folders, start, "one", "three")
    (folders / "two" / "evalpipe.toml").write_text(
        (folders / "one" / "evalpipe.toml").read_text().replace("one", "two")
    )
    two = folders / "two" / "evalpipe.toml"
    two.write_text(two.read_text().replace(f"port = {free_port}", "port = 0"))
    with socket.create_server(("127.0.0.1", free_port)):
        words = refused(folders, start, "one", "two")
    assert f"one in {folders}/one: cannot listen on 127.0.0.1:{free_port}: Address already in use" in words


def test_one_that_cannot_begin_ends_all_with_its_own_line(folders: Path, start: Callable[..., Several]) -> None:
    path = folders / "two" / "evalpipe.toml"
    path.write_text(path.read_text().replace("[collector]", 'api_key_env = "NOT_SET_ANYWHERE"\n[collector]'))
    running = start(folders, "one", "two")
    assert running.process.wait(60) == 2
    running._reader.join(10)
    assert running.lines[-1].startswith("evalpipe: two: arms.control.api_key_env = 'NOT_SET_ANYWHERE'")
