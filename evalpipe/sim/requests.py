"""What a simulated provider needs to know of a request, in any of the three dialects, and what it would refuse."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from evalpipe.providers.base import RequestView
from evalpipe.providers.jsontext import as_count, as_dict, as_list, as_text, dump
from evalpipe.providers.models import is_newer_claude, takes_max_completion_tokens
from evalpipe.providers.registry import DIALECTS
from evalpipe.sim.corpus import conversation_key
from evalpipe.sim.text import count_tokens

TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 800
_IMAGE = re.compile(r"\[image\]")


class BadRequestError(Exception):
    """What the provider would answer 400 to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OfferedTool:
    name: str
    schema: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SimRequest:
    """`must_call`: names of tools one of which has to be called; None: as the model likes. `cacheable_tokens`: tokens up
    to the last cache mark (Anthropic)."""

    endpoint: str
    body: dict[str, Any]
    view: RequestView
    model: str
    key: str
    input_tokens: int
    max_tokens: int | None
    stop: list[str] = field(default_factory=list)
    schema: dict[str, Any] | None = None
    tools: list[OfferedTool] = field(default_factory=list)
    must_call: list[str] | None = None
    may_call: bool = True
    parallel: bool = True
    cacheable_tokens: int = 0

    @property
    def last_user_text(self) -> str:
        return next((m["content"] for m in reversed(self.view.messages) if m["role"] == "user"), "")

    @property
    def awaits_tools(self) -> bool:
        """Whether the model is to speak after a user, not after a tool's result."""
        last = as_dict(next(reversed(as_list(self.body.get("messages")) or as_list(self.body.get("input"))), None))
        blocks = as_list(last.get("content"))
        is_result = any(as_dict(block).get("type") == "tool_result" for block in blocks)
        return not (last.get("role") == "tool" or is_result or last.get("type") == "function_call_output")


def read_sim_request(endpoint: str, body: Any) -> SimRequest:
    """The facts of a request. Raises BadRequestError with the provider's kind of message."""
    if not isinstance(body, dict):
        raise BadRequestError("the body is not a JSON object")
    model = as_text(body.get("model"))
    if not model:
        raise BadRequestError("model: field required")
    view = DIALECTS[endpoint].read_request(body)
    if not [message for message in view.messages if message["role"] != "system"]:
        raise BadRequestError("input: field required" if endpoint == "responses" else "messages: field required")
    max_tokens = _max_tokens(endpoint, body, model)
    if endpoint == "messages":
        _check_messages(body, model)
    tools = [_tool(as_dict(tool)) for tool in as_list(body.get("tools"))]
    must_call, may_call = _choice(body.get("tool_choice"), [tool.name for tool in tools])
    schema = _schema(body)
    texts = "".join(message["content"] for message in view.messages)
    extra = (dump(body["tools"]) if tools else "") + (dump(schema) if schema else "")
    n_images = len(_IMAGE.findall(texts))
    return SimRequest(
        endpoint=endpoint,
        body=body,
        view=view,
        model=model,
        key=conversation_key(view.messages),
        input_tokens=count_tokens(texts + extra)
        + TOKENS_PER_MESSAGE * len(view.messages)
        + TOKENS_PER_IMAGE * n_images,
        max_tokens=max_tokens,
        stop=_stop(body),
        schema=schema,
        tools=tools,
        must_call=must_call,
        may_call=may_call,
        parallel=body.get("parallel_tool_calls") is not False
        and as_dict(body.get("tool_choice")).get("disable_parallel_tool_use") is not True,
        cacheable_tokens=_cacheable_tokens(body) if endpoint == "messages" else 0,
    )


def _max_tokens(endpoint: str, body: dict[str, Any], model: str) -> int | None:
    if endpoint == "messages":
        limit = as_count(body.get("max_tokens"))
        if not limit:
            raise BadRequestError("max_tokens: field required")
        return limit
    if endpoint == "responses":
        return as_count(body.get("max_output_tokens"))
    if body.get("max_tokens") is not None and takes_max_completion_tokens(model):
        raise BadRequestError(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
    return as_count(body.get("max_completion_tokens")) or as_count(body.get("max_tokens"))


def _check_messages(body: dict[str, Any], model: str) -> None:
    messages = [as_dict(message) for message in as_list(body.get("messages"))]
    if messages[0].get("role") != "user":
        raise BadRequestError('messages: first message must use the "user" role')
    for message in messages:
        if message.get("role") not in {"user", "assistant"}:
            raise BadRequestError(f"messages: unexpected role {message.get('role')!r}")
        content = message.get("content")
        empty = [b for b in as_list(content) if as_dict(b).get("type") == "text" and not as_dict(b).get("text")]
        if not content or empty:
            raise BadRequestError("messages: text content blocks must be non-empty")
    if not is_newer_claude(model):
        return
    for key in ("temperature", "top_p", "top_k"):
        if body.get(key) is not None:
            raise BadRequestError(f"{key}: not supported by this model")
    if as_dict(body.get("thinking")).get("budget_tokens") is not None:
        raise BadRequestError("thinking.budget_tokens: not supported by this model")
    if messages[-1].get("role") == "assistant":
        raise BadRequestError("prefilling the assistant's answer is not supported by this model")


def _tool(tool: dict[str, Any]) -> OfferedTool:
    function = as_dict(tool.get("function")) or tool
    schema = as_dict(function.get("parameters")) or as_dict(function.get("input_schema"))
    return OfferedTool(name=as_text(function.get("name")) or "", schema=schema)


def _choice(choice: Any, names: list[str]) -> tuple[list[str] | None, bool]:
    kind = choice if isinstance(choice, str) else as_text(as_dict(choice).get("type"))
    if kind == "none":
        return None, False
    if kind in {"required", "any"}:
        return names, True
    if kind in {"function", "tool"}:
        named = as_dict(choice)
        name = as_text(as_dict(named.get("function")).get("name")) or as_text(named.get("name"))
        if name not in names:
            raise BadRequestError(f"tool_choice: {name!r} is not among the tools")
        return [name], True
    return None, True


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    for wanted in (
        as_dict(as_dict(body.get("output_config")).get("format")),
        as_dict(as_dict(body.get("text")).get("format")),
        as_dict(body.get("response_format")),
    ):
        if wanted.get("type") == "json_schema":
            return as_dict(as_dict(wanted.get("json_schema")).get("schema")) or as_dict(wanted.get("schema"))
        if wanted.get("type") == "json_object":
            return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return None


def _stop(body: dict[str, Any]) -> list[str]:
    stop = body.get("stop_sequences") or body.get("stop")
    words = [stop] if isinstance(stop, str) else as_list(stop)
    return [word for word in words if isinstance(word, str) and word]


def _cacheable_tokens(body: dict[str, Any]) -> int:
    """Tokens of the prefix up to the last cache mark: tools, then system, then messages."""
    total = marked = 0
    blocks: list[Any] = [*as_list(body.get("tools"))]
    blocks += as_list(body.get("system")) or ([body["system"]] if as_text(body.get("system")) else [])
    for message in map(as_dict, as_list(body.get("messages"))):
        content = message.get("content")
        blocks += as_list(content) or [content]
    for block in blocks:
        total += count_tokens(as_text(as_dict(block).get("text")) or (block if isinstance(block, str) else dump(block)))
        if as_dict(block).get("cache_control"):
            marked = total
    return total if body.get("cache_control") else marked
