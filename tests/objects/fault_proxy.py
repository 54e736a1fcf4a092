"""A proxy in front of a storage server that makes conditional puts one step and answers a settable share of requests with faults.

Conditional puts (S3: `If-None-Match: *`, `If-Match: ETAG`; Google: `x-goog-if-generation-match`) are checked here, with a HEAD
under a lock of the key which every other write of that key takes too: whatever the server behind does about them, the check and
the write are one step, as at the vendor's. Azurite checks Azure's by itself, under the same lock. fake-gcs-server takes uploads
by Google's JSON API only: puts of the XML API are passed on to it as such.

`python -m objects.fault_proxy UPSTREAM_PORT [s3 | az | gs]` runs it as a process, `FaultProxy(...).run_in_thread()` in this one.
Control, at `/_faults` beside the buckets: GET gives {"rates", "requests", "faults"}; PUT sets any of

    rates: {KIND: share of requests, 0 to 1}    seed: a number; the same requests in the same order meet the same faults
    next: [{"kind", "method", "key"}]           faults for the next request of that method whose key holds the text, one each
    delay_s: seconds of `delay` and `late`      outage_s: seconds from now in which every connection is refused (reset)
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import random
import re
import socket
import struct
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from objects.server_process import announce, wait_for_parent

KINDS = (
    "internal_error",  # 500 InternalError, nothing done
    "slow_down",  # 503 SlowDown, nothing done
    "conflict",  # 409 ConditionalRequestConflict, nothing done; conditional writes only
    "reset_before",  # the connection is reset before anything is done
    "reset_after",  # done, and the connection is reset instead of an answer
    "delay",  # done, and answered after delay_s
    "late",  # done after delay_s: a client that gave up meanwhile may see its request happen later
    "unconditional",  # done though its condition does not hold, as by a server without conditions; conditional writes only
    "truncated",  # the body of an object ends after half of it; GET of an object only
)
ERRORS = {
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "conflict": (
        409,
        "ConditionalRequestConflict",
        "A conflicting operation occurred. If using PutObject you can retry.",
    ),
}
REASONS = {
    400: "Bad Request", 404: "Not Found", 409: "Conflict", 412: "Precondition Failed",
    500: "Internal Server Error", 503: "Slow Down",
}  # fmt: skip


CONDITIONS = ("if-match", "if-none-match", "x-goog-if-generation-match")


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def path(self) -> str:
        return urllib.parse.unquote(self.target.partition("?")[0])

    @property
    def key(self) -> str:
        """The object's key ("" for a request about a bucket)."""
        return self.path.removeprefix("/").partition("/")[2]

    @property
    def conditions(self) -> list[tuple[str, str]]:
        return [(name.lower(), value) for name, value in self.headers if name.lower() in CONDITIONS]

    @property
    def is_conditional_write(self) -> bool:
        return self.method in ("PUT", "POST") and bool(self.conditions)

    @property
    def keys_written(self) -> list[str]:
        """Paths whose locks the request holds, in the order in which everyone takes them."""
        if self.method == "POST" and "delete" in urllib.parse.parse_qs(
            self.target.partition("?")[2], keep_blank_values=True
        ):
            keys = re.findall(r"<Key>(.*?)</Key>", self.body.decode("utf-8", "replace"))
            return sorted({f"{self.path.rstrip('/')}/{html.unescape(key)}" for key in keys})
        return [self.path] if self.key and self.method in ("PUT", "POST", "DELETE") else []


@dataclass(frozen=True)
class Response:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


@dataclass
class Faults:
    """Which request meets which fault, and how many did."""

    rates: dict[str, float] = field(default_factory=dict)
    delay_s: float = 5.0
    next: list[dict[str, str]] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    outage_until: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def change(self, wanted: dict[str, Any]) -> None:
        """Raises: ValueError for an unknown name or kind, or rates that are more than 1 together."""
        unknown = set(wanted) - {"rates", "seed", "next", "delay_s", "outage_s"}
        kinds = [*wanted.get("rates", ()), *(one.get("kind") for one in wanted.get("next", ()))]
        if unknown or not set(kinds) <= set(KINDS) or sum(wanted.get("rates", {}).values()) > 1:
            raise ValueError(f"faults {wanted}: expected rates of {', '.join(KINDS)} with a sum of at most 1")
        self.rates = wanted.get("rates", self.rates)
        self.delay_s = wanted.get("delay_s", self.delay_s)
        self.next += wanted.get("next", [])
        if "seed" in wanted:
            self.random.seed(wanted["seed"])
        if "outage_s" in wanted:
            self.outage_until = asyncio.get_running_loop().time() + wanted["outage_s"]

    def of(self, request: Request) -> str | None:
        """The fault that this request meets, counted; None for most."""
        self.requests[request.method] += 1
        drawn = self.random.random()
        kind = self._planned(request) or self._by_rate(drawn)
        if kind is None or (kind in ("conflict", "unconditional") and not request.is_conditional_write):
            return None
        if kind == "truncated" and not (request.method == "GET" and request.key):
            return None
        self.made[kind] += 1
        return kind

    def _planned(self, request: Request) -> str | None:
        for plan in self.next:
            if plan.get("method", request.method) == request.method and plan.get("key", "") in request.key:
                self.next.remove(plan)
                return plan["kind"]
        return None

    def _by_rate(self, drawn: float) -> str | None:
        for kind in KINDS:
            drawn -= self.rates.get(kind, 0.0)
            if drawn < 0:
                return kind
        return None


