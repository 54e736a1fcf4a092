"""Fixtures: an empty prefix in a bucket of a storage server on this machine, without faults or with settable ones.

The server is moto's S3. `EVALPIPE_TEST_STORAGE=az` (or `gs`) runs the same tests with Azurite (or fake-gcs-server), where its
program is installed (`make check-clouds`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from objects.emulators import COMMANDS, command_of
from objects.server_process import ServerProcess

BUCKET = "evalpipe-test"
VENDOR = os.environ.get("EVALPIPE_TEST_STORAGE", "s3")
_numbers = itertools.count(1)


class Faults:
    """The control of a fault proxy (kinds and settings: objects.fault_proxy)."""

    def __init__(self, proxy: ServerProcess) -> None:
        self.proxy = proxy

    def set(self, seed: int = 1, delay_s: float = 5.0, **rates: float) -> None:
        """Set the share of requests that meets each kind of fault; the kinds that are not named get 0."""
        self._control({"rates": rates, "seed": seed, "delay_s": delay_s})

    def next(self, kind: str, *, method: str = "PUT", key: str = "", times: int = 1) -> None:
        """Plan a fault for the next requests of this method whose key holds the text."""
        self._control({"next": [{"kind": kind, "method": method, "key": key}] * times})

    def outage(self, seconds: float) -> None:
        """Reset every connection for so many seconds from now (0 ends an outage). `proxy.kill()` makes one without end."""
        self._control({"outage_s": seconds})

    @property
    def made(self) -> dict[str, int]:
        """How many faults of each kind were made."""
        made: dict[str, int] = self._control(None)["faults"]
        return made

    @property
    def requests(self) -> dict[str, int]:
        """How many requests came, by method."""
        requests: dict[str, int] = self._control(None)["requests"]
        return requests

    def _control(self, wanted: dict[str, Any] | None) -> dict[str, Any]:
        data = None if wanted is None else json.dumps(wanted).encode()
        request = urllib.request.Request(f"{self.proxy.address}/_faults", data, method="GET" if data is None else "PUT")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            shown: dict[str, Any] = json.load(answer)
            return shown


AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""of every Azurite (learn.microsoft.com/azure/storage/common/storage-connect-azurite)"""


@dataclass(frozen=True)
class Bucket:
    """An empty prefix of a bucket, and how a client reaches it."""

    endpoint: str
    name: str
    prefix: str
    faults: Faults

    @property
    def url(self) -> str:
        return f"{VENDOR}://{self.name}/{self.prefix}"

    @property
    def env(self) -> dict[str, str]:
        """What a client's process needs in its environment."""
        return {**_ENVIRONMENTS[VENDOR](self.endpoint), "NO_PROXY": "127.0.0.1,localhost"}


_ENVIRONMENTS: dict[str, Callable[[str], dict[str, str]]] = {
    "s3": lambda endpoint: {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    },
    "az": lambda endpoint: {
        "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        "AZURE_STORAGE_ENDPOINT": f"{endpoint}/{AZURE_ACCOUNT}",
    },
    "gs": lambda endpoint: {"GOOGLE_BASE_URL": endpoint, "GOOGLE_BEARER_TOKEN": "test"},
}


def _new_bucket(address: str) -> urllib.request.Request:
    """The request that makes the bucket (Azure: the container)."""
    if VENDOR == "gs":
        body = json.dumps({"name": BUCKET}).encode()
        return urllib.request.Request(f"{address}/storage/v1/b", body, {"Content-Type": "application/json"})
    if VENDOR == "az":
        path = f"/{AZURE_ACCOUNT}/{BUCKET}"
        headers = {"x-ms-date": f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT", "x-ms-version": "2021-08-06"}
        # learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
        named = "".join(f"{name}:{value}\n" for name, value in headers.items())
        text = "PUT" + "\n" * 12 + f"{named}/{AZURE_ACCOUNT}{path}\nrestype:container"
        signed = hmac.digest(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(signed).decode()}"
        return urllib.request.Request(f"{address}{path}?restype=container", method="PUT", headers=headers)
    return urllib.request.Request(f"{address}/{BUCKET}", method="PUT")


class Storage:
    """One storage server with its bucket, and a proxy without faults; started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        module = ["objects.moto_server"] if VENDOR == "s3" else ["objects.emulators", VENDOR]
        self.server = ServerProcess(*module, log=folder / "server.log")
        self.calm = self.proxy()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            _new_bucket(self.server.address), timeout=30
        ) as answer:
            assert answer.status in (200, 201)

    def proxy(self) -> ServerProcess:
        return ServerProcess("objects.fault_proxy", str(self.server.port), VENDOR, log=self.folder / "proxy.log")

    def bucket(self, proxy: ServerProcess) -> Bucket:
        return Bucket(proxy.address, BUCKET, f"test-{next(_numbers)}", Faults(proxy))

    def stop(self) -> None:
        self.calm.kill()
        self.server.kill()


def use(bucket: Bucket, names: pytest.MonkeyPatch) -> Bucket:
    """Set this process's environment for the bucket: clients in it, and processes it starts, use that."""
    for name, value in bucket.env.items():
        names.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AZURE_ENDPOINT"):
        names.delenv(name, raising=False)
    return bucket


@pytest.fixture(scope="session")
def storage() -> Iterator[Storage]:
    """The storage server of this worker."""
    if VENDOR != "s3" and command_of(VENDOR) is None:
        pytest.skip(f"EVALPIPE_TEST_STORAGE={VENDOR} needs {COMMANDS[VENDOR]}")
    for package in ("moto", "obstore"):
        pytest.importorskip(package, reason=f"needs the package {package}: pip install 'evalpipe[dev]'")
    with tempfile.TemporaryDirectory() as folder:
        started = Storage(Path(folder))
        yield started
        started.stop()


@pytest.fixture
def bucket(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty prefix without faults."""
    return use(storage.bucket(storage.calm), monkeypatch)


@pytest.fixture
def faulty_bucket(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty prefix behind a fault proxy of this test's own (`faults.set(…)`: at first it makes none)."""
    proxy = storage.proxy()
    yield use(storage.bucket(proxy), monkeypatch)
    proxy.kill()


__all__: Sequence[str] = ("bucket", "faulty_bucket", "storage")
