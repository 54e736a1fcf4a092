"""reports/sample.html is what the shipped sample gives today, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalpipe.workspace.demo import LOG
from evalpipe.workspace.paths import shipped

REPORTS = Path(__file__).resolve().parents[2] / "reports"


@pytest.mark.timeout(110)
def test_the_sample_report_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    if not (shipped("data/sample") / LOG).is_file() or not (REPORTS / "sample.html").is_file():
        pytest.skip("no sample report yet: `make sample` writes it")
    from evalpipe.workspace.sample_report import build_sample_report

    built = build_sample_report(tmp_path)
    assert built.json.read_bytes() == (REPORTS / "sample.json").read_bytes(), (
        "run `make sample` and commit what it writes"
    )
    assert built.html.read_bytes() == (REPORTS / "sample.html").read_bytes(), (
        "run `make sample` and commit what it writes"
    )
