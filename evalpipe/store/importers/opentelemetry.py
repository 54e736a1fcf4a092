"""OpenTelemetry: spans of all exporters in one shape, read by the GenAI semantic conventions or Langfuse's attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from evalpipe.identity import fingerprint
from evalpipe.store.importers.base import json_text
from evalpipe.store.importers.responses import NOTHING, LoggedResponse, read_logged_response
from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, first, has, instant, name, number, opened

_CALLS = frozenset(
    {
        "chat",
        "text_completion",
        "generate_content",
        "completion",
        "response",
        "responses",
        "generate",
        "text_generation",
        "messages",
    }
)
_OPERATION = (
    "gen_ai.operation.name",
    "openinference.span.kind",
    "traceloop.span.kind",
    "llm.request.type",
    "langfuse.observation.type",
    "langfuse.type",
    "mlflow.spanType",
)
_WORDS = {
    "llm": "call", "generation": "call", "chat_model": "call", "embedding": "embeddings", "embed": "embeddings",
    "embeddings": "embeddings",
    "invoke_agent": "agent spans", "create_agent": "agent spans", "agent": "agent spans", "execute_tool": "tool spans",
    "tool": "tool spans",
    "rerank": "rerankers", "reranker": "rerankers", "retriever": "retrievers",
}  # fmt: skip
_MODEL = (
    "gen_ai.request.model",
    "llm.model_name",
    "ai.model.id",
    "langfuse.observation.model.name",
    "langfuse.observation.model",
    "llm.request.model",
)
DETAILS = "gen_ai.client.inference.operation.details"
"""The event that holds a whole call."""


def kind_of_span(span: Span) -> str:
    """ "call", or what the span is instead, as it is counted."""
    if span.is_record:
        named = str(span.attributes.get("event.name") or "")
        return (
            "call"
            if named == DETAILS
            else "events that belong to spans"
            if named.startswith("gen_ai.")
            else "log records"
        )
    vercel = str(span.attributes.get("ai.operationId") or span.attributes.get("operation.name") or "")
    if vercel.startswith("ai."):
        return _vercel(vercel.split(" ")[0])
    for key in _OPERATION:
        word = str(opened_word(span.attributes.get(key)) or "").lower()
        if word in _CALLS or _WORDS.get(word) == "call":
            return "call"
        if word:
            return _WORDS.get(word, f"{word.replace('_', ' ')} spans")
    keys = span.attributes.keys()
    if first(span.attributes, _MODEL) is not None or any(
        key.startswith(
            (
                "gen_ai.prompt",
                "gen_ai.completion",
                "gen_ai.input.messages",
                "gen_ai.output.messages",
                "llm.input_messages",
                "langfuse.observation.input",
            )
        )
        for key in keys
    ):
        return "call"
    for prefix, word in (
        ("http.", "HTTP spans"),
        ("url.", "HTTP spans"),
        ("db.", "database spans"),
        ("rpc.", "RPC spans"),
    ):
        if any(key.startswith(prefix) for key in keys):
            return word
    return "other spans"


def opened_word(value: Any) -> Any:
    return value.strip('"') if isinstance(value, str) else value


def _vercel(operation: str) -> str:
    if operation.endswith((".doGenerate", ".doStream")):
        return "call"
    if "embed" in operation.lower():
        return "embeddings"
    return "tool spans" if operation == "ai.toolCall" else "outer spans, whose calls are spans of their own"


def calls(document: Any) -> Iterator[Any]:
    for span in spans_of(document):
        yield {"_span": span}


def matches(document: Any) -> bool:
    return is_spans(document)


def left_out(call: Any) -> str | None:
    kind = kind_of_span(call["_span"])
    return None if kind == "call" else kind


def amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    span: Span = call["_span"]
    attributes = dict(span.attributes)
    for _, values, _ in span.events:
        for key, value in values.items():
            if key.startswith("gen_ai.") and not isinstance(value, Mapping):
                attributes.setdefault(key, value)
    body = attributes.pop("_body", None)
    if isinstance(body, Mapping):
        attributes = {**body, **attributes}
    row.update({column: first(attributes, paths) for column, paths in _FIELDS.items()})
    ids = [one for one in (span.trace_id, span.span_id) if one]
    when = span.start.isoformat() if span.start else None
    row["id"] = (
        "-".join(ids)
        if len(ids) == 2
        else fingerprint([ids, when, span.name, json_text(_plain(attributes))], length=32)
    )
    row["start"], row["end"] = span.start or span.odd_time, span.end
    row["prompt"], row["logged"] = _asked(attributes, span), _response(attributes, span)
    row["answer"] = None
    row["finish_reason"] = _finish(attributes) or row["logged"].finish_reason
    row["usage"] = first(
        attributes, ("langfuse.observation.usage_details", "mlflow.chat.tokenUsage", "langfuse.observation.usage")
    )
    cost = opened(row.get("cost"))
    row["cost"] = cost.get("total") if isinstance(cost, Mapping) else cost
    row["error"], row["error_type"] = _failure(attributes, span)
    if str(row["error_type"] or "").isdigit() and 400 <= int(row["error_type"]) < 600:
        row["status"] = int(row["error_type"])
    first_token = next(
        (at for named, _, at in span.events if named == "First Token Stream Event" and at is not None), None
    )
    row["first_token"] = first_token or row.get("first_token")
    if row["first_token"] is not None or row["ttft_ms"] is not None or row["ttft_s"] is not None:
        row["streamed"] = True
    row["meta"] = None


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        str(key): value if isinstance(value, str | int | float | bool) else str(value)
        for key, value in attributes.items()
    }


def _asked(attributes: Mapping[str, Any], span: Span) -> Any:
    for prefix in ("gen_ai.input.messages", "gen_ai.prompt", "llm.input_messages", "ai.prompt.messages"):
        messages = indexed(attributes, prefix)
        if messages:
            return messages
    events = _messages_of(attributes, span)
    asked = [message for role, message in events if role != "choice"]
    if asked:
        return asked
    return first(
        attributes,
        ("gen_ai.prompt", "ai.prompt", "langfuse.observation.input", "mlflow.spanInputs", "llm.prompts", "input.value",
         "traceloop.entity.input", "input", "request_data"),
    )  # fmt: skip


def _response(attributes: Mapping[str, Any], span: Span) -> LoggedResponse:
    for prefix in ("gen_ai.output.messages", "gen_ai.completion", "llm.output_messages"):
        answers = indexed(attributes, prefix)
        if answers:
            inner = [
                one["message"] if isinstance(one, Mapping) and isinstance(one.get("message"), Mapping) else one
                for one in answers
            ]
            found = read_logged_response(inner)
            ended = next(
                (one.get("finish_reason") for one in answers if isinstance(one, Mapping) and one.get("finish_reason")),
                None,
            )
            if not found.is_empty:
                return found if found.finish_reason or not ended else _ended(found, str(ended))
    choices = [message for role, message in _messages_of(attributes, span) if role == "choice"]
    if choices:
        choice = choices[0]
        found = read_logged_response(choice.get("message", choice))
        reason = choice.get("finish_reason")
        return found if not reason else _ended(found, str(reason))
    text = first(attributes, ("ai.response.text", "ai.result.text"))
    calls_made = first(attributes, ("ai.response.toolCalls", "ai.result.toolCalls"))
    thing = first(attributes, ("ai.response.object", "ai.result.object"))
    if text is not None or calls_made is not None or thing is not None:
        return read_logged_response(
            {"role": "assistant", "content": text if text is not None else thing, "tool_calls": calls_made}
        )
    whole = first(
        attributes,
        ("gen_ai.completion", "langfuse.observation.output", "mlflow.spanOutputs", "output.value",
        "traceloop.entity.output", "output",
         "response_data"),
    )  # fmt: skip
    return NOTHING if whole is None else read_logged_response(whole)


def _ended(logged: LoggedResponse, reason: str) -> LoggedResponse:
    return replace(logged, finish_reason=reason)


def _messages_of(attributes: Mapping[str, Any], span: Span) -> list[tuple[str, dict[str, Any]]]:
    """(role, message) of the events that hold a message each; the role of an answer is "choice"."""
    events: list[tuple[str, Mapping[str, Any]]] = [(named, values) for named, values, _ in span.events]
    for one in opened(attributes.get("events") or attributes.get("all_messages_events")) or []:
        if isinstance(one, Mapping):
            events.append((str(one.get("event.name") or one.get("name") or ""), one))
    found: list[tuple[str, dict[str, Any]]] = []
    for named, values in events:
        if named == "gen_ai.content.prompt" and values.get("gen_ai.prompt") is not None:
            prompt = opened(values["gen_ai.prompt"])
            items = prompt if isinstance(prompt, list) else [prompt]
            found += [("user", one if isinstance(one, dict) else {"role": "user", "content": one}) for one in items]
        elif named == "gen_ai.content.completion" and values.get("gen_ai.completion") is not None:
            answer = opened(values["gen_ai.completion"])
            answer = answer[0] if isinstance(answer, list) and answer else answer
            found.append(("choice", answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}))
        elif named == "gen_ai.choice":
            message = opened(values.get("message"))
            found.append(
                (
                    "choice",
                    {**values, "message": message} if isinstance(message, Mapping) else {**values, "role": "assistant"},
                )
            )
        elif named.startswith("gen_ai.") and named.endswith(".message"):
            role = named.split(".")[1]
            if values.get("content") is not None or values.get("tool_calls") is not None:
                found.append((role, {"role": role, **values}))
    return found


def _finish(attributes: Mapping[str, Any]) -> str | None:
    reasons = opened(
        first(
            attributes,
            (
                "gen_ai.response.finish_reasons",
                "ai.response.finishReason",
                "ai.finishReason",
                "llm.finish_reason",
                "gen_ai.completion.0.finish_reason",
                "gen_ai.response.finish_reason",
            ),
        )
    )
    return name(reasons[0]) if isinstance(reasons, list | tuple) and reasons else name(reasons)


def _failure(attributes: Mapping[str, Any], span: Span) -> tuple[str | None, str | None]:
    kind = name(attributes.get("error.type"))
    raised = next((values for named, values, _ in span.events if named == "exception"), {})
    if not (span.failed or kind or str(attributes.get("langfuse.observation.level")) == "ERROR"):
        return None, None
    words = (
        span.message
        or name(attributes.get("langfuse.observation.status_message"))
        or name(raised.get("exception.message"))
    )
    return words or name(attributes.get("error.message")) or kind or "failed", kind or name(
        raised.get("exception.type")
    )


_USER = ("user_id", "userId", "user", "user.id", "customer_id", "end_user_id")
_SESSION = (
    "session_id",
    "sessionId",
    "conversation_id",
    "conversationId",
    "thread_id",
    "threadId",
    "chat_id",
    "chatId",
    "session.id",
)
_HOLDERS = (
    "traceloop.association.properties",
    "ai.telemetry.metadata",
    "langfuse.trace.metadata",
    "metadata",
    "gen_ai.metadata",
)
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "system": ("gen_ai.system_instructions", "gen_ai.request.instructions", "ai.prompt.system"),
    "model_requested": _MODEL,
    "model": ("gen_ai.response.model", "ai.response.model", "llm.response.model", *_MODEL),
    "provider": ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system", "ai.model.provider"),
    "unit": ("user.id", "enduser.id", "langfuse.user.id", "gen_ai.user.id", "langfuse.trace.user_id", "gen_ai.request.user",
             *(f"{holder}.{key}" for holder in _HOLDERS for key in _USER), "user_id"),
    "conversation": ("gen_ai.conversation.id", "session.id", "langfuse.session.id", "gen_ai.conversation_id",
    "langfuse.trace.session_id",
                     *(f"{holder}.{key}" for holder in _HOLDERS for key in _SESSION)),
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt",
    "llm.usage.prompt_tokens",
                     "ai.usage.inputTokens", "ai.usage.promptTokens"),
    "output_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion",
                      "llm.usage.completion_tokens", "ai.usage.outputTokens", "ai.usage.completionTokens"),
    "cached_input_tokens": ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.cached_input_tokens",
                            "llm.token_count.prompt_details.cache_read", "ai.usage.cachedInputTokens",
                            "gen_ai.usage.details.cache_read_tokens", "gen_ai.usage.prompt_tokens_details.cached_tokens"),
    "cache_write_tokens": ("gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_creation_input_tokens",
                           "llm.token_count.prompt_details.cache_write"),
    "reasoning_tokens": ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens",
    "gen_ai.usage.output_tokens.reasoning", "llm.usage.reasoning_tokens",
                         "llm.token_count.completion_details.reasoning", "ai.usage.reasoningTokens"),
    "cost": ("langfuse.observation.cost_details", "gen_ai.usage.cost", "llm.cost.total", "operation.cost", "gen_ai.cost.total"),
    "ttft_ms": ("ai.response.msToFirstChunk", "ai.stream.msToFirstChunk"),
    "ttft_s": ("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token", "gen_ai.client.time_to_first_token"),
    "first_token": ("langfuse.observation.completion_start_time",),
    "streamed": ("gen_ai.request.stream", "llm.is_streaming", "gen_ai.is_streaming", "llm.request.streaming"),
    "variant": (),
    "status": (),
    "endpoint": (),
}  # fmt: skip


# Spans of all exporters in one shape: OTLP, the SDKs' console, Phoenix, Jaeger, Zipkin; attributes flat, events among
# them.


_OTLP = ("resourceSpans", "resource_spans", "resourceLogs", "resource_logs", "batches")


@dataclass(kw_only=True, slots=True)
class Span:
    """One span, or one log record of a GenAI event. `is_record`: the latter."""

    trace_id: str | None
    span_id: str | None
    name: str
    start: datetime | None
    end: datetime | None
    attributes: dict[str, Any]
    events: list[tuple[str, Mapping[str, Any], datetime | None]] = field(default_factory=list)
    failed: bool = False
    message: str | None = None
    is_record: bool = False
    odd_time: str | None = None


def is_spans(document: Any) -> bool:
    """Whether a document is a span or holds spans."""
    if isinstance(document, list):
        return bool(document) and is_spans(document[0])
    if not isinstance(document, Mapping):
        return False
    if any(isinstance(document.get(key), list) for key in _OTLP):
        return True
    if isinstance(document.get("spans"), list) and ("traceID" in document or "processes" in document):
        return True
    if (
        "traceId" in document
        and "id" in document
        and ("tags" in document or "localEndpoint" in document)
        and "duration" in document
    ):
        return True
    attributes = document.get("attributes")
    if isinstance(attributes, Mapping | list | str):
        return has(document, "span_id") or has(document, "trace_id") or _speaks(opened(attributes))
    return any(str(key).startswith("attributes.") for key in document)


def _speaks(attributes: Any) -> bool:
    keys = (
        attributes
        if isinstance(attributes, Mapping)
        else [one.get("key") for one in attributes or [] if isinstance(one, Mapping)]
    )
    return any(
        str(key).startswith(("gen_ai", "langfuse.", "llm.", "openinference", "ai.", "traceloop.")) for key in keys
    )


def spans_of(document: Any) -> Iterator[Span]:
    """Every span of a document, in order."""
    if isinstance(document, list):
        for item in document:
            yield from spans_of(item)
        return
    if not isinstance(document, Mapping):
        return
    for key in _OTLP:
        for resource in opened(document.get(key)) or []:
            yield from _resource(resource)
    if any(key in document for key in _OTLP):
        return
    if isinstance(document.get("spans"), list) and "attributes" not in document:
        for raw in document["spans"]:
            if isinstance(raw, Mapping):
                yield _jaeger(raw)
        return
    if "traceID" in document and "operationName" in document:
        yield _jaeger(document)
        return
    yield span_of(document)


def _resource(resource: Any) -> Iterator[Span]:
    if not isinstance(resource, Mapping):
        return
    for key in ("scopeSpans", "scope_spans", "instrumentationLibrarySpans", "scopeLogs", "scope_logs"):
        for scope in resource.get(key) or []:
            if not isinstance(scope, Mapping):
                continue
            for raw in scope.get("spans") or []:
                if isinstance(raw, Mapping):
                    yield span_of(raw)
            for raw in scope.get("logRecords") or scope.get("log_records") or []:
                if isinstance(raw, Mapping):
                    yield span_of(raw, is_record=True)


def span_of(raw: Mapping[str, Any], *, is_record: bool = False) -> Span:
    attributes = decoded(opened(raw.get("attributes") or raw.get("tags")))
    for key, value in raw.items():  # a table's columns
        if key.startswith("attributes.") and value is not None:
            attributes[key.removeprefix("attributes.")] = value
    status = raw.get("status")
    code = str(
        first(raw, ("status.status_code", "status.code", "status_code", "statusCode"))
        or (status if isinstance(status, str) else "")
    )
    is_record = is_record or ("event_name" in raw or "eventName" in raw or ("body" in raw and "start_time" not in raw))
    if is_record:
        body = decoded_value(raw.get("body"))
        attributes.setdefault("event.name", first(raw, ("event_name", "eventName")))
        if isinstance(body, Mapping):
            attributes["_body"] = body
    started = first(
        raw,
        (
            "start_time",
            "startTimeUnixNano",
            "start_time_unix_nano",
            "startTime",
            "timestamp",
            "timeUnixNano",
            "observedTimeUnixNano",
        ),
    )
    ended = first(raw, ("end_time", "endTimeUnixNano", "end_time_unix_nano", "endTime"))
    start, end = instant(started), instant(ended)
    duration = number(raw.get("duration"))
    if end is None and start is not None and duration is not None:  # Zipkin: microseconds
        end = start + timedelta(microseconds=duration)
    return Span(
        trace_id=_id(first(raw, ("trace_id", "context.trace_id", "traceId"))),
        span_id=_id(first(raw, ("span_id", "context.span_id", "spanId")) or (raw.get("id") if "tags" in raw else None)),
        name=str(raw.get("name") or raw.get("span_name") or ""),
        start=start,
        end=end,
        attributes=attributes,
        events=[_event(event) for event in _list(raw.get("events")) if isinstance(event, Mapping)],
        failed=code.upper().rsplit("_", 1)[-1].rsplit(".", 1)[-1] == "ERROR" or code == "2",
        message=_text(first(raw, ("status.description", "status.message", "status_message", "statusMessage"))),
        is_record=is_record,
        odd_time=str(started)[:40] if started is not None and start is None else None,
    )


def _jaeger(raw: Mapping[str, Any]) -> Span:
    attributes = {str(tag.get("key")): tag.get("value") for tag in raw.get("tags") or [] if isinstance(tag, Mapping)}
    start = instant(raw.get("startTime"))
    length = number(raw.get("duration"))
    events: list[tuple[str, Mapping[str, Any], datetime | None]] = []
    for log in raw.get("logs") or []:
        fields = {str(one.get("key")): one.get("value") for one in log.get("fields") or [] if isinstance(one, Mapping)}
        events.append((str(fields.pop("event", fields.pop("name", ""))), fields, instant(log.get("timestamp"))))
    failed = attributes.get("error") in (True, "true") or attributes.get("otel.status_code") == "ERROR"
    return Span(
        trace_id=_id(raw.get("traceID")),
        span_id=_id(raw.get("spanID")),
        name=str(raw.get("operationName") or ""),
        start=start,
        end=start + timedelta(microseconds=length) if start and length is not None else None,
        attributes=attributes,
        events=events,
        failed=failed,
        message=_text(attributes.get("otel.status_description")),
    )


def _event(raw: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], datetime | None]:
    attributes = decoded(opened(raw.get("attributes")))
    body = decoded_value(raw.get("body"))
    if isinstance(body, Mapping):
        attributes = {**attributes, **body}
    name = raw.get("name") or raw.get("event_name") or raw.get("event.name") or attributes.get("event.name") or ""
    if not attributes:
        attributes = {str(key): value for key, value in raw.items() if key not in {"name", "timestamp"}}
    return str(name), attributes, instant(first(raw, ("timestamp", "timeUnixNano", "time_unix_nano")))


def decoded(attributes: Any) -> dict[str, Any]:
    """Attributes as a flat object, out of OTLP's list of keys and typed values or an object."""
    if isinstance(attributes, list | tuple):
        pairs: dict[str, Any] = {}
        for one in attributes:
            if isinstance(one, Mapping) and "key" in one:
                pairs[str(one["key"])] = decoded_value(one.get("value"))
            elif isinstance(one, tuple) and len(one) == 2:
                pairs[str(one[0])] = one[1]
        return pairs
    return (
        {str(key): decoded_value(value) for key, value in attributes.items()} if isinstance(attributes, Mapping) else {}
    )


