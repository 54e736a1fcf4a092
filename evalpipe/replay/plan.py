"""Which logged requests are replayed: a sample by user, chosen by a hash, less what an arm has answered already.

Users are in the order in which the judge asks about them (a hash of the experiment's seed), so the first so many are a fair
sample, and a larger one later holds the smaller. Of each user the first so many requests count, by arrival. Texts are fetched
page by page.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from evalpipe.analysis.sql import Connection
from evalpipe.files import sql_statements
from evalpipe.models import Arm
from evalpipe.providers.base import NotShadowableError, OutgoingRequest
from evalpipe.replay.requests import LoggedRequest, ReplayArm, outgoing_of

_SQL = sql_statements("evalpipe.replay", "plan.sql")

PAGE = 250
_NO_LIMIT = 2**62
_CARRIED = ("anthropic-version", "anthropic-beta")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayPlan:
    """What is to be sent.

    Attributes:
        n_requests: requests of the sample.
        n_users: their users.
        n_calls: calls that are left to make, by arm.
        n_known: answers of the sample that are there, by arm.
        left_out: requests of the log that are not in the sample, by reason.
    """

    n_requests: int = 0
    n_users: int = 0
    n_calls: dict[str, int] = field(default_factory=dict)
    n_known: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.n_calls.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCall:
    """One call to be made: the logged request, what the arm is sent for it, and the calls made for it before. `refused`: why
    there is no faithful request; then none is sent."""

    logged: LoggedRequest
    arm: Arm
    attempt: int
    outgoing: OutgoingRequest | None = None
    refused: str | None = None


def make_plan(
    connection: Connection,
    *,
    seed: str,
    users: int | None,
    per_user: int,
    only_first_turns: bool,
    with_control: bool,
    pending: Collection[tuple[str, str]] = (),
) -> ReplayPlan:
    """Make the table `replay_plan` from the view `exchanges`.

    Args:
        connection: of the open store; with `only_first_turns` also the table `ev_later`.
        seed: of the order of the users.
        users: only the first so many; None: all.
        per_user: at most so many requests of a user; 0: all.
        only_first_turns: leave later turns out.
        with_control: ask control once more, too.
        pending: (request, arm) that wait in a provider's batch.
    """
    connection.execute("CREATE OR REPLACE TEMP TABLE replay_pending (request_id VARCHAR, arm VARCHAR)")
    if pending:
        ids, arms = zip(*pending, strict=True)
        connection.execute(
            "INSERT INTO replay_pending SELECT unnest($1::VARCHAR[]), unnest($2::VARCHAR[])", [list(ids), list(arms)]
        )
    if not only_first_turns:
        connection.execute("CREATE OR REPLACE TEMP TABLE ev_later (id UBIGINT)")
    connection.execute(_SQL["candidates"], {"with_control": with_control})
    connection.execute(_SQL["sample"], {"seed": seed})
    sizes = {"users": users or _NO_LIMIT, "per_user": per_user or _NO_LIMIT}
    connection.execute(_SQL["plan"], {**sizes, "with_control": with_control})
    n, n_users, treatment, control, has_treatment, has_control = connection.execute(
        "SELECT count(*), count(DISTINCT unit), count(*) FILTER (asks_treatment), count(*) FILTER (asks_control), "
        "count(*) FILTER (has_treatment), count(*) FILTER (has_control) FROM replay_plan"
    ).fetchall()[0]
    left_out = dict(
        connection.execute(
            "SELECT why, count(*) FROM replay_candidates WHERE why IS NOT NULL GROUP BY why ORDER BY why"
        ).fetchall()
    )
    (over, beyond) = connection.execute(
        "SELECT count(*) FILTER (user_rank <= $users AND nth > $per_user), count(*) FILTER (user_rank > $users) "
        "FROM replay_sample",
        sizes,
    ).fetchall()[0]
    left_out |= {why: k for why, k in (("over_pairs_per_unit", over), ("beyond_the_sample", beyond)) if k}
    calls, known = {"treatment": treatment}, {"treatment": has_treatment}
    if with_control:
        calls["control"], known["control"] = control, has_control
    return ReplayPlan(n_requests=n, n_users=n_users, n_calls=calls, n_known=known, left_out=left_out)


def pages(
    connection: Connection,
    arms: Mapping[Arm, ReplayArm],
    attempts: Mapping[tuple[str, str], int],
    *,
    batch: bool = False,
) -> Iterator[list[PlannedCall]]:
    """The planned calls in order, a page at a time; both arms of a request beside each other: they are asked at one time."""
    (n,) = connection.execute(
        "SELECT coalesce(max(position) + 1, 0) FROM replay_plan WHERE asks_treatment OR asks_control"
    ).fetchall()[0]
    for start in range(0, n, PAGE):
        rows = connection.execute(
            "SELECT request_id, asks_treatment, asks_control FROM replay_plan "
            "WHERE position >= $1 AND position < $2 AND (asks_treatment OR asks_control) ORDER BY position",
            [start, start + PAGE],
        ).fetchall()
        found = logged_requests(connection, [request_id for request_id, _, _ in rows])
        page = []
        for request_id, *asked in rows:
            logged = found.get(request_id)
            if logged is None:
                continue
            page += _calls(logged, arms, dict(zip((Arm.TREATMENT, Arm.CONTROL), asked, strict=True)), attempts, batch)
        if page:
            yield page


def _calls(
    logged: LoggedRequest,
    arms: Mapping[Arm, ReplayArm],
    asked: Mapping[Arm, bool],
    attempts: Mapping[tuple[str, str], int],
    batch: bool,
) -> list[PlannedCall]:
    """The calls of one request; where it cannot be translated for one of the arms, none of them is made."""
    made = {}
    for arm, settings in arms.items():
        try:
            made[arm] = outgoing_of(logged, settings, batch=batch)
        except NotShadowableError as error:
            return [PlannedCall(logged=logged, arm=one, attempt=0, refused=error.stored) for one in asked if asked[one]]
    return [
        PlannedCall(logged=logged, arm=arm, attempt=attempts.get((logged.request_id, arm.value), 0), outgoing=made[arm])
        for arm in arms
        if asked[arm]
    ]


def logged_requests(connection: Connection, request_ids: Collection[str]) -> dict[str, LoggedRequest]:
    """The logged requests of these ids, as control's rows hold them."""
    rows = connection.execute(
        "SELECT request_id, request, endpoint, unit_id, conversation_id, prompt, coalesce(model_requested, model), turn, step, "
        "request_kind, role = 'imported', meta FROM exchanges "
        "WHERE arm = 'control' AND role IN ('served', 'imported') AND list_contains($1::VARCHAR[], request_id) "
        "QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY started_at) = 1",
        [list(request_ids)],
    ).fetchall()
    found = {}
    for request_id, request, endpoint, unit, conversation, prompt, model, turn, step, kind, imported, meta in rows:
        text = request
        if text is None:
            text = json.dumps({"messages": [{"role": "user", "content": prompt or ""}]})
        found[request_id] = LoggedRequest(
            request_id=request_id,
            request=text,
            endpoint=endpoint or "chat.completions",
            unit_id=unit,
            conversation_id=conversation,
            prompt=prompt,
            model=model,
            turn=turn,
            step=step,
            request_kind=kind,
            headers={} if imported else _headers(meta),
            is_imported=imported,
        )
    return found


def _headers(meta: str | None) -> dict[str, str]:
    try:
        headers = json.loads(meta or "{}").get("request_headers", {})
    except (ValueError, AttributeError):
        return {}
    return {name: value for name, value in headers.items() if name.lower() in _CARRIED} if headers else {}
