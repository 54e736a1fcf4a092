"""What to say of a file in no known format: what it is, the keys that were seen, the nearest format, a line to begin
with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evalpipe.store.importers import format_names
from evalpipe.store.importers.guess import columns_of
from evalpipe.store.importers.paths import normal

_KEYS: Mapping[str, tuple[str, ...]] = {
    "pairs": ("pair_id", "prompt", "response_a", "response_b"),
    "litellm": ("call_type", "startTime", "endTime", "messages", "response"),
    "langfuse": ("trace", "observations", "traceId", "type", "startTime", "input", "output", "usageDetails"),
    "langsmith": ("run_type", "inputs", "outputs", "start_time", "trace_id"),
    "otel": ("trace_id", "span_id", "attributes", "start_time", "end_time"),
    "helicone": ("request_body", "response_body", "request_created_at", "delay_ms"),
    "portkey": ("ai_org", "ai_model", "request", "response", "cost_currency"),
    "cloudflare": ("tokens_in", "tokens_out", "provider", "model", "duration"),
    "braintrust": ("span_attributes", "span_id", "root_span_id", "input", "output", "metrics"),
    "weave": ("op_name", "inputs", "output", "started_at"),
    "promptfoo": ("promptIdx", "testIdx", "provider", "prompt", "response", "vars"),
    "inspect": ("eval", "plan", "samples"),
    "openai": ("custom_id", "response", "messages", "choices"),
    "anthropic": ("custom_id", "result", "params"),
    "alpacaeval": ("instruction", "output", "generator"),
    "arena": ("conversation_a", "conversation_b", "winner"),
    "preferences": ("prompt", "chosen", "rejected"),
    "ragas": ("user_input", "response", "retrieved_contexts"),
    "deepeval": ("input", "actualOutput", "expectedOutput"),
    "lm-eval": ("doc_id", "resps", "arguments"),
    "tensorzero": ("function_name", "input", "output", "episode_id"),
    "mlflow": ("info", "data", "trace_id"),
}
_ACCESS = (
    "path",
    "method",
    "status",
    "statuscode",
    "responsecode",
    "duration",
    "bytessent",
    "useragent",
    "url",
    "upstream",
    "requestmethod",
)
_TEXTS = (
    "prompt",
    "response",
    "messages",
    "answer",
    "question",
    "input",
    "output",
    "text",
    "content",
    "completion",
    "requestbody",
    "responsebody",
)


def nearest_format(documents: Sequence[Any]) -> tuple[str, list[str]] | None:
    """(the format that shares most keys, the keys of it that are missing); None where none shares half of its keys."""
    keys = {normal(str(key)) for document in documents if isinstance(document, Mapping) for key in document}
    shares = {
        form: sum(normal(key) in keys for key in wanted) / len(wanted)
        for form, wanted in _KEYS.items()
    }  # fmt: skip
    form = max(shares, key=lambda one: shares[one])
    if shares[form] < 0.5:
        return None
    return form, [key for key in _KEYS[form] if normal(key) not in keys]


def describe(name: str, kind: str, documents: Sequence[Any]) -> str:
    """The line about a file whose documents are in no format that is known."""
    objects = [document for document in documents if isinstance(document, Mapping)]
    if not objects:
        return f"{name} ({kind or 'no documents'}) holds no objects or rows: it is no log"
    columns = columns_of(objects[:20])
    words = {normal(column.rsplit(".", 1)[-1]) for column in columns}
    if len(words & set(_ACCESS)) >= 3 and not words & set(_TEXTS):
        return (
            f"{name} ({kind}) is an access log without bodies (keys: {_listed(columns)}): it holds neither prompts nor answers, "
            "only status and latency; log the bodies, or send the traffic through `evalpipe collect`"
        )
    near = nearest_format(objects)
    parts = [f"{name} ({kind}) is in no format that is known here", f"keys: {_listed(columns)}"]
    if near is not None:
        missing = f" (it lacks {', '.join(near[1])})" if near[1] else ""
        parts.append(f"nearest format: {near[0]}{missing}")
    parts.append(
        f'say where things are with --map "prompt={_best(columns, 0)}, text={_best(columns, 1)}", '
        f"or name it with --format ({', '.join(format_names())})"
    )
    return "; ".join(parts)


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:20])
    return f"{shown} and {len(columns) - 20} more" if len(columns) > 20 else shown


def _best(columns: Sequence[str], place: int) -> str:
    """A column that may hold it, else a word to fill in."""
    wanted = (
        ("prompt", "question", "input", "query", "request", "message"),
        ("answer", "response", "output", "completion", "result"),
    )[place]
    return next(
        (column for word in wanted for column in columns if word in column.lower()), ("QUESTION", "ANSWER")[place]
    )
