"""1,000,000 users at 10 %, every step of the percentage, and two experiments beside each other. By `make check-rollout`."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
from scipy import stats

from evalpipe.identity import bucket

N = 1_000_000


def main() -> int:
    one = np.fromiter((bucket("experiment-one", f"user-{i}") for i in range(N)), int, N)
    two = np.fromiter((bucket("experiment-two", f"user-{i}") for i in range(N)), int, N)
    share = float((one < 1000).mean())
    errors = abs(share - 0.1) / math.sqrt(0.1 * 0.9 / N)
    steps = (1, 5, 10, 25, 50, 100)
    moved_back = sum(int(((one < 100 * low) & ~(one < 100 * high)).sum()) for low, high in itertools.pairwise(steps))
    table = np.histogram2d(one, two, bins=20)[0]
    p = float(stats.chi2_contingency(table).pvalue)
    uniform = float(stats.chisquare(np.bincount(one, minlength=10_000)).pvalue)
    good = errors <= 4 and moved_back == 0 and p > 0.001 and uniform > 0.001
    print(
        f"{'ok    ' if good else 'FAIL  '}{N:,} users at 10 %: {share:.4%} in treatment ({errors:.1f} standard errors off, "
        f"at most 4); {moved_back} moved back over {steps}; two experiments independent: chi-square p = {p:.2f}; "
        f"buckets even: p = {uniform:.2f}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
