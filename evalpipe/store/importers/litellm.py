"""LiteLLM: standard logging payloads (callbacks, object stores) and rows of its spend log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalpipe.store.documents import parse
from evalpipe.store.importers.base import BrokenLineError, Fields, Imported, Importer, content_text, unknown_time
from evalpipe.store.importers.logged import as_mapping, as_messages, logged_exchange, milliseconds


def matches(document: Any) -> bool:
    return (
        isinstance(document, Mapping)
        and {"call_type", "startTime", "endTime", "messages", "response"} <= document.keys()
    )


def read(document: Any, line: int) -> Imported:
    """One payload or row. Its user is the `end_user`, or the hash LiteLLM keeps of the key's user."""
    fields = Fields(document)
    request_id = fields.text("id") or fields.text("request_id")
    if not request_id:
        raise BrokenLineError("id is missing")
    response = as_mapping(_opened(document["response"]))
    choice = _first_choice(response)
    start, end, first = (fields.time(name) for name in ("startTime", "endTime", "completionStartTime"))
    failed = fields.text("status") not in {None, "success"}
    streamed = document.get("stream")
    exchange = logged_exchange(
        request_id,
        start or unknown_time(line),
        messages=as_messages(_opened(document["messages"])),
        text=_text(choice),
        error=(fields.text("error_str") or "failed") if failed else None,
        finish_reason=Fields(choice).text("finish_reason"),
        tool_calls=as_mapping(choice.get("message")).get("tool_calls"),
        response=response or None,
        meta=_opened(document.get("metadata")),
        unit_id=fields.text("end_user") or fields.text("user") or None,
        provider=fields.text("custom_llm_provider"),
        model_requested=fields.text("model"),
        model=Fields(response).text("model") or fields.text("model"),
        latency_ms=milliseconds(start, end),
        ttft_ms=milliseconds(start, first) if streamed is True else None,
        streamed=streamed if isinstance(streamed, bool) else None,
        input_tokens=fields.count("prompt_tokens"),
        output_tokens=fields.count("completion_tokens"),
        cost_usd=fields.number("response_cost", low=0)
        if "response_cost" in document
        else fields.number("spend", low=0),
    )
    return Imported(exchanges=[exchange])


def _opened(value: Any) -> Any:
    """The spend log keeps JSON as text."""
    if isinstance(value, str) and value[:1] in {"{", "["}:
        try:
            return parse(value.encode("utf-8", "surrogatepass"))
        except ValueError:
            return value
    return value


def _first_choice(response: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = response.get("choices")
    return as_mapping(choices[0]) if isinstance(choices, list) and choices else {}


def _text(choice: Mapping[str, Any]) -> str | None:
    content = as_mapping(choice.get("message")).get("content")
    return None if content is None else content_text(content)


IMPORTER = Importer(
    name="litellm", help="LiteLLM's standard logging payloads and spend log rows", matches=matches, read=read
)
