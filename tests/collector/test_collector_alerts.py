"""Alerts of the collector itself: to a real webhook, from real counters, never in the way of a request."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from collector_harness import CHAT, RawUpstream, Running, Script, chat_answer, chat_request, eventually, plain

from evalpipe.models import CanaryEvent, CanaryState, CanaryStatus, render_event
from evalpipe.workspace.alerts import WINDOW_S, CollectorAlerts
from evalpipe.workspace.paths import Workspace, open_workspace

START = Callable[..., Running]
UPSTREAM = Callable[[Script], RawUpstream]
T0 = datetime(2026, 11, 28, 12, 0, tzinfo=UTC).timestamp()


class Webhook:
    """Keeps what it is sent; `status`: what it answers."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hook.status == 200:
                    hook.got.append(json.loads(body))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def kinds(self) -> list[str]:
        return [one["kind"] for one in self.got]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    found = Webhook()
    yield found
    found.server.shutdown()
    found.server.server_close()


def ask(port: int) -> float:
    """Seconds until the answer."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", CHAT, body=chat_request(), headers={"Content-Type": "application/json"})
    assert connection.getresponse().status == 200
    connection.close()
    return time.monotonic() - began


def alerting(url: str, minutes: float) -> str:
    return f'[alerts]\nwebhook = "{url}"\nnothing_for_minutes = {minutes}\n'


def test_silence_and_failing_copies_are_reported_while_it_runs(
    collector: START, upstream: UPSTREAM, webhook: Webhook
) -> None:
    control = upstream(lambda request: [plain(chat_answer())])
    treatment = upstream(lambda request: [plain(b'{"error": {"message": "boom"}}', status="500 Internal Server Error")])
    running = collector(control.url, treatment.url, collector=alerting(webhook.url, 0.02))
    eventually(lambda: "nothing_collected" in webhook.kinds(), timeout=30)
    assert webhook.got[0]["experiment"] == "test" and "when the collector was started" in webhook.got[0]["text"]
    for _ in range(25):
        ask(running.port)
    eventually(lambda: "copies_failing" in webhook.kinds(), timeout=30)
    text = next(one["text"] for one in webhook.got if one["kind"] == "copies_failing")
    assert "copies failed in the treatment arm: " in text and "http_error" in text
    eventually(lambda: webhook.kinds().count("nothing_collected") == 2, timeout=30)  # it was over, and began again
    time.sleep(1.0)
    assert sorted(webhook.kinds()) == ["copies_failing", "nothing_collected", "nothing_collected"]
    assert running.stop() == 0
    assert any("alert (copies_failing)" in line for line in running.lines)


def test_a_webhook_that_never_answers_holds_nobody(collector: START, upstream: UPSTREAM) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and that is all
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/hook"
        control = upstream(lambda request: [plain(chat_answer())])
        running = collector(control.url, control.url, collector=alerting(url, 0.01))
        kept = running.data / "alerts" / "collect" / "test.json"
        eventually(kept.exists, timeout=30)
        assert max(ask(running.port) for _ in range(20)) < 5
        assert [one["kind"] for one in json.loads(kept.read_bytes())["waiting"]] == ["nothing_collected"]
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 8  # a post alone waits ten seconds, three times


def test_a_variable_that_is_not_set_is_a_warning_and_users_are_served(collector: START, upstream: UPSTREAM) -> None:
    control = upstream(lambda request: [plain(chat_answer())])
    running = collector(control.url, control.url, collector='[alerts]\nwebhook_env = "HOOK_NOT_SET"\n')
    ask(running.port)
    words = "HOOK_NOT_SET is not set: the collector sends no alerts"
    eventually(lambda: any(words in line for line in running.lines))


# By counters of one's own making, with the clock in hand.


def samples(
    *, served: int = 0, copies: int = 0, failed: int = 0, shed: int = 0
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    def requests(role: str, outcome: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        arm = "control" if role == "served" else "treatment"
        labels = (("arm", arm), ("experiment", "shop"), ("outcome", outcome), ("role", role))
        return "evalpipe_requests_total", labels

    return {
        requests("served", "ok"): served,
        requests("shadow", "ok"): copies - failed,
        requests("shadow", "timeout"): failed,
        ("evalpipe_shadow_shed_total", (("experiment", "shop"), ("reason", "budget"))): shed,
    }


class Watch:
    """A collector's alerts with a clock of its own; `look` gives the texts that are new."""

    def __init__(self, folder: Path, url: str, *, mode: str = "shadow", patience: float = 10_000) -> None:
        (folder / "evalpipe.toml").write_text(
            f'[experiment]\nname = "shop"\nmode = "{mode}"\n[arms.control]\nprovider = "openai"\n'
            '[arms.treatment]\nprovider = "openai"\n[collector]\nshadow_budget_usd = 5.0\n' + alerting(url, patience)
        )
        self.workspace: Workspace = open_workspace(root=folder)
        self.now = T0
        self.restart()

    def restart(self) -> None:
        self.alerts = CollectorAlerts(self.workspace, clock=lambda: self.now)

    def look(self, minutes: float, **counts: int) -> list[str]:
        self.now = T0 + 60 * minutes
        new, problem = self.alerts.look(samples(**counts))
        assert problem is None
        return [one.text for one in new]


