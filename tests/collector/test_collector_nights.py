"""What goes wrong at night: nobody reads the log, processes are killed, the spool or the descriptors are gone."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from collector_harness import (
    CHAT,
    CONFIG,
    RawUpstream,
    Received,
    Running,
    Script,
    chat_answer,
    chat_request,
    eventually,
    plain,
    read_spool,
)

from evalpipe.collector.status import SpoolWatch
from evalpipe.files import is_locked
from evalpipe.spool.checkpoint import TREATMENT_LOCK
from evalpipe.spool.format import RequestRecord, ResponseRecord

Upstream = Callable[[Script], RawUpstream]
Start = Callable[..., Running]

COLLECT = "from evalpipe.cli import main; main(['collect', *__import__('sys').argv[1:]])"


def answering(request: Received) -> Iterable[bytes | float | str]:
    return [plain(chat_answer())]


def ask(port: int, text: str = "hi") -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{CHAT}", chat_request(text), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def health(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_evalpipe/health", timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_evalpipe/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)


def serves(port: int) -> bool:
    try:
        return ask(port) == 200
    except OSError:
        return False


def is_up(port: int) -> bool:
    """All its processes run, and it serves."""
    try:
        return ask(port) == 200 and not any("not running" in reason for reason in health(port)["reasons"])
    except OSError:
        return False


@dataclass
class Started:
    """A collector whose log nobody need read."""

    process: subprocess.Popen[bytes]
    port: int

    def children(self) -> dict[str, int]:
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                found[child.cmdline()[3]] = child.pid
            except (psutil.Error, IndexError):
                continue
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """`start(control, treatment, stderr=…)`: on a port that is free now, since its log may lead nowhere."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(
        control: str,
        treatment: str | None = None,
        *arguments: str,
        code: str = COLLECT,
        collector: str = "",
        **popen: Any,
    ) -> Started:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arm = f'[arms.treatment]\nprovider = "openai"\nbase_url = "{treatment}"\nmodel = "gpt-4o-mini"\n'
        text = CONFIG.format(
            mode="shadow",
            experiment="",
            provider="openai",
            control=control,
            arm="",
            collector=collector,
            treatment=arm if treatment else "",
        )
        (tmp_path / "evalpipe.toml").write_text(text)
        command = [sys.executable, "-c", code, "--port", str(port), *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, **{"stdin": subprocess.DEVNULL, **popen})
        started.append(process)
        eventually(lambda: process.poll() is not None or is_up(port), timeout=90)
        return Started(process, port)

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
                raise
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _reader_gone() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def _full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def _nobody_reads() -> int:
    """A pipe that is full, with a reader that never reads (kept open by the name of its descriptor)."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    try:
        while os.write(write, bytes(4096)):
            pass
    except BlockingIOError:
        os.set_blocking(write, True)
    _kept.append(read)
    return write


_kept: list[int] = []


def _closed() -> int:
    return -1


@pytest.mark.uncompiled
@pytest.mark.parametrize("stream", [_reader_gone, _full_disk, _nobody_reads, _closed])
def test_each_child_is_replaced_and_the_collector_ends_whatever_became_of_its_log(
    upstream: Upstream, start: Callable[..., Started], stream: Callable[[], int]
) -> None:
    control, treatment = upstream(answering), upstream(answering)
    fd = stream()
    options: dict[str, Any] = {"stderr": fd, "stdout": fd}
    if fd < 0:  # as `2>&-` does it

        def close() -> None:
            os.close(2)
            os.close(1)

        options = {"preexec_fn": close}
    try:
        running = start(control.url, treatment.url, **options)
    finally:
        if fd >= 0:
            os.close(fd)
        while _kept and stream is not _nobody_reads:
            os.close(_kept.pop())
    for name in ("shadow", "serve"):
        before = running.children()[name]
        os.kill(before, signal.SIGKILL)
        eventually(lambda name=name, before=before: running.children().get(name, before) != before, timeout=45)
        eventually(lambda: serves(running.port), timeout=45)
    eventually(lambda: health(running.port)["status"] == "ok", timeout=45)
    running.process.terminate()
    assert running.process.wait(60) == 0
    while _kept:
        os.close(_kept.pop())


BREAKS = (
    "from evalpipe.collector import supervisor\n"
    "async def fails(self):\n"
    "    while not __import__('os').path.exists('break'):\n"
    "        await __import__('asyncio').sleep(0.05)\n"
    "    raise ZeroDivisionError('a fault of the program')\n"
    "supervisor._Supervisor._keep_lock = fails\n" + COLLECT
)


@pytest.mark.uncompiled
def test_a_fault_of_what_supervises_ends_the_collector(
    upstream: Upstream, start: Callable[..., Started], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        running = start(upstream(answering).url, None, "--log-format", "json", code=BREAKS, stderr=file)
    children = running.children()
    assert children.keys() == {"serve", "shadow"}
    (tmp_path / "break").touch()
    assert running.process.wait(60) == 1
    assert not any(psutil.pid_exists(pid) for pid in children.values())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (fault,) = [line for line in lines if "the supervision of the processes failed" in line["message"]]
    assert fault["level"] == "critical"
    assert "ZeroDivisionError" in fault["traceback"]
    assert "it ends, so that what manages it" in lines[-1]["message"]
    with pytest.raises(OSError):
        ask(running.port)


@pytest.mark.uncompiled
def test_a_worker_that_cannot_be_replaced_ends_the_collector(
    upstream: Upstream, start: Callable[..., Started], tmp_path: Path
) -> None:
    """Its listening socket would take connections that nobody serves."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    code = (
        "from evalpipe.collector.supervisor import Run\nRun.__init__.__kwdefaults__['replaced_within_s'] = 2.0\n"
        + COLLECT
    )
    running = start(
        upstream(answering).url, code=code, stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(temporary)}
    )
    shutil.rmtree(temporary)
    temporary.write_text("no folder")  # where every process counts: a new worker cannot begin
    os.kill(running.children()["serve"], signal.SIGKILL)
    assert running.process.wait(60) == 1
    assert running.process.stderr is not None
    said = running.process.stderr.read().decode()
    assert "no serve process has been ready for 2 s" in said
    assert "Traceback" not in said
    with pytest.raises(OSError):
        ask(running.port)


