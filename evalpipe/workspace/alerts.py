"""Alerts to a webhook: what is new is sent once, what lasts again only after it has ended, what was not taken is kept.

`evalpipe run` and the collector each keep a file of what they have reported; neither repeats what lasts by the other's file.
`CollectorAlerts` sends what a morning's run would report too late: silence, failing copies, a budget, a canary. It reads the
counters of the collector's processes from the supervisor's, so that a slow webhook is in no request's way.
"""

from __future__ import annotations

import logging
import os
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from evalpipe.config import AlertsConfig
from evalpipe.credentials import shown_url
from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.files import write_atomically
from evalpipe.models import FAILED, CanaryStatus, last_event
from evalpipe.rollout.canary import CONTROLLER, TAIL_BYTES
from evalpipe.text import format_counted, printable
from evalpipe.workspace.paths import Workspace

_TIMEOUT_S = 10.0
_TRIES = 3
_PAUSE_S = 2.0
_MAX_WAITING = 100
"""alerts that are kept for a webhook that does not answer; the oldest go first"""
_MAX_TEXT = 2000

Reporter = Literal["run", "collect"]
"""the command that found something"""
EVENTS = frozenset({"decision_changed"})
"""kinds that happen, and do not last"""
_SEPARATE = frozenset({"budget_used_up"})
"""kinds that are not the same for both reporters: the judge's budget, the copies'"""


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


def send_new(
    workspace: Workspace,
    experiment: str,
    found: Mapping[str, str],
    *,
    reporter: Reporter,
    at: datetime,
    post: Post | None = None,
) -> tuple[list[Alert], str | None]:
    """Send what is new among the conditions found now, and what could not be sent before.

    Args:
        found: kind → text, of everything that holds now.
        post: who sends; None: an HTTP request, tried three times.

    Returns:
        (the alerts that are new, why some are still waiting to be sent; None where all are out). Without a webhook nothing is
        new.

    Raises:
        ConfigError: where `webhook_env` names a variable that is not set.
    """
    config = workspace.config.alerts if workspace.config else AlertsConfig()
    address = webhook_address(config)
    if address is None:
        return [], None
    post = post or (_notify if config.form == "apprise" else _post)
    path = _path(workspace, experiment, reporter)
    state = _read(path)
    elsewhere = _read(_path(workspace, experiment, "collect" if reporter == "run" else "run")).active
    found = {kind: _line(text) for kind, text in found.items() if kind in config.on}
    new = [
        Alert(kind=kind, experiment=experiment, at=at.isoformat(timespec="seconds"), text=text)
        for kind, text in found.items()
        if kind not in state.active and (kind not in elsewhere or kind in _SEPARATE)
    ]
    lasting = {kind: text for kind, text in found.items() if kind not in EVENTS}
    waiting = [*state.waiting, *new][-_MAX_WAITING:]
    if lasting != state.active or waiting != state.waiting:
        _write(path, _State(active=lasting, waiting=waiting))  # before sending: who is killed then loses none
    problem = None
    while waiting:
        try:
            post(address, _body(waiting[0], config))
        except OSError as error:
            words = shown_url(str(getattr(error, "reason", error)))
            unsent = format_counted(len(waiting), "alert")
            problem = f"{unsent} could not be sent to the webhook: {words}; {_AGAIN[reporter]}"
            break
        waiting = waiting[1:]
        _write(path, _State(active=lasting, waiting=waiting))
    return new, problem


_AGAIN = {"run": "the next run tries again", "collect": "it is tried again"}


def lasting_alerts(
    workspace: Workspace, experiment: str, *, reporters: Sequence[Reporter] = ("run", "collect")
) -> tuple[dict[str, str], int]:
    """(kind → text of what was reported and lasts, how many alerts are not sent yet). A file that cannot be read counts as
    empty."""
    lasting: dict[str, str] = {}
    n_waiting = 0
    for reporter in reporters:
        try:
            state = _read(_path(workspace, experiment, reporter))
        except EvalpipeError:
            continue
        lasting |= state.active
        n_waiting += len(state.waiting)
    return lasting, n_waiting


