"""`make check-statistics`: the simulations behind statistics.md 14, through the public functions, beside its numbers.

Prints one line a figure (seen, as designed, bound) and exits 1 when a bound fails. Seeds are fixed; about five minutes.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from canary_cost import canary_cost_lines
from decisions import decision_lines
from few_users import coverage_lines
from identical_arms import identical_arms_lines
from judged_pairs import judged_pairs_lines
from lines import Line
from segments import segment_lines
from tail import p99_lines
from type_one import (
    COST_CAP,
    canary_error_lines,
    draw_capped_cost,
    draw_cost,
    draw_latency,
    draw_score,
    mean_lines,
    paired_error_lines,
    win_rate_lines,
)

PARTS: list[tuple[Callable[..., list[Line]], tuple[object, ...], dict[str, object]]] = [
    (p99_lines, (), {"replications": 1000, "rows": 10_000, "seed": 7}),
    (identical_arms_lines, (), {}),
    (coverage_lines, (), {"replications": 4000, "seed": 8}),
    (win_rate_lines, (), {"replications": 2000, "seed": 5}),
    (paired_error_lines, (), {"replications": 2000, "seed": 4}),
    (canary_error_lines, (), {"replications": 2000, "seed": 6}),
    (mean_lines, ("mean latency, paired", draw_latency, ".027"), {"replications": 2000, "seed": 2}),
    (mean_lines, ("skewed cost, capped", draw_capped_cost, ".025"), {"replications": 2000, "seed": 3}),
    (mean_lines, ("judge score 0-10, paired", draw_score, ".041"), {"replications": 2000, "seed": 1}),
    (mean_lines, ("skewed cost, as billed", draw_cost, "-"), {"replications": 2000, "seed": 12}),
    (canary_cost_lines, ("capped", ".025"), {"cap": COST_CAP, "replications": 1000, "seed": 11}),
    (canary_cost_lines, ("as billed", ".056"), {"cap": math.inf, "replications": 1000, "seed": 13}),
    (segment_lines, (), {"replications": 1000, "seed": 14}),
    (judged_pairs_lines, (), {"replications": 2000, "seed": 9}),
    (decision_lines, (), {"replications": 2000, "seed": 10}),
]


def main() -> int:
    start = time.monotonic()
    failed = 0
    print(f"{'simulated':58s} {'seen':>9s}  {'section 14':>12s}  {'bound':>10s}")
    with ProcessPoolExecutor(2) as pool:
        for part in [pool.submit(function, *args, **kwargs) for function, args, kwargs in PARTS]:
            for line in part.result():
                print(line.render(), flush=True)
                failed += not line.passed
    print(f"{'all bounds hold' if not failed else f'{failed} bounds FAILED'} ({time.monotonic() - start:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
