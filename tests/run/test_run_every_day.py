"""`evalpipe run`: the steps of one job, its lock, the limit of a day, alerts to a webhook."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_provider import FakeProvider, longer_wins
from spool_builders import T0, copy, request, served, shadow, write_segment
from test_judging_run import FAST, pairs, rows, workspace
from warm_start import evalpipe_program

from evalpipe.errors import ConfigError, WorkspaceBusyError
from evalpipe.spool.format import Record
from evalpipe.workspace import judge_setup
from evalpipe.workspace.alerts import lasting_alerts, send_new
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.run import JobResult, RunOptions, alert, run_every, run_job

QUIET = RunOptions(show_progress=False)
CALL_USD = 100 * 1e-6 + 50 * 5e-6  # 100 input and 50 output tokens at 1 and 5 dollars a million


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalpipe.calls.runner.BACKOFF_S", 0.001)
    monkeypatch.setattr("evalpipe.workspace.alerts._PAUSE_S", 0.01)


def statuses(result: JobResult) -> dict[str, str]:
    return {step.name: step.status for step in result.steps}


def evalpipe(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [evalpipe_program(), *words], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


def test_one_job_judges_reports_and_decides_and_a_second_asks_nothing(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(6))
        first = run_job(found, QUIET)
        assert statuses(first) == {"load": "nothing_to_do", "judge": "done", "report": "done", "gate": "done"}
        assert len(provider.calls) == 12
        page = json.loads((tmp_path / "reports" / "t.json").read_bytes())
        kept = json.loads((found.data / "verdict.json").read_bytes())
        assert first.verdict is not None and kept["recommendation"] == page["decision"]["recommendation"]
        second = run_job(found, QUIET)
        assert len(provider.calls) == 12 and not second.is_changed and second.exit_code(gate=False) == 0
        assert second.exit_code(gate=True) == {"ship": 0, "keep": 10, "collect_more": 11}[kept["recommendation"]]


def test_nothing_collected_yet_is_collect_more_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "evalpipe.toml").write_text('[experiment]\nname = "t"\n')
    done = evalpipe(tmp_path, "run", "--gate", "--json")
    assert done.returncode == 11, done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"]["recommendation"] == "collect_more" and document["report"] is None
    assert {step["status"] for step in document["steps"]} == {"nothing_to_do", "done"}


def test_a_judge_that_cannot_be_reached_fails_its_step_and_the_report_is_written(tmp_path: Path) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", pairs(3))
    result = run_job(found, QUIET)
    assert statuses(result) == {"load": "nothing_to_do", "judge": "failed", "report": "done", "gate": "done"}
    assert result.exit_code(gate=True) == 1
    assert "127.0.0.1:9" in str(result.failed[0].why)


def test_one_job_at_a_time(tmp_path: Path) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", pairs(1))
    handle = os.open(found.data / ".run.lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(handle, b"4711")
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(WorkspaceBusyError, match="process 4711"):
        run_job(found, QUIET)
    os.close(handle)
    assert run_job(found, QUIET).verdict is not None


def test_the_limit_of_a_day_holds_over_runs_and_ends_at_midnight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeProvider(longer_wins) as provider:
        settings = FAST + "concurrency = 1\nmax_usd_per_day = 0.02\n"
        found = workspace(tmp_path, provider.url, pairs(60), settings=settings)
        first = run_job(found, QUIET).judged[0]
        assert first.stopped == "budget" and "left for today" in str(first.message)
        n_first = len(provider.calls)
        assert 0 < n_first < 120 and n_first * CALL_USD <= 0.02
        run_job(found, QUIET)
        assert len(provider.calls) == n_first

        class Tomorrow(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + timedelta(days=1)

        monkeypatch.setattr(judge_setup, "datetime", Tomorrow)
        run_job(found, QUIET)
        assert n_first < len(provider.calls) <= 120
        assert rows(found, "SELECT sum(cost_usd) < 0.04 FROM judgments") == [(True,)]


def test_on_a_schedule_each_run_waits_for_the_rest_of_its_time() -> None:
    slept: list[float] = []
    ran: list[int] = []
    run_every(lambda: ran.append(1), 3600, sleep=slept.append, rounds=3)
    assert len(ran) == 3 and len(slept) == 2 and all(3590 < one <= 3600 for one in slept)


class Webhook:
    """A server that keeps what it is sent; `status`: what it answers."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        self.n_asked = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.n_asked += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hook.status == 200:
                    hook.got.append(json.loads(body))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    found = Webhook()
    yield found
    found.server.shutdown()


