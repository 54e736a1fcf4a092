"""Which pairs a judge is asked about, and in which order: worked out by hand over small logs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from evalpipe.judging.plan import PairRules, Plan, make_plan, pages
from evalpipe.judging.spec import JudgeSpec, load_judge

ROOT = Path(__file__).parents[2]
START = datetime(2026, 6, 1, tzinfo=UTC)


def spec() -> JudgeSpec:
    return load_judge("pairwise", [ROOT / "judges"], [ROOT / "prompts"])


class Log:
    """The views of a store that a plan reads, over tables that a test fills."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            "CREATE TABLE stored_exchanges (request_id VARCHAR, arm VARCHAR, role VARCHAR, outcome VARCHAR, unit_id VARCHAR, "
            "conversation_id VARCHAR, started_at TIMESTAMPTZ, prompt VARCHAR, text VARCHAR, tool_calls VARCHAR, "
            "error_type VARCHAR)"
        )
        connection.execute(
            "CREATE TABLE stored_judgments (request_id VARCHAR, key VARCHAR, attempt INTEGER, status VARCHAR, "
            "judge_fingerprint VARCHAR, judged_at TIMESTAMPTZ, preference DOUBLE, shown_first VARCHAR, note VARCHAR)"
        )
        self.select("true")
        self.n_asked = 0

    def select(self, condition: str) -> None:
        for name in ("exchanges", "judgments"):
            self.connection.execute(f"CREATE OR REPLACE VIEW {name} AS FROM stored_{name} WHERE {condition}")

    def pair(self, request_id: str, user: str, at: float, *, outcome: str = "ok", later: bool = False) -> None:
        for arm, role in (("control", "served"), ("treatment", "shadow")):
            self.connection.execute(
                "INSERT INTO stored_exchanges VALUES (?, ?, ?, ?, ?, NULL, ?, 'q', ?, NULL, NULL)",
                [request_id, arm, role, outcome, user, START + timedelta(seconds=at), arm],
            )
        self.connection.execute("CREATE TEMP TABLE IF NOT EXISTS ev_later (id UBIGINT)")
        if later:
            self.connection.execute("INSERT INTO ev_later SELECT hash(?)", [request_id])

    def plan(self, rules: PairRules | None = None, *, limit: int | None = None) -> Plan:
        return make_plan(self.connection, spec(), seed="s", rules=rules, limit=limit, keep_order=True)

    def order(self) -> list[str]:
        found = self.connection.execute("SELECT request_id FROM judging_asked ORDER BY rank")
        return [request_id for (request_id,) in found.fetchall()]

    def open(self) -> list[str]:
        found = self.connection.execute("SELECT request_id FROM judging_plan ORDER BY position")
        return [request_id for (request_id,) in found.fetchall()]

    def ask(self, plan: Plan, n_pairs: int, *, status: str = "ok") -> list[str]:
        """Judge the first pairs of the plan in both orders, one after the other."""
        done: list[str] = []
        for page in pages(self.connection, spec(), plan):
            for ask in page:
                if ask.request_id not in done:
                    if len(done) == n_pairs:
                        return done
                    done.append(ask.request_id)
                self.n_asked += 1
                self.connection.execute(
                    "INSERT INTO stored_judgments VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                    [
                        ask.request_id,
                        ask.key,
                        ask.attempt + 1,
                        status,
                        spec().fingerprint,
                        START + timedelta(days=1, seconds=self.n_asked),
                        0.5 if status == "ok" else None,
                        ask.shown_first.value,
                    ],
                )
        return done


@pytest.fixture
def log() -> Iterator[Log]:
    with duckdb.connect(":memory:") as connection:
        yield Log(connection)


def users(order: list[str]) -> list[str]:
    """The users in their order, from request ids such as "ann-3"; each must stand in one piece."""
    found: list[str] = []
    for request_id in order:
        user = request_id.partition("-")[0]
        if user not in found:
            found.append(user)
        assert found[-1] == user, f"{user} is in two pieces: {order}"
    return found


