"""The records of all segments as one stream in the order of their times; what is no record is put aside."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import groupby

from evalpipe.core.spool import FeedbackRecord, Record, RequestRecord, ResponseRecord, ShadowRecord, read_record
from evalpipe.core.traffic import Arm, Role, ShadowStatus
from evalpipe.store.spool_join import Source, time_of
from evalpipe.store.spool_segments import Segment, read_lines

MAX_TIME_S = 253402300800.0
"""The end of year 9999, where calendars end."""

_ARMS, _SHADOW_STATUSES = frozenset(Arm), frozenset(ShadowStatus)
_ROLES = frozenset({Role.SERVED, Role.SHADOW})

Reject = Callable[[Segment, int, bytes, str], None]


def read_spool(
    segments: list[Segment], reject: Reject, progress: Callable[[int], object]
) -> Iterator[tuple[Record, Source]]:
    """Every record with where it stood. Each writer's segments follow each other; the writers are merged by time, so that
    what belongs to one request comes close together, however the writers took turns."""
    numbered = sorted(enumerate(segments), key=lambda pair: (pair[1].writer, pair[1].path.name))
    streams = [
        _read_writer(list(group), reject, progress) for _, group in groupby(numbered, key=lambda pair: pair[1].writer)
    ]
    return heapq.merge(*streams, key=lambda item: time_of(item[0]))


def check_record(record: Record) -> None:
    """Refuse words and times outside what they may be. Raises ValueError with the field."""
    if isinstance(record, RequestRecord | ResponseRecord) and record.arm not in _ARMS:
        raise ValueError(f"arm {record.arm[:40]!r} is neither control nor treatment")
    if isinstance(record, ResponseRecord) and record.role not in _ROLES:
        raise ValueError(f"role {record.role[:40]!r} is neither served nor shadow")
    if isinstance(record, ShadowRecord) and record.status not in _SHADOW_STATUSES:
        raise ValueError(f"shadow status {record.status[:40]!r} is unknown")
    if isinstance(record, FeedbackRecord) and not 0 <= record.rating <= 1:
        raise ValueError(f"rating {record.rating!r} is not in [0, 1]")
    at = record.started_at if isinstance(record, ResponseRecord) else time_of(record)
    if not 0 <= at < MAX_TIME_S:
        raise ValueError(f"time {at!r} is no date")
    if not is_experiment_name(record.experiment):
        raise ValueError(f"experiment {record.experiment[:80]!r} is no allowed name")
    if not record.request_id:
        raise ValueError("request_id is empty")


def is_experiment_name(name: str) -> bool:
    """[A-Za-z0-9._-]{1,64} and neither "." nor "..": a name that is one folder and nothing else."""
    letters = name.replace(".", "").replace("_", "").replace("-", "")
    return (
        0 < len(name) <= 64 and name not in {".", ".."} and (not letters or (letters.isascii() and letters.isalnum()))
    )


def _read_writer(
    segments: list[tuple[int, Segment]], reject: Reject, progress: Callable[[int], object]
) -> Iterator[tuple[Record, Source]]:
    for index, segment in segments:
        for number, _, line in read_lines(segment):
            progress(len(line) + 1)
            if not line.strip():
                continue
            try:
                record = read_record(line)
                check_record(record)
            except (ValueError, RecursionError) as error:
                reject(segment, number, line, str(error))
                continue
            yield record, Source(segment=index, writer=segment.writer, line=number, data=line)
