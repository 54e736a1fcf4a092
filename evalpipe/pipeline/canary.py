"""`evalpipe canary`: the controller over this workspace's spool and store, and what a person may tell it."""

from __future__ import annotations

import getpass
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableSet, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from evalpipe.config import Config
from evalpipe.core.canary import CanaryEvaluation, CanaryEvent, CanaryState, CanaryStatus
from evalpipe.core.setup_fault import signature_of
from evalpipe.core.spool import RequestRecord, ResponseRecord
from evalpipe.core.traffic import Arm, Outcome, Role
from evalpipe.errors import ConfigError
from evalpipe.pipeline.canary_traces import canary_traces
from evalpipe.pipeline.prices import price_book
from evalpipe.pipeline.setup_faults import passes_through
from evalpipe.pipeline.workspace import Workspace
from evalpipe.rollout import stages as machine
from evalpipe.rollout.controller import Controller, ControllerSettings, elected, is_led
from evalpipe.rollout.feed import SpoolFeed, StageFeed
from evalpipe.rollout.guardrails import Guardrail, Margin, build_guardrails
from evalpipe.rollout.history import History
from evalpipe.rollout.observation import Observation
from evalpipe.rollout.setup_guard import TreatmentSetup
from evalpipe.rollout.win_rate import WinRateLimit
from evalpipe.store.datasets import open_store
from evalpipe.store.exchange_rows import ReadingRules, read_exchanges
from evalpipe.store.spool_join import Entry

STANDBY_S = 1.0
"""how often a second controller asks whether the first is still there"""
_CLOCK_SLACK = timedelta(seconds=60)


def open_history(workspace: Workspace, experiment: str | None = None) -> History:
    name = workspace.experiment(experiment)
    return History(workspace.data / "canary", name, traces=partial(canary_traces, workspace, name))


def configured_stages(config: Config) -> list[machine.Stage]:
    return [
        machine.Stage(
            percentage=stage.percentage, duration_s=3600 * stage.duration_hours, auto_advance=stage.auto_advance
        )
        for stage in config.canary.stages
    ]


def canary_config(workspace: Workspace) -> Config:
    """The configuration, in canary mode. Raises ConfigError otherwise, and for guardrails that mean nothing."""
    config = workspace.require_config()
    if config.experiment.mode != "canary":
        raise ConfigError(f"experiment.mode = '{config.experiment.mode}': a canary needs mode = \"canary\"")
    build_guardrails(config.canary.guardrails)
    return config


class WorkspaceSource:
    """A stage's answers: from the spool as it grows, and, for a controller that comes later, from the store as well."""

    def __init__(self, workspace: Workspace, config: Config) -> None:
        self._workspace, self._experiment = workspace, config.experiment.name
        rules = ReadingRules(unit_sources=config.experiment.unit, prices=price_book(config))
        self._judge = partial(_read, rules)
        self._spool: SpoolFeed | None = None
        self._feed: StageFeed | None = None

    def begin(self, state: CanaryState) -> Iterator[Observation]:
        if self._feed is None:
            yield from self._rebuild(state)
        else:
            self._feed.new_stage(state.entry)

    def new(self, state: CanaryState) -> Iterator[Observation]:
        assert self._feed is not None, "begin comes first"
        return self._feed.observations(state.entry)

    @property
    def lost_track(self) -> bool:
        """Segments were loaded and deleted between two polls: only the store has them."""
        return self._spool is not None and self._spool.gaps > 0

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()

    def _rebuild(self, state: CanaryState) -> Iterator[Observation]:
        self._spool = SpoolFeed(self._workspace.spool, self._experiment)
        self._feed = StageFeed(self._spool, self._judge)
        if state.status in machine.LIVE:
            stored = self._stored(state)
            self._feed.already_counted(set(stored))
            yield from stored.values()

    def _stored(self, state: CanaryState) -> dict[str, Observation]:
        """What `evalpipe load` has already taken out of the spool of this stage, by request."""
        since = datetime.fromtimestamp(state.entered_at, UTC) - _CLOCK_SLACK
        with open_store(self._workspace.data, self._experiment) as store:
            rows = store.connection.execute(
                "SELECT request_id, arm, unit_id, outcome, latency_ms, ttft_ms, cost_usd, epoch(started_at), status, "
                "error_type, error_message, config_fingerprint FROM exchanges "
                "WHERE role = 'served' AND percentage = ? AND started_at >= ? AND NOT coalesce(forced, false) "
                "AND outcome NOT IN ('client_closed', 'shed')",
                [state.percentage, since],
            ).fetchall()
        return {
            request_id: Observation(
                arm=Arm(arm),
                unit=unit or request_id,
                outcome=Outcome(outcome),
                latency_ms=latency,
                ttft_ms=ttft,
                cost_usd=cost,
                asked_at=asked_at,
                failure=signature_of(outcome=outcome, status=status, error_type=code, error_message=words),
                words=words,
                configuration=configuration,
            )
            for request_id, arm, unit, outcome, latency, ttft, cost, asked_at, status, code, words, configuration in rows
        }