def decided_before(found: Workspace, recommendation: str) -> None:
    (found.data / "verdict.json").write_text(json.dumps({"experiment": "t", "recommendation": recommendation}))


def test_each_alert_is_sent_once_and_again_after_its_cause_was_gone(tmp_path: Path, webhook: Webhook) -> None:
    with FakeProvider(longer_wins) as provider:
        extra = f'[alerts]\nwebhook = "{webhook.url}"\n'
        found = workspace(tmp_path, "http://127.0.0.1:9", pairs(3), extra=extra)
        decided_before(found, "ship")
        for _ in range(2):
            alert(found, run_job(found, QUIET))
        assert [one["kind"] for one in webhook.got] == ["run_failed", "decision_changed"]
        changed = webhook.got[1]
        assert (changed["source"], changed["experiment"]) == ("evalpipe", "t")
        assert changed["text"].startswith("the decision changed from ship to invalid: ")
        broken = (tmp_path / "evalpipe.toml").read_text()
        mended = broken.replace("http://127.0.0.1:9", provider.url)
        for text in (mended, broken):
            (tmp_path / "evalpipe.toml").write_text(text)
            again = open_workspace(tmp_path / "evalpipe.toml")
            if text == broken:  # a new pair: the judge is asked once more, and cannot be reached
                workspace(tmp_path, "http://127.0.0.1:9", pairs(5), extra=extra)
            alert(again, run_job(again, QUIET))
        # mended: invalid → collect_more; broken again, with pairs without a verdict: → invalid
        kinds = ["run_failed", "decision_changed", "decision_changed", "run_failed", "decision_changed"]
        assert [one["kind"] for one in webhook.got] == kinds


