"""`evalpipe canary`: the controller over this workspace's spool and store, and what a person may change."""

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
from pathlib import Path
from typing import Any

import msgspec

from evalpipe.analysis.record import rules_of
from evalpipe.config import Config
from evalpipe.errors import ConfigError, DataError
from evalpipe.files import sql_statements
from evalpipe.models import Arm, CanaryEvaluation, CanaryEvent, CanaryState, CanaryStatus, Outcome, Role
from evalpipe.objects.client import open_objects
from evalpipe.objects.lease import holder, key_of
from evalpipe.objects.shared import pull
from evalpipe.providers.setup_faults import signature_of
from evalpipe.rollout import canary
from evalpipe.rollout.canary import History, Traces
from evalpipe.rollout.controller import Controller, ControllerSettings, StateHistory, has_leader, leader_lock
from evalpipe.rollout.guardrails import Guardrail, Margin, TreatmentSetup, WinRateLimit, build_guardrails
from evalpipe.rollout.observations import Observation, SpoolReader, StageFeed
from evalpipe.rollout.shared_history import SharedHistory
from evalpipe.spool.format import RequestRecord, ResponseRecord, read_record
from evalpipe.spool.join import PendingRequest
from evalpipe.store.exchange_rows import ReadingRules, read_exchanges
from evalpipe.store.query import open_store
from evalpipe.workspace.analyze import settings_of
from evalpipe.workspace.canary_replica import ReplicaController, controller_lease
from evalpipe.workspace.load import passes_through
from evalpipe.workspace.paths import Workspace, price_book, replica_name
from evalpipe.workspace.record import load_record

STANDBY_S = 1.0
"""how often a second controller asks whether the first is still there"""
_CLOCK_SLACK = timedelta(seconds=60)


def open_history(workspace: Workspace, experiment: str | None = None) -> History | SharedHistory:
    """The canary's history: on this machine's disk, or, where the data are on object storage, the one that all replicas share."""
    name = workspace.experiment(experiment)
    own = local_history(workspace, name)
    if workspace.url is None:
        return own
    return SharedHistory(open_objects(workspace.url), name, own, traces=partial(canary_traces, workspace, name))


def local_history(workspace: Workspace, name: str) -> History:
    """The history on this machine's disk; where replicas share one, this mirrors it."""
    return History(workspace.data / "canary", name, traces=partial(canary_traces, workspace, name))