def webhook_address(config: AlertsConfig) -> str | None:
    """Where alerts go; None: nowhere.

    Raises:
        ConfigError: where `webhook_env` names a variable that is not set, or holds no address; where Apprise is to send and is
            not installed or does not know the address.
    """
    found, name = config.webhook, "alerts.webhook"
    if config.webhook_env is not None:
        found, name = os.environ.get(config.webhook_env), "alerts.webhook_env"
        if not found:
            raise ConfigError(f"{name}: the environment variable {config.webhook_env} is not set")
        if config.form != "apprise" and not found.startswith(("http://", "https://")):
            raise ConfigError(f"{name}: {config.webhook_env} does not hold an http or https address")
    if found is not None and config.form == "apprise" and _apprise(found) is None:
        raise ConfigError(f"{name} is no address that Apprise sends to (https://appriseit.com/services/)")
    return found


def _apprise(address: str) -> Any:
    """Apprise (https://github.com/caronc/apprise) with one address; None where it does not know the address."""
    try:
        import apprise
    except ImportError:
        raise ConfigError("alerts.form = \"apprise\": pip install 'evalpipe[apprise]'") from None
    logging.getLogger("apprise").addHandler(logging.NullHandler())
    sender = apprise.Apprise()
    return sender if sender.add(address) else None


def _notify(address: str, body: bytes) -> None:
    """Send by Apprise. Raises OSError: why is not in what Apprise returns."""
    message = msgspec.json.decode(body)

    def send() -> None:
        if not _apprise(address).notify(title=message["title"], body=message["text"], body_format="text"):
            raise OSError(f"Apprise could not send it, {_TRIES} times")

    _with_retries(send)


def _path(workspace: Workspace, experiment: str, reporter: Reporter) -> Path:
    folder = workspace.data / "alerts"
    return (folder if reporter == "run" else folder / "collect") / f"{experiment}.json"


def _line(text: str) -> str:
    """Untrusted words (a provider's error) as one printable line."""
    return " ".join(printable(text).split())[:_MAX_TEXT]


def _body(one: Alert, config: AlertsConfig) -> bytes:
    if config.form == "slack":
        # Slack reads <…> as links and mentions: https://api.slack.com/reference/surfaces/formatting#escaping
        text = one.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return msgspec.json.encode({"text": f"evalpipe, {one.experiment}: {text}"})
    if config.form == "apprise":
        return msgspec.json.encode({"title": f"evalpipe, {one.experiment}", "text": one.text})
    return msgspec.json.encode({"source": "evalpipe", **msgspec.to_builtins(one)})


def _post(address: str, body: bytes) -> None:
    """POST. Raises OSError."""
    request = urllib.request.Request(address, data=body, headers={"Content-Type": "application/json"}, method="POST")

    def send() -> None:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            pass

    _with_retries(send)


def _with_retries(send: Callable[[], None]) -> None:
    """A few tries. Raises the last one's OSError; a refusal (4xx but 408 and 429) is not tried again."""
    for n_left in reversed(range(_TRIES)):
        try:
            send()
            return
        except OSError as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else None
            is_final = code is not None and 400 <= code < 500 and code not in {408, 429}
            if is_final or not n_left:
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


# --- alerts of a running collector


