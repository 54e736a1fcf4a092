"""False discoveries among segments when one looks again and again: Benjamini-Hochberg on anytime p = 1/E, which is e-BH.

Forty segments whose users differ by one standard deviation, correlated (.3, a shared shock a look); a look every 200 users.
The run ends at the first discovery, the moment at which somebody would report it: where no segment has a difference the rate
of false discoveries is then the share of runs that ever find one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from chunks import Chunk, Sums
from lines import Line
from scipy.special import ndtr

from evalpipe.stats import estimates
from evalpipe.stats.multiplicity import benjamini_hochberg, e_benjamini_hochberg
from evalpipe.stats.sequential import Anytime

SEGMENTS = 40
LOOKS = np.arange(200, 4001, 200)
CORRELATION = 0.3
Q = 0.1
"""the rate of false discoveries that segments.py allows"""
MODE = Anytime(n_star=1000)


def simulate_segments(chunk: Chunk, *, n_true: int, title: str) -> Sums:
    """`n_true` of the segments differ by .15 standard deviations."""
    assert LOOKS[0] >= estimates.MIN_PAIRS_ANYTIME
    effects = np.where(np.arange(SEGMENTS) < n_true, 0.15, 0.0)
    sums: Sums = {"false": 0.0, "false squared": 0.0, "true": 0.0, "naive": 0.0}
    for _ in range(chunk.n):
        z = _looks(chunk.rng, effects)
        share, n_right = _first(z, effects, _discovered)
        sums["false"] += share
        sums["false squared"] += share**2
        sums["true"] += n_right
        sums["naive"] += _first(z, effects, _naive)[0]
    return sums


def report_segments(sums: Sums, *, n_true: int, title: str) -> list[Line]:
    runs = sums["replications"]
    seen = sums["false"] / runs
    bound = Q + 2 * float(np.sqrt(max(0.0, sums["false squared"] / runs - seen**2) / runs))
    detail = f"{runs:.0f} runs" + (f", {sums['true'] / runs:.1f} true ones at that look" if n_true else "")
    lines = [
        Line(
            name=f"false discoveries, {SEGMENTS} segments, {title}",
            seen=seen,
            designed="<= .1",
            bound=bound,
            detail=detail,
        )
    ]
    if not n_true:
        naive = sums["naive"] / runs
        lines.append(Line(name="the same with plain p-values", seen=naive, designed="-", bound=0.15, at_least=True))
    return lines


def _looks(rng: np.random.Generator, effects: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """z of every segment at every look."""
    steps = np.diff(LOOKS, prepend=0)[:, None]
    shared, own = rng.normal(size=(len(LOOKS), 1)), rng.normal(size=(len(LOOKS), SEGMENTS))
    noise = np.sqrt(steps) * (np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * own)
    return np.asarray((np.cumsum(noise, axis=0) + effects * LOOKS[:, None]) / np.sqrt(LOOKS)[:, None])


def _first(
    z: npt.NDArray[np.float64],
    effects: npt.NDArray[np.float64],
    rule: Callable[[npt.NDArray[np.float64], int], npt.NDArray[np.bool_]],
) -> tuple[float, int]:
    """(share of false ones, number of true ones) among the discoveries at the first look that has any."""
    for row, n in zip(z, LOOKS, strict=True):
        chosen = rule(row, int(n))
        if chosen.any():
            return float((effects[chosen] == 0).mean()), int((effects[chosen] != 0).sum())
    return 0.0, 0


def _discovered(z: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.bool_]:
    """As segments.py does it; e-BH on the e-values themselves must choose the same."""
    if np.abs(z).max() < 2.5:  # E is below 1/Q there, whatever n: nothing can be found
        return np.zeros(len(z), bool)
    p = [MODE.p_value(float(value), n=n) or 0.0 for value in z]
    chosen = np.array(benjamini_hochberg(p)) <= Q
    e = np.exp([MODE.log_e(float(value), n=n) for value in z])
    assert chosen.tolist() == e_benjamini_hochberg(e.tolist(), q=Q), "BH on 1/E and e-BH disagree"
    return np.asarray(chosen)


def _naive(z: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.bool_]:
    return np.asarray(benjamini_hochberg(list(2 * ndtr(-np.abs(z))))) <= Q
