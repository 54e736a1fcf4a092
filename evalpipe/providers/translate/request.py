"""The door of request translation: a client's request → the request an arm gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from evalpipe.providers.base import ENDPOINTS, NotShadowableError, OutgoingRequest
from evalpipe.providers.chat.read_request import read_chat
from evalpipe.providers.chat.write_request import render_chat
from evalpipe.providers.conversation import Conversation
from evalpipe.providers.encoding import header
from evalpipe.providers.jsontext import MalformedJSONError, dump_bytes, parse
from evalpipe.providers.messages.read_request import read_messages
from evalpipe.providers.messages.write_request import render_messages
from evalpipe.providers.registry import PROVIDERS, speaks
from evalpipe.providers.responses.read_request import read_responses
from evalpipe.providers.translate.drop import without_fields
from evalpipe.providers.translate.same_dialect import (
    ArmRequest,
    ask_for_usage,
    replace_settings,
    set_params,
    strip_effects,
)

PATHS: Mapping[str, str] = {endpoint: path for path, endpoint in ENDPOINTS.items()}
ANTHROPIC_VERSION = "2023-06-01"
_JSON: Mapping[str, str] = {"content-type": "application/json"}

_READERS: Mapping[str, Callable[[dict[str, Any]], Conversation]] = {
    "chat.completions": read_chat,
    "responses": read_responses,
    "messages": read_messages,
}
_RENDERERS: Mapping[str, Callable[[Conversation, str], dict[str, Any]]] = {
    "chat.completions": render_chat,
    "messages": render_messages,
}


def render_treatment_request(
    endpoint: str,
    body: bytes,
    *,
    provider: str,
    model: str | None = None,
    params: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    drop: Sequence[str] = (),
    ask_usage: bool = True,
    headers: Mapping[str, str] | None = None,
    served: bool = False,
    stores_by_default: bool = False,
) -> OutgoingRequest:
    """The request an arm gets for a client's request at `endpoint`: without credentials, in the arm's own dialect.

    `model`, `params` (the arm's parameter names) and `system_prompt` replace what the client sent. `drop`: fields the arm's
    server does not know, in its dialect or the client's; `params` are written after them. `ask_usage` False: the server is
    known to refuse `stream_options`, which are then added to no stream. `headers`: the client's,
    of which only `anthropic-version` and `anthropic-beta` are carried, to an arm of the same dialect. A copy leaves out what
    leaves traces (storing, provider-side state); with `served` the user's own answer comes from this arm, so in the same
    dialect nothing but the settings changes. `stores_by_default`: the arm's server keeps answers unless asked not to. Raises
    NotShadowableError with the reason where no faithful request exists.
    """
    try:
        document = parse(body)
    except MalformedJSONError:
        raise NotShadowableError("unreadable_request") from None
    if not isinstance(document, dict):
        raise NotShadowableError("unreadable_request")
    settings = ArmRequest(
        model=model, params=params or {}, system_prompt=system_prompt, drop=tuple(drop), ask_usage=ask_usage
    )
    try:
        if speaks(provider, endpoint):
            return _same_dialect(endpoint, body, document, settings, headers or {}, served, stores_by_default)
        return _other_dialect(endpoint, document, provider, settings)
    except (RecursionError, TypeError, AttributeError) as error:
        # Values of types no provider takes: the provider would refuse the request too.
        raise NotShadowableError("unreadable_request", type(error).__name__) from error


def _same_dialect(
    endpoint: str,
    body: bytes,
    document: dict[str, Any],
    settings: ArmRequest,
    headers: Mapping[str, str],
    served: bool,
    stores_by_default: bool,
) -> OutgoingRequest:
    changed = dict(without_fields(endpoint, document, settings.drop))
    if not served:
        strip_effects(
            endpoint,
            changed,
            own_keys=settings.params.keys(),
            stores_by_default=stores_by_default,
            may_hold_files=b"file_id" in body,
        )
    replace_settings(endpoint, changed, settings)
    asks = not served and ask_for_usage(endpoint, changed, settings)
    return _outgoing(endpoint, body if changed == document else dump_bytes(changed), headers, asks)


def _other_dialect(endpoint: str, document: dict[str, Any], provider: str, settings: ArmRequest) -> OutgoingRequest:
    if settings.model is None:
        raise NotShadowableError("no_model")
    conversation = _READERS[endpoint](without_fields(endpoint, document, settings.drop))
    if settings.system_prompt is not None:
        conversation.system = settings.system_prompt
    target = PROVIDERS[provider][0]
    rendered = dict(without_fields(target, _RENDERERS[target](conversation, settings.model), settings.drop))
    set_params(target, rendered, settings, settings.model)
    asks = ask_for_usage(target, rendered, settings)
    return _outgoing(target, dump_bytes(rendered), {}, asks)


def _outgoing(endpoint: str, body: bytes, headers: Mapping[str, str], asks_usage: bool) -> OutgoingRequest:
    sent = _JSON
    if endpoint == "messages":
        sent = _anthropic_headers(header(headers, "anthropic-version"), header(headers, "anthropic-beta"))
    return OutgoingRequest(endpoint=endpoint, path=PATHS[endpoint], headers=sent, body=body, asks_usage=asks_usage)


@lru_cache(maxsize=256)
def _anthropic_headers(version: str, beta: str) -> Mapping[str, str]:
    """The same object for the same headers: who renders them need do it once."""
    return {**_JSON, "anthropic-version": version or ANTHROPIC_VERSION, **({"anthropic-beta": beta} if beta else {})}
