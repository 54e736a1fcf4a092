"""Paths of model calls: which API a path belongs to, and the full path where an arm's address has a path of its own.

An address is built on as the vendors' SDKs do it: OpenAI's appends `/chat/completions` or `/responses` to `base_url`
(openai-python `_base_client._prepare_url`), Anthropic's `/v1/messages` (anthropic-python `resources/messages`). An address
that is a host alone gets `/v1` of both.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

ADDRESS: Final = r"^https?://[^\s/?#]+(/[^\s?#]*)?(\?[^\s#]*)?$"
"""a `base_url`"""
_ENDS: Final = (
    ("/chat/completions", "chat.completions"),
    ("/responses", "responses"),
    ("/messages", "messages"),
)
_END_OF: Final = {endpoint: end for end, endpoint in _ENDS}
_AT_ROOT: Final = frozenset({"api.perplexity.ai", "api.githubcopilot.com", "models.inference.ai.azure.com"})
"""hosts that take chat completions at their root and not below /v1 (docs.perplexity.ai; aaif-goose/goose#11568)"""
_DEPLOYMENTS: Final = "/openai/deployments/"
_AZURE_HOSTS: Final = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")

_UNCOLLECTED_ENDS: Final = (
    "/completions",  # OpenAI's older API, vLLM, llama.cpp
    "/complete",  # Anthropic's older API
    "/completion",  # llama.cpp
    "/chat",  # Ollama /api/chat, Cohere /v2/chat
    "/generate",  # Ollama, TGI, vLLM
    "/generate_stream",  # TGI
    "/infer",  # Triton
    "/converse",  # Bedrock
    "/converse-stream",
    "/invoke",
    "/invoke-with-response-stream",
    "/runs",  # OpenAI's Assistants
    "/interactions",  # Gemini
    "/responses/compact",  # OpenAI; asked by Codex
    "/agent",  # Perplexity
    "/sonar",
)
"""ends of paths at which other APIs are asked for a model's answer"""
_UNCOLLECTED_VERBS: Final = frozenset(
    {"generatecontent", "streamgeneratecontent", "rawpredict", "streamrawpredict", "predict", "generatetext"}
)
"""what follows a colon in Google's paths"""
_IDENTIFIER: Final = re.compile(
    r"[0-9]+|[0-9a-fA-F]{16,}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[a-z]{2,12}_[A-Za-z0-9_-]{8,}"
)
_SECRET_NAME: Final = re.compile(r"key|token|secret|signature|password|^sig$", re.IGNORECASE)
_LONGEST_SHOWN: Final = 120


def endpoint_of(path: str) -> str | None:
    """The API whose requests are sent to a path, known by its end: `/v1`, an Azure deployment, a double or a trailing slash
    change nothing. None for every other path; a message of an assistant's thread is no request to a model."""
    parts = [part for part in path.split("/") if part]
    end = "/" + "/".join(parts).lower()
    for ending, endpoint in _ENDS:
        if end.endswith(ending):
            if endpoint == "messages" and len(parts) > 1 and "threads" in (part.lower() for part in parts[:-1]):
                return None
            return endpoint
    return None


def looks_like_model_call(path: str) -> bool:
    """Whether a path that is not collected is one at which some API is asked for a model's answer."""
    path = "/" + "/".join(part for part in path.split("/") if part).lower()
    if "/uploads/" in path:  # `/v1/uploads/ID/complete` ends a file
        return False
    return path.endswith(_UNCOLLECTED_ENDS) or path.rpartition("/")[2].rpartition(":")[2] in _UNCOLLECTED_VERBS


def shown_path(path: str) -> str:
    """A path as it is counted and shown: without its query, ids replaced, of bounded length."""
    shown = "/".join("*" if _IDENTIFIER.fullmatch(part) else part for part in path.partition("?")[0].split("/"))
    shown = "".join(character if " " < character < "\x7f" else "?" for character in shown)
    return shown if len(shown) <= _LONGEST_SHOWN else shown[: _LONGEST_SHOWN - 1] + "…"


def split_address(base_url: str) -> tuple[str, str, bool]:
    """(path without its trailing slash, query, whether the server is asked at this very path) of a `base_url`.

    The whole address of an endpoint (`https://host/v2/chat/completions`) is taken as well: what follows the base is cut off.
    Without a path, requests go below `/v1` unless the host is known to answer at its root.
    """
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/")
    for end, _ in _ENDS:
        if path.endswith(end):
            return path[: -len(end)].rstrip("/"), parts.query, True
    return path, parts.query, bool(path) or (parts.hostname or "") in _AT_ROOT


def is_azure(base_url: str) -> bool:
    """Whether the server is Azure's, which takes a key as `api-key` (Azure OpenAI REST reference; its SDK sends no other)."""
    parts = urlsplit(base_url)
    return (parts.hostname or "").endswith(_AZURE_HOSTS) or _DEPLOYMENTS in parts.path


def endpoint_path(base_path: str, endpoint: str, *, is_exact: bool) -> str:
    """The path at which a server is asked for an endpoint.

    Args:
        base_path, is_exact: of its address, from `split_address`.
        endpoint: "chat.completions", "responses" or "messages".
    """
    end = _END_OF[endpoint]
    if endpoint == "messages":
        if is_exact and not base_path:
            return end
        return base_path.removesuffix("/v1") + "/v1" + end
    if (
        endpoint == "responses" and _DEPLOYMENTS in base_path
    ):  # not an API of one deployment (openai-python lib/azure.py)
        return base_path.partition(_DEPLOYMENTS)[0] + "/openai" + end
    return base_path + end if is_exact else "/v1" + end


def served_path(base_path: str, path: str, *, is_exact: bool, from_anthropic: bool) -> str:
    """The path of a client's request at the server: base path and client's path, what both hold standing once.

    Args:
        base_path, is_exact: of the server's address, from `split_address`.
        path: the client's, without its query.
        from_anthropic: the client is Anthropic's SDK or uses its API: `/v1` belongs to its paths, not to the address.
    """
    if not is_exact:
        return path
    endpoint = endpoint_of(path)
    if not base_path and endpoint != "chat.completions":  # a known host: only chat completions are at its root
        return path
    path = "/" + path.lstrip("/")
    if base_path and (path == base_path or path.startswith(base_path + "/")):
        return path
    if base_path.endswith("/v1") and (path == "/v1" or path.startswith("/v1/")):
        return base_path + path[len("/v1") :]
    if base_path.startswith("/openai/") and path.startswith(
        "/openai/"
    ):  # Azure's: another deployment, or its newer API
        return path
    if endpoint == "responses" and _DEPLOYMENTS in base_path:
        return endpoint_path(base_path, endpoint, is_exact=True)
    if path.startswith("/v1/") and not from_anthropic:
        path = path[len("/v1") :]
    return base_path + path


def merged_query(own: str, base: str) -> str:
    """A client's query with what the address names besides (`api-version=…`); the client's own value goes first."""
    if not base:
        return own
    names = {name for name, _ in parse_qsl(own, keep_blank_values=True)}
    added = [part for part in base.split("&") if part and part.partition("=")[0] not in names]
    return "&".join([own, *added]) if own else "&".join(added)


def address_fault(base_url: str) -> str | None:
    """What is wrong with the query of an address, in words; None where nothing is."""
    for name, _ in parse_qsl(urlsplit(base_url).query, keep_blank_values=True):
        if _SECRET_NAME.search(name):
            return f"{name!r} in an address would be written to logs and reports: set api_key_env instead"
    return None
