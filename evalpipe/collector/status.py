"""What `collect` logs of itself: one line at the start, then one a minute; how much of the spool waits to be loaded."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalpipe.collector.settings import ArmSettings, CollectorSettings
from evalpipe.files import is_locked

Line = tuple[str, dict[str, Any]]
"""The text, and the fields its JSON has besides."""

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
"""(metric, labels sorted by name) → value, summed over all processes."""

_WELL = ("ok", "client_closed")
_SPENT, _LEFT = "evalpipe_shadow_budget_spent_usd", "evalpipe_shadow_budget_left_usd"
_SHOWN_USD = 0.00005
"""less is $0.0000"""


def start_line(settings: CollectorSettings, *, load_every_s: float | None) -> Line:
    """Arms, models, mode, addresses, budget."""
    arms = {arm.arm: arm for arm in (settings.control, settings.treatment) if arm is not None}
    text = f"experiment {settings.experiment!r}, mode {settings.mode}"
    if settings.treatment is not None and settings.mode == "ab":
        text += f" ({settings.treatment_percent:g} % treatment)"
    text += "; " + "; ".join(f"{name}: {_described(arm)}" for name, arm in arms.items())
    if settings.treatment is None:
        text += "; no treatment: nothing is copied"
    elif settings.mode != "ab":
        budget = settings.shadow_budget_usd
        text += "; copies' budget: " + ("none" if budget is None else f"${budget:g}")
    text += f"; spool {settings.spool}"
    text += "; loaded by hand" if load_every_s is None else f"; loaded every {load_every_s:g} s"
    return text, {
        "experiment": settings.experiment,
        "mode": settings.mode,
        "arms": {
            name: {"provider": arm.provider, "base_url": _address(arm), "model": arm.model, "rewrite": arm.rewrite}
            for name, arm in arms.items()
        },
        "shadow_budget_usd": settings.shadow_budget_usd,
        "spool": settings.spool,
        "load_every_s": load_every_s,
    }


def _described(arm: ArmSettings) -> str:
    model = "the client's model" if arm.model is None or (arm.arm == "control" and not arm.rewrite) else arm.model
    if arm.arm == "control" and arm.model is not None and not arm.rewrite:
        model += f" (expected: {arm.model})"
    key = "its own key" if arm.api_key is not None else "the client's key" if arm.arm == "control" else "no key"
    return f"{arm.provider} {_address(arm)}, {model}, {key}"


def _address(arm: ArmSettings) -> str:
    """Without a user name, a password or a query: these may be secrets."""
    scheme, mark, rest = arm.base_url.partition("://")
    if not mark:
        return arm.base_url
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


class StatusLine:
    """What changed since the last line, from the counters of all processes."""

    def __init__(self, settings: CollectorSettings, metrics_dir: str) -> None:
        self._settings, self._metrics_dir = settings, metrics_dir
        self._before: Samples = {}

    def line(self) -> Line | None:
        """None where nothing happened since the last one."""
        if not Path(self._metrics_dir).is_dir():
            return None
        from evalpipe.collector.metrics import read_samples

        now = read_samples(self._metrics_dir)
        before, self._before = self._before, now
        return status_line(self._settings, before, now)


def status_line(settings: CollectorSettings, before: Samples, now: Samples) -> Line | None:
    """Requests, pairs, failures by reason, uncollected, losses of the time between; the spool and the budget as they are now."""
    served = dict(_changes("evalpipe_requests_total", before, now, role="served"))
    copies = dict(_changes("evalpipe_requests_total", before, now, role="shadow"))
    decisions = dict(_changes("evalpipe_shadow_decisions_total", before, now))
    refused = dict(_changes("evalpipe_refused_requests_total", before, now))
    n_uncollected = _total(_changes("evalpipe_passed_through_total", before, now))
    n_lost = _total(_changes("evalpipe_records_lost_total", before, now))
    n_unconnected = _total(_changes("evalpipe_connections_refused_total", before, now))
    if not (served or copies or decisions or refused or n_uncollected or n_lost or n_unconnected):
        return None
    by_arm = _sums(served, "arm")
    failures = _sums(
        {labels: n for labels, n in served.items() if dict(labels)["outcome"] not in _WELL}, "arm", "outcome"
    )
    failures |= {f"copy {outcome}": n for outcome, n in _sums(copies, "outcome").items() if outcome not in _WELL}
    failures |= {f"refused {status}": n for status, n in _sums(refused, "status").items()}
    not_copied = {
        status: n for status, n in _sums(decisions, "status").items() if status not in {"sampled", "not_sampled"}
    }
    n_pairs = _sums(copies, "outcome").get("ok", 0)
    unloaded = _value("evalpipe_spool_unloaded_bytes", now)
    own = _value("evalpipe_cost_usd_total", now, role="shadow")
    parts = [f"{sum(by_arm.values()):,} requests" + (f" ({_listed(by_arm)})" if len(by_arm) > 1 else "")]
    if settings.treatment is not None and settings.mode != "ab":
        parts.append(f"{n_pairs:,} pairs")
    parts.append(f"failures: {_listed(failures)}" if failures else "no failures")
    if not_copied:
        parts.append(f"not copied: {_listed(not_copied)}")
    parts.append(f"{n_uncollected:,} uncollected")
    if n_lost:
        parts.append(f"{n_lost:,} records LOST")
    if n_unconnected:
        parts.append(f"{n_unconnected:,} connections refused (open files)")
    parts.append(f"spool {unloaded / 1e6:,.1f} MB")
    if settings.treatment is not None and settings.mode != "ab":
        parts.append(_cost_of_copies(settings, own, now))
    return "; ".join(parts), {
        "requests": by_arm,
        "pairs": n_pairs,
        "failures": failures,
        "not_copied": not_copied,
        "uncollected": n_uncollected,
        "records_lost": n_lost,
        "connections_refused": n_unconnected,
        "spool_unloaded_bytes": int(unloaded),
        "copies_cost_usd": round(own, 6),
        "shadow_budget_usd": settings.shadow_budget_usd,
        "shadow_budget_spent_usd": round(_value(_SPENT, now), 6),
        "shadow_budget_left_usd": round(_value(_LEFT, now), 6),
    }


def _cost_of_copies(settings: CollectorSettings, own_usd: float, now: Samples) -> str:
    """Of a budget: what was spent over the experiment's life, by all replicas where they share it, and what is left."""
    budget_usd = settings.shadow_budget_usd
    if budget_usd is None:
        return f"copies cost ${own_usd:.4f} so far"
    if not any(metric == _LEFT for metric, _ in now):  # the storage that holds the shared account was not reached yet
        return f"copies cost ${own_usd:.4f} so far here of ${budget_usd:g}"
    spent_usd, left_usd = _value(_SPENT, now), _value(_LEFT, now)
    text = f"copies cost ${spent_usd:.4f} so far of ${budget_usd:g}"
    if settings.objects_url is not None:
        text += f" over all replicas (${own_usd:.4f} here since the start)"
    reserved_usd = budget_usd - spent_usd - left_usd
    if reserved_usd > _SHOWN_USD:
        text += f", ${reserved_usd:.4f} more is reserved"
    return f"{text}, ${left_usd:.4f} left"


