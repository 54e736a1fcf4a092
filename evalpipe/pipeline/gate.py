"""`evalpipe gate`: the verdict for pipelines, computed here and left where the collector serves it from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from evalpipe.analysis.result import Analysis, Decision
from evalpipe.core.experiment import Recommendation
from evalpipe.errors import ConfigError, NoDataError
from evalpipe.pipeline.analyze import analyze_workspace
from evalpipe.pipeline.record import write_atomically
from evalpipe.pipeline.workspace import Workspace, experiment_name
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
) -> dict[str, Any]:
    """The decision as of now, as JSON-ready values; also written to data/verdict.json where the whole of the workspace's
    experiment was looked at.

    The workspace's experiment without data yet is collect_more, not an error: a rollout asks from its first second on.
    Any other without data is a name misspelt, or a pipeline in the wrong folder. Raises EvalpipeError then.
    """
    own = workspace.config.experiment.name if workspace.config else None
    analysis: Analysis | None = None
    try:
        analysis = analyze_workspace(
            workspace, experiment=experiment, judge=judge, since=since, until=until, where=where, details=False
        )
        decision, name = analysis.decision, analysis.experiment
    except NoDataError as error:
        if own is None or experiment not in {None, own}:
            there = ", ".join(sorted({*workspace.loaded_experiments(), *([own] if own else [])}))
            if experiment is None or not there:
                raise
            raise ConfigError(
                f"--experiment: there is no {experiment!r} in {workspace.data}; there is {there}"
            ) from None
        decision = Decision(
            recommendation=Recommendation.COLLECT_MORE.value,
            rule="collect_more",
            reasons=[f"There is nothing to decide on yet: {error}."],
            headline="Collect more data: there is none yet.",
        )
        name = own
    document = _document(name, decision, analysis)
    if since is None and until is None and where is None and judge is None and own in {None, name}:
        write_atomically(workspace.data / VERDICT, json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n")
    return document


def watch(
    workspace: Workspace,
    *,
    every_s: float,
    experiment: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """A verdict at once and after every `every_s` seconds. Unchanged files give the same verdict, so only its instant is
    renewed then: asking often costs a directory listing."""
    before: tuple[tuple[str, int], ...] | None = None
    document: dict[str, Any] = {}
    while True:
        name = experiment_name(workspace, experiment)
        files = tuple(
            (str(path), path.stat().st_size)
            for dataset in DATASETS
            for path in parquet_files(workspace.data, dataset, name)
        )
        if files != before or not document:
            document, before = verdict(workspace, experiment=experiment), files
        else:
            document = {**document, "computed_at": _now()}
            write_atomically(
                workspace.data / VERDICT, json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n"
            )
        yield document
        sleep(every_s)


def exit_code(document: dict[str, Any]) -> int:
    """0 ship, 10 keep, 11 collect_more, 12 invalid."""
    return Recommendation(document["recommendation"]).exit_code


def _document(name: str, decision: Decision, analysis: Analysis | None) -> dict[str, Any]:
    metrics = [] if analysis is None else [one for one in analysis.metrics if one.role != "diagnostic"]
    return {
        "experiment": name,
        "recommendation": decision.recommendation,
        "headline": decision.headline,
        "reasons": decision.reasons,
        "rule": decision.rule,
        "computed_at": _now(),
        "decided_at": decision.decided_at,
        "decided_look": decision.decided_look,
        "expected_more_requests": decision.expected_more_requests,
        "metrics": [
            {
                "name": one.name,
                "role": one.role,
                "finding": one.finding,
                "status": one.status,
                "control": one.control.value,
                "treatment": one.treatment.value,
                "difference": one.difference,
                "ci_low": one.ci_low,
                "ci_high": one.ci_high,
                "non_inferior": one.non_inferior,
            }
            for one in metrics
        ],
        "failed_checks": [] if analysis is None else [one.name for one in analysis.checks if one.status == "fail"],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