_TYPED = ("stringValue", "intValue", "doubleValue", "boolValue", "arrayValue", "kvlistValue", "bytesValue",
          "string_value", "int_value", "double_value", "bool_value", "array_value", "kvlist_value")  # fmt: skip


def decoded_value(value: Any) -> Any:
    """A typed value of OTLP as a plain one; any other as it is."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    ((kind, inner),) = value.items()
    if kind not in _TYPED:
        return value
    if kind.startswith("array") and isinstance(inner, Mapping):
        return [decoded_value(one) for one in inner.get("values") or []]
    if kind.startswith("kvlist") and isinstance(inner, Mapping):
        return decoded(inner.get("values") or [])
    if kind.startswith("int") and isinstance(inner, str):
        return number(inner)
    return inner


def indexed(attributes: Mapping[str, Any], prefix: str) -> list[Any]:
    """The list that flat keys spell out: `gen_ai.prompt.0.content` under the prefix `gen_ai.prompt`; a list kept as one value,
    or as its JSON text, is that list."""
    whole = opened(find(attributes, prefix))
    if isinstance(whole, list | tuple):
        return [_nested(one) for one in whole]
    start = f"{prefix}."
    if not any(key.startswith(start) for key in attributes):
        return (
            [whole] if isinstance(whole, Mapping) and not any(str(key).isdigit() for key in whole) else _as_list(whole)
        )
    root: dict[str, Any] = {}
    for key, value in attributes.items():
        if key.startswith(start):
            node = root
            *parents, last = key.removeprefix(start).split(".")
            for parent in parents:
                inner = node.get(parent)
                if not isinstance(inner, dict):
                    inner = node[parent] = {}
                node = inner
            node[last] = value
    return _as_list(_listed(root))


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        value = _listed(value)
    return value if isinstance(value, list) else []


def _listed(node: Any) -> Any:
    """Objects whose keys are 0, 1, 2 … as lists."""
    if not isinstance(node, Mapping):
        return node
    inner = {key: _listed(value) for key, value in node.items()}
    if inner and all(str(key).isdigit() for key in inner):
        return [inner[key] for key in sorted(inner, key=int)]
    return inner


def _nested(value: Any) -> Any:
    """An object with dotted keys (`message.role`) as objects in each other."""
    value = opened(value)
    if not isinstance(value, Mapping) or not any("." in str(key) for key in value):
        return value
    root: dict[str, Any] = {}
    for key, inner in value.items():
        node = root
        *parents, last = str(key).split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = [_nested(one) for one in inner] if isinstance(inner, list) else inner
    return _listed(root)


def _list(value: Any) -> list[Any]:
    value = opened(value)
    return list(value) if isinstance(value, list | tuple) else []


def _id(value: Any) -> str | None:
    return str(value).removeprefix("0x") if value not in (None, "") else None


def _text(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


OTEL = Format(
    name="otel",
    help="OpenTelemetry spans: gen_ai.* (old and new), OpenLLMetry, OpenInference, Vercel AI SDK; OTLP, console, Phoenix, Jaeger",
    matches=matches,
    calls=calls,
    left_out=left_out,
    amend=amend,
    guesses_users=False,
)
IMPORTER = OTEL.importer()
