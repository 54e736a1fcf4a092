"""OpenTelemetry: spans with the GenAI semantic conventions, or with Langfuse's attributes as LiteLLM writes them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from evalpipe.core.identity import fingerprint
from evalpipe.core.traffic import Exchange
from evalpipe.store.documents import parse
from evalpipe.store.importers.base import (
    BrokenLineError,
    Fields,
    Imported,
    Importer,
    content_text,
    json_text,
    unknown_time,
)
from evalpipe.store.importers.logged import as_mapping, as_messages, logged_exchange, milliseconds

_GENAI, _LANGFUSE = "gen_ai.", "langfuse.observation."


def matches(document: Any) -> bool:
    attributes = document.get("attributes") if isinstance(document, Mapping) else None
    return isinstance(attributes, Mapping) and any(str(key).startswith((_GENAI, _LANGFUSE)) for key in attributes)


def read(document: Any, line: int) -> Imported:
    if not isinstance(document, Mapping) or not isinstance(document.get("attributes"), Mapping):
        raise BrokenLineError("the line is not a span with attributes")
    attributes = document["attributes"]
    span = Fields(document)
    start, end = _time(document, "start"), _time(document, "end")
    # Span ids are 8 bytes and unique within a trace; a span without one is known by what it holds.
    ids = [text for text in (span.text("trace_id"), span.text("span_id")) if text]
    request_id = "-".join(ids) if len(ids) == 2 else fingerprint([ids, json_text(attributes)], length=32)
    made = _langfuse if any(str(key).startswith(_LANGFUSE) for key in attributes) else _genai
    return Imported(exchanges=[made(attributes, request_id, start or unknown_time(line), milliseconds(start, end))])


def _genai(attributes: Mapping[str, Any], request_id: str, started_at: datetime, latency_ms: float | None) -> Exchange:
    fields = Fields(attributes)
    reasons = attributes.get("gen_ai.response.finish_reasons")
    answers = as_messages(_opened(attributes.get("gen_ai.output.messages")))
    prompt = [_message(message) for message in as_messages(_opened(attributes.get("gen_ai.input.messages")))]
    requested = fields.text("gen_ai.request.model")
    return logged_exchange(
        request_id,
        started_at,
        messages=prompt,
        text="\n".join(content_text(_message(answer)["content"]) for answer in answers) if answers else None,
        error=fields.text("error.type"),
        finish_reason=str(reasons[0]) if isinstance(reasons, list) and reasons else None,
        provider=fields.text("gen_ai.provider.name") or fields.text("gen_ai.system"),
        conversation_id=fields.text("gen_ai.conversation.id"),
        unit_id=fields.text("user.id") or fields.text("enduser.id"),
        model_requested=requested,
        model=fields.text("gen_ai.response.model") or requested,
        latency_ms=latency_ms,
        input_tokens=fields.count("gen_ai.usage.input_tokens"),
        cached_input_tokens=fields.count("gen_ai.usage.cache_read.input_tokens"),
        output_tokens=fields.count("gen_ai.usage.output_tokens"),
    )


def _langfuse(
    attributes: Mapping[str, Any], request_id: str, started_at: datetime, latency_ms: float | None
) -> Exchange:
    fields = Fields(attributes)
    output = _opened(attributes.get(f"{_LANGFUSE}output"))
    message = as_mapping(output)
    usage = Fields(as_mapping(_opened(attributes.get(f"{_LANGFUSE}usage_details"))), "usage_details")
    cost = Fields(as_mapping(_opened(attributes.get(f"{_LANGFUSE}cost_details"))), "cost_details")
    content = output if isinstance(output, str) else message.get("content")
    failed = fields.text(f"{_LANGFUSE}level") == "ERROR"
    return logged_exchange(
        request_id,
        started_at,
        messages=as_messages(_opened(attributes.get(f"{_LANGFUSE}input"))),
        text=None if content is None else content_text(content),
        error="failed" if failed else None,
        tool_calls=message.get("tool_calls"),
        unit_id=fields.text("user.id"),
        conversation_id=fields.text("session.id"),
        model_requested=fields.text(f"{_LANGFUSE}model.name"),
        model=fields.text(f"{_LANGFUSE}model.name"),
        latency_ms=latency_ms,
        input_tokens=usage.count("input"),
        cached_input_tokens=usage.count("cache_read_input_tokens"),
        output_tokens=usage.count("output"),
        cost_usd=cost.number("total", low=0),
    )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """The conventions keep a message's content in `parts`."""
    content = message.get("content", message.get("parts"))
    return {"role": str(message.get("role", "user")), "content": content_text(content)}


def _opened(value: Any) -> Any:
    """Attributes that are objects travel as JSON text in many exporters."""
    if isinstance(value, str) and value[:1] in {"{", "["}:
        try:
            return parse(value.encode("utf-8", "surrogatepass"))
        except ValueError:
            return value
    return value


def _time(document: Mapping[str, Any], which: str) -> datetime | None:
    """`start_time` (ISO 8601, or nanoseconds since the epoch), as JSON exporters and OTLP spell it."""
    for name in (f"{which}_time", f"{which}TimeUnixNano", f"{which}_time_unix_nano"):
        value = document.get(name)
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if isinstance(value, int) and value > 10**15:
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value // 1000)
        if value is not None:
            return Fields(document).time(name)
    return None


IMPORTER = Importer(
    name="otel",
    help="OpenTelemetry spans with gen_ai.* (or Langfuse's) attributes, one a line",
    matches=matches,
    read=read,
)
