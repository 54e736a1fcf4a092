"""Reading the oracle files, comparing at their tolerance, and counting what was compared.

A case passes only if every expected value was either compared or stands in NOT_COMPARED with its reason.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ORACLES = Path(os.environ.get("EVALPIPE_ORACLES", Path(__file__).resolve().parents[3] / "shared" / "oracles"))

LATER = "panels and variance reduction by earlier data are not built"
NOT_COMPARED: dict[str, dict[str, str]] = {
    "agreement": {
        "lo": "Wald interval of kappa: ours is on the atanh scale",
        "hi": "Wald interval of kappa: ours is on the atanh scale",
        "alpha_interval": "interval alpha: docs/statistics.md asks for the nominal one",
        "kendall_tau_b": "docs/statistics.md asks for Spearman",
    },
    "bradley_terry": {"*": "more than two arms: comes later"},
    "cuped": {"tea_tasting": LATER, "gbstats": LATER},
    "decision_table_rules": {"overall": "the overall decision is tested in tests/analysis"},
    "judge_panel": {"*": LATER},
    "multiplicity": {
        "simes-hochberg": "not used",
        "hommel": "not used",
        "fdr_by": "not used",
        "scipy_by": "not used",
    },
    "paired_proportion_ci_frozen": {"bonett_price": "not chosen: Tango has the better coverage"},
    "power": {
        "n_paired_t": "docs/statistics.md plans with the normal quantile",
        "n1_unpaired_t": "docs/statistics.md plans with the normal quantile",
        "power_paired_t_n200": "docs/statistics.md plans with the normal quantile",
        "mde_paired_t_n500": "docs/statistics.md plans with the normal quantile",
    },
}


def oracle(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Parametrise a test over the cases of one file; `case` compares its values. Without the folder: one clear skip."""
    path = ORACLES / f"{name}.json"
    if path.is_file():
        document = json.loads(path.read_text(encoding="utf-8"))
        params = [pytest.param((name, document, case), id=str(case["id"])) for case in document["cases"]]
    else:
        reason = f"no oracle file {path.name} in {ORACLES}: set EVALPIPE_ORACLES to the folder that holds it"
        params = [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        return pytest.mark.oracle(pytest.mark.parametrize("case", params, indirect=True)(test))

    return mark


class Case:
    """One case: `input`, `expected`, and comparisons at the file's own tolerance."""

    def __init__(self, name: str, document: dict[str, Any], case: dict[str, Any]) -> None:
        self.name, self.id = name, str(case["id"])
        self.input: dict[str, Any] = case["input"]
        self.expected: dict[str, Any] = case["expected"]
        self.rel_tol: float = document.get("rel_tol") or 0.0
        self.abs_tol: float = document.get("abs_tol") or 1e-12
        self.n_compared = 0
        self.seen: set[str] = set()

    def equal(self, key: str, got: Any, *, rel: float | None = None, scale: float | None = None) -> None:
        """`got` is the expected value under `key` (dots go deeper; lists item by item; null is not compared).

        `scale`: the size the tolerance refers to, where the value itself may be near 0 by cancellation.
        """
        expected: Any = self.expected
        for part in key.split("|"):
            expected = expected[part]
        self.seen.add(key.split("|")[0])
        self._compare(key, got, expected, self.rel_tol if rel is None else rel, scale)

    def _compare(self, key: str, got: Any, expected: Any, rel: float, scale: float | None) -> None:
        if expected is None:
            return
        if isinstance(expected, list):
            assert len(got) == len(expected), f"{key}: {got} has not the length of {expected}"
            for item, value in zip(got, expected, strict=True):
                self._compare(key, item, value, rel, scale)
            return
        self.n_compared += 1
        if isinstance(expected, str | bool):
            assert got == expected, f"{self.name}/{self.id} {key}: {got!r} instead of {expected!r}"
            return
        assert got is not None, f"{self.name}/{self.id} {key}: nothing instead of {expected}"
        tolerance = max(rel * max(abs(expected), scale or 0.0), self.abs_tol)
        assert math.isclose(got, expected, rel_tol=0, abs_tol=tolerance), (
            f"{self.name}/{self.id} {key}: {got} instead of {expected}"
        )

    def finish(self) -> None:
        skipped = NOT_COMPARED.get(self.name, {})
        forgotten = set(self.expected) - self.seen - set(skipped)
        forgotten = {key for key in forgotten if self.expected[key] is not None}
        assert "*" in skipped or not forgotten, f"{self.name}/{self.id}: never compared {sorted(forgotten)}"
