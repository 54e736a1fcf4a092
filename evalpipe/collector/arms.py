"""The seam of assignment and translated serving: who decides which arm serves a request, and what it needs for that."""

from __future__ import annotations

from typing import Protocol

import msgspec

from evalpipe.collector.heads import Line


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


class Assigner(Protocol):
    """Decides for each collected request. `needs_body`: only with the whole body at hand (else `body` is None)."""

    needs_body: bool

    def assign(self, head: RequestHead, body: bytes | None) -> Assignment: ...

    def tick(self) -> None:
        """Called a few times a second: the moment to look at a state file (canary percentage)."""


class ShadowAssigner:
    """Shadow mode: control serves all, every request is due a copy where there is a treatment arm.

    Units from headers are found here; from bodies when the log is loaded, unless a body is needed for nothing else.
    """

    def __init__(self, *, unit_sources: tuple[str, ...], eligible: bool) -> None:
        self._headers = [(b"x-evalpipe-unit", "header:x-evalpipe-unit")]
        self._headers += [
            (source.removeprefix("header:").lower().encode(), source)
            for source in unit_sources
            if source.startswith("header:")
        ]
        self._names = {name for name, _ in self._headers} | {b"x-evalpipe-conversation"}
        self._eligible = eligible
        self.needs_body = False

    def assign(self, head: RequestHead, body: bytes | None) -> Assignment:
        found = {line.name: line.value for line in head.lines if line.name in self._names and line.value}
        if not found:
            return _ELIGIBLE if self._eligible else _NOT_ELIGIBLE
        conversation = found.get(b"x-evalpipe-conversation")
        unit, unit_source = None, None
        for name, source in self._headers:
            if name in found:
                unit, unit_source = str(found[name], "utf-8", "replace"), source
                break
        return Assignment(
            unit_id=unit,
            unit_source=unit_source,
            conversation_id=None if conversation is None else str(conversation, "utf-8", "replace"),
            eligible=self._eligible,
        )

    def tick(self) -> None:
        """Nothing to look at."""


_ELIGIBLE = Assignment(eligible=True)
_NOT_ELIGIBLE = Assignment()
