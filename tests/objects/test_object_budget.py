"""A budget that several holders lease from: never passed, whatever is lost on the way or dies; what is not spent comes back."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from evalpipe.errors import DataError
from evalpipe.objects.budget import BudgetLedger, booked_usd
from evalpipe.objects.client import ChangedError, Objects, StorageError, open_objects
from objects.fixtures import Bucket


def ledger(objects: Objects, replica: str, *, budget_usd: float = 10.0, spent_usd: float = 0.0) -> BudgetLedger:
    return BudgetLedger(objects, "test", replica, budget_usd=budget_usd, spent_usd=spent_usd)


def lease_all(one: BudgetLedger, least_usd: float) -> float:
    """Portions until none is left; their sum."""
    total = 0.0
    while portion := one.lease(least_usd):
        total += portion
    return total


def test_concurrent_holders_never_pass_the_budget_under_faults(faulty_bucket: Bucket) -> None:
    faulty_bucket.faults.set(
        internal_error=0.03, slow_down=0.03, conflict=0.12, reset_before=0.03, reset_after=0.12, truncated=0.03
    )
    objects = open_objects(faulty_bucket.url)
    leased: list[float] = []
    threads = [
        threading.Thread(target=lambda name=name: leased.append(lease_all(ledger(objects, name), 0.4)))  # type: ignore[misc]
        for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leased) == 4
    # Each portion is at least 0.4, so the last refusal left less than that, or, after 24 sums of floats, just about that.
    assert 10 - 0.4 - 1e-9 < sum(leased) <= 10 + 1e-9
    assert booked_usd(objects, "test") == pytest.approx(sum(leased))
    assert faulty_bucket.faults.made.keys() & {"conflict", "reset_after"}


@pytest.mark.parametrize("seed", [1, 2])
def test_living_holders_give_back_and_never_pass_the_budget_whatever_dies(faulty_bucket: Bucket, seed: int) -> None:
    """What each holder may spend, summed at every moment as an onlooker who sees all machines at once."""
    faulty_bucket.faults.set(
        seed, internal_error=0.05, conflict=0.05, reset_before=0.03, reset_after=0.08, truncated=0.03
    )
    objects = open_objects(faulty_bucket.url, give_up_after_s=0.15)  # so soon that some requests are given up
    lock = threading.Lock()
    may_spend: dict[str, float] = {}
    spent_by: dict[str, float] = {}
    over: list[dict[str, float]] = []
    ended: list[str] = []

    def note(life: str, usd: float) -> None:
        with lock:
            may_spend[life] = usd
            if sum(may_spend.values()) > 2.0 + 1e-9:
                over.append(dict(may_spend))

    def live(name: str) -> None:
        chance = random.Random(f"{seed}{name}")
        one, life, limit, spent = ledger(objects, name, budget_usd=2.0), f"{name}0", 0.0, 0.0
        for step in range(1, 25):
            what = chance.random()
            try:
                if what < 0.5:
                    limit += one.lease(chance.choice((0.0, 0.05, 0.3)))
                    note(life, limit)
                    spent += chance.random() * (limit - spent)
                elif what < 0.9:
                    spare = (limit - spent) * chance.random()
                    limit -= spare
                    note(life, limit)
                    one.settle(spent, spare)
                else:  # dies, and begins anew: nobody gives back what it could still have spent
                    one, life, limit, spent = ledger(objects, name, budget_usd=2.0), f"{name}{step}", 0.0, 0.0
            except StorageError:
                continue
            spent_by[life] = spent
        ended.append(name)

    threads = [threading.Thread(target=live, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 4
    assert not over
    assert sum(spent_by.values()) - 1e-9 <= booked_usd(open_objects(faulty_bucket.url), "test") <= 2.0 + 1e-9


def test_a_living_holder_gives_back_what_it_does_not_need(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    one, other = ledger(objects, "a"), ledger(objects, "b")
    assert lease_all(one, 2.0) == pytest.approx(10)
    one.settle(1.5, 7.0)
    assert booked_usd(objects, "test") == pytest.approx(3.0)
    assert one.balance is not None
    assert one.balance.spent_usd == pytest.approx(1.5)
    assert other.lease(7.0) == pytest.approx(7.0)
    del one  # killed: the 1.5 that it could still have spent stay booked
    again = ledger(objects, "a")
    assert again.lease(0.5) == 0
    other.close(2.0)
    assert again.lease(4.0) == pytest.approx(4.0)
    again.close(4.0)
    assert booked_usd(objects, "test") == pytest.approx(3.0 + 2.0 + 4.0)


def test_what_could_not_be_given_back_is_leased_anew(faulty_bucket: Bucket) -> None:
    objects = open_objects(faulty_bucket.url, give_up_after_s=0.2)
    one = ledger(objects, "a")
    assert one.lease(8.0) == pytest.approx(8.0)
    faulty_bucket.faults.outage(60)
    with pytest.raises(StorageError):
        one.settle(1.0, 5.0)
    faulty_bucket.faults.outage(0)
    assert booked_usd(objects, "test") == pytest.approx(8.0)
    assert one.lease(0.5) == pytest.approx(5.0)
    one.settle(1.0, 7.0)
    assert booked_usd(objects, "test") == pytest.approx(1.0)


def test_a_holder_that_another_of_its_name_took_for_dead_books_what_it_spends_once(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    one, other = ledger(objects, "a"), ledger(objects, "a")
    assert one.lease(3.0) == 3.0
    assert other.lease(2.0) == 2.0  # and books the 3 as spent
    assert one.lease(1.0) == 1.0  # and books the 2 as spent
    assert booked_usd(objects, "test") == pytest.approx(6.0)
    one.close(0.5)
    other.close(0.25)
    assert booked_usd(objects, "test") == pytest.approx(0.5 + 2.0), "all that the other one leased"


def test_a_clean_end_gives_back_what_was_not_spent(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    first = ledger(objects, "a")
    assert lease_all(first, 0.5) == pytest.approx(10, abs=0.5)
    other = ledger(objects, "b")
    assert other.lease(0.5) == 0
    first.close(1.25)
    assert booked_usd(objects, "test") == pytest.approx(1.25)
    assert other.lease(0.5) >= 0.5


def test_what_a_killed_holder_leased_stays_booked_and_its_next_life_begins_anew(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    ledger(objects, "a").lease(3.0)  # and dies
    alive = ledger(objects, "b")
    alive.lease(2.0)
    again = ledger(objects, "a")
    assert again.lease(1.0) == 1.0
    assert booked_usd(objects, "test") == pytest.approx(6.0)
    alive.close(0.5)
    again.close(0.25)
    assert booked_usd(objects, "test") == pytest.approx(3.0 + 0.5 + 0.25)
    assert again.lease(8.0) == 0
    # Below state/ nothing is taken for the rest of a commit that was not made.
    assert [one.key for one in objects.list("")] == ["state/budgets/test.json"]


class LostAnswer(Objects):
    """The first compare-and-swap works, its answer is lost, and another holder is first to write again."""

    def __init__(self, url: str, then: Callable[[], object]) -> None:
        self._within = open_objects(url)
        self._then: Callable[[], object] | None = then
        self.get, self.create = self._within.get, self._within.create  # type: ignore[method-assign]

    def replace(self, key: str, data: bytes, version: str) -> str:
        done = self._within.replace(key, data, version)
        if self._then is None:
            return done
        then, self._then = self._then, None
        then()
        raise ChangedError(key)


def test_a_portion_whose_answer_was_lost_is_not_lost(bucket: Bucket) -> None:
    other = ledger(open_objects(bucket.url), "b")
    one = ledger(LostAnswer(bucket.url, lambda: other.lease(2.0)), "a")
    assert one.lease(6.0) == pytest.approx(6.0)
    assert one.lease(1.0) == pytest.approx(1.0)
    assert booked_usd(open_objects(bucket.url), "test") == pytest.approx(6.0 + 2.0 + 1.0)


def test_an_account_begins_with_what_was_spent_before_it(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    assert ledger(objects, "a", spent_usd=9.75).lease(0.5) == 0
    assert ledger(objects, "b", spent_usd=0.0).lease(0.25) == 0.25
    assert ledger(objects, "c", budget_usd=0.0).lease(0.0) == 0


def test_a_damaged_account_pays_for_nothing(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    objects.put("state/budgets/test.json", b'{"spent_usd": ')
    with pytest.raises(DataError, match="is no account of a budget"):
        ledger(objects, "a").lease(1.0)


def test_a_holder_that_cannot_reach_the_storage_leases_nothing(faulty_bucket: Bucket) -> None:
    objects = open_objects(faulty_bucket.url, give_up_after_s=0.2)
    one = ledger(objects, "a")
    assert one.lease(1.0) == 1.0
    faulty_bucket.faults.outage(60)
    with pytest.raises(StorageError):
        one.lease(1.0)
    faulty_bucket.faults.outage(0)
    assert booked_usd(objects, "test") == pytest.approx(1.0)
