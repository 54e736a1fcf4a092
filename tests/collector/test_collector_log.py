"""The log: a writer that neither raises nor waits, the start's line, the minute's line."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import msgspec

from evalpipe.collector.logs import JsonFormatter, LineWriter, TextFormatter
from evalpipe.collector.settings import ArmSettings, CollectorSettings, Secret
from evalpipe.collector.status import start_line, status_line

SETTINGS = CollectorSettings(
    experiment="x",
    control=ArmSettings(arm="control", provider="openai", base_url="https://user:secret@a.example/v1?key=secret"),
    treatment=ArmSettings(
        arm="treatment", provider="anthropic", base_url="https://b.example", model="m", api_key=Secret("sk-secret")
    ),
    spool="/s",
    data="/d",
    shadow_budget_usd=5.0,
)


def test_a_writer_whose_reader_does_not_read_drops_lines_and_does_not_wait() -> None:
    read, write = os.pipe()
    writer = LineWriter(write)
    began = time.monotonic()
    for _ in range(5000):
        writer.put(b"x" * 1000 + b"\n")  # 5 MB: the pipe takes 64 kB
    writer.flush(0.1)
    assert time.monotonic() - began < 5
    assert writer.n_dropped > 2000
    os.close(read)  # the writer's thread goes on, and finds the reader gone
    writer.flush(10)
    assert writer.n_dropped >= 4900
    os.close(write)


def test_lines_arrive_whole_and_in_order(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    writer = LineWriter(fd)
    for n in range(500):
        writer.put(b"%d\n" % n)
    writer.flush(10)
    os.close(fd)
    assert (tmp_path / "log").read_text().splitlines() == [str(n) for n in range(500)]


def record(message: str) -> logging.LogRecord:
    made = logging.LogRecord("evalpipe.x", logging.WARNING, "", 0, message, (), None)
    made.created = 1_700_000_000.25
    made.fields = {"request_id": "r1"}
    return made


def test_a_line_is_one_line_in_both_formats() -> None:
    hostile = record('a\nb\x1b[31m "c"')
    assert TextFormatter("serve").format(hostile) == ('2023-11-14T22:13:20.250Z WARNING serve: a | b\ufffd[31m "c"')
    assert json.loads(JsonFormatter("serve").format(hostile)) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "process": "serve",
        "logger": "evalpipe.x",
        "message": 'a | b\ufffd[31m "c"',
        "request_id": "r1",
    }


def test_the_first_line_names_arms_models_addresses_and_budget_and_no_secret() -> None:
    text, fields = start_line(SETTINGS, load_every_s=60)
    assert text == (
        "experiment 'x', mode shadow; control: openai https://a.example/v1, the client's model, the client's key; "
        "treatment: anthropic https://b.example, m, its own key; copies' budget: $5; spool /s; loaded every 60 s"
    )
    assert "secret" not in text + json.dumps(fields)


def test_the_minutes_line_has_what_changed() -> None:
    def requests(arm: str, role: str, outcome: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        labels = (("arm", arm), ("experiment", "x"), ("outcome", outcome), ("role", role))
        return "evalpipe_requests_total", labels

    before = {requests("control", "served", "ok"): 10.0, ("evalpipe_passed_through_total", ()): 1.0}
    now = {
        requests("control", "served", "ok"): 17.0,
        requests("control", "served", "http_error"): 2.0,
        requests("treatment", "shadow", "ok"): 5.0,
        requests("treatment", "shadow", "timeout"): 1.0,
        ("evalpipe_passed_through_total", ()): 4.0,
        ("evalpipe_spool_unloaded_bytes", ()): 2_500_000.0,
        ("evalpipe_cost_usd_total", (("arm", "treatment"), ("experiment", "x"), ("role", "shadow"))): 0.25,
    }
    found = status_line(SETTINGS, before, now)
    assert found is not None
    assert found[0] == (
        "9 requests; 5 pairs; failures: 2 control http_error, 1 copy timeout; 3 uncollected; spool 2.5 MB; "
        "copies cost $0.2500 so far here of $5"
    )
    assert found[1]["requests"] == {"control": 9}
    assert status_line(SETTINGS, now, now) is None

    for what, usd in (("spent", 1.93), ("left", 2.57)):
        now[f"evalpipe_shadow_budget_{what}_usd", (("experiment", "x"),)] = usd
    found = status_line(SETTINGS, before, now)
    assert found is not None
    assert found[0].endswith("copies cost $1.9300 so far of $5, $0.5000 more is reserved, $2.5700 left")
    found = status_line(msgspec.structs.replace(SETTINGS, objects_url="s3://b/p"), before, now)
    assert found is not None
    assert found[0].endswith(
        "copies cost $1.9300 so far of $5 over all replicas ($0.2500 here since the start), $0.5000 more is reserved, "
        "$2.5700 left"
    )
