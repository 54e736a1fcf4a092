"""An SDK's retries put together: several attempts are one request, whose answer is the last one's.

The SDKs of both vendors number their attempts (`x-stainless-retry-count`). A failed attempt that was followed by the next one is
no failure anybody saw: its row stays, outside the statistics, and the last one holds the copy that was made of the first.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from evalpipe.core.attempts import attempt_of
from evalpipe.core.spool import RequestRecord
from evalpipe.store.spool_join import Entry

MAX_APART_S = 300.0
"""between an attempt's end and the next one's start: SDKs wait 8 s at most, or what `retry-after` says, up to a minute"""
_Key = tuple[str, str, str, str | None, str | None, str | None, int]


def join_attempts(entries: Iterable[Entry]) -> None:
    """Mark the attempts among `entries` that a later one of them repeats, and hand what became of their copy on to it."""
    open_ones: dict[_Key, list[Entry]] = {}
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


def _hand_on(earlier: Entry, later: Entry) -> None:
    assert earlier.request is not None and later.request is not None
    earlier.is_repeated = True
    later.earlier_attempts = [*earlier.earlier_attempts, earlier.request.request_id]
    if not later.request.eligible and later.shadow is None:
        later.shadow, later.copy = earlier.shadow, earlier.copy
        later.request = msgspec.structs.replace(later.request, eligible=earlier.request.eligible)
        if earlier.earlier_attempts:  # it only had it from the first, whose row keeps it
            earlier.request = msgspec.structs.replace(earlier.request, eligible=False)
            earlier.shadow = earlier.copy = None


def _may_be_repeated(entry: Entry) -> bool:
    """What the SDKs ask again: no answer, and these statuses."""
    served = entry.served
    if served is None:
        return False
    status = served.status
    return served.error_type is not None or status is None or status in {408, 409, 429} or status >= 500


def _end(entry: Entry) -> float:
    assert entry.served is not None
    return entry.served.started_at + entry.served.latency_ms / 1000


def _key(request: RequestRecord, attempt: int) -> _Key:
    body = request.body
    return request.experiment, request.arm, request.endpoint, request.unit_id, body.text, body.base64, attempt