def _read(rules: ReadingRules, request: RequestRecord, response: ResponseRecord) -> Observation | None:
    """The answer as `evalpipe load` would store it; None where the client left."""
    entry = Entry(request=request, served=response)
    exchange = next(row for row in read_exchanges(entry, rules) if row.role is Role.SERVED)
    if exchange.outcome in {Outcome.CLIENT_CLOSED, Outcome.SHED}:
        return None
    return Observation(
        arm=exchange.arm,
        unit=exchange.unit_id or exchange.request_id,
        outcome=exchange.outcome,
        latency_ms=exchange.latency_ms,
        ttft_ms=exchange.ttft_ms,
        cost_usd=exchange.cost_usd,
        asked_at=exchange.started_at.timestamp(),
        failure=signature_of(
            outcome=exchange.outcome,
            status=exchange.status,
            error_type=exchange.error_type,
            error_message=exchange.error_message,
        ),
        words=exchange.error_message,
        configuration=exchange.config_fingerprint,
    )


def _guardrails(
    workspace: Workspace, config: Config, history: History, answered: MutableSet[str | None]
) -> list[Guardrail]:
    """`answered`: the treatment's configurations that have answered in an earlier stage."""
    built = build_guardrails(config.canary.guardrails, _margins(config))
    built.append(TreatmentSetup(passes_through=passes_through(config).get("treatment", False), answered=answered))
    if "win_rate" in config.canary.guardrails:
        read = partial(_judged_since, workspace, config, history)
        built.append(WinRateLimit(config.canary.guardrails["win_rate"], read))
    return built


def _margins(config: Config) -> Mapping[str, Margin]:
    return {
        name: Margin(value=metric.margin.value, relative=metric.margin.relative)
        for name, metric in config.decision.metrics.items()
        if metric.margin is not None
    }


_JUDGED = """
WITH heard AS (
  SELECT c.request_id, coalesce(c.unit_id, c.request_id) AS unit, j.shown_first,
    avg(j.preference) AS p, bool_or(j.status = 'identical') AS identical
  FROM judgments j JOIN exchanges c ON c.request_id = j.request_id AND c.arm = 'control'
  WHERE j.judge = ? AND j.preference IS NOT NULL AND c.started_at >= ? GROUP BY ALL),
pairs AS (
  SELECT unit, avg(p) AS p FROM heard GROUP BY unit, request_id
  HAVING NOT ? OR count(*) = 2 OR bool_or(identical OR shown_first = 'neither'))
SELECT unit, avg(p) FROM pairs GROUP BY unit ORDER BY unit
"""
"""A pair of which one order only is judged so far says as much about the seat as about the answer: it waits."""


def _judged_since(workspace: Workspace, config: Config, history: History) -> Sequence[tuple[str, float]]:
    """(unit, mean preference) of the pairs of the present stage that the judge has answered as `orders` promises."""
    since = datetime.fromtimestamp(history.state().entered_at, UTC)
    with open_store(workspace.data, config.experiment.name) as store:
        asked = [config.judge.name[0], since, config.judge.orders == "both"]
        return store.connection.execute(_JUDGED, asked).fetchall()


def sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def wait_for_parent(seconds: float) -> bool:
    """Wait so long, or until stdin closes: then the collector that started this process is gone (True)."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable)


def run(
    workspace: Workspace,
    *,
    on_event: Callable[[CanaryEvent], None],
    on_standby: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.time,
    wait: Callable[[float], bool] = sleep,
    until_done: bool = False,
) -> None:
    """Watch and steer until `wait(seconds)` returns True, or, with `until_done`, until the canary is done or rolled back.

    One controller decides: the one that holds the election lock. Another stands by and takes over when the first ends,
    however it ends.
    """
    config = canary_config(workspace)
    history = open_history(workspace)
    settings = ControllerSettings(
        stages=configured_stages(config),
        min_requests=config.canary.min_requests,
        evaluate_every_s=config.canary.evaluate_every_s,
        alpha=1 - config.decision.confidence_level,
    )
    while True:
        with elected(history.controller_lock_path) as leads:
            if leads:
                return _lead(workspace, config, history, settings, on_event, clock, wait, until_done)
        on_standby()
        if wait(STANDBY_S):
            return None


def _lead(
    workspace: Workspace,
    config: Config,
    history: History,
    settings: ControllerSettings,
    on_event: Callable[[CanaryEvent], None],
    clock: Callable[[], float],
    wait: Callable[[float], bool],
    until_done: bool,
) -> None:
    answered: set[str | None] = set()
    while True:
        with closing(WorkspaceSource(workspace, config)) as source:
            controller = Controller(
                history, settings, source, partial(_guardrails, workspace, config, history, answered)
            )
            while not source.lost_track:
                event = controller.tick(clock())
                if event is not None:
                    on_event(event)
                if until_done and history.state().status in {CanaryStatus.DONE, CanaryStatus.ROLLED_BACK}:
                    return
                if not source.lost_track and wait(settings.evaluate_every_s):
                    return


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Where the canary stands. `watched`: a controller holds the election lock now. `loss`: why its history is lost."""

    experiment: str
    state: CanaryState
    event: CanaryEvent | None
    evaluation: CanaryEvaluation | None
    stages: Sequence[machine.Stage]
    watched: bool
    loss: str | None = None


def read_status(workspace: Workspace) -> Status:
    """Raises ConfigError where the workspace is in another mode: there is no canary to speak of."""
    config = canary_config(workspace)
    history = open_history(workspace)
    event = history.last()
    state, loss = history.state(), history.loss()
    evaluation = history.evaluation()
    shown = evaluation is not None and (evaluation.entry == state.entry or state.status is CanaryStatus.ROLLED_BACK)
    return Status(
        experiment=config.experiment.name,
        state=state,
        event=event,
        evaluation=evaluation if shown else None,
        stages=configured_stages(config),
        watched=is_led(history.controller_lock_path),
        loss=loss or (event.why if event and state.paused_by == machine.HISTORY_LOST else None),
    )


def tell(
    workspace: Workspace, action: str, *, why: str, by: str | None = None, force: bool = False, now: float | None = None
) -> CanaryEvent:
    """A person's approve | pause | rollback | reset, with who, when and why. Raises ConfigError where it cannot be done."""
    config = canary_config(workspace)
    at = time.time() if now is None else now
    steps: Mapping[str, Callable[[CanaryState], machine.Change]] = {
        "approve": lambda state: machine.approve(state, now=at, stages=configured_stages(config), why=why, force=force),
        "pause": lambda state: machine.pause(state, why=why),
        "rollback": lambda state: machine.rollback(state, now=at, why=why),
        "reset": lambda state: machine.reset(now=at, why=why),
    }
    event = open_history(workspace).apply(steps[action], now=at, who=by or _user())
    assert event is not None, "a person's step always changes something"
    return event


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return "unknown"
