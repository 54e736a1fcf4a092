"""Which arm answers a request: the unit's bucket against the share of treatment in force, or what a tester forced.

The decision is a hash of the unit's raw id: no state, so requests, workers, replicas and restarts agree. Only the share
changes: in ab mode it is the configured one; in canary mode it is read from the canary's history, which a controller (or a
person) appends to and every worker looks at several times a second.

One thing goes before it: what an arm's provider keeps, that arm alone can go on with. A request that names an id of an
earlier answer goes to the arm that gave it, and one that names what only control's account holds goes to control, outside
the statistics, whatever its unit's draw.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from evalpipe.collector.arms import Assignment, RequestHead
from evalpipe.collector.chain_book import ChainBook, Known
from evalpipe.collector.chains import Needs, ids_in, needs_of
from evalpipe.collector.heads import HeadError
from evalpipe.core.attempts import ATTEMPT_HEADER
from evalpipe.core.canary import copy_name, last_event, read_evaluation
from evalpipe.core.identity import in_treatment
from evalpipe.core.traffic import Arm
from evalpipe.core.units import CONVERSATION_HEADERS, conversation_of, read_sources, unit_of
from evalpipe.providers.jsontext import as_dict
from evalpipe.providers.registry import read_request

if TYPE_CHECKING:
    from evalpipe.collector.metrics import Metrics

TOKEN_HEADER = "x-evalpipe-token"
ARM_HEADER = "x-evalpipe-arm"
"""asked by a tester (with the token); on every answer in ab and canary mode"""
PIN_H = 7 * 24
"""hours without a request after which a conversation that control had to serve is drawn anew"""
POLL_S = 0.2
_TAIL_BYTES = 1 << 16
_SHORTEST_ID: Final = 8
"""characters of an id that is looked up in a path"""


class Share(msgspec.Struct, frozen=True):
    """`percentage` of units in treatment, [0, 100]; `stage`: the canary history entry it began with (None in ab mode)."""

    percentage: float
    stage: int | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`percentage` and `stage` as in force when the arm was chosen; `forced`: by a tester's header, in no statistic."""

    arm: Arm
    percentage: float
    stage: int | None = None
    forced: bool = False


class CanaryShare:
    """The share in a canary's history file, looked at again after `POLL_S` and read only when it changed.

    No file yet, nothing readable in it, or less than its copy of the last line holds: 0 %. A file that cannot be read for a
    moment leaves the share as it was.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = monotonic) -> None:
        self._path, self._clock = path, clock
        self._copy_path = path.with_name(copy_name(path.name))
        self._looked_at = -POLL_S
        self._version: tuple[tuple[int, int, int] | None, tuple[int, int, int]] | None = None
        self._share = Share(0.0)

    def __call__(self) -> Share:
        now = self._clock()
        if now - self._looked_at >= POLL_S:
            self._looked_at = now
            self._look()
        return self._share

    def _look(self) -> None:
        try:
            found = self._path.stat()
            copy_version = _version(self._copy_path) if self._copy_path.exists() else None
            version = (copy_version, (found.st_ino, found.st_size, found.st_mtime_ns))
            if version == self._version:
                return
            # The copy is read before the history, which is written first: a change in between looks like no loss.
            copy = None if copy_version is None else last_event(self._copy_path.read_bytes())
            with self._path.open("rb") as file:
                file.seek(max(0, found.st_size - _TAIL_BYTES), os.SEEK_SET)
                event = last_event(file.read())
        except FileNotFoundError:
            self._version, self._share = None, Share(0.0)
            return
        except OSError:  # e.g. out of descriptors: the next look will tell
            return
        self._version = version
        if event is None or (copy is not None and copy.seq > event.seq):
            self._share = Share(0.0)
        else:
            self._share = Share(event.state.percentage, event.state.entry)


def _version(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def choose(salt: str, unit_id: str, share: Share, *, forced: str | None = None, may_force: bool = False) -> Choice:
    """The arm of `unit_id` (its raw value) at `share`. `forced`: the tester's header; needs `may_force` (a valid token).

    Raises HeadError for a header without the right to it, or for an arm that does not exist: a tester must not believe to
    have tested the treatment when control answered.
    """
    if forced is not None:
        if not may_force:
            raise HeadError(403, f"{ARM_HEADER} needs the collector's token in {TOKEN_HEADER}")
        try:
            arm = Arm(forced.strip().lower())
        except ValueError:
            raise HeadError(400, f"{ARM_HEADER} must be control or treatment") from None
        return Choice(arm=arm, percentage=share.percentage, stage=share.stage, forced=True)
    arm = Arm.TREATMENT if in_treatment(salt, unit_id, share.percentage) else Arm.CONTROL
    return Choice(arm=arm, percentage=share.percentage, stage=share.stage)


class RolloutGauges:
    """The share in force and the canary's guardrails as metrics; looked at once a second by every worker."""

    def __init__(self, share: Callable[[], Share], evaluation: Path, metrics: Metrics) -> None:
        self._share, self._evaluation, self._metrics = share, evaluation, metrics
        self._version: tuple[int, int] | None = None

    def tick(self) -> None:
        self._metrics.canary(self._share().percentage)
        try:
            found = self._evaluation.stat()
            if (found.st_ino, found.st_mtime_ns) == self._version:
                return
            verdicts = read_evaluation(self._evaluation.read_bytes()).verdicts
        except (OSError, ValueError):  # not yet there: no controller has looked
            return
        self._version = (found.st_ino, found.st_mtime_ns)
        breached: dict[str, bool] = {}
        for verdict in verdicts:
            breached[verdict.guardrail] = breached.get(verdict.guardrail, False) or verdict.status == "breached"
        for name, is_breached in breached.items():
            self._metrics.guardrail(name, is_breached)


