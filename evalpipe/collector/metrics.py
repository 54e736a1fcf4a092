"""Prometheus metrics under the contract's names, added up over all processes of the collector.

`PROMETHEUS_MULTIPROC_DIR` must be set before this module is imported: then every process counts in its own mapped file,
and what a killed process counted stays.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_OVERHEAD_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)


class BatchedHistogram(Histogram):
    """A histogram that takes many observations at once."""

    @property
    def bounds(self) -> tuple[float, ...]:
        """Upper bounds of the buckets, without +Inf."""
        return tuple(self._upper_bounds[:-1])

    def observe_many(self, counts: Sequence[int], total: float) -> None:
        """`counts`: observations by bucket, the one beyond the last bound included; `total`: their sum."""
        self._sum.inc(total)
        for bucket, n in zip(self._buckets, counts, strict=True):
            if n:
                bucket.inc(n)


_registry = CollectorRegistry()
REQUESTS = Counter(
    "evalpipe_requests_total",
    "Exchanges, by outcome at the level of HTTP",
    ["experiment", "arm", "role", "outcome"],
    registry=_registry,
)
DURATION = BatchedHistogram(
    "evalpipe_request_duration_seconds",
    "From the request sent to the answer's end",
    ["experiment", "arm", "role"],
    buckets=_LATENCY_BUCKETS,
    registry=_registry,
)
FIRST_TOKEN = BatchedHistogram(
    "evalpipe_time_to_first_token_seconds",
    "From the request sent to the first bytes of a streamed answer",
    ["experiment", "arm", "role"],
    buckets=_LATENCY_BUCKETS,
    registry=_registry,
)
TOKENS = Counter("evalpipe_tokens_total", "Tokens as billed", ["experiment", "arm", "role", "kind"], registry=_registry)
COST = Counter(
    "evalpipe_cost_usd_total",
    "Cost, at own prices, the provider's own figure or list prices",
    ["experiment", "arm", "role"],
    registry=_registry,
)
SHED = Counter(
    "evalpipe_shadow_shed_total", "Copies not sent under pressure", ["experiment", "reason"], registry=_registry
)
SHADOW = Counter(
    "evalpipe_shadow_decisions_total", "What became of copies", ["experiment", "status"], registry=_registry
)
BUDGET_SPENT = Gauge(
    "evalpipe_shadow_budget_spent_usd",
    "Of the copies' budget: what they have cost over the experiment's life and all its replicas",
    ["experiment"],
    multiprocess_mode="mostrecent",
    registry=_registry,
)
BUDGET_LEFT = Gauge(
    "evalpipe_shadow_budget_left_usd",
    "Of the copies' budget: what is neither spent nor reserved, here or by another replica",
    ["experiment"],
    multiprocess_mode="mostrecent",
    registry=_registry,
)
BUDGET_REFUSED = Gauge(
    "evalpipe_shadow_budget_refused_usd",
    "What the copy that the budget refused last may cost at most; 0 where there is room for it again",
    ["experiment"],
    multiprocess_mode="mostrecent",
    registry=_registry,
)
OVERHEAD = BatchedHistogram(
    "evalpipe_proxy_overhead_seconds",
    "Time the collector itself spent on a request and its answer's end",
    buckets=_OVERHEAD_BUCKETS,
    registry=_registry,
)
LOST = Counter("evalpipe_records_lost_total", "Records that could not be written", ["process"], registry=_registry)
TROUBLE = Gauge(
    "evalpipe_last_trouble_timestamp_seconds",
    "When records were last lost (kind lost) or connections refused at the limit of open files (kind open_files)",
    ["kind"],
    multiprocess_mode="max",
    registry=_registry,
)
UNCONNECTED = Counter(
    "evalpipe_connections_refused_total",
    "Connections refused at the limit of open files (ulimit -n)",
    registry=_registry,
)
UNLOADED = Gauge(
    "evalpipe_spool_unloaded_bytes",
    "Log in the spool that load has not taken away",
    multiprocess_mode="mostrecent",
    registry=_registry,
)
UNLOADED_AGE = Gauge(
    "evalpipe_spool_unloaded_age_seconds",
    "Age of the oldest segment of the spool that holds something",
    multiprocess_mode="mostrecent",
    registry=_registry,
)
UNACCOUNTED = Gauge(
    "evalpipe_spool_unaccounted_bytes",
    "Log whose tokens and dollars are not in the counters yet",
    multiprocess_mode="mostrecent",
    registry=_registry,
)
FALLING_BEHIND = Gauge(
    "evalpipe_spool_falling_behind",
    "1 where the spool grows faster than it is loaded",
    multiprocess_mode="mostrecent",
    registry=_registry,
)
REFUSED = Counter(
    "evalpipe_refused_requests_total", "Requests refused before any arm saw them", ["status"], registry=_registry
)
USAGE_REFUSED = Counter(
    "evalpipe_stream_usage_refused_total",
    "Requests sent again without the stream_options that evalpipe had added and the arm's server refused",
    ["experiment", "arm"],
    registry=_registry,
)
PASSED = Counter("evalpipe_passed_through_total", "Requests to paths that are not collected", registry=_registry)
UNCOLLECTED = Counter(
    "evalpipe_uncollected_calls_total",
    "Requests that look like model calls, at paths that are not collected",
    registry=_registry,
)
CANARY = Gauge(
    "evalpipe_canary_percentage",
    "Share of treatment in force",
    ["experiment"],
    multiprocess_mode="mostrecent",
    registry=_registry,
)
REPLICA = Gauge(
    "evalpipe_replica_info",
    "1, with the name of this collector among those of the experiment",
    ["replica"],
    multiprocess_mode="max",
    registry=_registry,
)
GUARDRAIL = Gauge(
    "evalpipe_guardrail_breached",
    "1 where the canary's last evaluation found the guardrail breached",
    ["experiment", "guardrail"],
    multiprocess_mode="mostrecent",
    registry=_registry,
)
RATING = Histogram(
    "evalpipe_user_rating",
    "Users' ratings of answers, 0 to 1",
    ["experiment", "arm"],
    buckets=(0, 0.25, 0.5, 0.75, 1),
    registry=_registry,
)


def shared_registry() -> CollectorRegistry:
    """Where every metric of this process is registered."""
    return _registry


class _Series:
    """Observations of one histogram child, kept in plain numbers until the next flush: one such observation costs a tenth of
    one in the mapped file that all processes share."""

    __slots__ = ("_bounds", "_child", "_counts", "_total", "n")

    def __init__(self, child: BatchedHistogram) -> None:
        self._child, self._bounds = child, child.bounds
        self._counts: list[int] = [0] * (len(self._bounds) + 1)
        self._total = 0.0
        self.n = 0

    def observe(self, value: float) -> None:
        bucket = 0
        for bound in self._bounds:  # nearly everything is in the first ones
            if value <= bound:
                break
            bucket += 1
        self._counts[bucket] += 1
        self._total += value
        self.n += 1

    def flush(self) -> None:
        if self.n:
            self._child.observe_many(self._counts, self._total)
            self._counts, self._total, self.n = [0] * len(self._counts), 0.0, 0


class Exchanges:
    """The exchanges of one arm in one role: how they ended, how long they took. `n_ok`: those that ended well as far as HTTP
    tells; `is_proven`: one of them has been read and is an answer."""

    __slots__ = ("_durations", "_first_tokens", "_labels", "_outcomes", "is_proven", "n_ok")

    def __init__(self, experiment: str, arm: str, role: str) -> None:
        self._labels = (experiment, arm, role)
        self._outcomes: dict[str, int] = {}
        self._durations = _Series(DURATION.labels(*self._labels))
        self._first_tokens: _Series | None = None
        self.n_ok = 0
        self.is_proven = False

    def observe(self, outcome: str, seconds: float, first_token_ms: float | None) -> None:
        if outcome == "ok":
            self.n_ok += 1
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
        self._durations.observe(seconds)
        if first_token_ms is not None:
            if self._first_tokens is None:
                self._first_tokens = _Series(FIRST_TOKEN.labels(*self._labels))
            self._first_tokens.observe(first_token_ms / 1000)

    def flush(self) -> None:
        for outcome, n in self._outcomes.items():
            REQUESTS.labels(*self._labels, outcome).inc(n)
        self._outcomes.clear()
        self._durations.flush()
        if self._first_tokens is not None:
            self._first_tokens.flush()


class Metrics:
    """What one process counts. What comes with every exchange is kept here and flushed a few times a second."""

    def __init__(self, experiment: str, process: str) -> None:
        self._experiment, self._process = experiment, process
        self._amounts: dict[tuple[Counter, tuple[str, ...]], float] = {}
        self._exchanges: list[Exchanges] = []
        self._served: dict[str, Exchanges] = {}
        self._overhead = _Series(OVERHEAD)
        # Their places in the files are taken now: when they are needed the disk may be full, or no descriptor left.
        LOST.labels(process)
        UNCONNECTED.inc(0)
        for kind in ("lost", "open_files"):
            TROUBLE.labels(kind).set(0)

    def served(self, arm: str) -> Exchanges:
        found = self._served.get(arm)
        if found is None:
            found = self._served[arm] = self._new(arm, "served")
        return found

    def copies(self) -> Exchanges:
        """To be asked for once."""
        return self._new("treatment", "shadow")

    def _new(self, arm: str, role: str) -> Exchanges:
        made = Exchanges(self._experiment, arm, role)
        self._exchanges.append(made)
        return made

    def _add(self, counter: Counter, labels: tuple[str, ...], amount: float) -> None:
        key = (counter, labels)
        self._amounts[key] = self._amounts.get(key, 0) + amount

    def flush(self) -> None:
        """Make what was kept visible to a scrape; to be called a few times a second and at the end."""
        for (counter, labels), amount in self._amounts.items():
            counter.labels(self._experiment, *labels).inc(amount)
        self._amounts.clear()
        self._overhead.flush()
        for exchanges in self._exchanges:
            exchanges.flush()

    def overhead(self, seconds: float) -> None:
        self._overhead.observe(seconds)

    def shed(self, reason: str) -> None:
        SHED.labels(self._experiment, reason).inc()

    def shadow(self, status: str, n: int = 1) -> None:
        self._add(SHADOW, (status,), n)

    def tokens(self, arm: str, role: str, kind: str, n: int) -> None:
        self._add(TOKENS, (arm, role, kind), n)

    def cost(self, arm: str, role: str, usd: float) -> None:
        self._add(COST, (arm, role), usd)

    def lost(self, n: int = 1) -> None:
        LOST.labels(self._process).inc(n)
        TROUBLE.labels("lost").set(time())

    def unconnected(self, n: int) -> None:
        UNCONNECTED.inc(n)
        TROUBLE.labels("open_files").set(time())

    def spool(self, *, unloaded_bytes: int, age_s: float, unaccounted_bytes: int, falling_behind: bool) -> None:
        UNLOADED.set(unloaded_bytes)
        UNLOADED_AGE.set(age_s)
        UNACCOUNTED.set(unaccounted_bytes)
        FALLING_BEHIND.set(float(falling_behind))

    def budget(self, *, spent_usd: float, left_usd: float, refused_usd: float) -> None:
        BUDGET_SPENT.labels(self._experiment).set(spent_usd)
        BUDGET_LEFT.labels(self._experiment).set(left_usd)
        BUDGET_REFUSED.labels(self._experiment).set(refused_usd)

    def refused(self, status: int) -> None:
        REFUSED.labels(str(status)).inc()

    def usage_refused(self, arm: str) -> None:
        USAGE_REFUSED.labels(self._experiment, arm).inc()

    def passed_through(self) -> None:
        PASSED.inc()

    def uncollected(self) -> None:
        UNCOLLECTED.inc()

    def replica(self, name: str) -> None:
        REPLICA.labels(name).set(1)

    def canary(self, percentage: float) -> None:
        CANARY.labels(self._experiment).set(percentage)

    def guardrail(self, name: str, breached: bool) -> None:
        GUARDRAIL.labels(self._experiment, name).set(float(breached))

    def rated(self, arm: str | None, rating: float) -> None:
        RATING.labels(self._experiment, arm or "unknown").observe(rating)


class _FinishedFiles(MultiProcessCollector):
    """What all processes have counted. A file that a process is just making is empty for a moment, and holds nothing yet."""

    def collect(self) -> Any:
        """The metrics, added up."""
        files = [str(path) for path in Path(self._path).glob("*.db") if path.stat().st_size]
        return self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]


def _counted_in(folder: str) -> CollectorRegistry:
    registry = CollectorRegistry()
    _FinishedFiles(registry, path=folder)  # type: ignore[no-untyped-call]
    return registry


def render_metrics(folder: str) -> bytes:
    """The sum over all processes that count in `folder`, in Prometheus' text format."""
    return generate_latest(_counted_in(folder))


