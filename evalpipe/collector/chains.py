"""What a request needs of what a provider keeps, and the ids an answer gives out by which a later request may ask for it.

OpenAI keeps responses and conversations, Anthropic threads and containers, both keep files: each for one account. Two arms
on two accounts do not see each other's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from evalpipe.providers.encoding import EncodingError, decode
from evalpipe.providers.jsontext import as_dict, as_list, as_text
from evalpipe.providers.translate.same_dialect import holds_provider_file

_MAX_SCANNED: Final = 1 << 20
_MAX_IDS: Final = 64
_IDS: Final = re.compile(rb'"(?:id|container_id|file_id|fallback_credit_token)"\s*:\s*"([^"\\]{1,200})"')
"""an id as a member of its own; within a text the quotation marks are escaped"""
_CLIENTS_OWN: Final = frozenset({"function", "custom", "namespace", "local_shell", "apply_patch"})
"""tools the client runs: nothing of them is kept by the provider"""


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """`made`: ids an earlier answer gave out, newest first: only the arm that gave them can go on. `may_be_made`: ids that
    change nothing where they are not known. `kept`: the key of an object of control's account that was made beside the
    collected requests, None where there is none. `gives_out`: a later request may name ids of the answer."""

    made: tuple[str, ...] = ()
    may_be_made: tuple[str, ...] = ()
    kept: str | None = None
    gives_out: bool = False


NOTHING: Final = Needs()


def needs_of(endpoint: str, document: Any, body: bytes, beta: str) -> Needs:
    """`document`: the parsed body. `beta`: the `anthropic-beta` header."""
    if not isinstance(document, dict):
        return NOTHING
    if endpoint == "responses":
        return _of_responses(document, body)
    if endpoint == "messages":
        return _of_messages(document, body, beta)
    return _of_chat(document, body)


def ids_in(headers: Mapping[str, str], body: bytes) -> list[str]:
    """The ids an answer gives out, in their order."""
    try:
        data = decode(headers, body).data[:_MAX_SCANNED]
    except EncodingError:
        return []
    found: dict[str, None] = {}
    for match in _IDS.finditer(data):
        found[str(match[1], "utf-8", "replace")] = None
        if len(found) == _MAX_IDS:
            break
    return list(found)


def _of_responses(document: dict[str, Any], body: bytes) -> Needs:
    made: list[str] = []
    may: list[str] = []
    previous = as_text(document.get("previous_response_id"))
    if previous:
        made.append(previous)
    for item in reversed(as_list(document.get("input"))):
        kind, name = as_dict(item).get("type"), as_text(as_dict(item).get("id"))
        if name and kind == "item_reference":
            made.append(name)
        elif name and kind in {"reasoning", "compaction"}:
            may.append(name)  # encrypted for the account that made it, and carried by the client
    for tool in map(as_dict, as_list(document.get("tools"))):
        container = as_text(tool.get("container"))
        if container:
            made.append(container)
    stored = document.get("store") is not False
    encrypts = "reasoning.encrypted_content" in as_list(document.get("include"))
    return Needs(
        made=tuple(made),
        may_be_made=tuple(may),
        kept=_kept(document, ("conversation", "prompt"), body),
        gives_out=stored or encrypts or _has_tools_of_the_provider(document),
    )


def _of_messages(document: dict[str, Any], body: bytes, beta: str) -> Needs:
    made: list[str] = []
    thread, container = document.get("thread"), document.get("container")
    for holder, key in (
        (thread, "previous_message_id"),
        (container, "id"),
        (document.get("diagnostics"), "previous_message_id"),
    ):
        name = as_text(as_dict(holder).get(key))
        if name:
            made.append(name)
    credit = document.get("fallback_credit_token")
    for value in (container, credit, as_dict(credit).get("token")):
        if isinstance(value, str) and value:
            made.append(value)
    kept_any = bool(thread or container or document.get("diagnostics"))
    return Needs(
        made=tuple(made),
        kept=_kept(document, (), body),
        gives_out=kept_any or "fallback" in beta or _has_tools_of_the_provider(document),
    )


def _of_chat(document: dict[str, Any], body: bytes) -> Needs:
    made = []
    if b'"audio"' in body:
        for message in reversed(as_list(document.get("messages"))):
            name = as_text(as_dict(as_dict(message).get("audio")).get("id"))
            if name:
                made.append(name)
    gives_out = bool(document.get("audio")) or document.get("store") is True
    return Needs(made=tuple(made), kept=_kept(document, (), body), gives_out=gives_out)


def _kept(document: dict[str, Any], keys: tuple[str, ...], body: bytes) -> str | None:
    for key in keys:
        if document.get(key):
            return key
    if b'"file_id"' in body and holds_provider_file(document.get("input") or document.get("messages")):
        return "file_id"
    for tool in map(as_dict, as_list(document.get("tools"))):
        if tool.get("vector_store_ids"):
            return "vector_store_ids"
        if as_dict(tool.get("container")).get("file_ids"):
            return "file_ids"
    return None


def _has_tools_of_the_provider(document: dict[str, Any]) -> bool:
    kinds = [as_dict(tool).get("type") for tool in as_list(document.get("tools"))]
    return any(kind is not None and kind not in _CLIENTS_OWN for kind in kinds)
