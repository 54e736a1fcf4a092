"""Leases: one holder at a time, a number that rises, take-over from a holder that fell silent."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from evalpipe.objects.client import open_objects
from evalpipe.objects.lease import Lease, LeaseLostError, holder
from objects.fixtures import Bucket

_HOLD = """
import sys, time
from evalpipe.objects.client import open_objects
from evalpipe.objects.lease import Lease
lease = Lease.take(open_objects(sys.argv[1]), "work", "other", float(sys.argv[2]))
print(lease.number, flush=True)
time.sleep(60)
"""


def held_elsewhere(bucket: Bucket, ttl_s: float) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, bucket.url, str(ttl_s)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline() == b"1\n"
    return process


def test_a_lease_that_was_given_back_is_taken_with_a_higher_number(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    for number in (1, 2, 3):
        lease = Lease.take(objects, "work", f"holder {number}", 5)
        assert lease is not None and lease.number == number and lease.is_held
        assert holder(objects, "work") == f"holder {number}"
        lease.release()
        assert holder(objects, "work") is None and not lease.is_held


def test_a_living_holder_keeps_it_longer_than_its_time(bucket: Bucket) -> None:
    process, said = held_elsewhere(bucket, 0.9), list[str]()
    try:
        objects = open_objects(bucket.url)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert Lease.take(objects, "work", "me", 0.9, waiting=said.append) is None
    finally:
        process.kill()
        process.wait()
    assert set(said) == {"other"}


def test_a_killed_holder_loses_it_after_its_time(bucket: Bucket) -> None:
    process = held_elsewhere(bucket, 1.0)
    process.kill()
    process.wait()
    began = time.monotonic()
    lease = Lease.take(open_objects(bucket.url), "work", "me", 1.0)
    assert lease is not None and lease.number == 2
    assert 0.9 < time.monotonic() - began < 3
    lease.release()


def test_a_suspended_holder_finds_that_it_was_lost(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    first = Lease.take(objects, "work", "first", 30)
    assert first is not None
    second = Lease.take(objects, "work", "second", 30, is_own=lambda owner: owner == "first")
    assert second is not None and second.number == first.number + 1
    with pytest.raises(LeaseLostError, match="run it again"):
        first.renew()
    assert not first.is_held
    first.release()  # no error, and the second holder keeps it
    assert holder(objects, "work") == "second"
    second.release()


def test_an_outage_shorter_than_its_time_does_not_lose_it(faulty_bucket: Bucket) -> None:
    lease = Lease.take(open_objects(faulty_bucket.url), "work", "me", 3)
    assert lease is not None
    faulty_bucket.faults.outage(1.5)
    time.sleep(3.5)
    assert lease.is_held
    lease.release()
