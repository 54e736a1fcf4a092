"""Both vendors' batch APIs through their SDKs, in one shape."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from evalpipe.calls.client import (
    CallOutcome,
    ModelResponse,
    ModelSettings,
    failed_reply,
    http_failure,
    key_in_environment,
    masked,
    open_sdk,
    read_reply,
    remember_keys,
)
from evalpipe.errors import ConfigError
from evalpipe.providers.base import ENDPOINTS

MARK = "evalpipe_batch"
"""OpenAI batches carry their intent's name under this key of their metadata."""


class BatchCallError(Exception):
    """A call of a batch API failed. Unless its outcome excludes it, a submission may have arrived."""

    def __init__(self, reply: ModelResponse) -> None:
        super().__init__(f"{reply.kind or reply.outcome}: {reply.message}")
        self.reply = reply

    @property
    def is_final(self) -> bool:
        return self.reply.outcome in (CallOutcome.FATAL, CallOutcome.REJECTED)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchStatus:
    """A batch as its provider shows it. `mark`: evalpipe's own name for it, where the provider stores one."""

    batch_id: str
    created_at: datetime
    ended: bool
    n_requests: int
    counts: dict[str, int] = field(default_factory=dict)
    mark: str | None = None
    state: str = ""


RequestBody = Mapping[str, Any]
"""one request of a batch, as its endpoint takes it"""


class BatchClient(Protocol):
    """`results` gives (custom_id, reply); a request that was never answered has a reply with the reason as its kind."""

    max_requests: int
    max_bytes: int

    def size_of(self, custom_id: str, body: RequestBody) -> int:
        """Bytes of one request of a submission, at most."""
        ...

    async def submit(self, name: str, requests: Sequence[tuple[str, RequestBody]]) -> str: ...

    async def status(self, batch_id: str) -> BatchStatus: ...

    def newest_first(self) -> AsyncIterator[BatchStatus]: ...

    def results(self, batch_id: str) -> AsyncIterator[tuple[str, ModelResponse]]: ...

    async def cancel(self, batch_id: str) -> None: ...

    async def close(self) -> None: ...


def open_batch_client(spec: ModelSettings, endpoint: str | None = None) -> BatchClient:
    """The batch client of a judge or an arm, for requests of one endpoint (default: the provider's first). Raises ConfigError
    where its provider has no batches."""
    remember_keys(spec, key_in_environment(spec))
    if spec.provider == "anthropic":
        return _MessageBatches(spec)
    if spec.provider == "openai":
        return _OpenAIBatches(spec, endpoint or "chat.completions")
    raise ConfigError(f"{spec.who}: provider {spec.provider!r} has no batches; leave out --batch")


async def _with_error_map(call: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await call()
    except Exception as error:
        raise BatchCallError(failed_reply(error, None)) from error


def never_answered(kind: str, message: str = "") -> ModelResponse:
    """The reply of a request that its batch ended without."""
    return ModelResponse(outcome=CallOutcome.REJECTED, kind=kind, message=masked(message))


class _MessageBatches:
    """Anthropic Message Batches. A list shows no custom_ids: those are only in the results."""

    max_requests, max_bytes = 100_000, 256_000_000

    def __init__(self, spec: ModelSettings) -> None:
        self._client = open_sdk(spec, 4)
        self._batches = self._client.messages.batches

    def size_of(self, custom_id: str, body: RequestBody) -> int:
        return len(json.dumps(_item(custom_id, body))) + 1  # all ASCII: whatever the SDK writes is no longer

    async def submit(self, name: str, requests: Sequence[tuple[str, RequestBody]]) -> str:
        items = [_item(custom_id, body) for custom_id, body in requests]
        return str((await _with_error_map(lambda: self._batches.create(requests=items))).id)

    async def status(self, batch_id: str) -> BatchStatus:
        return _message_batch_status(await _with_error_map(lambda: self._batches.retrieve(batch_id)))

    async def newest_first(self) -> AsyncIterator[BatchStatus]:
        page = await _with_error_map(lambda: self._batches.list(limit=100))
        while True:
            for batch in page.data:
                yield _message_batch_status(batch)
            if not page.has_next_page():
                return
            page = await _with_error_map(page.get_next_page)

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, ModelResponse]]:
        lines = await _with_error_map(lambda: self._batches.results(batch_id))
        while True:
            try:
                line = await anext(lines)
            except StopAsyncIteration:
                return
            except ValueError as error:  # a line that is not JSON: cut off, or broken on its way
                broken = ModelResponse(
                    outcome=CallOutcome.BROKEN, kind="malformed", message="a line of the results is not JSON"
                )
                raise BatchCallError(broken) from error
            except Exception as error:
                raise BatchCallError(failed_reply(error, None)) from error
            result = line.result
            if result.type == "succeeded":
                body = json.dumps(result.message.to_dict(mode="json")).encode()
                yield line.custom_id, read_reply("messages", 200, lines.http_response.headers, body)
            else:
                error_body = result.error.error if result.type == "errored" else None
                yield line.custom_id, never_answered(result.type, getattr(error_body, "message", None) or "")

    async def cancel(self, batch_id: str) -> None:
        await _with_error_map(lambda: self._batches.cancel(batch_id))

    async def close(self) -> None:
        await self._client.close()


