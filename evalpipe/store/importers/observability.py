"""Exports of observability tools and experiment trackers: Langfuse, LangSmith, Braintrust, Weave, MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from evalpipe.store.importers.opentelemetry import span_of
from evalpipe.store.importers.responses import is_answer
from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import (
    Tokens,
    count,
    find,
    first,
    has,
    instant,
    milliseconds_of,
    name,
    number,
    opened,
    read_tokens,
)

NO_USER = "observations without a user: Langfuse keeps it in traces/, load that folder with this one"


def _langfuse_matches(document: Any) -> bool:
    if not isinstance(document, Mapping):
        return False
    if "observations" in document and ("trace" in document or has(document, "timestamp") or has(document, "sessionId")):
        return True
    if _is_langfuse_trace(document):
        return True
    return (
        has(document, "traceId")
        and (has(document, "type") or (has(document, "model") and has(document, "input")))
        and has(document, "startTime")
        and (has(document, "output") or has(document, "usageDetails") or has(document, "level"))
    )


def _is_langfuse_trace(document: Any) -> bool:
    """A row of the traces' export, which holds the user and no call."""
    return (
        isinstance(document, Mapping)
        and "observations" not in document
        and not has(document, "type")
        and all(has(document, key) for key in ("id", "timestamp", "userId"))
        and any(has(document, key) for key in ("sessionId", "public", "bookmarked", "release"))
    )


def _langfuse_calls(document: Any) -> Iterator[Any]:
    observations = opened(document.get("observations"))
    if not isinstance(observations, list):
        yield document
        return
    trace = opened(document.get("trace")) if "trace" in document else document
    for item in observations:
        item = opened(item)
        yield {**item, "_trace": trace} if isinstance(item, Mapping) else {"type": "REFERENCE"}


def _langfuse_left_out(call: Any) -> str | None:
    if _is_langfuse_trace(call):
        return "traces, which hold no call of a model"
    kind = str(find(call, "type") or "").upper()
    if kind == "REFERENCE":
        return "observations that are only named by their id: export the observations"
    if kind in {"GENERATION", "LLM"} or (not kind and _is_langfuse_generation(call)):
        return None
    return "embeddings" if kind == "EMBEDDING" else kind or "observations without a type"


def _is_langfuse_generation(call: Any) -> bool:
    """A row of the table of generations, which has no column for the type."""
    return any(
        first(call, (key,)) is not None
        for key in ("model", "providedModelName", "usageDetails", "usage", "promptTokens")
    )


def _langfuse_companion(document: Any) -> tuple[str, Any] | None:
    """What a trace's row adds to its observations: the user and the session."""
    if not _is_langfuse_trace(document):
        return None
    return str(find(document, "id")), {"userId": find(document, "userId"), "sessionId": find(document, "sessionId")}


def _langfuse_joined(document: Any, memory: Mapping[str, Any]) -> Any:
    found = memory.get(str(find(document, "traceId"))) if isinstance(document, Mapping) else None
    return document if found is None else {**document, "_trace": found[-1]}


def _langfuse_amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    row["usage"] = None
    tokens = _langfuse_tokens(call)
    row["input_tokens"], row["cached_input_tokens"], row["cache_write_tokens"] = (
        tokens.input,
        tokens.cached,
        tokens.cache_write,
    )
    row["output_tokens"], row["reasoning_tokens"] = tokens.output, tokens.reasoning
    if row["end"] is not None:
        row["latency_s"] = None
    if row["first_token"] is not None:
        row["ttft_s"] = None
        row["streamed"] = True
    if str(find(call, "level") or "").upper() == "ERROR":
        row["error"] = name(find(call, "statusMessage")) or "failed"
    if row["unit"] is None and "_trace" not in call and not has(call, "userId"):
        row["note"] = NO_USER
    row["meta"] = {
        "trace_id": first(call, ("_trace.id", "traceId")),
        "name": find(call, "name"),
        "metadata": opened(find(call, "metadata")),
    }


def _langfuse_tokens(call: Mapping[str, Any]) -> Tokens:
    """Langfuse's buckets do not overlap: every one that begins with input, or with output, is part of it."""
    details = opened(find(call, "usageDetails"))
    if not isinstance(details, Mapping) or not details:
        details = opened(find(call, "usage"))
    if isinstance(details, list):  # a MAP column
        details = {pair[0]: pair[1] for pair in details if isinstance(pair, list | tuple) and len(pair) == 2}
    if not isinstance(details, Mapping) or not details:
        found = Tokens(input=count(first(call, ("promptTokens", "inputUsage", "inputTokens"))))
        return found._replace(output=count(first(call, ("completionTokens", "outputUsage", "outputTokens"))))
    if str(details.get("unit") or "TOKENS").upper() != "TOKENS":
        return Tokens()
    named = read_tokens(details)
    if "prompt_tokens" in details or "promptTokens" in details:
        return named
    sums: dict[str, int | None] = {"input": None, "output": None}
    for key, value in details.items():
        side = "output" if str(key).lower().startswith(("output", "completion")) else "input"
        if str(key).lower() in {"total", "total_tokens", "unit"} or "cost" in str(key).lower():
            continue
        n = count(value)
        if n is not None and str(key).lower().startswith(("input", "output", "prompt", "completion", "cache")):
            sums[side] = (sums[side] or 0) + n
    return named._replace(input=sums["input"], output=sums["output"])


