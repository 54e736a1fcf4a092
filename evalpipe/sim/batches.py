"""Batch APIs of a simulated provider: OpenAI's files and batches, Anthropic's message batches, and where they are kept."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import HTTP
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs

from evalpipe.errors import ConfigError
from evalpipe.providers.base import ENDPOINTS
from evalpipe.providers.json_values import MalformedJSONError, as_dict, as_list, as_text, dump, parse
from evalpipe.sim.completions import Call, Engine, Ledger, Planned, plain_body
from evalpipe.sim.http import HttpRequest, Responder
from evalpipe.sim.limits import common_headers, error_answer
from evalpipe.sim.requests import BadRequestError, SimRequest, read_sim_request

OPENAI_MAX_REQUESTS, OPENAI_MAX_BYTES = 50_000, 200_000_000
_DAY_S = 24 * 3600


class OpenAIBatches:
    """Files and batches of one simulated OpenAI."""

    def __init__(self, engine: Engine, ledger: Ledger, store: BatchStore) -> None:
        self._engine = engine
        self._ledger = ledger
        self._store = store

    async def handle(self, path: str, request: HttpRequest, responder: Responder) -> None:
        """Answer a request below /v1/files or /v1/batches."""
        _, kind, *rest = path.strip("/").split("/")
        try:
            if kind == "files":
                await self._files(rest, request, responder)
            else:
                await self._batches(rest, request, responder)
        except (MalformedJSONError, BadRequestError) as error:
            await _refuse(responder, 400, str(error))

    async def _files(self, rest: list[str], request: HttpRequest, responder: Responder) -> None:
        if not rest and request.method == "POST":
            name, content, purpose = _uploaded(request)
            if len(content.encode("utf-8", "replace")) > OPENAI_MAX_BYTES:
                await _refuse(responder, 413, f"a file may hold {OPENAI_MAX_BYTES} bytes")
                return
            await _send(responder, self._save_file(name, content, purpose))
            return
        if not rest:
            rows = [_shown_file(file) for file in self._store.files.values()]
            await _send(responder, {"object": "list", "data": rows, "has_more": False})
            return
        file = self._store.files.get(rest[0])
        if file is None:
            await _refuse(responder, 404, "no such file")
        elif rest[1:] == ["content"]:
            headers = [("content-type", "application/octet-stream"), *common_headers("chat.completions", "req_sim")]
            await responder.whole(200, headers, str(file["content"]).encode("utf-8", "replace"))
        else:
            await _send(responder, _shown_file(file))

    async def _batches(self, rest: list[str], request: HttpRequest, responder: Responder) -> None:
        if not rest and request.method == "POST":
            await _send(responder, _show(self._create(as_dict(parse(request.body)))))
            return
        if not rest:
            await _send(responder, self._list(request))
            return
        batch = self._store.batches.get(rest[0])
        if batch is None or batch.vendor != "openai":
            await _refuse(responder, 404, "no such batch")
            return
        if rest[1:] == ["cancel"] and request.method == "POST" and batch.ended_at is None:
            batch.cancel_at = batch.cancel_at or time.time()
        self._advance(batch)
        await _send(responder, _show(batch))

    def _create(self, document: dict[str, Any]) -> StoredBatch:
        file = self._store.files.get(str(document.get("input_file_id")))
        endpoint = ENDPOINTS.get(str(document.get("endpoint")))
        if file is None or endpoint is None or endpoint == "messages":
            raise BadRequestError("input_file_id or endpoint is unknown")
        items: list[tuple[str, dict[str, Any]]] = []
        for line in str(file["content"]).split("\n"):
            if line.strip():
                row = as_dict(parse(line))
                items.append((as_text(row.get("custom_id")) or "", as_dict(row.get("body"))))
        if not 1 <= len(items) <= OPENAI_MAX_REQUESTS or len({custom_id for custom_id, _ in items}) < len(items):
            raise BadRequestError("the file holds no requests, too many, or a custom_id twice")
        now = time.time()
        batch = StoredBatch(
            id=self._store.new_id("batch"),
            vendor="openai",
            endpoint=endpoint,
            created_at=now,
            items=items,
            ends_at=now + self._engine.settings.batch_seconds,
            input_file_id=file["id"],
            metadata=document.get("metadata") if isinstance(document.get("metadata"), dict) else None,
        )
        self._store.save(batch)
        return batch

    def _advance(self, batch: StoredBatch) -> None:
        now = time.time()
        if batch.ended_at is not None or (now < batch.ends_at and batch.cancel_at is None):
            return
        rng = Random(batch.id)
        if batch.cancel_at is None:
            for custom_id, body in batch.items:
                row = self._answer(batch, custom_id, body, rng)
                kind = "failed" if row["error"] or row["response"]["status_code"] != 200 else "completed"
                batch.counts[kind] = batch.counts.get(kind, 0) + 1
                batch.results.append(row)
            rng.shuffle(batch.results)
            content = "".join(dump(row) + "\n" for row in batch.results)
            batch.output_file_id = self._save_file("output.jsonl", content, "batch_output")["id"]
        batch.ended_at = now
        self._store.save(batch)

    def _answer(self, batch: StoredBatch, custom_id: str, body: dict[str, Any], rng: Random) -> dict[str, Any]:
        answered = answer_item(
            self._engine,
            self._ledger,
            endpoint=batch.endpoint,
            body=body,
            fault=None,
            batch_id=batch.id,
            custom_id=custom_id,
        )
        request_id = self._engine.next_id("req_sim")
        if isinstance(answered, str):
            status, answer = 400, as_dict(parse(error_answer(batch.endpoint, 400, request_id, answered)))
        else:
            status, answer = 200, plain_body(*answered)
        response = {"status_code": status, "request_id": request_id, "body": answer}
        return {
            "id": f"batch_req_{rng.getrandbits(64):016x}",
            "custom_id": custom_id,
            "response": response,
            "error": None,
        }

    def _save_file(self, name: str, content: str, purpose: str) -> dict[str, Any]:
        document = {
            "id": self._store.new_id("file"),
            "object": "file",
            "bytes": len(content.encode("utf-8", "replace")),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self._store.save_file(document, content)
        return document

    def _list(self, request: HttpRequest) -> dict[str, Any]:
        query = parse_qs(request.target.partition("?")[2])
        batches = [batch for batch in reversed(list(self._store.batches.values())) if batch.vendor == "openai"]
        after = query.get("after", [""])[0]
        ids = [batch.id for batch in batches]
        if after in ids:
            batches = batches[ids.index(after) + 1 :]
        limit = read_limit(query.get("limit", ["20"])[0])
        for batch in batches[:limit]:
            self._advance(batch)
        page = [_show(batch) for batch in batches[:limit]]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return {"object": "list", "data": page, "has_more": len(batches) > limit, **ends}


def _show(batch: StoredBatch) -> dict[str, Any]:
    cancelled = batch.cancel_at is not None
    status = (
        ("cancelled" if cancelled else "completed")
        if batch.ended_at
        else ("cancelling" if cancelled else "in_progress")
    )
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": next(path for path, name in ENDPOINTS.items() if name == batch.endpoint),
        "errors": None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": status,
        "output_file_id": batch.output_file_id,
        "error_file_id": None,
        "created_at": int(batch.created_at),
        "in_progress_at": int(batch.created_at),
        "expires_at": int(batch.created_at) + _DAY_S,
        "completed_at": int(batch.ended_at) if batch.ended_at and not cancelled else None,
        "cancelled_at": int(batch.ended_at) if batch.ended_at and cancelled else None,
        "request_counts": {
            "total": len(batch.items),
            "completed": batch.counts.get("completed", 0),
            "failed": batch.counts.get("failed", 0),
        },
        "metadata": batch.metadata,
    }


def _shown_file(file: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in file.items() if key != "content"}


def _uploaded(request: HttpRequest) -> tuple[str, str, str]:
    """(name, content, purpose) of a multipart upload."""
    head = f"content-type: {request.headers.get('content-type', '')}\r\n\r\n".encode("latin-1", "replace")
    form = message_from_bytes(head + request.body, policy=HTTP)
    name, content, purpose = "", None, "batch"
    for part in form.iter_parts() if form.is_multipart() else ():
        field = part.get_param("name", header="content-disposition")
        payload = part.get_payload(decode=True)
        if not isinstance(payload, bytes):
            continue
        if field == "file":
            name, content = part.get_filename() or "upload", str(payload, "utf-8", "replace")
        elif field == "purpose":
            purpose = str(payload, "utf-8", "replace")
    if content is None:
        raise BadRequestError("file: field required")
    return name, content, purpose


async def _send(responder: Responder, document: dict[str, Any]) -> None:
    headers = [("content-type", "application/json"), *common_headers("chat.completions", "req_sim")]
    await responder.whole(200, headers, dump(document).encode("utf-8", "replace"))


async def _refuse(responder: Responder, status: int, message: str) -> None:
    headers = [("content-type", "application/json"), *common_headers("chat.completions", "req_sim")]
    await responder.whole(status, headers, error_answer("chat.completions", status, "req_sim", message))


# Anthropic Message Batches: create, list, retrieve, results, cancel, delete.


ANTHROPIC_MAX_REQUESTS, ANTHROPIC_MAX_BYTES = 100_000, 256_000_000
_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PREFIX = "/v1/messages/batches"


class MessageBatches:
    """The batch API of one simulated Anthropic."""

    def __init__(self, engine: Engine, ledger: Ledger, store: BatchStore) -> None:
        self._engine = engine
        self._ledger = ledger
        self._store = store

    async def handle(self, path: str, request: HttpRequest, responder: Responder) -> None:
        """Answer a request below /v1/messages/batches."""
        base = f"http://{request.headers.get('host', 'localhost')}"
        parts = [part for part in path.removeprefix(_PREFIX).split("/") if part]
        try:
            if not parts and request.method == "POST" and len(request.body) > ANTHROPIC_MAX_BYTES:
                await _refuse_anthropic(
                    responder, 413, f"a batch may hold {ANTHROPIC_MAX_BYTES} bytes, this one has {len(request.body)}"
                )
            elif not parts and request.method == "POST":
                await _send_anthropic(responder, self._show(self._create(parse(request.body)), base))
            elif not parts and request.method == "GET":
                await _send_anthropic(responder, self._list(request, base))
            else:
                await self._one(parts, request, responder, base)
        except (MalformedJSONError, BadRequestError) as error:
            await _refuse_anthropic(responder, 400, str(error))

    async def _one(self, parts: list[str], request: HttpRequest, responder: Responder, base: str) -> None:
        batch = self._store.batches.get(parts[0]) if parts else None
        if batch is None or batch.vendor != "anthropic":
            await _refuse_anthropic(responder, 404, "batch not found")
            return
        self._advance(batch)
        action = (request.method, *parts[1:])
        if action == ("GET",):
            await _send_anthropic(responder, self._show(batch, base))
        elif action == ("POST", "cancel"):
            if batch.ended_at is None and batch.cancel_at is None:
                batch.cancel_at = time.time()
                self._store.save(batch)
            self._advance(batch)
            await _send_anthropic(responder, self._show(batch, base))
        elif action == ("GET", "results"):
            if batch.ended_at is None:
                await _refuse_anthropic(responder, 404, "the batch has no results yet")
                return
            lines = "".join(dump(row) + "\n" for row in batch.results).encode("utf-8", "replace")
            headers = [("content-type", "application/x-jsonl"), *common_headers("messages", "req_sim")]
            await responder.whole(200, headers, lines)
        else:
            await _refuse_anthropic(responder, 404, "unknown route")

    def _create(self, document: Any) -> StoredBatch:
        items: list[tuple[str, dict[str, Any]]] = []
        seen: set[str] = set()
        for item in map(as_dict, as_list(as_dict(document).get("requests"))):
            custom_id = as_text(item.get("custom_id")) or ""
            if _CUSTOM_ID.fullmatch(custom_id) is None or custom_id in seen:
                raise BadRequestError(f"requests: custom_id {custom_id[:80]!r} is not unique or not of the right form")
            if as_dict(item.get("params")).get("stream"):
                raise BadRequestError("requests: stream is not supported in batches")
            seen.add(custom_id)
            items.append((custom_id, as_dict(item.get("params"))))
        if not 1 <= len(items) <= ANTHROPIC_MAX_REQUESTS:
            raise BadRequestError(f"requests: from 1 to {ANTHROPIC_MAX_REQUESTS} are expected, got {len(items)}")
        now = time.time()
        batch = StoredBatch(
            id=self._store.new_id("msgbatch"),
            vendor="anthropic",
            endpoint="messages",
            created_at=now,
            items=items,
            ends_at=now + self._engine.settings.batch_seconds,
        )
        self._store.save(batch)
        return batch

    def _advance(self, batch: StoredBatch) -> None:
        """End the batch where its time has come."""
        now = time.time()
        if batch.ended_at is not None or (now < batch.ends_at and batch.cancel_at is None):
            return
        faults = Random(batch.id)
        for custom_id, body in batch.items:
            result: dict[str, Any] = {"type": "canceled"}
            if batch.cancel_at is None:
                result = self._answer(batch, custom_id, body, faults)
            kind = str(result["type"])
            batch.counts[kind] = batch.counts.get(kind, 0) + 1
            batch.results.append({"custom_id": custom_id, "result": result})
        # Results come in no order.
        faults.shuffle(batch.results)
        batch.ended_at = now
        self._store.save(batch)

    def _answer(self, batch: StoredBatch, custom_id: str, body: dict[str, Any], faults: Random) -> dict[str, Any]:
        answered = answer_item(
            self._engine,
            self._ledger,
            endpoint="messages",
            body=body,
            fault=_draw(self._engine, str(body.get("model")), faults),
            batch_id=batch.id,
            custom_id=custom_id,
        )
        if isinstance(answered, str):
            error = {
                "type": "error",
                "error": {"type": "invalid_request_error", "message": answered},
                "request_id": None,
            }
            return {"type": "errored", "error": error}
        message = plain_body(*answered)
        message["usage"]["service_tier"] = "batch"
        return {"type": "succeeded", "message": message}

    def _list(self, request: HttpRequest, base: str) -> dict[str, Any]:
        query = parse_qs(request.target.partition("?")[2])
        newest_first = [batch for batch in reversed(list(self._store.batches.values())) if batch.vendor == "anthropic"]
        limit = read_limit(_first(query, "limit", "20"))
        ids = [batch.id for batch in newest_first]
        after, before = _first(query, "after_id", ""), _first(query, "before_id", "")
        if after in ids:
            newest_first = newest_first[ids.index(after) + 1 :]
        elif before in ids:
            newest_first = newest_first[max(ids.index(before) - limit, 0) : ids.index(before)]
        page = newest_first[:limit]
        for batch in page:
            self._advance(batch)
        return {
            "data": [self._show(batch, base) for batch in page],
            "has_more": len(newest_first) > limit,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }

    def _show(self, batch: StoredBatch, base: str) -> dict[str, Any]:
        ended = batch.ended_at is not None
        counts = {kind: batch.counts.get(kind, 0) for kind in ("succeeded", "errored", "canceled", "expired")}
        status = "ended" if ended else "canceling" if batch.cancel_at is not None else "in_progress"
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": {"processing": 0 if ended else len(batch.items), **counts},
            "created_at": _instant(batch.created_at),
            "expires_at": _instant(batch.created_at + _DAY_S),
            "ended_at": _instant(batch.ended_at),
            "cancel_initiated_at": _instant(batch.cancel_at),
            "archived_at": None,
            "results_url": f"{base}{_PREFIX}/{batch.id}/results" if ended else None,
        }


def read_limit(text: str) -> int:
    """A page size of a query, from 1 to 1,000. Raises BadRequestError."""
    try:
        return min(max(int(text), 1), 1000)
    except ValueError:
        raise BadRequestError(f"limit: {text[:40]!r} is not a number") from None


def _draw(engine: Engine, model: str, rng: Random) -> str | None:
    draw = rng.random()
    for name, rate in engine.settings.faults_of(model).items():
        if draw < rate:
            return name
        draw -= rate
    return None


def _instant(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _first(query: dict[str, list[str]], name: str, default: str) -> str:
    return query.get(name, [default])[0]


async def _send_anthropic(responder: Responder, document: dict[str, Any]) -> None:
    headers = [("content-type", "application/json"), *common_headers("messages", "req_sim")]
    await responder.whole(200, headers, dump(document).encode("utf-8", "replace"))


async def _refuse_anthropic(responder: Responder, status: int, message: str) -> None:
    headers = [("content-type", "application/json"), *common_headers("messages", "req_sim")]
    await responder.whole(status, headers, error_answer("messages", status, "req_sim", message))


# The store of batches: in memory, and in a folder too where they are to survive a restart.


@dataclass(kw_only=True, slots=True)
class StoredBatch:
    """A batch of either vendor. `items`: (custom_id, request body). `results` is filled when the batch ends: JSONL rows in
    the vendor's shape. Times are seconds since the epoch."""

    id: str
    vendor: str
    endpoint: str
    created_at: float
    items: list[tuple[str, dict[str, Any]]]
    ends_at: float
    ended_at: float | None = None
    cancel_at: float | None = None
    input_file_id: str | None = None
    output_file_id: str | None = None
    metadata: dict[str, Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)


