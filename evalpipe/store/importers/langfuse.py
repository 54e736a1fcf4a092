"""Langfuse: traces with their observations (UI, API), and rows of observations (blob export, versions 1 and 2, CSV, Parquet)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import Tokens, count, find, first, has, name, opened, read_tokens

NO_USER = "observations without a user: Langfuse keeps it in traces/, load that folder with this one"


def matches(document: Any) -> bool:
    if not isinstance(document, Mapping):
        return False
    if "observations" in document and ("trace" in document or has(document, "timestamp") or has(document, "sessionId")):
        return True
    if is_trace(document):
        return True
    return (
        has(document, "traceId")
        and (has(document, "type") or (has(document, "model") and has(document, "input")))
        and has(document, "startTime")
        and (has(document, "output") or has(document, "usageDetails") or has(document, "level"))
    )


def is_trace(document: Any) -> bool:
    """A row of the traces' export, which holds the user and no call."""
    return (
        isinstance(document, Mapping)
        and "observations" not in document
        and not has(document, "type")
        and all(has(document, key) for key in ("id", "timestamp", "userId"))
        and any(has(document, key) for key in ("sessionId", "public", "bookmarked", "release"))
    )


def calls(document: Any) -> Iterator[Any]:
    observations = opened(document.get("observations"))
    if not isinstance(observations, list):
        yield document
        return
    trace = opened(document.get("trace")) if "trace" in document else document
    for item in observations:
        item = opened(item)
        yield {**item, "_trace": trace} if isinstance(item, Mapping) else {"type": "REFERENCE"}


def left_out(call: Any) -> str | None:
    if is_trace(call):
        return "traces, which hold no call of a model"
    kind = str(find(call, "type") or "").upper()
    if kind == "REFERENCE":
        return "observations that are only named by their id: export the observations"
    if kind in {"GENERATION", "LLM"} or (not kind and _is_generation(call)):
        return None
    return "embeddings" if kind == "EMBEDDING" else kind or "observations without a type"


def _is_generation(call: Any) -> bool:
    """A row of the table of generations, which has no column for the type."""
    return any(
        first(call, (key,)) is not None
        for key in ("model", "providedModelName", "usageDetails", "usage", "promptTokens")
    )


def companion(document: Any) -> tuple[str, Any] | None:
    """What a trace's row adds to its observations: the user and the session."""
    if not is_trace(document):
        return None
    return str(find(document, "id")), {"userId": find(document, "userId"), "sessionId": find(document, "sessionId")}


def joined(document: Any, memory: Mapping[str, Any]) -> Any:
    found = memory.get(str(find(document, "traceId"))) if isinstance(document, Mapping) else None
    return document if found is None else {**document, "_trace": found[-1]}


def amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    row["usage"] = None
    tokens = _tokens(call)
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


def _tokens(call: Mapping[str, Any]) -> Tokens:
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
    matches=matches,
    calls=calls,
    left_out=left_out,
    amend=amend,
    companion=companion,
    joined=joined,
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
IMPORTER = LANGFUSE.importer()
