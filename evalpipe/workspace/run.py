"""`evalpipe run`: load, judge, report and gate as one job with one lock, once or on a schedule, and the alerts of what it found.

Every step is tried: what is loaded can be reported while the judge's provider is down. A step that failed is named, and the
job has failed then, whatever the other steps did. An alert is sent of what changed or went wrong since the run before, once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from evalpipe.config import AlertsConfig
from evalpipe.errors import EvalpipeError, NoDataError, NothingToJudgeError, WorkspaceBusyError
from evalpipe.files import try_lock
from evalpipe.judging.runner import RunSummary
from evalpipe.models import AGAINST_ITSELF, FAILED, CanaryStatus
from evalpipe.objects.shared import shared_work
from evalpipe.rollout.canary import CONTROLLER
from evalpipe.spool.segments import holds_log
from evalpipe.store.load import LoadSummary
from evalpipe.store.query import open_store
from evalpipe.workspace.alerts import Alert, Post, lasting_alerts, send_new, webhook_address
from evalpipe.workspace.canary import open_history
from evalpipe.workspace.decide import exit_code, nothing_yet, read_verdict, write_verdict
from evalpipe.workspace.judge import judge, judge_by_batches, judge_online
from evalpipe.workspace.judge_setup import JudgeOptions
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace
from evalpipe.workspace.report import WrittenReport, write_report

StepName = Literal["load", "judge", "report", "gate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """The options of the command line.

    Attributes:
        judges: by name; () = the configured ones.
        skips_judge: leave the judge out.
    """

    experiment: str | None = None
    judges: tuple[str, ...] = ()
    skips_judge: bool = False
    until_decided: bool = False
    batch: bool = False
    show_progress: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """How a step ended. `why`: the reason of a step that failed or had nothing to do; `seconds`: of wall time."""

    name: StepName
    status: Literal["done", "nothing_to_do", "failed"]
    why: str | None
    seconds: float


@dataclass(kw_only=True, slots=True)
class JobResult:
    """One run of the job.

    Attributes:
        verdict: of this run; None where the gate failed. `verdict_before`: the last one before it.
        loaded, judged, report: what the steps gave; None (empty) where they failed or had nothing to do.
    """

    experiment: str
    started_at: datetime
    steps: list[Step] = field(default_factory=list)
    loaded: LoadSummary | None = None
    judged: list[RunSummary] = field(default_factory=list)
    report: WrittenReport | None = None
    verdict: dict[str, Any] | None = None
    verdict_before: dict[str, Any] | None = None

    @property
    def failed(self) -> list[Step]:
        return [step for step in self.steps if step.status == "failed"]

    @property
    def is_changed(self) -> bool:
        """Whether the decision is another than before."""
        if self.verdict is None:
            return False
        before = None if self.verdict_before is None else self.verdict_before.get("recommendation")
        return before is not None and bool(before != self.verdict["recommendation"])

    def exit_code(self, *, gate: bool) -> int:
        """1 where a step failed, else 0; with `gate` the gate's."""
        if self.failed:
            return 1
        return exit_code(self.verdict) if gate and self.verdict is not None else 0

    def as_json(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment,
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "steps": [
                {"step": step.name, "status": step.status, "why": step.why, "seconds": round(step.seconds, 1)}
                for step in self.steps
            ],
            "load": None if self.loaded is None else self.loaded.as_json(),
            "judge": [one.as_json() for one in self.judged],
            "report": None if self.report is None else str(self.report.html),
            "changed": self.is_changed,
            "verdict": self.verdict,
        }


def run_job(workspace: Workspace, options: RunOptions) -> JobResult:
    """Load what the collector wrote, judge what is unanswered, write the report and the verdict.

    Raises:
        WorkspaceBusyError: where another `evalpipe run` works on this data.
        ConfigError: where no experiment is known.
    """
    name = workspace.experiment(options.experiment)
    with only_run(workspace.data):
        result = JobResult(
            experiment=name, started_at=datetime.now(UTC), verdict_before=_verdict_before(workspace, name)
        )
        with _step(result, "load"):
            if not holds_log(workspace.spool):
                if workspace.loaded_experiments():
                    raise NoDataError("nothing new since the last load")
                raise NoDataError("the collector has written nothing; send requests through `evalpipe collect`")
            result.loaded = load(workspace, show_progress=options.show_progress)
            if result.loaded.is_failure:
                raise EvalpipeError(f"nothing of the log could be stored: {'; '.join(result.loaded.lines())}")
        if not options.skips_judge:
            with _step(result, "judge"):
                _check_loaded(workspace, name)
                _judge(workspace, result, replace(options, experiment=name))
        with _step(result, "report"):
            _check_loaded(workspace, name)
            result.report = write_report(workspace, experiment=name)
        with _step(result, "gate"):
            _decide(workspace, result)
    return result


