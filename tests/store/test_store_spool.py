"""Loading the spool: records joined by request, whoever died when; each request one row an arm, nothing lost, nothing twice."""

from __future__ import annotations

import base64
import fcntl
import gzip
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spool_builders import T0, copy, request, served, shadow, write_segment

from evalpipe.errors import DataError
from evalpipe.identity import hash_unit
from evalpipe.providers.pricing import Price
from evalpipe.spool import segments as spool_segments
from evalpipe.spool.checkpoint import STATE_FILE, TREATMENT_LOCK
from evalpipe.spool.format import Body, FeedbackRecord, Record, render_record
from evalpipe.spool.join import LOST, STOPPED, Source, SpoolJoin
from evalpipe.spool.segments import EMPTY_AFTER_S, list_segments
from evalpipe.store import load as store_load
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.load import LoadSummary, SpoolLoad
from evalpipe.store.query import open_store
from evalpipe.workspace.load import load as load_paths
from evalpipe.workspace.paths import Workspace

NOW = T0 + 60


def load(root: Path, now: float = NOW, processes: int = 1, **rules: Any) -> LoadSummary:
    load = SpoolLoad(root / "data", root / "spool", rules=ReadingRules(**rules), now=now, processes=processes)
    return load.run()


def rows(root: Path, query: str) -> list[tuple[Any, ...]]:
    with open_store(root / "data") as store:
        return store.connection.sql(query).fetchall()


def segments(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "spool").glob("*.jsonl"))


