"""Alerts of a running collector, for what a morning's run would report too late: silence, failing copies, a budget, a canary.

They are made from the counters of its processes, in the supervisor's process, so that neither a slow webhook nor anything here
comes in a request's way.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from evalpipe.models import FAILED, CanaryStatus, last_event
from evalpipe.rollout.canary import CONTROLLER, TAIL_BYTES
from evalpipe.workspace.paths import Workspace
from evalpipe.workspace.webhook import Alert, Post, lasting_alerts, send_new

WINDOW_S = 600.0
"""copies are counted over so long"""
_MIN_COPIES = 20
_LONGEST_WAIT_S = 30.0
_SHORTEST_WAIT_S = 0.25

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
"""(metric, labels sorted by name) → value, summed over all processes"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counts:
    """The counters at one look. `at`: seconds since the epoch; `failed`: copies by how they failed."""

    at: float
    n_served: int
    n_copies: int
    failed: Mapping[str, int]
    n_shed_by_budget: int


class CollectorAlerts:
    """Looks at the counters now and then, and sends what is new.

    What it has reported lasts until the counters show that it has ended: without traffic nothing ends.

    Args:
        clock: seconds since the epoch.
        post: who sends; None: an HTTP request, tried three times.
    """

    def __init__(
        self, workspace: Workspace, *, clock: Callable[[], float] = time.time, post: Post | None = None
    ) -> None:
        config = workspace.require_config()
        self._workspace, self._clock, self._post = workspace, clock, post
        self._experiment = config.experiment.name
        self._is_canary = config.experiment.mode == "canary"
        self._patience_s = 60 * config.alerts.nothing_for_minutes
        self._budget_usd = config.collector.shadow_budget_usd
        self._looks: deque[_Counts] = deque()
        self._began_at = self._served_at = clock()
        lasting, _ = lasting_alerts(workspace, self._experiment, reporters=("collect",))
        self._lasting = dict(lasting)

    @property
    def every_s(self) -> float:
        """Between two looks."""
        return max(_SHORTEST_WAIT_S, min(_LONGEST_WAIT_S, self._patience_s / 4))

    def look(self, samples: Samples) -> tuple[list[Alert], str | None]:
        """Compare the counters with those before, and send what is new.

        Returns:
            (the alerts that are new, why some could not be sent yet).
        """
        now = _counts(samples, self._clock())
        if self._looks and now.n_served > self._looks[-1].n_served:
            self._served_at = now.at
            self._lasting.pop("nothing_collected", None)
        elif not self._looks and now.n_served:
            self._served_at = now.at
        self._looks.append(now)
        while len(self._looks) > 1 and self._looks[1].at <= now.at - WINDOW_S:
            self._looks.popleft()
        before = self._looks[0]
        self._silence(now)
        self._copies(before, now)
        self._budget(before, now)
        self._guardrail()
        return send_new(
            self._workspace,
            self._experiment,
            self._lasting,
            reporter="collect",
            at=datetime.fromtimestamp(now.at, UTC),
            post=self._post,
        )

    def _silence(self, now: _Counts) -> None:
        if now.at - self._served_at <= self._patience_s:
            return
        since = f"{datetime.fromtimestamp(self._served_at, UTC):%Y-%m-%d %H:%M} UTC"
        start = ", when the collector was started" if self._served_at == self._began_at else ""
        self._lasting.setdefault("nothing_collected", f"no request was collected since {since}{start}")

    def _copies(self, before: _Counts, now: _Counts) -> None:
        n = now.n_copies - before.n_copies
        if n < _MIN_COPIES:
            return
        failed = {name: count - before.failed.get(name, 0) for name, count in now.failed.items()}
        failed = {name: count for name, count in sorted(failed.items()) if count > 0}
        if 2 * sum(failed.values()) <= n:
            self._lasting.pop("copies_failing", None)
            return
        how = ", ".join(f"{count:,} {name}" for name, count in failed.items())
        self._lasting.setdefault(
            "copies_failing",
            f"{sum(failed.values()):,} of the last {n:,} copies failed in the treatment arm: {how}",
        )

    def _budget(self, before: _Counts, now: _Counts) -> None:
        n_shed = now.n_shed_by_budget - before.n_shed_by_budget
        if n_shed > 0:
            limit = "" if self._budget_usd is None else f" of ${self._budget_usd:,.2f}"
            self._lasting.setdefault(
                "budget_used_up", f"the budget{limit} of copies is used up: requests are not copied"
            )
        elif now.n_copies > before.n_copies:
            self._lasting.pop("budget_used_up", None)

    def _guardrail(self) -> None:
        if not self._is_canary:
            return
        try:
            with (self._workspace.data / "canary" / f"{self._experiment}.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
                last = last_event(file.read())
        except OSError:
            return
        if last is not None and last.who == CONTROLLER and last.state.status is CanaryStatus.ROLLED_BACK:
            self._lasting.setdefault("guardrail_breached", f"the canary was rolled back: {last.why}")
        else:
            self._lasting.pop("guardrail_breached", None)


def _counts(samples: Samples, at: float) -> _Counts:
    n_served = n_copies = n_shed = 0
    failed: dict[str, int] = {}
    for (metric, labels), value in samples.items():
        found = dict(labels)
        if metric == "evalpipe_requests_total" and found["role"] == "served":
            n_served += int(value)
        elif metric == "evalpipe_requests_total" and found["role"] == "shadow":
            n_copies += int(value)
            if found["outcome"] in FAILED:
                failed[found["outcome"]] = failed.get(found["outcome"], 0) + int(value)
        elif metric == "evalpipe_shadow_shed_total" and found["reason"] == "budget":
            n_shed += int(value)
    return _Counts(at=at, n_served=n_served, n_copies=n_copies, failed=failed, n_shed_by_budget=n_shed)
