"""LLMBar (adversarial): 30 recorded judges replayed over HTTP through the anthropic SDK; the published counts, exactly."""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from judge_harness import Sim, evalpipe, finish, query, say, simulated, start, workspace

SHARED = Path(os.environ.get("EVALPIPE_SHARED", Path(__file__).parents[3] / "shared"))
PAIRS = SHARED / "data/pairs/llmbar_adversarial.jsonl"
SUMMARY = SHARED / "data/pairs/llmbar_judge_summary.csv"
FAST = {"requests_per_minute": 1e6, "input_tokens_per_minute": 1e9, "output_tokens_per_minute": 1e9, "concurrency": 32}
TOML = """
mode = "pairwise"
model = "{model}"
template = "pairwise.j2"
reasoning = false
[dimensions]
quality = "Which response follows the instruction better?"
"""


def recorded() -> list[tuple[str, str]]:
    """(judge, method) judged in both orders."""
    orders: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        for one in json.loads(line)["judgements"]:
            orders[one["judge"], one["method"]][one["order"]] += 1
    return sorted(name for name, counts in orders.items() if counts["ab"] and counts["ba"])


def counted(root: Path) -> dict[str, dict[str, tuple[int, int, int, int, int]]]:
    """judge → subset → n, correct control-first, correct treatment-first, correct in both, agreeing; from the Parquet rows."""
    rows = query(
        root,
        """
        WITH last AS (
          SELECT judge, request_id, shown_first, CASE WHEN status IN ('ok', 'identical') THEN preference END AS p
          FROM judgments WHERE NOT starts_with(judge_fingerprint, 'imported')
          QUALIFY row_number() OVER (
            PARTITION BY judge, request_id, shown_first ORDER BY status IN ('ok', 'identical') DESC, attempt DESC) = 1
        ), both_orders AS (
          SELECT judge, request_id, max(p) FILTER (shown_first = 'control') AS ab,
            max(p) FILTER (shown_first = 'treatment') AS ba, count(*) AS n
          FROM last GROUP BY judge, request_id
        ), meta AS (
          SELECT request_id, any_value(meta->>'$.subset') AS subset FROM exchanges WHERE arm = 'control' GROUP BY request_id
        )
        SELECT judge, subset, count(*) AS n, count(*) FILTER (ab = label.preference) AS ab,
          count(*) FILTER (ba = label.preference) AS ba,
          count(*) FILTER (ab = label.preference AND ba = label.preference) AS both,
          count(*) FILTER (ab IS NOT DISTINCT FROM ba) AS agree, min(both_orders.n) AS orders
        FROM both_orders JOIN meta USING (request_id) JOIN labels AS label USING (request_id) GROUP BY judge, subset""",
    )
    assert all(row["orders"] == 2 for row in rows)
    found: defaultdict[str, dict[str, tuple[int, int, int, int, int]]] = defaultdict(dict)
    for row in rows:
        found[row["judge"]][row["subset"]] = (row["n"], row["ab"], row["ba"], row["both"], row["agree"])
    return found


def judge_all(root: Path, sim: Sim, names: list[tuple[str, str]], n_calls: int) -> None:
    """One process asks all judges, one after the other; how far it is, every ten seconds."""
    process = start(root, "judge", *(word for judge, method in names for word in ("--judge", f"{judge}.{method}")))
    started = shown = time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        if time.monotonic() >= shown + 10:
            shown = time.monotonic()
            print(f"  {sim.ledger()['calls']:,} of about {n_calls:,} calls, {shown - started:.0f} s", flush=True)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"evalpipe judge: exit {process.returncode}\n{errors}")


def published() -> dict[tuple[str, str], dict[str, tuple[int, int, int, int, int]]]:
    found: defaultdict[tuple[str, str], dict[str, tuple[int, int, int, int, int]]] = defaultdict(dict)
    columns = ("n", "correct_order_ab", "correct_order_ba", "correct_both", "positional_agreement")
    with SUMMARY.open(newline="") as file:
        for row in csv.DictReader(file):
            values = [int(float(row[name])) if row[name] else -1 for name in columns]
            found[row["judge"], row["strategy"]][row["subset"]] = (
                values[0],
                values[1],
                values[2],
                values[3],
                values[4],
            )
    return found


def main(n_judges: int | None) -> bool:
    started, names, book = time.monotonic(), recorded(), published()
    names = names[:n_judges]
    n_equal = n_cells = 0
    with (
        simulated("--judge", "replay", "--pairs", str(PAIRS), "--ttft-ms", "1", "--tokens-per-second", "100000") as sim,
        tempfile.TemporaryDirectory() as folder,
    ):
        root = workspace(Path(folder), sim.url, **FAST)
        config = (root / "evalpipe.toml").read_text()
        (root / "evalpipe.toml").write_text(config.replace('model = "claude-haiku-4-5"\n', ""))
        (root / "judges").mkdir()
        for judge, method in names:
            (root / f"judges/{judge}.{method}.toml").write_text(TOML.format(model=f"{judge}/{method}"))
        evalpipe(root, "load", "--format", "pairs", str(PAIRS))
        subsets = [json.loads(line)["meta"]["subset"] for line in PAIRS.read_text(encoding="utf-8").splitlines()]
        n_pairs = len(subsets)
        judge_all(root, sim, names, 2 * n_pairs * len(names))
        calls = sim.ledger()["calls"]
        mine = counted(root)
        for judge, method in names:
            for subset in sorted(set(subsets)):
                n_cells += 1
                counts, theirs = mine[f"{judge}.{method}"].get(subset), book[judge, method][subset]
                n_equal += counts == theirs
                if counts != theirs:
                    print(f"  {judge}/{method} {subset}: {counts}, published {theirs}")
    detail = (
        f"{len(names)} judges, {n_equal} of {n_cells} subsets equal in n and all four counts, {calls} calls, "
        f"{time.monotonic() - started:.0f} s"
    )
    return say("LLMBar adversarial over HTTP", n_equal == n_cells > 0, detail)


if __name__ == "__main__":
    finish([main(int(sys.argv[1]) if len(sys.argv) > 1 else None)])