@contextmanager
def living(path: Path) -> Iterator[None]:
    """Hold the segment's lock, as its writer does."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def test_a_request_and_its_copy_become_two_rows(tmp_path: Path) -> None:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Why?"}], "user": "ann"}
    write_segment(tmp_path / "spool", "served-1.000001", [request("r1", body=body), served("r1", text="Because.")])
    write_segment(tmp_path / "spool", "shadow-1.000001", [shadow("r1"), copy("r1", at=T0 + 0.5, latency_ms=1200.0)])
    summary = load(
        tmp_path,
        unit_sources=["header:x-user-id", "body:user"],
        unit_key=b"key",
        prices={"gpt-4o": Price(input=2.5, output=10.0), "claude-haiku-4-5": Price(input=1.0, output=5.0)},
    )
    assert (summary.n_exchanges, summary.n_segments_deleted, segments(tmp_path)) == (2, 2, [])
    got = rows(
        tmp_path,
        "SELECT arm, role, unit_id, started_at, provider, endpoint, model_requested, model, text, outcome, status, latency_ms, "
        "input_tokens, output_tokens, cost_usd, prompt, finish_reason, shadow_status, simulated, streamed "
        "FROM exchanges ORDER BY arm",
    )
    unit = hash_unit(b"key", "ann")
    # cost: 1000 input and 100 output tokens at 2.5 and 10 USD per million; 900 and 120 at 1 and 5
    assert got == [
        ("control", "served", unit, datetime.fromtimestamp(T0, UTC), "openai", "chat.completions", "gpt-4o",
         "gpt-4o-2024-08-06", "Because.", "ok", 200, 800.0, 1000, 100, pytest.approx(0.0035), "Why?", "stop", "sampled", False,
         False),
        ("treatment", "shadow", unit, datetime.fromtimestamp(T0 + 0.5, UTC), "anthropic", "messages", "gpt-4o",
         "claude-haiku-4-5", "A copy's answer", "ok", 200, 1200.0, 900, 120, pytest.approx(0.0015), "Why?", "end_turn", None,
         False, False),
    ]  # fmt: skip


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_the_order_of_the_records_does_not_matter(tmp_path: Path, order: tuple[int, ...]) -> None:
    records: list[Record] = [request("r1"), served("r1"), shadow("r1"), copy("r1")]
    for n, i in enumerate(order):
        write_segment(tmp_path / "spool", f"w{n}-{i}.000001", [records[i]])
    load(tmp_path)
    assert rows(tmp_path, "SELECT arm, outcome, shadow_status FROM exchanges ORDER BY arm") == [
        ("control", "ok", "sampled"),
        ("treatment", "ok", None),
    ]


def test_what_a_living_writer_has_not_finished_waits(tmp_path: Path) -> None:
    path = write_segment(
        tmp_path / "spool", "served-1.000001", [request("r1", eligible=False), served("r1"), request("r2")]
    )
    with living(path):
        summary = load(tmp_path)
        assert (summary.n_exchanges, summary.n_waiting, segments(tmp_path)) == (1, 1, ["served-1.000001.jsonl"])
        with path.open("ab") as file:
            file.write(render_record(served("r2")))
            file.write(render_record(shadow("r2", "not_sampled"))[:20])  # still being written
        summary = load(tmp_path)
        assert (summary.n_exchanges, summary.n_waiting, summary.n_rejected) == (0, 1, 0)
        with path.open("ab") as file:
            file.write(render_record(shadow("r2", "not_sampled"))[20:])
        assert load(tmp_path).n_exchanges == 1
        assert segments(tmp_path) == ["served-1.000001.jsonl"]
    load(tmp_path)
    assert segments(tmp_path) == []
    assert rows(tmp_path, "SELECT request_id, outcome FROM exchanges ORDER BY 1") == [("r1", "ok"), ("r2", "ok")]


def test_what_a_dead_writer_did_not_finish_is_a_row_in_no_metric(tmp_path: Path) -> None:
    write_segment(
        tmp_path / "spool", "served-1.000001", [request("r1"), request("r2"), served("r2"), request("r3"), served("r3")]
    )
    write_segment(tmp_path / "spool", "shadow-1.000001", [shadow("r1"), copy("r1"), shadow("r2")])
    summary = load(tmp_path)
    assert (summary.n_stopped, summary.n_waiting, segments(tmp_path)) == (3, 0, [])
    got = rows(
        tmp_path,
        "SELECT request_id, arm, outcome, error_type, shadow_status, shadow_reason FROM exchanges ORDER BY 1, 2",
    )
    assert got == [
        ("r1", "control", "client_closed", "collector_stopped", "sampled", None),
        ("r1", "treatment", "ok", None, None, None),
        ("r2", "control", "ok", None, "sampled", None),
        ("r2", "treatment", "client_closed", "collector_stopped", None, None),
        ("r3", "control", "ok", None, "shed", "collector_stopped"),
    ]


def test_a_writer_that_went_on_in_a_newer_segment_lives(tmp_path: Path) -> None:
    write_segment(tmp_path / "spool", "served-1.000001", [request("r1", eligible=False)])
    with living(write_segment(tmp_path / "spool", "served-1.000002", [])):
        assert load(tmp_path).n_waiting == 1
        assert segments(tmp_path) == ["served-1.000001.jsonl", "served-1.000002.jsonl"]
        write_segment(tmp_path / "spool", "served-1.000002", [served("r1")])
        load(tmp_path)
        assert segments(tmp_path) == ["served-1.000002.jsonl"]
    assert rows(tmp_path, "SELECT outcome FROM exchanges") == [("ok",)]


def test_a_writer_that_goes_on_in_a_newer_segment_during_the_look_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It locks the newer segment before it lets go of the old one, after the folder was listed."""
    old = write_segment(tmp_path, "served-1.000001", [request("r1")])
    look, stack = spool_segments.is_locked, ExitStack()

    def rotated_meanwhile(path: Path) -> bool | None:
        newer = tmp_path / "served-1.000002.jsonl"
        if not newer.exists():
            newer.touch()
            stack.enter_context(living(newer))
        return look(path)

    monkeypatch.setattr(spool_segments, "is_locked", rotated_meanwhile)
    with stack:
        assert {one.path.name: one.live for one in list_segments(tmp_path)} == {
            old.name: True, "served-1.000002.jsonl": True,
        }  # fmt: skip


