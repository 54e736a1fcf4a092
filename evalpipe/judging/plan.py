"""What is unanswered: the planned calls of one judge, as an anti-join in DuckDB, and their texts page by page.

The plan is a narrow table (ids, no texts) in the order of the run: users that were asked before in front, new ones at random but
fixed by the seed, so that a partial run is a fair sample and a later run goes on where it stopped; the pairs of a user adjacent,
both orders of a pair adjacent. A user is counted once, whatever their number of pairs, so at most k pairs of each are asked: the
first k by arrival, which a later pair never displaces. Texts are fetched for the next page only, so memory does not grow with
the log.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib import resources
from typing import Any, Literal

from evalpipe.analysis.sql import Connection
from evalpipe.judging.facts import facts_of
from evalpipe.judging.prompt import ShownAnswer, shown_answer
from evalpipe.judging.spec import JudgeSpec
from evalpipe.models import ANSWERED, FINAL, Arm, JudgeMode, JudgmentStatus, ShownFirst
from evalpipe.providers.outcomes import CALLS_MISSING, PAUSED
from evalpipe.providers.response_builder import NOT_TEXT

Orders = Literal["both", "calibrated", "balanced"]

_PARAMETER = re.compile(r"\$(\w+)")
CALIBRATION_PAIRS = 50
CALIBRATION_SHARE = 0.2
"""`calibrated` judges both orders of the first 50 pairs and of a fifth of the rest (docs/statistics.md#win-rate)."""

MAX_ATTEMPTS = 3
"""Answers without a verdict that one call is paid for, over all runs."""
UNREAD = frozenset({JudgmentStatus.UNPARSEABLE, JudgmentStatus.REFUSED, JudgmentStatus.TRUNCATED})
"""Statuses of calls that were answered without a verdict. Not an error: then the provider, not the pair, is at fault."""
NO_FACTS = {"context": "no_context", "reference": "no_reference"}
"""kinds of answers that a judge of facts is not asked about: there is nothing to check them against"""
UNJUDGEABLE = frozenset({NOT_TEXT, PAUSED, CALLS_MISSING})
"""`error_type` of answers that hold no text to judge, or not all of it."""
_UNJUDGEABLE = {
    JudgeMode.PAIRWISE: "SELECT kind, count(*) FROM (SELECT request_id, min(kind) AS kind FROM judging_unjudgeable "
    "WHERE (SELECT count(DISTINCT arm) FROM exchanges AS e WHERE e.request_id = judging_unjudgeable.request_id "
    "AND role <> 'replay' AND outcome IN ('ok', 'refused', 'truncated')) = 2 GROUP BY request_id) GROUP BY kind ORDER BY kind",
    JudgeMode.POINTWISE: "SELECT kind, count(*) FROM judging_unjudgeable GROUP BY kind ORDER BY kind",
}

_PAGE_MIN, _PAGE_MAX = 250, 1_000
_N_PAGES = 50
"""A page is a fiftieth of the plan within these bounds: every page scans the log once."""

_NO_LIMIT = 2**62

_NOTHING_OPEN = "CREATE OR REPLACE TEMP TABLE judging_open (request_id VARCHAR, n_open BIGINT)"
"""What the query of the open calls would find on a first run, without reading a text."""

_FACTS_AT_ONCE = 1_000

_BITS = {Arm.CONTROL: 1, Arm.TREATMENT: 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeCall:
    """One planned call with its texts. `attempt`: calls made for this key before; `n_unread`: those of them that were answered
    without a verdict. `unit`: whose request it is. A pointwise judge reads the answer of
    `arm` alone; for a pairwise one `arm` is None. `facts`: what it is checked against, by context|reference."""

    key: str
    attempt: int
    request_id: str
    shown_first: ShownFirst
    repeat: int
    request: str
    arm: Arm | None = None
    control: ShownAnswer | None = None
    treatment: ShownAnswer | None = None
    n_unread: int = 0
    unit: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_identical(self) -> bool:
        """Both responses are identical: a tie without a call."""
        return self.control is not None and self.control == self.treatment


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRules:
    """Which pairs of the log a pairwise judge is asked about.

    Attributes:
        per_user: at most so many pairs of a user (first turns and later turns apart); 0 = all.
        only_first_turns: the win rate is about first turns: requests in the table `ev_later` (`analysis.turns.mark_first_turns`)
            are later ones, and get `later_share` of the plan. Else no difference is made.
        later_share: in [0, 1).
        chosen: request ids of the pairs that a look has chosen for this judge, in their order; they come first of their user.
        excluded: [since, until) periods whose requests are in no metric, by the served row's time.
    """

    per_user: int = 0
    only_first_turns: bool = False
    later_share: float = 0.0
    chosen: Sequence[str] = ()
    excluded: Sequence[tuple[datetime, datetime]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is still to be asked.

    Attributes:
        n_eligible: requests of the selection that could be judged at all.
        n_units: requests with calls to make.
        n_calls: those calls.
        n_done: calls of this judge that are final already.
        page_size: requests whose texts are fetched at once.
        n_over_cap: pairs left out because their user has k others.
        n_later: pairs of later turns in the order of the run, answered or not.
        n_later_left_out: pairs of later turns beyond their share.
        n_given_up: calls whose answers held no verdict so often that they are not made again; `given_up`: the requests of them.
        unjudgeable: pairs (pointwise: answers) left out since an answer holds no text to judge, by the kind of its mark, or since
            there is nothing to check it against: no_context, no_reference.
    """

    n_eligible: int
    n_units: int
    n_calls: int
    n_done: int
    page_size: int
    n_over_cap: int = 0
    n_later: int = 0
    n_later_left_out: int = 0
    n_given_up: int = 0
    given_up: Sequence[str] = ()
    unjudgeable: Mapping[str, int] = field(default_factory=dict)


def make_plan(
    connection: Connection,
    spec: JudgeSpec,
    *,
    orders: Orders = "both",
    seed: str = "",
    limit: int | None = None,
    max_attempts: int = MAX_ATTEMPTS,
    rules: PairRules | None = None,
    pending: Sequence[tuple[str, str]] = (),
    keep_order: bool = False,
) -> Plan:
    """Make the table `judging_plan`.

    Args:
        connection: with the views of the store; the views `stored_*` hold what is outside of the selection, too.
        spec: the judge.
        orders: which orders of a pair are asked.
        seed: of the order of the users that were never asked.
        limit: only the first so many requests of the order.
        max_attempts: a call whose answers held no verdict so often is given up.
        rules: which pairs; every one by default. A pointwise judge has no pairs.
        pending: (request_id, key) of calls that wait in a provider's batch and must not be made again.
        keep_order: leave the tables that `stopping.planned_pairs` reads.

    Returns:
        The size of the plan.
    """
    rules = rules or PairRules()
    values = {
        "seed": seed,
        "fingerprint": spec.fingerprint,
        "repeats": spec.repeats,
        "orders": orders,
        "calibration_pairs": CALIBRATION_PAIRS,
        "calibration_share": CALIBRATION_SHARE,
        "answered": sorted(ANSWERED),
        "final": sorted(FINAL),
        "unread": sorted(UNREAD),
        "unjudgeable": sorted(UNJUDGEABLE),
        "max_attempts": max_attempts,
        "per_user": rules.per_user or _NO_LIMIT,
        "later_share": rules.later_share if rules.only_first_turns else 0.0,
        "limit": limit if limit is not None else _NO_LIMIT,
    }
    _fill(connection, "judging_pending (request_id VARCHAR, key VARCHAR)", pending)
    _fill(
        connection,
        "judging_chosen (request_id VARCHAR, place BIGINT)",
        [(one, n) for n, one in enumerate(rules.chosen)],
    )
    _fill(connection, 'judging_excluded (since TIMESTAMPTZ, "until" TIMESTAMPTZ)', rules.excluded)
    if spec.mode is JudgeMode.POINTWISE:
        _fill_facts(connection, spec)
    if not rules.only_first_turns:
        _fill(connection, "ev_later (id UBIGINT)", [])
    for statement in _statements("plan_keys.sql", f"plan_{spec.mode}.sql", "plan_calls.sql"):
        if "judging_open AS" in statement and not _any_tried(connection):
            statement = _NOTHING_OPEN
        used = {name: values[name] for name in set(_PARAMETER.findall(statement)) & values.keys()}
        connection.execute(statement, used or None)
    n_asked, n_units, n_calls, n_done = connection.execute(
        "SELECT (SELECT count(*) FROM judging_asked), count(*), coalesce(sum(n_calls), 0), "
        "(SELECT count(*) FROM judging_tried WHERE final) FROM judging_plan"
    ).fetchall()[0]
    given_up = connection.execute(
        "SELECT request_id, count(*) FROM judging_tried SEMI JOIN judging_asked USING (request_id) WHERE given_up "
        "GROUP BY request_id ORDER BY request_id"
    ).fetchall()
    unjudgeable = connection.execute(_UNJUDGEABLE[spec.mode]).fetchall()
    n_pairs, n_capped, n_capped_later, n_later = n_asked, n_asked, 0, 0
    if spec.mode is JudgeMode.PAIRWISE:
        n_pairs, n_capped, n_capped_later, n_later = connection.execute(
            "SELECT coalesce(sum(n_of_user) FILTER (nth = 1), 0), count(*) FILTER (is_selected), "
            "count(*) FILTER (is_selected AND is_later), (SELECT count(*) FROM judging_asked WHERE is_later) FROM judging_capped"
        ).fetchall()[0]
    kept = {"asked", "capped"} if keep_order else set()
    for table in {"unjudgeable", "facts", "open", "pending", "chosen", "excluded", "seen", "capped", "asked"} - kept:
        connection.execute(f"DROP TABLE IF EXISTS judging_{table}")
    page = min(max(n_units // _N_PAGES, _PAGE_MIN), _PAGE_MAX)
    return Plan(
        n_eligible=int(n_pairs),
        n_units=n_units,
        n_calls=int(n_calls),
        n_done=n_done,
        page_size=page,
        n_over_cap=int(n_pairs) - n_capped,
        n_later=n_later,
        n_later_left_out=n_capped_later - n_later if limit is None else 0,
        n_given_up=sum(n for _, n in given_up),
        given_up=[request_id for request_id, _ in given_up],
        unjudgeable=dict(unjudgeable),
    )


def _fill(connection: Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """A temporary table (it may stay empty), described as in CREATE TABLE."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {table}")
    if rows:
        name, _, columns = table.partition(" ")
        kinds = [column.split()[-1] for column in columns.strip("()").split(",")]
        selected = ", ".join(f"unnest(${n}::{kind}[])" for n, kind in enumerate(kinds, start=1))
        connection.execute(
            f"INSERT INTO {name} SELECT {selected}", [list(column) for column in zip(*rows, strict=True)]
        )


def _fill_facts(connection: Connection, spec: JudgeSpec) -> None:
    """`judging_facts`: of each answer the hash of what it is checked against, or what is missing. Empty for a judge that reads no
    facts: then no request is read either."""
    marks: list[tuple[str, str, str | None, str | None]] = []
    if spec.facts:
        found = connection.execute(
            "SELECT request_id, arm, request, context, reference FROM exchanges WHERE role <> 'replay' "
            "AND list_contains($1::VARCHAR[], outcome)",
            [sorted(ANSWERED)],
        )
        while rows := found.fetchmany(_FACTS_AT_ONCE):
            for request_id, arm, request, context, reference in rows:
                facts = facts_of(request, context, reference, spec.fact_rules)
                lacking = facts.lacks(spec.facts)
                mark = f":{facts.mark(spec.facts)}" if lacking is None else None
                marks.append((request_id, arm, mark, None if lacking is None else NO_FACTS[lacking]))
    _fill(connection, "judging_facts (request_id VARCHAR, arm VARCHAR, mark VARCHAR, lacks VARCHAR)", marks)


def pages(connection: Connection, spec: JudgeSpec, plan: Plan) -> Iterator[list[JudgeCall]]:
    """The planned calls in order, a page at a time."""
    for start in range(0, plan.n_units, plan.page_size):
        rows = connection.execute(
            "SELECT request_id, sides FROM judging_plan WHERE position >= $1 AND position < $2 ORDER BY position",
            [start, start + plan.page_size],
        ).fetchall()
        tried = connection.execute(
            "SELECT key, attempt, n_unread, final OR given_up FROM judging_tried "
            "WHERE request_id IN (SELECT request_id FROM judging_plan WHERE position >= $1 AND position < $2)",
            [start, start + plan.page_size],
        ).fetchall()
        known = {key: (attempt, n_unread) for key, attempt, n_unread, _ in tried}
        done = {key for key, _, _, is_done in tried if is_done}
        asks = _planned_calls(connection, spec, rows, known)
        yield [ask for ask in asks if ask.key not in done]


def calls_for(connection: Connection, spec: JudgeSpec, request_ids: Sequence[str]) -> list[JudgeCall]:
    """Every call these requests could need, final or not; nothing for a request that cannot be judged."""
    return _planned_calls(connection, spec, [(request_id, 3) for request_id in request_ids], {})


def _planned_calls(
    connection: Connection, spec: JudgeSpec, rows: Sequence[tuple[str, int]], known: dict[str, tuple[int, int]]
) -> list[JudgeCall]:
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    units: dict[str, str] = {}
    facts = ", request, context, reference" if spec.facts else ""  # requests are long: read only where they are needed
    for request_id, arm, unit, *texts in connection.execute(
        f"SELECT request_id, arm, coalesce(unit_id, conversation_id, request_id), prompt, text, tool_calls, outcome{facts} "
        "FROM exchanges WHERE role <> 'replay' AND list_contains($2::VARCHAR[], outcome) "
        "AND request_id IN (SELECT unnest($1::VARCHAR[]))",
        [[request_id for request_id, _ in rows], sorted(ANSWERED)],
    ).fetchall():
        found.setdefault(request_id, {})[arm] = tuple(texts)
        units[request_id] = unit
    read = _pair_calls if spec.mode is JudgeMode.PAIRWISE else _response_calls
    return [
        replace(ask, unit=units[request_id])
        for request_id, sides in rows
        for ask in read(spec, request_id, sides, found.get(request_id, {}), known)
    ]


def _pair_calls(
    spec: JudgeSpec, request_id: str, sides: int, texts: dict[str, tuple[Any, ...]], known: dict[str, tuple[int, int]]
) -> Iterator[JudgeCall]:
    if len(texts) < 2:
        return
    prompt, *control = texts[Arm.CONTROL]
    _, *treatment = texts[Arm.TREATMENT]
    content = f"{_content(prompt, *control)}:{_content(texts[Arm.TREATMENT][0], *treatment, with_prompt=False)}"
    seen = shown_answer(*control), shown_answer(*treatment)
    for repeat in range(spec.repeats):
        for arm, bit in _BITS.items():
            if sides & bit:
                key = judgment_key(request_id, content, spec.fingerprint, arm, repeat)
                yield JudgeCall(
                    key=key,
                    attempt=known.get(key, (0, 0))[0],
                    n_unread=known.get(key, (0, 0))[1],
                    request_id=request_id,
                    shown_first=ShownFirst(arm.value),
                    repeat=repeat,
                    request=prompt or "",
                    control=seen[0],
                    treatment=seen[1],
                )


def _response_calls(
    spec: JudgeSpec, request_id: str, sides: int, texts: dict[str, tuple[Any, ...]], known: dict[str, tuple[int, int]]
) -> Iterator[JudgeCall]:
    for repeat in range(spec.repeats):
        for arm, bit in _BITS.items():
            if sides & bit and arm in texts:
                prompt, *rest = texts[arm]
                answer = rest[:3]
                mark, facts = "", {}
                if spec.facts:
                    request, context, reference = rest[3:]
                    read = facts_of(request, context, reference, spec.fact_rules)
                    if read.lacks(spec.facts) is not None:
                        continue
                    mark, facts = f":{read.mark(spec.facts)}", {name: str(getattr(read, name)) for name in spec.facts}
                key = judgment_key(request_id, f"{_content(prompt, *answer)}{mark}", spec.fingerprint, arm, repeat)
                shown = shown_answer(*answer)
                yield JudgeCall(
                    key=key,
                    attempt=known.get(key, (0, 0))[0],
                    n_unread=known.get(key, (0, 0))[1],
                    request_id=request_id,
                    shown_first=ShownFirst.NEITHER,
                    repeat=repeat,
                    request=prompt or "",
                    arm=arm,
                    control=shown if arm is Arm.CONTROL else None,
                    treatment=shown if arm is Arm.TREATMENT else None,
                    facts=facts,
                )


def judgment_key(request_id: str, content: str, fingerprint: str, side: Arm, repeat: int) -> str:
    """The key of a judgment: SHA-256 over the request and its answers (`content`, hashes of their texts), the judge, the
    order (pointwise: the arm) and the repeat. `plan_keys.sql` has the same formula."""
    return _sha256(f"{request_id}:{content}:{fingerprint}:{side.value}:{repeat}")


def _content(
    prompt: str | None, text: str | None, tool_calls: str | None, outcome: str, *, with_prompt: bool = True
) -> str:
    sizes = ":".join("-1" if part is None else str(len(part.encode())) for part in (prompt, text, tool_calls))
    return _sha256(f"{sizes}:{outcome}:{(prompt or '') if with_prompt else ''}{text or ''}{tool_calls or ''}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _any_tried(connection: Connection) -> bool:
    return bool(connection.execute("SELECT 1 FROM judging_tried LIMIT 1").fetchall())


def _statements(*names: str) -> list[str]:
    texts = [resources.files("evalpipe.judging").joinpath(name).read_text(encoding="utf-8") for name in names]
    return [statement for text in texts for part in text.split(";\n") if (statement := part.strip())]
