"""Which fields of a request an arm may get: documented ones without side effects, less those in its `drop`.

Everything here is an allow list. A key that is new to it may name something the provider keeps (a thread, a session, a
credit that can be used once), and a shadow request that uses it up fails the user's own next request. Such a request is not
shadowed, and the key is named in its row.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.json_values import MalformedJSONError, as_dict, as_list, parse


def _keys(names: str) -> frozenset[str]:
    return frozenset(names.split())


_OPENAI: Final = _keys(
    "model stream stream_options temperature top_p top_logprobs tools tool_choice parallel_tool_calls "
    "service_tier moderation"
)
# Sampling and templates of servers with OpenAI's dialect (vLLM, SGLang, llama.cpp, TGI, Ollama), and settings of hosted
# ones (OpenRouter, DeepSeek, Mistral, Groq, Together, Fireworks, DashScope, Perplexity) that affect one request only.
# Not among them, though documented: request_id, rid, id_slot, session_params, session_id, keep_alive, kv_transfer_params,
# cached_content, cache, deferred, plugins, search_parameters, enable_search.
_COMPATIBLE: Final = _keys(
    "top_k min_p top_a typical_p repetition_penalty length_penalty frequency_penalty presence_penalty "
    "seed random_seed stop stop_token_ids include_stop_str_in_output ignore_eos min_tokens "
    "skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens prompt_logprobs "
    "allowed_token_ids bad_words use_beam_search best_of echo priority add_generation_prompt "
    "continue_final_message add_special_tokens documents chat_template chat_template_kwargs "
    "mm_processor_kwargs guided_json guided_regex guided_choice guided_grammar guided_decoding_backend "
    "guided_whitespace_pattern structured_outputs structural_tag return_tokens_as_token_ids "
    "return_token_ids cache_salt include_reasoning reasoning_format reasoning_budget thinking_budget "
    "thinking enable_thinking separate_reasoning stream_reasoning think regex ebnf grammar json_schema "
    "samplers n_predict n_probs cache_prompt min_keep dynatemp_range dynatemp_exponent xtc_probability "
    "xtc_threshold dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers "
    "repeat_penalty repeat_last_n mirostat mirostat_tau mirostat_eta mirostat_target mirostat_lr tfs_z "
    "timings_per_token options format provider models route transforms reasoning usage safe_prompt "
    "prompt_mode prompt_truncate_len context_length_exceeded_behavior raw_output perf_metrics_in_response "
    "vl_high_resolution_images incremental_output search_mode search_domain_filter search_recency_filter "
    "search_after_date_filter search_before_date_filter last_updated_after_filter "
    "last_updated_before_filter return_images return_related_questions disable_search "
    "enable_search_classifier"
)
_COPIED: Final[Mapping[str, frozenset[str]]] = {
    "chat.completions": _OPENAI
    | _COMPATIBLE
    | _keys(
        "messages audio function_call functions logit_bias logprobs max_completion_tokens max_tokens "
        "modalities n prediction reasoning_effort response_format verbosity"
    ),
    "responses": _OPENAI
    | _COMPATIBLE
    | _keys(
        "input instructions access_programs context_management image include max_output_tokens max_tool_calls "
        "reasoning text truncation"
    ),
    "messages": _keys(
        "model messages system max_tokens stop_sequences stream temperature top_k top_p tools tool_choice "
        "thinking service_tier cache_control inference_geo output_config output_format speed "
        "context_management compaction fallbacks"
    ),
}
_LEFT_OUT: Final[Mapping[str, frozenset[str]]] = {
    "chat.completions": _keys(
        "metadata user safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options"
    ),
    "messages": _keys("metadata diagnostics billing_policy user_profile_id workspace_id fallback_credit_token"),
}
"""keys that change no answer: whom to count a request to (a gateway's budget, a provider's policy), what to bill, where to
cache. Counted to the user, a shadow request could use up what the user is allowed; a credit can be used once"""
_NOT_SET: Final = ("store", "background", "background_options")
"""`store` is written anew; the others are looked at by `check_state`"""
_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    endpoint: copied | _LEFT_OUT["messages" if endpoint == "messages" else "chat.completions"] | frozenset(_NOT_SET)
    for endpoint, copied in _COPIED.items()
}
_TOOLS: Final[Mapping[str, re.Pattern[str]]] = {
    "chat.completions": re.compile(r"function|custom"),
    "responses": re.compile(r"function|custom|namespace|local_shell|apply_patch|computer(_use)?(_preview)?"),
    "messages": re.compile(r"custom|(bash|text_editor|computer|memory)_\d+|tool_search_tool\w*"),
}
"""tools the client runs itself, or that only choose among them; everything else is run by the provider"""
_ITEMS: Final = re.compile(
    r"message|reasoning|agent_message|additional_tools|(function|custom_tool|local_shell|apply_patch|shell|computer|tool_search)_call"
    r"(_output)?|tool_search_output|web_search_call|file_search_call"
)
_THREAD: Final = "thread"


def check_state(body: Mapping[str, Any]) -> None:
    """Raise NotShadowableError for a Messages request that is part of a thread the provider keeps."""
    if body.get(_THREAD):
        raise NotShadowableError("needs_server_state", _THREAD)


def check_keys(endpoint: str, body: Mapping[str, Any], *, also: Collection[str] = ()) -> None:
    """Raise NotShadowableError for the first key, tool or input item that is not known to leave nothing behind.

    `also`: keys the arm's own configuration sets.
    """
    known = _KNOWN[endpoint]
    for key, value in body.items():
        if key not in known and value is not None and key not in also:
            raise NotShadowableError("unknown_parameter", key[:60])
    for tool in map(as_dict, as_list(body.get("tools"))):
        kind = tool.get("type")
        if kind is not None and _TOOLS[endpoint].fullmatch(str(kind)) is None:
            raise NotShadowableError("server_tools", str(kind)[:60])
    if endpoint == "responses":
        for item in map(as_dict, as_list(body.get("input"))):
            kind = str(item.get("type") or "message")
            if _ITEMS.fullmatch(kind) is None:
                raise NotShadowableError("needs_server_state", kind[:60])
    elif endpoint == "chat.completions":
        for message in map(as_dict, as_list(body.get("messages"))):
            if message.get("audio"):  # an answer of the model's own, named by its id
                raise NotShadowableError("needs_server_state", "audio")


def left_out_of(endpoint: str) -> frozenset[str]:
    """Keys that a shadow request leaves out without changing the question."""
    return _LEFT_OUT["messages" if endpoint == "messages" else "chat.completions"]


# Fields an arm's server does not accept, removed from its requests: the `drop` of an arm.


LIMITS: tuple[str, str] = ("max_completion_tokens", "max_tokens")
"""Chat completions' two names of one limit, the newer first."""