class SplitAssigner:
    """Ab and canary mode: the arm by the unit's bucket. Without a unit id the conversation is the unit, and is counted so.

    `token`: what a tester must send to force an arm; None = nobody may. `shadow_percent` of the conversations that control
    serves get a treatment copy as well (canary: pairs for a judge). `book`: which arm gave out an id. `shares_account`: what
    the one arm's provider keeps, the other arm finds, too. `untranslated`: the endpoints the treatment speaks as they are.
    `may_continue`: a stored response may be gone on with, so a treatment of another dialect serves none.
    """

    needs_body = True

    def __init__(
        self,
        *,
        salt: str,
        unit_sources: tuple[str, ...],
        share: Callable[[], Share],
        token: str | None,
        shadow_percent: float = 0.0,
        book: ChainBook | None = None,
        shares_account: bool = False,
        untranslated: Container[str] | None = None,
        may_continue: bool = True,
    ) -> None:
        self._salt, self._share, self._token, self._shadow_percent = salt, share, token, shadow_percent
        self._sources = read_sources(("header:x-evalpipe-unit", *unit_sources))
        self._book = ChainBook(None, n_sets=1 << 10) if book is None else book
        self._shares_account, self._untranslated, self._may_continue = shares_account, untranslated, may_continue
        self._now = share()

    def tick(self) -> None:
        self._now = self._share()

    def assign(self, head: RequestHead, body: bytes | None) -> Assignment:
        body = body or b""
        document = _document(body)
        needs = needs_of(head.endpoint, document, body, head.header(b"anthropic-beta") or "")
        known = self._known(needs)
        unit_id, source = unit_of(self._sources, lambda name: head.header(name.encode()), document)
        conversation = self._conversation(head, document, body, known)
        if unit_id is None:
            unit_id, source = conversation, "conversation"
        token = head.header(TOKEN_HEADER.encode())
        may_force = bool(self._token and token and hmac.compare_digest(token.encode(), self._token.encode()))
        self.tick()
        forced = head.header(ARM_HEADER.encode())
        choice = choose(self._salt, unit_id, self._now, forced=forced, may_force=may_force)
        arm, is_forced, reason = choice.arm.value, choice.forced, None
        if not is_forced:
            if known is not None and not self._translates(head.endpoint):
                arm, is_forced = known.arm, known.arm != choice.arm
                reason = "needs_server_state" if is_forced and arm == Arm.CONTROL else None
            else:
                reason = self._kept_by_control(head.endpoint, document, needs, unit_id, conversation)
                if reason is not None:
                    arm, is_forced = Arm.CONTROL.value, True
        return Assignment(
            arm=arm,
            unit_id=unit_id,
            unit_source=source,
            conversation_id=conversation,
            percentage=choice.percentage,
            stage=choice.stage,
            forced=is_forced,
            eligible=arm == Arm.CONTROL
            and not is_forced
            and head.header(ATTEMPT_HEADER.encode()) in {None, "", "0"}
            and in_treatment(f"{self._salt}:shadow", conversation, self._shadow_percent),
            reason=reason,
            gives_out=needs.gives_out,
        )

    def answered(self, assignment: Assignment, headers: Mapping[str, str], body: bytes) -> None:
        for name in ids_in(headers, body):
            self._book.put(name, assignment.arm, assignment.conversation_id)

    def maker_of(self, target: bytes) -> str | None:
        for part in str(target.partition(b"?")[0], "latin-1").split("/"):
            if len(part) >= _SHORTEST_ID:
                known = self._book.get(unquote(part))
                if known is not None:
                    return known.arm
        return None

    def keep_on_control(self, assignment: Assignment) -> None:
        self._book.put(_pin(assignment.unit_id, assignment.conversation_id), Arm.CONTROL.value)

    def _known(self, needs: Needs) -> Known | None:
        """Who gave out the newest of the ids that somebody gave out."""
        for name in (*needs.made, *needs.may_be_made):
            known = self._book.get(name)
            if known is not None:
                return known
        return None

    def _conversation(self, head: RequestHead, document: Any, body: bytes, known: Known | None) -> str:
        for name in CONVERSATION_HEADERS:
            named = head.header(name.encode())
            if named:
                return named
        if known is not None and known.conversation is not None:
            return known.conversation  # a request that goes on from an answer holds none of what came before
        view = read_request(head.endpoint, body)
        return conversation_of(view.system_text, view.first_user_message, document)

    def _translates(self, endpoint: str) -> bool:
        return self._untranslated is not None and endpoint not in self._untranslated

    def _kept_by_control(
        self, endpoint: str, document: Any, needs: Needs, unit_id: str, conversation: str
    ) -> str | None:
        """Why control serves whatever the draw; None where the draw decides."""
        if needs.made:  # nobody's here: made before this experiment, or beside it
            return "needs_server_state"
        if needs.kept is not None and not self._shares_account:
            return f"needs_server_state:{needs.kept}"
        translates = self._translates(endpoint)
        if (
            translates
            and endpoint == "responses"
            and self._may_continue
            and as_dict(document).get("store") is not False
        ):
            return "may_be_continued"
        if translates and endpoint == "chat.completions" and as_dict(document).get("store") is True:
            return "stored_answer"
        pin = self._book.get(_pin(unit_id, conversation))
        if pin is None or pin.age_h > PIN_H:
            return None
        if pin.age_h:
            self._book.put(_pin(unit_id, conversation), Arm.CONTROL.value)
        return "conversation_on_control"


def _pin(unit_id: str | None, conversation: str | None) -> str:
    return f"conversation\0{unit_id}\0{conversation}"


def _document(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):  # control says what is wrong with it; here it only names nobody
        return None
