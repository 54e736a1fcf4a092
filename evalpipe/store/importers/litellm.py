"""LiteLLM: standard logging payloads (callbacks, object stores) and rows of its spend log, of every call type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from evalpipe.store.importers.base import BrokenLineError
from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, first, has, name, number, opened

_OTHER_CALLS = re.compile(
    r"embed|image|transcri|speech|moderation|rerank|batch|file|vector|fine_?tun|assistant|thread|ocr|video|search|list_|health|"
    r"realtime|container|count_tokens|mcp|skill|eval"
)


def matches(document: Any) -> bool:
    return (
        isinstance(document, Mapping)
        and has(document, "call_type")
        and (has(document, "startTime") or has(document, "custom_llm_provider"))
        and any(has(document, key) for key in ("messages", "response", "spend", "response_cost"))
    )


def left_out(document: Any) -> str | None:
    kind = str(find(document, "call_type") or "").lower()
    found = _OTHER_CALLS.search(kind)
    if found is None:
        return None
    return "embeddings" if found[0] == "embed" else f"calls of type {kind}"


def amend(document: Mapping[str, Any], row: dict[str, Any]) -> None:
    if not has(document, "response") and row["error"] is None and row["state"] in (None, "success"):
        raise BrokenLineError("response is missing")
    if opened(row["answer"]) in ({}, []):  # the spend log holds texts only where it is told to
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
    # The end user alone; failing that whoever owns the key, which LiteLLM stores hashed.
    row["unit"] = name(opened(row["unit"])) or name(opened(first(document, ("user", "metadata.user_api_key_user_id"))))


LITELLM = Format(
    name="litellm",
    help="LiteLLM's standard logging payloads and spend log rows (JSON, CSV, S3)",
    matches=matches,
    left_out=left_out,
    amend=amend,
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
IMPORTER = LITELLM.importer()