def test_what_a_writer_wrote_last_before_it_ended_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes its last record and ends between the look at the size and the look at the lock."""
    path = write_segment(tmp_path, "served-1.000001", [request("r1")])
    look = spool_segments.is_locked
    last = render_record(served("r1"))

    def ended_meanwhile(path: Path) -> bool | None:
        if not path.read_bytes().endswith(last):
            with path.open("ab") as file:
                file.write(last)
        return look(path)

    monkeypatch.setattr(spool_segments, "is_locked", ended_meanwhile)
    (segment,) = list_segments(tmp_path)
    assert (segment.n_bytes, segment.live) == (path.stat().st_size, False)


def test_a_request_whose_copy_is_undecided_waits_only_while_somebody_lives(tmp_path: Path) -> None:
    write_segment(tmp_path / "spool", "served-1.000001", [request("r1"), served("r1")])
    with living(write_segment(tmp_path / "spool", "served-2.000001", [])):
        assert load(tmp_path).n_waiting == 1
    load(tmp_path)
    assert rows(tmp_path, "SELECT shadow_status FROM exchanges") == [("shed",)]


def test_decisions_stay_until_a_successor_has_heard_of_them(tmp_path: Path) -> None:
    """A killed treatment process's successor reads the living segment again: without them it would send the copy twice."""
    alive = write_segment(tmp_path / "spool", "served-1.000001", [request("r1"), served("r1")])
    dead = write_segment(tmp_path / "spool", "shadow-1.000001", [shadow("r1"), copy("r1")])
    with living(alive):
        assert load(tmp_path).n_exchanges == 2
        assert dead.exists()
        state = {"offsets": {dead.name: dead.stat().st_size - 1}}
        (tmp_path / "spool" / STATE_FILE).write_text(json.dumps(state))
        load(tmp_path)
        assert dead.exists()
        state["offsets"][dead.name] += 1
        (tmp_path / "spool" / STATE_FILE).write_text(json.dumps(state))
        load(tmp_path)
        assert not dead.exists() and alive.exists()
    load(tmp_path)
    assert not alive.exists()


def test_decisions_go_with_the_last_requests(tmp_path: Path) -> None:
    write_segment(tmp_path / "spool", "served-1.000001", [request("r1"), served("r1")])
    write_segment(tmp_path / "spool", "shadow-1.000001", [shadow("r1"), copy("r1")])
    assert load(tmp_path).n_segments_deleted == 2


