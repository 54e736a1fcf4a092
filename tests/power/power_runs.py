"""What is recorded: ordinary work, each in a process of its own, which promises what it has reported as stored."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from disk_replay import promise
from spool_builders import T0, copy, request, served, shadow

from evalpipe.models import Judgment, JudgmentStatus, ShownFirst
from evalpipe.spool.checkpoint import ShadowState, save_spent, save_state
from evalpipe.spool.format import Record
from evalpipe.spool.writer import SpoolWriter

DAY = 86_400
LATER = datetime.fromtimestamp(T0 + 400 * DAY, UTC)
"""when `prune` runs: rejected lines have the age of their file, which is written while the test runs"""
CONFIG = """
[experiment]
name = "exp"
keep_days = 30
[arms.control]
provider = "openai"
[arms.treatment]
provider = "anthropic"
"""
CANARY = """
[experiment]
name = "exp"
mode = "canary"
[arms.control]
provider = "openai"
[arms.treatment]
provider = "openai"
[canary]
evaluate_every_s = 10
min_requests = 20
guardrails = { error_rate = 0.02 }
stages = [{ percentage = 10, duration_hours = 0.01, auto_advance = true }, { percentage = 100, auto_advance = false }]
"""
SECRET = "SECRETWORD"


def _synced(writer: SpoolWriter) -> None:
    """As the collector does it every `fsync_interval_s`; a segment that was rotated away is synced by a thread of its own."""
    writer.sync()
    for thread in threading.enumerate():
        if thread.name == "spool-close":
            thread.join()


def spool(folder: str) -> None:
    """A collector's first minutes: segments are rotated, synced now and then, and closed at the end."""
    writer = SpoolWriter(Path(folder) / "data" / "spool", "served-1", segment_bytes=2500, segment_s=300)
    writer.open()
    for n in range(24):
        name = f"r{n}"
        writer.append_lines([*map(_line, (request(name, eligible=False), served(name)))])
        if n % 5 == 4:
            _synced(writer)
            promise({"served": [f"r{i}" for i in range(n + 1)]})
    writer.close()
    for thread in threading.enumerate():
        if thread.name == "spool-close":
            thread.join()
    promise({"served": [f"r{i}" for i in range(24)]})


def stopped(folder: str) -> None:
    """Collectors that were stopped before their first sync was due, one of them just after it had rotated."""
    for process, n_records in (("served-1", 2), ("served-2", 7)):
        writer = SpoolWriter(Path(folder) / "data" / "spool", process, segment_bytes=2500, segment_s=300)
        writer.open()
        names = [f"{process}-{n}" for n in range(n_records)]
        for name in names:
            writer.append_lines([*map(_line, (request(name, eligible=False), served(name)))])
        writer.close()
        for thread in threading.enumerate():
            if thread.name == "spool-close":
                thread.join()
        promise({"served": names})


def _line(record: Record) -> bytes:
    from evalpipe.spool.format import render_record

    return render_record(record)


def load(folder: str) -> None:
    """Two loads: of what was recorded, copied and decided, with broken lines; the second after the copies' process was killed."""
    from evalpipe.workspace import load as workspace_load
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(root=Path(folder))
    for life in (1, 2):
        names = [f"life{life}-{n}" for n in range(6)]
        spool_folder = workspace.spool
        users = SpoolWriter(spool_folder, f"served-{life}", segment_bytes=3000, segment_s=300)
        copies = SpoolWriter(spool_folder, f"shadow-{life}", segment_bytes=3000, segment_s=300)
        users.open()
        copies.open()
        for n, name in enumerate(names):
            at = T0 + n * DAY / 2
            users.append_lines([*map(_line, (request(name, at=at), served(name, at=at)))])
            copies.append_lines([*map(_line, (shadow(name, at=at), copy(name, at=at)))])
        users.append_line(b'{"broken in life %d": "a line nobody can read"\n' % life)
        _synced(users)
        _synced(copies)
        users.close()
        copies.close()
        _synced(users)
        if life == 1:
            offsets = {path.name: path.stat().st_size for path in spool_folder.glob("*.jsonl")}
            save_spent(workspace.data, "exp", 1.25)
            save_state(spool_folder, ShadowState(offsets=offsets, spent_usd={"exp": 1.25}))
        promise({"pairs": names, "rejected": f"broken in life {life}", "decided": names})
        if life == 2:
            killed_load(folder)
        tally = workspace_load.load(workspace)
        assert tally.n_rejected == 1 and (life == 2 or tally.n_exchanges == 12), tally
        promise({"loaded": names})


