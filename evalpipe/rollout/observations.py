"""Input of the guardrails: spool lines → observations of one answered request, and running sums over users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from evalpipe.models import ANSWERED, FAILED, Arm, Outcome
from evalpipe.providers.setup_faults import Signature
from evalpipe.spool.format import Record, RequestRecord, ResponseRecord, read_record
from evalpipe.stats.clusters import ArmAggregate, arm_aggregate


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One served request with its answer. `unit`: the user's id. Not measured is None.

    `asked_at`: seconds since the epoch; `failure` and `words`: what a failed one may be part of, and the provider's words for
    it; `configuration`: the fingerprint of the arm's; `request_id`: "" where it came from the store.
    """

    arm: Arm
    unit: str
    outcome: Outcome
    latency_ms: float | None = None
    ttft_ms: float | None = None
    cost_usd: float | None = None
    asked_at: float = 0.0
    failure: Signature | None = None
    words: str | None = None
    configuration: str | None = None
    request_id: str = ""


Event = Callable[[Observation], bool | None]
"""Whether the request is an event (e.g. an error); None where the metric does not count this request."""


def _failed(seen: Observation) -> bool | None:
    return seen.outcome in FAILED if seen.outcome in ANSWERED or seen.outcome in FAILED else None


def _timed_out(seen: Observation) -> bool | None:
    return seen.outcome is Outcome.TIMEOUT if seen.outcome in ANSWERED or seen.outcome in FAILED else None


def _refused(seen: Observation) -> bool | None:
    return seen.outcome is Outcome.REFUSED if seen.outcome in ANSWERED else None


def _truncated(seen: Observation) -> bool | None:
    return seen.outcome is Outcome.TRUNCATED if seen.outcome in ANSWERED else None


RATES: dict[str, Event] = {
    "error_rate": _failed,
    "timeout_rate": _timed_out,
    "refusal_rate": _refused,
    "truncation_rate": _truncated,
}


def latency_of(seen: Observation) -> float | None:
    """latency_ms where the metric counts the request: a timeout counts as its limit, other failures have none."""
    return seen.latency_ms if seen.outcome in ANSWERED or seen.outcome is Outcome.TIMEOUT else None


def ttft_of(seen: Observation) -> float | None:
    return seen.ttft_ms if seen.outcome in ANSWERED else None


def cost_of(seen: Observation) -> float | None:
    return seen.cost_usd if seen.outcome in ANSWERED or seen.outcome in FAILED else None


class UserSums:
    """ΣS and ΣW of one metric in one arm, by user, with the sums of squares kept as they grow: an evaluation is O(1).

    For events S is a count and the sums are exact integers, so nothing is lost to rounding.
    """

    def __init__(self) -> None:
        self._users: dict[str, list[float]] = {}
        self.n = 0
        self.total = 0.0
        self.n_users_with_event = 0
        self.total_of_means = 0.0
        """sum over users of their own mean"""
        self._ss = self._sw = self._ww = 0.0

    def add(self, user: str, value: float) -> None:
        sums = self._users.get(user)
        if sums is None:
            sums = self._users[user] = [0.0, 0.0]
        s, w = sums
        self._ss += value * (2 * s + value)
        self._sw += s + value * (w + 1)
        self._ww += 2 * w + 1
        if value and not s:
            self.n_users_with_event += 1
        self.total_of_means += (s + value) / (w + 1) - (s / w if w else 0.0)
        sums[0], sums[1] = s + value, w + 1
        self.n += 1
        self.total += value

    @property
    def n_users(self) -> int:
        return len(self._users)

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None

    def linearised_variance(self) -> float | None:
        """The variance of the mean by
        docs/statistics.md#means, linearised, from the running sums (events only: exact)."""
        g = self.n_users
        if g < 2:
            return None
        r = self.total / self.n
        return max(0.0, g / (g - 1) * (self._ss - 2 * r * self._sw + r * r * self._ww) / self.n**2)

    def aggregate(self) -> ArmAggregate:
        """The same by the delete-one-user jackknife, robust to a few heavy users; O(users)."""
        sums = np.array(list(self._users.values()), float).reshape(-1, 2)
        return arm_aggregate(sums[:, 0], sums[:, 1], n=self.n)


