"""Spans of all exporters in one shape: OTLP, the SDKs' console, Phoenix, Jaeger, Zipkin; attributes flat, events among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from evalpipe.store.importers.paths import find, first, has, opened
from evalpipe.store.importers.values import instant, number

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