class _OpenAIBatches:
    """OpenAI's batches over uploaded files; the intent's name travels in the metadata."""

    max_requests, max_bytes = 50_000, 200_000_000

    def __init__(self, spec: ModelSettings, endpoint: str) -> None:
        self._client = open_sdk(spec, 4)
        self._endpoint = endpoint
        self._path = next(path for path, name in ENDPOINTS.items() if name == endpoint)

    def size_of(self, custom_id: str, body: RequestBody) -> int:
        return len(self._line(custom_id, body))

    def _line(self, custom_id: str, body: RequestBody) -> bytes:
        item = {"custom_id": custom_id, "method": "POST", "url": self._path, "body": dict(body)}
        return json.dumps(item).encode() + b"\n"

    async def submit(self, name: str, requests: Sequence[tuple[str, RequestBody]]) -> str:
        lines = b"".join(self._line(custom_id, body) for custom_id, body in requests)
        upload = (f"{name}.jsonl", io.BytesIO(lines), "application/jsonl")
        file = await _with_error_map(lambda: self._client.files.create(file=upload, purpose="batch"))
        made = await _with_error_map(
            lambda: self._client.batches.create(
                input_file_id=file.id,
                endpoint=self._path,
                completion_window="24h",
                metadata={MARK: name},
            )
        )
        return str(made.id)

    async def status(self, batch_id: str) -> BatchStatus:
        return _openai_batch_status(await _with_error_map(lambda: self._client.batches.retrieve(batch_id)))

    async def newest_first(self) -> AsyncIterator[BatchStatus]:
        page = await _with_error_map(lambda: self._client.batches.list(limit=100))
        while True:
            for batch in page.data:
                yield _openai_batch_status(batch)
            if not page.has_next_page():
                return
            page = await _with_error_map(page.get_next_page)

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, ModelResponse]]:
        batch = await _with_error_map(lambda: self._client.batches.retrieve(batch_id))
        for file_id in (batch.output_file_id, batch.error_file_id):
            if not file_id:
                continue
            content = await _with_error_map(partial(self._client.files.content, file_id))
            for line in content.content.splitlines():
                if line.strip():
                    yield _openai_result(self._endpoint, json.loads(line), content.response.headers)

    async def cancel(self, batch_id: str) -> None:
        await _with_error_map(lambda: self._client.batches.cancel(batch_id))

    async def close(self) -> None:
        await self._client.close()


def _message_batch_status(batch: Any) -> BatchStatus:
    counts = {name: int(n) for name, n in batch.request_counts.to_dict().items()}
    return BatchStatus(
        batch_id=batch.id,
        created_at=batch.created_at,
        ended=batch.processing_status == "ended",
        n_requests=sum(counts.values()),
        counts=counts,
        state=batch.processing_status,
    )


def _openai_batch_status(batch: Any) -> BatchStatus:
    counts = {name: int(n or 0) for name, n in (batch.request_counts.to_dict() if batch.request_counts else {}).items()}
    return BatchStatus(
        batch_id=batch.id,
        created_at=datetime.fromtimestamp(batch.created_at, UTC),
        ended=batch.status in ("completed", "failed", "expired", "cancelled"),
        n_requests=counts.get("total", 0),
        counts=counts,
        mark=(batch.metadata or {}).get(MARK),
        state=batch.status,
    )


def _item(custom_id: str, body: RequestBody) -> dict[str, Any]:
    return {"custom_id": custom_id, "params": dict(body)}


def _openai_result(endpoint: str, line: dict[str, Any], headers: Mapping[str, str]) -> tuple[str, ModelResponse]:
    custom_id = str(line.get("custom_id"))
    response, error = line.get("response"), line.get("error")
    if response and response.get("status_code") == 200:
        return custom_id, read_reply(endpoint, 200, headers, json.dumps(response.get("body")).encode())
    if error:
        kind = str(error.get("code") or "errored")
        return custom_id, never_answered("expired" if "expired" in kind else kind, str(error.get("message") or ""))
    status, body = (response or {}).get("status_code"), (response or {}).get("body")
    if isinstance(status, int) and isinstance(body, dict):
        failed = http_failure(status, {}, body, "", None)
        return custom_id, failed if failed.outcome is CallOutcome.REFUSED else never_answered(
            failed.kind, failed.message
        )
    return custom_id, never_answered(f"http_{status}")
