"""What is unanswered: the planned calls of one judge, as an anti-join in DuckDB, and their texts page by page.

The plan is a narrow table (no texts) in the order of the run: pairs at random but fixed by the seed, so that a partial run
is a fair sample and a later run goes on where it stopped; both orders of a pair adjacent. Texts are fetched for the next
page only, so memory does not grow with the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, Protocol

from evalpipe.core.judgment import FINAL, JudgeMode, ShownFirst
from evalpipe.core.traffic import ANSWERED, Arm
from evalpipe.judging.rubric import ShownAnswer, shown_answer
from evalpipe.judging.spec import JudgeSpec

Orders = Literal["both", "calibrated", "balanced"]

CALIBRATION_PAIRS = 50
CALIBRATION_SHARE = 0.2
"""`calibrated` judges both orders of the first 50 pairs and of a fifth of the rest (statistics.md 7)."""

_PAGE_MIN, _PAGE_MAX = 400, 8_000
_N_PAGES = 50
"""A page is a fiftieth of the plan within these bounds: every page scans the log once."""


class Connection(Protocol):
    """What is needed of a DuckDB connection that has the views of the store."""

    def execute(self, query: str, parameters: Any = None) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One planned call with its texts. `attempt`: calls made for this key before. A pointwise judge reads the answer of
    `arm` alone; for a pairwise one `arm` is None."""

    key: str
    attempt: int
    request_id: str
    shown_first: ShownFirst
    repeat: int
    request: str
    arm: Arm | None = None
    control: ShownAnswer | None = None
    treatment: ShownAnswer | None = None

    @property
    def is_identical(self) -> bool:
        """Both arms said the same: a tie that needs no judge."""
        return self.control is not None and self.control == self.treatment


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The calls still to be made: `n_calls` over `n_units` pairs (pointwise: answers). `n_eligible` pairs or answers could
    be judged at all, `n_done` of their calls are final already."""

    n_eligible: int
    n_units: int
    n_calls: int
    n_done: int
    page_size: int


def make_plan(
    connection: Connection,
    spec: JudgeSpec,
    *,
    orders: Orders = "both",
    seed: str = "",
    limit: int | None = None,
    by_user: bool = False,
    pending: Sequence[str] = (),
) -> Plan:
    """Make the table `judging_plan`. `limit`: at most so many pairs (answers), from the front of the order. `by_user`: all
    pairs of a user adjacent. `pending`: keys that wait in a provider's batch and must not be asked again."""
    values = {
        "seed": seed,
        "fingerprint": spec.fingerprint,
        "repeats": spec.repeats,
        "orders": orders if spec.mode is JudgeMode.PAIRWISE else "both",
        "calibration_pairs": CALIBRATION_PAIRS,
        "calibration_share": CALIBRATION_SHARE,
        "answered": sorted(ANSWERED),
        "final": sorted(FINAL),
        "by_user": by_user,
        "limit": limit if limit is not None else 2**62,
    }
    connection.execute("CREATE OR REPLACE TEMP TABLE judging_pending (key VARCHAR)")
    if pending:
        connection.execute("INSERT INTO judging_pending SELECT unnest($1::VARCHAR[])", [list(pending)])
    for statement in _statements(f"plan_{spec.mode}.sql"):
        used = {name: value for name, value in values.items() if f"${name}" in statement}
        connection.execute(statement, used or None)
    counts = connection.execute(
        "SELECT (SELECT count(*) FROM judging_asked), count(DISTINCT rank), count(*), (SELECT n FROM judging_done) "
        "FROM judging_plan"
    ).fetchone()
    n_eligible, n_units, n_calls, n_done = counts
    connection.execute("DROP TABLE judging_asked")
    page = min(max(n_calls // _N_PAGES, _PAGE_MIN), _PAGE_MAX)
    return Plan(n_eligible=n_eligible, n_units=n_units, n_calls=n_calls, n_done=n_done, page_size=page)


def pages(connection: Connection, spec: JudgeSpec, plan: Plan) -> Iterator[list[Ask]]:
    """The planned calls in order, a page at a time."""
    (query,) = _statements(f"page_{spec.mode}.sql")
    read = _read_pair if spec.mode is JudgeMode.PAIRWISE else _read_answer
    for start in range(0, plan.n_calls, plan.page_size):
        values = {"fingerprint": spec.fingerprint, "start": start, "end": start + plan.page_size}
        yield [read(row) for row in connection.execute(query, values).fetchall()]


def ask_of(connection: Connection, spec: JudgeSpec, request_id: str, *, orders: Orders = "both") -> list[Ask]:
    """The calls for one request, final or not (`--show-prompt`). Empty where both arms' answers are not there."""
    (query,) = _statements(f"page_{spec.mode}.sql")
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE judging_plan AS "
        "SELECT (row_number() OVER ()) - 1 AS position, 0::UBIGINT AS rank, $request_id AS request_id, '' AS content, side, "
        "0 AS repeat, 0 AS attempt FROM (VALUES ('control'), ('treatment')) AS sides(side)",
        {"request_id": request_id},
    )
    rows = connection.execute(query, {"fingerprint": spec.fingerprint, "start": 0, "end": 2}).fetchall()
    read = _read_pair if spec.mode is JudgeMode.PAIRWISE else _read_answer
    asks = [read(row) for row in rows]
    return asks[:1] if orders == "balanced" else asks


def _read_pair(row: tuple[Any, ...]) -> Ask:
    key, attempt, request_id, side, repeat, prompt, *answers = row
    return Ask(
        key=key,
        attempt=attempt,
        request_id=request_id,
        shown_first=ShownFirst(side),
        repeat=repeat,
        request=prompt or "",
        control=shown_answer(*answers[:3]),
        treatment=shown_answer(*answers[3:]),
    )


def _read_answer(row: tuple[Any, ...]) -> Ask:
    key, attempt, request_id, side, repeat, prompt, *answer = row
    arm, shown = Arm(side), shown_answer(*answer)
    return Ask(
        key=key,
        attempt=attempt,
        request_id=request_id,
        shown_first=ShownFirst.NEITHER,
        repeat=repeat,
        request=prompt or "",
        arm=arm,
        control=shown if arm is Arm.CONTROL else None,
        treatment=shown if arm is Arm.TREATMENT else None,
    )


def _statements(name: str) -> list[str]:
    text = resources.files("evalpipe.judging").joinpath(name).read_text(encoding="utf-8")
    return [statement for statement in (part.strip() for part in text.split(";\n")) if statement]


def read_note(note: str | None) -> dict[str, Any]:
    """The note of a judgment as a dictionary; empty where there is none."""
    if not note:
        return {}
    found = json.loads(note)
    return found if isinstance(found, dict) else {}
