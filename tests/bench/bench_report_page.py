"""The page of a large experiment: how long `evalpipe report` takes in all, how large the file is, how soon Chromium paints it.

    python tests/bench/bench_report_page.py [--pairs-millions 5] [--judged 100000] [--folder /tmp/evalpipe-bench-report] [--keep]

The data are those of bench_report.py, with a share of the pairs judged in both orders. Ends with 1 where the page is larger
than 3 MB, took longer than 60 s, or was first painted (median of seven openings) later than a second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import duckdb
from bench_report import EXPERIMENT, make_exchanges
from playwright.sync_api import Page, sync_playwright

MOST_BYTES, MOST_SECONDS, MOST_PAINT_MS = 3_000_000, 60.0, 1000.0
OPENINGS = 7
FIRST_PAINT = (
    "new Promise(done => new PerformanceObserver(list => list.getEntriesByName('first-contentful-paint')"
    ".forEach(entry => done(entry.startTime))).observe({type: 'paint', buffered: true}))"
)


def make_judgments(folder: Path, n_pairs: int, n_judged: int) -> None:
    """Judgments of every n-th pair in both orders: the treatment wins somewhat more often, a tenth contradict themselves."""
    target = folder / "data" / "judgments" / f"experiment={EXPERIMENT}"
    target.mkdir(parents=True, exist_ok=True)
    duckdb.connect().execute(
        f"""
        COPY (
          WITH asked AS (
            SELECT i, first, hash(i, 11) % 1000 / 1000.0::DOUBLE AS quality,
              hash(i, first, 12) % 1000 / 1000.0::DOUBLE AS noise
            FROM range(0, {n_pairs}, {max(1, n_pairs // n_judged)}) r(i), (VALUES ('control'), ('treatment')) f(first)
          ), seen AS (
            SELECT *, CASE WHEN noise < 0.1 THEN first WHEN quality < 0.15 THEN 'tie' WHEN quality < 0.54 THEN 'control'
              ELSE 'treatment' END AS winner
            FROM asked
          )
          SELECT 'k' || i || first || ':1' AS judgment_id, 'k' || i || first AS key, 1::INT AS attempt,
            'req-' || lpad(i::VARCHAR, 12, '0') AS request_id, 'pairwise' AS judge, 'f00d' AS judge_fingerprint,
            'claude-haiku-4-5' AS judge_model, first AS shown_first, 0::INT AS repeat, 'ok' AS status, winner,
            (CASE winner WHEN 'control' THEN 0.0 WHEN 'tie' THEN 0.5 ELSE 1.0 END)::DOUBLE AS preference,
            MAP {{'accuracy': 6 + noise, 'clarity': 7 + noise, 'completeness': 6.5 + noise}} AS control_scores,
            MAP {{'accuracy': 6 + quality, 'clarity': 7 + quality, 'completeness': 6.5 + quality}} AS treatment_scores,
            repeat('Response 1 answers the question; response 2 does not. ', 6) AS reasoning, '{{}}' AS raw_reply,
            900::BIGINT AS input_tokens, 120::BIGINT AS output_tokens, 0::BIGINT AS cached_input_tokens,
            0.0015::DOUBLE AS cost_usd,
            1800.0::DOUBLE AS latency_ms, to_timestamp(1780272000 + i * 86000.0 / {n_pairs}) AS judged_at,
            NULL::VARCHAR AS batch_id, false AS simulated, NULL::VARCHAR AS note
          FROM seen
        ) TO '{target}/bench.parquet' (FORMAT parquet, COMPRESSION zstd)"""
    )


def write_report(folder: Path) -> tuple[Path, float]:
    """`evalpipe report` in its own process: the page, and the seconds it took in all."""
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "evalpipe", "report"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    return folder / "reports" / f"{EXPERIMENT}.html", time.monotonic() - started


def first_paints(page_file: Path) -> list[float]:
    """Milliseconds from opening the file to the first text painted, each in a fresh context of a running Chromium."""
    found = []
    with sync_playwright() as playwright:
        wanted = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=wanted, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(OPENINGS):
            context = browser.new_context(viewport={"width": 1200, "height": 900})
            page: Page = context.new_page()
            page.goto(page_file.as_uri())
            found.append(float(page.evaluate(FIRST_PAINT)))
            context.close()
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs-millions", type=float, default=5)
    parser.add_argument("--judged", type=int, default=100_000, help="pairs judged in both orders")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/evalpipe-bench-report"))
    parser.add_argument("--keep", action="store_true", help="keep the generated data for the next run")
    options = parser.parse_args()
    n_pairs = int(options.pairs_millions * 1e6)
    folder = options.folder / f"{2 * options.pairs_millions:g}m-judged"
    if not (folder / "evalpipe.toml").exists():
        make_judgments(folder, n_pairs, options.judged)
        make_exchanges(folder, 2 * n_pairs)
    html, seconds = write_report(folder)
    n_bytes, paints = html.stat().st_size, first_paints(html)
    paint = statistics.median(paints)
    print(
        f"{n_pairs:,} pairs, {options.judged:,} of them judged: report in {seconds:.1f} s, HTML {n_bytes:,} bytes, "
        f"first paint {paint:.0f} ms (median of {OPENINGS}, slowest {max(paints):.0f})"
    )
    if not options.keep:
        shutil.rmtree(folder)
    if n_bytes > MOST_BYTES or seconds > MOST_SECONDS or paint > MOST_PAINT_MS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