@pytest.mark.parametrize("lives", [False, True])
def test_no_treatment_process_starts_while_what_a_stopped_collector_left_is_closed(tmp_path: Path, lives: bool) -> None:
    path = write_segment(tmp_path / "spool", "served-1.000001", [request("r1"), served("r1")])
    could_start = []

    def look(n_bytes: int) -> None:
        with (tmp_path / "spool" / TREATMENT_LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                could_start.append(True)
            except BlockingIOError:
                could_start.append(False)

    with living(path) if lives else nullcontext():
        SpoolLoad(tmp_path / "data", tmp_path / "spool", rules=ReadingRules(), now=NOW, progress=look).run()
    assert could_start and set(could_start) == {lives}
    look(0)
    assert could_start[-1]


def test_a_record_that_is_overdue_beyond_every_timeout_is_given_up(tmp_path: Path) -> None:
    path = write_segment(
        tmp_path / "spool", "served-1.000001", [request("r1"), served("r1"), request("r2", eligible=False)]
    )
    with living(path):
        assert load(tmp_path, now=T0 + 3599).n_waiting == 2
        summary = load(tmp_path, now=T0 + 3601)
        assert (summary.n_stopped, summary.n_waiting) == (2, 0)
    got = rows(
        tmp_path, "SELECT request_id, outcome, error_type, shadow_status, shadow_reason FROM exchanges ORDER BY 1"
    )
    assert got == [("r1", "ok", None, "shed", "record_lost"), ("r2", "client_closed", "record_lost", None, None)]


def test_a_request_is_overdue_by_its_first_record(tmp_path: Path) -> None:
    path = write_segment(tmp_path / "spool", "served-1.000001", [request("r"), served("r"), shadow("r", at=T0 + 3000)])
    with living(path):
        assert load(tmp_path, now=T0 + 3599).n_waiting == 1
        assert load(tmp_path, now=T0 + 3901).n_stopped == 1


def test_of_two_records_of_one_kind_the_first_stays(tmp_path: Path) -> None:
    write_segment(
        tmp_path / "spool",
        "served-1.000001",
        [served("r", text="one"), served("r", text="two"), request("r")],
    )
    write_segment(
        tmp_path / "spool",
        "shadow-1.000001",
        [copy("r", text="one"), copy("r", text="two"), shadow("r", at=T0 + 1)],
    )
    load(tmp_path)
    assert rows(tmp_path, "SELECT role, text FROM exchanges ORDER BY 1") == [("served", "one"), ("shadow", "one")]


def test_an_empty_segment_that_may_be_about_to_be_locked_stays(tmp_path: Path) -> None:
    path = write_segment(tmp_path / "spool", "served-1.000001", [])
    load(tmp_path)
    assert path.exists()
    os.utime(path, (path.stat().st_mtime - EMPTY_AFTER_S - 1,) * 2)
    load(tmp_path)
    assert not path.exists()


def test_a_segment_that_grew_after_it_was_listed_is_not_deleted(tmp_path: Path) -> None:
    path = write_segment(tmp_path / "spool", "served-1.000001", [request("r1", eligible=False), served("r1")])

    def grow(n_bytes: int) -> None:
        with path.open("ab") as file:
            file.write(b"\n")

    SpoolLoad(tmp_path / "data", tmp_path / "spool", rules=ReadingRules(), now=NOW, progress=grow).run()
    assert path.exists()
    assert load(tmp_path).n_known == 1
    assert not path.exists()


def test_broken_lines_are_put_aside_with_file_and_line(tmp_path: Path) -> None:
    lines: list[Record | bytes] = [
        request("r1", eligible=False),
        b"{broken\n",
        b'{"record":"poem","request_id":"x"}\n',
        b"\xff\xfe\n",
        render_record(request("r2", arm="left")),
        render_record(request("r3", experiment="../../etc")),
        render_record(request("r4", at=1e300)),
        b"[" * 50_000 + b"\n",
        served("r1"),
        served("ghost"),
        b'{"record":"request","request_id":"cut off',
    ]
    path = write_segment(tmp_path / "spool", "served-1.000001", lines)
    summary = load(tmp_path)
    assert (summary.n_exchanges, summary.n_rejected, segments(tmp_path)) == (1, 9, [])
    entries = [json.loads(line) for line in Path(summary.rejected[0]).read_text().splitlines()]
    assert {entry["file"] for entry in entries} == {str(path)}
    assert sorted(entry["line"] for entry in entries) == [2, 3, 4, 5, 6, 7, 8, 10, 11]
    by_line = {entry["line"]: entry for entry in entries}
    assert base64.b64decode(by_line[4]["base64"]) == b"\xff\xfe"
    assert "left" in by_line[5]["reason"]
    assert "no request record" in by_line[10]["reason"]
    assert {path.name for path in (tmp_path / "data" / "exchanges").iterdir()} == {".lock", "experiment=exp"}


def test_each_rating_of_a_request_is_kept(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"request_id": "r1", "experiment": "exp", "arm": "control", "comment": None}
    ratings: list[Record] = [FeedbackRecord(rating=n / 2, at=T0 + n, **facts) for n in range(3)]
    write_segment(tmp_path / "spool", "served-1.000001", [request("r1", eligible=False), served("r1"), *ratings])
    load(tmp_path)
    assert rows(tmp_path, 'SELECT rating FROM feedback ORDER BY "at"') == [(0.0,), (0.5,), (1.0,)]


def test_loading_a_copied_segment_again_adds_nothing(tmp_path: Path) -> None:
    records: list[Record] = [request("r1"), served("r1"), shadow("r1"), copy("r1")]
    rating = FeedbackRecord(request_id="r1", experiment="exp", arm="control", rating=1.0, at=T0, comment="good")
    for _ in range(2):
        write_segment(tmp_path / "spool", "served-1.000001", [*records, rating])
        write_segment(tmp_path / "spool", "served-1.000002", [*records, rating])
        load(tmp_path)
    assert rows(tmp_path, "SELECT count(*) FROM exchanges") == [(2,)]
    assert rows(tmp_path, "SELECT arm, rating, comment FROM feedback") == [("control", 1.0, "good")]
    assert segments(tmp_path) == []


@pytest.mark.parametrize("commit_entries", [1, 7, 1_000_000])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_request_that_comes_again_in_one_load_is_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit_entries: int, processes: int
) -> None:
    """Copies of a segment under other numbers, and files that are put in place in the middle of a load or at its end."""
    monkeypatch.setattr(store_load, "COMMIT_ENTRIES", commit_entries)
    names = [f"r{n}" for n in range(20)]
    for copied in range(3):
        at = {name: T0 + n for n, name in enumerate(names)}
        write_segment(
            tmp_path / "spool",
            f"served-1.{copied + 1:06d}",
            [r for name in names for r in (request(name, at=at[name], eligible=False), served(name, at=at[name]))],
        )
    summary = load(tmp_path, processes=processes)
    assert (summary.n_exchanges, summary.n_known, summary.n_rejected) == (20, 40, 0)
    got = rows(tmp_path, "SELECT request_id, outcome FROM exchanges ORDER BY started_at")
    assert got == [(name, "ok") for name in names]
    assert segments(tmp_path) == []


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs=st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=5), hours=st.sampled_from([0.001, 5]))
def test_in_whatever_order_logs_come_back_each_request_is_stored_once(
    tmp_path_factory: pytest.TempPathFactory, logs: list[set[int]], hours: float
) -> None:
    """Of one day or of several, older ones after newer ones, with requests that are stored beside ones that are not."""
    root = tmp_path_factory.mktemp("again")
    for n, numbers in enumerate(logs):
        at = {i: T0 + 3600 * hours * i for i in sorted(numbers)}
        served_log = [r for i, t in at.items() for r in (request(f"r{i}", at=t), served(f"r{i}", at=t))]
        shadow_log = [r for i, t in at.items() for r in (shadow(f"r{i}", at=t), copy(f"r{i}", at=t + 0.25))]
        write_segment(root / "spool", f"served-{n}.000001", served_log)
        write_segment(root / "spool", f"shadow-{n}.000001", shadow_log)
        load(root, now=T0 + 3600 * hours * 10)
        expected = sorted(
            {(f"r{i}", arm, "ok") for i in set().union(*logs[: n + 1]) for arm in ("control", "treatment")}
        )
        assert rows(root, "SELECT request_id, arm, outcome FROM exchanges ORDER BY ALL") == expected
        assert segments(root) == []


