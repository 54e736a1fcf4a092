"""Set-up faults while the collector runs: what fails is read and counted, a line in the log where a fault begins and ends.

Answers cost nothing here once an arm has given one: they are counted where the metrics are. Each process writes down its
faults for the health route of the others, and, beside the spool, that a configuration has answered: for those that come later.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec

from evalpipe.collector.known_keys import held_keys
from evalpipe.collector.logs import OnceAMinute, log_event
from evalpipe.collector.metrics import Exchanges
from evalpipe.collector.settings import ArmSettings, CollectorSettings
from evalpipe.identity import conversation_of, read_sources, unit_of
from evalpipe.models import ANSWERED, Outcome
from evalpipe.providers.registry import read_answer, read_request
from evalpipe.providers.setup_faults import FaultDetector, FaultKind, SetupFault, signature_of
from evalpipe.spool.format import Ended

_MAX_READ = 64 << 10
"""bytes of an error's body that are read"""
_MAX_SHOWN = 300
"""characters of an error's message in the log"""
_WRITE_S = 1.0
"""how often the file of a fault that goes on is written anew"""
_FILE = "setup-{pid}.json"

logger = logging.getLogger(__name__)

Fault = tuple[str, FaultKind, int | None, str | None]
"""What makes faults of several processes one: arm, kind, status, code."""


class _Named(msgspec.Struct):
    model: str | None = None


def _is_model(seen: str, configured: str | None) -> bool:
    """Whether a provider's name of a model is the configured one: with a date, a tag or a vendor's prefix it still is."""
    if configured is None:
        return False
    seen, configured = seen.rpartition("/")[2], configured.rpartition("/")[2]
    short, long = sorted((seen, configured), key=len)
    return long == short or bool(re.fullmatch(re.escape(short) + r"[-@:](?:latest|[0-9][0-9-]*)", long))


