"""What is wrong with an experiment, and the command line that mends it: for `evalpipe serve`. Reads only."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from evalpipe.models import CanaryStatus
from evalpipe.workspace.canary import Status as CanaryView
from evalpipe.workspace.decide import read_verdict
from evalpipe.workspace.live import Counters
from evalpipe.workspace.paths import Workspace
from evalpipe.workspace.status import ExperimentStatus
from evalpipe.workspace.webhook import lasting_alerts

_MUCH_LOG_BYTES = 1_000_000
_LONG_AGO = timedelta(hours=36)
_BY_HEALTH = (
    # what a reason of health begins with → what mends it
    ("records cannot be written", "df -h data"),
    ("connections are refused", "ulimit -n 65536 && evalpipe collect"),
    ("the spool grows faster", "evalpipe load"),
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
        budget = counters.budget_usd
        if budget is not None and counters.not_copied.get("shed") and counters.copies_usd >= 0.98 * budget:
            yield Problem(
                what=f"the budget of copies is used up (${counters.copies_usd:,.2f} of ${budget:,.2f}): no request is copied",
                command="$EDITOR evalpipe.toml  # [collector] shadow_budget_usd",
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
        yield Problem(what="nobody watches the canary's guardrails: no controller runs", command="evalpipe canary run")
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
