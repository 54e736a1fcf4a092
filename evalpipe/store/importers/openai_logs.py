"""OpenAI and whoever speaks like it: batches, stored completions, requests with their responses, whole
conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from evalpipe.providers.paths import endpoint_of
from evalpipe.store.importers.base import BrokenLineError
from evalpipe.store.importers.messages import is_message
from evalpipe.store.importers.responses import is_answer
from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, opened

NO_REQUESTS = "answers of a batch without their prompts: load the batch's input file together with this one"
_TIMES = (
    "timestamp", "started_at", "created_at", "start_time", "time", "ts", "date", "datetime", "request_time",
    "requested_at", "timestamp_ms", "logging_time", "created",
)  # fmt: skip
_LATENCIES = (
    "latency_ms",
    "execution_time_ms",
    "duration_ms",
    "response_time_ms",
    "elapsed_ms",
    "latencyMs",
    "durationMs",
)
_MEASURES = {
    "latency_ms": _LATENCIES,
    "latency_s": ("latency_s", "latency_seconds", "duration_s", "elapsed_s", "response_time", "elapsed"),
    "ttft_ms": ("ttft_ms", "time_to_first_token_ms", "timeToFirstTokenMs"),
    "cost": ("cost_usd", "cost", "total_cost", "response_cost"),
    "usage": ("usage", "response.usage", "token_usage"),
    "error": ("error", "error_message", "exception"),
    "status": ("status_code", "http_status", "response.status_code"),
}


def is_batch_input(document: Any) -> bool:
    return isinstance(document, Mapping) and {"custom_id", "body"} <= document.keys() and "response" not in document


def batch_companion(document: Any) -> tuple[str, Any] | None:
    return (str(document["custom_id"]), document["body"]) if is_batch_input(document) else None


def batch_joined(document: Any, memory: Mapping[str, Any]) -> Any:
    found = memory.get(str(document.get("custom_id"))) if isinstance(document, Mapping) else None
    return document if found is None or is_batch_input(document) else {**document, "_request": found[-1]}


def batch_left_out(call: Any) -> str | None:
    if is_batch_input(call):
        return "requests of a batch, whose answers are in its output file: load both together"
    return None


def batch_amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    error = opened(find(call, "error")) or find(call, "response.body.error")
    row["error"] = error or None
    row["note"] = NO_REQUESTS if row["prompt"] is None else None


BATCH = Format(
    name="openai",
    help="OpenAI batches (input and output), stored completions, own logs of requests and responses, messages",
    shapes=(
        ("custom_id", "response.body"),
        ("custom_id", "method", "body"),
        ("custom_id", "url", "body"),
        ("custom_id", "response", "error"),
    ),
    left_out=batch_left_out,
    amend=batch_amend,
    companion=batch_companion,
    joined=batch_joined,
    fields={
        "id": ("custom_id", "id"),
        "prompt": ("_request",),
        "answer": ("response.body", "response"),
        "status": ("response.status_code",),
        "endpoint": ("_url",),
    },
)


def _is_logged_request(document: Any) -> bool:
    """A request and its response side by side, under the names people give them."""
    if not isinstance(document, Mapping) or "call_type" in document:  # LiteLLM's
        return False
    request, response = opened(_request(document)), opened(_response(document))
    if isinstance(request, Mapping) and endpoint_of(urlsplit(str(request.get("uri") or request.get("url") or "")).path):
        return False  # a cassette
    answered = response is not None or document.get("error") or document.get("status_code") is not None
    if isinstance(request, Mapping):
        body = opened(request.get("body"))
        bodies = [request, body] if isinstance(body, Mapping) else [request]
        return bool(answered) and any(
            key in one for one in bodies for key in ("messages", "input", "prompt", "contents")
        )
    if isinstance(request, list):
        return bool(request) and all(is_message(one) for one in request) and bool(answered)
    return False


_REQUESTS = (
    "request", "request_body", "full_request", "req", "requestBody", "llm_request", "completion_request", "payload",
    "api_request",
    "input", "inputs",
)  # fmt: skip
_RESPONSES = (
    "response", "response_body", "full_response", "resp", "responseBody", "llm_response", "completion", "completion_response",
    "api_response", "output", "outputs", "result",
)  # fmt: skip


def _request(document: Mapping[str, Any]) -> Any:
    return next((document[key] for key in _REQUESTS if document.get(key) is not None), document.get("messages"))


def _response(document: Mapping[str, Any]) -> Any:
    found = next((document[key] for key in _RESPONSES if document.get(key) is not None), None)
    return (
        found
        if found is not None
        else {"choices": document["choices"]}
        if "choices" in document and "messages" in document
        else None
    )


def _logged_amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    row["prompt"], row["answer"] = _request(call), _response(call)


REQUESTS = Format(
    name="openai",
    help=BATCH.help,
    matches=_is_logged_request,
    amend=_logged_amend,
    fields={
        "id": ("request_id", "requestId", "id", "uuid", "response.id", "call_id"),
        "start": _TIMES,
        "end": ("ended_at", "end_time", "finished_at", "completed_at"),
        "model_requested": ("request.model", "model"),
        "model": ("response.model", "model"),
        "provider": ("provider",),
        "streamed": ("stream", "request.stream"),
        "variant": ("variant", "arm", "experiment_arm", "ab_group"),
        "meta": ("metadata", "meta"),
        **_MEASURES,
    },
)


def _is_stored(document: Any) -> bool:
    """A completion, a response or a message as the API answers it, alone or with its input."""
    if not isinstance(document, Mapping) or "call_type" in document:
        return False
    kind = document.get("object")
    if kind in {"chat.completion", "text_completion", "response", "chat.completion.chunk"}:
        return True
    return (document.get("type") == "message" and document.get("role") == "assistant" and "content" in document) or (
        isinstance(document.get("choices"), list)
        and ("usage" in document or "model" in document)
        and is_answer(document)
    )


def _stored_amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    row["answer"] = call
    kept = next((call[key] for key in ("messages", "input", "prompt", "request") if call.get(key) is not None), None)
    row["prompt"] = {"messages": kept} if isinstance(kept, list) else kept
    row["system"] = call.get("instructions")
    if call.get("error"):
        row["error"] = call["error"]


STORED = Format(
    name="openai",
    help=BATCH.help,
    matches=_is_stored,
    amend=_stored_amend,
    fields={
        "id": ("id",),
        "start": ("created_at", "created"),
        "unit": ("user", "metadata.user_id", "safety_identifier"),
        "system": (),
        "meta": ("metadata",),
        "error": (),
    },
)


def _is_conversation(document: Any) -> bool:
    """Messages that end with an answer, as training sets and chat exports have them."""
    if not isinstance(document, Mapping) or "call_type" in document:
        return False
    messages = opened(document.get("messages", document.get("conversations", document.get("conversation"))))
    return isinstance(messages, list) and bool(messages) and all(is_message(one) for one in messages)


def _conversation_amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    messages = opened(row["conversation_log"])
    if isinstance(messages, list) and messages and isinstance(messages[0], Mapping) and call.get("system"):
        row["conversation_log"] = {"messages": [{"role": "system", "content": call["system"]}, *messages]}
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, Mapping) and last.get("role", last.get("from")) in {"user", "human", "system", "tool"}:
        raise BrokenLineError("the conversation ends without an answer")


CONVERSATIONS = Format(
    name="openai",
    help=BATCH.help,
    matches=_is_conversation,
    amend=_conversation_amend,
    fields={
        "id": ("id", "request_id", "uuid"),
        "conversation_log": ("messages", "conversations", "conversation"),
        "start": _TIMES,
        "model": ("model",),
        "variant": ("variant", "arm"),
        "meta": ("metadata",),
        **{key: paths for key, paths in _MEASURES.items() if key != "error"},
    },
)

IMPORTERS = tuple(table.importer() for table in (BATCH, REQUESTS, STORED, CONVERSATIONS))
