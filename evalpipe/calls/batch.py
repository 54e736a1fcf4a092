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
    JudgeResponse,
    Messages,
    ModelSettings,
    chat_params,
    failed_reply,
    http_failure,
    key_in_environment,
    masked,
    message_params,
    open_sdk,
    read_reply,
    remember_keys,
)
from evalpipe.errors import ConfigError

MARK = "evalpipe_batch"
"""OpenAI batches carry their intent's name under this key of their metadata."""


class BatchCallError(Exception):
    """A call of a batch API failed. Unless its fate says that nothing was done, a submission may have arrived."""

    def __init__(self, reply: JudgeResponse) -> None:
        super().__init__(f"{reply.kind or reply.fate}: {reply.message}")
        self.reply = reply

    @property
    def is_final(self) -> bool:
        return self.reply.fate in (CallOutcome.FATAL, CallOutcome.REJECTED)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchStatus:
    """A batch as its provider shows it. `mark`: our own name for it, where the provider keeps such a thing."""

    batch_id: str
    created_at: datetime
    ended: bool
    n_requests: int
    counts: dict[str, int] = field(default_factory=dict)
    mark: str | None = None
    state: str = ""


class BatchClient(Protocol):
    """`results` gives (custom_id, reply); a request that was never answered has a reply with the reason as its kind."""

    max_requests: int
    max_bytes: int

    def size_of(self, custom_id: str, turns: Messages) -> int:
        """Bytes of one request of a submission, at most."""
        ...

    async def submit(self, name: str, requests: Sequence[tuple[str, Messages]]) -> str: ...

    async def see(self, batch_id: str) -> BatchStatus: ...

    def newest_first(self) -> AsyncIterator[BatchStatus]: ...

    def results(self, batch_id: str) -> AsyncIterator[tuple[str, JudgeResponse]]: ...

    async def cancel(self, batch_id: str) -> None: ...

    async def close(self) -> None: ...


def open_batch_client(spec: ModelSettings) -> BatchClient:
    """The batch client of a judge. Raises ConfigError where its provider has no batches."""
    remember_keys(spec, key_in_environment(spec))
    if spec.provider == "anthropic":
        return _MessageBatches(spec)
    if spec.provider == "openai":
        return _OpenAIBatches(spec)
    raise ConfigError(f"judge {spec.name!r}: provider {spec.provider!r} has no batches; leave out --batch")


