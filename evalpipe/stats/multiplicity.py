"""Many questions at once: adjusted p-values, and e-values for when one looks repeatedly
(docs/statistics.md#multiplicity).

Sources: Holm 1979; Benjamini & Hochberg 1995; e-BH of Wang & Ramdas, JRSS-B 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """min(1, m p)."""
    return [min(1.0, len(p_values) * p) for p in p_values]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    p, order = _ordered(p_values)
    steps = np.minimum(1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return _restored(steps, order)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p-values (false-discovery rate), in the order given."""
    p, order = _ordered(p_values)
    m = len(p)
    steps = np.minimum.accumulate((m / np.arange(1, m + 1) * p[order])[::-1])[::-1] if m else p
    return _restored(np.minimum(1.0, steps), order)


def e_benjamini_hochberg(e_values: Sequence[float], *, q: float = 0.1) -> list[bool]:
    """Which hypotheses e-BH rejects at false-discovery rate `q`: the k largest with e_(k) ≥ K/(k q), k as large as can be."""
    e = np.asarray(e_values, float)
    order = np.argsort(-e, kind="stable")
    k = np.arange(1, len(e) + 1)
    passing = np.nonzero(e[order] >= len(e) / (k * q) * (1 - 1e-12))[0]
    rejected = np.zeros(len(e), bool)
    if len(passing):
        rejected[order[: passing[-1] + 1]] = True
    return [bool(r) for r in rejected]


def _ordered(p_values: Sequence[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    p = np.asarray(p_values, float)
    if len(p) and not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    return p, np.argsort(p, kind="stable")


def _restored(steps: npt.NDArray[np.float64], order: npt.NDArray[np.intp]) -> list[float]:
    adjusted = np.empty(len(steps))
    adjusted[order] = steps
    return [float(a) for a in adjusted]
