"""Fixtures every test may use: the shared real data and oracles (or a clear skip), and free ports."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from evalpipe.collector import is_compiled

sys.path.insert(0, str(Path(__file__).parent))  # command_line.py and objects/, for the tests of every folder

from objects.fixtures import bucket, faulty_bucket, storage

ROOT = Path(__file__).resolve().parents[1]
__all__ = ["bucket", "faulty_bucket", "storage"]

# Some hundred processes of evalpipe are started: none of them compiles the package for itself, and no worker rewrites the tests'
# assertions again, also where the environment (a container image's, often) asks for no bytecode.
if "EVALPIPE_NO_BYTECODE" not in os.environ:
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Where the suite was started in the background of a script, Ctrl-C is ignored, and the processes of the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow or busy machine is no failure, and the same commit gives the same result: examples come from the test's own name.
settings.register_profile("evalpipe", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("evalpipe")


LONGEST_FIRST = (
    "collector/test_collector_nights.py",
    "report/test_report_browser.py",
    "labels/test_label_browser.py",
    "collector/test_collector_roads.py",
    "judging/test_judging_batches_held.py",
    "analysis/test_analysis_experiments.py",
    "power/test_power_loss.py",
    "test_documents.py",
    "run/test_run_every_day.py",
    "serve/test_serve_app.py",
    "labels/test_label_page.py",
    "serve/test_serve_browser.py",
    "judging/test_judging_replies.py",
    "collector/test_collector_treatment.py",
    "store/test_store_compaction.py",
    "store/test_store_compaction_killed.py",
    "store/test_store_resources.py",
    "collector/test_collector_budget.py",
    "collector/test_collector_replicas.py",
    "collector/test_collector_chains.py",
    "objects/test_shared_store.py",
    "judging/test_judging_run.py",
    "judging/test_judging_accounts.py",
    "analysis/test_analysis_rows.py",
    "run/test_run_in_ci.py",
    "collector/test_collector_stream_usage.py",
    "test_command_line.py",
    "collector/test_collector_setup_faults.py",
    "test_examples.py",
    "analysis/test_analysis_corrected.py",
    "store/test_store_spool.py",
    "store/test_store_retention.py",
    "labels/test_label_files.py",
    "collector/test_collector_several.py",
    "cluster/test_cluster_judging.py",
    "analysis/test_analysis_forecast.py",
    "collector/test_collector_keys_left.py",
    "judging/test_judging_batches.py",
    "collector/test_collector_web.py",
    "analysis/test_analysis_missing.py",
    "analysis/test_analysis_populations.py",
    "judging/test_judging_compare.py",
    "replay/test_replay_pairs.py",
    "collector/test_collector_traffic_watch.py",
    "judging/test_judging_full_disk.py",
    "judging/test_judging_interrupted.py",
)
"""Files that take more than some ten seconds. A worker runs a file to its end: one that begins last would keep one core busy
while the others have nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    folder = Path(__file__).parent
    places = {path: rank.get(path.relative_to(folder).as_posix(), len(rank)) for path in {item.path for item in items}}
    items.sort(key=lambda item: places[item.path])


def pytest_collection_finish() -> None:
    """What was imported stays: a collection of garbage, which a library may ask for in each call, need not look through it."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_report_header() -> str:
    compiled = is_compiled()
    if os.environ.get("EVALPIPE_EXPECT_COMPILED") and not compiled:
        raise pytest.UsageError(
            "the collector that is tested is not the compiled one: make test-compiled sets PYTHONPATH"
        )
    return f"collector: {'compiled' if compiled else 'interpreted'}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and oracles beside the checkout; EVALPIPE_SHARED moves it."""
    path = Path(os.environ.get("EVALPIPE_SHARED", ROOT.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no shared data at {path}: set EVALPIPE_SHARED to the folder that holds data/ and oracles/")
    return path


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago, for servers whose port must be known before they start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many oracle cases and values were compared, per file, and which expected values were not, and why."""
    compared: dict[str, list[int]] = {}
    not_compared: list[str] = []
    for report in (r for reports in terminalreporter.stats.values() for r in reports if hasattr(r, "user_properties")):
        for name, value in report.user_properties if getattr(report, "when", "") == "teardown" else ():
            if name == "oracle":
                compared.setdefault(value[0], []).append(value[1])
            elif name == "oracle_not_compared":
                not_compared.append(value)
    if compared or not_compared:
        terminalreporter.section("oracle values compared")
        for file, values in sorted(compared.items()):
            terminalreporter.write_line(f"{file:36s} {len(values):3d} cases {sum(values):5d} values")
        for line in sorted(not_compared):
            terminalreporter.write_line(f"not compared: {line}")
