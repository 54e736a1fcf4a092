"""Objects against a real S3 server behind a proxy that makes every kind of fault."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from evalpipe.errors import ConfigError
from evalpipe.objects.client import ChangedError, KeyExistsError, StorageError, open_objects
from objects.fixtures import Bucket


def test_whole_objects_are_read_listed_in_order_and_deleted(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    for name in ("b/2", "b/10", "b/1", "c/1"):
        objects.put(name, name.encode())
    assert objects.get("b/2") is not None and objects.get("b/3") is None
    assert [one.key for one in objects.list("b")] == ["b/1", "b/10", "b/2"]
    assert [one.key for one in objects.list("b", after="b/1")] == ["b/10", "b/2"]
    objects.delete(["b/1", "b/1", "no such key"])
    assert [(one.key, one.size) for one in objects.list("b")] == [("b/10", 4), ("b/2", 3)]


def test_a_file_goes_there_and_back(bucket: Bucket, tmp_path: Path) -> None:
    objects = open_objects(bucket.url)
    data = bytes(range(256)) * 50_000  # 12.8 MB: in several parts
    (tmp_path / "a").write_bytes(data)
    objects.upload("x", tmp_path / "a")
    assert objects.download("x", tmp_path / "b") and (tmp_path / "b").read_bytes() == data
    assert not objects.download("y", tmp_path / "c")


def test_of_many_conditional_puts_one_wins(bucket: Bucket) -> None:
    objects, won = open_objects(bucket.url), list[int]()

    def create(number: int) -> None:
        try:
            objects.create("one", b"%d" % number)
        except KeyExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = objects.get("one")
    assert found is not None and won == [int(found.data)]


def test_a_version_is_replaced_once(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    first = objects.create("x", b"1")
    second = objects.replace("x", b"2", first)
    with pytest.raises(ChangedError):
        objects.replace("x", b"3", first)
    with pytest.raises(ChangedError):
        objects.replace("gone", b"3", first)
    found = objects.get("x")
    assert found is not None and (found.data, found.version) == (b"2", second)


@pytest.mark.parametrize("kind", ["reset_after", "reset_before", "internal_error", "slow_down", "conflict"])
def test_a_put_that_failed_or_whose_answer_was_lost_counts_once(faulty_bucket: Bucket, kind: str) -> None:
    objects = open_objects(faulty_bucket.url)
    faulty_bucket.faults.next(kind, key="x")
    version = objects.create("x", b"1 a")
    faulty_bucket.faults.next(kind, key="x")
    objects.replace("x", b"2 b", version)
    found = objects.get("x")
    assert found is not None and found.data == b"2 b"
    assert faulty_bucket.faults.made[kind] == 2


def test_a_lost_answer_to_a_put_that_was_second_is_no_success(faulty_bucket: Bucket) -> None:
    objects = open_objects(faulty_bucket.url)
    objects.create("x", b"theirs")
    faulty_bucket.faults.next("reset_before", key="x")
    with pytest.raises(KeyExistsError):
        objects.create("x", b"mine")


def test_every_kind_of_fault_at_once(faulty_bucket: Bucket, tmp_path: Path) -> None:
    rates = {
        "internal_error": 0.05,
        "slow_down": 0.05,
        "reset_before": 0.05,
        "reset_after": 0.05,
        "conflict": 0.05,
        "truncated": 0.05,
    }
    faulty_bucket.faults.set(seed=7, **rates)
    objects = open_objects(faulty_bucket.url)
    version = objects.create("counter", b"0")
    for number in range(1, 40):
        version = objects.replace("counter", b"%d" % number, version)
        objects.put(f"data/{number}", b"%d" % number * 1000)
    found = objects.get("counter")
    assert found is not None and found.data == b"39"
    for number in range(1, 40):
        assert objects.download(f"data/{number}", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == b"%d" % number * 1000
    assert len(list(objects.list("data"))) == 39
    assert sum(faulty_bucket.faults.made.values()) > 20


def test_a_storage_that_is_gone_is_one_line_without_the_key(faulty_bucket: Bucket) -> None:
    objects = open_objects(faulty_bucket.url, give_up_after_s=0.5)
    faulty_bucket.faults.outage(30)
    with pytest.raises(StorageError, match="failed for") as raised:
        objects.get("x")
    line = str(raised.value)
    assert "\n" not in line and "run it again" in line
    assert "AWS4-HMAC" not in line and "Signature" not in line


@pytest.mark.parametrize("url", ["s3://", "ftp://bucket/x"])
def test_an_address_without_a_bucket_is_one_line(url: str) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        open_objects(url)