def test_what_a_webhook_did_not_take_is_sent_by_the_next_run(tmp_path: Path, webhook: Webhook) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", pairs(3), extra=f'[alerts]\nwebhook = "{webhook.url}"\n')
    webhook.status = 503
    new, problem = alert(found, run_job(found, QUIET))
    assert (len(new) == 1 and "503" in str(problem)) or "Service Unavailable" in str(problem)
    assert webhook.n_asked == 3 and webhook.got == []
    webhook.status = 200
    new, problem = alert(found, run_job(found, QUIET))
    assert (new, problem) == ([], None) and [one["kind"] for one in webhook.got] == ["run_failed"]


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # Apprise's
def test_apprise_sends_to_its_own_addresses(tmp_path: Path, webhook: Webhook) -> None:
    pytest.importorskip("apprise")
    address = webhook.url.replace("http://", "json://")  # https://appriseit.com/services/json/
    extra = f'[alerts]\nwebhook = "{address}"\nform = "apprise"\n'
    found = workspace(tmp_path, "http://127.0.0.1:9", pairs(3), extra=extra)
    webhook.status = 503
    new, problem = alert(found, run_job(found, QUIET))
    assert (
        len(new) == 1 and problem is not None and "1 alert could not be sent" in problem and "127.0.0.1" not in problem
    )
    assert webhook.n_asked == 3 and webhook.got == []
    webhook.status = 200
    assert alert(found, run_job(found, QUIET)) == ([], None)
    (sent,) = webhook.got
    assert sent["title"] == "evalpipe, t" and sent["message"] == new[0].text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ('webhook = "mailto://me:word@example.com"', 'form = "apprise"'),
        ('webhook = "no address"', "alerts.webhook"),
        ('webhook = "nonsense://x"\nform = "apprise"', "no address that Apprise sends to"),
    ],
)
def test_an_address_that_alerts_cannot_go_to_is_refused_before_the_first_step(
    tmp_path: Path, settings: str, words: str
) -> None:
    pytest.importorskip("apprise")
    (tmp_path / "evalpipe.toml").write_text(f'[experiment]\nname = "t"\n[alerts]\n{settings}\n')
    done = subprocess.run([evalpipe_program(), "run"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and words in done.stderr and ":word" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "data").exists()


def test_silence_and_failing_copies_by_the_rows(tmp_path: Path, webhook: Webhook) -> None:
    """A log whose last request is long ago, and whose treatment failed in most of the last hour."""
    (tmp_path / "evalpipe.toml").write_text(
        '[experiment]\nname = "exp"\n[alerts]\nwebhook_env = "HOOK"\nform = "slack"\n'
        'on = ["nothing_collected", "copies_failing"]\nnothing_for_minutes = 30\n'
    )
    found = open_workspace(tmp_path / "evalpipe.toml")
    refused = json.dumps({"type": "error", "error": {"type": "api_error", "message": "boom <@everyone> & co"}}).encode()
    records: list[Record | bytes] = []
    for n in range(40):
        facts: dict[str, Any] = {"at": T0 + n, "status": 500, "body": refused}
        records += [request(f"r{n}", at=T0 + n), served(f"r{n}", at=T0 + n), shadow(f"r{n}"), copy(f"r{n}", **facts)]
    found.spool.mkdir(parents=True)
    write_segment(found.spool, "served-1.000001", records)
    last = datetime.fromtimestamp(T0 + 39, UTC)
    result = run_job(found, RunOptions(skips_judge=True, show_progress=False))
    with pytest.raises(ConfigError, match="HOOK is not set"):
        alert(found, result)
    os.environ["HOOK"] = webhook.url
    try:
        alert(found, result, now=last + timedelta(minutes=29))
        assert [one["text"].split(": ")[0] for one in webhook.got] == ["evalpipe, exp"]
        assert "40 of the last hour's 40 copies failed" in webhook.got[0]["text"]
        assert "&lt;@everyone&gt; &amp; co" in webhook.got[0]["text"]
        alert(found, result, now=last + timedelta(minutes=31))
        assert webhook.got[1]["text"] == f"evalpipe, exp: no request was collected since {last:%Y-%m-%d %H:%M} UTC"
        assert len(webhook.got) == 2
    finally:
        del os.environ["HOOK"]


def test_quiet_prints_only_what_is_news(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(4))
        assert evalpipe(tmp_path, "run", "--quiet").stdout == ""
        decided_before(found, "ship")
        loud = evalpipe(tmp_path, "run", "--quiet")
    assert loud.returncode == 0 and "the decision changed: ship before, " in loud.stdout
    assert datetime.now(UTC).strftime("t, %Y-%m-%d") in loud.stdout


def test_service_files_name_this_workspace_and_nothing_is_overwritten(tmp_path: Path) -> None:
    first = evalpipe(tmp_path, "init", "--name", "chat", "--service")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "service"
    names = ["compose.yaml", "crontab", "evalpipe-chat-run.service", "evalpipe-chat-run.timer", "evalpipe-chat.service"]
    assert sorted(path.name for path in folder.iterdir()) == names
    unit = (folder / "evalpipe-chat-run.service").read_text()
    assert f"WorkingDirectory={tmp_path.resolve()}\n" in unit and 'evalpipe" run\n' in unit
    assert yaml.safe_load((folder / "compose.yaml").read_text())["services"]["run"]["command"] == [
        "run",
        "--every",
        "24h",
    ]
    (folder / "crontab").write_text("mine\n")
    (folder / "compose.yaml").unlink()
    again = evalpipe(tmp_path, "init", "--service")
    assert (
        again.returncode == 0 and again.stdout.splitlines()[0] == f"wrote {tmp_path.resolve() / 'service/compose.yaml'}"
    )
    assert (folder / "crontab").read_text() == "mine\n"


def test_status_of_several_folders_counts_what_is_there(tmp_path: Path) -> None:
    one, other, empty = tmp_path / "one", tmp_path / "other", tmp_path / "empty"
    for folder in (one, other, empty):
        folder.mkdir()
    with FakeProvider(longer_wins) as provider:
        workspace(one, provider.url, [*pairs(4), *pairs(1, pair_id="x", response_b=None)])
        evalpipe(one, "run", "--quiet")
    (other / "evalpipe.toml").write_text('[experiment]\nname = "b"\nmode = "canary"\n')
    open_workspace(root=other).spool.mkdir(parents=True)
    segment = write_segment(open_workspace(root=other).spool, "served-1.000001", [request("r1"), served("r1")])
    with segment.open("rb") as writer:  # as a collector that is at work
        fcntl.flock(writer, fcntl.LOCK_EX)
        done = evalpipe(tmp_path, "status", "one", "other", "empty", "--json")
    assert done.returncode == 1  # for the empty one
    first, second, third = json.loads(done.stdout)["experiments"]
    assert [first[key] for key in ("experiment", "mode", "n_requests", "n_pairs", "n_judged")] == [
        "t",
        "shadow",
        5,
        4,
        4,
    ]
    assert first["judge_usd"] == pytest.approx(8 * CALL_USD)
    assert first["recommendation"] == "collect_more" and first["n_looks"] == 1 and not first["is_collecting"]
    assert (second["experiment"], second["mode"], second["is_collecting"]) == ("b", "canary", True)
    assert second["waiting_bytes"] == segment.stat().st_size and second["recommendation"] is None
    assert third["problem"] == "no evalpipe.toml and no data here"
    lines = evalpipe(one, "status").stdout.splitlines()
    assert [cell.strip() for cell in lines[0].split("┃")][:4] == ["experiment", "mode", "collects", "last request"]
    cells = [cell.strip() for cell in lines[2].split("│")]
    assert cells[:3] + cells[4:9] == ["t", "shadow", "no", "5", "4", "4", "$0.00", "collect_more"]
    assert lines[3].startswith("t: Collect more data: ")


def test_status_shows_controls_in_texts_and_breaks_no_line_of_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "evalpipe.toml").write_text('[experiment]\nname = "t"\n')
    (tmp_path / "data").mkdir()
    headline = f"[red]\x1b[31mnot a colour {'long ' * 60}end"
    (tmp_path / "data" / "verdict.json").write_text(json.dumps({"experiment": "t", "headline": headline}))
    lines = evalpipe(tmp_path, "status").stdout.splitlines()
    assert lines[3] == f"t: [red]\ufffd[31mnot a colour {'long ' * 60}end"


