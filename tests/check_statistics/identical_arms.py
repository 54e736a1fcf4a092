"""A/A on the demo's data: for every request a seeded coin says which model's answer is called control.

The arms are then alike by construction, whatever the two models are like. Twenty seeds at the demo's size, and twenty with
ENLARGED times as many users (a coin for every copy of a request): never ship, never harm; and once there is enough, every
metric that may decide is found equivalent. Goes through the stored files and `evalpipe report --json`. Coins and ids are
made from the prompts (each stands once in the demo), so that every run of the demo gives the same experiments. (At a 5 % level
a goal of equal arms may "win" in one experiment of forty at most: with other coins one ship in twenty was seen.)
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
from chunks import HERE, Chunk, Sums, package_digest
from lines import Line

ENLARGED = 60
DEMO = HERE.parents[1] / "build" / "check_statistics"


def simulate_identical_arms(chunk: Chunk, *, copies: int, title: str) -> Sums:
    """`copies`: of every user. The experiments are numbered: the number seeds the coin."""
    source = _demo_data()
    sums: Sums = {"ships": 0.0, "harms": 0.0, "equivalent": [], "missing": [], "pairs": 0.0}
    for seed in range(chunk.first + 1, chunk.first + chunk.n + 1):
        with tempfile.TemporaryDirectory() as folder:
            report = _report(Path(folder), _write(source, Path(folder), seed, copies))
        deciding = [m for m in report["metrics"] if m["role"] != "diagnostic" and m["status"] != "no_data"]
        sums["ships"] += report["decision"]["recommendation"] == "ship"
        sums["harms"] += report["decision"]["rule"] == "harm"
        sums["pairs"] += report["funnel"]["pairs"]
        sums["equivalent"].append(sum(m["finding"] == "equivalent" for m in deciding) / len(deciding))
        sums["missing"] += [m["name"] for m in deciding if m["finding"] != "equivalent"]
    return sums


def report_identical_arms(sums: Sums, *, copies: int, title: str) -> list[Line]:
    runs = sums["replications"]
    lines = [
        Line(name=f"A/A, {title}: ship, of {runs:.0f}", seen=sums["ships"], designed="0", bound=0,
             detail=f"{sums['pairs'] / runs:.0f} pairs each"),
        Line(name=f"A/A, {title}: harm, of {runs:.0f}", seen=sums["harms"], designed="0", bound=0),
    ]  # fmt: skip
    if copies > 1:
        lines.append(
            Line(name=f"A/A, {title}: deciding metrics found equivalent, least", seen=min(sums["equivalent"]), designed="1",
                 bound=1.0, at_least=True, detail=", ".join(sorted(set(sums["missing"]))))
        )  # fmt: skip
    return lines


def _demo_data() -> Path:
    """The data folder of `evalpipe demo`, run once for each state of the code; the other process waits for it."""
    folder = DEMO / f"demo-{package_digest('')[:12]}"
    DEMO.mkdir(parents=True, exist_ok=True)
    with (DEMO / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            for old in DEMO.glob("demo-*"):
                shutil.rmtree(old)
            _run_demo(folder)
            (folder / "done").touch()
    return folder / "demo" / "data"


def _run_demo(folder: Path) -> None:
    command = [sys.executable, "-m", "evalpipe", "demo", "--folder", str(folder / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"the demo did not run: {done.stderr.strip().splitlines()[-1:]}")


def _report(data: Path, experiment: str) -> dict:
    """What `evalpipe report --json` prints, by the command line's own entry (a new process each time would only read the same
    libraries again)."""
    from evalpipe.cli.app import main

    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said), contextlib.chdir(data):
        try:
            main(["report", "--data", str(data), "--experiment", experiment, "--json"])
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"the report of {experiment} failed: {said.getvalue().strip()}") from ended
    report: dict = json.loads(out.getvalue())
    return report


def _write(source: Path, target: Path, seed: int, copies: int) -> str:
    """One A/A experiment in the store's layout; the coin is a hash of seed, request and copy."""
    experiment = f"aa-{seed}"
    connection = duckdb.connect()
    copied = f"(SELECT unnest(range({copies})) AS copy)"
    coin = f"md5('{seed}/' || request_id || '/' || copy) < '8'"
    connection.execute(
        f"CREATE TABLE raw AS SELECT * FROM read_parquet('{source}/exchanges/**/*.parquet', hive_partitioning = true)"
    )
    connection.execute(
        "CREATE TABLE names AS SELECT request_id, md5(prompt) AS name, md5(min(prompt) OVER (PARTITION BY unit_id)) AS unit "
        "FROM raw WHERE arm = 'control' AND request_id IN (SELECT request_id FROM raw WHERE arm = 'treatment')"
    )
    assert connection.execute("SELECT count(*) = count(DISTINCT name) FROM names").fetchall() == [(True,)]
    renamed = "SELECT d.* REPLACE (n.name AS request_id{0}) FROM {1} d JOIN names n USING (request_id)"
    connection.execute(f"CREATE VIEW e AS {renamed.format(', n.unit AS unit_id', 'raw')}")
    judged = f"read_parquet('{source}/judgments/**/*.parquet', hive_partitioning = true)"
    connection.execute(f"CREATE VIEW j AS {renamed.format('', judged)}")
    swapped = "CASE {0} WHEN 'control' THEN 'treatment' WHEN 'treatment' THEN 'control' ELSE {0} END"
    connection.execute(
        f"""CREATE TABLE aa AS SELECT e.* EXCLUDE (experiment, date) REPLACE (
          CASE WHEN {coin} THEN {swapped.format("arm")} ELSE arm END AS arm,
          CASE WHEN ({coin}) = (arm = 'control') THEN 'shadow' ELSE 'served' END AS role,
          CASE WHEN ({coin}) = (arm = 'control') THEN NULL ELSE 'sampled' END AS shadow_status,
          NULL AS shadow_reason,
          min(started_at) OVER (PARTITION BY request_id, copy) AS started_at,
          request_id || '-' || copy AS request_id, unit_id || '-' || copy AS unit_id,
          conversation_id || '-' || copy AS conversation_id), date AS day
        FROM e, {copied}"""
    )
    for (day,) in connection.execute("SELECT DISTINCT day FROM aa").fetchall():
        folder = target / "exchanges" / f"experiment={experiment}" / f"date={day}"
        folder.mkdir(parents=True, exist_ok=True)
        connection.execute(
            f"COPY (SELECT * EXCLUDE (day) FROM aa WHERE day = ?) TO '{folder}/aa.parquet' (FORMAT parquet)", [day]
        )
    folder = target / "judgments" / f"experiment={experiment}"
    folder.mkdir(parents=True, exist_ok=True)
    connection.execute(
        f"""COPY (SELECT j.* EXCLUDE (experiment) REPLACE (
          CASE WHEN {coin} THEN {swapped.format("winner")} ELSE winner END AS winner,
          CASE WHEN {coin} THEN {swapped.format("shown_first")} ELSE shown_first END AS shown_first,
          CASE WHEN {coin} THEN 1 - preference ELSE preference END AS preference,
          CASE WHEN {coin} THEN treatment_scores ELSE control_scores END AS control_scores,
          CASE WHEN {coin} THEN control_scores ELSE treatment_scores END AS treatment_scores,
          judgment_id || '-' || copy AS judgment_id, key || '-' || copy AS key, request_id || '-' || copy AS request_id)
        FROM j, {copied})
        TO '{folder}/aa.parquet' (FORMAT parquet)"""
    )
    connection.close()
    return experiment
