"""The records of one request, from several segments and attempts, put together. Pure.

A request is finished when its served response is there and, where a shadow request is due, its decision and (where it
was sent) its response. Records that an ended process can no longer write are not waited for.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from evalpipe.identity import attempt_of
from evalpipe.models import Role, ShadowStatus
from evalpipe.spool.format import FeedbackRecord, Record, RequestRecord, ResponseRecord, ShadowRecord

STOPPED = "collector_stopped"
"""The process that would have written the record is gone."""
LOST = "record_lost"
"""The process runs, and the record is overdue beyond every timeout: it could not be written (disk full)."""

_SERVED: Final = Role.SERVED.value
_SAMPLED: Final = ShadowStatus.SAMPLED.value


# Written out, not dataclasses: compiled, these are made by the million in a fifth of the time.
class Source:
    """The position of a record: the segment's index in this load, its writer, the line and its bytes, the record's time."""

    def __init__(self, segment: int, writer: str, line: int, data: bytes, at: float) -> None:
        self.segment, self.writer, self.line, self.data, self.at = segment, writer, line, data, at


class PendingRequest:
    """What is known of one request."""

    def __init__(
        self,
        request: RequestRecord | None = None,
        served: ResponseRecord | None = None,
        *,
        at: float = float("inf"),
        lost_reason: str | None = None,
    ) -> None:
        self.request, self.served = request, served
        self.shadow: ShadowRecord | None = None
        self.copy: ResponseRecord | None = None
        self.sources: list[Source] = []
        self.n_bytes = 0
        """of its lines"""
        self.at = at
        """seconds since the epoch of the earliest record"""
        self.request_writer = self.shadow_writer = ""
        self.is_repeated = False
        """a failed attempt that the SDK repeated: no request of its own"""
        self.earlier_attempts: list[str] = []
        """request ids of the attempts that this one repeats, from the first"""
        self.lost_reason = lost_reason
        """why what is missing will never come; None: nothing is missing"""

    @property
    def is_finished(self) -> bool:
        if self.request is None or self.served is None:
            return False
        if not self.request.eligible and self.shadow is None:
            return True
        if self.shadow is None:
            return False
        return self.copy is not None or self.shadow.status != _SAMPLED

    def row_times(self) -> list[float]:
        """Seconds since the epoch of the rows that its records are, or may have become in an earlier load."""
        times = [] if self.request is None else [self.request.received_at]
        if self.shadow is not None:
            times.append(self.shadow.at)
        if self.copy is not None:
            times.append(self.copy.started_at)
        return times


def put(entry: PendingRequest, record: Record) -> None:
    """Put a record into its place; where that is taken (a copied segment), the first stays."""
    # By the very type: compiled, `isinstance` takes twenty times as long for each class that it is not.
    if type(record) is ResponseRecord:
        if record.role == _SERVED:
            entry.served = entry.served or record
        else:
            entry.copy = entry.copy or record
    elif type(record) is RequestRecord:
        entry.request = entry.request or record
    elif type(record) is ShadowRecord:
        entry.shadow = entry.shadow or record
    else:
        raise TypeError("feedback is no part of a request's life")


class SpoolJoin:
    """Takes records roughly in the order of their times and gives entries as they finish.

    `live`: the writers that run. `open_limit_s`: how much later than its request a record can come at most; what is
    missing after that is given up, which also bounds what is held in memory.
    """

    def __init__(self, *, live: frozenset[str], open_limit_s: float) -> None:
        self._live = live
        self._open_limit_s = open_limit_s
        self._entries: dict[tuple[str, str], PendingRequest] = {}
        self._expired_to = float("-inf")

    def entries(
        self, records: Iterable[tuple[Record, Source]], rated: Callable[[FeedbackRecord], object]
    ) -> Iterator[PendingRequest]:
        """The entries that `records` finish, and those given up as lost by the time of a record (`lost_reason`). Feedback is
        passed on to `rated`."""
        for record, source in records:
            if type(record) is FeedbackRecord:
                rated(record)
                continue
            entry = self.add(record, source)
            if entry is not None:
                yield entry
            yield from self.expire(source.at)

    def add(self, record: Record, source: Source) -> PendingRequest | None:
        """The entry this record finishes, if it does. A record that is there already (a copy of a segment) is dropped."""
        key = (record.experiment, record.request_id)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = PendingRequest()
        entry.sources.append(source)
        entry.n_bytes += len(source.data)
        entry.at = min(entry.at, source.at)
        put(entry, record)
        if entry.request is record:
            entry.request_writer = source.writer
        elif entry.shadow is record:
            entry.shadow_writer = source.writer
        if entry.is_finished:
            return self._entries.pop(key)
        return None

    def expire(self, now: float) -> list[PendingRequest]:
        """Entries whose first record is older than `open_limit_s` at `now` (seconds since the epoch): given up as lost."""
        if now - self._expired_to < self._open_limit_s / 4:  # a scan of what is open, not for every record
            return []
        self._expired_to = now
        given_up: list[PendingRequest] = []
        overdue = [key for key, entry in self._entries.items() if now - entry.at > self._open_limit_s]
        for key in overdue:
            entry = self._entries.pop(key)
            entry.lost_reason = self._reason(entry, default=LOST)
            given_up.append(entry)
        return given_up

    def leftovers(self) -> Iterator[tuple[PendingRequest, bool]]:
        """At the end of the log: every entry that is not finished, and whether it waits for a running process.

        An entry without its request record (`request` None) waits as long as a writer runs that may hold it.
        """
        for entry in self._entries.values():
            waits = self._waits(entry)
            if not waits:
                entry.lost_reason = STOPPED
            yield entry, waits

    def _waits(self, entry: PendingRequest) -> bool:
        if entry.request is None:
            return bool(self._live)
        if entry.served is None and entry.request_writer in self._live:
            return True
        if entry.shadow is None:
            # Any treatment process that runs, or is started beside a running server, decides it.
            return entry.request.eligible and bool(self._live)
        sent = entry.shadow.status == ShadowStatus.SAMPLED
        return sent and entry.copy is None and entry.shadow_writer in self._live

    def _reason(self, entry: PendingRequest, *, default: str) -> str:
        if entry.served is None and entry.request_writer not in self._live:
            return STOPPED
        if entry.shadow is not None and entry.copy is None and entry.shadow_writer not in self._live:
            return STOPPED
        return default


# An SDK's retries put together: several attempts are one request, whose answer is the last one's.
#
# The SDKs of both vendors number their attempts (`x-stainless-retry-count`). A failed attempt that was followed by the
# next one is no failure anybody saw: its row stays, outside the statistics, and the last one holds the shadow request that was
# made of the first.


MAX_APART_S = 300.0
"""between an attempt's end and the next one's start: SDKs wait 8 s at most, or by `retry-after`, up to a minute"""
_Key = tuple[str, str, str, str | None, str | None, str | None, int]


def join_attempts(entries: Iterable[PendingRequest]) -> None:
    """Mark the attempts among `entries` that a later one repeats, and pass the outcome of their shadow request on to it."""
    open_ones: dict[_Key, list[PendingRequest]] = {}
    for entry in sorted(entries, key=lambda entry: entry.at):
        request = entry.request
        if request is None:
            continue
        attempt = attempt_of(request.headers)
        if attempt:
            waiting = open_ones.get(_key(request, attempt - 1), [])
            while waiting and request.received_at - _end(waiting[0]) > MAX_APART_S:
                waiting.pop(0)
            if waiting:
                _hand_on(waiting.pop(0), entry)
        if _may_be_repeated(entry):
            open_ones.setdefault(_key(request, attempt), []).append(entry)


def _hand_on(earlier: PendingRequest, later: PendingRequest) -> None:
    assert earlier.request is not None and later.request is not None
    earlier.is_repeated = True
    later.earlier_attempts = [*earlier.earlier_attempts, earlier.request.request_id]
    if not later.request.eligible and later.shadow is None:
        later.shadow, later.copy = earlier.shadow, earlier.copy
        later.request = msgspec.structs.replace(later.request, eligible=earlier.request.eligible)
        if earlier.earlier_attempts:  # it only had it from the first, whose row keeps it
            earlier.request = msgspec.structs.replace(earlier.request, eligible=False)
            earlier.shadow = earlier.copy = None


def _may_be_repeated(entry: PendingRequest) -> bool:
    """What the SDKs ask again: no answer, and these statuses."""
    served = entry.served
    if served is None:
        return False
    status = served.status
    return served.error_type is not None or status is None or status in {408, 409, 429} or status >= 500


def _end(entry: PendingRequest) -> float:
    assert entry.served is not None
    return entry.served.started_at + entry.served.latency_ms / 1000


def _key(request: RequestRecord, attempt: int) -> _Key:
    body = request.body
    return request.experiment, request.arm, request.endpoint, request.unit_id, body.text, body.base64, attempt