def without_fields(endpoint: str, body: dict[str, Any], drop: Sequence[str]) -> dict[str, Any]:
    """`body` without the fields that `drop` names; `body` itself is not changed.

    Each name is a path of keys with dots between; on its way a list means each of its items, so `messages.reasoning_content`
    is that field of every message. Of chat completions' two names for the token limit one that is named here hands its value
    to the other: `["max_completion_tokens"]` sends the limit as `max_tokens`. Messages keeps its `max_tokens`, which it requires.
    """
    for path in drop:
        if (
            endpoint == "messages" and path == "max_tokens"
        ):  # Messages requires it: the name is meant for chat completions
            continue
        if endpoint == "chat.completions" and path in LIMITS and path in body:
            other = LIMITS[1 - LIMITS.index(path)]
            if body[path] is not None and body.get(other) is None and other not in drop:
                body = {**body, other: body[path]}
        body = _without(body, path.split("."))
    return body


def names_field(drop: Sequence[str], key: str) -> bool:
    """Whether `drop` takes `key`, or a field in it, out of a request."""
    return any(path == key or path.startswith(key + ".") for path in drop)


def _without(value: Any, keys: Sequence[str]) -> Any:
    """Copied only as far as something goes: a long history is not copied for one key beside it."""
    if isinstance(value, list):
        items = [_without(item, keys) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if not isinstance(value, dict) or keys[0] not in value:
        return value
    if len(keys) == 1:
        return {key: inner for key, inner in value.items() if key != keys[0]}
    inner = _without(value[keys[0]], keys[1:])
    return value if inner is value[keys[0]] else {**value, keys[0]: inner}


_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ORDINARY = frozenset(
    {
        "model",
        "messages",
        "input",
        "stream",
        "role",
        "content",
        "type",
        "text",
        "name",
        "id",
        "system",
        "function",
        "tools",
    }
    | {
        "user",
        "stop",
        "index",
        "value",
        "error",
        "format",
        "object",
        "parameters",
        "properties",
        "description",
        "items",
    }
    | {"required", "url", "data", "source", "store"}
)
"""keys that an error's words may hold without meaning a field"""


def field_named(words: str | None, body: bytes) -> str | None:
    """The path, as `drop` takes it, of the field of a refused request that the refusal's words name; None where they name
    none."""
    try:
        document = parse(body)
    except MalformedJSONError:
        return None
    named = set(_WORD.findall(words or "")) - _ORDINARY
    return _path_of(document, named, 0) if named else None


def _path_of(value: Any, named: set[str], depth: int) -> str | None:
    """The outermost key that is named."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, list):
        return next((path for item in value if (path := _path_of(item, named, depth + 1)) is not None), None)
    if not isinstance(value, dict):
        return None
    found = next((key for key in value if key in named), None)
    if found is not None:
        return str(found)
    for key, inner in value.items():
        path = _path_of(inner, named, depth + 1)
        if path is not None:
            return f"{key}.{path}"
    return None


_MAX_DEPTH = 12
"""levels that are searched: a request's own fields are not deeper"""