def read_samples(folder: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(metric, labels sorted by name) → value, summed over all processes that count in `folder`."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in _counted_in(folder).collect()
        for sample in metric.samples
    }


class Totals:
    """What health asks of the counters, over all processes."""

    def __init__(self, folder: str, experiment: str) -> None:
        samples = read_samples(folder)
        of = (("experiment", experiment),)
        self.budget_refused_usd = samples.get(("evalpipe_shadow_budget_refused_usd", of), 0.0)
        self.budget_left_usd = samples.get(("evalpipe_shadow_budget_left_usd", of), 0.0)
        self.n_lost = int(sum(value for (name, _), value in samples.items() if name == "evalpipe_records_lost_total"))
        self.n_unconnected = int(samples.get(("evalpipe_connections_refused_total", ()), 0))
        self.unloaded_bytes = int(samples.get(("evalpipe_spool_unloaded_bytes", ()), 0))
        self.unloaded_age_s = samples.get(("evalpipe_spool_unloaded_age_seconds", ()), 0.0)
        self.falling_behind = samples.get(("evalpipe_spool_falling_behind", ()), 0.0) > 0
        last = "evalpipe_last_trouble_timestamp_seconds"
        self.lost_at = samples.get((last, (("kind", "lost"),)), 0.0)
        self.unconnected_at = samples.get((last, (("kind", "open_files"),)), 0.0)