# What the collectors wrote, read once as it grows: spool lines → observations of the canary's present stage.


Judge = Callable[[RequestRecord, ResponseRecord], Observation | None]
"""Reads an answer (its outcome, times and cost); given by the workspace, which has the dialects and the prices."""


class SpoolReader:
    """Every segment is opened once and read to its end at each `poll`, whole lines only.

    An open file stays readable after `evalpipe load` deleted it. `gaps` counts segments that came and went unseen between
    two polls (their number is missing): the caller then rebuilds from the store.
    """

    def __init__(self, folder: Path, experiment: str) -> None:
        self._folder, self._experiment = folder, experiment
        self._segments: dict[str, _Segment] = {}
        self._newest: dict[str, int] = {}
        self.n_broken_lines = 0
        self.gaps = 0

    def poll(self) -> Iterator[Record]:
        """The records of this experiment written since the last poll, writer by writer."""
        try:
            names = sorted(path.name for path in self._folder.iterdir() if path.name.endswith(".jsonl"))
        except FileNotFoundError:
            names = []
        for name in names:
            if name not in self._segments and name.startswith("served-"):
                self._open(name)
        for name, segment in list(self._segments.items()):
            yield from self._read(segment)
            if name not in names:
                segment.file.close()
                del self._segments[name]

    def close(self) -> None:
        for segment in self._segments.values():
            segment.file.close()
        self._segments.clear()

    def _open(self, name: str) -> None:
        try:
            file = (self._folder / name).open("rb")
        except FileNotFoundError:  # loaded and deleted since the listing
            return
        writer, _, rest = name.partition(".")
        number = int(rest.split(".")[0]) if rest.split(".")[0].isdigit() else 0
        if writer in self._newest and number > self._newest[writer] + 1:
            self.gaps += 1
        self._newest[writer] = max(number, self._newest.get(writer, number))
        self._segments[name] = _Segment(file)

    def _read(self, segment: _Segment) -> Iterator[Record]:
        *lines, segment.rest = (segment.rest + segment.file.read()).split(b"\n")
        for line in lines:
            if not line:
                continue
            try:
                record = read_record(line)
            except ValueError:
                self.n_broken_lines += 1
                continue
            if record.experiment == self._experiment:
                yield record


class _Segment:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.rest = b""


class StageFeed:
    """Observations of one stage: requests of the stage joined with their answers, each once, forced ones left out."""

    def __init__(self, spool: SpoolReader, judge: Judge) -> None:
        self._spool, self._judge = spool, judge
        self._open: dict[str, RequestRecord] = {}
        self._seen: set[str] = set()
        self._early: list[tuple[int, str, Observation]] = []

    def observations(self, entry: int) -> Iterator[Observation]:
        """What has ended since the last call, of requests assigned under the stage that history entry `entry` began."""
        yield from self._from_earlier(entry)
        for record in self._spool.poll():
            if isinstance(record, RequestRecord):
                if record.mode == "canary" and not record.forced and record.stage is not None and record.stage >= entry:
                    self._open[record.request_id] = record
            elif isinstance(record, ResponseRecord) and record.role == "served":
                request = self._open.pop(record.request_id, None)
                if request is None or request.stage is None:
                    continue
                seen = self._judge(request, record)
                if seen is None:
                    continue
                if request.stage == entry:
                    if record.request_id not in self._seen:
                        self._seen.add(record.request_id)
                        yield seen
                else:  # a worker is a moment ahead of this controller's view
                    self._early.append((request.stage, record.request_id, seen))

    def already_counted(self, request_ids: set[str]) -> None:
        """Requests the caller took from the store: not to be counted again from the spool."""
        self._seen |= request_ids

    def new_stage(self, entry: int) -> None:
        """Forget the requests of earlier stages."""
        self._seen.clear()
        self._open = {key: request for key, request in self._open.items() if (request.stage or 0) >= entry}

    def _from_earlier(self, entry: int) -> Iterator[Observation]:
        ready = [item for item in self._early if item[0] == entry]
        self._early = [item for item in self._early if item[0] > entry]
        for _, request_id, seen in ready:
            self._seen.add(request_id)
            yield seen
