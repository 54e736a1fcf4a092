"""Recorded HTTP exchanges with OpenAI or Anthropic (cassettes): the request's and the response's body as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

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
from evalpipe.store.importers.values import first, name, opened


def matches(document: Any) -> bool:
    if not isinstance(document, Mapping):
        return False
    request, response = as_mapping(document.get("request")), as_mapping(document.get("response"))
    return "body" in request and "body" in response and _endpoint(request) is not None


def read(document: Any, line: int) -> Imported:
    if not matches(document):
        raise BrokenLineError("no request and response with bodies at an endpoint that is known")
    request, response = document["request"], document["response"]
    endpoint = _endpoint(request) or ""
    body, answered = _text(request["body"]), _text(response["body"])
    status = Fields(response, "response").count("status")
    headers = {str(name).lower(): str(value) for name, value in as_mapping(response.get("headers")).items()}
    headers = {name: value for name, value in headers.items() if name != "content-encoding"}  # the text is decoded
    view, answer = read_request(endpoint, body), read_answer(endpoint, status or 200, headers, answered.encode())
    told = as_mapping(response["body"])
    exchange = Exchange(
        request_id=Fields(told).text("id") or fingerprint([body, answered], length=32),
        arm=Arm.CONTROL,
        role=Role.IMPORTED,
        unit_id=name(first(as_mapping(opened(body)), ("user", "metadata.user_id", "safety_identifier"))),
        conversation_id=None,
        started_at=Fields(told).time("created") or unknown_time(line),
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
    return Imported(exchanges=[replace(exchange, latency_ms=_latency_ms(headers))])


def _endpoint(request: Mapping[str, Any]) -> str | None:
    return endpoint_of(urlsplit(str(request.get("uri") or request.get("url") or "")).path)


def _text(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body)


def _latency_ms(headers: Mapping[str, str]) -> float | None:
    """What the provider says it took; a cassette keeps no other time."""
    told = headers.get("openai-processing-ms", "")
    return float(told) if told.isdigit() else None


IMPORTER = Importer(
    name="http", help="recorded HTTP exchanges (cassettes) with OpenAI or Anthropic", matches=matches, read=read
)
