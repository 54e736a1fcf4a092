"""The progress line of a run: done/total, per minute, share of the limit in use, spent, left, failures by kind."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from tqdm import tqdm

from evalpipe.calls.budget import Budget
from evalpipe.calls.limiter import Limiter
from evalpipe.text import printable


class Counts(Protocol):
    """What is shown of a run while it goes on."""

    n_planned: int
    spent_usd: float | None
    retried: Counter[str]

    @property
    def title(self) -> str: ...
    @property
    def failed(self) -> Counter[str]: ...
    @property
    def n_ended(self) -> int: ...


_EVERY_S = 0.5


class Progress:
    """A tqdm bar on stderr; silent where stderr is no terminal unless `shown` says otherwise."""

    def __init__(
        self, tally: Counts, limiters: Sequence[Limiter], budget: Budget, *, shown: bool | None = None
    ) -> None:
        self._tally, self._limiters, self._budget = tally, limiters, budget
        self._started = time.monotonic()
        self._next = 0.0
        self._bar = tqdm(
            total=tally.n_planned,
            desc=tally.title,
            unit="call",
            file=sys.stderr,
            disable=not (sys.stderr.isatty() if shown is None else shown),
            mininterval=_EVERY_S,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def __call__(self) -> None:
        now = time.monotonic()
        if not self._bar.disable and now >= self._next:
            self._next = now + _EVERY_S
            self._bar.n = self._tally.n_ended
            self._bar.set_postfix_str(self.line(now), refresh=True)

    def line(self, now: float) -> str:
        tally = self._tally
        minutes = max((now - self._started) / 60, 1 / 60)
        kind, share = max((one.share_in_use(now) for one in self._limiters), key=lambda found: found[1])
        parts = [f"{tally.n_ended / minutes:.0f}/min", f"{share:.0%} of {kind.replace('_', ' ')}"]
        if tally.spent_usd is not None:
            parts.append(f"${tally.spent_usd:.4f}")
        if self._budget.left is not None:
            parts.append(f"${self._budget.left:.2f} left")
        troubles = tally.failed + tally.retried
        if troubles:
            parts.append(", ".join(f"{name} {n}" for name, n in troubles.most_common(3)))
        return " · ".join(parts)

    def write(self, text: str) -> None:
        """A line of its own on stderr, above the bar; printed where there is no bar, too."""
        tqdm.write(f"evalpipe: {printable(text)}", file=sys.stderr)

    def close(self) -> None:
        self._bar.n = self._tally.n_ended
        if not self._bar.disable:
            self._bar.set_postfix_str(self.line(time.monotonic()), refresh=False)
        self._bar.close()
