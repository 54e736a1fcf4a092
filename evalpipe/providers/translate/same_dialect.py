"""A request for another model of the same dialect: model, parameters and system prompt replaced, side effects taken out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.jsontext import as_dict, as_list
from evalpipe.providers.models import (
    family,
    is_newer_claude,
    takes_adaptive_thinking,
    takes_max_completion_tokens,
    takes_sampling,
)
from evalpipe.providers.responses.read_request import check_state
from evalpipe.providers.translate import copied_keys
from evalpipe.providers.translate.drop import LIMITS, names_field

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


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmRequest:
    """How an arm's requests differ from the client's: its `[arms.*]` settings that are written into them, and whether its
    server may be asked for the usage of a stream."""

    model: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    drop: tuple[str, ...] = ()
    ask_usage: bool = True


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


def strip_effects(
    endpoint: str,
    body: dict[str, Any],
    *,
    own_keys: Collection[str] = (),
    stores_by_default: bool = False,
    may_hold_files: bool = True,
) -> None:
    """Make `body` a copy that leaves nothing behind. Raises NotShadowableError where it could not be answered then, or where
    that is not known.

    `own_keys`: keys the arm's configuration sets itself. `stores_by_default`: the server keeps a chat completion unless it is
    asked not to. `may_hold_files` False spares the walk through all messages: the caller knows that no file id is in them.
    """
    if endpoint == "responses":
        check_state(body)
    elif endpoint == "messages":
        copied_keys.check_state(body)
    if body.get("web_search_options") is not None:
        raise NotShadowableError("server_tools", "web_search_options")
    if body.get("container") or body.get("mcp_servers"):
        raise NotShadowableError("server_tools", "container" if body.get("container") else "mcp_servers")
    copied_keys.check_keys(endpoint, body, also=own_keys)
    for key in copied_keys.left_out_of(endpoint):
        body.pop(key, None)
    if endpoint == "responses":
        body.pop("background", None)
        body.pop("background_options", None)
        body["store"] = False  # stored unless told otherwise
        body["input"] = _without_ids(body.get("input"))
    elif endpoint == "chat.completions":
        is_known = body.pop("store", None) is not None
        if is_known or stores_by_default:
            body["store"] = False
    if endpoint == "messages" and body.get("max_tokens") == 0:
        raise NotShadowableError("cache_prewarm")
    if may_hold_files and holds_provider_file(body.get("input" if endpoint == "responses" else "messages")):
        raise NotShadowableError("provider_file")


def ask_for_usage(endpoint: str, body: dict[str, Any], settings: ArmRequest) -> bool:
    """Have a chat stream report its usage, which the other dialects' streams always do; False where nothing was added. What
    the arm's own settings say of `stream_options` stays."""
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
        newer, older = LIMITS  # elsewhere than at OpenAI the older name is the one every server knows
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
            (i for i, m in enumerate(given) if as_dict(m).get("role") not in {"system", "developer"}), len(given)
        )
        if first and as_dict(given[0]).get("role") == "developer":
            system["role"] = "developer"
        body[key] = given[first:]
    if endpoint == "responses":
        body["instructions"] = prompt
    else:
        body[key] = [system, *as_list(body.get(key))]


def _without_ids(items: Any) -> Any:
    """Input items without the ids they have in somebody's store, and without reasoning, which only its maker can read."""
    if not isinstance(items, list):
        return items
    kept = [item for item in items if as_dict(item).get("type") != "reasoning"]
    return [
        {key: value for key, value in item.items() if key != "id"} if isinstance(item, dict) else item for item in kept
    ]


def holds_provider_file(value: Any) -> bool:
    """Whether messages or input items name a file that was uploaded to their provider."""
    if isinstance(value, list):
        return any(holds_provider_file(item) for item in value)
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("file_id"), str):
        return True
    return any(holds_provider_file(value.get(key)) for key in ("content", "source", "file", "output"))
