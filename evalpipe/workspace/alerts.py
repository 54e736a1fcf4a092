"""Alerts of `evalpipe run` to a webhook: what changed or went wrong since the run before, each once.

A condition that lasts is reported when it begins, and again only after it has ended. What could not be delivered is kept and
sent by the next run.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from evalpipe.config import AlertsConfig
from evalpipe.credentials import shown_url
from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.files import write_atomically
from evalpipe.models import FAILED, CanaryStatus
from evalpipe.rollout.canary import CONTROLLER
from evalpipe.store.query import open_store
from evalpipe.text import format_counted, printable
from evalpipe.workspace.canary import open_history
from evalpipe.workspace.paths import Workspace
from evalpipe.workspace.run import JobResult

_TIMEOUT_S = 10.0
_TRIES = 3
_PAUSE_S = 2.0
_MAX_WAITING = 100
"""alerts that are kept for a webhook that does not answer; the oldest go first"""
_MIN_COPIES = 20
_RECENT = timedelta(hours=1)
_MAX_TEXT = 2000


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One message. `at`: ISO 8601 instant; `text`: one line for people."""

    kind: str
    experiment: str
    at: str
    text: str


class _State(msgspec.Struct, kw_only=True):
    """What was reported and lasts (kind → text), and what still has to be sent."""

    active: dict[str, str] = {}
    waiting: list[Alert] = []


Post = Callable[[str, bytes], None]
"""(address, JSON) → sent; raises OSError where it was not"""


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
    address = _address(config)
    if address is None:
        return [], None
    at = (now or datetime.now(UTC)).astimezone(UTC)
    path = workspace.data / "alerts" / f"{result.experiment}.json"
    state = _read(path)
    wanted: Collection[str] = config.on
    found = {kind: text for kind, text in conditions(workspace, result, config, at) if kind in wanted}
    new = [
        Alert(kind=kind, experiment=result.experiment, at=at.isoformat(timespec="seconds"), text=_line(text))
        for kind, text in found.items()
        if kind not in state.active
    ]
    lasting = {kind: text for kind, text in found.items() if kind != "decision_changed"}
    waiting = [*state.waiting, *new][-_MAX_WAITING:]
    _write(path, _State(active=lasting, waiting=waiting))  # before sending: a run that is killed loses none
    problem = None
    while waiting:
        try:
            (post or _post)(address, _body(waiting[0], config))
        except OSError as error:
            words = shown_url(str(getattr(error, "reason", error)))
            unsent = format_counted(len(waiting), "alert")
            problem = f"{unsent} could not be sent to the webhook: {words}; the next run tries again"
            break
        waiting = waiting[1:]
        _write(path, _State(active=lasting, waiting=waiting))
    return new, problem


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
    if spent or recent.n_shed_by_budget:
        what = [f"judge {name}" for name in spent]
        if recent.n_shed_by_budget:
            what.append(f"copies ({recent.n_shed_by_budget:,} left out in the last hour of traffic)")
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


def _address(config: AlertsConfig) -> str | None:
    if config.webhook_env is None:
        return config.webhook
    found = os.environ.get(config.webhook_env)
    if not found:
        raise ConfigError(f"alerts.webhook_env: the environment variable {config.webhook_env} is not set")
    if not found.startswith(("http://", "https://")):
        raise ConfigError(f"alerts.webhook_env: {config.webhook_env} does not hold an http or https address")
    return found


def _line(text: str) -> str:
    """Untrusted words (a provider's error) as one printable line."""
    return " ".join(printable(text).split())[:_MAX_TEXT]


def _body(one: Alert, config: AlertsConfig) -> bytes:
    if config.form == "slack":
        # Slack reads <…> as links and mentions: https://api.slack.com/reference/surfaces/formatting#escaping
        text = one.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return msgspec.json.encode({"text": f"evalpipe, {one.experiment}: {text}"})
    return msgspec.json.encode({"source": "evalpipe", **msgspec.to_builtins(one)})


def _post(address: str, body: bytes) -> None:
    """POST with a few tries. Raises OSError; a refusal (4xx but 408 and 429) is not tried again."""
    request = urllib.request.Request(address, data=body, headers={"Content-Type": "application/json"}, method="POST")
    for n_left in reversed(range(_TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
                return
        except urllib.error.HTTPError as error:
            is_final = 400 <= error.code < 500 and error.code not in {408, 429}
            if is_final or not n_left:
                raise
        except OSError:
            if not n_left:
                raise
        time.sleep(_PAUSE_S * (_TRIES - n_left))


def _read(path: Path) -> _State:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_State)
    except FileNotFoundError:
        return _State()
    except (OSError, msgspec.DecodeError) as error:
        raise EvalpipeError(f"cannot read {path}: {error}; remove it to send what lasts once more") from None


def _write(path: Path, state: _State) -> None:
    write_atomically(path, msgspec.json.encode(state))
