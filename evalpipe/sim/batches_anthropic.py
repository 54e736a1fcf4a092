"""Anthropic Message Batches: create, list, retrieve, results, cancel, delete."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from random import Random
from typing import Any
from urllib.parse import parse_qs

from evalpipe.providers.jsontext import MalformedJSONError, as_dict, as_list, as_text, dump, parse
from evalpipe.sim.batch_run import answer_item
from evalpipe.sim.batch_store import BatchStore, StoredBatch
from evalpipe.sim.engine import Engine
from evalpipe.sim.headers import common_headers, error_answer
from evalpipe.sim.http import HttpRequest, Responder
from evalpipe.sim.ledger import Ledger
from evalpipe.sim.requests import BadRequestError
from evalpipe.sim.serve import plain_body

MAX_REQUESTS, MAX_BYTES = 100_000, 256_000_000
_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PREFIX = "/v1/messages/batches"
_DAY_S = 24 * 3600


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
            if not parts and request.method == "POST" and len(request.body) > MAX_BYTES:
                await _refuse(responder, 413, f"a batch may hold {MAX_BYTES} bytes, this one has {len(request.body)}")
            elif not parts and request.method == "POST":
                await _send(responder, self._show(self._create(parse(request.body)), base))
            elif not parts and request.method == "GET":
                await _send(responder, self._list(request, base))
            else:
                await self._one(parts, request, responder, base)
        except (MalformedJSONError, BadRequestError) as error:
            await _refuse(responder, 400, str(error))

    async def _one(self, parts: list[str], request: HttpRequest, responder: Responder, base: str) -> None:
        batch = self._store.batches.get(parts[0]) if parts else None
        if batch is None or batch.vendor != "anthropic":
            await _refuse(responder, 404, "batch not found")
            return
        self._advance(batch)
        action = (request.method, *parts[1:])
        if action == ("GET",):
            await _send(responder, self._show(batch, base))
        elif action == ("POST", "cancel"):
            if batch.ended_at is None and batch.cancel_at is None:
                batch.cancel_at = time.time()
                self._store.save(batch)
            self._advance(batch)
            await _send(responder, self._show(batch, base))
        elif action == ("GET", "results"):
            if batch.ended_at is None:
                await _refuse(responder, 404, "the batch has no results yet")
                return
            lines = "".join(dump(row) + "\n" for row in batch.results).encode("utf-8", "replace")
            headers = [("content-type", "application/x-jsonl"), *common_headers("messages", "req_sim")]
            await responder.whole(200, headers, lines)
        else:
            await _refuse(responder, 404, "unknown route")

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
        if not 1 <= len(items) <= MAX_REQUESTS:
            raise BadRequestError(f"requests: from 1 to {MAX_REQUESTS} are expected, got {len(items)}")
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


async def _send(responder: Responder, document: dict[str, Any]) -> None:
    headers = [("content-type", "application/json"), *common_headers("messages", "req_sim")]
    await responder.whole(200, headers, dump(document).encode("utf-8", "replace"))


async def _refuse(responder: Responder, status: int, message: str) -> None:
    headers = [("content-type", "application/json"), *common_headers("messages", "req_sim")]
    await responder.whole(status, headers, error_answer("messages", status, "req_sim", message))
