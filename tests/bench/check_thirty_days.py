"""Thirty mornings of `evalpipe run` on generated traffic: a right history, nothing paid twice, sentences that read true.

    python tests/bench/check_thirty_days.py [--days 30] [--requests 40] [--keep FOLDER]

Each day's requests are written as a collector writes them, with that day's times, and the job runs with the clock of the next
morning. The treatment is changed on day 12 (another model, whose answers win more often), its provider fails on day 20, and
day 25 has no traffic. The judge is a provider on loopback that prefers the longer answer, so every verdict is known here.
Prints a line a day and exits 1 with the first thing that is not as it should be.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "judging"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "store"))

from fake_provider import FakeProvider, longer_wins
from spool_builders import copy, request, served, shadow, write_segment

from evalpipe.report.history import read_look
from evalpipe.spool.format import Record
from evalpipe.workspace.history import stored_looks
from evalpipe.workspace.paths import open_workspace
from evalpipe.workspace.run import RunOptions, alert, run_job
from evalpipe.workspace.status import status_of

BEGIN = datetime(2026, 9, 1, tzinfo=UTC)
CHANGED, FAILING, SILENT = 12, 20, 25
SHARE = {False: 0.45, True: 0.8}
"""of comparisons that the treatment wins: before, from the change on"""
CONFIG = """
[experiment]
name = "exp"
[arms.control]
provider = "openai"
model = "gpt-4o"
[arms.treatment]
provider = "anthropic"
model = "{model}"
[judge]
base_url = "{judge}"
requests_per_minute = 60000
input_tokens_per_minute = 100000000
output_tokens_per_minute = 100000000
[decision.metrics.error_rate]
margin = 0.3
[decision.metrics.empty_rate]
margin = 0.3
[decision.metrics.timeout_rate]
margin = 0.3
[alerts]
webhook = "{webhook}"
nothing_for_minutes = 1200
"""


MODELS = {False: "claude-haiku-4-5", True: "claude-sonnet-4-5"}


class Webhook:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def clock_at(now: datetime) -> Iterator[None]:
    """Every module of evalpipe that asks for the present gets `now`."""

    class Meta(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, datetime)

    class Clock(datetime, metaclass=Meta):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return now.astimezone(tz) if tz is not None else now.replace(tzinfo=None)

    changed = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("evalpipe.")
        and getattr(module, "datetime", None) is datetime
        and "datetime.now(" in inspect.getsource(module)
    ]
    for module in changed:
        module.datetime = Clock  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in changed:
            module.datetime = datetime  # type: ignore[attr-defined]


def control_answer(text: str, n_tokens: int) -> bytes:
    document = {
        "id": "c1",
        "object": "chat.completion",
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": n_tokens, "total_tokens": 1000 + n_tokens},
    }
    return json.dumps(document).encode()


def treatment_answer(text: str, n_tokens: int, model: str) -> bytes:
    document = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1000, "output_tokens": n_tokens},
    }
    return json.dumps(document).encode()


def day_of_traffic(day: int, n: int, chance: random.Random) -> tuple[list[Record | bytes], list[bool]]:
    """The records of a day, and which of its pairs the treatment wins."""
    records: list[Record | bytes] = []
    wins: list[bool] = []
    midnight = (BEGIN + timedelta(days=day - 1)).timestamp()
    failure = json.dumps({"type": "error", "error": {"type": "api_error", "message": "overloaded"}}).encode()
    for index in range(n):
        name, at = f"d{day}-{index}", midnight + 43_200 + 3600 * (index + 0.5) / n  # from noon to one
        treatment_wins = chance.random() < SHARE[day >= CHANGED]
        own, other = (
            ("short", f"a longer answer to {name}") if treatment_wins else (f"a longer answer to {name}", "short")
        )
        fingerprint = f"control-treatment{2 if day >= CHANGED else 1}"
        facts: dict[str, Any] = {"at": at + 2, "latency_ms": chance.uniform(500, 1100)}
        if day == FAILING:
            facts |= {"status": 500, "body": failure}
        else:
            facts |= {"body": treatment_answer(other, chance.randint(80, 160), MODELS[day >= CHANGED])}
            wins.append(treatment_wins)
        question = {
            "model": "gpt-4o",
            "user": f"u{day}-{index}",
            "messages": [{"role": "user", "content": f"Question {name}"}],
        }
        records += [
            request(name, at=at, body=question, config_fingerprint=fingerprint),
            served(
                name, at=at, body=control_answer(own, chance.randint(80, 160)), latency_ms=chance.uniform(500, 1100)
            ),
            shadow(name, at=at + 1),
            copy(name, **facts),
        ]
    return records, wins


class WrongError(Exception):
    """Something is not as it should be."""


def expect(is_so: bool, words: str) -> None:
    if not is_so:
        raise WrongError(words)


def check(folder: Path, n_days: int, n_requests: int) -> None:
    chance, wins = random.Random(7), []
    webhook = Webhook()
    seconds: list[float] = []
    recommendations: list[str] = []
    alerts: list[tuple[int, str]] = []
    with FakeProvider(longer_wins) as provider:
        for day in range(1, n_days + 1):
            model = MODELS[day >= CHANGED]
            (folder / "evalpipe.toml").write_text(CONFIG.format(model=model, judge=provider.url, webhook=webhook.url))
            workspace = open_workspace(folder / "evalpipe.toml")
            new: list[bool] = []
            if day != SILENT:
                records, new = day_of_traffic(day, n_requests, chance)
                write_segment(workspace.spool, f"served-1.{day:06d}", records)
            wins += new
            n_calls, n_alerts = len(provider.calls), len(webhook.got)
            morning = BEGIN + timedelta(days=day, hours=6)
            began = time.monotonic()
            with clock_at(morning):
                result = run_job(workspace, RunOptions(show_progress=False))
                _, problem = alert(workspace, result)
            seconds.append(time.monotonic() - began)
            expect(problem is None and not result.failed, f"day {day}: {problem} {result.failed}")
            expect(
                len(provider.calls) - n_calls == 2 * len(new),
                f"day {day}: {len(provider.calls) - n_calls} calls for {len(new)} new pairs",
            )
            assert result.verdict is not None
            recommendations.append(result.verdict["recommendation"])
            kinds = [one["kind"] for one in webhook.got[n_alerts:]]
            alerts += [(day, kind) for kind in kinds]
            print(
                f"{day:2d} {recommendations[-1]:12} {result.verdict['headline'].replace(chr(160), ' ')} {kinds or ''}"
            )
            n_new = n_requests  # a day without traffic is compared with the report before the last data, which it names
            _read_true(day, result.verdict["headline"], recommendations[-1], wins, n_new, result.report)
    _history(folder, n_days, recommendations)
    _alerts_right(alerts, recommendations, n_days)
    expect(status_of(workspace)[0].n_judged == len(wins), "status counts other verdicts")
    print(f"{len(provider.calls):,} calls for {len(wins):,} pairs, {len(alerts)} alerts {alerts}")
    print(
        f"a run: median {sorted(seconds)[len(seconds) // 2]:.2f} s, longest {max(seconds):.2f} s, all {sum(seconds):.1f} s"
    )


def _read_true(day: int, headline: str, recommendation: str, wins: list[bool], n_new: int, report: Any) -> None:
    """The numbers of a morning's sentences are those of the verdicts so far."""
    text = headline.replace("\u00a0", " ").replace("\u202f", " ")
    if "(numbers of look" in text:  # a decision that remains in force, with the numbers of its day
        text = re.sub(r"preferred in .*", "", text)
    count = re.search(r"of ([\d,]+) judged pairs", text)
    if count is not None:
        expect(int(count[1].replace(",", "")) == len(wins), f"day {day}: {text!r}, but {len(wins)} pairs are judged")
    share = re.search(r"preferred in ([\d.]+) % of", text)
    if share is not None:
        true = 100 * sum(wins) / len(wins)
        step = 10 ** -len(share[1].partition(".")[2])
        expect(abs(float(share[1]) - true) <= 0.5 * step + 1e-9, f"day {day}: {text!r}, but the share is {true:.2f} %")
    words = {"ship": "Ship", "keep": "Keep", "collect_more": "Collect more", "invalid": ""}[recommendation]
    expect(text.startswith(words), f"day {day}: {text!r} is no {recommendation}")
    since = report.since.replace("\u00a0", " ")
    if day == 1:
        expect(since == "", f"day 1: {since!r}")
    else:  # also those whose copy failed: they count in the error rate
        expect(f"+{n_new} pairs" in since, f"day {day}: {since!r}, but {n_new} pairs are new")


