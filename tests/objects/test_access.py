"""What is wrong with an address, a server's address or credentials: one line, at once, and never a request repeated in vain."""

from __future__ import annotations

import os
import time

import pytest

from evalpipe.errors import ConfigError
from evalpipe.objects.access import ENDPOINTS, check_address, missing_credentials
from evalpipe.objects.client import StorageError, check_conditional_writes, open_objects
from objects.fixtures import VENDOR, Bucket


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///x",
        "s3://UPPER/x",
        "s3://a b/x",
        "s3://bucket!/x",
        "s3://bucket/x/../y",
        "gs://bucket/./y",
        "az://b/x//y",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^data = '[^\n]+'?: [^\n]+$"):
        open_objects(url)


def test_addresses_in_their_usual_form() -> None:
    assert check_address("s3:/my-bucket.x/a b/c/") == "s3://my-bucket.x/a b/c"
    assert check_address("gs://my_bucket") == "gs://my_bucket"


@pytest.mark.parametrize(
    "value",
    [
        "127.0.0.1:9700",
        "localhost",
        "nonsense",
        "",
        "http://",
        "http://[bad",
        "http://a b",
        "ftp://host",
        "http://h:99999",
    ],
)
def test_a_servers_address_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(ConfigError) as refused:
        open_objects("s3://bucket/x")
    assert str(refused.value).startswith(f"AWS_ENDPOINT_URL is {value!r}: the address of a server such as http://")
    open_objects("gs://bucket/x")  # it is of another vendor's
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")  # each that is set is looked at
    with pytest.raises(ConfigError, match=r"^AWS_ENDPOINT_URL is "):
        open_objects("s3://bucket/x")


@pytest.mark.skipif(VENDOR == "gs", reason="fake-gcs-server answers 500 about a bucket that does not exist")
def test_a_bucket_that_does_not_exist_is_reported_at_once(bucket: Bucket) -> None:
    objects = open_objects(f"{VENDOR}://no-such-bucket/x")
    start = time.monotonic()
    for ask in (
        lambda: list(objects.list("log")),
        lambda: objects.get("a"),
        lambda: objects.create("a", b"1"),
        lambda: objects.put("a", b"1"),
        lambda: check_conditional_writes(objects),
    ):
        with pytest.raises(StorageError) as failed:
            ask()
        assert str(failed.value) == (
            f"{VENDOR}://no-such-bucket/x: the bucket 'no-such-bucket' does not exist: create it, or correct `data`"
        )
    assert time.monotonic() - start < 20  # far below the minute for which requests are repeated


def test_a_server_that_is_not_there_is_named_after_a_while_and_at_the_end(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (name for names in ENDPOINTS.values() for name in names if name in os.environ):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with pytest.raises(
        StorageError, match=r"failed for 5 s: .*http://127.0.0.1:1/.*: no connection to this server; nothing"
    ):
        list(open_objects(f"{VENDOR}://bucket/x", give_up_after_s=5).list("log"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "listing log fails, and is repeated for 5 s" in lines[0]


@pytest.mark.parametrize(
    ("address", "text", "names"),
    [
        (
            "s3://b/x",
            "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1s",
            "AWS_ACCESS_KEY_ID",
        ),
        (
            "s3://b/x",
            "Generic S3 error: Error performing GET http://169.254.170.2/v2/credentials/1 in 1s",
            "AWS_ACCESS_KEY_ID",
        ),
        (
            "gs://b/x",
            "Error performing GET http://metadata.google.internal/computeMetadata/v1",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        ("az://b/x", "Generic MicrosoftAzure error: Account must be specified", "AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
def test_missing_credentials_are_named(address: str, text: str, names: str) -> None:
    found = missing_credentials(Exception(text + "\n\nDebug source: …"), address)
    assert found is not None and found.startswith("no credentials: set ") and names in found and "Debug" not in found


def test_another_error_is_none_of_credentials() -> None:
    text = "HTTP error\n\nDebug source: http://169.254.169.254/"
    assert missing_credentials(Exception(text), "s3://b/x") is None
