"""What the collectors wrote, read once as it grows: spool lines → observations of the canary's present stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from evalpipe.core.spool import Record, RequestRecord, ResponseRecord, read_record
from evalpipe.core.traffic import Arm
from evalpipe.rollout.observation import Observation

Judge = Callable[[RequestRecord, ResponseRecord], Observation | None]
"""Reads an answer (its outcome, times and cost); given by the pipeline, which knows the dialects and the prices."""


class SpoolFeed:
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

    def __init__(self, spool: SpoolFeed, judge: Judge) -> None:
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


def observe_without_reading(request: RequestRecord, response: ResponseRecord) -> Observation | None:
    """Outcome by transport and HTTP status alone, for when nobody reads dialects (other people's spools, tests)."""
    from evalpipe.core.traffic import Outcome

    if response.ended == "client_closed":
        return None
    if response.ended == "timeout":
        outcome = Outcome.TIMEOUT
    elif response.status is None or response.status >= 400 or response.ended in {"connect_error", "protocol_error"}:
        outcome = Outcome.HTTP_ERROR
    else:
        outcome = Outcome.UNREADABLE if response.ended == "cut" else Outcome.OK
    latency = response.timeout_ms if outcome is Outcome.TIMEOUT and response.timeout_ms else response.latency_ms
    return Observation(
        arm=Arm(response.arm),
        unit=request.unit_id or request.request_id,
        outcome=outcome,
        latency_ms=latency,
        asked_at=request.received_at,
    )
