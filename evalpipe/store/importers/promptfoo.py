"""promptfoo: the results of an evaluation (JSON, or JSONL with one result a line). Two providers, or two prompts, are
two arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from evalpipe.identity import fingerprint
from evalpipe.store.importers.base import json_text
from evalpipe.store.importers.responses import read_said
from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, has, name, number, opened


def _is_result(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and has(value, "provider")
        and has(value, "response")
        and has(value, "prompt")
        and any(has(value, key) for key in ("vars", "testIdx", "testCase", "gradingResult", "promptIdx"))
    )


def _results(document: Any) -> list[Any]:
    inner = document.get("results") if isinstance(document, Mapping) else None
    if isinstance(inner, Mapping):
        inner = inner.get("results")
    return inner if isinstance(inner, list) else []


def matches(document: Any) -> bool:
    return _is_result(document) or any(map(_is_result, _results(document)[:5]))


def calls(document: Any) -> Iterator[Any]:
    results = [document] if _is_result(document) else _results(document)
    providers = {_provider(one) for one in results if isinstance(one, Mapping)}
    n_seen: Counter[str] = Counter()
    for one in results:
        if not isinstance(one, Mapping):
            continue
        by_provider = len(providers) > 1 or len(results) == 1
        arm = (
            _provider(one)
            if by_provider
            else str(find(one, "prompt.label") or find(one, "prompt.raw") or find(one, "promptIdx"))
        )
        asked = f"-{fingerprint(find(one, 'prompt.raw') or '', length=8)}" if by_provider else ""
        test = find(one, "testIdx")
        key = f"test-{test if test is not None else fingerprint(json_text(find(one, 'vars')) or '', length=12)}{asked}"
        n_seen[f"{arm}\0{key}"] += 1
        repeat = n_seen[f"{arm}\0{key}"]
        yield {**one, "_id": key if repeat == 1 else f"{key}-{repeat}", "_arm": arm}


def _provider(result: Mapping[str, Any]) -> str:
    provider = result.get("provider")
    if isinstance(provider, Mapping):
        return str(provider.get("label") or provider.get("id"))
    return str(provider)


def amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    provider = find(call, "provider.id") or call.get("provider")
    row["model_requested"] = row["model"] = str(provider).split(":")[-1] if provider else None
    output = opened(find(call, "response.output"))
    row["said"] = read_said(call.get("response") if output is None else output)
    if isinstance(output, Mapping | list) and row["said"].is_empty:
        row["text"] = json_text(output)
    reason = number(find(call, "failureReason"))
    error = find(call, "response.error") or (find(call, "error") if reason == 2 or row["said"].is_empty else None)
    row["error"] = error  # a failed assertion stands in `error` too, and is no failure of the call
    row["meta"] = {
        key: call.get(key) for key in ("vars", "success", "score", "namedScores", "gradingResult") if key in call
    }
    row["unit"] = name(find(call, "vars.user_id") or find(call, "metadata.user_id"))


PROMPTFOO = Format(
    name="promptfoo",
    help="promptfoo results (JSON, JSONL); two providers or two prompts are two arms",
    matches=matches,
    calls=calls,
    amend=amend,
    guesses_users=False,
    fields={
        "id": ("_id",),
        "variant": ("_arm",),
        "prompt": ("prompt.raw", "prompt"),
        "usage": ("response.tokenUsage", "tokenUsage"),
        "cost": ("cost", "response.cost"),
        "latency_ms": ("latencyMs", "response.latencyMs"),
        "finish_reason": ("response.finishReason",),
        "text": (),
    },
)
IMPORTER = PROMPTFOO.importer()