class FaultProxy:
    """One listening proxy. `port` is set once it listens."""

    def __init__(self, upstream_port: int, vendor: str = "s3") -> None:
        self.upstream_port, self.vendor = upstream_port, vendor
        self.faults = Faults()
        self.port = 0
        self._locks: dict[str, asyncio.Lock] = {}
        self._parts: dict[str, dict[int, bytes]] = {}
        """uploads to Google in parts that are not finished, or were"""

    async def serve(self, listening: threading.Event | None = None) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=1 << 20, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        if listening is not None:
            listening.set()
        async with server:
            await server.serve_forever()

    def run_in_thread(self) -> None:
        """Serve from a thread of this process until it ends; returns when it listens."""
        listening = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self.serve(listening)), daemon=True).start()
        if not listening.wait(10):
            raise RuntimeError("the fault proxy does not listen")

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader, writer)) is not None:
                if request.path == "/_faults":
                    _write(writer, request, self._control(request))
                    continue
                if asyncio.get_running_loop().time() < self.faults.outage_until:
                    self.faults.made["outage"] += 1
                    _reset(writer)
                    return
                if not await self._answer(request, writer):
                    return
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as clients do
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer one request, with its fault. False: the connection has ended with it."""
        kind = self.faults.of(request)
        if kind in ERRORS:
            _write(writer, request, _error(*ERRORS[kind], request.path))
            return True
        if kind == "reset_before":
            _reset(writer)
            return False
        if kind == "late":
            await asyncio.sleep(self.faults.delay_s)
        response = await self._perform(request, checked=kind != "unconditional")
        if kind == "delay":
            await asyncio.sleep(self.faults.delay_s)
        if kind == "reset_after":
            _reset(writer)
            return False
        if kind == "truncated" and response.status in (200, 206) and len(response.body) > 1:
            _write(writer, request, response, part=len(response.body) // 2)
            return False
        _write(writer, request, response)
        return True

    async def _perform(self, request: Request, *, checked: bool) -> Response:
        """What the server behind does, with the conditions of a write checked in the same step, where they are `checked`."""
        async with self._locked(request.keys_written):
            if not request.is_conditional_write or self.vendor == "az":
                return await self._forward(request)
            if checked and (refusal := await self._refusal(request)):
                return refusal
            plain = [
                (name, value) for name, value in request.headers if (name.lower(), value) not in request.conditions
            ]
            return await self._forward(Request(request.method, request.target, plain, request.body))

    async def _refusal(self, request: Request) -> Response | None:
        """What the vendor answers where a condition of a write does not hold."""
        kept = [(name, value) for name, value in request.headers if name.lower() in ("host", "authorization")]
        head = await self._forward(Request("HEAD", request.target.partition("?")[0], kept, b""))
        etag = head.header("etag") if head.status == 200 else None
        for name, value in request.conditions:
            if name == "x-goog-if-generation-match":
                if value == ((head.header("x-goog-generation") if head.status == 200 else None) or "0"):
                    continue
                return _error(
                    412, "PreconditionFailed", "At least one of the pre-conditions did not hold", request.path
                )
            if name == "if-match" and etag is None:
                return _error(404, "NoSuchKey", "The specified key does not exist.", request.path)
            holds = etag is None if name == "if-none-match" else value.strip('"') == (etag or "").strip('"')
            if not holds:
                return _error(
                    412, "PreconditionFailed", "At least one of the pre-conditions did not hold", request.path
                )
        return None

    @contextlib.asynccontextmanager
    async def _locked(self, keys: list[str]) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as held:
            for key in keys:
                await held.enter_async_context(self._locks.setdefault(key, asyncio.Lock()))
            yield

    async def _forward(self, request: Request) -> Response:
        if self.vendor == "gs" and request.method in ("PUT", "POST") and request.key:
            return await self._as_upload(request)
        return await self._send(request)

    async def _as_upload(self, request: Request) -> Response:
        """A put of Google's XML API, or a step of one in parts, as an upload of its JSON API."""
        query = urllib.parse.parse_qs(request.target.partition("?")[2], keep_blank_values=True)
        upload = query.get("uploadId", [""])[0]
        if "uploads" in query:
            self._parts[name := f"upload-{len(self._parts)}"] = {}
            return _xml(f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>")
        if "partNumber" in query:
            self._parts[upload][int(query["partNumber"][0])] = request.body
            return Response(200, [("ETag", f'"{query["partNumber"][0]}"')], b"")
        body = b"".join(part for _, part in sorted(self._parts[upload].items())) if upload else request.body
        bucket, _, key = request.path.removeprefix("/").partition("/")
        target = f"/upload/storage/v1/b/{bucket}/o?{urllib.parse.urlencode({'uploadType': 'media', 'name': key})}"
        done = await self._send(Request("POST", target, request.headers, body))
        if done.status != 200:
            return done
        made = json.loads(done.body)
        version = [("ETag", f'"{made["etag"]}"'), ("x-goog-generation", str(made["generation"]))]
        if not upload:
            return Response(200, version, b"")
        shown = f"<CompleteMultipartUploadResult><ETag>{made['etag']}</ETag></CompleteMultipartUploadResult>"
        return Response(200, version, shown.encode())

    async def _send(self, request: Request) -> Response:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=1 << 20)
        dropped = {"connection", "content-length", "transfer-encoding", "expect"}
        lines = [
            f"{request.method} {request.target} HTTP/1.1",
            "Connection: close",
            f"Content-Length: {len(request.body)}",
        ]
        if self.vendor == "gs":  # fake-gcs-server serves the XML API under its own name only
            dropped.add("host")
            lines.append(f"Host: 127.0.0.1:{self.upstream_port}")
        lines += [f"{name}: {value}" for name, value in request.headers if name.lower() not in dropped]
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + request.body)
            status_line, headers = _head(await reader.readuntil(b"\r\n\r\n"))
            length = next((value for name, value in headers if name.lower() == "content-length"), None)
            status = int(status_line.split(" ")[1])
            if request.method == "HEAD" or status in (204, 304):
                body = b""
            elif any(name.lower() == "transfer-encoding" for name, _ in headers):
                body = await _chunked(reader)
            else:
                body = await reader.read(-1) if length is None else await reader.readexactly(int(length))
            return Response(status, headers, body)
        except asyncio.IncompleteReadError:
            raise ConnectionError("the server behind the proxy ended the connection") from None
        finally:
            writer.close()

    def _control(self, request: Request) -> Response:
        try:
            if request.method == "PUT":
                self.faults.change(json.loads(request.body))
        except ValueError as error:
            return _error(400, "InvalidArgument", str(error), request.path)
        shown = {"rates": self.faults.rates, "requests": self.faults.requests, "faults": self.faults.made}
        return Response(200, [("Content-Type", "application/json")], json.dumps(shown).encode())


