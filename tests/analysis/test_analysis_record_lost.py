"""A record that is gone or damaged forgets no exclusion and no decision: its copy is read, or the loss is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalpipe.analysis.record import ExperimentRecord
from evalpipe.analysis.settings import Exclusion
from evalpipe.errors import DataError
from evalpipe.workspace.paths import has_record, record_path
from evalpipe.workspace.record import load_record, recording, save_record

EXCLUDED = Exclusion(
    since="2026-01-01T00:00:00+00:00", until="2026-01-02T00:00:00+00:00", why="outage", declared_at="2026-01-03"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    record = ExperimentRecord(
        experiment="e", created_at="2026-01-01", n_star={}, confidence_level=0.95, rules="r", exclusions=[EXCLUDED]
    )
    with recording(tmp_path, "e"):
        save_record(tmp_path, record)
    return tmp_path


@pytest.mark.parametrize("left", [None, b"", b'{"exp'])
def test_the_copy_is_read(data: Path, left: bytes | None) -> None:
    path = record_path(data, "e")
    if left is None:
        path.unlink()
    else:
        path.write_bytes(left)
    found = load_record(data, "e")
    assert found is not None and found.exclusions == [EXCLUDED]
    assert has_record(data, "e")


def test_without_both_the_loss_is_an_error(data: Path) -> None:
    for path in (data / "experiments").glob("*e.*"):
        if path.suffix in {".json", ".copy"}:
            path.unlink()
    assert has_record(data, "e")
    with pytest.raises(DataError, match="lost") as raised:
        load_record(data, "e")
    assert "restore" in str(raised.value)


def test_a_verdict_of_a_decision_is_a_sign_too(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text('{"experiment": "e", "decided_at": "2026-01-01T00:00:00+00:00"}')
    with pytest.raises(DataError, match=r"verdict\.json"):
        load_record(tmp_path, "e")
    assert load_record(tmp_path, "another") is None


def test_the_first_look_has_no_record(tmp_path: Path) -> None:
    with recording(tmp_path, "e"):
        assert load_record(tmp_path, "e") is None
    (tmp_path / "verdict.json").write_text('{"experiment": "e", "decided_at": null}')
    assert load_record(tmp_path, "e") is None