@pytest.mark.uncompiled
def test_a_cleaner_of_temporary_files_keeps_no_worker_from_being_replaced(
    upstream: Upstream, start: Callable[..., Started], tmp_path: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    running = start(upstream(answering).url, env={**os.environ, "TMPDIR": str(temporary)})
    for folder in temporary.iterdir():
        shutil.rmtree(folder)
    os.kill(running.children()["serve"], signal.SIGKILL)
    eventually(lambda: serves(running.port), timeout=45)
    assert ask(running.port) == 200
    assert health(running.port)["records_lost"] == 0


# --- the spool


def remove_folder(data: Path) -> None:
    # As `rm -rf`, again where the running collector wrote a file meanwhile.
    def is_gone() -> bool:
        shutil.rmtree(data, ignore_errors=True)
        return not data.exists()

    eventually(is_gone)


def remove_segment(data: Path) -> None:
    for segment in (data / "spool").glob("served*"):
        segment.unlink()


def replace_segment(data: Path) -> None:
    for segment in (data / "spool").glob("served*"):
        other = segment.with_suffix(".other")
        other.write_bytes(b"")
        other.replace(segment)


def move_folder(data: Path) -> None:
    (data / "spool").rename(data / "moved")


def replace_folder(data: Path) -> None:
    (data / "spool").rename(data / "moved")
    (data / "spool").mkdir()


def cut_off(data: Path) -> None:
    for segment in (data / "spool").glob("served*"):
        os.truncate(segment, 0)


@pytest.mark.serial
@pytest.mark.parametrize(
    ("harm", "n_lost"),
    [
        # Three requests and three answers; where the folder went three decisions and answers of copies, too.
        (remove_folder, 12),
        (move_folder, 12),
        (replace_folder, 12),
        (remove_segment, 6),
        (replace_segment, 6),
        (cut_off, 6),
    ],
)
def test_a_spool_that_goes_away_is_noticed_counted_and_made_anew(
    upstream: Upstream, collector: Start, harm: Callable[[Path], None], n_lost: int
) -> None:
    control, treatment = upstream(answering), upstream(answering)
    running = collector(control.url, treatment.url)
    for n in range(3):
        assert ask(running.port, f"before {n}") == 200
    eventually(lambda: len(running.responses("shadow")) == 3)
    harm(running.data)
    began = time.monotonic()
    eventually(lambda: health(running.port)["records_lost"] == n_lost, timeout=5)
    assert time.monotonic() - began < 3  # a second, and the delays of a machine that is busy
    found = health(running.port)
    assert found["status"] == "degraded"
    assert any("records were lost" in reason for reason in found["reasons"])
    assert metric(running.port, "evalpipe_records_lost_total") == n_lost
    # Another process that decides on copies, or a load, still finds this one's lock.
    eventually(lambda: is_locked(running.data / "spool" / TREATMENT_LOCK))
    for n in range(4):
        assert ask(running.port, f"after {n}") == 200
    eventually(lambda: len(treatment.received) == 7)
    assert running.stop() == 0
    records = read_spool(running.data / "spool")
    asked = {r.request_id for r in records if isinstance(r, RequestRecord)}
    answered = {r.request_id for r in records if isinstance(r, ResponseRecord) and r.role == "served"}
    assert len(asked) == len(answered) == 4
    said = "".join(running.lines)
    assert "was deleted, moved, replaced or cut off while it was written: 6 records LOST" in said
    assert "Traceback" not in said
    assert not any("process ended" in line for line in running.lines)


def test_records_are_lost_while_a_disk_is_full_and_health_recovers_when_it_has_room(
    upstream: Upstream, start: Callable[..., Started], tmp_path: Path
) -> None:
    """The disk is a limit of the files' size, which is lifted while the collector runs."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        running = start(upstream(answering).url, stderr=file)
    serving = running.children()["serve"]
    resource.prlimit(serving, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    for _ in range(12):
        assert ask(running.port, "x" * 1000) == 200
    found = health(running.port)
    assert found["status"] == "degraded"
    assert found["records_lost"] > 0
    resource.prlimit(serving, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    # Without any further request.
    eventually(lambda: health(running.port)["status"] == "ok", timeout=60)
    assert health(running.port)["records_lost"] == found["records_lost"]
    text = log.read_text()
    assert text.count("records cannot be written") == 1
    assert f"records are written again; {found['records_lost']} were LOST meanwhile" in text


# --- descriptors


def heard(client: socket.socket) -> bytes:
    """What has come so far."""
    client.setblocking(False)
    try:
        return client.recv(1 << 16)
    except OSError:
        return b""


def test_a_limit_of_open_files_is_refused_with_an_answer_counted_and_logged(
    upstream: Upstream, start: Callable[..., Started], tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    with log.open("wb") as file:
        running = start(upstream(answering).url, stderr=file, preexec_fn=limit)
    idle = [socket.create_connection(("127.0.0.1", running.port), 5) for _ in range(60)]
    try:
        # What comes in one burst the event loop itself may close; who comes then gets an answer.
        eventually(lambda: any(heard(client).startswith(b"HTTP/1.1 503 ") for client in idle))
        eventually(lambda: "the limit of 64 open files is reached" in log.read_text())
    finally:
        for client in idle:
            client.close()
    eventually(lambda: serves(running.port))
    found = health(running.port)
    assert found["status"] == "degraded"
    assert any("too many open files" in reason for reason in found["reasons"])
    assert metric(running.port, "evalpipe_connections_refused_total") > 0
    eventually(lambda: "below the limit of open files again" in log.read_text())
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]


def test_the_treatment_process_reads_a_long_backlog_with_few_descriptors(
    upstream: Upstream, start: Callable[..., Started], tmp_path: Path
) -> None:
    """80 segments that an earlier run left, and 40 descriptors."""
    first = start(upstream(answering).url)
    for _ in range(3):
        assert ask(first.port) == 200
    first.process.terminate()
    assert first.process.wait(60) == 0
    (written,) = [path for path in (tmp_path / "data/spool").glob("served-*.jsonl") if path.stat().st_size]
    line = next(line for line in written.read_bytes().splitlines() if b'"record":"response"' in line)
    for n in range(80):
        (written.parent / f"served-1-1.{n:06d}.jsonl").write_bytes(line + b"\n")
    (written.parent / "shadow-state.json").unlink()
    log = tmp_path / "log"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    with log.open("wb") as file:
        running = start(upstream(answering).url, stderr=file, preexec_fn=limit)
    shadow = psutil.Process(running.children()["shadow"])
    # Each answer has ten tokens in and five out.
    eventually(lambda: metric(running.port, "evalpipe_tokens_total") >= 80 * 15, timeout=100)
    assert shadow.is_running() and shadow.num_fds() < 40
    eventually(lambda: metric(running.port, "evalpipe_spool_unloaded_bytes") >= 80 * len(line))
    assert metric(running.port, "evalpipe_spool_unloaded_age_seconds") > 0
    assert "Traceback" not in log.read_text()
    assert "process ended" not in log.read_text()


# --- load that does not keep up, and the log


@pytest.mark.uncompiled
def test_health_warns_where_segments_stay_after_several_loads(
    upstream: Upstream, start: Callable[..., Started], tmp_path: Path
) -> None:
    """Load fails each time."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        running = start(upstream(answering).url, None, "--load-every", "1s", "--log-format", "json", stderr=file)
    (tmp_path / "evalpipe.toml").write_text("no configuration")
    (written,) = [path for path in (tmp_path / "data/spool").glob("served-*.jsonl") if path.stat().st_size]
    (written.parent / "served-1-1.000001.jsonl").write_bytes(written.read_bytes())  # closed, as after a rotation
    eventually(
        lambda: any("the spool grows faster than it is loaded" in r for r in health(running.port)["reasons"]),
        timeout=60,
    )
    eventually(lambda: "grows faster" in log.read_text())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["level"] for line in lines if "grows faster" in line["message"]] == ["warning"]
    assert any("load failed (exit code" in line["message"] for line in lines)