def configured_stages(config: Config) -> list[canary.Stage]:
    return [
        canary.Stage(
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

    def __init__(self, workspace: Workspace, config: Config, *, reads_store: bool = True) -> None:
        self._workspace, self._experiment, self._reads_store = workspace, config.experiment.name, reads_store
        rules = ReadingRules(unit_sources=config.experiment.unit, prices=price_book(config))
        self._judge = partial(_read, rules)
        self._spool: SpoolReader | None = None
        self._feed: StageFeed | None = None
        self._entry: int | None = None

    def begin(self, state: CanaryState) -> Iterator[Observation]:
        if self._feed is None:
            yield from self._rebuild(state)
        else:
            self._feed.new_stage(state.entry)

    def of_stage(self, state: CanaryState) -> list[Observation]:
        """What ended since the last call, in whatever stage that was."""
        if self._feed is None or self._entry != state.entry:
            self._entry = state.entry
            return [*self.begin(state), *self.new(state)]
        return list(self.new(state))

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
        self._spool = SpoolReader(self._workspace.spool, self._experiment)
        self._feed = StageFeed(self._spool, self._judge)
        if self._reads_store and state.status in canary.LIVE:
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
    entry = PendingRequest(request=request, served=response)
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
        request_id=exchange.request_id,
    )


def _guardrails(
    workspace: Workspace, config: Config, history: StateHistory, answered: MutableSet[str | None]
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


_SQL = sql_statements("evalpipe.workspace", "canary.sql")


def _judged_since(workspace: Workspace, config: Config, history: StateHistory) -> Sequence[tuple[str, float]]:
    """(unit, mean preference) of the pairs of the present stage that the judge has answered as `orders` promises."""
    since = datetime.fromtimestamp(history.state().entered_at, UTC)
    pull(workspace.data)
    with open_store(workspace.data, config.experiment.name) as store:
        asked = {"judge": config.judge.name[0], "since": since, "both_orders": config.judge.orders == "both"}
        return store.connection.execute(_SQL["judged"], asked).fetchall()


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

    One controller decides: the one that holds the election lock. Another waits and takes over when the first ends,
    however it ends. Where replicas share their data, this is so on each machine; of these controllers, the one that holds the
    lease decides, the others follow its decisions and publish what their collectors answered.
    """
    config = canary_config(workspace)
    history = local_history(workspace, config.experiment.name)
    settings = ControllerSettings(
        stages=configured_stages(config),
        min_requests=config.canary.min_requests,
        evaluate_every_s=config.canary.evaluate_every_s,
        alpha=1 - config.decision.confidence_level,
    )
    while True:
        with leader_lock(history.controller_lock_path) as leads:
            if leads and workspace.url is not None:
                with closing(WorkspaceSource(workspace, config, reads_store=False)) as source:
                    replica = ReplicaController(
                        workspace.url,
                        config.experiment.name,
                        replica_name(config),
                        History(workspace.data / "canary", config.experiment.name),
                        settings,
                        answers=source.of_stage,
                        guardrails=partial(_guardrails, workspace, config),
                        traces=partial(canary_traces, workspace, config.experiment.name),
                    )
                    return replica.run(on_event, on_standby, clock, wait, until_done)
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
    """The canary's state. `watched`: a controller holds the election lock (or the replicas' lease) now. `loss`: why its history
    is lost."""

    experiment: str
    state: CanaryState
    event: CanaryEvent | None
    evaluation: CanaryEvaluation | None
    stages: Sequence[canary.Stage]
    watched: bool
    loss: str | None = None


def read_status(workspace: Workspace) -> Status:
    """Raises ConfigError where the workspace is in another mode: there is no canary."""
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
        watched=_is_watched(workspace, config, history.controller_lock_path),
        loss=loss or (event.why if event and state.paused_by == canary.HISTORY_LOST else None),
    )


def _is_watched(workspace: Workspace, config: Config, lock: Path) -> bool:
    if workspace.url is None:
        return has_leader(lock)
    objects, name = open_objects(workspace.url), controller_lease(config.experiment.name)
    renewed_at = next((one.modified for one in objects.list("leases") if one.key == key_of(name)), None)
    if renewed_at is None or datetime.now(UTC) - renewed_at > _CLOCK_SLACK:  # whoever held it was killed
        return False
    return holder(objects, name) is not None


def change_state(
    workspace: Workspace,
    action: str,
    *,
    why: str,
    by: str | None = None,
    force: bool = False,
    now: float | None = None,
    check: Callable[[CanaryState], None] = lambda state: None,
) -> CanaryEvent:
    """A person's approve | pause | rollback | reset, with who, when and why.

    Args:
        check: sees the state that is about to be changed, and raises where it is not the one the person has seen.

    Raises:
        ConfigError: where it cannot be done.
    """
    config = canary_config(workspace)
    at = time.time() if now is None else now
    steps: Mapping[str, Callable[[CanaryState], canary.StateTransition]] = {
        "approve": lambda state: canary.approve(state, now=at, stages=configured_stages(config), why=why, force=force),
        "pause": lambda state: canary.pause(state, why=why),
        "rollback": lambda state: canary.rollback(state, now=at, why=why),
        "reset": lambda state: canary.reset(now=at, why=why),
    }

    def step(state: CanaryState) -> canary.StateTransition:
        check(state)
        return steps[action](state)

    event = open_history(workspace).apply(step, now=at, who=by or _user())
    assert event is not None, "a person's step always changes something"
    return event


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return "unknown"


# Signs outside the canary's folder that a canary of this experiment has begun: its requests, and what was decided on
# them.


def canary_traces(workspace: Workspace, experiment: str) -> Traces:
    """Users the treatment has answered, in the spool or the store, and a decision reached in canary mode.

    Asked only where the history holds nothing. A store that cannot be read counts as a sign: its content is unknown.
    """
    found = []
    n_waiting, entry = _in_spool(workspace.spool, experiment)
    if n_waiting:
        found.append(f"{n_waiting:,} requests in the spool were served by the treatment")
    try:
        with open_store(workspace.data, experiment) as store:
            row = store.connection.execute(
                "SELECT count(*) FROM exchanges WHERE role = 'served' AND arm = 'treatment' AND NOT coalesce(forced, false)"
            ).fetchone()
            if store.damaged:
                found.append(f"{len(store.damaged)} stored files are damaged: what they held is not known")
        if row and row[0]:
            found.append(f"{row[0]:,} stored requests were served by the treatment")
        record = load_record(workspace.data, experiment)
        decided = None if record is None else record.decided
        # The same settings in another mode are other rules: a decision of a shadow run is none of this canary.
        if record and decided and record.rules == rules_of("canary", settings_of(workspace), record.basis):
            found.append(f"its record holds a decision ({decided.recommendation})")
    except DataError as error:
        found.append(str(error))
    return Traces(found=tuple(found), entry=entry)


def _in_spool(spool: Path, experiment: str) -> tuple[int, int]:
    """(requests of a canary's stage that the treatment served, the highest number of their stages)."""
    n, entry = 0, 0
    for path in sorted(spool.glob("served-*.jsonl")):
        try:
            with path.open("rb") as file:
                for line in file:
                    if not line.startswith(b'{"record":"request"') or b'"stage":' not in line:
                        continue
                    try:
                        record = read_record(line)
                    except ValueError:  # load puts it aside
                        continue
                    if not isinstance(record, RequestRecord) or record.experiment != experiment or record.stage is None:
                        continue
                    entry = max(entry, record.stage)
                    n += record.arm == "treatment" and not record.forced
        except FileNotFoundError:  # loaded meanwhile
            continue
    return n, entry


# A canary's status and history as lines and as JSON.


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def event_line(event: CanaryEvent) -> str:
    state = event.state
    return (
        f"{_when(event.at)}  {event.action:12} {state.percentage:6g} %  {state.status:12} by {event.who}: {event.why}"
    )


def event_document(event: CanaryEvent) -> dict[str, Any]:
    return {
        "seq": event.seq,
        "at": _when(event.at),
        "who": event.who,
        "action": event.action,
        "why": event.why,
        "status": event.state.status.value,
        "percentage": event.state.percentage,
        "stage": event.state.stage + 1,
    }


def status_document(status: Status) -> dict[str, Any]:
    """One JSON document; `stage` counts from 1, 0 before the first."""
    state, evaluation = status.state, status.evaluation
    return {
        "experiment": status.experiment,
        "status": state.status.value,
        "percentage": state.percentage,
        "stage": state.stage + 1,
        "n_stages": len(status.stages),
        "entered_at": _when(state.entered_at) if state.entered_at else None,
        "watched": status.watched,
        "history_lost": status.loss,
        "evaluated_at": _when(evaluation.at) if evaluation else None,
        "watched_s": evaluation.watched_s if evaluation else None,
        "n_control": evaluation.n_control if evaluation else None,
        "n_treatment": evaluation.n_treatment if evaluation else None,
        "silent_replicas": evaluation.silent if evaluation else [],
        "guardrails": [msgspec.to_builtins(verdict) for verdict in evaluation.verdicts] if evaluation else [],
        "last_change": event_document(status.event) if status.event else None,
    }


def status_lines(status: Status) -> Iterator[str]:
    state, evaluation = status.state, status.evaluation
    where = f"stage {state.stage + 1} of {len(status.stages)}" if state.stage >= 0 else "no stage"
    yield f"{status.experiment}: {state.status}, {state.percentage:g} % treatment, {where}"
    if status.loss is not None:
        why = status.loss.split("; `evalpipe")[0]
        yield f"  history lost: {why}; users get control until `evalpipe canary reset` starts over"
    if status.event is not None:
        yield f"  since {_when(status.event.at)} by {status.event.who}: {status.event.why}"
    if not status.watched:
        yield "  no controller runs: start `evalpipe canary run` or `evalpipe collect`"
    if evaluation is None:
        return
    needed = status.stages[state.stage].duration_s if 0 <= state.stage < len(status.stages) else 0.0
    yield (
        f"  watched {evaluation.watched_s:.0f} s of {needed:.0f} s; requests: {evaluation.n_treatment} treatment, "
        f"{evaluation.n_control} control"
    )
    if evaluation.silent:
        yield f"  not heard of: {', '.join(evaluation.silent)}; counted with what they last reported"
    for verdict in evaluation.verdicts:
        yield f"  {verdict.status:9} {verdict.kind:10} {verdict.note}"
