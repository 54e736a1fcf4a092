"""`--until-decided`: judging stops as soon as the decision's rules need no further verdict.

At every look the rules run on the verdicts there are, one mean preference a user, exactly as a report at that moment would: no
path is followed along the list, so the report and this run cannot contradict each other. Only the completed beginning of the
planned order counts: calls finish out of order, and a look at whichever happened to be quick would be a look at the easy pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evalpipe.analysis.sql import Connection
from evalpipe.files import sql_statements
from evalpipe.judging.plan import JudgeCall
from evalpipe.models import FINAL, Judgment, ShownFirst

_SQL = sql_statements("evalpipe.judging", "stopping.sql")

LOOK_EVERY = 10
"""newly completed users between two looks, at least"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LookResult:
    """What the rules conclude from the verdicts at one look.

    Attributes:
        stop: a rule that ends the experiment matches (set-up fault, harm, invalid data, ship, no gain, end reached, futility).
        reason: why, in half a sentence.
        win_rate_blocks: further verdicts can still change the decision: the win rate is not yet shown to be within its margin, or
            nothing wins yet and the win rate still may.
        recommendation: ship | keep | collect_more | invalid.
        rule: the name of the rule that matched.
    """

    stop: bool
    reason: str
    win_rate_blocks: bool
    recommendation: str
    rule: str

    @property
    def ends_judging(self) -> bool:
        """Whether further verdicts change nothing."""
        return self.stop or not self.win_rate_blocks


Look = Callable[[Sequence[float], int], LookResult]
"""The rules, run on the mean preference x_u in [0, 1] of every completed user, and the number of pairs behind them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """One look: at so many users and pairs with a verdict. `is_new`: verdicts of this run were among them."""

    n_users: int
    n_pairs: int
    result: LookResult
    is_new: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedPair:
    """One pair in the order of the run: how many of its calls are open, and the preferences known before, by order."""

    request_id: str
    user: int
    n_open: int
    known: Mapping[ShownFirst, Sequence[float]]


class EarlyStopper:
    """Gets every judgment that ends, and answers with a reason as soon as judging may end.

    Attributes:
        preferences: x_u of every completed user, in the planned order: the mean over the user's pairs with a verdict.
        n_pairs: the pairs behind them.
        looks: every look taken.
    """

    def __init__(self, look: Look, pairs: Sequence[PlannedPair], *, both_orders: bool) -> None:
        """Args:
        look: the rules.
        pairs: the pairs of one win rate in the order of the run, those of a user adjacent (`planned_pairs`).
        both_orders: a pair has a verdict only where both orders have one; else one order is enough.
        """
        self._rules, self._pairs, self._least_orders = look, pairs, 2 if both_orders else 1
        self._open = {pair.request_id: pair.n_open for pair in pairs if pair.n_open}
        self._found = {pair.request_id: {order: list(found) for order, found in pair.known.items()} for pair in pairs}
        self._next = 0
        self._user: list[float] = []
        self._looked_at = 0
        self.preferences: list[float] = []
        self.n_pairs = 0
        self.looks: list[Looked] = []

    @property
    def last(self) -> Looked | None:
        """The last look."""
        return self.looks[-1] if self.looks else None

    def start(self) -> str | None:
        """What is known before the first call may already decide: the reason then."""
        return self._look(is_new=False)

    def watch(self, ask: JudgeCall, judgment: Judgment) -> str | None:
        """Why to stop, or None. Judgments of other requests (later turns) are not looked at."""
        request_id = ask.request_id
        if request_id not in self._open:
            return None
        self._open[request_id] -= 1
        if judgment.status in FINAL and judgment.preference is not None:
            self._found[request_id].setdefault(judgment.shown_first, []).append(judgment.preference)
        if self._open[request_id] == 0:
            del self._open[request_id]
        return self._look(is_new=True)

    def _look(self, *, is_new: bool) -> str | None:
        self._advance()
        n = len(self.preferences)
        if n - self._looked_at < LOOK_EVERY:
            return None
        self._looked_at = n
        result = self._rules(self.preferences, self.n_pairs)
        self.looks.append(Looked(n_users=n, n_pairs=self.n_pairs, result=result, is_new=is_new))
        return f"{result.reason}, after {n:,} users with {self.n_pairs:,} pairs" if result.ends_judging else None

    def _advance(self) -> None:
        """Move over every pair whose calls have all ended; a user is complete when the next user's first pair is reached."""
        while self._next < len(self._pairs):
            pair = self._pairs[self._next]
            if pair.request_id in self._open:
                return
            preference = self._preference(pair.request_id)
            if preference is not None:
                self._user.append(preference)
            self._next += 1
            last = self._next == len(self._pairs)
            if last or self._pairs[self._next].user != pair.user:
                if self._user:
                    self.preferences.append(sum(self._user) / len(self._user))
                    self.n_pairs += len(self._user)
                self._user = []

    def _preference(self, request_id: str) -> float | None:
        """The mean over orders of the mean over repeats; None without the orders that are needed: missing, not a tie."""
        orders = [sum(found) / len(found) for found in self._found[request_id].values() if found]
        return sum(orders) / len(orders) if len(orders) >= self._least_orders else None


def planned_pairs(connection: Connection, fingerprint: str) -> list[PlannedPair]:
    """The pairs that the win rate is about, after a plan made with `keep_order`: in its order, pairs of a user adjacent.

    What was judged before is among them, whatever is selected now: a report counts it, too.

    Args:
        connection: where `make_plan` made its tables.
        fingerprint: the judge's.
    """
    rows = connection.execute(_SQL["planned_pairs"], {"fingerprint": fingerprint, "final": sorted(FINAL)}).fetchall()
    return [
        PlannedPair(
            request_id=request_id,
            user=user,
            n_open=int(n_open),
            known={ShownFirst.CONTROL: control_first or [], ShownFirst.TREATMENT: treatment_first or []},
        )
        for request_id, user, n_open, control_first, treatment_first in rows
    ]
