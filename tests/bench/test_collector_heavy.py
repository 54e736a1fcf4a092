"""The collector's heavy runs (`make check-collector`): faults with clients that verify every byte, real servers, fuzzing.

Each run ends with the same accounting: what a client finished is recorded once, and the funnel adds up to every request.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "collector"))

from collector_harness import (
    CHAT,
    RawUpstream,
    Received,
    Running,
    Script,
    chat_answer,
    chat_request,
    chat_stream,
    chunked,
    eventually,
    exchange,
    plain,
)
from conformance_cases import cases, comparable, script_of

FUZZ_S = float(os.environ.get("EVALPIPE_FUZZ_S", "60"))


def echo(request: Received) -> list[bytes | float | str]:
    """An answer that proves which request it belongs to."""
    text = json.loads(request.body)["messages"][-1]["content"]
    if '"stream": true' in request.body.decode():
        return chunked(chat_stream([text[:3], text[3:]]))
    return [plain(chat_answer(text))]


class Clients:
    """Verifying clients: every answer must be exactly the one to their request. `finished` holds the request ids."""

    def __init__(self, port: int, n: int, *, total: int | None = None) -> None:
        self.finished: list[str] = []
        self.wrong: list[bytes] = []
        self.errors: list[str] = []
        self._port, self._total = port, total
        self._stop = threading.Event()
        self._numbers = iter(range(10**9))
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(n)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=20) as sock:
                    while not self._stop.is_set():
                        with self._lock:
                            number = next(self._numbers)
                        if self._total is not None and number >= self._total:
                            return
                        self._ask(sock, f"question {number}", streamed=number % 2 == 1)
            except OSError as error:
                self.errors.append(repr(error))

    def _ask(self, sock: socket.socket, text: str, *, streamed: bool) -> None:
        body = chat_request(text, **({"stream": True} if streamed else {}))
        sock.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
        )
        expected = echo(Received(b"", b"", body))
        wanted = comparable(b"".join(step for step in expected if isinstance(step, bytes)))
        answer = b""
        while not answer or len(comparable(answer)) < len(wanted):
            piece = sock.recv(1 << 16)
            if not piece:
                raise ConnectionError("closed")
            answer += piece
        if comparable(answer) != wanted:
            self.wrong.append(answer)
        else:
            self.finished.append(answer.partition(b"x-evalpipe-request-id: ")[2].partition(b"\r\n")[0].decode())

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        self._stop.set()
        self.join()


def check_funnel(running: Running) -> Counter[str]:
    """not_sampled + not_shadowable + shed + sampled = eligible, exactly."""
    eligible = {r.request_id for r in running.requests().values() if r.eligible}
    fates = running.fates()
    assert fates.keys() == eligible
    return Counter(fate.status for fate in fates.values())


def test_large_bodies_equal_a_direct_call(
    upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]
) -> None:
    found = [case for case in cases(large=True) if "MB" in case.name]
    server = upstream(script_of(found))
    running = collector(server.url)
    for case in found:
        direct = exchange(server.port, case.request, timeout=60)
        assert comparable(direct) == comparable(exchange(running.port, case.request, timeout=60)), case.name
        assert server.received[-1].body == server.received[-2].body, case.name
    assert running.stop() == 0


def test_ten_thousand_requests_while_load_compacts_and_processes_die(
    upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]
) -> None:
    control, treatment = upstream(echo), upstream(echo)
    running = collector(control.url, treatment.url, collector="shadow_concurrency = 16")
    clients = Clients(running.port, 16, total=10_000)
    stop = threading.Event()

    def compact() -> None:
        while not stop.is_set():
            _load(running)

    loading = threading.Thread(target=compact)
    loading.start()
    for name, after in (("serve", 2000), ("shadow", 4000), ("serve", 6000), ("shadow", 8000)):
        eventually(lambda after=after: len(clients.finished) >= after, timeout=200)  # type: ignore[misc]
        os.kill(running.child(name), signal.SIGKILL)
    clients.join()
    stop.set()
    loading.join()
    assert not clients.wrong
    assert len(set(clients.finished)) == len(clients.finished)
    assert running.stop() == 0
    _load(running)
    rows = _sql(running, "SELECT request_id, arm, shadow_status FROM exchanges")
    served = [row for row in rows if row["arm"] == "control"]
    ids = [row["request_id"] for row in served]
    assert len(ids) == len(set(ids)), "a row was doubled"
    assert set(clients.finished) <= set(ids), "a finished exchange was lost"
    treated = [row["request_id"] for row in rows if row["arm"] == "treatment"]
    assert len(treated) == len(set(treated))
    assert not [r.head for r in treatment.received if not r.body]
    texts = Counter(json.loads(r.body)["messages"][-1]["content"] for r in treatment.received)
    assert max(texts.values()) == 1, "a copy was sent twice"
    status = Counter(row["shadow_status"] for row in served)
    assert sum(status.values()) == len(served)
    print(
        f"finished {len(clients.finished)}, interrupted {len(clients.errors)}, rows {len(served)}, funnel {dict(status)}"
    )
    assert None not in status


def _load(running: Running) -> None:
    done = subprocess.run(
        _command(running, "load"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def _command(running: Running, *words: str) -> list[str]:
    where = ["--data", str(running.data), "--config", str(running.root / "evalpipe.toml")]
    return [sys.executable, "-m", "evalpipe", *words, *where]


def _sql(running: Running, query: str) -> list[dict[str, str]]:
    done = subprocess.run(_command(running, "sql", query, "--json"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows: list[dict[str, str]] = found["rows"] if isinstance(found, dict) else found
    return rows


def test_a_treatment_that_floods_and_stalls_and_dies(
    upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]
) -> None:
    flood = b"x" * (1 << 20)
    troubles: list[list[bytes | float | str]] = [
        [b"HTTP/1.1 200 OK\r\n\r\n", *[flood] * 20, "close"],
        ["hang"],
        ["reset"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"1\r\na\r\n"] * 1000, "reset"],
        [plain(b"{}", status="500 Oops")],
    ]
    control = upstream(echo)
    treatment = upstream(lambda r: random.Random(r.body).choice(troubles))
    running = collector(control.url, treatment.url, collector="shadow_timeout_s = 1.0\nshadow_concurrency = 8")
    clients = Clients(running.port, 8, total=600)
    clients.join()
    assert not clients.wrong and not clients.errors and len(clients.finished) == 600
    assert running.stop() == 0
    assert set(clients.finished) <= running.responses().keys()
    print(dict(check_funnel(running)))


def test_control_dies_mid_stream(upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]) -> None:
    """The cut is passed on as it is, plain, chunked and until-close; the copy is sent all the same."""
    found = [case for case in cases() if case.name.startswith(("cut", "stream until close"))]
    server, treatment = upstream(script_of(found)), upstream(lambda r: [plain(chat_answer())])
    running = collector(server.url, treatment.url)
    for case in found * 5:
        assert comparable(exchange(server.port, case.request)) == comparable(exchange(running.port, case.request))
    assert running.stop() == 0
    assert Counter(r.ended for r in running.responses().values())["cut"] == 15
    check_funnel(running)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_not_the_users_trouble(
    tmp_path: Path, upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]
) -> None:
    root = tmp_path / "small"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        control = upstream(echo)
        running = collector(control.url, control.url, root=root)
        clients = Clients(running.port, 8, total=3000)
        clients.join()
        assert not clients.wrong and not clients.errors and len(clients.finished) == 3000
        health = json.loads(urlopen(running.url + "/_evalpipe/health").read())
        assert health["status"] == "degraded" and health["records_lost"] > 0
        metrics = urlopen(running.url + "/_evalpipe/metrics").read().decode()
        assert "evalpipe_records_lost_total" in metrics
        subprocess.run(["mount", "-o", "remount,size=64m", str(root)], check=True)  # room again
        time.sleep(1.5)
        n_lost = json.loads(urlopen(running.url + "/_evalpipe/health").read())["records_lost"]
        again = Clients(running.port, 4, total=50)
        again.join()
        assert running.stop() == 0
        assert set(again.finished) <= running.responses().keys()
        eligible = {r.request_id for r in running.requests().values() if r.eligible}
        _load(running)  # a fate that could not be written is known once nobody lives who could still decide
        rows = _sql(running, "SELECT request_id, shadow_status FROM exchanges WHERE arm = 'control'")
        status = Counter(row["shadow_status"] for row in rows)
        assert {row["request_id"] for row in rows} == eligible and None not in status
        print(f"lost and counted: {n_lost}; of {len(eligible)} recorded requests: {dict(status)}")
    finally:
        subprocess.run(["umount", "-l", str(root)], check=False)


def test_a_thousand_slow_clients(upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]) -> None:
    """They send and read a byte at a time, or nothing; a fast client beside them is served as ever."""
    import psutil

    big = b"y" * (1 << 20)
    control = upstream(lambda r: [plain(big)] if r.body == b"big" else [plain(b"{}")] if r.body == b"{}x" else echo(r))
    running = collector(control.url, control.url)
    worker = psutil.Process(running.child("serve"))
    request = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nbig" % CHAT.encode()
    slow = []
    for number in range(1000):
        sock = socket.create_connection(("127.0.0.1", running.port), timeout=10)
        sock.sendall(request if number % 2 else request[:20])  # half never read, half never finish their head
        slow.append(sock)
    # 500 MB lie in socket buffers by then; what is asked is whether those who do not read hold up those who do
    exchange(
        running.port,
        request.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close").replace(b"big", b"{}x"),
        timeout=120,
    )
    clients = Clients(running.port, 4, total=400)
    began = time.monotonic()
    clients.join()
    took = time.monotonic() - began
    assert not clients.wrong and not clients.errors
    rss_mb = worker.memory_info().rss / 1e6
    print(f"400 requests beside 1,000 slow clients in {took:.1f} s, worker RSS {rss_mb:.0f} MB")
    assert rss_mb < 1000
    for sock in slow:
        sock.close()
    assert running.stop() == 0
    print(dict(check_funnel(running)))


def test_fuzzed_requests_and_answers(
    upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]
) -> None:
    """Mutated requests on the server side, mutated answers on the upstream side. A canary per connection proves that no
    byte of one client's traffic reaches another; afterwards everything still works."""
    rng = random.Random(7)
    seeds = [case.request for case in cases() if len(case.request) < 5000]
    answers = [b"".join(s for s in case.answer if isinstance(s, bytes)) for case in cases()]
    answers = [answer for answer in answers if 0 < len(answer) < 5000]
    tokens = [
        b"\r\n",
        b"\n",
        b"\r",
        b"\x00",
        b" ",
        b":",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
    ]
    tokens += [
        b"HTTP/1.1",
        b"-1",
        b"99999999999999999999",
        b"\xff",
        b";",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\r\n\r\n",
    ]

    def mutated(data: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            place, kind = rng.randrange(len(out) + 1), rng.randrange(4)
            if kind == 0:
                out[place:place] = rng.choice(tokens)
            elif kind == 1:
                del out[place : place + rng.randint(1, 20)]
            elif kind == 2 and place < len(out):
                out[place] = rng.randrange(256)
            else:
                out[place:place] = out[max(0, place - 30) : place]
        return bytes(out)

    def script(request: Received) -> list[bytes | float | str]:
        canary = request.header("x-canary")
        if canary is not None:
            return [plain(b"canary " + canary)]
        return [mutated(rng.choice(answers)), "close"]

    server = upstream(script)
    timeouts = "timeout_s = 2.0\nidle_timeout_s = 1.0\nshadow_timeout_s = 2.0"
    running = collector(server.url, server.url, collector=timeouts)
    worker = running.child("serve")
    until, n, leaks = time.monotonic() + FUZZ_S, 0, []
    lock = threading.Lock()

    def attack(number: int) -> None:
        nonlocal n
        turn = 0
        while time.monotonic() < until:
            turn += 1
            mark = b"c%d-%d" % (number, turn)
            with lock:
                data = mutated(rng.choice(seeds)) if turn % 3 else rng.choice(seeds)
                n += 1
            try:
                with socket.create_connection(("127.0.0.1", running.port), timeout=4) as sock:
                    sock.sendall(data)
                    sock.settimeout(0.05)
                    answer = b""
                    try:
                        while piece := sock.recv(65536):
                            answer += piece
                    except OSError:
                        pass
                ask = b"GET /c HTTP/1.1\r\nHost: localhost\r\nX-Canary: %b\r\nConnection: close\r\n\r\n" % mark
                canary = exchange(running.port, ask, timeout=10, until_close=False)
                while canary.startswith(
                    b"HTTP/1.1 504"
                ):  # the stand-in server, a thread beside eight of these, was slow
                    canary = exchange(running.port, ask, timeout=10, until_close=False)
            except OSError as error:
                leaks.append(repr(error).encode())
                continue
            if b"canary " in answer or not canary.endswith(b"canary " + mark) or canary.count(b"canary ") != 1:
                leaks.append(answer + b" | " + canary)

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert running.child("serve") == worker, "the worker crashed"
    assert not leaks, leaks[:3]
    assert json.loads(urlopen(running.url + "/_evalpipe/health").read())["in_flight"] == 0
    assert running.stop() == 0
    print(f"{n} fuzzed requests in {FUZZ_S:.0f} s; {dict(check_funnel(running))}")


def test_a_tls_upstream(
    tmp_path: Path, upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]
) -> None:
    """nginx with a certificate of a test CA, trusted through SSL_CERT_FILE."""
    if shutil.which("nginx") is None or shutil.which("openssl") is None:
        pytest.skip("nginx and openssl are needed")
    plain_server = upstream(echo)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        check=True,
        capture_output=True,
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p;\n"
        f"fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;\n"
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};\n"
        f"location / {{ proxy_pass {plain_server.url}; proxy_http_version 1.1; proxy_buffering off; }} }} }}\n"
    )
    nginx = subprocess.Popen(["nginx", "-c", str(tmp_path / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        url = f"https://localhost:{port}"
        trusted = collector(url, url, env={"SSL_CERT_FILE": str(certificate)})
        untrusted = collector(url)
        for _ in range(20):
            body = json.loads(urlopen(Request(trusted.url + CHAT, chat_request("over TLS"))).read())
            assert body["choices"][0]["message"]["content"] == "over TLS"
        with pytest.raises(OSError, match="502"):
            urlopen(Request(untrusted.url + CHAT, chat_request("x")))
        assert trusted.stop() == 0
        assert check_funnel(trusted) == {"sampled": 20}
        assert {r.status for r in trusted.responses("shadow").values()} == {200}
    finally:
        nginx.terminate()
        nginx.wait()


def test_gzip_everywhere(upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]) -> None:
    """A compressed answer reaches the client compressed and is read when the log is loaded."""
    data = gzip.compress(chat_answer("packed"))
    control = upstream(lambda r: [plain(data, headers=b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n")])
    running = collector(control.url)
    assert urlopen(Request(running.url + CHAT, chat_request())).read() == data
    assert running.stop() == 0
    _load(running)
    assert _sql(running, "SELECT text FROM exchanges")[0]["text"] == "packed"
