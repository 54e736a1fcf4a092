"""Translation of requests: a client's request → the request an arm gets, in its dialect, model and parameters."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from evalpipe.providers import request_fields
from evalpipe.providers.base import ENDPOINTS, NotShadowableError, OutgoingRequest
from evalpipe.providers.chat import read_chat, render_chat
from evalpipe.providers.conversation import Conversation
from evalpipe.providers.decoding import header
from evalpipe.providers.json_values import MalformedJSONError, as_dict, as_list, as_scalar, dump_bytes, parse
from evalpipe.providers.messages import read_messages, render_messages
from evalpipe.providers.model_names import (
    family,
    is_newer_claude,
    takes_adaptive_thinking,
    takes_max_completion_tokens,
    takes_sampling,
)
from evalpipe.providers.registry import PROVIDERS, serves
from evalpipe.providers.request_fields import LIMITS, names_field, without_fields
from evalpipe.providers.responses import check_state, read_responses

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
    server does not accept, in its dialect or the client's; `params` are written after them. `ask_usage` False: the server is
    known to refuse `stream_options`, which are then added to no stream. `headers`: the client's, of which only
    `anthropic-version` and `anthropic-beta` are carried, to an arm of the same dialect. A shadow request leaves out what leaves
    traces (storing, provider-side state); with `served` the user's own answer comes from this arm, so in the same
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
        if serves(provider, endpoint):
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
        strip_side_effects(
            endpoint,
            changed,
            own_keys=settings.params.keys(),
            stores_by_default=stores_by_default,
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


# A request for another model of the same dialect: model, parameters and system prompt replaced, side effects taken out.


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
    "top_logprobs",
    "logit_bias",
)
_REASONING = ("reasoning_effort", "verbosity", "reasoning")
_LIMITS = {
    "chat.completions": LIMITS,
    "responses": ("max_output_tokens", "max_completion_tokens", "max_tokens"),
    "messages": ("max_tokens", "max_completion_tokens"),
}


class ArmRequest:
    """How an arm's requests differ from the client's: its `[arms.*]` settings that are written into them, and whether its
    server may be asked for the usage of a stream. (No dataclass: one is made for every shadow request, and in compiled
    code this is ten times as fast.)"""

    __slots__ = ("ask_usage", "drop", "model", "params", "system_prompt")

    def __init__(
        self,
        *,
        model: str | None,
        params: Mapping[str, Any],
        system_prompt: str | None,
        drop: tuple[str, ...],
        ask_usage: bool,
    ) -> None:
        self.model, self.params, self.system_prompt = model, params, system_prompt
        self.drop, self.ask_usage = drop, ask_usage


def replace_settings(endpoint: str, body: dict[str, Any], settings: ArmRequest) -> None:
    """Write model, parameters and system prompt into `body` (changed in place), and adapt what the new model would refuse."""
    model = settings.model
    moved = model is not None and model != body.get("model")
    if model is not None:
        body["model"] = model
    target = str(body.get("model") or "")
    if moved:
        _adapt(endpoint, body, target)
    if settings.system_prompt is not None:
        _replace_system(endpoint, body, settings.system_prompt)
    set_params(endpoint, body, settings, target)


def set_params(endpoint: str, body: dict[str, Any], settings: ArmRequest, model: str) -> None:
    """Write the arm's own parameters over the request's; a token limit under the name the model and its server take."""
    names = _LIMITS[endpoint]
    limits = [key for key in names if key in settings.params]
    if limits:
        for key in names:
            body.pop(key, None)
    body.update(settings.params)
    given = [key for key in names if body.get(key) is not None]
    if not given:
        return
    limit = body[given[0]]
    if endpoint == "chat.completions":
        name = "max_completion_tokens" if takes_max_completion_tokens(model) else given[0]
        if name in settings.drop:
            name = names[1 - names.index(name)]
    else:
        name = names[0]
    for key in given:
        del body[key]
    body[name] = limit


def strip_side_effects(
    endpoint: str,
    body: dict[str, Any],
    *,
    own_keys: Collection[str] = (),
    stores_by_default: bool = False,
) -> None:
    """Make `body` a copy that leaves nothing behind. Raises NotShadowableError where it could not be answered then, or where
    that is not known.

    `own_keys`: keys the arm's configuration sets itself. `stores_by_default`: the server keeps a chat completion unless it is
    asked not to.
    """
    if endpoint == "responses":
        check_state(body)
    elif endpoint == "messages":
        request_fields.check_state(body)
    if body.get("web_search_options") is not None:
        raise NotShadowableError("server_tools", "web_search_options")
    if body.get("container") or body.get("mcp_servers"):
        raise NotShadowableError("server_tools", "container" if body.get("container") else "mcp_servers")
    request_fields.check_keys(endpoint, body, also=own_keys)
    for key in request_fields.left_out_of(endpoint).intersection(body):
        del body[key]
    if endpoint == "responses":
        body.pop("background", None)
        body.pop("background_options", None)
        body["store"] = False  # stored by default
        body["input"] = _without_ids(body.get("input"))
    elif endpoint == "chat.completions":
        is_known = body.pop("store", None) is not None
        if is_known or stores_by_default:
            body["store"] = False
    if endpoint == "messages" and body.get("max_tokens") == 0:
        raise NotShadowableError("cache_prewarm")
    if holds_provider_file(body.get("input" if endpoint == "responses" else "messages")):
        raise NotShadowableError("provider_file")


def ask_for_usage(endpoint: str, body: dict[str, Any], settings: ArmRequest) -> bool:
    """Have a chat stream report its usage, which the other dialects' streams always do; False where nothing was added. What
    the arm's own settings set in `stream_options` stays."""
    if endpoint != "chat.completions" or body.get("stream") is not True or not settings.ask_usage:
        return False
    if "stream_options" in settings.params or names_field(settings.drop, "stream_options"):
        return False
    given = as_dict(body.get("stream_options"))
    body["stream_options"] = {**given, "include_usage": True}
    return True


