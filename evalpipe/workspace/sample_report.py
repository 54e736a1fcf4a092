"""`make sample`: reports/sample.html from the shipped sample, the same bytes on every machine.

The sample's log (what two small models really answered, with the latencies that were measured) is loaded, judged by the
simulated judge with stated rules, and reported as of the sample's last instant.
"""

from __future__ import annotations

import gzip
import os
import string
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

from evalpipe.config import CONFIG_FILE
from evalpipe.errors import DataError
from evalpipe.spool.format import RequestRecord, read_record
from evalpipe.workspace.analyze import analyze_workspace
from evalpipe.workspace.demo import LOG, Child, sample_folder
from evalpipe.workspace.judge import judge
from evalpipe.workspace.judge_setup import JudgeOptions
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.report import WrittenReport, sample_report
from evalpipe.workspace.secrets import UNIT_KEY_ENV

SEGMENT = "served-sample.000001.jsonl"


def build_sample_report(reports: Path) -> WrittenReport:
    """Write sample.html and sample.json into `reports`. Raises EvalpipeError."""
    with tempfile.TemporaryDirectory(prefix="evalpipe-sample-") as temp, _environment():
        folder = Path(temp)
        log = sample_folder() / LOG
        arguments = ["sim", "--port", "0", "--judge", "checks", "--ttft-ms", "0", "--tokens-per-second", "100000"]
        with Child("evalpipe", arguments, log=folder / "sim.log", name="the simulated judge") as sim:
            workspace = _workspace(folder, sim.wait_listening())
            spool = workspace.spool
            spool.mkdir(parents=True)
            (spool / SEGMENT).write_bytes(gzip.decompress(log.read_bytes()))
            load(workspace, show_progress=False)
            judge(workspace, JudgeOptions(show_progress=False))
        analysis = analyze_workspace(workspace, now=last_instant(log) + timedelta(seconds=1))
        provenance = {**analysis.provenance, "config": None, "config_fingerprint": None, "reproduce": "evalpipe demo"}
        return sample_report(replace(analysis, provenance=provenance), reports)


def last_instant(log: Path) -> datetime:
    """When the log's last request came in."""
    records = map(read_record, gzip.decompress(log.read_bytes()).splitlines())
    received = [record.received_at for record in records if isinstance(record, RequestRecord)]
    if not received:
        raise DataError(f"{log} holds no request")
    return datetime.fromtimestamp(max(received), UTC).replace(microsecond=0)


def _workspace(folder: Path, sim_url: str) -> Workspace:
    template = resources.files("evalpipe.workspace").joinpath("demo.toml.template").read_text("utf-8")
    urls = {"judge_url": sim_url, "control_url": f"{sim_url}/v1", "treatment_url": f"{sim_url}/v1"}
    text = string.Template(template).substitute(urls, sim_port=sim_url.rsplit(":", 1)[1], collector_port=8400)
    (folder / CONFIG_FILE).write_text(text, "utf-8")
    return open_workspace(folder / CONFIG_FILE, folder / "data")


@contextmanager
def _environment() -> Iterator[None]:
    """One key for the hashed users, so that the same ones are the same everywhere; any key for the simulated judge."""
    wanted = {UNIT_KEY_ENV: "sample", "EVALPIPE_DEMO_KEY": "sample"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    written = build_sample_report(Path("reports"))
    sys.stderr.write(f"wrote {written.html} and {written.json.name}\n")