def _xml(text: str) -> Response:
    return Response(200, [("Content-Type", "application/xml")], text.encode())


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    try:
        line, headers = _head(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError:
        return None
    method, target, _ = line.split(" ")
    request = Request(method, target, headers, b"")
    if (request.header("expect") or "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "chunked" in (request.header("transfer-encoding") or ""):
        body = await _chunked(reader)
    else:
        body = await reader.readexactly(int(request.header("content-length") or 0))
    return Request(method, target, headers, body)


def _head(data: bytes) -> tuple[str, list[tuple[str, str]]]:
    first, *lines = data.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return first, [(name.strip(), value.strip()) for name, _, value in pairs]


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return bytes(body)


def _write(writer: asyncio.StreamWriter, request: Request, response: Response, part: int | None = None) -> None:
    """Write the response, or its headers and the first `part` bytes of its body."""
    dropped = ("connection", "transfer-encoding", "content-length", "date", "server")
    lines = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'OK')}"]
    lines += [f"{name}: {value}" for name, value in response.headers if name.lower() not in dropped]
    length = response.header("content-length") if request.method == "HEAD" else str(len(response.body))
    if response.status not in (204, 304):
        lines.append(f"Content-Length: {length or 0}")
    body = b"" if request.method == "HEAD" else response.body[:part]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Reset the connection, so that the client sees ECONNRESET and no end of a stream."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _error(status: int, code: str, message: str, path: str) -> Response:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{html.escape(message)}</Message><Resource>{html.escape(path)}</Resource></Error>"
    )
    return Response(status, [("Content-Type", "application/xml")], text.encode())


def main() -> None:
    proxy = FaultProxy(int(sys.argv[1]), *sys.argv[2:])
    proxy.run_in_thread()
    announce(proxy.port)
    wait_for_parent()


if __name__ == "__main__":
    main()
