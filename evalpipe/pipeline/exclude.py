"""`evalpipe exclude`: periods taken out of both arms, on the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from evalpipe.analysis.result import DecisionChange
from evalpipe.analysis.settings import Exclusion
from evalpipe.analysis.setup import setup_faults
from evalpipe.errors import ConfigError
from evalpipe.pipeline.analyze import mode_of, planned_record, settings_of
from evalpipe.pipeline.names import loaded_experiment
from evalpipe.pipeline.record import load_record, recording, save_record
from evalpipe.pipeline.workspace import Workspace
from evalpipe.store.datasets import open_store
from evalpipe.store.selection import Selection, read_instant


def exclude(
    workspace: Workspace,
    *,
    since: str,
    until: str,
    why: str,
    experiment: str | None = None,
    now: datetime | None = None,
) -> Exclusion:
    """Take the requests of [since, until) out of both arms of an experiment.

    Args:
        since: ISO 8601 instant; UTC where it names no zone.
        until: likewise, after `since`.
        why: the reason, shown in every report.

    Returns:
        The exclusion as recorded.

    Raises:
        ConfigError: for an empty period or reason, an unknown experiment, or a period that is excluded already.
    """
    start, end = read_instant("--since", since), read_instant("--until", until)
    if start >= end:
        raise ConfigError(f"--until {until!r} is not after --since {since!r}: the period would be empty")
    if not why.strip():
        raise ConfigError("--why is empty: give the reason, it is shown in every report")
    name = loaded_experiment(workspace, experiment)
    at = (now or datetime.now(UTC)).astimezone(UTC)
    with recording(workspace.data, name):
        record = planned_record(workspace, name, mode_of(workspace.config), settings_of(workspace), at)
        entry = Exclusion(
            since=start.isoformat(),
            until=end.isoformat(),
            why=" ".join(why.split()),
            declared_at=at.isoformat(timespec="seconds"),
            seen=record.last_look_at is not None and start <= datetime.fromisoformat(record.last_look_at),
            fault=_has_fault(workspace, name, record.exclusions, start, end),
        )
        if any((one.since, one.until) == (entry.since, entry.until) for one in record.exclusions):
            raise ConfigError(f"the period from {entry.since} to {entry.until} is excluded already")
        save_record(workspace.data, replace(record, exclusions=[*record.exclusions, entry]))
    return entry


def include_again(workspace: Workspace, number: int, *, experiment: str | None = None) -> Exclusion:
    """Take an exclusion back (`number` from 1, as listed); the record keeps that it was there.

    Raises:
        ConfigError: for an unknown experiment, or where there is no such exclusion.
    """
    name = loaded_experiment(workspace, experiment)
    with recording(workspace.data, name):
        record = load_record(workspace.data, name)
        if record is None or not 1 <= number <= len(record.exclusions):
            n = 0 if record is None else len(record.exclusions)
            raise ConfigError(f"--remove {number}: experiment {name!r} has {n} exclusion{'' if n == 1 else 's'}")
        entry = record.exclusions[number - 1]
        kept = [one for position, one in enumerate(record.exclusions, 1) if position != number]
        change = DecisionChange(
            event="set" if record.decided is None else "undone",
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            look=record.n_looks,
            recommendation=None if record.decided is None else record.decided.recommendation,
            rule=None if record.decided is None else record.decided.rule,
            why=f"the exclusion from {entry.since} to {entry.until} ({entry.why}) was taken back",
            set_number=record.set_number,
        )
        save_record(
            workspace.data,
            replace(record, exclusions=kept, decided=None, changes=[*record.changes, change]),
        )
    return entry


def exclusions(workspace: Workspace, *, experiment: str | None = None) -> list[Exclusion]:
    """The experiment's exclusions, oldest first.

    Raises:
        ConfigError: for an unknown experiment.
    """
    record = load_record(workspace.data, loaded_experiment(workspace, experiment))
    return [] if record is None else list(record.exclusions)


def _has_fault(workspace: Workspace, name: str, before: Sequence[Exclusion], start: datetime, end: datetime) -> bool:
    """Whether the rules find a set-up fault in the period, in what is not excluded yet."""
    periods = tuple((datetime.fromisoformat(one.since), datetime.fromisoformat(one.until)) for one in before)
    with open_store(workspace.data, name, selection=Selection(excluded=periods)) as store:
        faults = setup_faults(
            store.connection, experiment=name, mode=mode_of(workspace.config), settings=settings_of(workspace)
        )
    return any(fault.first_at < end and fault.last_at >= start for fault in faults)