def test_a_load_that_died_after_writing_is_finished_by_the_next(tmp_path: Path) -> None:
    parts: list[list[Record]] = [[request("r1"), served("r1")], [shadow("r1"), copy("r1")]]
    for kept in (0, 1):  # the load died between the two deletions
        for n, records in enumerate(parts):
            write_segment(tmp_path / "spool", f"w{n}.000001", records)
        load(tmp_path)
        write_segment(tmp_path / "spool", f"w{kept}.000001", parts[kept])
        summary = load(tmp_path)
        assert (summary.n_exchanges, summary.n_rejected, summary.n_stopped, segments(tmp_path)) == (0, 0, 0, [])
    assert rows(tmp_path, "SELECT shadow_status, outcome FROM exchanges ORDER BY arm") == [
        ("sampled", "ok"),
        (None, "ok"),
    ]


def test_a_timeout_counts_as_its_limit(tmp_path: Path) -> None:
    late = served(
        "r1", body=b"", ended="timeout", status=504, error_type="timeout", timeout_ms=600_000.0, latency_ms=600_004.0
    )
    write_segment(tmp_path / "spool", "served-1.000001", [request("r1", eligible=False), late])
    load(tmp_path)
    got = rows(tmp_path, "SELECT outcome, status, error_type, latency_ms, text, cost_usd FROM exchanges")
    assert got == [("timeout", 504, "timeout", 600_000.0, None, None)]