class BatchStore:
    """Batches and uploaded files by id, oldest first. `folder` None: in memory only."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.batches: dict[str, StoredBatch] = {}
        self.files: dict[str, dict[str, Any]] = {}
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.json")):
                self._read(path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"cannot use the state folder {folder}: {error}") from error
        self.batches = dict(sorted(self.batches.items(), key=lambda item: item[1].created_at))

    def new_id(self, prefix: str) -> str:
        """An id no earlier run used."""
        return f"{prefix}_sim_{time.time_ns():x}{len(self.batches) + len(self.files):04x}"

    def save(self, batch: StoredBatch) -> None:
        self.batches[batch.id] = batch
        self._write(batch.id, {"kind": "batch", **asdict(batch)})

    def save_file(self, document: dict[str, Any], content: str) -> None:
        self.files[document["id"]] = {**document, "content": content}
        self._write(document["id"], {"kind": "file", **self.files[document["id"]]})

    def _read(self, path: Path) -> None:
        document = json.loads(path.read_text("utf-8"))
        if document.pop("kind") == "file":
            self.files[document["id"]] = document
        else:
            document["items"] = [(custom_id, body) for custom_id, body in document["items"]]
            self.batches[document["id"]] = StoredBatch(**document)

    def _write(self, name: str, document: dict[str, Any]) -> None:
        if self._folder is None:
            return
        # Whole under its final name or not there at all: the server may be killed at any time.
        partial = self._folder / f".{name}.partial"
        partial.write_text(json.dumps(document), "utf-8")
        partial.replace(self._folder / f"{name}.json")


# The end of a batch: every item answered, billed at half price, and in the ledger.


_ANSWER_FAULTS = frozenset({"empty", "refusal", "max_tokens"})


def answer_item(
    engine: Engine,
    ledger: Ledger,
    *,
    endpoint: str,
    body: dict[str, Any],
    fault: str | None,
    batch_id: str,
    custom_id: str,
) -> tuple[SimRequest, Planned] | str:
    """The answer to one item, or the message of its error. Faults that break connections are errors in a batch."""
    model = str(body.get("model"))
    result: tuple[SimRequest, Planned] | str
    try:
        request = read_sim_request(endpoint, body)
        if fault is not None and fault not in _ANSWER_FAULTS and fault != "slow":
            result = "The server had an error while processing this request."
        else:
            result = (request, engine.plan(request, fault))
    except BadRequestError as error:
        result = str(error)
    planned = None if isinstance(result, str) else result[1]
    usage = None if planned is None else planned.reply.usage
    ledger.add(
        Call(
            id=planned.reply.id if planned else engine.next_id("req_sim"),
            endpoint=endpoint,
            model=model,
            kind="batch_ok" if planned else "batch_errored",
            question=planned.question if planned else custom_id,
            status=200 if planned else 400,
            source=planned.source if planned is not None else "",
            batch_id=batch_id,
            custom_id=custom_id,
            billed=planned is not None,
            input_tokens=(usage.input_tokens or 0) if usage else 0,
            cached_input_tokens=(usage.cached_input_tokens or 0) if usage else 0,
            output_tokens=(usage.output_tokens or 0) if usage else 0,
            usd=ledger.price(usage, model=model, endpoint=endpoint, batch=True) if usage else None,
        )
    )
    return result