def compact(folder: str) -> None:
    """Loads that leave small files, each compacted with what was merged before; in the end nothing but merged files is left."""
    from evalpipe.workspace import load as workspace_load
    from evalpipe.workspace.compact import compact as merge_files
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(root=Path(folder))
    for life in range(3):
        for part in range(2):
            names = [f"c{life}-{part}-{n}" for n in range(3)]
            writer = SpoolWriter(workspace.spool, f"served-{life}{part}", segment_bytes=30_000, segment_s=300)
            writer.open()
            for name in names:
                writer.append_lines([*map(_line, (request(name, eligible=False), served(name)))])
            writer.close()
            _synced(writer)
            workspace_load.load(workspace)
            promise({"loaded": names})
        merge_files(workspace, grace_minutes=0 if life else 60, show_progress=False)
        promise({"files": 1 if life else 3})


def killed_load(folder: str) -> None:
    """A load that is killed between the rename of its first file and the sync of that file's folder."""
    code = """
import os, signal, sys
from pathlib import Path
real = os.rename
def renamed(*names, **more):
    real(*names, **more)
    if str(names[1]).endswith(".parquet"):
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = renamed
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace
load(open_workspace(root=Path(sys.argv[1])))
"""
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=280)
    assert done.returncode == -signal.SIGKILL, done.stderr


def judgment(
    n: int | str,
    *,
    status: JudgmentStatus = JudgmentStatus.OK,
    cost_usd: float = 0.25,
    mark: str = "fine",
    request_id: str | None = None,
) -> Judgment:
    lost = status is JudgmentStatus.ERROR
    return Judgment(
        key=f"k{n}",
        attempt=1,
        request_id=request_id or f"r{n}",
        judge="pairwise",
        judge_fingerprint="f",
        judge_model="m",
        shown_first=ShownFirst.CONTROL,
        status=status,
        preference=None if lost else 1.0,
        cost_usd=cost_usd,
        reasoning=None if lost else f"{mark} is better",
        raw_reply=None if lost else f'{{"why": "{mark}"}}',
        judged_at=datetime.fromtimestamp(T0 + 60, UTC),
        note='{"cost_at_most_usd": 2.0, "error": "lost"}' if lost else None,
    )


def journal(folder: str) -> None:
    """Runs of the judge: calls booked, answered, synced, compacted while others are in flight."""
    from evalpipe.calls.journal import Journal, compact, judging_lock
    from evalpipe.store.query import open_store
    from evalpipe.workspace.judge_setup import journal_folder
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(root=Path(folder))
    place = journal_folder(workspace, "exp")
    known: dict[str, str] = {}
    for run in range(2):
        with judging_lock(place), open_store(workspace.data, "exp") as store:
            journal = Journal(place, answer_bytes=64)
            for n in range(8):
                name = f"{run}-{n}"
                journal.begin(judgment(name, status=JudgmentStatus.ERROR, cost_usd=1.0))
                known[f"k{name}:1"] = "error"
                if n % 3 == 2:
                    journal.sync()  # calls in flight are booked
                    promise({"judgments": dict(known)})
                if n != 5:  # in flight at the end
                    journal.append(judgment(name))
                    known[f"k{name}:1"] = "ok"
                if n == 6:
                    in_flight = journal.rotate()
                    compact(
                        place,
                        store.write_judgments,
                        keep=journal.path,
                        in_flight=in_flight,
                        rejected=workspace.data / "rejected",
                    )
                    promise({"judgments": dict(known)})
            journal.close()
            promise({"judgments": dict(known)})
            compact(place, store.write_judgments, rejected=workspace.data / "rejected")
            promise({"judgments": dict(known)})


def batches(folder: str) -> None:
    """A batch on its way: intended, submitted, collected; another that never arrived."""
    from evalpipe.calls.batches import BatchState, changed, save_intent, save_state
    from evalpipe.calls.journal import Journal, compact
    from evalpipe.judging.batches import Item
    from evalpipe.store.query import open_store
    from evalpipe.workspace.judge_setup import batches_folder, journal_folder
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(root=Path(folder))
    place = batches_folder(workspace, "exp")
    for number in range(3):
        name = f"b{number}"
        items = [
            Item(custom_id=f"k{name}-{n}-1", key=f"k{name}-{n}", attempt=1, request_id=f"r{name}-{n}",
                 shown_first=ShownFirst.CONTROL, repeat=0)
            for n in range(3)
        ]  # fmt: skip
        intent = BatchState(name=name, judge="pairwise", fingerprint="f", provider="anthropic", state="intended", n_items=3,
                        created_at=datetime.fromtimestamp(T0, UTC), at_most_usd=2.0)  # fmt: skip
        save_intent(place, intent, items)
        promise({"batch": name, "state": "intended"})  # the provider hears of it
        if number == 2:
            save_state(place, changed(intent, state="abandoned"))
            promise({"batch": name, "state": "abandoned"})
            continue
        sent = changed(intent, state="submitted", batch_id=f"id-{name}")
        save_state(place, sent)
        promise({"batch": name, "state": "submitted"})
        journal = Journal(journal_folder(workspace, "exp"))
        for item in items:
            journal.append(judgment(item.key.removeprefix("k")))
        journal.sync()
        save_state(place, changed(sent, state="collected"))
        promise({"batch": name, "state": "collected", "judgments": {f"{item.key}:1": "ok" for item in items}})
        journal.close()
        if number:
            with open_store(workspace.data, "exp") as store:
                compact(journal_folder(workspace, "exp"), store.write_judgments, rejected=workspace.data / "rejected")


