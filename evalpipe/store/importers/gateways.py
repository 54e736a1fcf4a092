"""Logs of gateways: Helicone, Portkey, Cloudflare, Amazon Bedrock, PostHog, LiteLLM, TensorZero."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from evalpipe.providers.conversation import role_of
from evalpipe.providers.json_values import parse_document
from evalpipe.store.importers.base import (
    BrokenLineError,
    Fields,
    Imported,
    Importer,
    content_text,
    logged_exchange,
    unknown_time,
)
from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, first, has, name, number, opened

HELICONE = Format(
    name="helicone",
    help="Helicone requests (API, export)",
    shapes=(("request_body", "response_body", "request_created_at"), ("request_body", "response_body", "request_id"),
            ("response_status", "request_body", "delay_ms"), ("request_body", "request_created_at", "response_status")),
    fields={
        "id": ("request_id", "response_id"),
        "prompt": ("request_body",),
        "answer": ("response_body",),
        "endpoint": ("request_path",),
        "start": ("request_created_at",),
        "latency_ms": ("delay_ms", "latency"),
        "ttft_ms": ("time_to_first_token",),
        "model_requested": ("request_model", "request_body.model"),
        "model": ("response_body.model", "response_model", "model"),
        "provider": ("provider",),
        "unit": ("request_user_id", "helicone_user", "request_properties.Helicone-User-Id"),
        "conversation": ("request_properties.Helicone-Session-Id", "helicone_session_id"),
        "status": ("response_status",),
        "input_tokens": ("prompt_tokens",),
        "output_tokens": ("completion_tokens",),
        "cached_input_tokens": ("prompt_cache_read_tokens",),
        "cache_write_tokens": ("prompt_cache_write_tokens",),
        "cost": ("cost_usd", "costUSD", "cost"),
        "meta": ("request_properties",),
    },
)  # fmt: skip


def _portkey(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    if str(find(call, "cost_currency") or "USD").upper() != "USD":
        row["cost_cents"] = None


PORTKEY = Format(
    name="portkey",
    help="Portkey log exports",
    shapes=(
        ("ai_org", "request", "response"),
        ("ai_model", "request", "response"),
        ("cost_currency", "request", "response"),
    ),
    amend=_portkey,
    guesses_users=False,
    fields={
        "id": ("id", "trace_id"),
        "prompt": ("request.body", "request"),
        "answer": ("response.body", "response"),
        "start": ("created_at",),
        "latency_ms": ("response.response_time", "response_time"),
        "status": ("response.status", "response_status_code"),
        "succeeded": ("is_success",),
        "model_requested": ("request.body.model", "ai_model"),
        "model": ("response.body.model", "ai_model"),
        "provider": ("ai_org",),
        "unit": ("metadata._user", "metadata.user_id", "metadata.userId", "metadata.user"),
        "conversation": ("metadata.session_id", "metadata._session_id", "metadata.conversation_id"),
        "input_tokens": ("prompt_token", "req_units", "prompt_tokens"),
        "output_tokens": ("completion_token", "res_units", "completion_tokens"),
        "cost_cents": ("cost",),  # docs.portkey.ai: cost is in cents
        "meta": ("metadata",),
    },
)


def _cloudflare_left_out(call: Any) -> str | None:
    kind = str(first(call, ("model_type", "request_type")) or "").lower()
    return "embeddings" if "embed" in kind else None


def _cloudflare(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    for column in ("prompt", "answer"):
        value = opened(row[column])
        if isinstance(value, Mapping) and value.get("type") == "encrypted":
            row[column] = None
    if row["succeeded"] is not None and number(row["status"]) is not None:
        row["succeeded"] = None


CLOUDFLARE = Format(
    name="cloudflare",
    help="Cloudflare AI Gateway logs (API, logpush)",
    shapes=(
        ("tokens_in", "tokens_out", "provider"),
        ("request_head", "response_head"),
        ("Gateway", "RequestBody", "ResponseBody"),
    ),
    left_out=_cloudflare_left_out,
    amend=_cloudflare,
    fields={
        "id": ("id", "event_id"),
        "prompt": ("request", "request_body", "RequestBody", "request_head"),
        "answer": ("response", "response_body", "ResponseBody", "response_head"),
        "start": ("created_at", "Timestamp", "Datetime"),
        "latency_ms": ("duration", "Metrics.durationMs", "timings.latency"),
        "status": ("status_code", "StatusCode"),
        "succeeded": ("success",),
        "model_requested": ("RequestedModel", "model"),
        "model": ("model", "Model"),
        "provider": ("provider", "Provider"),
        "input_tokens": ("tokens_in", "Metrics.tokensIn"),
        "output_tokens": ("tokens_out", "Metrics.tokensOut"),
        "cost": ("cost", "Metrics.cost"),
        "meta": ("metadata", "Metadata"),
    },
)
BEDROCK = Format(
    name="bedrock",
    help="Amazon Bedrock model invocation logs",
    shapes=(("modelId", "input.inputBodyJson"), ("schemaType", "modelId", "requestId")),
    left_out=lambda call: "embeddings" if "embed" in str(find(call, "modelId")).lower() else None,
    guesses_users=False,
    fields={
        "id": ("requestId",),
        "prompt": ("input.inputBodyJson",),
        "answer": ("output.outputBodyJson",),
        "start": ("timestamp",),
        "latency_ms": ("output.outputBodyJson.metrics.latencyMs",),
        "model": ("modelId",),
        "error": ("errorCode",),
        "unit": ("requestMetadata.user_id", "requestMetadata.userId", "requestMetadata.user"),
        "conversation": ("requestMetadata.session_id", "requestMetadata.sessionId"),
        "input_tokens": ("input.inputTokenCount",),
        "output_tokens": ("output.outputTokenCount",),
        "cached_input_tokens": ("input.cacheReadInputTokenCount",),
        "meta": ("requestMetadata",),
    },
)


def _posthog_left_out(call: Any) -> str | None:
    event = str(find(call, "event"))
    return None if event == "$ai_generation" else "embeddings" if event == "$ai_embedding" else f"events {event}"


POSTHOG = Format(
    name="posthog",
    help="PostHog's events of LLM analytics ($ai_generation)",
    matches=lambda document: isinstance(document, Mapping) and str(document.get("event") or "").startswith("$ai_"),
    left_out=_posthog_left_out,
    guesses_users=False,
    fields={
        "id": ("uuid", "properties.$ai_span_id", "properties.$ai_generation_id"),
        "prompt": ("properties.$ai_input",),
        "answer": ("properties.$ai_output_choices", "properties.$ai_output"),
        "start": ("timestamp",),
        "latency_s": ("properties.$ai_latency",),
        "model": ("properties.$ai_model",),
        "provider": ("properties.$ai_provider",),
        "status": ("properties.$ai_http_status",),
        "error": ("properties.$ai_error",),
        "failed": ("properties.$ai_is_error",),
        "unit": ("distinct_id", "properties.distinct_id"),
        "conversation": ("properties.$ai_session_id",),
        "input_tokens": ("properties.$ai_input_tokens",),
        "output_tokens": ("properties.$ai_output_tokens",),
        "cached_input_tokens": ("properties.$ai_cache_read_input_tokens",),
        "cost": ("properties.$ai_total_cost_usd",),
    },
)
GATEWAY_IMPORTERS = tuple(table.importer() for table in (HELICONE, PORTKEY, CLOUDFLARE, BEDROCK, POSTHOG))


# LiteLLM: standard logging payloads (callbacks, object stores) and rows of its spend log, of every call type.


_LITELLM_OTHER_CALLS = re.compile(
    r"embed|image|transcri|speech|moderation|rerank|batch|file|vector|fine_?tun|assistant|thread|ocr|video|search|list_|health|"
    r"realtime|container|count_tokens|mcp|skill|eval"
)


def _litellm_matches(document: Any) -> bool:
    return (
        isinstance(document, Mapping)
        and has(document, "call_type")
        and (has(document, "startTime") or has(document, "custom_llm_provider"))
        and any(has(document, key) for key in ("messages", "response", "spend", "response_cost"))
    )


def _litellm_left_out(document: Any) -> str | None:
    kind = str(find(document, "call_type") or "").lower()
    found = _LITELLM_OTHER_CALLS.search(kind)
    if found is None:
        return None
    return "embeddings" if found[0] == "embed" else f"calls of type {kind}"


def _litellm_amend(document: Mapping[str, Any], row: dict[str, Any]) -> None:
    if not has(document, "response") and row["error"] is None and row["state"] in (None, "success"):
        raise BrokenLineError("response is missing")
    if opened(row["answer"]) in ({}, []):  # the spend log holds texts only where it is configured to
        row["answer"] = None
    if opened(row["prompt"]) in ({}, []):
        row["prompt"] = first(document, ("proxy_server_request.body", "proxy_server_request"))
    if row["streamed"] is not True and str(row["streamed"]).lower() != "true":
        row["first_token"] = None  # of a call that was not streamed it is the end
    if row["state"] == "success":
        row["status"] = 200
        row["error"] = row["error_type"] = None
    elif row["state"] == "failure":
        row["error"] = row["error"] or "failed"
    if row["status"] is not None and number(row["status"]) is None:
        row["status"] = None
    # The end user alone; failing that the key's owner, which LiteLLM stores hashed.
    row["unit"] = name(opened(row["unit"])) or name(opened(first(document, ("user", "metadata.user_api_key_user_id"))))


LITELLM = Format(
    name="litellm",
    help="LiteLLM's standard logging payloads and spend log rows (JSON, CSV, S3)",
    matches=_litellm_matches,
    left_out=_litellm_left_out,
    amend=_litellm_amend,
    guesses_users=False,
    fields={
        "id": ("id", "request_id"),
        "prompt": ("messages", "input"),
        "answer": ("response",),
        "start": ("startTime",),
        "end": ("endTime",),
        "first_token": ("completionStartTime",),
        "streamed": ("stream",),
        "model_requested": ("model", "model_group"),
        "model": ("response.model", "model"),
        "provider": ("custom_llm_provider",),
        "unit": ("end_user", "metadata.user_api_key_end_user_id", "metadata.requester_metadata.user_id"),
        "conversation": ("session_id", "metadata.session_id", "metadata.requester_metadata.session_id"),
        "input_tokens": ("prompt_tokens",),
        "output_tokens": ("completion_tokens",),
        "usage": ("metadata.usage_object", "response.usage"),
        "cost": ("response_cost", "spend"),
        "state": ("status", "metadata.status"),
        "error": ("error_str", "error_information.error_message", "metadata.error_information.error_message"),
        "error_type": ("error_information.error_class", "metadata.error_information.error_class"),
        "status": ("error_information.error_code", "metadata.error_information.error_code"),
        "meta": ("metadata",),
    },
)
LITELLM_IMPORTER = LITELLM.importer()


# TensorZero: chat datapoints, an input and the output that was given (or written by hand).


def _tensorzero_matches(document: Any) -> bool:
    return isinstance(document, Mapping) and {"function_name", "input", "output", "episode_id"} <= document.keys()


def _tensorzero_read(document: Any, line: int) -> Imported:
    """One datapoint. One without an output holds no answer and gives no row."""
    fields = Fields(document)
    output = _tensorzero_json(document["output"], "output")
    if output is None:
        return Imported()
    asked = _tensorzero_json(document["input"], "input")
    if not isinstance(asked, Mapping):
        raise BrokenLineError("input is not an object")
    parts = output if isinstance(output, list) else [output]
    calls = [part for part in parts if isinstance(part, Mapping) and part.get("type") == "tool_call"]
    exchange = logged_exchange(
        fields.text("id", required=True) or "",
        fields.time("updated_at") or unknown_time(line),
        messages=_tensorzero_messages(asked),
        text=content_text([part for part in parts if part not in calls]),
        tool_calls=calls,
        request=asked,
        response=output,
        meta={name: document.get(name) for name in ("dataset_name", "function_name", "tags", "auxiliary")},
        unit_id=fields.text("episode_id"),
    )
    return Imported(exchanges=[exchange])


def _tensorzero_messages(asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages: list[Mapping[str, Any]] = []
    if asked.get("system") is not None:
        messages.append({"role": "system", "content": _tensorzero_text(asked["system"])})
    for message in asked.get("messages") or []:
        if isinstance(message, Mapping):
            messages.append({"role": role_of(message), "content": _tensorzero_text(message.get("content"))})
    return messages


def _tensorzero_text(content: Any) -> str:
    """Text; a template's name and arguments, which are all that is stored of it."""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, Mapping) and part.get("type") == "template":
            texts.append(f"{part.get('name')}({json.dumps(part.get('arguments'), ensure_ascii=True)})")
        else:
            texts.append(content_text(part))
    return "\n".join(texts)


def _tensorzero_json(value: Any, name: str) -> Any:
    """Exports of the database hold JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_document(value.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise BrokenLineError(f"{name} is not JSON: {error}") from None


TENSORZERO_IMPORTER = Importer(
    name="tensorzero", help="TensorZero chat datapoints, one a line", matches=_tensorzero_matches, read=_tensorzero_read
)
