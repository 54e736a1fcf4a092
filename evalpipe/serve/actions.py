"""What a person may do from the page: the canary's steps, and a run of the morning's job. Each needs who and why."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

from evalpipe.errors import ConfigError
from evalpipe.models import CanaryEvent, CanaryState
from evalpipe.rollout.canary import CONTROLLER
from evalpipe.text import printable
from evalpipe.workspace.canary import change_state
from evalpipe.workspace.paths import Workspace

STEPS = ("approve", "pause", "rollback")
MOST_WHO = 100
MOST_WHY = 500
_MOST_LINES = 200
_MOST_LINE = 2000
_ENDS_S = 10.0

logger = logging.getLogger(__name__)


def seen(state: CanaryState) -> str:
    """What a page shows of a canary: a step that was pressed for it must not act on another stage."""
    return f"{state.entry}-{state.status}-{state.percentage:g}"


def signed(form: dict[str, str]) -> tuple[str, str]:
    """Who and why, each in one printable line.

    Raises:
        ConfigError: where one of them is missing, too long, or the controller's name.
    """
    who, why = (" ".join(printable(form.get(name, "")).split()) for name in ("who", "why"))
    if not who or not why:
        raise ConfigError(f"{'who' if not who else 'why'} is empty: both are recorded with the step")
    if len(who) > MOST_WHO or len(why) > MOST_WHY:
        raise ConfigError(f"at most {MOST_WHO} characters for who and {MOST_WHY} for why are recorded")
    if who.lower() == CONTROLLER:
        raise ConfigError(f"{who!r} is the controller's own name: give a person's")
    return who, why


def step_canary(workspace: Workspace, form: dict[str, str]) -> CanaryEvent:
    """A step of the canary, recorded with who and why.

    Args:
        form: `step` (one of `STEPS`), `who`, `why`, and `seen`, the state the page showed.

    Raises:
        ConfigError: for an unknown step, where who or why is missing, the state has changed since, or it does not allow the step.
    """
    step = form.get("step", "")
    if step not in STEPS:
        raise ConfigError(f"step = {step[:20]!r}: choose one of {', '.join(STEPS)}")
    who, why = signed(form)

    def check(state: CanaryState) -> None:
        if step != "rollback" and form.get("seen") != seen(state):  # a rollback never waits for a second look
            raise ConfigError("the canary has changed since this page was made: look at it again, then decide")

    return change_state(workspace, step, why=why, by=who, check=check)


@dataclass(kw_only=True)
class Job:
    """A run that was started from the page. `code`: its exit code, None while it runs."""

    who: str
    why: str
    started_at: datetime
    code: int | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))


class Jobs:
    """The runs that were started here: one at a time for each experiment, ended with the server."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, key: str) -> Job | None:
        """The last one of an experiment."""
        return self._jobs.get(key)

    def start(self, key: str, workspace: Workspace, experiment: str, form: dict[str, str]) -> Job:
        """Start `evalpipe run` of an experiment.

        Raises:
            ConfigError: where who or why is missing, or one is running.
        """
        who, why = signed(form)
        last = self._jobs.get(key)
        if last is not None and last.code is None:
            raise ConfigError(f"a run started by {last.who} is at work: wait for it")
        job = self._jobs[key] = Job(who=who, why=why, started_at=datetime.now(UTC))
        command = [sys.executable, "-m", "evalpipe", "run", "--experiment", experiment, "--data", str(workspace.data)]
        if workspace.config_path is not None:
            command += ["--config", str(workspace.config_path)]
        logger.info("run of %s started by %s: %s", experiment, who, why)
        task = asyncio.create_task(_run(job, command, cwd=str(workspace.root)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    async def close(self) -> None:
        """End what runs: what a run has finished is kept."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _run(job: Job, command: list[str], *, cwd: str) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            process_group=0,
        )
    except OSError as error:
        job.lines.append(f"it cannot be started: {error}")
        job.code = 1
        return
    assert process.stdout is not None
    try:
        rest = b""
        while chunk := await process.stdout.read(1 << 16):
            *whole, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            job.lines.extend(_shown(line) for line in whole if line.strip())
            rest = rest[-4 * _MOST_LINE :]
        if rest.strip():
            job.lines.append(_shown(rest))
        job.code = await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_ENDS_S):
                job.code = await process.wait()
        except TimeoutError:
            process.kill()
            job.code = await process.wait()
        raise


def _shown(line: bytes) -> str:
    return printable(line.decode("utf-8", "replace"))[:_MOST_LINE]
