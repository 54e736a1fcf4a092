"""No oracle file is forgotten: each is compared, or stands in the list of what is not, with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from oracle_cases import NOT_COMPARED, ORACLES

TESTS = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_oracle_*.py"))


def _present() -> list[Path]:
    if not ORACLES.is_dir():
        pytest.skip(f"no oracle folder {ORACLES}: set EVALPIPE_ORACLES to the folder that holds the cases")
    return sorted(ORACLES.glob("*.json"))


@pytest.mark.oracle
def test_oracle_files_are_all_compared_or_listed() -> None:
    forgotten = [
        path.stem
        for path in _present()
        if f'@oracle("{path.stem}")' not in TESTS and "*" not in NOT_COMPARED.get(path.stem, {})
    ]
    assert not forgotten


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in NOT_COMPARED.items() for key in keys])
def test_oracle_values_not_compared(name: str, key: str, record_property: Any) -> None:
    path = next((p for p in _present() if p.stem == name), None)
    if path is None:
        pytest.skip(f"no {name}.json in {ORACLES}")
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert key == "*" or any(key in case["expected"] or key == case["input"].get("method") for case in cases)
    record_property("oracle_not_compared", f"{name}{'' if key == '*' else ' ' + key}: {NOT_COMPARED[name][key]}")