def test_time_to_first_token_is_when_the_first_content_was_there(tmp_path: Path) -> None:
    def chunk(**delta: str) -> bytes:
        document = {
            "id": "c",
            "object": "chat.completion.chunk",
            "model": "m",
            "choices": [{"index": 0, "delta": delta}],
        }
        return b"data: " + json.dumps(document).encode() + b"\n\n"

    first, second = chunk(role="assistant", content=""), chunk(content="Hello")
    end = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    marks = [(len(first), 100.0), (len(first + second), 250.0), (len(first + second + end), 400.0)]
    headers = {"content-type": "text/event-stream", "x-simulated-by": "evalpipe-sim"}
    record = served("r1", body=first + second + end, marks=marks, headers=headers)
    zipped = served("r2", body=gzip.compress(first + second + end), headers={**headers, "content-encoding": "gzip"})
    write_segment(
        tmp_path / "spool", "s.000001", [request("r1", eligible=False), record, request("r2", eligible=False), zipped]
    )
    load(tmp_path)
    got = rows(
        tmp_path, "SELECT text, ttft_ms, streamed, outcome, simulated, input_tokens FROM exchanges ORDER BY request_id"
    )
    assert got == [("Hello", 250.0, True, "ok", True, None), ("Hello", None, True, "ok", True, None)]


def test_who_the_unit_is(tmp_path: Path) -> None:
    def ask(**fields: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "Hi"}], **fields}

    records: list[Record] = []
    for n, fields in enumerate([{"unit_id": "hashed", "unit_source": "header:x-user-id"}, {"body": ask(user="ann")},
                                {"body": ask(metadata={"user_id": 7})}, {"body": ask()}, {"body": ask(user="")},
                                {"body": ask(), "conversation_id": "conv"}]):  # fmt: skip
        records += [request(f"r{n}", eligible=False, **fields), served(f"r{n}")]
    write_segment(tmp_path / "spool", "s.000001", records)
    load(tmp_path, unit_sources=["header:x-user-id", "body:user", "body:metadata.user_id"])
    units = [unit for (unit,) in rows(tmp_path, "SELECT unit_id FROM exchanges ORDER BY request_id")]
    assert units[:3] == ["hashed", "ann", "7"]
    assert units[3] == units[4] and len(units[3]) == 16  # the same opening words are one unit
    assert units[5] == "conv"


def test_hostile_bodies_are_stored_as_text(tmp_path: Path) -> None:
    hostile = [
        b'{"model":"\\ud800","messages":[{"role":"user","content":"\\udc00 \\u0000"}]}',
        b"\xff\x00 not json",
        b"",
        b"[" * 20_000,
        json.dumps({"messages": [{"role": "user", "content": "x" * 10_000_000}]}).encode(),
    ]
    records: list[Record] = []
    for n, body in enumerate(hostile):
        answer = b'{"choices":[{"index":0,"message":{"content":"\\ud83d <script>"},"finish_reason":"stop"}]}'
        records += [request(f"r{n}", eligible=False, body=body), served(f"r{n}", body=answer)]
    write_segment(tmp_path / "spool", "s.000001", records)
    summary = load(tmp_path)
    assert (summary.n_exchanges, summary.n_rejected) == (len(hostile), 0)
    assert {text for (text,) in rows(tmp_path, "SELECT text FROM exchanges")} == {"� <script>"}
    assert rows(tmp_path, "SELECT max(length(prompt)) FROM exchanges") == [(10_000_000,)]


def test_several_processes_give_the_same_rows(tmp_path: Path) -> None:
    query = "SELECT * EXCLUDE (meta) FROM exchanges ORDER BY request_id, arm"
    got = []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        names = [f"r{n}" for n in range(50)]
        write_segment(root / "spool", "served-1.000001", [r for name in names for r in (request(name), served(name))])
        write_segment(root / "spool", "shadow-1.000001", [r for name in names for r in (shadow(name), copy(name))])
        assert load(root, processes=processes).n_exchanges == 100
        got.append(rows(root, query))
    assert got[0] == got[1]


