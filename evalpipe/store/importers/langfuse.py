"""Langfuse: an exported trace with its observations; each generation is one exchange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalpipe.core.traffic import Exchange
from evalpipe.store.importers.base import BrokenLineError, Fields, Imported, Importer, content_text, unknown_time
from evalpipe.store.importers.logged import as_mapping, as_messages, logged_exchange, milliseconds


def matches(document: Any) -> bool:
    return isinstance(document, Mapping) and {"trace", "observations"} <= document.keys()


def read(document: Any, line: int) -> Imported:
    trace, observations = as_mapping(document["trace"]), document["observations"]
    if not isinstance(observations, list):
        raise BrokenLineError("observations is not a list")
    generations = [item for item in observations if isinstance(item, Mapping) and item.get("type") == "GENERATION"]
    return Imported(exchanges=[_exchange(item, Fields(trace, "trace"), line) for item in generations])


def _exchange(item: Mapping[str, Any], trace: Fields, line: int) -> Exchange:
    fields = Fields(item, "observation")
    start, end, first = (fields.time(name) for name in ("startTime", "endTime", "completionStartTime"))
    usage = Fields(as_mapping(item.get("usageDetails")), "usageDetails")
    output = item.get("output")
    choice = as_mapping(output)
    message = as_mapping(choice.get("message")) or choice
    failed = fields.text("level") == "ERROR"
    return logged_exchange(
        fields.text("id", required=True) or "",
        start or unknown_time(line),
        messages=as_messages(item.get("input")),
        text=_text(output, message),
        error=(fields.text("statusMessage") or "failed") if failed else None,
        finish_reason=Fields(choice).text("finish_reason"),
        tool_calls=message.get("tool_calls"),
        response=output if isinstance(output, Mapping) else None,
        meta={"trace_id": trace.text("id"), "name": fields.text("name"), "metadata": item.get("metadata")},
        unit_id=trace.text("userId"),
        conversation_id=trace.text("sessionId"),
        model_requested=fields.text("model"),
        model=fields.text("model"),
        latency_ms=milliseconds(start, end),
        ttft_ms=milliseconds(start, first),
        streamed=True if first is not None else None,
        input_tokens=usage.count("input"),
        output_tokens=usage.count("output"),
        cost_usd=fields.number("totalCost", low=0) if item.get("totalCost") is not None else _cost(item),
    )


def _cost(item: Mapping[str, Any]) -> float | None:
    return Fields(as_mapping(item.get("costDetails")), "costDetails").number("total", low=0)


def _text(output: Any, message: Mapping[str, Any]) -> str | None:
    if isinstance(output, str):
        return output
    content = message.get("content")
    return None if content is None else content_text(content)


IMPORTER = Importer(name="langfuse", help="Langfuse traces with their observations", matches=matches, read=read)