def test_silence_lasts_until_a_request_comes(tmp_path: Path, webhook: Webhook) -> None:
    watch = Watch(tmp_path, webhook.url, patience=30)
    assert watch.look(0, served=5) == []
    assert watch.look(30, served=5) == []
    assert watch.look(31, served=5) == [
        "no request was collected since 2026-11-28 12:00 UTC, when the collector was started"
    ]
    assert watch.look(90, served=5) == []
    watch.restart()  # by its manager: the counters begin again
    assert watch.look(91, served=0) == []
    assert watch.look(200, served=0) == []
    assert watch.look(201, served=1) == []
    assert watch.look(231, served=1) == []
    assert watch.look(232, served=1) == ["no request was collected since 2026-11-28 15:21 UTC"]
    assert webhook.kinds() == ["nothing_collected", "nothing_collected"]


def test_copies_that_fail_are_counted_over_ten_minutes(tmp_path: Path, webhook: Webhook) -> None:
    watch = Watch(tmp_path, webhook.url)
    assert WINDOW_S == 600
    watch.look(0, served=1000, copies=1000, failed=0)
    assert watch.look(1, served=1019, copies=1019, failed=19) == []  # nineteen are too few
    assert watch.look(2, served=1022, copies=1022, failed=11) == []  # eleven of 22 are no majority
    assert watch.look(3, served=1030, copies=1030, failed=16) == [
        "16 of the last 30 copies failed in the treatment arm: 16 timeout"
    ]
    assert watch.look(4, served=1031, copies=1031, failed=17) == []
    assert watch.look(60, served=1031, copies=1031, failed=17) == []  # no traffic shows nothing
    assert watch.look(61, served=1131, copies=1131, failed=17) == []  # over
    assert watch.look(75, served=1131, copies=1131, failed=17) == []
    assert len(watch.look(76, served=1151, copies=1151, failed=37)) == 1


def test_a_budget_is_reported_once_until_copies_are_sent_again(tmp_path: Path, webhook: Webhook) -> None:
    watch = Watch(tmp_path, webhook.url)
    watch.look(0, copies=10)
    assert watch.look(1, copies=10, shed=3) == ["the budget of $5.00 of copies has no room: requests are not copied"]
    assert watch.look(2, copies=10, shed=9) == []
    assert watch.look(20, copies=10, shed=9) == []
    assert watch.look(31, copies=15, shed=9) == []
    assert len(watch.look(32, copies=15, shed=10)) == 1


def test_a_canary_that_was_rolled_back_is_reported_with_its_reason(tmp_path: Path, webhook: Webhook) -> None:
    watch = Watch(tmp_path, webhook.url, mode="canary")
    path = watch.workspace.data / "canary" / "shop.jsonl"
    path.parent.mkdir(parents=True)

    def append(seq: int, who: str, status: CanaryStatus, why: str) -> None:
        event = CanaryEvent(seq=seq, at=T0, who=who, action="rollback", why=why, state=CanaryState(status=status))
        with path.open("ab") as file:
            file.write(render_event(event))

    assert watch.look(0) == []
    append(1, "controller", CanaryStatus.RUNNING, "begins")
    assert watch.look(1) == []
    append(2, "controller", CanaryStatus.ROLLED_BACK, "error_rate: 9 % > 2 %")
    assert watch.look(2) == ["the canary was rolled back: error_rate: 9 % > 2 %"]
    assert watch.look(3) == []
    append(3, "ann", CanaryStatus.ROLLED_BACK, "again")  # by a person, who knows
    assert watch.look(4) == []
    append(4, "controller", CanaryStatus.ROLLED_BACK, "p99")
    assert watch.look(5) == ["the canary was rolled back: p99"]


def test_what_was_not_taken_is_sent_at_a_later_look(
    tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalpipe.workspace.alerts._PAUSE_S", 0.01)
    watch = Watch(tmp_path, webhook.url)
    webhook.status = 503
    watch.alerts.look(samples(copies=10))
    new, problem = watch.alerts.look(samples(copies=10, shed=1))
    assert len(new) == 1 and problem is not None and problem.endswith("it is tried again")
    webhook.status = 200
    assert watch.look(1, copies=10, shed=1) == []
    assert webhook.kinds() == ["budget_used_up"]