def _history(folder: Path, n_days: int, recommendations: list[str]) -> None:
    looks = stored_looks(folder / "reports" / "exp")
    days = [f"{one.at:%Y-%m-%d %H:%M}" for one in looks]
    wanted = [f"{BEGIN + timedelta(days=day, hours=6):%Y-%m-%d %H:%M}" for day in range(1, n_days + 1)]
    expect(days == wanted, f"the looks are of {days}")
    expect(all(one.html.is_file() for one in looks), "a day's page is missing")
    found = [read_look(one.json.read_bytes()).decision.recommendation for one in looks]
    expect(found == recommendations, f"the history holds {found}")
    page = (folder / "reports" / "exp" / "index.html").read_text("utf-8")
    expect(all(f'href="{one.html.name}"' in page for one in looks), "the history does not link each look")
    index = (folder / "reports" / "index.html").read_text("utf-8")
    last = f"{BEGIN + timedelta(days=n_days, hours=6):%-d %b %Y, %H:%M} UTC"
    expect(f"Last look {last}" in index, f"the index has another last look than {last}")


def _alerts_right(alerts: list[tuple[int, str]], recommendations: list[str], n_days: int) -> None:
    wanted = [
        (day + 1, "decision_changed") for day in range(1, n_days) if recommendations[day] != recommendations[day - 1]
    ]
    wanted += [
        (day, kind) for day, kind in ((FAILING, "copies_failing"), (SILENT, "nothing_collected")) if day <= n_days
    ]
    others = [one for one in alerts if one[1] not in {"setup_fault"}]
    expect(sorted(others) == sorted(wanted), f"alerts: {sorted(alerts)}, expected: {sorted(wanted)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="thirty-days-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        check(folder, options.days, options.requests)
    except WrongError as error:
        sys.exit(f"WRONG: {error}")
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
