"""The seam of assignment and translated serving: who decides which arm serves a request, and what it needs for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from evalpipe.collector.heads import Line
from evalpipe.core.attempts import ATTEMPT_HEADER
from evalpipe.core.units import CONVERSATION_HEADERS, read_sources


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
        """The arm that gave out an id which stands in the path of a request that is not collected; None where none did."""

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
        """Control serves all: nothing to remember."""

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
