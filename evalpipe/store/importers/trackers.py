"""Experiment trackers: Braintrust's spans, Weave's calls, MLflow's traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from evalpipe.store.importers.opentelemetry import span_of
from evalpipe.store.importers.responses import is_answer
from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, first, has, instant, milliseconds_of, number, opened


def _braintrust_left_out(call: Any) -> str | None:
    kind = find(call, "span_attributes.type")
    return None if kind in ("llm", None) else f"spans of type {kind}"


def _braintrust(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    first_token = number(find(call, "metrics.time_to_first_token"))
    if first_token is not None:
        row["ttft_ms"], row["streamed"] = 1000 * first_token, True


BRAINTRUST = Format(
    name="braintrust",
    help="Braintrust logs and experiments (spans of type llm)",
    shapes=(("span_attributes", "input"), ("span_id", "root_span_id", "input", "output")),
    left_out=_braintrust_left_out,
    amend=_braintrust,
    guesses_users=False,
    fields={
        "id": ("id", "span_id"),
        "prompt": ("input",),
        "answer": ("output",),
        "start": ("metrics.start", "created"),
        "end": ("metrics.end",),
        "ttft_ms": (),
        "streamed": (),
        "error": ("error",),
        "model": ("output.model", "metadata.model"),
        "model_requested": ("metadata.model",),
        "provider": ("metadata.provider",),
        "input_tokens": ("metrics.prompt_tokens",),
        "output_tokens": ("metrics.completion_tokens",),
        "cached_input_tokens": ("metrics.prompt_cached_tokens",),
        "cache_write_tokens": ("metrics.prompt_cache_creation_tokens",),
        "reasoning_tokens": ("metrics.completion_reasoning_tokens",),
        "cost": ("metrics.estimated_cost", "metrics.cost"),
        "unit": ("metadata.user_id", "metadata.userId", "metadata.user"),
        "conversation": ("metadata.session_id", "metadata.conversation_id", "metadata.thread_id"),
        "meta": ("metadata",),
    },
)


def _weave_left_out(call: Any) -> str | None:
    """A call of a model has a request for inputs and an API's answer for output; whatever calls it repeats its tokens."""
    op = str(find(call, "op_name") or "")
    inputs = opened(find(call, "inputs"))
    asked = isinstance(inputs, Mapping) and any(key in inputs for key in ("messages", "contents", "prompt", "input"))
    answered = is_answer(opened(find(call, "output"))) or bool(find(call, "exception"))
    if "embed" in op:
        return "embeddings"
    return None if asked and answered else "calls that are none of a model"


WEAVE = Format(
    name="weave",
    help="W&B Weave calls",
    shapes=(("op_name", "inputs", "output"), ("op_name", "inputs", "started_at")),
    left_out=_weave_left_out,
    guesses_users=False,
    fields={
        "id": ("id",),
        "prompt": ("inputs",),
        "answer": ("output",),
        "start": ("started_at",),
        "end": ("ended_at",),
        "latency_ms": ("summary.weave.latency_ms",),
        "error": ("exception",),
        "model": ("output.model", "inputs.model"),
        "model_requested": ("inputs.model",),
        "usage": ("output.usage",),
        "unit": ("attributes.user_id", "attributes.userId", "attributes.user", "inputs.user"),
        "conversation": ("thread_id", "attributes.session_id", "attributes.thread_id"),
        "meta": ("attributes",),
    },
)
_MODEL_SPANS = frozenset({"CHAT_MODEL", "LLM"})


def _is_mlflow(document: Any) -> bool:
    if not isinstance(document, Mapping):
        return False
    info = opened(document.get("info"))
    if isinstance(info, Mapping) and "data" in document:
        return any(has(info, key) for key in ("trace_id", "request_id", "request_time", "timestamp_ms"))
    return "spans" in document and any(
        has(document, key) for key in ("execution_duration", "request_time", "trace_metadata")
    )


def _mlflow_calls(document: Any) -> Iterator[Any]:
    info = opened(document.get("info")) or document
    data = opened(document.get("data")) or document
    spans = opened(data.get("spans")) if isinstance(data, Mapping) else None
    for raw in spans if isinstance(spans, list) else []:
        raw = opened(raw)
        if isinstance(raw, Mapping):
            attributes = opened(raw.get("attributes")) or {}
            yield {"_span": raw, "_info": info, **{str(key): _unquoted(value) for key, value in attributes.items()}}


def _unquoted(value: Any) -> Any:
    """Every attribute is JSON text, plain texts too."""
    if isinstance(value, str) and value[:1] == '"' == value[-1:]:
        return value[1:-1]
    return value


def _mlflow_left_out(call: Any) -> str | None:
    kind = str(find(call, "mlflow.spanType") or "UNKNOWN")
    return None if kind in _MODEL_SPANS else "embeddings" if kind == "EMBEDDING" else f"spans of type {kind}"


def _mlflow(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    span, info = span_of(call["_span"]), call["_info"]
    row["id"] = "-".join(
        one for one in (str(first(info, ("trace_id", "request_id")) or span.trace_id or ""), span.span_id or "") if one
    )
    start, end = span.start, span.end
    if start is None:
        start = instant(first(info, ("request_time", "timestamp_ms")))
        length = milliseconds_of(first(info, ("execution_duration", "execution_time_ms", "execution_duration_ms")))
        end = start + timedelta(milliseconds=length) if start is not None and length is not None else None
    row["start"], row["end"] = start, end
    if span.failed:
        row["error"] = span.message or "failed"
    row["unit"] = first(
        info, ("trace_metadata.mlflow.trace.user", "request_metadata.mlflow.trace.user", "tags.mlflow.trace.user")
    )
    row["conversation"] = first(info, ("trace_metadata.mlflow.trace.session", "request_metadata.mlflow.trace.session"))


MLFLOW = Format(
    name="mlflow",
    help="MLflow traces",
    matches=_is_mlflow,
    calls=_mlflow_calls,
    left_out=_mlflow_left_out,
    amend=_mlflow,
    guesses_users=False,
    fields={
        "prompt": ("mlflow.spanInputs",),
        "answer": ("mlflow.spanOutputs",),
        "usage": ("mlflow.chat.tokenUsage",),
        "model_requested": ("mlflow.llm.model", "mlflow.spanInputs.model"),
        "model": ("mlflow.spanOutputs.model", "mlflow.llm.model", "mlflow.spanInputs.model"),
        "error": (),
    },
)
IMPORTERS = tuple(table.importer() for table in (BRAINTRUST, WEAVE, MLFLOW))
