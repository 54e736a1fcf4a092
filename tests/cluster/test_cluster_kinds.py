"""Which shard a user is of, and what is planned after a shard was lost."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from evalpipe.cluster.kinds import JUDGING, REPLAYING, shard_of
from evalpipe.judging.plan import JudgeCall
from evalpipe.models import Arm, Judgment, JudgmentStatus, ReplayCall, ReplayStatus, ShownFirst
from evalpipe.replay.plan import PlannedCall
from evalpipe.replay.requests import LoggedRequest

UNITS = st.text(min_size=1, max_size=20)
SHARDS = st.sets(st.integers(0, 50), min_size=2, max_size=12)


@given(UNITS, SHARDS, st.data())
def test_a_lost_shard_moves_its_own_users_only_and_gets_them_back(
    unit: str, shards: set[int], data: st.DataObject
) -> None:
    lost = data.draw(st.sampled_from(sorted(shards)))
    before, after = shard_of(unit, shards), shard_of(unit, shards - {lost})
    assert after in shards - {lost}
    assert after == before or before == lost
    assert shard_of(unit, sorted(shards, reverse=True)) == before  # whatever order they are listed in


def test_users_are_spread_evenly() -> None:
    n = Counter(shard_of(f"user-{number}", range(4)) for number in range(8_000))
    # Binomial(8000, 1/4): standard deviation 38.7; within five of them.
    assert all(abs(found - 2_000) < 5 * 38.7 for found in n.values())


def judged(attempt: int, status: JudgmentStatus) -> Judgment:
    return Judgment(
        key="k", attempt=attempt, request_id="r", judge="j", judge_fingerprint="f", judge_model=None,
        shown_first=ShownFirst.CONTROL, status=status,
    )  # fmt: skip


@given(st.integers(0, 5), st.integers(0, 3), st.lists(st.sampled_from(sorted(JudgmentStatus)), max_size=5))
def test_a_judges_call_goes_on_as_the_next_run_would_plan_it(
    attempt: int, n_unread: int, statuses: list[JudgmentStatus]
) -> None:
    planned = JudgeCall(
        key="k",
        attempt=attempt,
        n_unread=n_unread,
        request_id="r",
        shown_first=ShownFirst.CONTROL,
        repeat=0,
        request="",
    )
    rows = [judged(attempt + 1 + number, status) for number, status in enumerate(statuses)]
    found = JUDGING.resumed(planned, rows)
    assert found.attempt == attempt + len(statuses)  # so the next row has an id that no other has
    unread = sum(status in {"unparseable", "refused", "truncated"} for status in statuses)
    assert found.n_unread == n_unread + unread
    assert {JUDGING.id_of(row) for row in rows}.isdisjoint(
        {JUDGING.id_of(judged(found.attempt + 1, JudgmentStatus.OK))}
    )


def test_a_replayed_call_goes_on_with_its_next_attempt() -> None:
    logged = LoggedRequest(request_id="r", request="{}", endpoint="chat.completions", unit_id="u")
    planned = PlannedCall(logged=logged, arm=Arm.TREATMENT, attempt=2)
    row = ReplayCall(
        request_id="r", arm=Arm.TREATMENT, attempt=3, status=ReplayStatus.SENT, at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert REPLAYING.resumed(planned, [row]).attempt == 3
    assert REPLAYING.resumed(planned, []) == planned
    assert REPLAYING.key_of(planned) == REPLAYING.key_of_row(row)
    assert REPLAYING.unit_of(planned) == "u"
