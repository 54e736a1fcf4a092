"""The experiment record on disk: data/experiments/NAME.json, whole or not at all, one writer at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import msgspec

from evalpipe.analysis.record import ExperimentRecord, read_record, render_record
from evalpipe.analysis.settings import Exclusion
from evalpipe.errors import DataError, EvalpipeError
from evalpipe.files import NOT_ALLOWED, take_lock, write_atomically
from evalpipe.objects.shared import shared_work
from evalpipe.store.query import Selection
from evalpipe.workspace.paths import record_copy_path, record_mark_path, record_path


def load_record(data: Path, experiment: str) -> ExperimentRecord | None:
    """The record, None before the first look.

    A record that is gone or damaged is never a new beginning, which would forget exclusions, looks and the decision: the copy
    beside it is read.

    Raises:
        DataError: where the file is no record, or is gone though there was one, and the copy is, too.
    """
    path = record_path(data, experiment)
    problem = None
    for place in (path, record_copy_path(data, experiment)):
        try:
            return read_record(place.read_bytes())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"cannot read {place}: {error.strerror}") from error
        except msgspec.DecodeError as error:
            problem = problem or f"{place} is not an experiment record ({error})"
    lost = problem or _lost(data, experiment)
    if lost is not None:
        raise DataError(
            f"{lost}: the exclusions, looks and the decision of experiment {experiment!r} are lost; restore {path} from a "
            "backup, give the experiment a new name, or, to start anew, remove "
            f"{record_mark_path(data, experiment)} (and data/verdict.json)"
        )
    return None


def save_record(data: Path, record: ExperimentRecord) -> None:
    path = record_path(data, record.experiment)
    text = render_record(record)
    write_atomically(record_copy_path(data, record.experiment), text)
    write_atomically(path, text)
    mark = record_mark_path(data, record.experiment)
    if not mark.exists():
        write_atomically(mark, b"a record was written\n")


def _lost(data: Path, experiment: str) -> str | None:
    """A sign that there was a record: the mark beside it, or a verdict that `gate` wrote on a decision of this experiment."""
    path = record_path(data, experiment)
    if record_mark_path(data, experiment).exists():
        return f"{path} is gone"
    try:
        verdict = msgspec.json.decode((data / "verdict.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    if isinstance(verdict, dict) and verdict.get("experiment") == experiment and verdict.get("decided_at"):
        return f"{path} is gone, and data/verdict.json holds a decision of {verdict['decided_at']}"
    return None


@contextmanager
def recording(data: Path, experiment: str, *, read_only: bool = False) -> Iterator[bool]:
    """One look at a time: two that look at once must not both fix the plan or take the same number.

    Gives whether the record can be written. With `read_only` a folder without write permission (a snapshot, a colleague's) is
    False instead of an error.
    """
    path = record_path(data, experiment).with_name(f".{experiment}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if read_only and error.errno in NOT_ALLOWED:
            yield False
            return
        raise EvalpipeError(f"cannot write {path.parent}: {error.strerror}") from error
    try:
        take_lock(handle)
        with shared_work(data, f"record/{experiment}"):
            yield True
    finally:
        os.close(handle)


def excluding(selection: Selection, record: ExperimentRecord | None, *, but: Sequence[Exclusion] = ()) -> Selection:
    """The selection without the record's excluded periods, except those of `but`."""
    if record is None or not record.exclusions:
        return selection
    periods = tuple(
        (datetime.fromisoformat(one.since), datetime.fromisoformat(one.until))
        for one in record.exclusions
        if one not in but
    )
    return replace(selection, excluded=periods)