def _changes(
    name: str, before: Samples, now: Samples, **wanted: str
) -> Iterator[tuple[tuple[tuple[str, str], ...], int]]:
    for (metric, labels), value in now.items():
        if metric != name or not wanted.items() <= dict(labels).items():
            continue
        n = int(value - before.get((metric, labels), 0))
        if n > 0:
            yield labels, n


def _total(changes: Iterator[tuple[tuple[tuple[str, str], ...], int]]) -> int:
    return sum(n for _, n in changes)


def _value(name: str, now: Samples, **wanted: str) -> float:
    return sum(
        value for (metric, labels), value in now.items() if metric == name and wanted.items() <= dict(labels).items()
    )


def _sums(changes: Mapping[tuple[tuple[str, str], ...], int], *names: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for labels, n in changes.items():
        found = dict(labels)
        key = " ".join(found[name] for name in names)
        sums[key] = sums.get(key, 0) + n
    return sums


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items()))


# How much of the log waits to be loaded, for how long, and whether load keeps up.


_LOADS = 3
"""a segment that is closed is to be gone after so many loads"""
_MIN_WINDOW_S = 60.0
_GROWTH = 1.2
_GROWTH_BYTES = 16 << 20
"""what is left after loads may differ by so much before it counts as growth"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpoolState:
    """`n_bytes`: in the spool's segments; `age_s`: since the oldest of them began; `n_unaccounted`: bytes whose tokens and
    dollars are not in the counters yet."""

    n_bytes: int
    age_s: float
    n_unaccounted: int
    falling_behind: bool


class SpoolWatch:
    """Looks at the spool's folder once a second. Load deletes what it has loaded, so what is there waits."""

    def __init__(self, settings: CollectorSettings, folder: Path) -> None:
        self._folder, self._every_s = folder, settings.load_every_s
        # A segment of users' requests stays until their copies are decided.
        waits = settings.shadow_queue_age_s + settings.shadow_timeout_s if settings.treatment is not None else 0.0
        self._patience_s = None if self._every_s is None else max(_LOADS * self._every_s, 10.0) + waits
        self._window_s = max(_MIN_WINDOW_S, _LOADS * (self._every_s or 0.0))
        self._begun: dict[str, float] = {}
        self._began_at = time.time()
        self._least: deque[tuple[float, int]] = deque()
        """(when, bytes) of the last two windows"""
        self._n_loads: deque[float] = deque()
        """when segments went away"""
        self._was_behind = False

    def look(self, accounted: Mapping[str, int]) -> SpoolState | None:
        """None where the folder cannot be read. `accounted`: segment → bytes that are counted."""
        now = time.time()
        found: dict[str, os.stat_result] = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".jsonl"):
                        try:
                            found[entry.name] = entry.stat()
                        except FileNotFoundError:  # loaded just now
                            continue
        except OSError:
            return None
        sizes = {name: state.st_size for name, state in found.items() if state.st_size}
        first_look = not self._least
        for name in sizes:
            if name not in self._begun:  # those of an earlier run: at the least since they were last written to
                self._begun[name] = found[name].st_mtime if first_look else now
        gone = self._begun.keys() - sizes.keys()
        for name in gone:
            del self._begun[name]
        n_bytes = sum(sizes.values())
        self._remember(now, n_bytes, loaded=bool(gone))
        behind = self._is_late(now, found) or self._grows(now)
        age_s = max(0.0, now - min(self._begun.values(), default=now))
        if behind != self._was_behind:
            if behind:
                logger.warning(
                    "the spool grows faster than it is loaded: %.1f MB wait, the oldest for %.0f s",
                    n_bytes / 1e6,
                    age_s,
                )
            else:
                logger.info("load keeps up with the spool again")
        self._was_behind = behind
        return SpoolState(
            n_bytes=n_bytes,
            age_s=age_s,
            n_unaccounted=sum(max(0, size - accounted.get(name, 0)) for name, size in sizes.items()),
            falling_behind=behind,
        )

    def _remember(self, now: float, n_bytes: int, *, loaded: bool) -> None:
        self._least.append((now, n_bytes))
        while self._least and now - self._least[0][0] > 2 * self._window_s:
            self._least.popleft()
        if loaded:
            self._n_loads.append(now)
        while self._n_loads and now - self._n_loads[0] > 2 * self._window_s:
            self._n_loads.popleft()

    def _is_late(self, now: float, found: Mapping[str, os.stat_result]) -> bool:
        """Whether a closed segment is still there after several loads should have run."""
        if self._patience_s is None:
            return False
        for name, state in found.items():
            waited = now - max(state.st_mtime, self._began_at)
            if state.st_size and waited > self._patience_s and _is_closed(self._folder / name):
                return True
        return False

    def _grows(self, now: float) -> bool:
        """Whether the least that waited in the last window is clearly more than the least in the one before, though
        segments were loaded in both. What waited before the first of these loads is no measure: traffic may just have begun."""
        middle = now - self._window_s
        if not self._least or self._least[0][0] > now - 1.9 * self._window_s:
            return False
        if not self._n_loads or self._n_loads[0] > middle or self._n_loads[-1] <= middle:
            return False
        earlier = min(n for at, n in self._least if self._n_loads[0] <= at <= middle)
        later = min(n for at, n in self._least if at > middle)
        return later > _GROWTH * earlier + _GROWTH_BYTES


def _is_closed(segment: Path) -> bool:
    """A running writer holds its segment locked."""
    try:
        return is_locked(segment) is False
    except OSError:
        return False
