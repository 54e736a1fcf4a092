"""`evalpipe status`: what each experiment holds, whether it collects, and what was decided last. Reads only.

For `evalpipe serve` also what is wrong with it, and the command line that mends it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.models import ANSWERED, CanaryStatus
from evalpipe.spool.segments import list_segments
from evalpipe.store.query import open_store
from evalpipe.workspace.alerts import lasting_alerts
from evalpipe.workspace.canary import Status as CanaryView
from evalpipe.workspace.decide import read_verdict
from evalpipe.workspace.live import Counters
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


# --- problems


_MUCH_LOG_BYTES = 1_000_000
_LONG_AGO = timedelta(hours=36)
_BY_HEALTH = (
    # what a reason of health begins with → what mends it
    ("records cannot be written", "df -h data"),
    ("connections are refused", "ulimit -n 65536 && evalpipe collect"),
    ("the spool grows faster", "evalpipe load"),
    ("the copies' budget has no room", "$EDITOR evalpipe.toml  # [collector] shadow_budget_usd"),
    ("the treatment process is not running", "evalpipe collect"),
    ("the canary's controller is not running", "evalpipe canary run"),
)
_BY_ALERT = {
    "copies_failing": "evalpipe doctor --live",
    "setup_fault": "evalpipe doctor --live",
    "budget_used_up": "$EDITOR evalpipe.toml",
    "nothing_collected": "evalpipe doctor",
    "run_failed": "evalpipe run",
    "guardrail_breached": "evalpipe canary history",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """`what`: one sentence, may hold untrusted words; `command`: a line for a shell that mends it or names the cause."""

    what: str
    command: str


def problems(
    workspace: Workspace,
    status: ExperimentStatus,
    *,
    counters: Counters | None,
    silent: str | None,
    canary: CanaryView | None,
    now: datetime,
) -> list[Problem]:
    """Everything that is wrong now, the most urgent first.

    Args:
        counters: of the collector; None where none answers, and then `silent` is why.
        canary: its state, where there is one.
    """
    found = [
        *_collecting(workspace, status, counters, silent),
        *_canary(canary),
        *_deciding(workspace, status, now),
        *_alerts(workspace, status),
    ]
    unique: dict[str, Problem] = {}
    for one in found:
        unique.setdefault(one.what, Problem(what=one.what, command=in_folder(workspace, one.command)))
    return list(unique.values())


def in_folder(workspace: Workspace, command: str) -> str:
    """The command line, to be run from anywhere."""
    return f"cd {shlex.quote(str(workspace.root.resolve()))} && {command}"


def _collecting(
    workspace: Workspace, status: ExperimentStatus, counters: Counters | None, silent: str | None
) -> Iterator[Problem]:
    if status.problem:
        yield Problem(what=status.problem, command="evalpipe doctor --data")
    if counters is not None:
        for reason in counters.reasons:
            known = (command for words, command in _BY_HEALTH if reason.startswith(words))
            yield Problem(what=reason, command=next(known, "evalpipe doctor --live"))
        if counters.records_lost:
            yield Problem(
                what=f"{counters.records_lost:,} records of the log were lost since the collector started",
                command="df -h data",
            )
    elif status.is_collecting and silent is not None:
        yield Problem(what=f"a collector writes to this folder, but {silent}", command="evalpipe doctor")
    elif workspace.config is not None and workspace.config.arms is not None and workspace.spool.is_dir():
        yield Problem(what="no collector runs: nothing is collected", command="evalpipe collect")


def _canary(canary: CanaryView | None) -> Iterator[Problem]:
    if canary is None:
        return
    state = canary.state
    if canary.loss is not None:
        why = canary.loss.split("; `evalpipe")[0]
        yield Problem(
            what=f"the canary's history is lost, so users get control: {why}",
            command='evalpipe canary reset --why "…"',
        )
    if state.status is CanaryStatus.ROLLED_BACK:
        why = canary.event.why if canary.event else "no reason is recorded"
        yield Problem(what=f"the canary was rolled back: {why}", command='evalpipe canary reset --why "…"')
    elif not canary.watched and state.status in {CanaryStatus.RUNNING, CanaryStatus.PAUSED, CanaryStatus.INCONCLUSIVE}:
        yield Problem(
            what="the canary's guardrails are not evaluated: no controller runs", command="evalpipe canary run"
        )
    if state.status is CanaryStatus.INCONCLUSIVE and canary.event is not None:
        yield Problem(what=f"the canary's stage is inconclusive: {canary.event.why}", command="evalpipe canary status")
    elif state.status is CanaryStatus.PAUSED and canary.loss is None and canary.event is not None:
        yield Problem(
            what=f"the canary waits for a person: {canary.event.why}", command='evalpipe canary approve --why "…"'
        )


def _deciding(workspace: Workspace, status: ExperimentStatus, now: datetime) -> Iterator[Problem]:
    verdict = read_verdict(workspace)
    if verdict is not None and verdict.get("experiment") == status.experiment:
        for fault in verdict.get("setup_faults") or ():
            yield Problem(what=f"the set-up of an arm is at fault: {fault}", command="evalpipe doctor --live")
        for check in verdict.get("failed_checks") or ():
            yield Problem(what=f"a check of the data failed: {check}", command="evalpipe report")
    late = _is_long_ago(status.last_look_at, now)
    if status.waiting_bytes > _MUCH_LOG_BYTES and late:
        yield Problem(
            what=f"{status.waiting_bytes / 1e6:,.1f} MB of log wait, and nobody has looked for more than a day",
            command="evalpipe run",
        )


def _alerts(workspace: Workspace, status: ExperimentStatus) -> Iterator[Problem]:
    lasting, n_waiting = lasting_alerts(workspace, status.experiment)
    for kind, text in lasting.items():
        yield Problem(what=text, command=_BY_ALERT.get(kind, "evalpipe run"))
    if n_waiting:
        yield Problem(
            what=f"{n_waiting:,} {'alert' if n_waiting == 1 else 'alerts'} could not be sent to the webhook",
            command="$EDITOR evalpipe.toml  # [alerts] webhook",
        )


def _is_long_ago(instant: str | None, now: datetime) -> bool:
    if instant is None:
        return True
    try:
        return now - datetime.fromisoformat(instant) > _LONG_AGO
    except (ValueError, TypeError):
        return False
