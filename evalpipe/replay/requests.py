"""A logged request → what an arm is sent for it: whole, in the arm's own dialect, as the collector's copies are. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from evalpipe.models import Arm
from evalpipe.providers.base import NotShadowableError, OutgoingRequest
from evalpipe.providers.registry import speaks
from evalpipe.providers.translate import render_treatment_request

LONGEST_ANSWER = 32_768
"""output tokens that a request without a limit of its own can cost at most, as far as a cap is concerned"""
DEFAULT_LIMIT = 4_096
"""`max_tokens` of an imported request for Anthropic, which takes none without"""
_DATA_TOKENS_BYTES = 8_000
_DATA = re.compile(rb"[A-Za-z0-9+/=_-]{4000,}")
"""a picture or a file within a request: its tokens are not counted by its bytes"""
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedRequest:
    """A request as the log holds it, and what its row says of it. `headers`: the client's that an arm of its dialect gets."""

    request_id: str
    request: str
    endpoint: str
    unit_id: str | None = None
    conversation_id: str | None = None
    prompt: str | None = None
    model: str | None = None
    turn: int | None = None
    step: int | None = None
    request_kind: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_imported: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayArm:
    """An arm that is asked. `base_url`: what the vendor's SDK would be given; `urls`: the address of each endpoint; `key`: the
    header that carries the arm's key; `fingerprint`: of what decides its answers."""

    arm: Arm
    provider: str
    base_url: str | None
    urls: Mapping[str, str]
    key: Mapping[str, str]
    model: str
    api_key_env: str | None = None
    timeout_s: float = 120.0
    params: Mapping[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    system_prompt: str | None = None
    rewrite: bool = True
    fingerprint: str = ""
    infrastructure_usd: float = 0.0

    @property
    def name(self) -> str:
        return self.arm.value

    @property
    def who(self) -> str:
        """In messages."""
        return f"arms.{self.arm.value}"

    @property
    def key_setting(self) -> str:
        return f"[arms.{self.arm.value}]"

    @property
    def stores_by_default(self) -> bool:
        """Whether its server keeps answers unless asked not to."""
        return "openai.com" in (self.base_url or "")


def outgoing_of(logged: LoggedRequest, arm: ReplayArm, *, batch: bool = False) -> OutgoingRequest:
    """The request an arm is sent. Raises NotShadowableError with the reason where no faithful one exists.

    The treatment gets its model, its parameters and its system prompt; control gets the request as it was, unless its arm is
    configured to `rewrite`. `batch`: no stream.
    """
    document = _document(logged)
    endpoint = _endpoint(logged, document)
    model: str | None = arm.model
    if not arm.rewrite:
        model = None if isinstance(document.get("model"), str) and speaks(arm.provider, endpoint) else arm.model
    if logged.is_imported and endpoint == "messages":
        document.setdefault("max_tokens", DEFAULT_LIMIT)
    made = render_treatment_request(
        endpoint,
        json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if logged.is_imported
        else logged.request.encode("utf-8", "surrogatepass"),
        provider=arm.provider,
        model=model,
        params=arm.params if arm.rewrite else {},
        drop=arm.drop if arm.rewrite else (),
        system_prompt=arm.system_prompt if arm.rewrite else None,
        headers=logged.headers,
        stores_by_default=arm.stores_by_default,
    )
    return _unstreamed(made) if batch else made


def _document(logged: LoggedRequest) -> dict[str, Any]:
    try:
        document = json.loads(logged.request)
    except (ValueError, RecursionError):
        raise NotShadowableError("unreadable_request") from None
    if not isinstance(document, dict):
        raise NotShadowableError("unreadable_request")
    if logged.is_imported and logged.model and not document.get("model"):
        document["model"] = logged.model
    return document


def _endpoint(logged: LoggedRequest, document: Mapping[str, Any]) -> str:
    """Of an imported request the dialect is that of its fields: other tools' logs do not say."""
    if not logged.is_imported:
        return logged.endpoint
    if "messages" not in document and "input" in document:
        return "responses"
    is_anthropic = "system" in document or "anthropic_version" in document or "stop_sequences" in document
    return "messages" if is_anthropic or logged.endpoint == "messages" else "chat.completions"


def _unstreamed(made: OutgoingRequest) -> OutgoingRequest:
    document = json.loads(made.body)
    if not document.pop("stream", False):
        return made
    document.pop("stream_options", None)
    return msgspec.structs.replace(made, body=json.dumps(document).encode(), asks_usage=False)


def longest_answer(body: bytes) -> int:
    """The most output tokens a request can be answered with."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return LONGEST_ANSWER
    limits = [document[name] for name in _LIMITS if isinstance(document.get(name), int)]
    n = document.get("n")
    return max(limits, default=LONGEST_ANSWER) * (n if isinstance(n, int) and n > 0 else 1)


def counted_bytes(body: bytes) -> int:
    """Bytes to bound a request's input tokens by: pictures and files within it count by what they can cost at most."""
    found = _DATA.findall(body)
    return len(body) - sum(map(len, found)) + _DATA_TOKENS_BYTES * len(found)
