"""LangSmith: runs, alone (bulk export, JSONL, Parquet) or as trees; those of type `llm` are calls of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, name, opened


def calls(document: Any) -> Iterator[Any]:
    yield document
    for child in opened(find(document, "child_runs")) or []:
        if isinstance(child, Mapping):
            yield from calls(child)


def left_out(call: Any) -> str | None:
    kind = str(find(call, "run_type") or "").lower()
    if kind in {"llm", "chat_model", "chat"}:
        return None
    return "embeddings" if kind == "embedding" else f"runs of type {kind or 'unknown'}"


def amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    if row["first_token"] is not None:
        row["streamed"] = True
    if str(row["state"] or "").lower() == "error" and row["error"] is None:
        row["error"] = "failed"
    row["error"] = name(row["error"])


_META = ("extra.metadata.", "metadata.")
LANGSMITH = Format(
    name="langsmith",
    help="LangSmith runs (JSONL, CSV, Parquet, run trees)",
    shapes=(("run_type", "inputs", "outputs"), ("run_type", "inputs", "start_time"), ("run_type", "trace_id", "start_time")),
    calls=calls,
    left_out=left_out,
    amend=amend,
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
        "unit": tuple(prefix + key for key in ("user_id", "userId", "user", "user_email", "customer_id") for prefix in _META),
        "conversation": tuple(
            prefix + key for key in ("thread_id", "session_id", "conversation_id", "sessionId") for prefix in _META
        ),
        "meta": ("extra.metadata", "metadata"),
    },
)  # fmt: skip
IMPORTER = LANGSMITH.importer()