def _check_loaded(workspace: Workspace, experiment: str) -> None:
    if experiment.removesuffix(AGAINST_ITSELF) not in workspace.loaded_experiments():
        raise NoDataError(f"no request of {experiment} is loaded yet")


def _judge(workspace: Workspace, result: JobResult, options: RunOptions) -> None:
    chosen = JudgeOptions(
        judges=options.judges,
        until_decided=options.until_decided,
        experiment=options.experiment,
        show_progress=options.show_progress,
    )
    result.judged = judge(workspace, chosen, by=judge_by_batches if options.batch else judge_online)
    if any(one.stopped == "interrupted" for one in result.judged):
        raise KeyboardInterrupt
    failures = [
        f"{one.judge}: {one.message or one.stopped or _commonest(one)}" for one in result.judged if one.is_failure
    ]
    if failures:
        raise EvalpipeError("; ".join(failures))


def _commonest(summary: RunSummary) -> str:
    reason = max(summary.failed, key=summary.failed.__getitem__, default="no call gave a verdict")
    words = summary.failure_messages.get(reason)
    return f"{reason} ({words})" if words else reason


def _decide(workspace: Workspace, result: JobResult) -> None:
    """The report's own decision: the gate and the page of one run cannot differ."""
    own = workspace.config.experiment.name if workspace.config else None
    keep = own in {None, result.experiment}
    if result.report is not None:
        analysis = result.report.analysis
        result.verdict = write_verdict(workspace, result.experiment, analysis.decision, analysis, keep=keep)
        return
    (report,) = (step for step in result.steps if step.name == "report")
    if report.status == "failed":
        raise EvalpipeError("there is no decision without a report")
    decision = nothing_yet(NoDataError(report.why or "no data"))
    result.verdict = write_verdict(workspace, result.experiment, decision, None, keep=keep)


@contextmanager
def _step(result: JobResult, name: StepName) -> Iterator[None]:
    """Note how a step ended; an error a user can cause ends the step, not the job."""
    began = time.monotonic()

    def ended(status: Literal["done", "nothing_to_do", "failed"], why: str | None = None) -> None:
        result.steps.append(Step(name=name, status=status, why=why, seconds=time.monotonic() - began))

    try:
        yield
    except (NoDataError, NothingToJudgeError) as error:
        ended("nothing_to_do", str(error))
    except EvalpipeError as error:
        ended("failed", str(error))
    else:
        ended("done")


def _verdict_before(workspace: Workspace, experiment: str) -> dict[str, Any] | None:
    document = read_verdict(workspace)
    return document if document is not None and document.get("experiment") == experiment else None


@contextmanager
def only_run(data: Path) -> Iterator[None]:
    """One job at a time on a data folder. Raises WorkspaceBusyError with the id of the running process."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(data / ".run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(handle):
            other = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            raise WorkspaceBusyError(
                f"another `evalpipe run` works on {data} (process {other}): let it end, it does the same"
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        with shared_work(data, "run", waits=False):
            yield
    finally:
        os.close(handle)


def run_every(
    job: Callable[[], object], every_s: float, *, sleep: Callable[[float], None] = time.sleep, rounds: int | None = None
) -> None:
    """Do `job` now and every `every_s` seconds from its start, until interrupted; a job that takes longer is followed at once.

    Args:
        rounds: end after so many; None: never.
    """
    n_done = 0
    while True:
        began = time.monotonic()
        job()
        n_done += 1
        if rounds is not None and n_done >= rounds:
            return
        sleep(max(0.0, every_s - (time.monotonic() - began)))


# --- alerts


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
