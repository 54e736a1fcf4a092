"""Fixtures every test may use: the shared real data and oracles (or a clear skip), and free ports."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from evalpipe.collector import is_compiled

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))  # command_line.py, for the tests of every folder

# Some hundred processes of evalpipe are started: none of them compiles the package for itself, and no worker rewrites the tests'
# assertions again, also where the environment (a container image's, often) asks for no bytecode.
if "EVALPIPE_NO_BYTECODE" not in os.environ:
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A slow or busy machine is no failure, and the same commit gives the same result: examples come from the test's own name.
settings.register_profile("evalpipe", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("evalpipe")


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