def test_repeated_attempts_are_joined_by_several_processes_too(tmp_path: Path) -> None:
    """An SDK's second attempt is the request; the first one, and the shadow request made of it, count as its own."""
    repeated = {"x-stainless-retry-count": "1"}
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "the same"}]}
    records: list[Record | bytes] = [
        request("first", at=T0, body=body),
        served("first", at=T0, status=500, body=b'{"error": {"message": "busy"}}'),
        request("second", at=T0 + 1, body=body, headers=repeated, eligible=False),
        served("second", at=T0 + 1),
    ]
    # Enough for several batches: those that wait for another process, and those that are parsed meanwhile.
    others = [record for n in range(9000) for record in (request(f"r{n}", eligible=False), served(f"r{n}"))]
    for processes in (1, 2):
        root = tmp_path / str(processes)
        write_segment(root / "spool", "served-1.000001", [*records, *others])
        write_segment(root / "spool", "shadow-1.000001", [shadow("first"), copy("first")])
        assert load(root, processes=processes).n_exchanges == 9004
        query = (
            "SELECT request_id, arm, forced, shadow_status, CAST(meta->'$.earlier_attempts' AS VARCHAR) FROM exchanges "
            "WHERE request_id IN ('first', 'second') ORDER BY request_id, arm"
        )
        assert rows(root, query) == [
            ("first", "control", True, "sampled", None),
            ("first", "treatment", True, None, None),
            ("second", "control", False, "sampled", '["first"]'),
            ("second", "treatment", False, None, '["first"]'),
        ]
        assert rows(root, "SELECT count(DISTINCT request_id) FROM exchanges") == [(9002,)]


