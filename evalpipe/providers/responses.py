"""OpenAI Responses (`POST /v1/responses`): requests and responses, read and written."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalpipe.providers.base import NotShadowableError, Reply, ReplyCall, RequestView, Stop, Usage
from evalpipe.providers.chat import make_call, read_format, read_parts, read_tool, read_tool_choice
from evalpipe.providers.conversation import (
    Conversation,
    Part,
    Text,
    ToolResult,
    content_text,
    known_keys,
    make_view,
    opening_of,
    position_of,
)
from evalpipe.providers.json_values import as_count, as_dict, as_list, as_scalar, as_text, dump
from evalpipe.providers.outcomes import Failure, failure_in, of_error
from evalpipe.providers.response_builder import AnswerBuilder, StreamState
from evalpipe.providers.sse import render_event
from evalpipe.providers.usage import responses_usage
from evalpipe.text import joined


def read_request(body: dict[str, Any]) -> RequestView:
    """The fields of a request that evalpipe uses."""
    messages: list[dict[str, str]] = []
    instructions = as_text(body.get("instructions"))
    if instructions:
        messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else as_list(given)
    for item in map(as_dict, items):
        role = as_text(item.get("role"))
        message = _item_message(item, role)
        if message is not None:
            messages.append(message)
    return make_view(
        model=as_text(body.get("model")),
        streamed=body.get("stream") is True,
        messages=messages,
        first_user=opening_of(map(as_dict, items)),
        has_tools=bool(body.get("tools")),
        usage_requested=True,
        position=position_of(
            items,
            continues=bool(body.get("previous_response_id")),
            is_stored=bool(body.get("conversation")),
        ),
    )


def _item_message(item: dict[str, Any], role: str | None) -> dict[str, str] | None:
    kind = as_text(item.get("type"))
    if role is not None:
        return {"role": "system" if role == "developer" else role, "content": content_text(item.get("content"))}
    if kind in {"function_call", "custom_tool_call"}:
        arguments = item.get("arguments") or item.get("input") or ""
        return {"role": "assistant", "content": f"[tool call {item.get('name')}: {arguments}]"}
    if kind in {"function_call_output", "custom_tool_call_output"}:
        return {"role": "tool", "content": content_text(item.get("output"))}
    return None


# OpenAI Responses requests → Conversation.


_CARRIED = frozenset(
    {
        "input",
        "instructions",
        "model",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "max_output_tokens",
        "temperature",
    }
    | {"top_p", "text", "stream"}
)
_DROPPED = frozenset(
    {"store", "include", "metadata", "user", "safety_identifier", "service_tier", "prompt_cache_key", "reasoning"}
    | {
        "prompt_cache_retention",
        "prompt_cache_options",
        "truncation",
        "stream_options",
        "top_logprobs",
        "max_tool_calls",
    }
    | {"moderation"}
)


def check_state(body: dict[str, Any]) -> None:
    """Raise NotShadowableError for a request that only its own provider's state can answer."""
    for key in ("previous_response_id", "conversation"):
        if body.get(key):
            raise NotShadowableError("needs_server_state", key)
    if body.get("prompt"):
        raise NotShadowableError("stored_prompt")
    if body.get("background"):
        raise NotShadowableError("background")
    for item in map(as_dict, as_list(body.get("input"))):
        if item.get("type") == "item_reference":
            raise NotShadowableError("needs_server_state", "item_reference")


def read_responses(body: dict[str, Any]) -> Conversation:
    """The conversation of a Responses request. Raises NotShadowableError with the first reason against it."""
    check_state(body)
    known_keys(body, _CARRIED, _DROPPED | {"background", "previous_response_id", "conversation", "prompt"})
    conversation = Conversation(
        tools=[read_tool(as_dict(tool)) for tool in as_list(body.get("tools"))],
        tool_choice=read_tool_choice(body.get("tool_choice")),
        parallel=body.get("parallel_tool_calls"),
        max_tokens=body.get("max_output_tokens"),
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        streamed=body.get("stream") is True,
    )
    read_format(conversation, as_dict(body.get("text")).get("format"))
    system = [body["instructions"]] if as_text(body.get("instructions")) else []
    given = body.get("input")
    if isinstance(given, str):
        conversation.add("user", [Text(given)] if given else [])
    for item in map(as_dict, as_list(given)):
        _read_item(conversation, system, item)
    conversation.system = "\n\n".join(system)
    return conversation


