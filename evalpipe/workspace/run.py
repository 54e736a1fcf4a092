"""`evalpipe run`: load, judge, report and gate as one job with one lock, once or on a schedule.

Every step is tried: what is loaded can be reported while the judge's provider is down. A step that failed is named, and the
job has failed then, whatever the other steps did.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from evalpipe.errors import EvalpipeError, NoDataError, NothingToJudgeError, WorkspaceBusyError
from evalpipe.files import try_lock
from evalpipe.judging.run_summary import RunSummary
from evalpipe.models import AGAINST_ITSELF
from evalpipe.spool.segments import holds_log
from evalpipe.store.load import LoadSummary
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
