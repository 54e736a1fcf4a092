"""The log of commits: an order of all writers, leases that are checked where a commit takes effect, checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import DataError
from evalpipe.objects.client import Objects, open_objects
from evalpipe.objects.lease import LeaseLostError
from evalpipe.objects.log import CHECKPOINT_EVERY, Commit, CommitLog, State, StoredFile
from objects.fixtures import Bucket

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def adds(*paths: str) -> tuple[Mapping[str, StoredFile], tuple[str, ...]]:
    return {path: StoredFile(f"key of {path}", 1, "00000000") for path in paths}, ()


def test_commits_of_many_writers_are_one_order_and_none_is_lost(faulty_bucket: Bucket) -> None:
    faulty_bucket.faults.set(seed=3, reset_after=0.1, conflict=0.1, internal_error=0.05, reset_before=0.05)
    objects = open_objects(faulty_bucket.url)

    def write(writer: int) -> None:
        log = CommitLog(objects)
        for number in range(6):
            files = adds(f"{writer}/{number}")
            log.commit(lambda state, files=files: files, leases={})  # type: ignore[misc]

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = CommitLog(objects).follow()
    assert sorted(state.files) == sorted(f"{writer}/{number}" for writer in range(3) for number in range(6))
    assert state.number == 18  # no commit whose answer was lost was made twice


def test_a_holder_of_before_cannot_commit(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    old, new = CommitLog(objects), CommitLog(objects)
    old.commit(lambda state: ({}, ()), leases={"load": 1})
    new.commit(lambda state: ({}, ()), leases={"load": 2})
    with pytest.raises(LeaseLostError, match="load"):
        old.commit(lambda state: adds("late"), leases={"load": 1})
    old.commit(lambda state: adds("other work"), leases={"judgments/a": 1})
    assert set(new.follow().files) == {"other work"}


def test_a_new_reader_begins_at_a_checkpoint(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    log = CommitLog(objects)
    for number in range(CHECKPOINT_EVERY + 3):
        log.commit(lambda state, number=number: adds(f"{number}"), leases={"x": number})  # type: ignore[misc]
    objects.delete(f"log/{number:012d}.json" for number in range(1, CHECKPOINT_EVERY))
    assert CommitLog(objects).follow() == log.state
    assert CommitLog(objects, State(number=7)).follow() == log.state  # one that was far behind


def test_a_commit_that_is_gone_is_an_error_and_not_a_smaller_store(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    log = CommitLog(objects)
    for number in range(3):
        log.commit(lambda state, number=number: adds(f"{number}"), leases={})  # type: ignore[misc]
    objects.delete(["log/000000000002.json"])
    with pytest.raises(DataError, match="commit 2 of the log is gone"):
        CommitLog(objects).follow()


def test_a_log_of_a_newer_version_is_not_read(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    newer = Commit(number=1, by="", at=NOW, token="t", version=99)
    objects.create("log/000000000001.json", msgspec.json.encode(newer))
    with pytest.raises(DataError, match="version 99"):
        CommitLog(objects).follow()


paths = st.sampled_from(["a", "b", "c", "d"])


@given(
    st.lists(st.tuples(st.dictionaries(paths, st.integers(0, 2), max_size=3), st.sets(paths, max_size=2)), max_size=12)
)
def test_the_state_after_commits_is_what_a_dictionary_holds(changes: list[tuple[dict[str, int], set[str]]]) -> None:
    """Every object that was in the state and is not any more waits for its deletion, and no other."""
    state, expected, ever = State(), dict[str, str](), set[str]()
    for number, (added, removed) in enumerate(changes, 1):
        remove = tuple(sorted(removed - added.keys()))
        add = {path: StoredFile(f"{path}{version}", 1, "0") for path, version in added.items()}
        state = state.after(Commit(number=number, by="", at=NOW, token="t", add=add, remove=remove, keep_removed_s=60))
        for path in remove:
            expected.pop(path, None)
        expected |= {path: file.key for path, file in add.items()}
        ever |= set(expected.values())
        assert {path: file.key for path, file in state.files.items()} == expected
        assert {one.key for one in state.removed} == ever - set(expected.values())
        assert all(one.at == NOW + timedelta(seconds=60) for one in state.removed)


def committed(objects: Objects, *names: str, state: State | None = None) -> State:
    log = CommitLog(objects, state)
    for name in names:
        log.commit(lambda state, name=name: adds(name), leases={})  # type: ignore[misc]
    return log.state


@pytest.mark.parametrize("since", [(), ("x",), ("x", "y"), ("x", "y", "z")])
def test_a_store_that_was_emptied_or_replaced_is_recognised(bucket: Bucket, since: tuple[str, ...]) -> None:
    """Whatever its new history holds by now, nothing of it is added to the old one, and nothing old is committed to it."""
    objects = open_objects(bucket.url)
    seen = committed(objects, "a", "b")
    objects.delete([one.key for one in objects.list("")])
    committed(objects, *since)
    reader = CommitLog(objects, seen)
    if len(since) == 2:  # as long as the old one: recognised with the next commit
        assert reader.follow() == seen
        committed(objects, "next")
    with pytest.raises(
        DataError, match=r"no longer holds commit 2, which this machine has seen: .* move this machine's data"
    ):
        reader.follow()
    if len(since) > 1:  # its place is taken
        with pytest.raises(DataError, match="no longer holds commit 2"):
            reader.commit(lambda state: adds("late"), leases={})
    assert set(CommitLog(objects).follow().files) == {*since, *(["next"] if len(since) == 2 else [])}
