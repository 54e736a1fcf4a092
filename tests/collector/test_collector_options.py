"""Options of the collector, each with real processes: several workers, loading now and then, the arm's own settings."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from collector_harness import (
    CHAT,
    RawUpstream,
    Running,
    Script,
    chat_answer,
    chat_request,
    eventually,
    plain,
    start_collector,
)

from evalpipe.collector.supervisor import rounds

Start = Callable[..., Running]
Upstream = Callable[[Script], RawUpstream]


def ask(running: Running, **more: object) -> int:
    """Over a connection of its own, so that the kernel chooses a worker."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.request("POST", CHAT, chat_request(**more), {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def workers(running: Running) -> list[int]:
    found = []
    for child in psutil.Process(running.process.pid).children():
        try:
            if child.cmdline()[3:4] == ["serve"]:
                found.append(child.pid)
        except psutil.Error:  # on its way out
            continue
    return found


def test_workers_share_the_port_and_one_may_die(upstream: Upstream, collector: Start) -> None:
    server = upstream(lambda r: [plain(chat_answer())])
    running = collector(server.url, server.url, collector="workers = 2")
    first, second = workers(running)
    for _ in range(60):
        assert ask(running) == 200
    segments = {path.name.split(".")[0].rsplit("-", 1)[1] for path in (running.data / "spool").glob("served-*.jsonl")}
    assert segments == {str(first), str(second)}
    assert all(path.stat().st_size for path in (running.data / "spool").glob("served-*.jsonl")), "one served nobody"
    os.kill(first, signal.SIGKILL)
    for _ in range(60):  # those the kernel gives to the killed one's socket wait for its successor
        assert ask(running) == 200
    eventually(lambda: len(workers(running)) == 2)
    assert running.stop() == 0
    assert len(running.requests()) == len(running.responses()) == len(running.fates()) == 120


@pytest.mark.uncompiled
def test_the_spool_is_loaded_now_and_then(upstream: Upstream, collector: Start) -> None:
    server = upstream(lambda r: [plain(chat_answer())])
    running = collector(server.url, server.url, arguments=["load_every=1s"])
    seen = 0

    def loaded() -> int:
        return sum(pq.read_metadata(path).num_rows for path in (running.data / "exchanges").rglob("*.parquet"))

    for round_ in range(1, 3):
        for _ in range(5):
            assert ask(running) == 200
        seen = round_ * 10
        eventually(lambda wanted=seen: loaded() == wanted, timeout=60)  # type: ignore[misc]
    assert running.stop() == 0
    assert loaded() == seen


def test_loads_begin_at_their_interval_however_long_they_take() -> None:
    """From start to start: at once after one that took longer, and never sooner."""
    every, lengths = 0.2, [0.0, 0.15, 0.5, 0.0, 0.0]

    async def starts() -> list[float]:
        loop, began = asyncio.get_running_loop(), []
        async for _ in rounds(every):
            began.append(loop.time())
            await asyncio.sleep(lengths[len(began) - 1])
            if len(began) == len(lengths):
                break
        return began

    began = asyncio.run(starts())
    apart = [later - earlier for earlier, later in pairwise(began)]
    wanted = [max(every, length) for length in lengths[:-1]]
    assert all(found >= least - 0.01 for found, least in zip(apart, wanted, strict=True)), apart
    assert sum(apart) < sum(wanted) + 0.3, "a pause behind a load"


def test_an_arm_that_rewrites_gets_its_own_model_and_prompt(upstream: Upstream, tmp_path: Path) -> None:
    server = upstream(lambda r: [plain(chat_answer())])
    settings = (
        'rewrite = true\nmodel = "gpt-4o-2024-11-20"\nsystem_prompt_file = "brief.txt"\nparams = {temperature = 0.25}'
    )
    (tmp_path / "brief.txt").write_text("Be brief.")
    running = start_collector(tmp_path, server.url, arm=settings)
    assert ask(running, text="hi", store=True, temperature=1) == 200
    sent = json.loads(server.received[-1].body)
    assert sent["model"] == "gpt-4o-2024-11-20" and sent["temperature"] == 0.25
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert sent["store"] is True, "the user's own request keeps what it asks for"
    assert server.received[-1].header("content-length") == str(len(server.received[-1].body)).encode()
    assert running.stop() == 0
    (request_id, request), (response,) = next(iter(running.requests().items())), running.responses().values()
    assert json.loads(request.body.data)["model"] == "gpt-4o", "the log keeps what the client sent"
    assert response.sent is not None and response.sent.data == server.received[-1].body
    assert response.request_id == request_id
