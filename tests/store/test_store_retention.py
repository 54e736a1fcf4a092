"""Texts of people leave everything a workspace holds; rows, counts and verdicts stay, whenever the process is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import run_here
from spool_builders import T0, copy, request, served, shadow, write_segment

from evalpipe.errors import ConfigError
from evalpipe.models import Judgment, JudgmentStatus, ShownFirst
from evalpipe.spool.format import FeedbackRecord
from evalpipe.store.query import Selection, open_store, readable
from evalpipe.workspace import retention
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.report import write_report

DAY = 86_400
CONFIG = """
[experiment]
name = "exp"
keep_days = 30
[arms.control]
provider = "openai"
[arms.treatment]
provider = "anthropic"
"""
SECRET = "SECRETWORD"
"""In every text of alice, in no other's."""
USERS = ("alice", "bob", "carol")
N_DAYS = 3


def build(root: Path, *, reported: bool = True) -> Workspace:
    """Three users, three days apart in time, six pairs each, judged, rated, reported."""
    (root / "evalpipe.toml").write_text(CONFIG)
    workspace = open_workspace(root=root)
    served_records: list[Any] = []
    shadow_records: list[Any] = []
    judgments = []
    for user in USERS:
        mark = SECRET if user == "alice" else f"words-of-{user}"
        for n in range(6):
            name, at = f"{user}-{n}", T0 + (n % N_DAYS) * 40 * DAY + n
            body = {"model": "gpt-4o", "user": user, "messages": [{"role": "user", "content": f"{mark} asks {n}"}]}
            answer = "" if n == 5 else f"{mark} is answered {n}"
            served_records += [request(name, at=at, body=body), served(name, at=at, text=answer)]
            served_records.append(
                FeedbackRecord(request_id=name, experiment="exp", arm="control", rating=1.0, at=at + 9, comment=mark)
            )
            shadow_records += [shadow(name, at=at), copy(name, at=at, text=f"{mark} is answered otherwise {n}")]
            judgments.append(
                Judgment(
                    key=f"k-{name}",
                    attempt=0,
                    request_id=name,
                    judge="pairwise",
                    judge_fingerprint="f",
                    judge_model="m",
                    shown_first=ShownFirst.CONTROL,
                    status=JudgmentStatus.OK,
                    winner="treatment",
                    preference=1.0,
                    reasoning=f"{mark} is better",
                    raw_reply=json.dumps({"winner": "2", "why": mark}),
                    cost_usd=0.25,
                    note=json.dumps({"cut": {"prompt": 3}, "error": "lost", "message": f"{mark} said the provider"}),
                    judged_at=datetime.fromtimestamp(at + 60, UTC),
                )
            )
    write_segment(workspace.spool, "served-1.000001", served_records)
    write_segment(workspace.spool, "shadow-1.000001", shadow_records)
    broken = b'{"record":"request","user":"alice","text":"' + SECRET.encode() + b'"'
    write_segment(workspace.spool, "served-2.000001", [broken + b"\n", b'{"broken": "words of nobody"\n'])
    load(workspace)
    with open_store(workspace.data, "exp") as store:
        store.write_judgments(judgments)
    if reported:
        write_report(workspace)
    return workspace


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built")
    build(root)
    return root