@pytest.mark.uncompiled
@pytest.mark.parametrize(("n_at_most", "warned"), [(10_000, False), (45, True)])
def test_health_warns_of_a_backlog_that_grows_and_not_of_traffic_that_begins(
    n_at_most: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment of 24 MB comes each second, and a load a minute takes 40 s: for all there was when it began, or 45 of them."""
    now = 1_000_000.0
    monkeypatch.setattr("evalpipe.collector.status.time", SimpleNamespace(time=lambda: now))
    settings = SimpleNamespace(load_every_s=60.0, treatment=None)
    watch = SpoolWatch(settings, tmp_path)  # type: ignore[arg-type]
    waiting: list[tuple[Path, int]] = []
    found = []
    for second in range(1200):
        now += 1
        if second > 5:
            path = tmp_path / f"served-1.{second:06}.jsonl"
            with path.open("wb") as file:
                file.truncate(24_000_000)  # on disk nothing
            waiting.append((path, second))
        if second % 60 == 40:
            before = [path for path, since in waiting if since <= second - 40]
            for path in before[:n_at_most]:
                path.unlink()
            waiting = [(path, since) for path, since in waiting if path.exists()]
        state = watch.look({})
        assert state is not None
        found.append(state.falling_behind)
    assert any(found) == warned
