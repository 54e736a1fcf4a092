"""Inspect AI: an evaluation log in JSON; each sample and epoch is one exchange.

Two logs of the same task pair by themselves: load one as it is and the other with `--arm treatment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from evalpipe.models import Exchange
from evalpipe.store.importers.base import (
    BrokenLineError,
    Fields,
    Imported,
    Importer,
    as_mapping,
    as_messages,
    logged_exchange,
    unknown_time,
)
from evalpipe.store.importers.messages import read_content, read_messages


def matches(document: Any) -> bool:
    return isinstance(document, Mapping) and {"eval", "samples", "plan"} <= document.keys()


def read(document: Any, line: int) -> Imported:
    samples = document.get("samples")
    if not isinstance(samples, list) or not all(isinstance(sample, Mapping) for sample in samples):
        raise BrokenLineError("samples is not a list of objects (a log without its samples holds no answers)")
    run = Fields(as_mapping(document.get("eval")), "eval")
    created, task, model = run.time("created"), run.text("task") or "task", run.text("model")
    return Imported(
        exchanges=[
            _exchange(sample, task, model, created or unknown_time(number)) for number, sample in enumerate(samples, 1)
        ]
    )


def _exchange(sample: Mapping[str, Any], task: str, model: str | None, started_at: datetime) -> Exchange:
    sample = _with_attachments(sample)
    fields, output = Fields(sample, "sample"), as_mapping(sample.get("output"))
    told = Fields(output, "output")
    usage = Fields(as_mapping(output.get("usage")), "usage")
    choices = output.get("choices")
    choice = as_mapping(choices[0]) if isinstance(choices, list) and choices else {}
    message = as_mapping(choice.get("message"))
    content = read_content(message.get("content"))
    reason = Fields(choice).text("stop_reason")
    sample_id = fields.text("id", required=True)
    seconds = told.number("time", low=0)
    failed = as_mapping(sample.get("error")).get("message") or output.get("error")
    return logged_exchange(
        f"{task}:{sample_id}:{fields.count('epoch') or 1}",
        started_at,
        messages=_asked(sample),
        text=content.text,
        error=None if failed is None else str(failed),
        finish_reason=reason,
        tool_calls=message.get("tool_calls"),
        response=output or None,
        meta={name: sample.get(name) for name in ("target", "scores", "metadata")},
        # Epochs of a sample are repetitions of one question: one unit.
        unit_id=f"{task}:{sample_id}",
        model_requested=model,
        model=told.text("model") or model,
        latency_ms=None if seconds is None else 1000 * seconds,
        input_tokens=usage.count("input_tokens"),
        cached_input_tokens=usage.count("input_tokens_cache_read"),
        cache_write_tokens=usage.count("input_tokens_cache_write"),
        output_tokens=usage.count("output_tokens"),
        reasoning_tokens=usage.count("reasoning_tokens"),
    )


def _with_attachments(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sample with its long texts, which newer logs keep apart, put back in their places."""
    kept = sample.get("attachments")
    if not isinstance(kept, Mapping) or not kept:
        return sample

    def filled(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("attachment://"):
            return kept.get(value.removeprefix("attachment://"), value)
        if isinstance(value, Mapping):
            return {key: filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else value

    return {key: filled(value) if key in {"input", "messages", "output"} else value for key, value in sample.items()}


def _asked(sample: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The conversation before the last answer; without messages, the sample's input."""
    messages = read_messages(as_messages(sample.get("messages")))
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return list(messages) or as_messages(sample.get("input"))


IMPORTER = Importer(name="inspect", help="Inspect AI evaluation logs (.json)", matches=matches, read=read)
