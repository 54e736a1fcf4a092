"""One arm refuses nearly every request while the other takes them: fields only the other server knows. Pure.

Not a set-up fault (`core.setup_fault`): the arm answers now and then, so the refusals count as its own until they are mended.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from evalpipe.core.setup_fault import shown_failure
from evalpipe.core.traffic import Arm

STATUSES: Final = frozenset({400, 413, 415, 422})
"""by which a server refuses what is in a request; keys, models and quotas are refused by others, see `core.setup_fault`"""
WINDOW: Final = 100
"""newest exchanges of an arm that count"""
MIN_EXCHANGES: Final = 20
"""of either arm, before anything is said"""
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
        hint = f'drop = ["{field}"]' if field else 'drop = ["…"] with the fields this server does not know'
        return (
            f"the {self.arm} arm refuses {self.n_refused:,} of its last {self.n:,} requests "
            f"({shown_failure(self.status, None, self.message)}), the {self.other} arm {self.n_other_refused:,} of "
            f"{self.n_other:,}. Fields that only the {self.other} arm's server knows can be left out: "
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