@pytest.fixture
def workspace(built: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return open_workspace(root=tmp_path)


def everything(root: Path) -> dict[str, str]:
    """Every file of a workspace as text, Parquet decoded, whatever its name."""
    found = {}
    for path in root.rglob("*"):
        if not path.is_file():
            continue
        data = path.read_bytes()
        is_parquet = data[:4] == b"PAR1" and data[-4:] == b"PAR1"
        found[str(path.relative_to(root))] = (
            str(pq.ParquetFile(path).read().to_pylist()) if is_parquet else data.decode("utf-8", "replace")
        )
    return found


NUMBERS = """
SELECT request_id, arm, role, started_at, outcome, status, latency_ms, input_tokens, output_tokens, cost_usd, turn, step,
  request_kind, length(text), length(trim(text)), text IS NULL, length(prompt), model, finish_reason
FROM exchanges ORDER BY ALL
"""
VERDICTS = """SELECT judgment_id, key, winner, preference, cost_usd, status, json_extract(note, '$.cut.prompt'),
  json_extract_string(note, '$.error') FROM judgments ORDER BY ALL"""
UNITS = (
    """SELECT list(request_id ORDER BY request_id) FROM exchanges WHERE arm = 'control' GROUP BY unit_id ORDER BY ALL"""
)


def numbers(workspace: Workspace) -> list[Any]:
    """All that a decision rests on: no text, and who the requests of one user are, without the name."""
    with open_store(workspace.data, "exp") as store:
        assert not store.damaged
        return [store.connection.execute(query).fetchall() for query in (NUMBERS, VERDICTS, UNITS)]


def decision(workspace: Workspace) -> list[Any]:
    with_texts = json.loads(write_report(workspace).json.read_bytes())
    return [[{**one, "note": None} for one in with_texts["metrics"]], with_texts["funnel"], with_texts["judges"]]


def test_forget_takes_a_user_out_of_everything_and_leaves_the_numbers(workspace: Workspace) -> None:
    before, decided = numbers(workspace), decision(workspace)
    assert sum(SECRET in text for text in everything(workspace.root).values()) >= 5
    planned = retention.forget(workspace, "alice", dry_run=True)[0]
    assert numbers(workspace) == before and any(SECRET in text for text in everything(workspace.root).values())
    done = retention.forget(workspace, "alice")[0]
    assert (done.exchanges, done.judgments, done.feedback, done.rejected, done.reports) == (12, 6, 6, 1, 2)
    assert (planned.exchanges, planned.judgments, planned.feedback) == (12, 6, 6)
    assert (planned.rejected, planned.reports) == (1, 2)
    left = everything(workspace.root)
    assert [name for name, text in left.items() if SECRET in text or "alice is" in text] == []
    assert "words-of-bob" in str(left.values()) and "words of nobody" in str(left.values())
    assert numbers(workspace) == before
    assert decision(workspace) == decided
    again = retention.forget(workspace, "alice")[0]
    assert (again.exchanges, again.judgments, again.feedback, again.rejected, again.reports) == (0, 0, 0, 0, 0)


def test_a_forgotten_user_has_another_unit_that_nobody_can_compute(workspace: Workspace) -> None:
    def units() -> dict[str, set[str]]:
        with open_store(workspace.data, "exp") as store:
            rows = store.connection.execute("SELECT split(request_id, '-')[1], unit_id, conversation_id FROM exchanges")
            found: dict[str, set[str]] = {}
            for user, unit, _ in rows.fetchall():
                found.setdefault(user, set()).add(unit)
            return found

    before = units()
    retention.forget(workspace, "alice")
    after = units()
    assert len(after["alice"]) == 1 and after["alice"].isdisjoint(before["alice"])
    assert after["bob"] == before["bob"]
    assert before["alice"].pop() not in str(everything(workspace.root))


def test_prune_takes_the_old_texts_out_and_keeps_the_young(workspace: Workspace) -> None:
    before = numbers(workspace)
    now = datetime.fromtimestamp(T0 + 85 * DAY, UTC)  # the days are 0, 40 and 80
    done = retention.prune(workspace, now=now)  # keep_days = 30
    assert done.exchanges == 2 * 2 * 2 * len(USERS) and done.judgments == 4 * len(USERS)
    left = str(everything(workspace.root))
    for n in range(6):
        assert (f"{SECRET} asks {n}" in left) == (n % N_DAYS == 2), n
    assert numbers(workspace) == before
    assert retention.prune(workspace, older_than="30d", now=now).exchanges == 0
    assert retention.prune(workspace, older_than="1d", now=now).exchanges == 2 * 2 * len(USERS)
    noted = retention.removals(workspace.data, "exp")
    assert [one["event"] for one in noted if one["exchanges"]] == ["done", "done"]
    assert next(one["exchanges"] for one in noted if one["event"] == "done") == done.exchanges


def test_a_request_is_as_old_as_its_first_row_and_one_without_a_time_stays(workspace: Workspace) -> None:
    """Answered a moment before the limit, its copy a moment after; and an imported pair that names no time."""
    body = {"model": "gpt-4o", "user": "dora", "messages": [{"role": "user", "content": "words of dora"}]}
    limit = T0 + 55 * DAY
    write_segment(
        workspace.spool, "served-3.000001", [request("edge", at=limit - 5, body=body), served("edge", at=limit - 5)]
    )
    late = limit + 5
    write_segment(workspace.spool, "shadow-3.000001", [shadow("edge", at=late), copy("edge", at=late, text="to dora")])
    pair = {"pair_id": "imported", "unit_id": "eve", "prompt": "words of eve", "response_a": "a", "response_b": "b"}
    (workspace.root / "pairs.jsonl").write_text(json.dumps(pair))
    load(workspace, [workspace.root / "pairs.jsonl"], experiment="exp")
    (workspace.root / "pairs.jsonl").unlink()
    now = datetime.fromtimestamp(T0 + 85 * DAY, UTC)
    done = retention.prune(workspace, older_than="30d", now=now)
    assert done.exchanges == 2 * 2 * 2 * len(USERS) + 2 and done.undated == 1
    left = everything(workspace.root)
    assert [name for name, text in left.items() if "words of dora" in text or "to dora" in text] == []
    assert "words of eve" in str(left)


def test_what_waits_in_the_log_is_loaded_and_removed(workspace: Workspace) -> None:
    body = {"model": "gpt-4o", "user": "alice", "messages": [{"role": "user", "content": f"{SECRET} again"}]}
    write_segment(
        workspace.spool, "served-3.000001", [request("new", eligible=False, body=body), served("new", text=SECRET)]
    )
    assert retention.forget(workspace, "alice")[0].exchanges == 13
    assert SECRET not in str(everything(workspace.root))


def test_what_a_living_collector_writes_is_counted(workspace: Workspace) -> None:
    import fcntl

    body = {"model": "gpt-4o", "user": "alice", "messages": [{"role": "user", "content": SECRET}]}
    at = time.time()  # not answered yet, so it is in no row
    with open_store(workspace.data, "exp") as store:
        row = store.connection.execute("SELECT unit_id FROM exchanges WHERE request_id = 'alice-0'").fetchone()
    assert row is not None
    record = request("r", body=body, at=at, unit_id=row[0], unit_source="header:x-user-id")
    segment = write_segment(workspace.spool, "served-3.000001", [record])
    with segment.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = retention.forget(workspace, "alice")[0]
    assert found.waiting == 1 and "collector" in found.notes[0]


def test_a_judge_is_not_asked_about_removed_texts(workspace: Workspace) -> None:
    assert readable(workspace.data, "exp", Selection()).is_empty
    retention.forget(workspace, "alice")
    with open_store(workspace.data, "exp", selection=readable(workspace.data, "exp", Selection())) as store:
        left = store.connection.execute("SELECT DISTINCT split(request_id, '-')[1] FROM pairs ORDER BY 1").fetchall()
    assert left == [("bob",), ("carol",)]


def test_an_age_is_days(workspace: Workspace) -> None:
    for age in ("", "0d", "d", "-3", "2w", "1.5d"):
        with pytest.raises(ConfigError, match="older-than"):
            retention.prune(workspace, older_than=age)


def test_the_commands(workspace: Workspace) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_here(*arguments, cwd=workspace.root)

    done = run("forget", "--user", "alice")
    assert done.returncode == 0 and "12 answers" in done.stdout, done.stderr
    pruned = run("prune", "--older-than", "30d", "--json")
    assert json.loads(pruned.stdout)["exchanges"] == 24, pruned.stderr


KILLS = """
import os, shutil, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
import test_store_retention as here

base, after = Path(sys.argv[2]), Path(sys.argv[3])

def run(root, step):
    '''Forget alice in `root`, killed before or after the step-th change of the file system.'''
    seen = [0]
    def count():
        seen[0] += 1
        if seen[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
    for name in ("fsync", "rename", "replace", "unlink", "write"):
        def changed(*arguments, _real=getattr(os, name), **named):
            count()
            result = _real(*arguments, **named)
            count()
            return result
        setattr(os, name, changed)
    here.retention.forget(here.open_workspace(root=root), "alice")
    return seen[0]

def in_child(work, *arguments):
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def finished(root):
    run(root, 0)
    workspace = here.open_workspace(root=root)
    assert here.numbers(workspace) == here.numbers(here.open_workspace(root=base))
    left = here.everything(root)
    assert not [name for name, text in left.items() if here.SECRET in text], root

def read_at_once(root):
    # Every row once, with its numbers; the renamed user counts as two until the next run has renamed the rest of their files.
    rows = [here.numbers(here.open_workspace(root=one))[:2] for one in (root, base)]
    assert rows[0] == rows[1]

def counted(root):
    (after / "n").write_text(str(run(root, 0)))

shutil.copytree(base, after / "0")
assert in_child(counted, after / "0") == 0
n_steps, n_kills = int((after / "n").read_text()), int(sys.argv[4]) or int((after / "n").read_text())
assert n_steps > 40
for n in range(n_kills):
    step = 1 + n * n_steps // n_kills
    root = after / f"killed-{step}"
    shutil.copytree(base, root)
    code = in_child(run, root, step)
    assert code == -signal.SIGKILL, code
    assert in_child(read_at_once, root) == 0, f"after a kill at step {step} a reader sees other rows"
    assert in_child(finished, root) == 0, f"not finished after a kill at step {step}"
    shutil.rmtree(root)
print(n_kills, "of", n_steps)
"""


@pytest.mark.timeout(600)
def test_killed_at_any_step_it_is_finished_by_the_next_run(tmp_path: Path) -> None:
    """EVALPIPE_KILLS=0 kills at every step."""
    base = tmp_path / "base"
    base.mkdir()
    build(base, reported=False)
    (tmp_path / "after").mkdir()
    n_kills = os.environ.get("EVALPIPE_KILLS", "6")
    command = [sys.executable, "-c", KILLS, str(Path(__file__).parent), str(base), str(tmp_path / "after"), n_kills]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert " of " in finished.stdout


def test_a_line_of_the_list_of_removals_that_was_cut_short_spoils_no_other(workspace: Workspace) -> None:
    noted = workspace.data / "experiments" / "exp.removals.jsonl"
    noted.parent.mkdir(exist_ok=True)
    noted.write_bytes(b'{"at": "2026-01-01T00:00:00+00:00", "event": "beg')
    retention.forget(workspace, "alice")
    assert [one["event"] for one in retention.removals(workspace.data, "exp")] == ["begun", "done"]
