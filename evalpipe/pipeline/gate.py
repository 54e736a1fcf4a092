"""`evalpipe gate`: the verdict for pipelines, computed here and left where the collector serves it from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from evalpipe.analysis.result import Analysis, Decision
from evalpipe.core.experiment import Recommendation
from evalpipe.errors import NoDataError
from evalpipe.pipeline.analyze import analyze_workspace
from evalpipe.pipeline.names import check_judge, loaded_experiment
from evalpipe.pipeline.record import load_record, write_atomically
from evalpipe.pipeline.workspace import Workspace
from evalpipe.report.gate import gate_document
from evalpipe.store.files import parquet_files
from evalpipe.store.schema import DATASETS

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
) -> dict[str, Any]:
    """The decision as of now, as JSON-ready values; also written to data/verdict.json where the whole of the workspace's
    experiment was looked at.

    Args:
        waits: the workspace's own experiment without data yet is collect_more, not an error.

    Raises:
        EvalpipeError: ConfigError for an experiment without data or a judge nobody knows.
    """
    own = workspace.config.experiment.name if workspace.config else None
    name = _experiment(workspace, experiment, waits=waits)
    analysis: Analysis | None = None
    try:
        check_judge(workspace, name, judge)
        analysis = analyze_workspace(
            workspace, experiment=name, judge=judge, since=since, until=until, where=where, details=False
        )
        decision = analysis.decision
    except NoDataError as error:  # nothing is selected, or nothing is there yet
        decision = Decision(
            recommendation=Recommendation.COLLECT_MORE.value,
            rule="collect_more",
            reasons=[f"There is nothing to decide on yet: {error}."],
            headline="Collect more data: there is none yet.",
        )
    document = {**_document(name, decision, analysis), "rollout": rollout_step(decision)}
    if since is None and until is None and where is None and judge is None and own in {None, name}:
        text = json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n"
        write_atomically(workspace.data / VERDICT, text, optional=True)
    return document


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

    A set-up fault rolls back only where users are served by the arm at fault (ab, canary): copies harm nobody, and where the
    set-up of control is at fault everybody would get the broken arm.
    """
    if decision.recommendation == Recommendation.SHIP:
        return "promote"
    if decision.recommendation == Recommendation.COLLECT_MORE or (decision.setup_arms and not decision.rollback):
        return "wait"
    return "roll_back"


def _document(name: str, decision: Decision, analysis: Analysis | None) -> dict[str, Any]:
    return gate_document(name, decision, analysis, computed_at=_now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