def judge(folder: str) -> None:
    """`evalpipe judge` against a provider, then `judge settle`: what was reported is on the disk."""
    from evalpipe.judging.costs import settlements_folder
    from evalpipe.store.query import open_store
    from evalpipe.workspace import judge as workspace_judge
    from evalpipe.workspace.judge_review import settle
    from evalpipe.workspace.judge_setup import JudgeOptions
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(root=Path(folder))
    for limit in (2, None):
        workspace_judge.judge(workspace, JudgeOptions(limit=limit))
        with open_store(workspace.data, "t") as store:
            rows = store.connection.execute("SELECT judgment_id, status FROM judgments").fetchall()
        promise({"judgments": dict(rows)})
    (settled,) = settle(workspace, JudgeOptions(), worst_case=True)
    assert settled.settlement is not None
    assert settlements_folder(workspace.data, "t").is_dir()
    promise({"settled": {call.judgment_id: call.usd for call in settled.settlement.calls}})


def canary(folder: str) -> None:
    """A canary that starts, is paused, goes on, and is rolled back."""
    from evalpipe.workspace import canary as workspace_canary
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(root=Path(folder))
    history = workspace_canary.open_history(workspace)
    now = [1_000_000.0]

    def reported(event: object) -> None:
        state = history.state()
        promise({"seq": history.last().seq, "status": str(state.status), "percentage": state.percentage})  # type: ignore[union-attr]

    def watch(n_looks: int) -> None:
        looks = iter(range(n_looks - 1))

        def wait(seconds: float) -> bool:
            now[0] += 10
            return next(looks, None) is None

        workspace_canary.run(workspace, on_event=reported, clock=lambda: now[0], wait=wait)

    watch(3)
    for action in ("pause", "approve", "rollback"):
        workspace_canary.change_state(workspace, action, why="test", by="alice", now=now[0])
        reported(None)
    watch(2)


def records(folder: str) -> None:
    """The first load makes the key of unit ids; then exclusions, looks, a verdict."""
    from evalpipe.workspace import load as workspace_load
    from evalpipe.workspace.analyze import analyze_workspace
    from evalpipe.workspace.decide import exclude, exclusions, include_again, verdict
    from evalpipe.workspace.paths import open_workspace
    from evalpipe.workspace.record import load_record
    from evalpipe.workspace.secrets import key_fingerprint, unit_key

    workspace = open_workspace(root=Path(folder))
    promise({"key": key_fingerprint(unit_key(workspace, "exp"))})  # the collector hashes with it from now on
    workspace_load.load(workspace)

    def stored(*, also: dict[str, object] | None = None) -> None:
        record = load_record(workspace.data, "exp")
        assert record is not None
        periods = [one.since for one in exclusions(workspace)]
        promise({"exclusions": periods, "looks": record.n_looks, **(also or {})})

    for day in ("2026-01-01", "2026-02-01"):
        exclude(workspace, since=day, until=f"{day}T12:00", why="a fault")
        stored()
    analyze_workspace(workspace)
    stored()
    include_again(workspace, 1)
    stored()
    verdict(workspace)
    stored(also={"verdict": True})
    analyze_workspace(workspace, now=datetime(2027, 1, 1, tzinfo=UTC))
    stored(also={"verdict": True})


def removal(folder: str, action: str) -> None:
    """`prune` or `forget`; a judge's journal waits, too."""
    from evalpipe.workspace import retention
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(root=Path(folder))
    if action == "forget":
        retention.forget(workspace, "alice")
    else:
        retention.prune(workspace, older_than="30d", now=LATER)
    promise({"gone": SECRET})


def load_once(folder: str) -> None:
    """A load beside a collector."""
    from evalpipe.workspace import load as workspace_load
    from evalpipe.workspace.paths import open_workspace

    workspace_load.load(open_workspace(root=Path(folder)))