LANGFUSE = Format(
    name="langfuse",
    help="Langfuse traces and observations (UI, API, blob export; JSONL, CSV, Parquet)",
    matches=_langfuse_matches,
    calls=_langfuse_calls,
    left_out=_langfuse_left_out,
    amend=_langfuse_amend,
    companion=_langfuse_companion,
    joined=_langfuse_joined,
    guesses_users=False,
    fields={
        "id": ("id",),
        "prompt": ("input",),
        "answer": ("output",),
        "start": ("startTime",),
        "end": ("endTime",),
        "first_token": ("completionStartTime",),
        "latency_s": ("latency",),
        "ttft_s": ("timeToFirstToken",),
        "streamed": (),
        "error": (),
        "model": ("model", "providedModelName", "internalModel"),
        "cost": ("totalCost", "calculatedTotalCost", "costDetails.total", "cost"),
        "unit": ("userId", "_trace.userId", "_trace.user_id", "trace.userId"),
        "conversation": ("sessionId", "_trace.sessionId", "_trace.session_id"),
    },
)
LANGFUSE_IMPORTER = LANGFUSE.importer()


# LangSmith: runs, alone (bulk export, JSONL, Parquet) or as trees; those of type `llm` are calls of a model.


def _langsmith_calls(document: Any) -> Iterator[Any]:
    yield document
    for child in opened(find(document, "child_runs")) or []:
        if isinstance(child, Mapping):
            yield from _langsmith_calls(child)


def _langsmith_left_out(call: Any) -> str | None:
    kind = str(find(call, "run_type") or "").lower()
    if kind in {"llm", "chat_model", "chat"}:
        return None
    return "embeddings" if kind == "embedding" else f"runs of type {kind or 'unknown'}"


def _langsmith_amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    if row["first_token"] is not None:
        row["streamed"] = True
    if str(row["state"] or "").lower() == "error" and row["error"] is None:
        row["error"] = "failed"
    row["error"] = name(row["error"])


_LANGSMITH_META = ("extra.metadata.", "metadata.")
LANGSMITH = Format(
    name="langsmith",
    help="LangSmith runs (JSONL, CSV, Parquet, run trees)",
    shapes=(("run_type", "inputs", "outputs"), ("run_type", "inputs", "start_time"), ("run_type", "trace_id", "start_time")),
    calls=_langsmith_calls,
    left_out=_langsmith_left_out,
    amend=_langsmith_amend,
    guesses_users=False,  # its session_id is the project
    fields={
        "id": ("id", "run_id"),
        "prompt": ("inputs",),
        "answer": ("outputs",),
        "start": ("start_time",),
        "end": ("end_time",),
        "first_token": ("first_token_time",),
        "streamed": (),
        "error": ("error",),
        "state": ("status",),
        "model": (
            "outputs.llm_output.model_name", "outputs.model", "extra.metadata.ls_model_name", "extra.invocation_params.model",
            "extra.invocation_params.model_name", "metadata.ls_model_name",
        ),
        "model_requested": ("extra.metadata.ls_model_name", "extra.invocation_params.model",
        "extra.invocation_params.model_name"),
        "provider": ("extra.metadata.ls_provider", "metadata.ls_provider"),
        "input_tokens": ("prompt_tokens", "input_tokens"),
        "output_tokens": ("completion_tokens", "output_tokens"),
        "cached_input_tokens": ("prompt_token_details.cache_read",),
        "reasoning_tokens": ("completion_token_details.reasoning",),
        "usage": ("outputs.usage_metadata", "outputs.llm_output.token_usage", "extra.metadata.usage_metadata"),
        "cost": ("total_cost",),
        "unit": tuple(
            prefix + key for key in ("user_id", "userId", "user", "user_email", "customer_id") for prefix in _LANGSMITH_META
        ),
        "conversation": tuple(
            prefix + key for key in ("thread_id", "session_id", "conversation_id", "sessionId") for prefix in _LANGSMITH_META
        ),
        "meta": ("extra.metadata", "metadata"),
    },
)  # fmt: skip
LANGSMITH_IMPORTER = LANGSMITH.importer()


# Experiment trackers: Braintrust's spans, Weave's calls, MLflow's traces.


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
TRACKER_IMPORTERS = tuple(table.importer() for table in (BRAINTRUST, WEAVE, MLFLOW))
