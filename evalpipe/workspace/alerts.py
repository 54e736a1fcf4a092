"""Alerts of `evalpipe run` to a webhook: what changed or went wrong since the run before, each once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from evalpipe.config import AlertsConfig
from evalpipe.models import FAILED, CanaryStatus
from evalpipe.rollout.canary import CONTROLLER
from evalpipe.store.query import open_store
from evalpipe.workspace.canary import open_history
from evalpipe.workspace.paths import Workspace
from evalpipe.workspace.run import JobResult
from evalpipe.workspace.webhook import Alert, Post, lasting_alerts, send_new, webhook_address

_MIN_COPIES = 20
_RECENT = timedelta(hours=1)


def alert(
    workspace: Workspace, result: JobResult, *, now: datetime | None = None, post: Post | None = None
) -> tuple[list[Alert], str | None]:
    """Send what is new in a run to `[alerts] webhook`.

    Args:
        now: the instant of the alerts; None: the clock's.
        post: who sends; None: an HTTP request, tried three times.

    Returns:
        (the alerts that are new in this run, why some are still waiting to be sent; None where all are out). Without a webhook
        nothing is new.

    Raises:
        ConfigError: where `webhook_env` names a variable that is not set.
    """
    config = workspace.config.alerts if workspace.config else AlertsConfig()
    if webhook_address(config) is None:
        return [], None
    at = (now or datetime.now(UTC)).astimezone(UTC)
    found = dict(conditions(workspace, result, config, at))
    return send_new(workspace, result.experiment, found, reporter="run", at=at, post=post)


def conditions(
    workspace: Workspace, result: JobResult, config: AlertsConfig, now: datetime
) -> Iterator[tuple[str, str]]:
    """(kind, text) of everything that is worth an alert in this run."""
    if result.failed:
        steps = "; ".join(f"{step.name}: {step.why}" for step in result.failed)
        yield "run_failed", f"a step of `evalpipe run` failed: {steps}"
    verdict = result.verdict
    if verdict is not None:
        if result.is_changed and result.verdict_before is not None:
            before = result.verdict_before["recommendation"]
            yield (
                "decision_changed",
                f"the decision changed from {before} to {verdict['recommendation']}: {verdict['headline']}",
            )
        if verdict["setup_faults"]:
            yield "setup_fault", f"the set-up of an arm is at fault: {'; '.join(map(str, verdict['setup_faults']))}"
    spent = [one.judge for one in result.judged if one.stopped == "budget"]
    recent = _recent(workspace, result.experiment)
    reported, _ = lasting_alerts(workspace, result.experiment, reporters=("collect",))
    n_shed = 0 if "budget_used_up" in reported else recent.n_shed_by_budget
    if spent or n_shed:
        what = [f"judge {name}" for name in spent]
        if n_shed:
            what.append(f"copies ({n_shed:,} left out in the last hour of traffic)")
        yield "budget_used_up", f"a budget is used up: {', '.join(what)}"
    if recent.n_copies >= _MIN_COPIES and 2 * recent.n_failed_copies > recent.n_copies:
        yield (
            "copies_failing",
            f"{recent.n_failed_copies:,} of the last hour's {recent.n_copies:,} copies failed in the treatment arm"
            + (f": {recent.reason}" if recent.reason else ""),
        )
    if recent.last_at is not None and workspace.spool.is_dir():
        silent = now - recent.last_at
        if silent > timedelta(minutes=config.nothing_for_minutes):
            yield "nothing_collected", f"no request was collected since {recent.last_at:%Y-%m-%d %H:%M} UTC"
    if workspace.config is not None and workspace.config.experiment.mode == "canary":
        last = open_history(workspace, result.experiment).last()
        if last is not None and last.who == CONTROLLER and last.state.status is CanaryStatus.ROLLED_BACK:
            yield "guardrail_breached", f"the canary was rolled back: {last.why}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recent:
    """The last hour of traffic that is loaded."""

    last_at: datetime | None = None
    n_copies: int = 0
    n_failed_copies: int = 0
    n_shed_by_budget: int = 0
    reason: str | None = None


def _recent(workspace: Workspace, experiment: str) -> _Recent:
    if experiment not in workspace.loaded_experiments():
        return _Recent()
    with open_store(workspace.data, experiment) as store:
        run = store.connection.execute
        last_at = run("SELECT max(started_at) FROM exchanges WHERE role = 'served'").fetchall()[0][0]
        if last_at is None:
            return _Recent()
        counts = run(
            "SELECT count(*) FILTER (role = 'shadow'), "
            "count(*) FILTER (role = 'shadow' AND list_contains($2::VARCHAR[], outcome)), "
            "count(*) FILTER (role = 'served' AND shadow_status = 'shed' AND shadow_reason = 'budget'), "
            "mode(error_message) FILTER (role = 'shadow' AND list_contains($2::VARCHAR[], outcome)) "
            "FROM exchanges WHERE started_at > $1",
            [last_at - _RECENT, sorted(FAILED)],
        ).fetchall()[0]
    return _Recent(
        last_at=last_at.astimezone(UTC),
        n_copies=counts[0],
        n_failed_copies=counts[1],
        n_shed_by_budget=counts[2],
        reason=counts[3],
    )
