"""A damaged Parquet file is left out, named by whoever reads without it, and moved away by `doctor --data`."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from command_line import run_here
from spool_builders import T0, copy, request, served, shadow, write_segment

import evalpipe
from evalpipe.errors import DataError
from evalpipe.models import Feedback
from evalpipe.store.parquet import is_whole
from evalpipe.store.query import open_store, write_rows
from evalpipe.workspace.damaged import find_damaged, move_damaged, refuse_damaged
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace

DAY = 86_400
CONFIG = '[experiment]\nname = "exp"\n[arms.control]\nprovider = "openai"\n[arms.treatment]\nprovider = "anthropic"\n'


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three days of twenty pairs each: one file of exchanges a day."""
    (tmp_path / "evalpipe.toml").write_text(CONFIG)
    found = open_workspace(root=tmp_path)
    names = [(f"r{day}-{n}", T0 + day * DAY + n) for day in range(3) for n in range(20)]
    records = [record for name, at in names for record in (request(name, at=at), served(name, at=at))]
    copies = [record for name, at in names for record in (shadow(name, at=at), copy(name, at=at))]
    write_segment(found.spool, "served-1.000001", records)
    write_segment(found.spool, "shadow-1.000001", copies)
    load(found)
    return found


def _files(workspace: Workspace) -> list[Path]:
    return sorted(workspace.data.glob("exchanges/*/*/*.parquet"))


def _run(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here(*arguments, cwd=workspace.root)


def _rows(workspace: Workspace) -> int:
    with open_store(workspace.data) as store:
        found = store.connection.execute("SELECT count(*) FROM exchanges").fetchone()
    assert found is not None
    return int(found[0])


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    """One bit of a page, far from head and footer."""
    changed = bytearray(data)
    changed[len(data) // 3] ^= 4
    return bytes(changed)


@pytest.mark.parametrize("damage", [_cut, _flip, lambda data: b"", lambda data: b"\0" * len(data)])
def test_every_reader_leaves_the_file_out(workspace: Workspace, damage: Callable[[bytes], bytes]) -> None:
    broken = _files(workspace)[1]
    broken.write_bytes(damage(broken.read_bytes()))
    assert _rows(workspace) == 80
    assert [Path(one.file).name for one in find_damaged(workspace)] == [broken.name]
    with pytest.warns(UserWarning, match=broken.name):
        assert len(evalpipe.open(workspace.root).exchanges) == 80


def test_every_command_reads_without_the_file_and_names_it(workspace: Workspace) -> None:
    broken = _files(workspace)[1]
    broken.write_bytes(_flip(broken.read_bytes()))

    sql = _run(workspace, "sql", "--format", "json", "select count(*) n from exchanges")
    assert sql.returncode == 0 and json.loads(sql.stdout) == [{"n": 80}]
    assert broken.name in sql.stderr and "evalpipe doctor --data" in sql.stderr

    report = _run(workspace, "report", "--format", "json")
    assert report.returncode == 0, report.stderr
    checks = {one["name"]: one for one in json.loads(report.stdout)["checks"]}
    assert broken.name in checks["damaged_files"]["detail"] and checks["damaged_files"]["status"] == "warn"

    gate = _run(workspace, "gate", "--json")
    assert [Path(name).name for name in json.loads(gate.stdout)["damaged_files"]] == [broken.name]
    assert broken.name in _run(workspace, "gate").stdout


def test_a_report_without_a_whole_file_of_exchanges_names_the_damaged_ones(workspace: Workspace) -> None:
    """Whatever is whole beside them: here what users have rated."""
    rated = Feedback(request_id="r1", arm=None, rating=1.0, comment=None, at=datetime(2026, 7, 1, tzinfo=UTC))
    assert write_rows(workspace.data, "exp", "feedback", [rated]) == 1
    for broken in _files(workspace):
        broken.write_bytes(_cut(broken.read_bytes()))
    for command in ("report", "gate"):
        refused = _run(workspace, command)
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1
        assert _files(workspace)[0].name in refused.stderr and "evalpipe doctor --data" in refused.stderr


def test_an_empty_selection_is_one_whatever_else_is_damaged(workspace: Workspace) -> None:
    _files(workspace)[0].write_bytes(_cut(_files(workspace)[0].read_bytes()))
    refused = _run(workspace, "report", "--where", "unit_id = 'nobody'")
    assert refused.returncode == 1 and "no exchanges in the selection" in refused.stderr


def test_doctor_moves_it_and_lists_what_is_lost(workspace: Workspace) -> None:
    broken = _files(workspace)[2]
    whole = broken.read_bytes()
    broken.write_bytes(_flip(whole))
    first = _run(workspace, "doctor", "--data", "--json")
    assert first.returncode == 0, first.stderr
    (lost,) = json.loads(first.stdout)
    assert (lost["dataset"], lost["experiment"], lost["n_rows"]) == ("exchanges", "exp", 40)
    assert lost["date"] == broken.parent.name.removeprefix("date=")
    moved = workspace.data / lost["moved_to"]
    assert moved.exists() and not broken.exists()
    again = _run(workspace, "doctor", "--data")
    assert again.returncode == 0 and "every stored file" in again.stdout
    sql = _run(workspace, "sql", "select count(*) from exchanges")
    assert "80" in sql.stdout and sql.stderr == ""
    broken.write_bytes(whole)  # a backup
    assert _rows(workspace) == 120


def test_any_flipped_bit_of_a_file_is_found(workspace: Workspace) -> None:
    """DuckDB reads most of them as other values."""
    path = _files(workspace)[0]
    whole = path.read_bytes()
    chosen = random.Random(5)
    for _ in range(60):
        changed = bytearray(whole)
        changed[chosen.randrange(len(whole))] ^= 1 << chosen.randrange(8)
        path.write_bytes(changed)
        assert not is_whole(path)
    path.write_bytes(whole)
    assert is_whole(path) and find_damaged(workspace) == []


def test_a_file_of_an_older_version_has_no_checksum_in_its_name(workspace: Workspace) -> None:
    path = _files(workspace)[0]
    stem, _, mark, suffix = path.name.split(".")
    older = path.rename(path.with_name(f"{stem}.{mark}.{suffix}"))
    assert _rows(workspace) == 120 and find_damaged(workspace) == []
    older.write_bytes(_cut(older.read_bytes()))
    assert _rows(workspace) == 80
    assert [one.n_rows for one in move_damaged(workspace)] == [None]


def test_load_goes_on_beside_a_damaged_file(workspace: Workspace) -> None:
    broken = _files(workspace)[0]
    broken.write_bytes(_cut(broken.read_bytes()))
    write_segment(workspace.spool, "served-2.000001", [request("new", at=T0, eligible=False), served("new", at=T0)])
    assert load(workspace).n_exchanges == 1
    assert _rows(workspace) == 81


def test_nothing_is_judged_where_judgments_are_damaged(workspace: Workspace) -> None:
    refuse_damaged(workspace.data, "exp", "judgments")
    folder = workspace.data / "judgments" / "experiment=exp"
    folder.mkdir(parents=True)
    (folder / "20260101T000000-0.00000000.00000000.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="paid for again"):
        refuse_damaged(workspace.data, "exp", "judgments")
    refuse_damaged(workspace.data, "another", "judgments")
    with (workspace.root / "evalpipe.toml").open("a") as file:
        file.write('[judge]\nbase_url = "http://127.0.0.1:9"\n')
    refused = run_here("judge", cwd=workspace.root, env={"ANTHROPIC_API_KEY": "k"})
    assert refused.returncode == 1 and "nothing was asked, since it would be paid for again" in refused.stderr