def _read_item(conversation: Conversation, system: list[str], item: dict[str, Any]) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = as_scalar(item.get("role"))
        parts = read_parts(item.get("content"))
        if role in {"system", "developer"}:
            if conversation.turns:
                raise NotShadowableError("system_message_mid_conversation")
            system.append("\n".join(part.text for part in parts if isinstance(part, Text)))
        elif role == "user" or role == "assistant":
            conversation.add(role, parts)
        else:
            raise NotShadowableError("unknown_role", str(role)[:60])
    elif kind == "function_call":
        conversation.add("assistant", [make_call(item.get("call_id"), item.get("name"), item.get("arguments"))])
    elif kind == "function_call_output":
        conversation.add("user", [_read_output(item)])
    elif kind != "reasoning":  # reasoning of earlier turns belongs to one vendor
        raise NotShadowableError("server_tools" if str(kind).endswith("_call") else "unknown_content", str(kind)[:60])


def _read_output(item: dict[str, Any]) -> Part:
    call_id = as_text(item.get("call_id"))
    if call_id is None:
        raise NotShadowableError("tool_result_without_call")
    parts = read_parts(item.get("output"))
    if not all(isinstance(part, Text) for part in parts):
        raise NotShadowableError("unknown_content", "in a tool result")
    return ToolResult(id=call_id, text="\n".join(part.text for part in parts if isinstance(part, Text)))


# Answers of Responses, plain or event by event. The last event repeats the whole answer.


_Parts = dict[tuple[int, str], list[str]]
"""(content index, key) → pieces"""

_DELTAS = {
    "response.output_text.delta": ("text", "message"),
    "response.refusal.delta": ("refusal", "message"),
    "response.function_call_arguments.delta": ("arguments", "function_call"),
    "response.custom_tool_call_input.delta": ("input", "custom_tool_call"),
}
_TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete", "response.cancelled"})
_CLIENT_CALLS = frozenset(
    {"local_shell_call", "shell_call", "computer_call", "apply_patch_call", "mcp_approval_request"}
)
"""calls of built-in tools that the client has to run or to allow: tool calls under the tool's own name"""
_FUNCTION_CALLS = frozenset({"function_call", "custom_tool_call"})
_ACTIONS = ("action", "operation", "arguments")
_PICTURES = frozenset({"image_generation_call"})


class ResponsesReader(StreamState):
    """Reads one answer: `take_message` for a plain one, else `take_event` for each event; then `close`."""

    def __init__(self) -> None:
        super().__init__()
        self.builder = AnswerBuilder()
        self.failure: Failure | None = None
        self._message: dict[str, Any] | None = None
        self._items: dict[int, dict[str, Any]] = {}
        self._parts: dict[int, _Parts] = {}
        self._others: list[str] = []
        """types of items that are neither text nor calls for the client: runs of a server's own tools"""
        self._is_closed = False

    def take_message(self, message: dict[str, Any]) -> bool:
        """A plain answer; False where it is none."""
        self._message = message
        return isinstance(message.get("output"), list)

    def take_event(self, name: str, data: str, value: Any) -> bool:
        """One event: its name, its data and the JSON in it (None where it holds none); whether it carried content."""
        if self.is_finished:  # clients stop reading at the last event
            return False
        kind = as_text(as_dict(value).get("type")) or name
        failure = failure_in(value, failed="error" in {kind, name}) if kind not in _TERMINAL else None
        if failure is not None or kind == "error":
            self.failure = self.failure or failure or Failure(None, data[:2000] if value is None else None)
            return False
        if not isinstance(value, dict):
            # Compatible servers end with chat's [DONE]; it has no meaning here.
            self.is_malformed = self.is_malformed or not data.lstrip().startswith("[DONE]")
            return False
        return self._take(kind, value)

    def _take(self, kind: str, event: dict[str, Any]) -> bool:
        self.is_begun = True
        if kind in {"response.created", "response.in_progress", "response.queued"} or kind in _TERMINAL:
            self._message = dict(as_dict(event.get("response")))
            self.is_finished = kind in _TERMINAL
            return False
        index = as_count(event.get("output_index")) or 0
        if kind in {"response.output_item.added", "response.output_item.done"}:
            self._items[index] = dict(as_dict(event.get("item")))
            self._parts.pop(index, None)
            return (
                kind.endswith("added") and as_scalar(self._items[index].get("type")) in _CLIENT_CALLS | _FUNCTION_CALLS
            )
        if not kind.endswith(".delta"):
            return False
        known = _DELTAS.get(kind)
        delta = as_text(event.get("delta")) or ""
        if known is not None:
            key, item_type = known
            self._items.setdefault(index, {"type": item_type})
            position = as_count(event.get("content_index")) or 0
            self._parts.setdefault(index, {}).setdefault((position, key), []).append(delta)
        return bool(delta)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._message is not None and not as_list(self._message.get("output")) and self._items:
            # A cut stream has no whole response: what the deltas brought is kept.
            self._message["output"] = [
                _closed(item, self._parts.get(index, {})) for index, item in sorted(self._items.items())
            ]
        for item in map(as_dict, as_list((self._message or {}).get("output"))):
            self._add_item(item)
        self.builder.close()

    def _add_item(self, item: dict[str, Any]) -> None:
        kind = as_text(item.get("type")) or ""
        builder = self.builder
        if kind == "message":
            for part in map(as_dict, as_list(item.get("content"))):
                builder.add_text(as_text(part.get("text")) or "" if part.get("type") == "output_text" else "")
                builder.add_refusal(as_text(part.get("refusal")) or "" if part.get("type") == "refusal" else "")
        elif kind in _FUNCTION_CALLS:
            call = builder.new_call()
            call.is_custom = kind == "custom_tool_call"
            builder.name_call(call, call_id=as_text(item.get("call_id")), name=as_text(item.get("name")))
            given = item.get("input") if call.is_custom else item.get("arguments")
            if given is not None:
                builder.add_arguments(call, given if isinstance(given, str) else dump(given))
        elif kind in _CLIENT_CALLS:
            call = builder.new_call()
            call_id = as_text(item.get("call_id")) or as_text(item.get("id"))
            builder.name_call(call, call_id=call_id, name=as_text(item.get("name")) or kind.removesuffix("_call"))
            action: Any = next((item[key] for key in _ACTIONS if item.get(key) is not None), {})
            builder.add_arguments(call, action if isinstance(action, str) else dump(action))
        elif kind in _PICTURES:
            builder.mark("image")
        elif kind != "reasoning":
            self._others.append(kind[:60])

    def finish(self) -> AnswerBuilder:
        """The answer, when all of it is in."""
        self.close()
        builder, message = self.builder, self._message or {}
        status = as_text(message.get("status"))
        reason = as_text(as_dict(message.get("incomplete_details")).get("reason"))
        error = as_dict(message.get("error"))
        builder.model = as_text(message.get("model"))
        builder.finish_reason = joined(reason or status or "") or None
        builder.usage = responses_usage(message, has_content=builder.has_content)
        builder.failure = self.failure
        builder.is_incomplete = status == "incomplete"
        if self._others and not builder.pieces:
            builder.other_content = ", ".join(self._others)
        if builder.failure is None and error:
            builder.failure = of_error(error)
        return builder

    def message(self) -> dict[str, Any] | None:
        """The answer as it would have come unstreamed; None where it never began."""
        return self._message