def test_the_first_k_pairs_of_a_user_by_arrival_then_by_request_id(log: Log) -> None:
    for request_id, at in (("ann-d", 4), ("ann-c", 2), ("ann-b", 2), ("ann-a", 3)):
        log.pair(request_id, "ann", at)
    log.pair("bob-a", "bob", 9)
    log.pair("bob-x", "bob", 1, outcome="http_error")  # nothing to judge: it takes nobody's place
    plan = log.plan(PairRules(per_user=3))
    assert set(users(log.order())) == {"ann", "bob"}
    assert [one for one in log.order() if one.startswith("ann")] == ["ann-b", "ann-c", "ann-a"]
    assert (plan.n_eligible, plan.n_units, plan.n_calls, plan.n_over_cap) == (5, 4, 8, 1)
    assert log.plan(PairRules(per_user=0)).n_units == 5
    assert log.plan().n_over_cap == 0


def test_a_returning_user_fills_up_to_k_and_older_pairs_loaded_later_displace_none(log: Log) -> None:
    rules = PairRules(per_user=3)
    log.pair("ann-1", "ann", 10)
    log.pair("ann-2", "ann", 11)
    assert log.ask(log.plan(rules), 2) == ["ann-1", "ann-2"]
    # A log of the day before is loaded afterwards: one place is left, and the oldest of the new pairs gets it.
    log.pair("ann-0b", "ann", 2)
    log.pair("ann-0a", "ann", 1)
    log.pair("ann-3", "ann", 12)
    assert log.ask(log.plan(rules), 9) == ["ann-0a"]
    assert log.order() == ["ann-1", "ann-2", "ann-0a"]
    log.pair("ann-00", "ann", 0)
    plan = log.plan(rules)
    assert (log.open(), plan.n_calls, plan.n_over_cap) == ([], 0, 3)
    assert set(log.order()) == {"ann-1", "ann-2", "ann-0a"}


def test_what_a_look_has_chosen_comes_before_what_was_asked_before(log: Log) -> None:
    for n in range(5):
        log.pair(f"ann-{n}", "ann", n)
    log.ask(log.plan(PairRules(per_user=0)), 4)  # judged before there was a limit
    log.plan(PairRules(per_user=2))
    assert log.order() == ["ann-0", "ann-1"]
    plan = log.plan(PairRules(per_user=3, chosen=["ann-3", "ann-1"]))
    assert log.order() == ["ann-3", "ann-1", "ann-0"]
    assert (plan.n_calls, plan.n_over_cap) == (0, 2)


def test_a_failed_pair_keeps_its_place_and_is_asked_again(log: Log) -> None:
    rules = PairRules(per_user=1)
    log.pair("ann-1", "ann", 1)
    log.ask(log.plan(rules), 1, status="error")
    log.pair("ann-0", "ann", 0)
    assert log.ask(log.plan(rules), 9) == ["ann-1"]


def test_an_answer_that_was_cut_off_is_another_answer_of_the_same_text(log: Log) -> None:
    """What the judge is shown differs: it is told that an answer was cut off."""
    log.pair("a", "ann", 1)
    log.ask(log.plan(), 1)
    assert log.plan().n_calls == 0
    log.connection.execute("UPDATE stored_exchanges SET outcome = 'truncated' WHERE arm = 'treatment'")
    plan = log.plan()
    assert plan.n_calls == 2
    log.ask(plan, 1)  # the keys that are computed for the calls are those the plan looks for
    assert log.plan().n_calls == 0


def test_users_once_asked_stay_in_front_in_the_order_they_were_asked(log: Log) -> None:
    rules = PairRules(per_user=2)
    for index in range(20):
        for n in range(3):
            log.pair(f"u{index}-{n}", f"u{index}", 20 * n + index)
    plan = log.plan(rules)
    first = log.order()
    assert len(users(first)) == 20
    assert users(first) != sorted(users(first), key=lambda name: int(name[1:]))  # by a hash, not by arrival
    asked = log.ask(plan, 7)
    assert asked == first[:7]  # three users and a half
    for index in range(20, 60):  # forty new users land anywhere in the hash order
        log.pair(f"u{index}-0", f"u{index}", 100 + index)
    log.plan(rules)
    second = log.order()
    assert second[:8] == first[:8]  # the half-asked user is finished next
    assert log.open()[0] == first[7]
    assert len(users(second)) == 60
    assert set(users(second[8:])[:16]) != set(users(first[8:]))  # new and old users that were never asked are mixed
    # Judge on and load again: what was asked in two runs still stands in front, run after run.
    log.ask(log.plan(rules), 5)
    front = log.order()[: 7 + 5]
    for index in range(60, 90):
        log.pair(f"u{index}-0", f"u{index}", 100 + index)
    log.plan(rules)
    assert log.order()[:12] == front
    assert log.order()[:8] == first[:8]


