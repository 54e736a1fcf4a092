"""Set-up faults: an arm that refuses or cannot be reached because of a setting, not because of its model. Pure.

Two kinds, per arm and configuration, each counted over failures with one status and provider code:

- *refused*: 401, 402, 404, or 429 with a quota code: five in a row from the arm's first answer, or twenty in a row at any
  time. It stays after the setting is corrected, until its time is excluded.
- *never answered*: 400, 403, 422, no connection, or what is no API's answer (a web page, unreadable): at least five from at
  least three users, or twenty, and no answer at all under this configuration. One answer ends it: what else fails is then a
  property of the arm.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from evalpipe.models import FAILED, Arm, Outcome
from evalpipe.text import printable

FIRST_IN_A_ROW = 5
"""refusals from the arm's first answer on"""
IN_A_ROW = 20
"""refusals at any time"""
MIN_USERS = 3
"""whose failures show that not one user's key, model or prompt is at fault"""
NEVER_MIN = 5
"""failures of `MIN_USERS` users without any answer"""
NEVER_MANY = 20
"""failures without any response, from either arm"""

QUOTA_CODES = frozenset(
    {
        # OpenAI
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "access_terminated",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        # compatible servers and gateways
        "quota_exceeded",
        "exceeded_current_quota_error",
        "insufficient_balance",
        "insufficient_credits",
        "billing_error",
        "payment_required",
    }
)
"""Codes (or types) of a 429 that waiting does not end: the account has no credit or has reached its spending limit."""

NO_CONNECTION = "no connection to "
"""How the collector's message begins where an arm could not be connected to, in time or at all."""

_REFUSED_STATUSES = frozenset({401, 402, 404})
_NEVER_STATUSES = frozenset({400, 403, 422})
_BROKEN = frozenset({"protocol_error", "cut"})
_MAX_WORDS = 200
_MAX_SIGNATURES = 100
"""Different failures that are counted apart: some servers put an id into their codes."""


class FaultKind(StrEnum):
    REFUSED = "refused"
    NEVER_ANSWERED = "never_answered"


class Signature(NamedTuple):
    """What makes failures one kind. `status` is None where no HTTP answer came from the arm."""

    kind: FaultKind
    status: int | None
    code: str | None


def signature_of(
    *, outcome: str, status: int | None, error_type: str | None, error_message: str | None
) -> Signature | None:
    """The kind of set-up fault that a failed exchange may be part of; None for other failures, and for answers.

    The arguments are an exchange's columns of these names.
    """
    if outcome not in FAILED:
        return None
    words = error_message or ""
    if error_type == "connect_error" or (error_type == "timeout" and words.startswith(NO_CONNECTION)):
        return Signature(FaultKind.NEVER_ANSWERED, None, "connect_error")
    if error_type in _BROKEN:
        # A served request has the status the collector answered with itself where the arm gave none.
        return Signature(FaultKind.NEVER_ANSWERED, status if status == 200 else None, error_type)
    if outcome == Outcome.TIMEOUT or status is None:
        return None
    if status in _REFUSED_STATUSES or (status == 429 and error_type in QUOTA_CODES):
        return Signature(FaultKind.REFUSED, status, error_type)
    is_page = words.lstrip()[:1] == "<"
    if status in _NEVER_STATUSES or outcome == Outcome.UNREADABLE or 300 <= status < 400 or is_page:
        return Signature(FaultKind.NEVER_ANSWERED, status, error_type)
    return None


def is_fault(
    kind: FaultKind, *, count: int, n_users: int, from_first: bool, answered: bool, passes_through: bool
) -> bool:
    """Whether `count` failures of one signature from `n_users` users are a set-up fault.

    Args:
        kind: *refused* failures are counted in a row, *never answered* ones over the whole configuration.
        count: failures, at least 0.
        n_users: different users among them, at least up to `MIN_USERS`.
        from_first: the row begins with the configuration's first answer.
        answered: the configuration has given an answer at any time.
        passes_through: the client's own key or model reaches this arm, so that one user can be refused alone.
    """
    if kind is FaultKind.REFUSED:
        enough = count >= IN_A_ROW or (from_first and count >= FIRST_IN_A_ROW)
        return enough and (n_users >= MIN_USERS or not passes_through)
    return not answered and (count >= NEVER_MANY or (count >= NEVER_MIN and n_users >= MIN_USERS))