PLAN = st.lists(
    st.tuples(
        st.sampled_from(["served", "served+copy", "not_sampled", "undecided", "unanswered", "copy_lost"]),
        st.integers(0, 2),  # the worker
        st.integers(0, 5),  # records written between this request and its answers
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=PLAN, cuts=st.lists(st.integers(1, 10), max_size=4), rotate=st.integers(1, 6))
def test_however_records_and_loads_interleave_each_request_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[str, int, int]], cuts: list[int], rotate: int
) -> None:
    root = tmp_path_factory.mktemp("interleaved")
    events: list[tuple[int, int, str, Record]] = []  # (position, tie, writer, record)
    expected = set()
    for n, (fate, worker, delay) in enumerate(plan):
        name, at, writer = f"r{n}", T0 + n, f"served-{worker}"
        events.append((2 * n, n, writer, request(name, at=at, eligible=fate != "served")))
        if fate != "unanswered":
            events.append((2 * n + 1 + delay, n, writer, served(name, at=at)))
        if fate in {"served+copy", "copy_lost", "unanswered"}:
            events.append((2 * n + 1 + delay, n, "shadow-0", shadow(name, at=at)))
        if fate in {"served+copy", "unanswered"}:
            events.append((2 * n + 2 + 2 * delay, n, "shadow-0", copy(name, at=at)))
        if fate == "not_sampled":
            events.append((2 * n + 1 + delay, n, "shadow-0", shadow(name, "not_sampled", at=at)))
        status = {"served": None, "not_sampled": "not_sampled", "undecided": "shed"}.get(fate, "sampled")
        expected.add((name, "control", "client_closed" if fate == "unanswered" else "ok", status))
        if status == "sampled":
            expected.add((name, "treatment", "client_closed" if fate == "copy_lost" else "ok", None))
    events.sort(key=lambda event: event[:2])

    spool = root / "spool"
    spool.mkdir()
    handles: dict[str, tuple[int, int, int]] = {}  # writer → (descriptor, segment number, records in it)
    stops = set(itertools.accumulate(cuts))
    for n, (_, _, writer, record) in enumerate(events):
        handle, number, n_records = handles.get(writer, (-1, 0, rotate))
        if n_records == rotate:
            new = os.open(spool / f"{writer}.{number + 1:06d}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            fcntl.flock(new, fcntl.LOCK_EX)
            if handle >= 0:
                os.close(handle)
            handle, number, n_records = new, number + 1, 0
        os.write(handle, render_record(record))
        handles[writer] = handle, number, n_records + 1
        if n in stops:
            load(root)
    for handle, _, _ in handles.values():
        os.close(handle)
    summary = load(root)

    assert (summary.n_waiting, summary.n_rejected, segments(root)) == (0, 0, [])
    got = rows(root, "SELECT request_id, arm, outcome, shadow_status FROM exchanges")
    assert len(got) == len(expected)
    assert set(got) == expected


def test_the_living_are_told_from_the_dead(tmp_path: Path) -> None:
    for name in ("a.000001", "a.000002", "b.000001", "odd"):
        write_segment(tmp_path, name, [request("r")])
    with living(tmp_path / "a.000002.jsonl"):
        found = {
            segment.path.name: (segment.writer, segment.live, segment.locked) for segment in list_segments(tmp_path)
        }
    assert found == {
        "a.000001.jsonl": ("a", True, False),
        "a.000002.jsonl": ("a", True, True),
        "b.000001.jsonl": ("b", False, False),
        "odd.jsonl": ("odd", False, False),
    }


def test_what_has_no_column_is_in_meta(tmp_path: Path) -> None:
    cut = served("r1")
    cut = msgspec.structs.replace(cut, body=Body(text='{"choices":[', n_dropped_bytes=99))
    write_segment(tmp_path / "spool", "s.000001", [request("r1", eligible=False, target="/v1/chat/completions"), cut])
    load(tmp_path)
    meta = json.loads(rows(tmp_path, "SELECT meta FROM exchanges")[0][0])
    assert (meta["ended"], meta["target"], meta["unit_source"]) == ("complete", "/v1/chat/completions", "conversation")
    assert meta["n_response_bytes_dropped"] == 99


def test_a_packed_log_that_is_named_is_read_and_kept(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    lines = b"".join(render_record(record) for record in (request("r1", eligible=False), served("r1")))
    packed = tmp_path / "old.jsonl.gz"
    packed.write_bytes(gzip.compress(lines))
    assert load_paths(workspace, [packed]).n_exchanges == 1
    assert load_paths(workspace, [packed]).n_exchanges == 0
    assert packed.exists()
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(lines * 2000)[:-20])
    with pytest.raises(DataError, match="cannot read"):
        load_paths(workspace, [cut])


def test_the_segments_of_a_named_folder_are_one_spool(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    write_segment(tmp_path / "backup", "served-1.000001", [request("r1"), served("r1")])
    write_segment(tmp_path / "backup", "shadow-1.000001", [shadow("r1"), copy("r1")])
    assert load_paths(workspace, [tmp_path / "backup"]).n_exchanges == 2
    assert len(list((tmp_path / "backup").iterdir())) == 2


def test_an_answer_longer_than_the_log_keeps_is_no_failure_of_the_arm(tmp_path: Path) -> None:
    """The client got it whole; the log holds its beginning and says how much is not in it."""
    whole = b'data: {"choices": [{"index": 0, "delta": {"content": "word "}}]}\n\n' * 3
    record = served("r1", headers={"content-type": "text/event-stream"})
    record = msgspec.structs.replace(record, body=Body.of(whole[:-20], n_dropped_bytes=1_000_000))
    write_segment(tmp_path / "spool", "served-1.000001", [request("r1", eligible=False), record])
    load(tmp_path)
    assert rows(tmp_path, "SELECT outcome, text, output_tokens, error_type, error_message FROM exchanges") == [
        (
            "ok",
            "word word ",
            None,
            "not_kept_whole",
            "the answer is longer than the log keeps: 1,000,000 bytes are not in it",
        )
    ]


def from_writer(name: str) -> Source:
    return Source(segment=0, writer=name, line=1, data=b"", at=T0)


@pytest.mark.parametrize(("live", "waits"), [({"served-9"}, True), (set(), False)])
def test_an_answer_without_its_request_waits_as_long_as_anybody_may_hold_it(live: set[str], waits: bool) -> None:
    join = SpoolJoin(live=frozenset(live), open_limit_s=100)
    assert join.add(served("r"), from_writer("served-1")) is None
    ((entry, waiting),) = join.leftovers()
    assert (waiting, entry.lost_reason) == (waits, None if waits else STOPPED)


@pytest.mark.parametrize(("writer", "reason"), [("served-1", STOPPED), ("served-9", LOST)])
def test_what_never_came_is_lost_by_its_writers_end_or_by_nobody_knows_what(writer: str, reason: str) -> None:
    join = SpoolJoin(live=frozenset({"served-9"}), open_limit_s=100)
    assert join.add(request("r", at=T0, eligible=False), from_writer(writer)) is None
    (entry,) = join.expire(T0 + 101)
    assert entry.lost_reason == reason
