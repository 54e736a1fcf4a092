"""A/A on the demo's data: for every request a seeded coin says which model's answer is called control.

The arms are then alike by construction, whatever the two models are like. Twenty seeds at the demo's size, and twenty with
ENLARGED times as many users (a coin for every copy of a request): never ship, never harm; and once there is enough, every
metric that may decide is found equivalent. Goes through the stored files and `evalpipe report --json`. Coins and ids are
made from the prompts (each stands once in the demo), so that every run of the demo gives the same experiments. (At a 5 % level
a goal of equal arms may "win" in one experiment of forty at most: with other coins one ship in twenty was seen.)
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import duckdb
from lines import Line

SEEDS = 20
ENLARGED = 60


def identical_arms_lines(*, demo_data: Path | None = None) -> list[Line]:
    """`demo_data`: the data folder of a demo that was run before; by default the demo is run here."""
    with tempfile.TemporaryDirectory() as folder:
        source = demo_data or _run_demo(Path(folder))
        lines = []
        for copies, name in ((1, "the demo's data"), (ENLARGED, f"{ENLARGED} times the demo's users")):
            target = Path(folder) / f"copies-{copies}"
            experiments = [_write(source, target, seed, copies) for seed in range(1, SEEDS + 1)]
            with ProcessPoolExecutor(2) as pool:
                reports = list(pool.map(_report, [target] * SEEDS, experiments))
            lines += _judge(reports, name, enough=copies > 1)
    return lines


def _judge(reports: list[dict], name: str, *, enough: bool) -> list[Line]:
    deciding = [
        [m for m in report["metrics"] if m["role"] != "diagnostic" and m["status"] != "no_data"] for report in reports
    ]
    shipped = sum(report["decision"]["recommendation"] == "ship" for report in reports)
    harmed = sum(report["decision"]["rule"] == "harm" for report in reports)
    pairs = reports[0]["funnel"]["pairs"]
    lines = [
        Line(
            name=f"A/A, {name}: ship, of {len(reports)}",
            seen=shipped,
            designed="0",
            bound=0,
            detail=f"{pairs} pairs each",
        ),
        Line(name=f"A/A, {name}: harm, of {len(reports)}", seen=harmed, designed="0", bound=0),
    ]
    if enough:
        worst = min((sum(m["finding"] == "equivalent" for m in found) / len(found) for found in deciding), default=0.0)
        missing = sorted({m["name"] for found in deciding for m in found if m["finding"] != "equivalent"})
        lines.append(
            Line(name=f"A/A, {name}: deciding metrics found equivalent, least", seen=worst, designed="1", bound=1.0,
                 at_least=True, detail=", ".join(missing) or ", ".join(m["name"] for m in deciding[0]))
        )  # fmt: skip
    return lines


def _run_demo(folder: Path) -> Path:
    command = [sys.executable, "-m", "evalpipe", "demo", "--folder", str(folder / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"the demo did not run: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "demo" / "data"


def _report(data: Path, experiment: str) -> dict:
    """What `evalpipe report --json` says, by the command line's own entry (a new process each time would only read the same
    libraries again)."""
    from evalpipe.cli import main

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
