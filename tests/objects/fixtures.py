"""Fixtures: an empty prefix in a bucket of an S3 server on this machine, without faults or with settable ones."""

from __future__ import annotations

import itertools
import json
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from objects.server_process import ServerProcess

BUCKET = "evalpipe-test"
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


@dataclass(frozen=True)
class Bucket:
    """An empty prefix of a bucket, and how a client reaches it."""

    endpoint: str
    name: str
    prefix: str
    faults: Faults

    @property
    def url(self) -> str:
        return f"s3://{self.name}/{self.prefix}"

    @property
    def env(self) -> dict[str, str]:
        """What a client's process needs in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
        }


class Storage:
    """One S3 server with its bucket, and a proxy without faults; started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.moto = ServerProcess("objects.moto_server", log=folder / "moto.log")
        self.calm = self.proxy()
        request = urllib.request.Request(f"{self.moto.address}/{BUCKET}", method="PUT")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            assert answer.status == 200

    def proxy(self) -> ServerProcess:
        return ServerProcess("objects.fault_proxy", str(self.moto.port), log=self.folder / "proxy.log")

    def bucket(self, proxy: ServerProcess) -> Bucket:
        return Bucket(proxy.address, BUCKET, f"test-{next(_numbers)}", Faults(proxy))

    def stop(self) -> None:
        self.calm.kill()
        self.moto.kill()


def use(bucket: Bucket, names: pytest.MonkeyPatch) -> Bucket:
    """Set this process's environment for the bucket: clients in it, and processes it starts, use that."""
    for name, value in bucket.env.items():
        names.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
        names.delenv(name, raising=False)
    return bucket


@pytest.fixture(scope="session")
def storage() -> Iterator[Storage]:
    """The S3 server of this worker."""
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
