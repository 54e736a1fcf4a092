"""The treatment's budget where several collectors share it: a thread leases portions, ahead of the copies that need them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from evalpipe.collector.settings import CollectorSettings
from evalpipe.errors import EvalpipeError
from evalpipe.objects.budget import Balance, BudgetLedger
from evalpipe.objects.client import open_objects

_REFUSED_S: Final = 5.0
"""after a refusal the account is asked again: another replica may have given a portion back"""
_UNREACHABLE_S: Final = 1.0
_GIVE_UP_S: Final = 10.0
"""how long a failing request to the storage is repeated; after that copies wait, and it is tried again"""
_AHEAD: Final = 0.5
"""a further portion is leased when so much of the last one is left"""
_SETTLE_S: Final = 3.0
"""how often what was spent is reported, and what is not needed given back"""
_ROUNDING_USD: Final = 1e-9
"""sums of costs are not exact"""

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


class Portions:
    """How much this process may spend. `limit_usd` is in terms of its own account, which began at `spent_usd`.

    Every method but `close` returns at once and is called on the event loop.
    """

    def __init__(
        self,
        ledger: BudgetLedger,
        loop: asyncio.AbstractEventLoop,
        *,
        spent_usd: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        ledger: where portions are leased.
        loop: that the copies are sent on.
        spent_usd: this process's own account at the start.
        on_change: called on the loop when an answer has come: copies that wait are looked at again.
        """
        self.limit_usd = spent_usd
        self.on_change = on_change
        self._began_usd = spent_usd
        self._ledger, self._loop = ledger, loop
        self._portion_usd = 0.0
        self._is_asking = False
        self._ask_again_at = 0.0
        self._settle_at = 0.0
        self._settled_usd = spent_usd
        self._is_reachable = True
        self._lock = threading.Lock()
        self._is_closed = False

    def covers(self, total_usd: float) -> bool | None:
        """Whether the account may reach this total; None: not yet known, a portion is being leased."""
        missing_usd = total_usd - self.limit_usd
        if missing_usd <= -_AHEAD * self._portion_usd:
            return True
        if not self._is_asking and self._loop.time() >= self._ask_again_at:
            self._start(lambda: self._ledger.lease(max(0.0, missing_usd)), self._leased)
        if missing_usd <= 0:
            return True
        return None if self._is_asking or not self._is_reachable else False

    @property
    def balance(self) -> Balance | None:
        """Of all replicas, as of the last look at the account; None before the first."""
        return self._ledger.balance

    def settle(self, spent_usd: float, booked_usd: float) -> None:
        """Every few seconds, report what was spent and give back what is not needed. To be called once a second.

        Args:
            spent_usd: the account now.
            booked_usd: with the worst that copies under way may cost.
        """
        now = self._loop.time()
        if self._is_asking or now < max(self._settle_at, self._ask_again_at if not self._is_reachable else 0.0):
            return
        self._settle_at = now + _SETTLE_S
        reserved_usd = booked_usd - spent_usd
        is_idle = reserved_usd < _ROUNDING_USD and spent_usd == self._settled_usd
        # While copies are sent as much as they hold is kept beside, so that the next ones need not wait.
        kept_usd = 0.0 if is_idle else max(self._portion_usd, reserved_usd)
        spare_usd = self.limit_usd - booked_usd - kept_usd
        if spare_usd < _ROUNDING_USD:
            spare_usd = 0.0
        self._settled_usd = spent_usd
        self.limit_usd -= spare_usd
        self._start(lambda: self._ledger.settle(spent_usd - self._began_usd, spare_usd), lambda _: None)

    def close(self, spent_usd: float) -> None:
        """The clean end: what was leased and not spent is given back. `spent_usd`: the account now. Waits for the network."""
        with self._lock:
            self._is_closed = True
            try:
                self._ledger.close(spent_usd - self._began_usd)
            except EvalpipeError as error:
                logger.error("what is left of the leased budget cannot be given back and stays booked: %s", error)

    def _start(self, ask: Callable[[], Answer], then: Callable[[Answer], None]) -> None:
        self._is_asking = True
        # A daemon: a storage that does not answer does not hold up the process's end.
        threading.Thread(target=self._ask, args=(ask, then), daemon=True).start()

    def _ask(self, ask: Callable[[], Answer], then: Callable[[Answer], None]) -> None:
        problem: str | None = None
        with self._lock:
            if self._is_closed:
                return
            try:
                answer = ask()
            except EvalpipeError as error:
                problem = str(error)
        try:
            if problem is None:
                self._loop.call_soon_threadsafe(self._answered, lambda: then(answer))
            else:
                self._loop.call_soon_threadsafe(self._failed, problem)
        except RuntimeError:  # the loop has ended: the portion stays booked
            return

    def _answered(self, take: Callable[[], None]) -> None:
        if not self._is_reachable:
            logger.info("portions of the copies' budget can be leased again")
        self._is_asking, self._is_reachable = False, True
        take()
        self.on_change()

    def _failed(self, problem: str) -> None:
        self._ask_again_at = self._loop.time() + _UNREACHABLE_S
        if self._is_reachable:
            logger.error(
                "no portion of the copies' budget can be leased: %s; copies wait, and it is tried again", problem
            )
        self._is_asking, self._is_reachable = False, False
        self.on_change()

    def _leased(self, granted_usd: float) -> None:
        if granted_usd:
            self._portion_usd = granted_usd
            self.limit_usd += granted_usd
        else:
            self._ask_again_at = self._loop.time() + _REFUSED_S


def open_portions(settings: CollectorSettings, loop: asyncio.AbstractEventLoop, spent_usd: float) -> Portions:
    """Of a budget that is shared. Raises ConfigError for an address that cannot be used."""
    assert settings.objects_url is not None and settings.shadow_budget_usd is not None
    ledger = BudgetLedger(
        open_objects(settings.objects_url, give_up_after_s=_GIVE_UP_S),
        settings.experiment,
        settings.replica,
        budget_usd=settings.shadow_budget_usd,
        spent_usd=spent_usd,
    )
    return Portions(ledger, loop, spent_usd=spent_usd)
