"""A look at the first requests of a process: do their units look like users, and how many reach one arm only? Lines for the log.

Each line is written once. It costs nothing after `_WATCHED` requests.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

import msgspec

from evalpipe.core.traffic_shape import Finding, UnitCounts, client_name, uncopied_findings, unit_findings
from evalpipe.core.units import conversation_of, read_sources, unit_of
from evalpipe.providers.registry import read_request

logger = logging.getLogger(__name__)

_WATCHED: Final = 2000
_AT: Final = frozenset((200, 500, 1000, 2000))
"""requests after which it looks"""
_MAX_CLIENTS: Final = 50


class TrafficWatch:
    def __init__(self, unit_sources: tuple[str, ...]) -> None:
        self._sources = read_sources(unit_sources)
        self.n_units_seen = self._n_copies = self._n_unnamed = 0
        self._units: Counter[str] = Counter()
        self._all: Counter[str] = Counter()
        self._conversations: dict[str, set[str]] = {}
        self._clients: dict[str, Counter[str | None]] = {}
        self._reported: set[str] = set()

    @property
    def is_watching(self) -> bool:
        return self.n_units_seen < _WATCHED

    def unit(self, unit_id: str | None, conversation: str, *, is_named: bool) -> None:
        """A request's unit, as it counts."""
        if not self.is_watching:
            return
        self.n_units_seen += 1
        unit = unit_id or conversation
        self._all[unit] += 1
        if is_named:
            self._units[unit] += 1
            self._conversations.setdefault(unit, set()).add(conversation)
        else:
            self._n_unnamed += 1
        if self.n_units_seen in _AT:
            self._report_units()

    def request(self, endpoint: str, body: bytes, unit_id: str | None, conversation: str | None) -> None:
        """A request whose unit stands in its body, if anywhere but in `unit_id`."""
        if not self.is_watching:
            return
        try:
            document = msgspec.json.decode(body)
        except (msgspec.MsgspecError, RecursionError):
            document = None
        if unit_id is None:
            unit_id, _ = unit_of(self._sources, None, document)
        if conversation is None:
            view = read_request(endpoint, body)
            conversation = conversation_of(view.system_text, view.first_user_message, document)
        self.unit(unit_id, conversation, is_named=unit_id is not None)

    def copy(self, user_agent: str | None, reason: str | None) -> None:
        """Whether a request can be given to the treatment; `reason`: why not."""
        if self._n_copies >= _WATCHED:
            return
        self._n_copies += 1
        name = client_name(user_agent)
        if name not in self._clients and len(self._clients) >= _MAX_CLIENTS:
            name = "other clients"
        self._clients.setdefault(name, Counter())[reason] += 1
        if self._n_copies in _AT:
            for finding in uncopied_findings(self._clients):
                self._say(finding)

    def _report_units(self) -> None:
        counts = UnitCounts(
            n_requests=self.n_units_seen,
            n_unnamed=self._n_unnamed,
            n_units=len(self._units),
            n_single=sum(number == 1 for number in self._units.values()),
            n_of_one_conversation=sum(
                number > 1 and len(self._conversations[unit]) == 1 for unit, number in self._units.items()
            ),
            largest=max(self._all.values(), default=0),
        )
        for finding in unit_findings(counts):
            self._say(finding)

    def _say(self, finding: Finding) -> None:
        if finding.key not in self._reported:
            self._reported.add(finding.key)
            logger.warning("%s; %s", finding.detail, finding.remedy)