WINDOW_S = 600.0
"""copies are counted over so long"""
_MIN_COPIES = 20
_LONGEST_WAIT_S = 30.0
_SHORTEST_WAIT_S = 0.25

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
"""(metric, labels sorted by name) → value, summed over all processes"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counts:
    """The counters at one look. `at`: seconds since the epoch; `failed`: copies by how they failed."""

    at: float
    n_served: int
    n_copies: int
    failed: Mapping[str, int]
    n_shed_by_budget: int


class CollectorAlerts:
    """Looks at the counters now and then, and sends what is new.

    What it has reported lasts until the counters show that it has ended: without traffic nothing ends.

    Args:
        clock: seconds since the epoch.
        post: who sends; None: an HTTP request, tried three times.
    """

    def __init__(
        self, workspace: Workspace, *, clock: Callable[[], float] = time.time, post: Post | None = None
    ) -> None:
        config = workspace.require_config()
        self._workspace, self._clock, self._post = workspace, clock, post
        self._experiment = config.experiment.name
        self._is_canary = config.experiment.mode == "canary"
        self._patience_s = 60 * config.alerts.nothing_for_minutes
        self._budget_usd = config.collector.shadow_budget_usd
        self._looks: deque[_Counts] = deque()
        self._began_at = self._served_at = clock()
        lasting, _ = lasting_alerts(workspace, self._experiment, reporters=("collect",))
        self._lasting = dict(lasting)

    @property
    def every_s(self) -> float:
        """Between two looks."""
        return max(_SHORTEST_WAIT_S, min(_LONGEST_WAIT_S, self._patience_s / 4))

    def look(self, samples: Samples) -> tuple[list[Alert], str | None]:
        """Compare the counters with those before, and send what is new.

        Returns:
            (the alerts that are new, why some could not be sent yet).
        """
        now = _counts(samples, self._clock())
        if self._looks and now.n_served > self._looks[-1].n_served:
            self._served_at = now.at
            self._lasting.pop("nothing_collected", None)
        elif not self._looks and now.n_served:
            self._served_at = now.at
        self._looks.append(now)
        while len(self._looks) > 1 and self._looks[1].at <= now.at - WINDOW_S:
            self._looks.popleft()
        before = self._looks[0]
        self._silence(now)
        self._copies(before, now)
        self._budget(before, now)
        self._guardrail()
        return send_new(
            self._workspace,
            self._experiment,
            self._lasting,
            reporter="collect",
            at=datetime.fromtimestamp(now.at, UTC),
            post=self._post,
        )

    def _silence(self, now: _Counts) -> None:
        if now.at - self._served_at <= self._patience_s:
            return
        since = f"{datetime.fromtimestamp(self._served_at, UTC):%Y-%m-%d %H:%M} UTC"
        start = ", when the collector was started" if self._served_at == self._began_at else ""
        self._lasting.setdefault("nothing_collected", f"no request was collected since {since}{start}")

    def _copies(self, before: _Counts, now: _Counts) -> None:
        n = now.n_copies - before.n_copies
        if n < _MIN_COPIES:
            return
        failed = {name: count - before.failed.get(name, 0) for name, count in now.failed.items()}
        failed = {name: count for name, count in sorted(failed.items()) if count > 0}
        if 2 * sum(failed.values()) <= n:
            self._lasting.pop("copies_failing", None)
            return
        how = ", ".join(f"{count:,} {name}" for name, count in failed.items())
        self._lasting.setdefault(
            "copies_failing",
            f"{sum(failed.values()):,} of the last {n:,} copies failed in the treatment arm: {how}",
        )

    def _budget(self, before: _Counts, now: _Counts) -> None:
        n_shed = now.n_shed_by_budget - before.n_shed_by_budget
        if n_shed > 0:
            limit = "" if self._budget_usd is None else f" of ${self._budget_usd:,.2f}"
            self._lasting.setdefault(
                "budget_used_up", f"the budget{limit} of copies has no room: requests are not copied"
            )
        elif now.n_copies > before.n_copies:
            self._lasting.pop("budget_used_up", None)

    def _guardrail(self) -> None:
        if not self._is_canary:
            return
        try:
            with (self._workspace.data / "canary" / f"{self._experiment}.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
                last = last_event(file.read())
        except OSError:
            return
        if last is not None and last.who == CONTROLLER and last.state.status is CanaryStatus.ROLLED_BACK:
            self._lasting.setdefault("guardrail_breached", f"the canary was rolled back: {last.why}")
        else:
            self._lasting.pop("guardrail_breached", None)


def _counts(samples: Samples, at: float) -> _Counts:
    n_served = n_copies = n_shed = 0
    failed: dict[str, int] = {}
    for (metric, labels), value in samples.items():
        found = dict(labels)
        if metric == "evalpipe_requests_total" and found["role"] == "served":
            n_served += int(value)
        elif metric == "evalpipe_requests_total" and found["role"] == "shadow":
            n_copies += int(value)
            if found["outcome"] in FAILED:
                failed[found["outcome"]] = failed.get(found["outcome"], 0) + int(value)
        elif metric == "evalpipe_shadow_shed_total" and found["reason"] == "budget":
            n_shed += int(value)
    return _Counts(at=at, n_served=n_served, n_copies=n_copies, failed=failed, n_shed_by_budget=n_shed)