def _adapt(endpoint: str, body: dict[str, Any], model: str) -> None:
    if not takes_sampling(model):
        for key in _SAMPLING:
            body.pop(key, None)
    if family(model) == "gpt" and not takes_max_completion_tokens(model):
        for key in _REASONING:
            body.pop(key, None)
    if endpoint == "chat.completions" and family(model) not in {None, "gpt"}:
        newer, older = LIMITS  # elsewhere than at OpenAI the older name is the one every server accepts
        limit = body.pop(newer, None)
        if limit is not None:
            body[older] = limit
    if endpoint != "messages":
        return
    thinking = as_dict(body.get("thinking"))
    if thinking.get("type") == "enabled" and is_newer_claude(model):
        body["thinking"] = {"type": "adaptive"}
    elif thinking.get("type") == "adaptive" and not takes_adaptive_thinking(model):
        del body["thinking"]
    messages = as_list(body.get("messages"))
    if messages and as_dict(messages[-1]).get("role") == "assistant" and is_newer_claude(model):
        raise NotShadowableError("assistant_prefill")


def _replace_system(endpoint: str, body: dict[str, Any], prompt: str) -> None:
    if endpoint == "messages":
        body["system"] = prompt
        return
    key = "messages" if endpoint == "chat.completions" else "input"
    given = body.get(key)
    system = {"role": "system", "content": prompt}
    if isinstance(given, list):
        first = next(
            (i for i, m in enumerate(given) if as_scalar(as_dict(m).get("role")) not in {"system", "developer"}),
            len(given),
        )
        if first and as_dict(given[0]).get("role") == "developer":
            system["role"] = "developer"
        body[key] = given[first:]
    if endpoint == "responses":
        body["instructions"] = prompt
    else:
        body[key] = [system, *as_list(body.get(key))]


def _without_ids(items: Any) -> Any:
    """Input items without the ids of their provider's store, and without reasoning, which only its provider can read."""
    if not isinstance(items, list):
        return items
    kept = [item for item in items if as_dict(item).get("type") != "reasoning"]
    return [
        {key: value for key, value in item.items() if key != "id"} if isinstance(item, dict) else item for item in kept
    ]


_FILE_HOLDERS = ("content", "source", "file", "output")


def holds_provider_file(value: Any) -> bool:
    """Whether messages or input items name a file that was uploaded to their provider."""
    if isinstance(value, list):
        for item in value:
            if holds_provider_file(item):
                return True
    elif isinstance(value, dict):
        if isinstance(value.get("file_id"), str):
            return True
        for key in _FILE_HOLDERS:
            if key in value and holds_provider_file(value[key]):
                return True
    return False
