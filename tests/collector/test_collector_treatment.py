"""The treatment leg: copies, their fates, and that nothing it does reaches the user."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from collector_harness import (
    CHAT,
    MESSAGES,
    RawUpstream,
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

Start = Callable[..., Running]
Upstream = Callable[[Script], RawUpstream]


def ask(
    running: Running, text: str = "hi", *, path: str = CHAT, headers: dict[str, str] | None = None, **more: object
) -> bytes:
    request = Request(
        running.url + path, chat_request(text, **more), {"content-type": "application/json", **(headers or {})}
    )
    with urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def fates(running: Running) -> Counter[str]:
    return Counter(f"{f.status}:{f.reason}" if f.reason else f.status for f in running.fates().values())


def test_both_answers_are_kept_and_the_client_gets_controls(upstream: Upstream, collector: Start) -> None:
    control = upstream(lambda r: [plain(chat_answer("control"))])
    treatment = upstream(lambda r: [plain(chat_answer("treatment"))])
    running = collector(control.url, treatment.url + "/v1")
    assert b"control" in ask(running, headers={"authorization": "Bearer sk-client", "x-user-id": "u1"})
    assert running.stop() == 0
    (copy,) = treatment.received
    assert copy.line == b"POST /v1/chat/completions HTTP/1.1"
    assert json.loads(copy.body)["model"] == "gpt-4o-mini"
    assert copy.header("authorization") is None and copy.header("x-user-id") is None
    (request_id,) = running.requests()
    assert running.requests()[request_id].unit_id not in {None, "u1"}
    assert json.loads(running.responses()[request_id].body.data)["choices"][0]["message"]["content"] == "control"
    assert (
        json.loads(running.responses("shadow")[request_id].body.data)["choices"][0]["message"]["content"] == "treatment"
    )
    assert fates(running) == {"sampled": 1}


def test_openai_requests_reach_an_anthropic_treatment_and_the_reverse(upstream: Upstream, collector: Start) -> None:
    message = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": "a"}],
        "stop_reason": "end_turn",
    }
    anthropic = upstream(
        lambda r: [plain(json.dumps({**message, "usage": {"input_tokens": 1, "output_tokens": 1}}).encode())]
    )
    openai = upstream(lambda r: [plain(chat_answer("o"))])
    key = {"T_KEY": "sk-treatment"}
    first = collector(
        openai.url, anthropic.url, treatment_provider="anthropic", treatment_arm='api_key_env = "T_KEY"', env=key
    )
    ask(first, "q1", max_tokens=7, headers={"authorization": "Bearer sk-client"})
    first.stop()
    (copy,) = anthropic.received
    assert copy.line.startswith(b"POST /v1/messages ")
    assert copy.header("x-api-key") == b"sk-treatment" and copy.header("authorization") is None
    assert json.loads(copy.body)["messages"] == [{"role": "user", "content": "q1"}]
    anthropic.received.clear()
    openai.received.clear()
    second = collector(anthropic.url, openai.url, provider="anthropic")
    ask(
        second, "q2", path=MESSAGES, max_tokens=7, headers={"x-api-key": "sk-client", "anthropic-version": "2023-06-01"}
    )
    second.stop()
    (copy,) = openai.received
    assert copy.line.startswith(b"POST /v1/chat/completions ")
    assert copy.header("x-api-key") is None
    assert json.loads(copy.body)["messages"][-1]["content"] in ("q2", [{"type": "text", "text": "q2"}])


@pytest.mark.parametrize("trouble", ["down", "slow", "failing", "cut", "garbage"])
def test_trouble_of_the_treatment_is_not_the_users(trouble: str, upstream: Upstream, collector: Start) -> None:
    control = upstream(lambda r: [plain(chat_answer("control"))])
    scripts: dict[str, Script] = {
        "down": lambda r: ["reset"],
        "slow": lambda r: ["hang"],
        "failing": lambda r: [plain(b"{}", status="500 Oops")],
        "cut": lambda r: [*chunked(chat_stream(["a"]))[:-1], "close"],
        "garbage": lambda r: [b"\x00\x01 this is not HTTP\r\n\r\n", "close"],
    }
    treatment = upstream(scripts[trouble])
    if trouble == "down":
        treatment.close()
    running = collector(control.url, treatment.url, collector="shadow_timeout_s = 0.3")
    with urlopen(Request(control.url + CHAT, chat_request())) as answer:
        direct = answer.read()
    assert [ask(running) for _ in range(5)] == [direct] * 5
    eventually(lambda: len(running.responses("shadow")) == 5)
    ended = {r.ended for r in running.responses("shadow").values()}
    assert (
        ended
        == {
            "down": {"connect_error"},
            "slow": {"timeout"},
            "failing": {"complete"},
            "cut": {"cut"},
            "garbage": {"protocol_error"},
        }[trouble]
    )
    assert fates(running) == {"sampled": 5}
    running.stop()


def test_a_hanging_treatment_sheds_by_number_and_age(upstream: Upstream, collector: Start) -> None:
    control = upstream(lambda r: [plain(chat_answer("control"))])
    treatment = upstream(lambda r: ["hang"])
    running = collector(control.url, treatment.url, collector="shadow_concurrency = 2\nshadow_timeout_s = 0.5")
    for number in range(12):
        ask(running, f"q{number}")
    assert running.stop() == 0
    found = fates(running)
    assert sum(found.values()) == 12 == len([r for r in running.requests().values() if r.eligible])
    assert found["sampled"] >= 2 and set(found) <= {"sampled", "shed:stopping"}


def test_sampling_goes_by_conversation(upstream: Upstream, collector: Start) -> None:
    control = upstream(lambda r: [plain(chat_answer("control"))])
    running = collector(control.url, control.url, collector="sample_percent = 40")
    for number in range(30):
        for _ in range(2):
            ask(running, f"opener {number}")
    running.stop()
    texts = {i: json.loads(r.body.data)["messages"][0]["content"] for i, r in running.requests().items()}
    by_text: dict[str, set[str]] = {}
    for request_id, fate in running.fates().items():
        by_text.setdefault(texts[request_id], set()).add(fate.status)
    assert all(len(found) == 1 for found in by_text.values())
    assert len(running.fates()) == 60
    assert 3 <= sum(found == {"sampled"} for found in by_text.values()) <= 22


def test_the_budget_is_never_passed(upstream: Upstream, collector: Start) -> None:
    # gpt-4o-mini by [prices]: 1 USD per 1000 input tokens here; an answer bills 10 in and 5 out = 0.015 USD
    control = upstream(lambda r: [plain(chat_answer("control"))])
    # Slow: copies are decided on while others are in flight, whose cost is reserved and not yet spent.
    treatment = upstream(lambda r: [0.5, plain(chat_answer("t", model="gpt-4o-mini"))])
    prices = '[prices."gpt-4o-mini"]\ninput = 1000.0\noutput = 1000.0\n'
    options = {"collector": "shadow_budget_usd = 0.2", "treatment_arm": prices}
    running = collector(control.url, treatment.url, **options)
    for number in range(30):
        ask(running, f"q{number}", max_tokens=5)
    running.stop()
    n_sent = len(treatment.received)
    assert 1 <= n_sent <= 0.2 / 0.015
    assert fates(running) == {"sampled": n_sent, "shed:budget": 30 - n_sent}
    again = collector(control.url, treatment.url, root=running.root, **options)  # over the experiment's life
    for number in range(5):
        ask(again, f"r{number}", max_tokens=5)
    again.stop()
    assert len(treatment.received) <= 0.2 / 0.015


def test_copies_wait_while_little_quota_is_left(upstream: Upstream, collector: Start) -> None:
    headers = (
        b"x-ratelimit-limit-requests: 100\r\nx-ratelimit-remaining-requests: 1\r\nx-ratelimit-reset-requests: 700ms\r\n"
    )
    control = upstream(lambda r: [plain(chat_answer("control"))])
    treatment = upstream(lambda r: [plain(chat_answer("t"), headers=headers)])
    running = collector(control.url, treatment.url)
    for number in range(1, 4):
        ask(running, f"q{number}")
        eventually(lambda number=number: len(running.responses("shadow")) == number)  # type: ignore[misc]
    starts = sorted(r.started_at for r in running.responses("shadow").values())
    running.stop()
    assert starts[-1] - starts[0] > 0.5


def test_a_killed_treatment_process_sends_nothing_twice_and_forgets_nothing(
    upstream: Upstream, collector: Start
) -> None:
    control = upstream(lambda r: [plain(chat_answer("control"))])
    treatment = upstream(lambda r: [0.02, plain(chat_answer("t"))])
    running = collector(control.url, treatment.url, collector="shadow_concurrency = 4")
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, running, f"q{n}") for n in range(200)]
        for _ in range(3):
            os.kill(running.child("shadow"), signal.SIGKILL)
            eventually(lambda: len(running.children()) == 2)
        assert all(b"control" in answer.result() for answer in answers)
    eventually(lambda: len(running.fates()) == 200, timeout=30)
    running.stop()
    assert sum(fates(running).values()) == 200
    texts = Counter(json.loads(r.body)["messages"][0]["content"] for r in treatment.received)
    assert max(texts.values()) == 1, "a copy was sent twice"
    assert len(running.responses()) == 200


def test_health_says_when_nobody_makes_the_copies(upstream: Upstream, collector: Start) -> None:
    server = upstream(lambda r: [plain(chat_answer())])
    running = collector(server.url, server.url)

    def reasons() -> str:
        with urlopen(running.url + "/_evalpipe/health", timeout=30) as answer:
            return " ".join(json.load(answer)["reasons"])

    def kill_again() -> bool:  # its successors come ever later
        if (pid := running.children().get("shadow")) is not None:
            os.kill(pid, signal.SIGKILL)
        return "treatment process is not running" in reasons()

    assert reasons() == ""
    eventually(kill_again, timeout=30)
    eventually(lambda: reasons() == "", timeout=30)


def test_health_and_metrics_are_answered_while_a_process_makes_its_files(upstream: Upstream, collector: Start) -> None:
    """Of a process that has just started the file of its counters is there before anything is in it."""
    running = collector(upstream(lambda r: [plain(chat_answer())]).url)
    folder = psutil.Process(running.child("serve")).environ()["PROMETHEUS_MULTIPROC_DIR"]
    (Path(folder) / "counter_99999.db").touch()
    for path in ("health", "metrics"):
        with urlopen(f"{running.url}/_evalpipe/{path}", timeout=30) as answer:
            assert answer.status == 200


def test_a_burst_beyond_the_queue_waits_in_the_spool(upstream: Upstream, collector: Start) -> None:
    control = upstream(lambda r: [plain(chat_answer("control"))])
    treatment = upstream(lambda r: [plain(chat_answer("t"))])
    running = collector(control.url, treatment.url, collector="shadow_concurrency = 1")
    os.kill(running.child("shadow"), signal.SIGSTOP)
    body = chat_request()
    one = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
    n = 1500  # more than may wait in memory
    assert (
        exchange(
            running.port,
            one * (n - 1) + one.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close"),
            timeout=60,
        ).count(b"HTTP/1.1 200")
        == n
    )
    os.kill(running.child("shadow"), signal.SIGCONT)
    eventually(lambda: len(treatment.received) == n, timeout=60)
    assert running.stop() == 0
    assert fates(running) == {"sampled": n}


@pytest.mark.serial  # 80 MiB, read by a process of lowest priority
def test_bodies_beyond_the_queues_bytes_wait_in_the_spool_and_push_nobody_out(
    upstream: Upstream, collector: Start
) -> None:
    control = upstream(lambda r: [plain(chat_answer("control"))])
    treatment = upstream(lambda r: [plain(chat_answer("t"))])
    running = collector(control.url, treatment.url, collector="shadow_concurrency = 1")
    os.kill(running.child("shadow"), signal.SIGSTOP)
    sizes = [10, 20 << 20, 10, 20 << 20, 10, 20 << 20, 10, 20 << 20, 10]  # 80 MiB in all, 64 may wait in memory
    for size in sizes:
        assert b"control" in ask(running, "x" * size)
    os.kill(running.child("shadow"), signal.SIGCONT)
    eventually(lambda: len(treatment.received) == len(sizes), timeout=60)
    assert running.stop() == 0
    assert fates(running) == {"sampled": len(sizes)}