@dataclass(frozen=True, kw_only=True, slots=True)
class SetupFault:
    """A fault found. `message`: the provider's own words, printable and cut. `count`: its failures, from `first_at` to
    `last_at`: UTC instants of the users' requests, as an exclusion counts them."""

    arm: str
    kind: FaultKind
    status: int | None
    code: str | None
    message: str
    count: int
    fingerprint: str | None
    first_at: datetime
    last_at: datetime

    @property
    def failure(self) -> str:
        """What came, in the provider's words: "HTTP 401: invalid x-api-key"."""
        return shown_failure(self.status, self.code, self.message)

    @property
    def since(self) -> str:
        """First second of the time to exclude, ISO 8601 in UTC."""
        return _iso(self.first_at)

    @property
    def until(self) -> str:
        """The second after the time to exclude, ISO 8601 in UTC."""
        return _iso(self.last_at.replace(microsecond=0) + timedelta(seconds=1))

    @property
    def setting(self) -> str:
        """The settings to look at."""
        key, model, url = (f"[arms.{self.arm}] {name}" for name in ("api_key_env", "model", "base_url"))
        if self.arm == Arm.CONTROL:
            key += " (where it is not set: the key that clients send)"
        match self.status:
            case 401:
                return key
            case 402 | 429:
                return f"the account (credit, spending limit) of {key}"
            case 403:
                return f"{key}, and whether it may use {model}"
            case 404:
                return model if "model" in f"{self.code} {self.message}".lower() else f"{model} and base_url"
            case 400 | 422:
                return f"{model}, params and drop (it leaves out fields that this server does not accept)"
        return url

    @property
    def exclude_command(self) -> str:
        """What takes the time of the fault out of both arms."""
        why = f"{self.arm}: {_status_words(self.status, self.code)}"
        return f'evalpipe exclude --since {self.since} --until {self.until} --why "{why}"'

    @property
    def summary(self) -> str:
        """The fault without what mends it: arm, count, failure and time."""
        in_a_row, never = (" in a row", "") if self.kind is FaultKind.REFUSED else ("", ", none was answered")
        return (
            f"set-up fault of the {self.arm} arm: {self.count:,} requests{in_a_row} failed{never}: {self.failure} "
            f"({self.since} to {self.until})"
        )

    @property
    def text(self) -> str:
        """The fault on one line: arm, failure, count, what to look at, and how its time is excluded."""
        return f"{self.summary}. Check {self.setting}. Once it is corrected: {self.exclude_command}"


def shown_failure(status: int | None, code: str | None, message: str | None) -> str:
    """A failure in a few words: its status, or its code where there is none, and the provider's own words."""
    words = provider_words(message)
    shown = _status_words(status, code)
    if not words:
        return f"{shown} ({code})" if status is not None and code and code != f"http_{status}" else shown
    return words if words.startswith(NO_CONNECTION) else f"{shown}: {words}"


def provider_words(text: str | None) -> str:
    """Untrusted text on one printable line of at most 200 characters."""
    line = printable(" ".join((text or "").split()))
    return line if len(line) <= _MAX_WORDS else line[:_MAX_WORDS] + "…"


def _status_words(status: int | None, code: str | None) -> str:
    if status is not None:
        return f"HTTP {status}"
    return "no connection" if code == "connect_error" else printable(code or "no answer").replace("_", " ")