def _closed(item: dict[str, Any], parts: _Parts) -> dict[str, Any]:
    closed = dict(item)
    for (_, key), pieces in sorted(parts.items()):
        whole = joined("".join(pieces))
        if key in {"arguments", "input"}:
            closed[key] = whole
        else:
            kind = "output_text" if key == "text" else "refusal"
            closed["content"] = [*as_list(closed.get("content")), {"type": kind, key: whole}]
    return closed


# Answers in the shape of OpenAI Responses, whole or as a stream of events.


_ECHOED = (
    "instructions",
    "max_output_tokens",
    "parallel_tool_calls",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "text",
)
_DEFAULTS: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "text": {"format": {"type": "text"}},
}


def plain_responses(reply: Reply, request: Mapping[str, Any]) -> dict[str, Any]:
    """The unstreamed body; settings of the `request` are repeated in it, as the provider does."""
    output: list[dict[str, Any]] = []
    if reply.text is not None or reply.refusal is not None or not reply.calls:
        output.append(_message_item(reply.id, reply.text, reply.refusal))
    output += [_call_item(reply.id, call) for call in reply.calls]
    missing = _missing(reply.stop, in_words=reply.refusal is not None)
    return {**_response(reply, request, output, missing=missing), **_usage(reply.usage)}


def render_responses_usage(usage: Usage) -> dict[str, Any] | None:
    """None where the tokens are not known."""
    given, made = usage.input_tokens, usage.output_tokens
    if given is None or made is None:
        return None
    return {
        "input_tokens": given,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": given + made,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    """Left out where the tokens are not known: some clients take no null for it."""
    counts = render_responses_usage(usage)
    return {} if counts is None else {"usage": counts}


class ResponsesWriter:
    """Events of one streamed answer; the last one repeats the whole of it."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, answer_id: str, model: str, created: int, request: Mapping[str, Any]) -> None:
        self._id, self._model, self._created, self._request = answer_id, model, created, request
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._open: str | None = None
        self._refused = False
        self._pieces: list[str] = []
        self._call: tuple[str, str] = ("", "")

    def start(self, usage: Usage) -> bytes:
        response = {**_response(self._reply(), self._request, []), "status": "in_progress"}
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def text(self, delta: str) -> bytes:
        return self._content("output_text", delta)

    def refusal(self, delta: str) -> bytes:
        self._refused = True
        return self._content("refusal", delta)

    def call_start(self, call_id: str, name: str) -> bytes:
        closed = self._close()
        self._open, self._call = "function_call", (call_id, name)
        item = {**_call_item(self._id, ReplyCall(id=call_id, name=name, arguments="")), "status": "in_progress"}
        return closed + self._event("response.output_item.added", output_index=len(self._output), item=item)

    def call_arguments(self, delta: str) -> bytes:
        self._pieces.append(delta)
        return self._event("response.function_call_arguments.delta", **self._where(), delta=delta)

    def finish(self, stop: Stop, usage: Usage, stop_sequence: str | None = None) -> bytes:
        closed = self._close()
        missing = _missing(stop, in_words=self._refused)
        response = {
            **_response(self._reply(stop), self._request, self._output, missing=missing),
            **_usage(usage),
        }
        return closed + self._event(f"response.{response['status']}", response=response)

    def error(self, kind: str, message: str) -> bytes:
        return self._event("error", code=kind, message=message, param=None)

    def _content(self, kind: str, delta: str) -> bytes:
        opened = b""
        if self._open != kind:
            opened = self._close()
            self._open = kind
            index = len(self._output)
            item = {"id": _item_id(self._id, index), "type": "message", "status": "in_progress", "role": "assistant"}
            opened += self._event("response.output_item.added", output_index=index, item={**item, "content": []})
            opened += self._event("response.content_part.added", **self._where(), content_index=0, part=_part(kind, ""))
        self._pieces.append(delta)
        more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        name = f"response.{kind}.delta"
        return opened + self._event(name, **self._where(), content_index=0, delta=delta, **more)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        kind, whole, where = self._open, "".join(self._pieces), self._where()
        self._open, self._pieces = None, []
        if kind == "function_call":
            call = ReplyCall(id=self._call[0], name=self._call[1], arguments=whole)
            item = _call_item(self._id, call)
            done = self._event("response.function_call_arguments.done", **where, name=call.name, arguments=whole)
        else:
            key = "text" if kind == "output_text" else "refusal"
            more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            item = {
                "id": where["item_id"],
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [_part(kind, whole)],
            }
            done = self._event(f"response.{kind}.done", **where, content_index=0, **{key: whole}, **more)
            done += self._event("response.content_part.done", **where, content_index=0, part=_part(kind, whole))
        done += self._event("response.output_item.done", output_index=where["output_index"], item=item)
        self._output.append(item)
        return done

    def _where(self) -> dict[str, Any]:
        index = len(self._output)
        item_id = f"fc_{self._call[0]}" if self._open == "function_call" else _item_id(self._id, index)
        return {"item_id": item_id, "output_index": index}

    def _event(self, kind: str, **data: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence, **data}
        self._sequence += 1
        return render_event(dump(event), kind)

    def _reply(self, stop: Stop = "end") -> Reply:
        return Reply(id=self._id, model=self._model, created=self._created, stop=stop)


def _missing(stop: Stop, *, in_words: bool) -> str | None:
    """Why the answer is not whole. A refusal in words is one; without words a filter took the rest."""
    if stop == "max_tokens":
        return "max_output_tokens"
    return "content_filter" if stop == "refusal" and not in_words else None


def _response(
    reply: Reply, request: Mapping[str, Any], output: list[dict[str, Any]], *, missing: str | None = None
) -> dict[str, Any]:
    echoed = {key: request[key] if request.get(key) is not None else _DEFAULTS[key] for key in _ECHOED}
    return {
        "id": reply.id,
        "object": "response",
        "created_at": reply.created,
        "status": "completed" if missing is None else "incomplete",
        "error": None,
        "incomplete_details": None if missing is None else {"reason": missing},
        "model": reply.model,
        "output": output,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "truncation": "disabled",
        "user": None,
        "metadata": {},
        **echoed,
    }


def _message_item(answer_id: str, text: str | None, refusal: str | None) -> dict[str, Any]:
    content = [_part("output_text", text)] if text is not None else []
    if refusal is not None:
        content.append(_part("refusal", refusal))
    return {
        "id": _item_id(answer_id, 0),
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": content,
    }


def _item_id(answer_id: str, index: int) -> str:
    return f"msg_{answer_id.removeprefix('resp_')}_{index}"


def _call_item(answer_id: str, call: ReplyCall) -> dict[str, Any]:
    return {
        "id": f"fc_{call.id}",
        "type": "function_call",
        "status": "completed",
        "arguments": call.arguments,
        "call_id": call.id,
        "name": call.name,
    }


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
