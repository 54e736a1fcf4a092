"""The tests' own object storage: conditional writes are one step, and each kind of fault does what its name means."""

from __future__ import annotations

import http.client
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from objects.fixtures import VENDOR, Bucket

pytestmark = pytest.mark.skipif(VENDOR != "s3", reason="S3's own requests")

SIGNED = "AWS4-HMAC-SHA256 Credential=test/20250101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""moto takes any signature, but shows a private object to nobody without one"""


def call(
    bucket: Bucket, method: str, key: str, body: bytes = b"", timeout: float = 10, **headers: str
) -> tuple[int, bytes, str]:
    """One plain HTTP request, without any client's retries: status, body, ETag."""
    connection = http.client.HTTPConnection(bucket.endpoint.removeprefix("http://"), timeout=timeout)
    try:
        named = {"Authorization": SIGNED} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"/{bucket.name}/{bucket.prefix}/{key}", body, named)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("ETag", "")
    finally:
        connection.close()


def race(bucket: Bucket, key: str, **condition: str) -> list[int]:
    """The statuses of 20 puts at the same time."""
    with ThreadPoolExecutor(20) as pool:
        puts = [pool.submit(call, bucket, "PUT", key, b"%d" % n, **condition) for n in range(20)]
        return [put.result()[0] for put in puts]


def test_one_of_many_concurrent_creators_wins(bucket: Bucket) -> None:
    for key in ("first", "second", "third"):
        done = race(bucket, key, If_None_Match="*")
        assert sorted(done) == [200] + 19 * [412]
        assert call(bucket, "GET", key)[1] == b"%d" % done.index(200)


def test_one_of_many_concurrent_swaps_wins(bucket: Bucket) -> None:
    etag = call(bucket, "PUT", "swapped", b"first")[2]
    assert sorted(race(bucket, "swapped", If_Match=etag)) == [200] + 19 * [412]


def test_a_swap_of_what_is_gone_is_refused(bucket: Bucket) -> None:
    etag = call(bucket, "PUT", "gone", b"x")[2]
    assert call(bucket, "DELETE", "gone")[0] == 204
    assert call(bucket, "PUT", "gone", b"y", If_Match=etag)[0] == 404
    assert call(bucket, "GET", "gone")[0] == 404


def test_a_client_of_object_storage_works(bucket: Bucket) -> None:
    """Through obstore: what the package evalpipe.objects uses."""
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    store = obstore.store.from_url(bucket.url)
    first = obstore.put(store, "a/b c", b"0123456789", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a/b c", b"x", mode="create")
    obstore.put(store, "a/b c", b"another", mode={"e_tag": first["e_tag"]})
    with pytest.raises(PreconditionError):
        obstore.put(store, "a/b c", b"x", mode={"e_tag": first["e_tag"]})
    assert bytes(obstore.get(store, "a/b c").bytes()) == b"another"
    assert [(one["path"], one["size"]) for one in obstore.list(store).collect()] == [("a/b c", 7)]
    obstore.delete(store, ["a/b c"])
    assert obstore.list(store).collect() == []


def test_faults_answered_without_doing_anything(faulty_bucket: Bucket) -> None:
    for kind, status, code in (("internal_error", 500, b"InternalError"), ("slow_down", 503, b"SlowDown")):
        faulty_bucket.faults.next(kind)
        answer = call(faulty_bucket, "PUT", "x", b"1")
        assert answer[0] == status and code in answer[1]
    faulty_bucket.faults.next("conflict")
    answer = call(faulty_bucket, "PUT", "x", b"1", If_None_Match="*")
    assert answer[0] == 409 and b"ConditionalRequestConflict" in answer[1]
    faulty_bucket.faults.next("reset_before")
    with pytest.raises(ConnectionResetError):
        call(faulty_bucket, "PUT", "x", b"1")
    assert call(faulty_bucket, "GET", "x")[0] == 404
    assert faulty_bucket.faults.made == {"internal_error": 1, "slow_down": 1, "conflict": 1, "reset_before": 1}
    assert faulty_bucket.faults.requests == {"PUT": 4, "GET": 1}


def test_faults_after_it_was_done(faulty_bucket: Bucket) -> None:
    faulty_bucket.faults.next("reset_after", key="lost")
    with pytest.raises(ConnectionResetError):
        call(faulty_bucket, "PUT", "lost", b"1", If_None_Match="*")
    assert call(faulty_bucket, "PUT", "lost", b"1", If_None_Match="*")[0] == 412
    faulty_bucket.faults.set(delay_s=0.6)
    faulty_bucket.faults.next("delay", key="slow")
    with pytest.raises(TimeoutError):
        call(faulty_bucket, "PUT", "slow", b"1", timeout=0.3)
    assert call(faulty_bucket, "GET", "slow")[1] == b"1"
    faulty_bucket.faults.next("late", key="later")
    with pytest.raises(TimeoutError):
        call(faulty_bucket, "PUT", "later", b"1", timeout=0.3)
    assert call(faulty_bucket, "GET", "later")[0] == 404
    until = time.monotonic() + 10
    while call(faulty_bucket, "GET", "later")[0] == 404:
        assert time.monotonic() < until
    call(faulty_bucket, "PUT", "half", b"0123456789")
    faulty_bucket.faults.next("truncated", method="GET")
    with pytest.raises(http.client.IncompleteRead) as ended:
        call(faulty_bucket, "GET", "half")
    assert ended.value.partial == b"01234"


def test_rates_are_met_and_repeat_with_the_seed(faulty_bucket: Bucket) -> None:
    seen = []
    for _ in range(2):
        faulty_bucket.faults.set(seed=7, internal_error=0.3)
        seen.append([call(faulty_bucket, "PUT", "x", b"1")[0] for _ in range(100)])
    assert seen[0] == seen[1]
    # 100 requests at 30 %: within four standard deviations (4 × √(100 × 0.3 × 0.7) = 18.3) of 30.
    assert 11 < seen[0].count(500) < 49
    assert faulty_bucket.faults.made == {"internal_error": 2 * seen[0].count(500)}


def test_an_outage_ends(faulty_bucket: Bucket) -> None:
    faulty_bucket.faults.outage(60)
    with pytest.raises(ConnectionResetError):
        call(faulty_bucket, "GET", "x")
    faulty_bucket.faults.outage(0)
    assert call(faulty_bucket, "GET", "x")[0] == 404
    faulty_bucket.faults.proxy.kill()
    with pytest.raises(ConnectionRefusedError):
        call(faulty_bucket, "GET", "x")
