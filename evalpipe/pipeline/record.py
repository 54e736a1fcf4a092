"""The experiment record on disk: data/experiments/NAME.json, whole or not at all, one writer at a time."""

from __future__ import annotations

import fcntl
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
from evalpipe.pipeline.workspace import record_path
from evalpipe.store.selection import Selection


def load_record(data: Path, experiment: str) -> ExperimentRecord | None:
    """The record, None before the first look. Raises DataError where the file is not one."""
    path = record_path(data, experiment)
    try:
        return read_record(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is not an experiment record ({error}): move it away to start anew") from error


def save_record(data: Path, record: ExperimentRecord) -> None:
    write_atomically(record_path(data, record.experiment), render_record(record))


@contextmanager
def recording(data: Path, experiment: str) -> Iterator[None]:
    """One look at a time: two that look at once must not both fix the plan or take the same number."""
    path = record_path(data, experiment).with_name(f".{experiment}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EvalpipeError(f"cannot write {path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
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


def write_atomically(path: Path, data: bytes) -> None:
    """The file appears whole under its name or not at all. Raises EvalpipeError where it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise EvalpipeError(f"cannot write {path}: {error.strerror}") from error
