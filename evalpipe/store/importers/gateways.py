"""Logs of gateways and of those that stand beside them: Helicone, Portkey, Cloudflare, Amazon Bedrock, PostHog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, first, number, opened

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
IMPORTERS = tuple(table.importer() for table in (HELICONE, PORTKEY, CLOUDFLARE, BEDROCK, POSTHOG))