def test_what_the_collector_has_reported_is_not_reported_again(tmp_path: Path, webhook: Webhook) -> None:
    """The same silence: the collector's alert goes out while it begins, and the next morning's run is quiet about it."""
    (tmp_path / "evalpipe.toml").write_text(
        f'[experiment]\nname = "exp"\n[alerts]\nwebhook = "{webhook.url}"\non = ["nothing_collected"]\nnothing_for_minutes = 30\n'
    )
    found = open_workspace(tmp_path / "evalpipe.toml")
    found.spool.mkdir(parents=True)
    write_segment(found.spool, "served-1.000001", [request("r1"), served("r1")])
    result = run_job(found, RunOptions(skips_judge=True, show_progress=False))
    later = datetime.fromtimestamp(T0, UTC) + timedelta(hours=9)
    text = "no request was collected since 2026-05-28 20:26 UTC"
    assert len(send_new(found, "exp", {"nothing_collected": text}, reporter="collect", at=later)[0]) == 1
    assert alert(found, result, now=later) == ([], None)
    assert [one["text"] for one in webhook.got] == [text]
    assert lasting_alerts(found, "exp") == ({"nothing_collected": text}, 0)


def test_an_address_that_is_not_set_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        workspace(tmp_path, provider.url, pairs(3), extra='[alerts]\nwebhook_env = "NOT_SET_ANYWHERE"\n')
        for words in (["run"], ["run", "--every", "1h"]):
            done = evalpipe(tmp_path, *words)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr == "evalpipe: alerts.webhook_env: the environment variable NOT_SET_ANYWHERE is not set\n"
        assert provider.calls == []
    assert not (tmp_path / "reports" / "t.html").exists()
