"""Which arm serves a request: the unit's bucket against the share, a tester's choice, or the arm an id came from."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import mmap
import os
import re
import struct
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

import msgspec

from evalpipe.collector.settings import HISTORY_POLL_S
from evalpipe.http1.headers import HttpError, Line
from evalpipe.identity import (
    ATTEMPT_HEADER,
    CONVERSATION_HEADERS,
    conversation_of,
    in_treatment,
    in_treatment_md5,
    read_sources,
    unit_of,
)
from evalpipe.models import Arm, copy_name, last_event, read_evaluation, read_events, safe_share, seen_name
from evalpipe.providers.decoding import EncodingError, decode
from evalpipe.providers.json_values import as_dict, as_list, as_text
from evalpipe.providers.registry import read_request
from evalpipe.providers.translate import holds_provider_file

if TYPE_CHECKING:
    from evalpipe.collector.metrics import Metrics


class RequestHead(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a collected request before its body."""

    request_id: str
    endpoint: str
    target: bytes
    lines: list[Line]

    def header(self, name: bytes) -> str | None:
        """The first header of that name (lower case), read as UTF-8."""
        for line in self.lines:
            if line.name == name:
                return str(line.value, "utf-8", "replace")
        return None


class Assignment(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which arm serves, and how the request is identified. Ids are raw here; they are hashed before they are written."""

    arm: str = "control"
    unit_id: str | None = None
    unit_source: str | None = None
    conversation_id: str | None = None
    percentage: float | None = None
    stage: int | None = None
    """number of the history entry that began the canary's stage in force"""
    forced: bool = False
    eligible: bool = False
    """a treatment copy is due"""
    reason: str | None = None
    """why control serves although the unit's draw decides nothing here; the row names it"""
    gives_out: bool = False
    """a later request may name ids of the answer"""


class Assigner(Protocol):
    """Decides for each collected request. `needs_body`: only with the whole body at hand (else `body` is None)."""

    needs_body: bool

    def assign(self, head: RequestHead, body: bytes | None) -> Assignment: ...

    def answered(self, assignment: Assignment, headers: Mapping[str, str], body: bytes) -> None:
        """An answer, or the first of it, to a request of which `gives_out` is true."""

    def maker_of(self, target: bytes) -> str | None:
        """The arm that gave out the id in the path of a request that is not collected; None where none did."""

    def keep_on_control(self, assignment: Assignment) -> None:
        """A request of this conversation cannot be given to the treatment: nor will the rest of it be."""

    def tick(self) -> None:
        """Called a few times a second: the moment to look at a state file (canary percentage)."""


class ShadowAssigner:
    """Shadow mode: control serves all, every request is due a copy where there is a treatment arm.

    Units from headers are found here; from bodies when the log is loaded, unless a body is needed for nothing else.
    """

    def __init__(self, *, unit_sources: tuple[str, ...], eligible: bool) -> None:
        sources = read_sources(("header:x-evalpipe-unit", *unit_sources))
        self._headers = [(source.where.encode(), source) for source in sources if source.is_header]
        self._conversations = [name.encode() for name in CONVERSATION_HEADERS]
        self._names = {name for name, _ in self._headers} | set(self._conversations)
        self._eligible = eligible
        self.needs_body = False

    def assign(self, head: RequestHead, body: bytes | None) -> Assignment:
        found = {line.name: line.value for line in head.lines if line.name in self._names and line.value}
        if not found:
            return _ELIGIBLE if self._eligible and not _is_retry(head) else _NOT_ELIGIBLE
        eligible = self._eligible and not _is_retry(head)
        conversation = next((found[name] for name in self._conversations if name in found), None)
        unit, unit_source = None, None
        for name, source in self._headers:
            unit = source.part_of(str(found[name], "utf-8", "replace")) if name in found else None
            if unit is not None:
                unit_source = source.label
                break
        return Assignment(
            unit_id=unit,
            unit_source=unit_source,
            conversation_id=None if conversation is None else str(conversation, "utf-8", "replace"),
            eligible=eligible,
        )

    def answered(self, assignment: Assignment, headers: Mapping[str, str], body: bytes) -> None:
        """Control serves all: nothing to store."""

    def maker_of(self, target: bytes) -> str | None:
        """Control made all."""
        return None

    def keep_on_control(self, assignment: Assignment) -> None:
        """All are."""

    def tick(self) -> None:
        """Nothing to look at."""


def _is_retry(head: RequestHead) -> bool:
    """Whether an SDK asks again: the first attempt has had its copy."""
    return any(line.name == _ATTEMPT and line.value not in (b"", b"0") for line in head.lines)


_ATTEMPT = ATTEMPT_HEADER.encode()
_ELIGIBLE = Assignment(eligible=True)
_NOT_ELIGIBLE = Assignment()


# Which arm answers a request: the unit's bucket against the share of treatment in force, or what a tester forced.
#
# The decision is a hash of the unit's raw id: no state, so requests, workers, replicas and restarts agree. Only the
# share changes: in ab mode it is the configured one; in canary mode it is read from the canary's history, which a
# controller (or a person) appends to and every worker looks at several times a second.
#
# One thing goes before it: what an arm's provider keeps, that arm alone can go on with. A request that names an id of
# an earlier answer goes to the arm that gave it, and one that names what only control's account holds goes to control,
# outside the statistics, whatever its unit's draw.


TOKEN_HEADER = "x-evalpipe-token"
ARM_HEADER = "x-evalpipe-arm"
"""asked by a tester (with the token); on every answer in ab and canary mode"""
PIN_H = 7 * 24
"""hours without a request after which a conversation that control had to serve is drawn anew"""
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
    """The share in a canary's history file, looked at again after `HISTORY_POLL_S` and read only when it changed.

    No file yet, nothing readable in it, or less than its copy of the last line holds: 0 %. A file that cannot be read for a
    moment leaves the share as it was.

    Where the file mirrors a history that replicas share: once that has not been seen for `state_timeout_s`, the last stage known
    to be safe is in force.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = monotonic,
        state_timeout_s: float | None = None,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        self._path, self._clock = path, clock
        self._seen_path = path.with_name(seen_name(path.name))
        self._state_timeout_s, self._wall_clock = state_timeout_s, wall_clock
        self._safe = Share(0.0)
        self._copy_path = path.with_name(copy_name(path.name))
        self._looked_at = -HISTORY_POLL_S
        self._version: tuple[tuple[int, int, int] | None, tuple[int, int, int]] | None = None
        self._share = self._in_force = Share(0.0)

    def __call__(self) -> Share:
        now = self._clock()
        if now - self._looked_at >= HISTORY_POLL_S:
            self._looked_at = now
            self._look()
            self._in_force = self._safe if self._is_out_of_sight() else self._share
        return self._in_force

    def _is_out_of_sight(self) -> bool:
        """Whether the shared history was last seen too long ago."""
        if self._state_timeout_s is None:
            return False
        try:
            return self._wall_clock() - self._seen_path.stat().st_mtime > self._state_timeout_s
        except FileNotFoundError:  # it never was
            return True
        except OSError:  # e.g. out of descriptors: looked at again
            return self._in_force is self._safe

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
                tail = file.read()
            event = last_event(tail)
        except FileNotFoundError:
            self._version = None
            self._share = self._safe = Share(0.0)
            return
        except OSError:  # e.g. out of descriptors: read again at the next look
            return
        self._version = version
        if event is None or (copy is not None and copy.seq > event.seq):
            self._share = self._safe = Share(0.0)
        else:
            self._share = Share(event.state.percentage, event.state.entry)
            self._safe = Share(*safe_share(read_events(tail)))


def _version(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def choose(
    salt: str,
    unit_id: str,
    share: Share,
    *,
    forced: str | None = None,
    may_force: bool = False,
    recipe: str = "sha256",
) -> Choice:
    """The arm of `unit_id` (its raw value) at `share`.

    Args:
        forced: the tester's header; needs `may_force` (a valid token).
        recipe: `[experiment] assignment`; with "md5-100" the salt is the experiment's name.

    Raises HeadError for a header without the right to it, or for an arm that does not exist: a tester must not assume to
    have tested the treatment when control answered.
    """
    if forced is not None:
        if not may_force:
            raise HttpError(403, f"{ARM_HEADER} needs the collector's token in {TOKEN_HEADER}")
        try:
            arm = Arm(forced.strip().lower())
        except ValueError:
            raise HttpError(400, f"{ARM_HEADER} must be control or treatment") from None
        return Choice(arm=arm, percentage=share.percentage, stage=share.stage, forced=True)
    draws = in_treatment_md5 if recipe == "md5-100" else in_treatment
    arm = Arm.TREATMENT if draws(salt, unit_id, share.percentage) else Arm.CONTROL
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
    the one arm's provider keeps, the other arm finds, too. `untranslated`: the endpoints that the treatment serves untranslated.
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
        recipe: str = "sha256",
    ) -> None:
        self._recipe = recipe
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
        choice = choose(self._salt, unit_id, self._now, forced=forced, may_force=may_force, recipe=self._recipe)
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
        """The arm that gave out the newest of the ids."""
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
    except (msgspec.MsgspecError, RecursionError):  # control reports what is wrong with it; here it has no unit
        return None


# What a request needs of what a provider keeps, and the ids an answer gives out by which a later request may ask for
# it.
#
# OpenAI keeps responses and conversations, Anthropic threads and containers, both keep files: each for one account. Two
# arms on two accounts do not see each other's.


_MAX_SCANNED: Final = 1 << 20
_MAX_IDS: Final = 64
_IDS: Final = re.compile(rb'"(?:id|container_id|file_id|fallback_credit_token)"\s*:\s*"([^"\\]{1,200})"')
"""an id as a member of its own; within a text the quotation marks are escaped"""
_CLIENTS_OWN: Final = frozenset({"function", "custom", "namespace", "local_shell", "apply_patch"})
"""tools the client runs: nothing of them is kept by the provider"""


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """`made`: ids an earlier answer gave out, newest first: only the arm that gave them can go on. `may_be_made`: ids that
    change nothing where they are not known. `kept`: the key of an object of control's account that was made beside the
    collected requests, None where there is none. `gives_out`: a later request may name ids of the answer."""

    made: tuple[str, ...] = ()
    may_be_made: tuple[str, ...] = ()
    kept: str | None = None
    gives_out: bool = False


NOTHING: Final = Needs()


def needs_of(endpoint: str, document: Any, body: bytes, beta: str) -> Needs:
    """`document`: the parsed body. `beta`: the `anthropic-beta` header."""
    if not isinstance(document, dict):
        return NOTHING
    if endpoint == "responses":
        return _of_responses(document, body)
    if endpoint == "messages":
        return _of_messages(document, body, beta)
    return _of_chat(document, body)


def ids_in(headers: Mapping[str, str], body: bytes) -> list[str]:
    """The ids an answer gives out, in their order."""
    try:
        data = decode(headers, body).data[:_MAX_SCANNED]
    except EncodingError:
        return []
    found: dict[str, None] = {}
    for match in _IDS.finditer(data):
        found[str(match[1], "utf-8", "replace")] = None
        if len(found) == _MAX_IDS:
            break
    return list(found)


def _of_responses(document: dict[str, Any], body: bytes) -> Needs:
    made: list[str] = []
    may: list[str] = []
    previous = as_text(document.get("previous_response_id"))
    if previous:
        made.append(previous)
    for item in reversed(as_list(document.get("input"))):
        kind, name = as_dict(item).get("type"), as_text(as_dict(item).get("id"))
        if name and kind == "item_reference":
            made.append(name)
        elif name and kind in {"reasoning", "compaction"}:
            may.append(name)  # encrypted for the account that made it, and carried by the client
    for tool in map(as_dict, as_list(document.get("tools"))):
        container = as_text(tool.get("container"))
        if container:
            made.append(container)
    stored = document.get("store") is not False
    encrypts = "reasoning.encrypted_content" in as_list(document.get("include"))
    return Needs(
        made=tuple(made),
        may_be_made=tuple(may),
        kept=_kept(document, ("conversation", "prompt"), body),
        gives_out=stored or encrypts or _has_tools_of_the_provider(document),
    )


def _of_messages(document: dict[str, Any], body: bytes, beta: str) -> Needs:
    made: list[str] = []
    thread, container = document.get("thread"), document.get("container")
    for holder, key in (
        (thread, "previous_message_id"),
        (container, "id"),
        (document.get("diagnostics"), "previous_message_id"),
    ):
        name = as_text(as_dict(holder).get(key))
        if name:
            made.append(name)
    credit = document.get("fallback_credit_token")
    for value in (container, credit, as_dict(credit).get("token")):
        if isinstance(value, str) and value:
            made.append(value)
    kept_any = bool(thread or container or document.get("diagnostics"))
    return Needs(
        made=tuple(made),
        kept=_kept(document, (), body),
        gives_out=kept_any or "fallback" in beta or _has_tools_of_the_provider(document),
    )


def _of_chat(document: dict[str, Any], body: bytes) -> Needs:
    made = []
    if b'"audio"' in body:
        for message in reversed(as_list(document.get("messages"))):
            name = as_text(as_dict(as_dict(message).get("audio")).get("id"))
            if name:
                made.append(name)
    gives_out = bool(document.get("audio")) or document.get("store") is True
    return Needs(made=tuple(made), kept=_kept(document, (), body), gives_out=gives_out)


def _kept(document: dict[str, Any], keys: tuple[str, ...], body: bytes) -> str | None:
    for key in keys:
        if document.get(key):
            return key
    if b'"file_id"' in body and holds_provider_file(document.get("input") or document.get("messages")):
        return "file_id"
    for tool in map(as_dict, as_list(document.get("tools"))):
        if tool.get("vector_store_ids"):
            return "vector_store_ids"
        if as_dict(tool.get("container")).get("file_ids"):
            return "file_ids"
    return None


def _has_tools_of_the_provider(document: dict[str, Any]) -> bool:
    kinds = [as_dict(tool).get("type") for tool in as_list(document.get("tools"))]
    return any(kind is not None and kind not in _CLIENTS_OWN for kind in kinds)


# Which arm gave out an id: a table of fixed size in a file that all workers map, so that it is known to each at once.
#
# The ids in an answer that passes untouched are its provider's, and a request that names one of them can be answered by
# the account that made it alone. The table survives restarts and kills (its pages are the kernel's); it never grows,
# and where a place in it is taken, the oldest entry gives way.


logger = logging.getLogger(__name__)

_SLOT: Final = struct.Struct("<QQ")
"""fingerprint of the id (40 bits), hour of writing (22 bits), arm (2 bits); then the conversation (64 bits, 0: not known)"""
_SLOTS: Final = 8
_SET_BYTES: Final = _SLOT.size * _SLOTS
N_SETS: Final = 1 << 17
"""a million ids in 16 MiB"""
_ARMS: Final = ("", "control", "treatment")
_HOUR_MASK: Final = (1 << 22) - 1


class Known(msgspec.Struct, frozen=True, gc=False):
    """`conversation`: 16 hex digits, None where it was none of evalpipe's own. `age_h`: hours since it was written."""

    arm: str
    conversation: str | None
    age_h: int


class ChainBook:
    """`path` None, or a file that cannot be made: the table is this process's own, and ends with it."""

    def __init__(self, path: Path | None, *, n_sets: int = N_SETS, clock: Callable[[], float] = time) -> None:
        self._n_sets, self._clock = n_sets, clock
        self._table = _mapped(path, n_sets * _SET_BYTES)

    def put(self, name: str, arm: str, conversation: str | None = None) -> None:
        """Store that `arm` made the id `name`. The newest entry for an id is valid."""
        start, fingerprint = self._place(name)
        hour = int(self._clock() / 3600) & _HOUR_MASK
        at, oldest = start, _HOUR_MASK + 1
        for slot in range(start, start + _SET_BYTES, _SLOT.size):
            word = int.from_bytes(self._table[slot : slot + 8], "little")
            if word == 0 or word >> 24 == fingerprint:
                at = slot
                break
            if (word >> 2) & _HOUR_MASK < oldest:
                at, oldest = slot, (word >> 2) & _HOUR_MASK
        word = fingerprint << 24 | hour << 2 | _ARMS.index(arm)
        self._table[at : at + _SLOT.size] = _SLOT.pack(word, _as_number(conversation))

    def get(self, name: str) -> Known | None:
        start, fingerprint = self._place(name)
        for slot in range(start, start + _SET_BYTES, _SLOT.size):
            word, conversation = _SLOT.unpack(self._table[slot : slot + _SLOT.size])
            if word >> 24 == fingerprint and 0 < word & 3 < len(_ARMS):
                age_h = int(self._clock() / 3600) - ((word >> 2) & _HOUR_MASK)
                return Known(_ARMS[word & 3], f"{conversation:016x}" if conversation else None, age_h)
        return None

    def _place(self, name: str) -> tuple[int, int]:
        """Where the id's set begins, and its fingerprint (never 0, which is an empty slot)."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        number = int.from_bytes(digest[:8], "big") % self._n_sets
        return number * _SET_BYTES, int.from_bytes(digest[8:13], "big") | 1


def _as_number(conversation: str | None) -> int:
    """An id of evalpipe's own (16 hex digits) as a number; 0 for any other."""
    if conversation is None or len(conversation) != 16:
        return 0
    try:
        return int(conversation, 16)
    except ValueError:
        return 0


def _mapped(path: Path | None, size: int) -> mmap.mmap:
    if path is not None:
        try:
            return _open(path, size)
        except (OSError, ValueError) as error:  # users are served on; chains are then remembered by each worker alone
            logger.warning("which arm began a chain is not remembered beyond this process: %s: %s", path, error)
    return mmap.mmap(-1, size)


def _open(path: Path, size: int) -> mmap.mmap:
    """The file, written whole where it was not there: a hole in it could not be filled on a full disk."""
    if not path.exists() or path.stat().st_size != size:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "wb", closefd=False) as file:
                    file.write(bytes(size))
            finally:
                os.close(fd)
            if path.exists() and path.stat().st_size != size:
                part.replace(path)
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(part, path)  # of several workers that start together, the first one's counts
        finally:
            part.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)