def test_a_selection_does_not_give_a_user_more_pairs(log: Log) -> None:
    rules = PairRules(per_user=2)
    log.pair("ann-1", "ann", 1)
    log.ask(log.plan(rules), 1)
    log.pair("ann-2", "ann", 2)
    log.pair("ann-3", "ann", 3)
    log.select("request_id <> 'ann-1'")
    plan = log.plan(rules)
    assert (log.open(), plan.n_eligible, plan.n_over_cap) == (["ann-2"], 2, 1)


def test_excluded_times_are_not_judged(log: Log) -> None:
    for n in range(4):
        log.pair(f"ann-{n}", "ann", 10 * n)
    log.plan(PairRules(per_user=2, excluded=[(START, START + timedelta(seconds=20))]))
    assert log.order() == ["ann-2", "ann-3"]


def with_later_turns(log: Log, n_users: int, n_later: int) -> None:
    for index in range(n_users):
        log.pair(f"u{index:03}-first", f"u{index:03}", index)
        for n in range(n_later):
            log.pair(f"u{index:03}-later{n}", f"u{index:03}", index + n + 1, later=True)


def test_later_turns_get_their_share_of_every_beginning_of_the_plan(log: Log) -> None:
    with_later_turns(log, 80, 5)
    plan = log.plan(PairRules(per_user=3, only_first_turns=True, later_share=0.2))
    order = log.order()
    later = [one for one in order if "later" in one]
    # 80 first turns are 80 % of 100 pairs; of 240 later ones within the limit 20 are asked.
    assert (len(order), len(later), plan.n_later, plan.n_later_left_out, plan.n_over_cap) == (100, 20, 20, 220, 160)
    for n in range(5, 101):
        assert abs(sum("later" in one for one in order[:n]) - 0.2 * n) <= 1
    assert users(later)  # the later pairs of a user are adjacent among themselves
    assert [one for one in later if one.startswith(later[0][:4])] == [f"{later[0][:4]}-later{n}" for n in range(3)]
    # Later turns of what was asked stay, too.
    asked = log.ask(log.plan(PairRules(per_user=3, only_first_turns=True, later_share=0.2)), 30)
    with_more = [f"v{index}" for index in range(200)]
    for index, user in enumerate(with_more):
        log.pair(f"{user}-first", user, 1000 + index)
        log.pair(f"{user}-later", user, 2000 + index, later=True)
    log.plan(PairRules(per_user=3, only_first_turns=True, later_share=0.2))
    assert log.order()[:30] == asked
    assert not set(asked) & set(log.open())


@pytest.mark.parametrize(
    ("rules", "n", "n_later"),
    [
        (PairRules(per_user=3, only_first_turns=True, later_share=0.0), 10, 0),
        (PairRules(per_user=3), 30, 0),  # all turns are the goal: three of six pairs of each, by arrival
    ],
)
def test_no_later_turns_without_a_share_and_no_difference_where_all_turns_are_the_goal(
    log: Log, rules: PairRules, n: int, n_later: int
) -> None:
    with_later_turns(log, 10, 5)
    plan = log.plan(rules)
    assert (len(log.order()), plan.n_later) == (n, n_later)


def test_a_log_of_first_turns_only_has_no_later_ones(log: Log) -> None:
    with_later_turns(log, 10, 0)
    plan = log.plan(PairRules(per_user=3, only_first_turns=True, later_share=0.2))
    assert (plan.n_units, plan.n_later, plan.n_later_left_out) == (10, 0, 0)


def test_a_limit_is_over_the_order_of_the_run(log: Log) -> None:
    with_later_turns(log, 10, 0)
    log.plan(PairRules(per_user=3))
    order = log.order()
    assert log.plan(PairRules(per_user=3), limit=4).n_units == 4
    assert log.order() == order[:4]
