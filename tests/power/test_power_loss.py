"""A power loss at any moment of real processes: what was reported as stored is there after it, or is finished by a restart.

EVALPIPE_POWER_STATES (`make check-power`: 2000) is the number of mixtures of what no sync covers that are tried for each
part, besides all prefixes; without it a few of both are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import power_checks as checks
import power_runs as runs
import pytest
from disk_replay import Recorder, Recording, promise, promise_for, shim, try_states
from fake_provider import FakeProvider, longer_wins
from spool_builders import T0, request, served, write_segment
from test_judging_settle import crashed
from test_store_retention import build, numbers

from evalpipe.calls.journal import Journal
from evalpipe.spool.format import FeedbackRecord
from evalpipe.workspace.judge_setup import journal_folder
from evalpipe.workspace.paths import open_workspace

FULL = int(os.environ.get("EVALPIPE_POWER_STATES", "0"))
pytestmark = pytest.mark.timeout(3000 if FULL else 900)


PARTS = ("spool", "stopped", "load", "journal", "batches", "judge", "canary", "records", "forget", "prune", "compact")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of states come and go in it."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="power-", dir=memory if os.access(memory, os.W_OK) else None)).resolve()
    (made / "w").mkdir()
    yield made / "w"
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def recordings(library: Path, folder: Path) -> dict[str, Recording]:
    """Every part's work, recorded in one process of its own: the imports take longer than the work."""
    roots = {part: folder / part for part in PARTS}
    for root in roots.values():
        root.mkdir()
        (root / "evalpipe.toml").write_text(runs.CONFIG)
    (roots["canary"] / "evalpipe.toml").write_text(runs.CANARY)
    before_records(roots["records"])
    for action in ("forget", "prune"):
        before_removal(roots[action])
    with pytest.MonkeyPatch.context() as patch, FakeProvider(longer_wins) as provider:
        patch.setenv("ANTHROPIC_API_KEY", "key")
        crashed(roots["judge"], provider.url)
        recorder = Recorder(library, folder)
        for root in roots.values():
            recorder.begin(root)
        calls = {
            part: f"removal({str(roots[part])!r}, {part!r})"
            if part in {"forget", "prune"}
            else f"{part}({str(roots[part])!r})"
            for part in PARTS
        }
        recorder.python(*((roots[part], calls[part]) for part in PARTS))
    return {part: recorder.done(root) for part, root in roots.items()}


def before_records(root: Path) -> None:
    """A log of four users that nothing has loaded yet."""
    written = [
        record
        for n in range(8)
        for record in (
            request(f"r{n}", at=T0 + n, unit_id=f"u{n % 4}", unit_source="header:x-user-id", eligible=False),
            served(f"r{n}", at=T0 + n),
        )
    ]
    write_segment(root / "data" / "spool", "served-1.000001", written)


def before_removal(root: Path) -> None:
    """A workspace with the words everywhere: rows, verdicts, ratings, a report, rejected lines, a journal, the log."""
    workspace = build(root)
    journal = Journal(journal_folder(workspace, "exp"))
    for n in range(2):
        journal.append(runs.judgment(f"alice-{n}", mark=runs.SECRET, request_id=f"alice-{n}"))
    journal.close()
    comment = FeedbackRecord(
        request_id="alice-0", experiment="exp", arm="control", rating=0.0, at=T0 + 9e4, comment=runs.SECRET
    )
    write_segment(workspace.spool, "served-9.000001", [comment])
    (root / "reports" / ".demo.html.4194399.tmp").write_text(runs.SECRET)  # of a writer that is gone


def hold(part: str, recording: Recording, check: Callable[[Path, list[Any]], None], *, n_quick: int) -> None:
    """Try the states; every one that breaks a promise fails the test."""
    assert recording.promises, "nothing was promised"
    tally = try_states(
        part,
        recording,
        check,
        n_prefixes=None if FULL else n_quick,
        n_random=FULL or n_quick,
    )
    print(tally)  # with -s: the figures
    shown = "\n".join(tally.failures[:12])
    assert not tally.failures, f"{tally}\n{shown}"


CASES = [
    # What was synced, or closed at the end of a collector, is loaded by the next load, once.
    ("spool", checks.check_spool, 12),
    ("stopped", checks.check_spool, 6),
    # A segment goes only when its rows are safe; a rejected line is put aside, no copy is sent twice.
    ("load", checks.check_load, 10),
    # What was booked, answered and synced is there, whatever was rotated and compacted.
    ("journal", checks.check_journal, 10),
    # A batch is known before its provider hears of it.
    ("batches", checks.check_batches, 10),
    ("judge", checks.check_judge, 8),
    # A rollback stays one.
    ("canary", checks.check_canary, 40),
    # Exclusions, looks, verdicts, and the key of unit ids.
    ("records", checks.check_records, 12),
    # Each row is in one file that counts, before and after the manifest is swapped and what it replaced is deleted.
    ("compact", checks.check_compaction, 16),
]


@pytest.mark.parametrize(("part", "check", "n_quick"), CASES, ids=[case[0] for case in CASES])
def test_what_was_reported_as_stored_survives(
    recordings: dict[str, Recording], part: str, check: Callable[[Path, list[Any]], None], n_quick: int
) -> None:
    hold(part, recordings[part], check, n_quick=n_quick)


@pytest.mark.parametrize("action", ["forget", "prune"])
def test_removed_texts_do_not_come_back(recordings: dict[str, Recording], action: str) -> None:
    recording = recordings[action]
    after = numbers(open_workspace(root=recording.root))  # of the whole run
    hold(action, recording, checks.check_removal(action, after, numbers), n_quick=4)


@pytest.mark.skipif(not FULL, reason="whole collectors are recorded by `make check-power`")
def test_a_whole_collector_with_loads_keeps_what_is_older_than_its_interval(library: Path, folder: Path) -> None:
    from collector_harness import RawUpstream, chat_answer, chat_request, plain, start_collector

    def ask(url: str) -> str:
        asked = Request(f"{url}/v1/chat/completions", chat_request(), {"content-type": "application/json"})
        with build_opener(ProxyHandler({})).open(asked, timeout=60) as answer:
            answer.read()
            return str(answer.headers["x-evalpipe-request-id"])

    upstream = RawUpstream(lambda received: [plain(chat_answer())])
    root = folder / "collector"
    root.mkdir()
    recorder = Recorder(library, folder)
    recorder.begin(root)
    answered: list[str] = []
    promise_for(str(root))
    try:
        for _ in range(2):
            running = start_collector(root, upstream.url, upstream.url, env=recorder.environment)
            for _ in range(2):
                for _ in range(6):
                    answered.append(ask(running.url))
                time.sleep(4)  # `fsync_interval_s` is 1; the machine may be slow
                promise({"answered": list(answered)}, recorder.log)
                recorder.python((root, f"load_once({str(root)!r})"))
            assert running.stop() == 0
            promise({"answered": list(answered)}, recorder.log)
            recorder.python((root, f"load_once({str(root)!r})"))
    finally:
        upstream.close()
    recording = recorder.done(
        root, mapped=lambda path: path.startswith("data/chains/") or path == "evalpipe.toml"
    )  # written by the test
    hold("collector and loads", recording, checks.check_collector, n_quick=20)
