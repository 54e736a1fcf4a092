"""A wrong key, model or address while the collector runs: said in its log and by its health, and no more once it answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from collector_harness import CHAT, RawUpstream, Received, Running, chat_answer, chat_request, eventually, plain
from command_line import run_here

from evalpipe.store.query import open_store
from evalpipe.workspace.load import faults_of, load
from evalpipe.workspace.paths import open_workspace, record_path

Upstream = Callable[..., RawUpstream]
Start = Callable[..., Running]

REFUSED = json.dumps(
    {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
).encode()
ANSWER = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 2},
}


def good(request: Received) -> list[bytes]:
    return [plain(json.dumps(ANSWER).encode() if b"/messages" in request.line else chat_answer())]


def refusing(request: Received) -> list[bytes]:
    return [plain(REFUSED, status="401 Unauthorized")]


def ask(running: Running, n: int, *, users: int = 3) -> list[int]:
    """Statuses of `n` requests by `users` users in turn."""
    statuses = []
    for i in range(n):
        headers = {
            "content-type": "application/json",
            "authorization": "Bearer sk-client",
            "x-user-id": f"u{i % users}",
        }
        request = Request(running.url + CHAT, data=chat_request(f"question {i}"), headers=headers)
        try:
            with urlopen(request, timeout=30) as answer:
                answer.read()
                statuses.append(answer.status)
        except HTTPError as error:
            with error:
                statuses.append(error.code)
    return statuses


def health(running: Running) -> dict[str, Any]:
    with urlopen(running.url + "/_evalpipe/health", timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def lines(running: Running, word: str) -> list[str]:
    return [line for line in running.lines if word in line]


def test_a_refused_key_of_the_treatment(upstream: Upstream, collector: Start) -> None:
    control, treatment = upstream(good), upstream(refusing)
    running = collector(control.url, treatment.url, treatment_provider="anthropic")
    assert ask(running, 4) == [200] * 4
    eventually(lambda: len(running.responses("shadow")) == 4)
    time.sleep(0.3)
    assert (health(running)["status"], lines(running, "set-up fault")) == ("ok", [])
    assert ask(running, 8) == [200] * 8  # users do not notice
    eventually(lambda: health(running)["status"] == "degraded")
    # The file of a fault that grows is written once a second.
    eventually(lambda: health(running)["setup_faults"][0]["count"] == 12)
    found = health(running)
    assert found["setup_faults"] == [
        {"arm": "treatment", "kind": "refused", "status": 401, "code": "authentication_error", "count": 12}
    ]
    (reason,) = found["reasons"]
    assert reason.startswith(
        "set-up fault of the treatment arm: 12 requests in a row failed: HTTP 401: invalid x-api-key ("
    )
    assert "Check [arms.treatment] api_key_env. Once it is corrected: evalpipe exclude --since " in reason
    (line,) = lines(running, "set-up fault")
    assert " ERROR shadow: set-up fault of the treatment arm: " in line
    assert "requests in a row failed: HTTP 401: invalid x-api-key" in line
    # The key is mended where it is issued: the same configuration answers.
    treatment.script = good
    assert ask(running, 3) == [200] * 3
    eventually(lambda: bool(lines(running, "no longer fails")))
    assert health(running)["status"] == "ok"
    (line,) = lines(running, "no longer fails")
    assert "the treatment arm no longer fails with HTTP 401: invalid x-api-key, after 12 requests" in line
    assert "evalpipe exclude --since " in line
    assert running.stop() == 0
    # What is loaded has the fault still: it stays until its time is excluded.
    tally = load(open_workspace(root=running.root))
    (warning,) = [line for line in tally.lines() if line.startswith("warning: ")]
    assert warning.startswith("warning: test: set-up fault of the treatment arm: 12 requests in a row failed: HTTP 401")


def test_a_client_with_a_wrong_key_of_its_own_is_no_fault(upstream: Upstream, collector: Start) -> None:
    control = upstream(refusing)
    running = collector(control.url)
    assert ask(running, 25, users=2) == [401] * 25
    assert (health(running)["status"], lines(running, "set-up fault")) == ("ok", [])
    assert ask(running, 5, users=3) == [401] * 5
    found = health(running)
    assert [(one["arm"], one["status"], one["count"]) for one in found["setup_faults"]] == [("control", 401, 30)]
    assert "(where it is not set: the key that clients send)" in found["reasons"][0]
    control.script = good
    assert ask(running, 1) == [200]
    assert health(running)["status"] == "ok"
    assert running.stop() == 0
    assert load(open_workspace(root=running.root)).warnings[0].startswith("test: set-up fault of the control arm: 30 ")


def test_nobody_listens_at_the_treatments_address(upstream: Upstream, collector: Start, free_port: int) -> None:
    control = upstream(good)
    running = collector(control.url, f"http://127.0.0.1:{free_port}")
    assert ask(running, 6) == [200] * 6
    eventually(lambda: health(running)["status"] == "degraded")
    eventually(lambda: health(running)["setup_faults"][0]["count"] == 6)
    (reason,) = health(running)["reasons"]
    assert f"6 requests failed, none was answered: no connection to 127.0.0.1:{free_port}: " in reason
    assert "Check [arms.treatment] base_url." in reason


def test_controls_address_is_a_web_page(upstream: Upstream, collector: Start) -> None:
    """It answers 200 to everything: HTTP says all is well."""
    control = upstream(
        lambda request: [plain(b"<!doctype html><title>Welcome</title>", headers=b"Content-Type: text/html\r\n")]
    )
    running = collector(control.url)
    assert ask(running, 4) == [200] * 4
    assert health(running)["status"] == "ok"
    assert ask(running, 4) == [200] * 4
    (one,) = health(running)["setup_faults"]
    assert (one["arm"], one["kind"], one["status"], one["code"], one["count"]) == (
        "control",
        "never_answered",
        200,
        "malformed",
        8,
    )
    control.script = good
    assert ask(running, 1) == [200]
    assert health(running)["status"] == "ok"
    eventually(lambda: lines(running, "the control arm no longer fails with HTTP 200"))
    control.script = refusing  # twenty in a row at any time are a fault of this arm, too
    assert ask(running, 20) == [401] * 20
    assert [one["kind"] for one in health(running)["setup_faults"]] == ["refused"]


def test_a_model_that_refuses_some_requests_is_no_fault(upstream: Upstream, collector: Start) -> None:
    bad = plain(b'{"error": {"type": "invalid_request_error", "message": "too long"}}', status="400 Bad Request")
    answered: list[int] = []

    def sometimes(request: Received) -> list[bytes]:
        answered.append(1)
        return good(request) if len(answered) == 1 else [bad]

    running = collector(upstream(sometimes).url)
    assert ask(running, 40, users=5) == [200] + [400] * 39
    assert health(running)["status"] == "ok"


@pytest.mark.uncompiled
def test_what_answered_in_an_earlier_life_is_known(upstream: Upstream, collector: Start) -> None:
    """Five bad requests of three users right after a start: no fault where this configuration has answered before."""
    bad = plain(b'{"error": {"type": "invalid_request_error", "message": "too long"}}', status="400 Bad Request")
    server = upstream(good)
    first = collector(server.url)
    assert ask(first, 1) == [200]
    assert first.stop() == 0
    server.script = lambda request: [bad]
    again = collector(server.url, root=first.root)
    assert ask(again, 25, users=5) == [400] * 25
    assert health(again)["status"] == "ok"
    assert again.stop() == 0
    other = collector(server.url, root=first.root, arm='model = "another"')
    assert ask(other, 5, users=5) == [400] * 5
    assert [one["kind"] for one in health(other)["setup_faults"]] == ["never_answered"]


def test_the_workers_speak_with_one_voice(upstream: Upstream, collector: Start) -> None:
    control = upstream(refusing)
    running = collector(
        control.url, collector="workers = 2", arm='api_key_env = "CONTROL_KEY"', env={"CONTROL_KEY": "k"}
    )
    deadline = time.monotonic() + 20
    while sum(one["count"] for one in health(running)["setup_faults"]) < 40 and time.monotonic() < deadline:
        ask(running, 5, users=5)  # each over a connection of its own: the kernel shares them out
    eventually(lambda: sum(one["count"] for one in health(running)["setup_faults"]) >= 40)
    assert len(health(running)["setup_faults"]) == 1
    time.sleep(0.5)
    assert len(lines(running, "set-up fault of the control arm")) == 1


@pytest.mark.parametrize("who", ["client", "arm"])
def test_a_key_that_the_provider_repeats_is_not_shown(upstream: Upstream, collector: Start, who: str) -> None:
    def repeating(request: Received) -> list[bytes]:
        key = (request.header("authorization") or b"").decode().removeprefix("Bearer ")
        error = {"error": {"code": "invalid_api_key", "message": f"Incorrect API key provided: {key}."}}
        return [plain(json.dumps(error).encode(), status="401 Unauthorized")]

    own = {} if who == "client" else {"arm": 'api_key_env = "CONTROL_KEY"', "env": {"CONTROL_KEY": "plain-words-key"}}
    running = collector(upstream(repeating).url, **own)
    assert ask(running, 5) == [401] * 5
    (reason,) = health(running)["reasons"]
    assert "HTTP 401: Incorrect API key provided: [key]." in reason
    assert "sk-client" not in reason and "plain-words-key" not in reason


def test_in_a_split_each_arm_is_followed(upstream: Upstream, collector: Start) -> None:
    running = collector(
        upstream(good).url,
        upstream(refusing).url,
        mode="ab",
        experiment="treatment_percent = 50",
        treatment_provider="openai",
    )
    statuses = ask(running, 60, users=60)
    assert set(statuses) == {200, 401}
    found = health(running)
    assert [(one["arm"], one["count"]) for one in found["setup_faults"]] == [("treatment", statuses.count(401))]


def evalpipe(running: Running, *arguments: str) -> tuple[int, str]:
    """Exit code, and what a command prints."""
    done = run_here(*arguments, cwd=running.root, env={"ANTHROPIC_API_KEY": "k"})
    return done.returncode, done.stdout + done.stderr


@pytest.mark.uncompiled
def test_a_wrong_key_then_the_right_one_from_the_first_request_to_the_exclusion(
    upstream: Upstream, collector: Start
) -> None:
    """12 copies are refused; then 40 go to a server that takes them. Both configurations are in the store."""
    control = upstream(good)
    running = collector(control.url, upstream(refusing).url, treatment_provider="anthropic")
    assert ask(running, 12) == [200] * 12
    eventually(lambda: len(running.responses("shadow")) == 12)
    assert running.stop() == 0
    code, text = evalpipe(running, "load")
    assert code == 0 and "loaded 24 exchanges into test" in text
    (warning,) = [line for line in text.splitlines() if line.startswith("warning: ")]
    assert "set-up fault of the treatment arm: 12 requests in a row failed: HTTP 401: invalid x-api-key" in warning
    assert "Check [arms.treatment] api_key_env" in warning
    code, text = evalpipe(running, "judge")
    assert code == 1
    wanted = "test: no pairs to judge: 12 requests are loaded, but the treatment answered none (12 × HTTP 401: invalid x-api-key)"
    assert wanted in text

    corrected = collector(control.url, upstream(good).url, treatment_provider="anthropic", root=running.root)
    assert ask(corrected, 40, users=20) == [200] * 40
    eventually(lambda: len(corrected.responses("shadow")) == 40)
    assert health(corrected)["status"] == "ok"
    assert corrected.stop() == 0
    workspace = open_workspace(root=running.root)
    assert load(workspace).warnings == []  # nothing failed in what is loaded now
    with open_store(workspace.data, "test") as store:
        counted = store.connection.sql(
            "SELECT arm, config_fingerprint, count(*) FILTER (outcome = 'ok'), count(*) FILTER (status = 401) "
            "FROM exchanges GROUP BY ALL ORDER BY arm, min(started_at)"
        ).fetchall()
    (control_mark,) = {mark for arm, mark, _, _ in counted if arm == "control"}
    (wrong, right) = [mark for arm, mark, _, _ in counted if arm == "treatment"]
    assert counted == [("control", control_mark, 52, 0), ("treatment", wrong, 0, 12), ("treatment", right, 40, 0)]
    (fault,) = faults_of(workspace, "test")
    assert (fault.arm, fault.status, fault.count, fault.fingerprint) == ("treatment", 401, 12, wrong)

    # What the message says to exclude takes these 12 out, and nothing else.
    record = record_path(workspace.data, "test")
    record.parent.mkdir(parents=True, exist_ok=True)
    excluded = {"since": fault.since, "until": fault.until, "why": "wrong key", "declared_at": "2026-01-01T00:00:00Z"}
    record.write_text(json.dumps({"exclusions": [excluded]}))
    assert faults_of(workspace, "test") == []