class SetupWatch:
    """Follows the arms that one process talks to.

    Args:
        settings: the arms, the configuration's fingerprints, `metrics_dir` (where the processes' faults are written).
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: CollectorSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._clock = settings, clock
        self._arms = {arm.arm: arm for arm in (settings.control, settings.treatment) if arm is not None}
        self._detectors = {name: self._detector(arm) for name, arm in self._arms.items()}
        self._exchanges: dict[str, Exchanges] = {}
        self._minute = OnceAMinute()
        self._n_answered: dict[str, int] = {}
        self._reported: dict[Fault, SetupFault] = {}
        self._written: list[SetupFault] = []
        self._written_at = float("-inf")
        self._file = Path(settings.metrics_dir) / _FILE.format(pid=os.getpid()) if settings.metrics_dir else None

    def _detector(self, arm: ArmSettings) -> FaultDetector:
        control, dash, treatment = (self._settings.config_fingerprint or "").partition("-")
        mark = treatment if dash and arm.arm == "treatment" else control
        return FaultDetector(
            arm=arm.arm,
            fingerprint=mark or None,
            passes_through=arm.passes_through,
            answered_before=bool(mark) and self._proof(arm.arm, mark).exists(),
        )

    def _proof(self, arm: str, mark: str) -> Path:
        return Path(self._settings.spool) / f".answered-{arm}-{mark}"

    def _prove(self, detector: FaultDetector) -> None:
        """The first answer that was read in this process."""
        if not detector.has_answered and detector.fingerprint is not None:
            try:
                self._proof(detector.arm, detector.fingerprint).touch(mode=0o600)
            except OSError as error:  # a full disk: the next process begins anew
                logger.warning("that the %s arm answers cannot be written down: %s", detector.arm, error)
        detector.answered()

    # --- what is seen

    def ended(
        self,
        arm: str,
        exchanges: Exchanges,
        *,
        endpoint: str,
        status: int | None,
        headers: Mapping[str, str],
        body: bytes,
        ended: str,
        message: str | None,
        asked_at: float,
        unit_id: str | None,
        asked: tuple[str, bytes],
        secrets: Sequence[str] = (),
        request_id: str = "",
    ) -> None:
        """An exchange that failed, or one of an arm that is not known to answer yet.

        Args:
            arm, exchanges: whose it was, and where the arm's answers are counted in this process.
            endpoint, status, headers, body, ended, message: of the answer, as they are recorded.
            asked_at: seconds since the epoch of the user's request.
            unit_id: where it is known without the body.
            asked: endpoint and body of the request, for the unit that is named in it.
            secrets: never to be shown, beside those the collector holds.
            request_id: of the exchange, for the log.
        """
        self._exchanges[arm] = exchanges
        detector = self._detectors[arm]
        self._count_answers(arm)
        is_error = status is None or status >= 300
        answer = read_answer(
            endpoint, status, headers, body[:_MAX_READ] if is_error else body, ended=cast(Ended, ended)
        )
        outcome = Outcome.TIMEOUT if ended == "timeout" else answer.outcome
        if outcome is Outcome.CLIENT_CLOSED:
            return
        if outcome in ANSWERED:
            if not exchanges.is_proven:
                self._first_answer(arm, asked[1], answer.model, request_id)
            exchanges.is_proven = True
            self._prove(detector)
            return
        failed = ended not in {"complete", "closed_by_upstream", "client_closed"}
        words = message or answer.error_message
        shown = self._safe(words, secrets)
        self._log_failure(arm, outcome.value, status, shown, request_id)
        signature = signature_of(
            outcome=outcome,
            status=status,
            error_type=ended if failed else answer.error_type,
            error_message=words,
        )
        unit = None
        if signature is not None and (detector.passes_through or not detector.has_answered):
            unit = unit_id or self._unit(*asked)
        detector.failed(signature, at=asked_at, unit=unit, message=shown)

    def _log_failure(self, arm: str, outcome: str, status: int | None, words: str | None, request_id: str) -> None:
        """One line a minute for failures of one kind; all of them are counted."""
        if not self._minute.is_due(arm, outcome, status):
            return
        text = f"the {arm} arm failed: {outcome}" + ("" if status is None else f" (HTTP {status})")
        text += f", request {request_id}" + (f": {words[:_MAX_SHOWN]}" if words else "")
        log_event(logger, logging.WARNING, text, arm=arm, outcome=outcome, status=status, request_id=request_id)

    def _first_answer(self, arm: str, asked: bytes, answered: str | None, request_id: str) -> None:
        """What only traffic shows: a model other than the configured one, arms the wrong way round. Once for each arm."""
        if not self._is_first(arm):
            return
        try:
            requested = msgspec.json.decode(asked, type=_Named).model
        except msgspec.MsgspecError:
            requested = None
        configured, other = self._arms[arm].model, self._other_model(arm)
        # Control passes the client's model on, so what it asks for decides; the treatment's request is evalpipe's own.
        passes = arm == "control" and not self._arms[arm].rewrite
        seen = requested if passes and requested is not None else answered
        fields = {
            "arm": arm,
            "configured": configured,
            "requested": requested,
            "answered": answered,
            "request_id": request_id,
        }
        of = (
            f"the {arm} arm's first request ({request_id})"
            if passes
            else f"the {arm} arm's first answer ({request_id})"
        )
        if seen is not None and other is not None and _is_model(seen, other) and not _is_model(seen, configured):
            text = f"{of} is for {seen!r}, the other arm's model: are the arms swapped?"
            log_event(logger, logging.WARNING, text, **fields)
        elif seen is not None and configured is not None and not _is_model(seen, configured):
            log_event(logger, logging.WARNING, f"{of} is for {seen!r}, not arms.{arm}.model = {configured!r}", **fields)
        else:
            log_event(
                logger, logging.INFO, f"the {arm} arm answers, with {answered or seen or 'no model named'}", **fields
            )

    def _other_model(self, arm: str) -> str | None:
        others = [other.model for name, other in self._arms.items() if name != arm]
        return others[0] if others else None

    def _is_first(self, arm: str) -> bool:
        """Among all processes of this run of the collector."""
        if self._file is None:
            return True
        try:
            (self._file.parent / f"first-{arm}").touch(mode=0o600, exist_ok=False)
        except OSError:
            return False
        return True

    def _count_answers(self, arm: str) -> None:
        """Answers that were only counted end a row of failures. Before the first one that was read they prove nothing."""
        exchanges = self._exchanges.get(arm)
        if exchanges is None or not exchanges.is_proven:
            return
        if exchanges.n_ok != self._n_answered.get(arm, 0):
            self._n_answered[arm] = exchanges.n_ok
            self._detectors[arm].answered()

    def _unit(self, endpoint: str, body: bytes) -> str:
        """The user as a body names them, else the conversation: as the log's rows will have it."""
        try:
            document = msgspec.json.decode(body)
        except (msgspec.MsgspecError, RecursionError):
            document = None
        unit, _ = unit_of(read_sources(self._settings.unit_sources), None, document)
        if unit is not None:
            return unit
        view = read_request(endpoint, body)
        return conversation_of(view.system_text, view.first_user_message, document)

    def _safe(self, words: str | None, secrets: Sequence[str]) -> str | None:
        """Some servers repeat the key they refuse."""
        if not words:
            return words
        from evalpipe.collector.redaction import Redactor  # only where something failed

        return Redactor(("api_key", *self._settings.redact), [*held_keys(self._settings), *secrets]).text(words)

    # --- what comes of it

    def tick(self) -> None:
        """To be called a few times a second: lines for the log, and the file for the other processes."""
        if not self._exchanges:
            return
        for arm in self._exchanges:
            self._count_answers(arm)
        going_on = {_key(fault): fault for detector in self._detectors.values() for fault in detector.going_on}
        if not going_on and not self._reported:
            return
        elsewhere = {_key(fault) for fault in self._of_others()} if going_on.keys() != self._reported.keys() else set()
        for key, fault in going_on.items():
            if key not in self._reported and key not in elsewhere:
                log_event(logger, logging.ERROR, fault.text, **_fields(fault))
        for key, fault in self._reported.items():
            if key not in going_on and key not in elsewhere:
                log_event(logger, logging.WARNING, _ended(fault), **_fields(fault))
        self._reported = going_on
        self._write(list(going_on.values()))

    def _write(self, faults: list[SetupFault]) -> None:
        if self._file is None or faults == self._written:
            return
        now = self._clock()
        if len(faults) == len(self._written) and now - self._written_at < _WRITE_S:
            return
        part = self._file.with_suffix(".part")
        try:
            part.write_bytes(msgspec.json.encode(faults))
            part.replace(self._file)
        except OSError as error:  # the folder is memory or a temporary one: users are served on
            logger.warning("the set-up faults cannot be written for the health route: %s", error)
        self._written, self._written_at = faults, now

    def _of_others(self) -> list[SetupFault]:
        if self._file is None:
            return []
        found: list[SetupFault] = []
        for path in sorted(self._file.parent.glob(_FILE.format(pid="*"))):
            pid = path.stem.rpartition("-")[2]
            if path == self._file or not pid.isdigit() or not _lives(int(pid)):
                continue
            try:
                found += _decoder.decode(path.read_bytes())
            except (OSError, msgspec.DecodeError):  # it is being replaced, or its process has just ended
                continue
        return found

    def faults(self) -> list[SetupFault]:
        """The faults that go on now in any process of the collector, each once with its failures added up."""
        self.tick()
        merged: dict[Fault, SetupFault] = {}
        for fault in [*self._reported.values(), *self._of_others()]:
            known = merged.get(_key(fault))
            merged[_key(fault)] = fault if known is None else _added(known, fault)
        return sorted(merged.values(), key=lambda fault: fault.first_at)


_decoder = msgspec.json.Decoder(list[SetupFault])


def _fields(fault: SetupFault) -> dict[str, object]:
    return {"arm": fault.arm, "kind": fault.kind, "status": fault.status, "code": fault.code, "count": fault.count}


def _key(fault: SetupFault) -> Fault:
    return fault.arm, fault.kind, fault.status, fault.code


def _added(one: SetupFault, other: SetupFault) -> SetupFault:
    return replace(
        one,
        count=one.count + other.count,
        first_at=min(one.first_at, other.first_at),
        last_at=max(one.last_at, other.last_at),
    )


def _ended(fault: SetupFault) -> str:
    text = f"the {fault.arm} arm no longer fails with {fault.failure}, after {fault.count:,} requests"
    if fault.kind is FaultKind.REFUSED:
        text += f". The fault stays in the report until its time is excluded: {fault.exclude_command}"
    return text


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