async def _door(call: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await call()
    except Exception as error:
        raise BatchCallError(failed_reply(error, None)) from error


def never_answered(kind: str, message: str = "") -> JudgeResponse:
    """The reply of a request that its batch ended without."""
    return JudgeResponse(fate=CallOutcome.REJECTED, kind=kind, message=masked(message))


class _MessageBatches:
    """Anthropic Message Batches. A list shows no custom_ids: those are only in the results."""

    max_requests, max_bytes = 100_000, 256_000_000

    def __init__(self, spec: ModelSettings) -> None:
        self._spec = spec
        self._client = open_sdk(spec, 4)
        self._batches = self._client.messages.batches

    def size_of(self, custom_id: str, turns: Messages) -> int:
        return len(json.dumps(self._item(custom_id, turns))) + 1  # all ASCII: whatever the SDK writes is no longer

    def _item(self, custom_id: str, turns: Messages) -> dict[str, Any]:
        return {"custom_id": custom_id, "params": {**message_params(self._spec, turns), **self._spec.params}}

    async def submit(self, name: str, requests: Sequence[tuple[str, Messages]]) -> str:
        items = [self._item(custom_id, turns) for custom_id, turns in requests]
        return str((await _door(lambda: self._batches.create(requests=items))).id)

    async def see(self, batch_id: str) -> BatchStatus:
        return _seen_message_batch(await _door(lambda: self._batches.retrieve(batch_id)))

    async def newest_first(self) -> AsyncIterator[BatchStatus]:
        page = await _door(lambda: self._batches.list(limit=100))
        while True:
            for batch in page.data:
                yield _seen_message_batch(batch)
            if not page.has_next_page():
                return
            page = await _door(page.get_next_page)

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, JudgeResponse]]:
        lines = await _door(lambda: self._batches.results(batch_id))
        while True:
            try:
                line = await anext(lines)
            except StopAsyncIteration:
                return
            except ValueError as error:  # a line that is not JSON: cut off, or broken on its way
                broken = JudgeResponse(
                    fate=CallOutcome.BROKEN, kind="malformed", message="a line of the results is not JSON"
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
        await _door(lambda: self._batches.cancel(batch_id))

    async def close(self) -> None:
        await self._client.close()


class _OpenAIBatches:
    """OpenAI's batches over uploaded files; the intent's name travels in the metadata."""

    max_requests, max_bytes = 50_000, 200_000_000

    def __init__(self, spec: ModelSettings) -> None:
        self._spec = spec
        self._client = open_sdk(spec, 4)

    def size_of(self, custom_id: str, turns: Messages) -> int:
        return len(self._line(custom_id, turns))

    def _line(self, custom_id: str, turns: Messages) -> bytes:
        body = {**chat_params(self._spec, turns), **self._spec.params}
        item = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(item).encode() + b"\n"

    async def submit(self, name: str, requests: Sequence[tuple[str, Messages]]) -> str:
        lines = b"".join(self._line(custom_id, turns) for custom_id, turns in requests)
        upload = (f"{name}.jsonl", io.BytesIO(lines), "application/jsonl")
        file = await _door(lambda: self._client.files.create(file=upload, purpose="batch"))
        made = await _door(
            lambda: self._client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={MARK: name},
            )
        )
        return str(made.id)

    async def see(self, batch_id: str) -> BatchStatus:
        return _seen_openai_batch(await _door(lambda: self._client.batches.retrieve(batch_id)))

    async def newest_first(self) -> AsyncIterator[BatchStatus]:
        page = await _door(lambda: self._client.batches.list(limit=100))
        while True:
            for batch in page.data:
                yield _seen_openai_batch(batch)
            if not page.has_next_page():
                return
            page = await _door(page.get_next_page)

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, JudgeResponse]]:
        batch = await _door(lambda: self._client.batches.retrieve(batch_id))
        for file_id in (batch.output_file_id, batch.error_file_id):
            if not file_id:
                continue
            content = await _door(partial(self._client.files.content, file_id))
            for line in content.content.splitlines():
                if line.strip():
                    yield _openai_result(json.loads(line), content.response.headers)

    async def cancel(self, batch_id: str) -> None:
        await _door(lambda: self._client.batches.cancel(batch_id))

    async def close(self) -> None:
        await self._client.close()


def _seen_message_batch(batch: Any) -> BatchStatus:
    counts = {name: int(n) for name, n in batch.request_counts.to_dict().items()}
    return BatchStatus(
        batch_id=batch.id,
        created_at=batch.created_at,
        ended=batch.processing_status == "ended",
        n_requests=sum(counts.values()),
        counts=counts,
        state=batch.processing_status,
    )


def _seen_openai_batch(batch: Any) -> BatchStatus:
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


def _openai_result(line: dict[str, Any], headers: Mapping[str, str]) -> tuple[str, JudgeResponse]:
    custom_id = str(line.get("custom_id"))
    response, error = line.get("response"), line.get("error")
    if response and response.get("status_code") == 200:
        return custom_id, read_reply("chat.completions", 200, headers, json.dumps(response.get("body")).encode())
    if error:
        kind = str(error.get("code") or "errored")
        return custom_id, never_answered("expired" if "expired" in kind else kind, str(error.get("message") or ""))
    status, body = (response or {}).get("status_code"), (response or {}).get("body")
    if isinstance(status, int) and isinstance(body, dict):
        failed = http_failure(status, {}, body, "", None)
        return custom_id, failed if failed.fate is CallOutcome.REFUSED else never_answered(failed.kind, failed.message)
    return custom_id, never_answered(f"http_{status}")
