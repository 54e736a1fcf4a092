"""A budget that several machines spend: each leases portions of it from one object, by compare-and-swap, before it spends them.

Leased counts as spent. A living holder gives back what it does not need; what one that was killed had leased stays booked: the
sum over all holders never passes the budget, whatever dies when.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

import msgspec

from evalpipe.errors import DataError
from evalpipe.objects.client import ChangedError, KeyExistsError, Objects

_SHARE: Final = 100
"""A portion is at most this part of the budget …"""
_SHARE_OF_REST: Final = 10
"""… and this part of what is left, so that the last of it is not leased by one holder; …"""
_LEAST_SHARE: Final = 1000
"""… but at least this part of the budget: its end is not approached in ever smaller steps."""


@dataclass(frozen=True, slots=True)
class Balance:
    """An account over all holders, in USD. `spent_usd`: as far as holders have reported it; `booked_usd`: spent or leased."""

    spent_usd: float
    booked_usd: float


class _Account(msgspec.Struct):
    """The object. `token` is new with each change, so that every version's bytes are unique."""

    spent_usd: float
    """of holders that have ended"""
    leased: dict[str, float]
    """holder → USD of its life: what it spent of them, too"""
    token: str
    reported: dict[str, float] = {}
    """holder → USD it has spent of what it leased"""

    @property
    def balance(self) -> Balance:
        return Balance(self.spent_usd + sum(self.reported.values()), self.spent_usd + sum(self.leased.values()))

    def end(self, holder: str, spent_usd: float) -> None:
        self.leased.pop(holder)
        self.reported.pop(holder, None)
        self.spent_usd += spent_usd


class BudgetLedger:
    """One life of one holder. Its methods wait for the network; one thread at a time calls them."""

    def __init__(self, objects: Objects, name: str, replica: str, *, budget_usd: float, spent_usd: float = 0.0) -> None:
        """Args:
        objects: where the account is stored, as `state/budgets/NAME.json`.
        name: of what the money is for.
        replica: this holder's name; what earlier lives of it left leased is booked as spent.
        budget_usd: the whole budget, in [0, inf).
        spent_usd: what was spent before there was an account.
        """
        self._objects, self._key = objects, _key_of(name)
        self._budget_usd, self._spent_before_usd = budget_usd, spent_usd
        self._replica = replica
        self._holder = f"{replica}~{secrets.token_hex(8)}"
        self._leased_usd = 0.0
        self._lost_usd = 0.0
        self.balance: Balance | None = None
        """as of the last look at the account"""

    def lease(self, least_usd: float) -> float:
        """Lease a portion of at least so much.

        Args:
            least_usd: what is needed now, in [0, inf).

        Returns:
            USD of the portion; 0 where less than that is left. What an earlier call leased or did not give back though it failed
            comes first, however much it is.

        Raises:
            StorageError: where the storage cannot be reached.
            DataError: where the account is damaged.
        """
        while True:
            account, version = self._read()
            # A write that seemed to fail had worked, and others have written since, or one that gave back had not. It is written
            # once more: a request that is still under way somewhere finds another version then.
            portion_usd = account.leased.get(self._holder, 0.0) - self._leased_usd
            if portion_usd <= 0:
                portion_usd = self._portion(account, least_usd)
            if portion_usd <= 0:
                return 0.0
            for holder in [one for one in account.leased if self._is_earlier_life(one)]:
                account.end(holder, account.leased[holder])
            account.leased[self._holder] = self._leased_usd + portion_usd
            if self._write(account, version):
                self._leased_usd += portion_usd
                return portion_usd

    def settle(self, spent_usd: float, spare_usd: float = 0.0) -> None:
        """Report what was spent, give back what is not needed.

        Args:
            spent_usd: of this life, at most what it leased.
            spare_usd: of what it leased and did not spend. It counts as given back at once, whatever becomes of the request.

        Raises:
            StorageError: where the storage cannot be reached.
            DataError: where the account is damaged.
        """
        self._leased_usd -= spare_usd
        while True:
            account, version = self._read()
            leased_usd = account.leased.get(self._holder)
            reported_usd = spent_usd - self._lost_usd
            if leased_usd is None or (leased_usd, account.reported.get(self._holder, 0.0)) == (
                self._leased_usd,
                reported_usd,
            ):
                return
            account.leased[self._holder], account.reported[self._holder] = self._leased_usd, reported_usd
            if self._write(account, version):
                return

    def close(self, spent_usd: float) -> None:
        """The holder's life ends: of what it leased this much was spent, the rest is given back. Raises StorageError."""
        while True:
            account, version = self._read()
            if self._holder not in account.leased:  # nothing was leased, or it is booked as spent already
                return
            account.end(self._holder, spent_usd - self._lost_usd)
            if self._write(account, version):
                return

    def _portion(self, account: _Account, least_usd: float) -> float:
        left_usd = self._budget_usd - account.balance.booked_usd
        if left_usd <= 0 or left_usd < least_usd:
            return 0.0
        usual_usd = min(self._budget_usd / _SHARE, left_usd / _SHARE_OF_REST)
        return min(left_usd, max(least_usd, usual_usd, self._budget_usd / _LEAST_SHARE))

    def _is_earlier_life(self, holder: str) -> bool:
        return holder != self._holder and holder.rpartition("~")[0] == self._replica

    def _read(self) -> tuple[_Account, str]:
        account, version = self._found_or_begun()
        self.balance = account.balance
        if self._leased_usd and self._holder not in account.leased:
            # A later life, or another holder under this name, has booked all of it as spent: it is reported no more.
            self._lost_usd += self._leased_usd
            self._leased_usd = 0.0
        return account, version

    def _found_or_begun(self) -> tuple[_Account, str]:
        while True:
            found = self._objects.get(self._key)
            if found is not None:
                return _decoded(self._objects, self._key, found.data), found.version
            begun = _Account(spent_usd=self._spent_before_usd, leased={}, token=secrets.token_hex(8))
            try:
                return begun, self._objects.create(self._key, msgspec.json.encode(begun))
            except KeyExistsError:
                continue

    def _write(self, account: _Account, version: str) -> bool:
        account.token = secrets.token_hex(8)
        try:
            self._objects.replace(self._key, msgspec.json.encode(account), version)
        except ChangedError:  # another holder was first
            return False
        self.balance = account.balance
        return True


def booked_usd(objects: Objects, name: str) -> float:
    """USD that are spent or leased over all holders; 0 where there is no account yet. Raises StorageError."""
    key = _key_of(name)
    found = objects.get(key)
    return 0.0 if found is None else _decoded(objects, key, found.data).balance.booked_usd


def _key_of(name: str) -> str:
    return f"state/budgets/{name}.json"


def _decoded(objects: Objects, key: str, data: bytes) -> _Account:
    try:
        return msgspec.json.decode(data, type=_Account)
    except msgspec.DecodeError as error:
        raise DataError(
            f"{objects.address}: {key} is no account of a budget ({error}): restore it from a backup; until then nothing is "
            "sent that it would pay for"
        ) from error
