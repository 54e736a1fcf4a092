"""Alerts to a webhook: what is new is sent once, what lasts again only after it has ended, what was not taken is kept.

`evalpipe run` and the collector each keep a file of what they have reported; neither repeats what the other's says lasts.
"""

from __future__ import annotations

import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from evalpipe.config import AlertsConfig
from evalpipe.credentials import shown_url
from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.files import write_atomically
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
    """Send by Apprise, with a few tries. Raises OSError: why is not in what Apprise returns."""
    message = msgspec.json.decode(body)
    for n_left in reversed(range(_TRIES)):
        if _apprise(address).notify(title=message["title"], body=message["text"], body_format="text"):
            return
        if n_left:
            time.sleep(_PAUSE_S * (_TRIES - n_left))
    raise OSError(f"Apprise could not send it, {_TRIES} times")


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
