"""`data = "s3://…"`: the commands of several machines on one store, beside the same commands on a disk."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import run_here

from evalpipe.objects.client import open_objects
from evalpipe.workspace.paths import shipped
from objects.fixtures import Bucket

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "judging"))

from fake_provider import FakeProvider, longer_wins

FAST = "requests_per_minute = 60000\ninput_tokens_per_minute = 100000000\noutput_tokens_per_minute = 100000000\n"
NOT_COMPARED = {"generated_at", "decided_at", "at", "provenance", "reasons"}
"""of a report: times, and fingerprints of files, whose names are drawn by chance"""


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(longer_wins) as started:
        yield started


def machine(root: Path, provider: FakeProvider, url: str | None) -> Path:
    """A workspace of the shipped sample's experiment: on its own disk, or on the store."""
    root.mkdir()
    data = "" if url is None else f'data = "{url}"\n'
    (root / "evalpipe.toml").write_text(
        f'{data}[experiment]\nname = "demo"\n[judge]\nbase_url = "{provider.url}"\nmodel = "claude-haiku-4-5"\n{FAST}'
    )
    (root / ".evalpipe-unit-key").write_text("ab" * 32)
    (root / ".evalpipe-unit-key").chmod(0o600)
    return root


def collected(root: Path) -> Path:
    """The shipped sample's log as this machine's spool."""
    spool = root / "data/spool"
    spool.mkdir(parents=True)
    (spool / "sample-1.000001.jsonl").write_bytes(
        gzip.decompress((shipped("data/sample") / "log.jsonl.gz").read_bytes())
    )
    return root


def run(root: Path, *arguments: str, code: int = 0) -> str:
    done = run_here(*arguments, cwd=root, env={"ANTHROPIC_API_KEY": "k"})
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def n_judged(report: dict[str, Any]) -> int:
    (found,) = [one["n"] for one in report["metrics"] if one["name"] == "win_rate"]
    return int(found)


def compared(value: Any) -> Any:
    """The report without `NOT_COMPARED`; sums of floats depend on the order of rows in their last digits, on a disk, too."""
    if isinstance(value, dict):
        return {key: compared(one) for key, one in value.items() if key not in NOT_COMPARED}
    if isinstance(value, list):
        return [compared(one) for one in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def test_the_sample_has_the_same_report_from_the_store_as_from_a_disk(
    bucket: Bucket, provider: FakeProvider, tmp_path: Path
) -> None:
    reports = {}
    for name, url in (("disk", None), ("store", bucket.url)):
        root = collected(machine(tmp_path / name, provider, url))
        run(root, "load")
        run(root, "judge")
        reports[name] = json.loads(run(root, "report", "--json"))
        assert not list((root / "data/spool").glob("*.jsonl"))
    assert n_judged(reports["disk"]) > 50
    assert compared(reports["store"]) == compared(reports["disk"])


def test_one_machine_loads_another_one_judges_and_a_third_reports(
    bucket: Bucket, provider: FakeProvider, tmp_path: Path
) -> None:
    first, second, third = (machine(tmp_path / name, provider, bucket.url) for name in ("first", "second", "third"))
    run(collected(first), "load")
    judged = json.loads(run(second, "judge", "--json"))["runs"][0]
    assert judged["calls"] == judged["planned"] > 100
    assert json.loads(run(first, "judge", "--json"))["runs"][0]["calls"] == 0  # all is judged, by the other machine
    report = json.loads(run(third, "report", "--json"))
    assert n_judged(report) > 50
    assert compared(json.loads(run(first, "report", "--json"))["metrics"]) == compared(report["metrics"])
    looks = json.loads(open_files(third, bucket)["experiments/demo.json"])["n_looks"]
    assert looks == 1  # the second report was of the same data
    run(first, "compact", "--grace-minutes", "0")
    rows = "SELECT count(*) AS n FROM exchanges"
    assert json.loads(run(tmp_path, "sql", "--json", rows, "--data", bucket.url, "-e", "demo"))[0]["n"] == 399


def open_files(root: Path, bucket: Bucket) -> dict[str, str]:
    """path → text of the store's JSON files, in the working copy of a machine that has just read them."""
    run(root, "sql", "SELECT 1")
    return {path.relative_to(root / "data").as_posix(): path.read_text() for path in (root / "data").rglob("*.json")}


def test_what_is_forgotten_is_deleted_from_the_store_at_once(
    bucket: Bucket, provider: FakeProvider, tmp_path: Path
) -> None:
    first, second = (machine(tmp_path / name, provider, bucket.url) for name in ("first", "second"))
    run(collected(first), "load")
    (first_row,) = json.loads(
        run(second, "sql", "--json", "SELECT unit_id, text FROM exchanges ORDER BY request_id LIMIT 1")
    )
    objects = {one.key for one in open_objects(bucket.url).list("exchanges")}
    run(second, "forget", "--user", first_row["unit_id"])
    assert objects.isdisjoint(one.key for one in open_objects(bucket.url).list("exchanges"))
    rows = json.loads(run(first, "sql", "--json", "SELECT unit_id, text FROM exchanges"))
    assert len(rows) == 399 and first_row["unit_id"] not in {row["unit_id"] for row in rows}
    assert first_row["text"] not in {row["text"] for row in rows}


def test_a_storage_that_is_gone_is_one_line_and_the_log_stays(
    faulty_bucket: Bucket, provider: FakeProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalpipe.objects.client.GIVE_UP_AFTER_S", 0.5)
    monkeypatch.setattr("evalpipe.objects.client.open_objects.__kwdefaults__", {"give_up_after_s": 0.5})
    root = collected(machine(tmp_path / "first", provider, faulty_bucket.url))
    faulty_bucket.faults.outage(30)
    line = run(root, "load", code=1)
    assert line.startswith(f"evalpipe: {faulty_bucket.url}") and line.count("\n") == 1 and "run it again" in line
    faulty_bucket.faults.outage(0)
    assert "399" in run(root, "load")


def test_a_folder_of_one_machine_is_not_mixed_with_the_store(
    bucket: Bucket, provider: FakeProvider, tmp_path: Path
) -> None:
    root = collected(machine(tmp_path / "first", provider, None))
    run(root, "load")
    config = (root / "evalpipe.toml").read_text()
    (root / "evalpipe.toml").write_text(f'data = "{bucket.url}"\n{config}')
    assert f"holds data that are not from {bucket.url}" in run(root, "report", code=2)
