"""`evalpipe status`: what each experiment holds, whether it collects, and what was decided last. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.models import ANSWERED
from evalpipe.spool.segments import list_segments
from evalpipe.store.query import open_store
from evalpipe.workspace.decide import read_verdict
from evalpipe.workspace.paths import Workspace, has_record, no_workspace, open_workspace
from evalpipe.workspace.record import load_record


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentStatus:
    """One experiment of one folder.

    Attributes:
        is_collecting: a collector writes to the folder's spool now; a spool is its folder's, whatever the experiment.
        waiting_bytes: of the spool, not loaded yet.
        n_requests, n_pairs, n_judged: loaded requests; those answered by both arms; those with a verdict.
        judge_usd: what the judges have reported to cost.
        recommendation, headline, decided_at: of the last verdict (`run`, `gate`); of an experiment beside the workspace's own
            only the decision in force is known.
        problem: why the rest could not be read.
    """

    folder: Path
    experiment: str
    mode: str | None = None
    is_collecting: bool = False
    waiting_bytes: int = 0
    n_requests: int = 0
    n_pairs: int = 0
    n_judged: int = 0
    judge_usd: float = 0.0
    last_request_at: str | None = None
    last_look_at: str | None = None
    n_looks: int = 0
    recommendation: str | None = None
    headline: str | None = None
    decided_at: str | None = None
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def status_of_folders(folders: Sequence[Path], workspace: Workspace | None = None) -> list[ExperimentStatus]:
    """The experiments of these workspaces, in their order; a folder that cannot be read is a row with its problem.

    Args:
        workspace: looked at instead where no folder is named.

    Raises:
        ConfigError: where no folder is named and `workspace` is none and holds nothing.
    """
    if not folders and workspace is not None:
        found = status_of(workspace)
        if not found:
            raise ConfigError(no_workspace(workspace))
        return found
    rows: list[ExperimentStatus] = []
    for folder in folders:
        try:
            opened = open_workspace(root=folder)
            rows += status_of(opened) or [
                ExperimentStatus(folder=folder, experiment="", problem="no evalpipe.toml and no data here")
            ]
        except EvalpipeError as error:
            rows.append(ExperimentStatus(folder=folder, experiment="", problem=str(error)))
    return rows


def status_of(workspace: Workspace) -> list[ExperimentStatus]:
    """The workspace's own experiment first, then the others that its data hold."""
    own = None if workspace.config is None else workspace.config.experiment.name
    others = [name for name in workspace.loaded_experiments() if name != own]
    return [_status(workspace, name, is_own=name == own) for name in ([own] if own else []) + others]


def _status(workspace: Workspace, name: str, *, is_own: bool) -> ExperimentStatus:
    facts: dict[str, Any] = {
        "folder": workspace.root,
        "experiment": name,
        "mode": workspace.config.experiment.mode if is_own and workspace.config else None,
        **(spool_facts(workspace) if is_own else {}),
    }
    try:
        facts |= _counts(workspace, name) | _decision(workspace, name)
    except EvalpipeError as error:
        facts["problem"] = str(error)
    return ExperimentStatus(**facts)


def spool_facts(workspace: Workspace) -> dict[str, Any]:
    """`is_collecting` and `waiting_bytes`, from the spool's folder. A segment that a collector holds stays there after it was
    loaded: it waits where something was written to it since."""
    segments = list_segments(workspace.spool)
    stored_at = max((path.stat().st_mtime for path in workspace.data.glob("exchanges/*/*/*.parquet")), default=0.0)
    return {
        "is_collecting": any(segment.live for segment in segments),
        "waiting_bytes": sum(
            segment.n_bytes for segment in segments if not segment.live or _changed_at(segment.path) > stored_at
        ),
    }


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # loaded and removed meanwhile
        return 0.0


def _counts(workspace: Workspace, name: str) -> dict[str, Any]:
    if name not in workspace.loaded_experiments():
        return {}
    with open_store(workspace.data, name) as store:
        requests = store.connection.execute(
            "SELECT count(DISTINCT request_id) FILTER (role <> 'replay'), "
            "max(started_at) FILTER (role = 'served') FROM exchanges"
        ).fetchall()[0]
        (pairs,) = store.connection.execute(
            "SELECT count(*) FROM (SELECT request_id FROM exchanges WHERE list_contains($1::VARCHAR[], outcome) "
            "GROUP BY request_id HAVING count(DISTINCT arm) = 2)",
            [sorted(ANSWERED)],
        ).fetchall()[0]
        judged = store.connection.execute(
            "SELECT count(DISTINCT request_id) FILTER (status = 'ok'), coalesce(sum(cost_usd), 0) FROM stored_judgments"
        ).fetchall()[0]
    last: datetime | None = requests[1]
    return {
        "n_requests": requests[0],
        "n_pairs": pairs,
        "n_judged": judged[0],
        "judge_usd": float(judged[1]),
        "last_request_at": None if last is None else last.astimezone(UTC).isoformat(timespec="seconds"),
    }


def _decision(workspace: Workspace, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if has_record(workspace.data, name):
        record = load_record(workspace.data, name)
        if record is not None:
            facts = {"last_look_at": record.last_look_at, "n_looks": record.n_looks}
            if record.decided is not None:
                facts |= {"recommendation": record.decided.recommendation, "decided_at": record.decided.at}
    verdict = read_verdict(workspace)
    if verdict is not None and verdict.get("experiment") == name:
        facts |= {key: verdict.get(key) for key in ("recommendation", "headline", "decided_at")}
    return facts
