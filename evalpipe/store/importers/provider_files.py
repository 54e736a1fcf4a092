"""Files of the model providers themselves: OpenAI's and Anthropic's batches, stored completions, logged requests with their
responses, conversations, and recorded HTTP exchanges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from evalpipe.identity import fingerprint
from evalpipe.models import Arm, Exchange, Role
from evalpipe.providers.paths import endpoint_of
from evalpipe.providers.registry import read_answer, read_request
from evalpipe.store.importers.base import (
    BrokenLineError,
    Fields,
    Imported,
    Importer,
    as_mapping,
    json_text,
    prompt_text,
    unknown_time,
)
from evalpipe.store.importers.messages import is_message
from evalpipe.store.importers.responses import is_answer
from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, first, name, opened

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


def _is_openai_batch_input(document: Any) -> bool:
    return isinstance(document, Mapping) and {"custom_id", "body"} <= document.keys() and "response" not in document


def _openai_batch_companion(document: Any) -> tuple[str, Any] | None:
    return (str(document["custom_id"]), document["body"]) if _is_openai_batch_input(document) else None


def _openai_batch_joined(document: Any, memory: Mapping[str, Any]) -> Any:
    found = memory.get(str(document.get("custom_id"))) if isinstance(document, Mapping) else None
    return document if found is None or _is_openai_batch_input(document) else {**document, "_request": found[-1]}


def _openai_batch_left_out(call: Any) -> str | None:
    if _is_openai_batch_input(call):
        return "requests of a batch, whose answers are in its output file: load both together"
    return None


def _openai_batch_amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
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
    left_out=_openai_batch_left_out,
    amend=_openai_batch_amend,
    companion=_openai_batch_companion,
    joined=_openai_batch_joined,
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

OPENAI_IMPORTERS = tuple(table.importer() for table in (BATCH, REQUESTS, STORED, CONVERSATIONS))


# Anthropic's message batches: the requests, and the results that answer them.


def _anthropic_is_request(document: Any) -> bool:
    return isinstance(document, Mapping) and {"custom_id", "params"} <= document.keys()


def _anthropic_matches(document: Any) -> bool:
    if _anthropic_is_request(document):
        return True
    result = opened(document.get("result")) if isinstance(document, Mapping) else None
    return isinstance(result, Mapping) and "custom_id" in document and "type" in result


def _anthropic_left_out(call: Any) -> str | None:
    if _anthropic_is_request(call):
        return "requests of a batch, whose answers are in its results file: load both together"
    kind = find(call, "result.type")
    return f"requests of a batch that were {kind}" if kind in {"canceled", "expired"} else None


def _anthropic_companion(document: Any) -> tuple[str, Any] | None:
    return (str(document["custom_id"]), document["params"]) if _anthropic_is_request(document) else None


def _anthropic_joined(document: Any, memory: Mapping[str, Any]) -> Any:
    found = memory.get(str(document.get("custom_id"))) if isinstance(document, Mapping) else None
    return document if found is None or _anthropic_is_request(document) else {**document, "_request": found[-1]}


def _anthropic_amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    if find(call, "result.type") == "errored":
        error = opened(find(call, "result.error"))
        inner = error.get("error") if isinstance(error, Mapping) and isinstance(error.get("error"), Mapping) else error
        row["error"] = inner or "errored"


ANTHROPIC = Format(
    name="anthropic",
    help="Anthropic message batches (requests and results)",
    matches=_anthropic_matches,
    left_out=_anthropic_left_out,
    amend=_anthropic_amend,
    companion=_anthropic_companion,
    joined=_anthropic_joined,
    fields={"id": ("custom_id",), "prompt": ("_request",), "answer": ("result.message",), "error": (), "provider": ()},
)
ANTHROPIC_IMPORTER = ANTHROPIC.importer()


# Recorded HTTP exchanges with OpenAI or Anthropic (cassettes): the request's and the response's body as JSON.


def _http_matches(document: Any) -> bool:
    if not isinstance(document, Mapping):
        return False
    request, response = as_mapping(document.get("request")), as_mapping(document.get("response"))
    return "body" in request and "body" in response and _http_endpoint(request) is not None


def _http_read(document: Any, line: int) -> Imported:
    if not _http_matches(document):
        raise BrokenLineError("no request and response with bodies at an endpoint that is known")
    request, response = document["request"], document["response"]
    endpoint = _http_endpoint(request) or ""
    body, answered = _http_text(request["body"]), _http_text(response["body"])
    status = Fields(response, "response").count("status")
    headers = {str(name).lower(): str(value) for name, value in as_mapping(response.get("headers")).items()}
    headers = {name: value for name, value in headers.items() if name != "content-encoding"}  # the text is decoded
    view, answer = read_request(endpoint, body), read_answer(endpoint, status or 200, headers, answered.encode())
    reported = as_mapping(response["body"])
    exchange = Exchange(
        request_id=Fields(reported).text("id") or fingerprint([body, answered], length=32),
        arm=Arm.CONTROL,
        role=Role.IMPORTED,
        unit_id=name(first(as_mapping(opened(body)), ("user", "metadata.user_id", "safety_identifier"))),
        conversation_id=None,
        started_at=Fields(reported).time("created") or unknown_time(line),
        provider="anthropic" if endpoint == "messages" else "openai",
        endpoint=endpoint,
        model_requested=view.model,
        model=answer.model,
        request=body,
        response=answer.assembled,
        text=answer.text,
        tool_calls=json_text(answer.tool_calls or None),
        finish_reason=answer.finish_reason,
        outcome=answer.outcome,
        status=status,
        error_type=answer.error_type,
        error_message=answer.error_message,
        streamed=answer.streamed,
        input_tokens=answer.usage.input_tokens,
        cached_input_tokens=answer.usage.cached_input_tokens,
        cache_write_tokens=answer.usage.cache_write_tokens,
        output_tokens=answer.usage.output_tokens,
        reasoning_tokens=answer.usage.reasoning_tokens,
        prompt=prompt_text(view.messages),
        turn=view.turn,
        step=view.step,
    )
    return Imported(exchanges=[replace(exchange, latency_ms=_http_latency_ms(headers))])


def _http_endpoint(request: Mapping[str, Any]) -> str | None:
    return endpoint_of(urlsplit(str(request.get("uri") or request.get("url") or "")).path)


def _http_text(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body)


def _http_latency_ms(headers: Mapping[str, str]) -> float | None:
    """The provider's own processing time; a cassette holds no other."""
    reported = headers.get("openai-processing-ms", "")
    return float(reported) if reported.isdigit() else None


HTTP_IMPORTER = Importer(
    name="http",
    help="recorded HTTP exchanges (cassettes) with OpenAI or Anthropic",
    matches=_http_matches,
    read=_http_read,
)