def _iso(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


@dataclass(slots=True)
class _Count:
    """Failures of one signature. Of the users only so many are kept as a rule can ask for."""

    signature: Signature
    first_at: float
    from_first: bool
    last_at: float = 0.0
    count: int = 0
    message: str = ""
    users: set[str] = field(default_factory=set)

    def add(self, at: float, unit: str | None, message: str | None) -> None:
        self.count += 1
        self.first_at, self.last_at = min(self.first_at, at), max(self.last_at, at)
        self.message = self.message or provider_words(message)
        if unit is not None and len(self.users) < MIN_USERS:
            self.users.add(unit)


class FaultDetector:
    """Follows one arm under one configuration, outcome by outcome in the order of time.

    Args:
        arm: "control" or "treatment".
        fingerprint: of the configuration.
        passes_through: see `is_fault`.
        answered_before: the configuration is known to have answered before the first outcome seen here.
    """

    def __init__(
        self, *, arm: str, fingerprint: str | None = None, passes_through: bool = False, answered_before: bool = False
    ) -> None:
        self.arm, self.fingerprint, self.passes_through = arm, fingerprint, passes_through
        self.has_answered = answered_before
        self._is_first = not answered_before
        self._row: _Count | None = None
        self._never: dict[Signature, _Count] = {}
        self._ended: list[SetupFault] = []

    def answered(self) -> None:
        """One or more answers, readable ones: refusals of the model's own and truncated ones are answers too."""
        self.has_answered = True
        self._never.clear()
        self._end_row()

    def failed(
        self, signature: Signature | None, *, at: float, unit: str | None = None, message: str | None = None
    ) -> None:
        """A failed request. `at`: seconds since the epoch of the user's request; `unit`: None where users are not known."""
        is_first, self._is_first = self._is_first, False
        row = self._row
        if row is not None and row.signature != signature:
            self._end_row()
            row = None
        if signature is None:
            return
        if signature.kind is FaultKind.REFUSED:
            if row is None:
                row = self._row = _Count(signature, at, is_first)
            row.add(at, unit, message)
        elif not self.has_answered and (signature in self._never or len(self._never) < _MAX_SIGNATURES):
            self._never.setdefault(signature, _Count(signature, at, is_first)).add(at, unit, message)

    @property
    def going_on(self) -> list[SetupFault]:
        """The faults that nothing has ended yet."""
        counts = [*([] if self._row is None else [self._row]), *self._never.values()]
        return [fault for count in counts if (fault := self._fault(count)) is not None]

    @property
    def faults(self) -> list[SetupFault]:
        """Every current fault, by its beginning: refusals that have ended too, until their time is excluded."""
        return sorted([*self._ended, *self.going_on], key=lambda fault: fault.first_at)

    def _end_row(self) -> None:
        self._is_first = False
        row, self._row = self._row, None
        if row is not None and (fault := self._fault(row)) is not None:
            self._ended.append(fault)

    def _fault(self, count: _Count) -> SetupFault | None:
        kind, status, code = count.signature
        if not is_fault(
            kind,
            count=count.count,
            n_users=len(count.users),
            from_first=count.from_first,
            answered=self.has_answered,
            passes_through=self.passes_through,
        ):
            return None
        return SetupFault(
            arm=self.arm,
            kind=kind,
            status=status,
            code=code,
            message=count.message,
            count=count.count,
            fingerprint=self.fingerprint,
            first_at=datetime.fromtimestamp(count.first_at, UTC),
            last_at=datetime.fromtimestamp(count.last_at, UTC),
        )


# One arm refuses nearly every request while the other takes them: fields only the other server accepts. Pure.
#
# Not a set-up fault (`providers.setup_faults`): the arm answers now and then, so the refusals count as its own until they are
# mended.


STATUSES: Final = frozenset({400, 413, 415, 422})
"""by which a server refuses what is in a request; keys, models and quotas are refused by others, see `setup_faults`"""
WINDOW: Final = 100
"""newest exchanges of an arm that count"""
MIN_EXCHANGES: Final = 20
"""of either arm, before a fault is reported"""
MOST: Final = 0.8
"""share of an arm's exchanges from which on it refuses nearly all"""
FEW: Final = 0.2
"""share up to which the other arm does not"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusals:
    """What was found. `message`: the provider's own words, of the newest refusal; `request`: what it refused."""

    arm: str
    other: str
    n_refused: int
    n: int
    n_other_refused: int
    n_other: int
    status: int
    message: str | None
    request: bytes

    def text(self, field: str | None) -> str:
        """One line for a log. `field`: the part of the request that the words name, where it is known."""
        hint = f'drop = ["{field}"]' if field else 'drop = ["…"] with the fields this server does not accept'
        return (
            f"the {self.arm} arm refuses {self.n_refused:,} of its last {self.n:,} requests "
            f"({shown_failure(self.status, None, self.message)}), the {self.other} arm {self.n_other_refused:,} of "
            f"{self.n_other:,}. Fields that only the {self.other} arm's server accepts can be left out: "
            f"{hint} under [arms.{self.arm}]"
        )


@dataclass(slots=True)
class _Seen:
    """The newest exchanges of an arm: whether each was refused."""

    refused: deque[bool]
    status: int = 0
    message: str | None = None
    request: bytes = b""


class RefusalWatch:
    """Follows both arms, exchange by exchange in the order of time."""

    def __init__(self) -> None:
        self._arms = {arm: _Seen(deque(maxlen=WINDOW)) for arm in (str(Arm.CONTROL), str(Arm.TREATMENT))}

    def saw(self, arm: str, *, failed: bool, status: int | None, message: str | None, request: bytes) -> None:
        """An exchange. `failed`: it was an HTTP error; `message` and `request`: kept of refusals only."""
        seen = self._arms.get(arm)
        if seen is None or status is None:
            return
        is_refused = failed and status in STATUSES
        seen.refused.append(is_refused)
        if is_refused:
            seen.status, seen.message, seen.request = status, message, request

    def found(self) -> Refusals | None:
        """The arm that refuses nearly all while the other does not; None where there is none."""
        for arm, seen in self._arms.items():
            ((other, others),) = ((name, of) for name, of in self._arms.items() if name != arm)
            n, n_other = len(seen.refused), len(others.refused)
            n_refused, n_other_refused = sum(seen.refused), sum(others.refused)
            if min(n, n_other) >= MIN_EXCHANGES and n_refused >= MOST * n and n_other_refused <= FEW * n_other:
                return Refusals(
                    arm=arm,
                    other=other,
                    n_refused=n_refused,
                    n=n,
                    n_other_refused=n_other_refused,
                    n_other=n_other,
                    status=seen.status,
                    message=seen.message,
                    request=seen.request,
                )
        return None
