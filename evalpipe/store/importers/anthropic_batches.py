"""Anthropic's message batches: the requests, and the results that answer them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalpipe.store.importers.table import Format
from evalpipe.store.importers.values import find, opened


def is_request(document: Any) -> bool:
    return isinstance(document, Mapping) and {"custom_id", "params"} <= document.keys()


def matches(document: Any) -> bool:
    if is_request(document):
        return True
    result = opened(document.get("result")) if isinstance(document, Mapping) else None
    return isinstance(result, Mapping) and "custom_id" in document and "type" in result


def left_out(call: Any) -> str | None:
    if is_request(call):
        return "requests of a batch, whose answers are in its results file: load both together"
    kind = find(call, "result.type")
    return f"requests of a batch that were {kind}" if kind in {"canceled", "expired"} else None


def companion(document: Any) -> tuple[str, Any] | None:
    return (str(document["custom_id"]), document["params"]) if is_request(document) else None


def joined(document: Any, memory: Mapping[str, Any]) -> Any:
    found = memory.get(str(document.get("custom_id"))) if isinstance(document, Mapping) else None
    return document if found is None or is_request(document) else {**document, "_request": found[-1]}


def amend(call: Mapping[str, Any], row: dict[str, Any]) -> None:
    if find(call, "result.type") == "errored":
        error = opened(find(call, "result.error"))
        inner = error.get("error") if isinstance(error, Mapping) and isinstance(error.get("error"), Mapping) else error
        row["error"] = inner or "errored"


ANTHROPIC = Format(
    name="anthropic",
    help="Anthropic message batches (requests and results)",
    matches=matches,
    left_out=left_out,
    amend=amend,
    companion=companion,
    joined=joined,
    fields={"id": ("custom_id",), "prompt": ("_request",), "answer": ("result.message",), "error": (), "provider": ()},
)
IMPORTER = ANTHROPIC.importer()
