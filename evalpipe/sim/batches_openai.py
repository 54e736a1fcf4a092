"""OpenAI's batches: files uploaded as multipart forms, batches over them, results as files."""

from __future__ import annotations

import time
from email import message_from_bytes
from email.policy import HTTP
from random import Random
from typing import Any
from urllib.parse import parse_qs

from evalpipe.providers.base import ENDPOINTS
from evalpipe.providers.jsontext import MalformedJSONError, as_dict, as_text, dump, parse
from evalpipe.sim.batch_run import answer_item
from evalpipe.sim.batch_store import BatchStore, StoredBatch
from evalpipe.sim.batches_anthropic import read_limit
from evalpipe.sim.engine import Engine
from evalpipe.sim.headers import common_headers, error_answer
from evalpipe.sim.http import HttpRequest, Responder
from evalpipe.sim.ledger import Ledger
from evalpipe.sim.requests import BadRequestError
from evalpipe.sim.serve import plain_body

MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
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
            if len(content.encode("utf-8", "replace")) > MAX_BYTES:
                await _refuse(responder, 413, f"a file may hold {MAX_BYTES} bytes")
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
        if not 1 <= len(items) <= MAX_REQUESTS or len({custom_id for custom_id, _ in items}) < len(items):
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
