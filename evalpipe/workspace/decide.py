"""`evalpipe gate` and `evalpipe exclude`: the decision for pipelines, and periods left out of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from evalpipe.analysis.result import Analysis, Decision, DecisionChange
from evalpipe.analysis.settings import Exclusion
from evalpipe.analysis.setup_faults import setup_faults
from evalpipe.errors import ConfigError, NoDataError
from evalpipe.files import write_atomically
from evalpipe.models import Recommendation
from evalpipe.objects.shared import pull
from evalpipe.report.text import gate_document
from evalpipe.store.parquet import parquet_files
from evalpipe.store.query import Selection, open_store, read_instant
from evalpipe.store.schema import DATASETS
from evalpipe.workspace.analyze import Connect, analyze_workspace, mode_of, planned_record, settings_of
from evalpipe.workspace.paths import Workspace, check_judge, loaded_experiment
from evalpipe.workspace.record import load_record, recording, save_record

VERDICT = "verdict.json"


def verdict(
    workspace: Workspace,
    *,
    experiment: str | None = None,
    judge: str | None = None,
    since: str | None = None,
    until: str | None = None,
    where: str | None = None,
    waits: bool = False,
    connect: Connect | None = None,
) -> dict[str, Any]:
    """The decision as of now, as JSON-ready values; also written to data/verdict.json where the whole of the workspace's
    experiment was looked at.

    Args:
        waits: the workspace's own experiment without data yet is collect_more, not an error.
        connect: how the store is read, by default on this machine.

    Raises:
        EvalpipeError: ConfigError for an experiment without data or an unknown judge.
    """
    return verdict_and_analysis(
        workspace,
        experiment=experiment,
        judge=judge,
        since=since,
        until=until,
        where=where,
        waits=waits,
        connect=connect,
    )[0]


def verdict_and_analysis(
    workspace: Workspace,
    *,
    experiment: str | None = None,
    judge: str | None = None,
    since: str | None = None,
    until: str | None = None,
    where: str | None = None,
    waits: bool = False,
    connect: Connect | None = None,
) -> tuple[dict[str, Any], Analysis | None]:
    """`verdict`, and the analysis it is from; None where there are no data yet."""
    own = workspace.config.experiment.name if workspace.config else None
    name = _experiment(workspace, experiment, waits=waits)
    analysis: Analysis | None = None
    try:
        check_judge(workspace, name, judge)
        analysis = analyze_workspace(
            workspace,
            experiment=name,
            judge=judge,
            since=since,
            until=until,
            where=where,
            details=False,
            connect=connect,
        )
        decision = analysis.decision
    except NoDataError as error:  # nothing is selected, or nothing is there yet
        decision = nothing_yet(error)
    is_whole = since is None and until is None and where is None and judge is None and own in {None, name}
    return write_verdict(workspace, name, decision, analysis, keep=is_whole), analysis


def write_verdict(
    workspace: Workspace, experiment: str, decision: Decision, analysis: Analysis | None, *, keep: bool = True
) -> dict[str, Any]:
    """The document of a decision, in data/verdict.json with `keep`. `analysis`: where it is from; None before there are data."""
    document = gate_document(experiment, decision, analysis, computed_at=_now())
    document["rollout"] = rollout_step(decision)
    if keep:
        text = json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n"
        write_atomically(workspace.data / VERDICT, text, optional=True)
    return document


def read_verdict(workspace: Workspace) -> dict[str, Any] | None:
    """The last verdict of the workspace; None where there is none that can be read."""
    try:
        document = json.loads((workspace.data / VERDICT).read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def nothing_yet(error: NoDataError) -> Decision:
    """The decision before there are data."""
    return Decision(
        recommendation=Recommendation.COLLECT_MORE.value,
        rule="collect_more",
        reasons=[f"There is nothing to decide on yet: {error}."],
        headline="Collect more data: there is none yet.",
    )


def watch(
    workspace: Workspace,
    *,
    every_s: float,
    experiment: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """A verdict at once and after every `every_s` seconds. Unchanged files and exclusions give the same verdict, so only its
    instant is renewed then: asking often costs a directory listing."""
    before: tuple[Any, ...] | None = None
    document: dict[str, Any] = {}
    while True:
        pull(workspace.data)
        name = _experiment(workspace, experiment, waits=True)
        record = load_record(workspace.data, name)
        present = (
            [] if record is None else record.exclusions,
            *(
                (str(path), path.stat().st_size)
                for dataset in DATASETS
                for path in parquet_files(workspace.data, dataset, name)
            ),
        )
        if present != before or not document:
            document, before = verdict(workspace, experiment=experiment, waits=True), present
        else:
            document = {**document, "computed_at": _now()}
            write_atomically(
                workspace.data / VERDICT, json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n"
            )
        yield document
        sleep(every_s)


def _experiment(workspace: Workspace, asked: str | None, *, waits: bool) -> str:
    own = workspace.config.experiment.name if workspace.config else None
    return own if waits and own is not None and asked in {None, own} else loaded_experiment(workspace, asked)


def exit_code(document: dict[str, Any]) -> int:
    """0 ship, 10 keep, 11 collect_more, 12 invalid."""
    return Recommendation(document["recommendation"]).exit_code


def rollout_step(decision: Decision) -> str:
    """What a tool that shifts traffic should do: "promote" | "roll_back" | "wait".

    A set-up fault rolls back only where users are served by the arm at fault (ab, canary): shadow requests harm no user, and
    where the set-up of control is at fault every user would get the broken arm.
    """
    if decision.recommendation == Recommendation.SHIP:
        return "promote"
    if decision.recommendation == Recommendation.COLLECT_MORE or (decision.setup_arms and not decision.rollback):
        return "wait"
    return "roll_back"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# `evalpipe exclude`: periods taken out of both arms, on the record.


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
