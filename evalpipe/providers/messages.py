"""Anthropic Messages (`POST /v1/messages`): requests and responses, read and written."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from typing import Any

from evalpipe.providers.base import NotShadowableError, Reply, RequestView, Stop, Usage, error_body
from evalpipe.providers.conversation import (
    IMAGE_TYPES,
    Conversation,
    Document,
    Image,
    Part,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
    content_text,
    for_anthropic,
    is_strict_for_anthropic,
    known_keys,
    make_view,
    opening_of,
    position_of,
    role_of,
)
from evalpipe.providers.json_values import as_count, as_dict, as_list, as_scalar, as_text, dump, parsed_or_raw
from evalpipe.providers.model_names import is_newer_claude, takes_sampling
from evalpipe.providers.outcomes import Failure, failure_in
from evalpipe.providers.response_builder import AnswerBuilder, Call, StreamState
from evalpipe.providers.sse import render_event
from evalpipe.providers.usage import messages_usage
from evalpipe.text import joined


def read_request(body: dict[str, Any]) -> RequestView:
    """The fields of a request that evalpipe uses."""
    messages = []
    system = content_text(body.get("system"))
    if system:
        messages.append({"role": "system", "content": system})
    for message in map(as_dict, as_list(body.get("messages"))):
        role = as_text(message.get("role")) or "user"
        content = message.get("content")
        shown_role = "tool" if role_of(message) == "tool" else role
        messages.append({"role": shown_role, "content": content_text(content)})
    thread = body.get("thread")  # kept by the provider: a request that continues it holds its newest messages only
    return make_view(
        model=as_text(body.get("model")),
        streamed=body.get("stream") is True,
        messages=messages,
        first_user=opening_of(map(as_dict, as_list(body.get("messages")))),
        has_tools=bool(body.get("tools")),
        usage_requested=True,
        position=position_of(
            as_list(body.get("messages")),
            continues=bool(as_dict(thread).get("previous_message_id")),
            is_stored=bool(thread),
        ),
    )


# Anthropic Messages requests → Conversation.


_CARRIED = frozenset(
    {
        "messages",
        "model",
        "system",
        "tools",
        "tool_choice",
        "max_tokens",
        "stop_sequences",
        "temperature",
        "top_p",
        "stream",
    }
    | {"output_config"}
)
_DROPPED = frozenset(
    {"top_k", "metadata", "service_tier", "inference_geo", "thinking", "cache_control", "speed", "diagnostics"}
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}


def read_messages(body: dict[str, Any]) -> Conversation:
    """The conversation of a Messages request. Raises NotShadowableError with the first reason against it."""
    if body.get("container") or body.get("mcp_servers"):
        raise NotShadowableError("server_tools", "container" if body.get("container") else "mcp_servers")
    if body.get("max_tokens") == 0:
        raise NotShadowableError("cache_prewarm")
    known_keys(body, _CARRIED, _DROPPED | {"container", "mcp_servers"})
    choice = as_dict(body.get("tool_choice"))
    conversation = Conversation(
        system=_text_only(body.get("system")),
        tools=[_read_tool(as_dict(tool)) for tool in as_list(body.get("tools"))],
        tool_choice=_read_choice(choice) if choice else None,
        parallel=False if choice.get("disable_parallel_tool_use") is True else None,
        max_tokens=body.get("max_tokens"),
        stop=[word for word in as_list(body.get("stop_sequences")) if isinstance(word, str)],
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        streamed=body.get("stream") is True,
    )
    wanted = as_dict(as_dict(body.get("output_config")).get("format"))
    if wanted:
        conversation.output_schema = as_dict(wanted.get("schema"))
    for message in map(as_dict, as_list(body.get("messages"))):
        role = message.get("role")
        if role not in {"user", "assistant"}:
            raise NotShadowableError("unknown_role", str(role)[:60])
        conversation.add(role, _read_blocks(message.get("content")))
    return conversation


def _read_blocks(content: Any) -> list[Part]:
    if isinstance(content, str):
        return [Text(content)] if content else []
    parts: list[Part] = []
    for block in map(as_dict, as_list(content)):
        # Thinking of earlier turns is signed for one vendor, and left out of the context by it too.
        if as_scalar(block.get("type")) not in {"thinking", "redacted_thinking"}:
            parts.append(_read_block(block))
    return [part for part in parts if not (isinstance(part, Text) and not part.text)]


def _read_block(block: dict[str, Any]) -> Part:
    kind = block.get("type")
    if kind == "text":
        return Text(as_text(block.get("text")) or "")
    if kind == "image":
        return _read_image(block)
    if kind == "document":
        return _read_document(block)
    if kind == "tool_use":
        call_id, name = as_text(block.get("id")), as_text(block.get("name"))
        if call_id is None or name is None:
            raise NotShadowableError("tool_call_unreadable")
        return ToolCall(id=call_id, name=name, arguments=as_dict(block.get("input")))
    if kind == "tool_result":
        return _read_result(block)
    if isinstance(kind, str) and (kind == "server_tool_use" or kind.endswith("_tool_result") or "mcp" in kind):
        raise NotShadowableError("server_tools", kind[:60])
    raise NotShadowableError("unknown_content", str(kind)[:60])


def _read_image(block: dict[str, Any]) -> Image:
    source = as_dict(block.get("source"))
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        return Image(url=source["url"])
    if (
        source.get("type") == "base64"
        and as_scalar(source.get("media_type")) in IMAGE_TYPES
        and isinstance(source.get("data"), str)
    ):
        return Image(media_type=source["media_type"], data=source["data"])
    raise NotShadowableError("provider_file" if source.get("type") == "file" else "image_unreadable")


def _read_document(block: dict[str, Any]) -> Document | Text:
    source = as_dict(block.get("source"))
    if as_dict(block.get("citations")).get("enabled"):
        raise NotShadowableError("citations")
    if (
        source.get("type") == "base64"
        and source.get("media_type") == "application/pdf"
        and isinstance(source.get("data"), str)
    ):
        return Document(data=source["data"], name=as_text(block.get("title")))
    if source.get("type") == "text" and isinstance(source.get("data"), str):
        return Text(source["data"])
    raise NotShadowableError("provider_file" if source.get("type") == "file" else "file_type")


def _read_result(block: dict[str, Any]) -> ToolResult:
    call_id = as_text(block.get("tool_use_id"))
    if call_id is None:
        raise NotShadowableError("tool_result_without_call")
    parts = _read_blocks(block.get("content"))
    texts = [part.text for part in parts if isinstance(part, Text)]
    images = tuple(part for part in parts if isinstance(part, Image))
    if len(texts) + len(images) != len(parts):
        raise NotShadowableError("unknown_content", "in a tool result")
    return ToolResult(id=call_id, text="\n".join(texts), images=images, is_error=block.get("is_error") is True)


def _read_tool(tool: dict[str, Any]) -> Tool:
    kind = as_scalar(tool.get("type"))
    if kind not in {None, "custom"}:
        raise NotShadowableError("provider_tools", str(kind)[:60])
    name = as_text(tool.get("name"))
    if name is None:
        raise NotShadowableError("tool_unreadable")
    return Tool(name=name, description=as_text(tool.get("description")), schema=as_dict(tool.get("input_schema")))


def _read_choice(choice: dict[str, Any]) -> ToolChoice:
    kind: Any = _CHOICES.get(str(choice.get("type")))
    if kind is None:
        raise NotShadowableError("tool_choice", str(choice.get("type"))[:60])
    return ToolChoice(kind=kind, name=as_text(choice.get("name")) if kind == "named" else None)


def _text_only(content: Any) -> str:
    parts = _read_blocks(content)
    if not all(isinstance(part, Text) for part in parts):
        raise NotShadowableError("content_unreadable")
    return "\n\n".join(part.text for part in parts if isinstance(part, Text))


# Conversation → Anthropic Messages request.


DEFAULT_MAX_TOKENS = 8192
"""Messages needs a limit where chat completions has none; Claude 3 models take no more than half of this."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_NOT_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")
_TOOL_CHOICES = {"auto": "auto", "none": "none", "required": "any", "named": "tool"}


def render_messages(conversation: Conversation, model: str) -> dict[str, Any]:
    """The request body for `model`. Raises NotShadowableError where Messages cannot express it."""
    turns = conversation.turns
    if not turns or turns[0].role != "user":
        raise NotShadowableError("starts_with_assistant" if turns else "no_messages")
    if turns[-1].role == "assistant":
        raise NotShadowableError("assistant_prefill")
    if not conversation.tools and any(isinstance(p, ToolCall | ToolResult) for turn in turns for p in turn.parts):
        raise NotShadowableError("tools_missing")
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": conversation.max_tokens or _default_max_tokens(model),
        "messages": [_render_turn(turn) for turn in turns],
    }
    if conversation.system.strip():  # a blank system prompt has no effect, and Anthropic answers 400 to it
        body["system"] = conversation.system
    _render_tools(body, conversation)
    if conversation.stop:
        if not all(word.strip() for word in conversation.stop):
            raise NotShadowableError("blank_stop_sequence")
        body["stop_sequences"] = conversation.stop
    if conversation.output_schema is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": for_anthropic(conversation.output_schema)}}
    if takes_sampling(model):
        # Chat's temperature goes to 2, and Claude takes one of the two only.
        if conversation.temperature is not None and 0 <= conversation.temperature <= 1:
            body["temperature"] = conversation.temperature
        elif conversation.top_p is not None and conversation.temperature is None:
            body["top_p"] = conversation.top_p
    if conversation.streamed:
        body["stream"] = True
    return body


def _default_max_tokens(model: str) -> int:
    return DEFAULT_MAX_TOKENS // 2 if "claude-3" in model and not is_newer_claude(model) else DEFAULT_MAX_TOKENS


def _render_turn(turn: Turn) -> dict[str, Any]:
    if not turn.parts:
        raise NotShadowableError("empty_message")
    if len(turn.parts) == 1 and isinstance(turn.parts[0], Text):
        if not turn.parts[0].text.strip():
            raise NotShadowableError("empty_message")
        return {"role": turn.role, "content": turn.parts[0].text}
    # Results answer the calls of the turn before, so they must come first.
    parts = sorted(turn.parts, key=lambda part: not isinstance(part, ToolResult))
    blocks = [_render_part(part) for part in parts if not (isinstance(part, Text) and not part.text.strip())]
    if not blocks:
        raise NotShadowableError("empty_message")
    return {"role": turn.role, "content": blocks}


def _render_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return _render_image(part)
    if isinstance(part, Document):
        source = {"type": "base64", "media_type": "application/pdf", "data": part.data}
        return {"type": "document", "source": source, **({"title": part.name} if part.name else {})}
    if isinstance(part, ToolCall):
        return {"type": "tool_use", "id": _safe_id(part.id), "name": _name(part.name), "input": part.arguments}
    content: Any = part.text
    if part.images:
        texts = [{"type": "text", "text": part.text}] if part.text else []
        content = [*texts, *map(_render_image, part.images)]
    result = {"type": "tool_result", "tool_use_id": _safe_id(part.id), "content": content}
    return {**result, "is_error": True} if part.is_error else result


def _render_image(image: Image) -> dict[str, Any]:
    if image.detail == "low":  # 85 tokens at OpenAI: sent whole, the image would cost many times as much
        raise NotShadowableError("image_detail", image.detail)
    if image.url is not None:
        return {"type": "image", "source": {"type": "url", "url": image.url}}
    return {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": image.data}}


def _render_tools(body: dict[str, Any], conversation: Conversation) -> None:
    if not conversation.tools:
        return
    body["tools"] = [
        {
            "name": _name(tool.name),
            **({"description": tool.description} if tool.description else {}),
            "input_schema": {"type": "object", **tool.schema} if tool.schema else {"type": "object", "properties": {}},
            **({"strict": True} if tool.strict and is_strict_for_anthropic(tool.schema) else {}),
        }
        for tool in conversation.tools
    ]
    choice = conversation.tool_choice or (ToolChoice(kind="auto") if conversation.parallel is False else None)
    if choice is None:
        return
    body["tool_choice"] = {"type": _TOOL_CHOICES[choice.kind], **({"name": choice.name} if choice.name else {})}
    if conversation.parallel is False and choice.kind != "none":
        body["tool_choice"]["disable_parallel_tool_use"] = True


def _name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise NotShadowableError("tool_name", name[:60])
    return name


def _safe_id(call_id: str) -> str:
    # The same change for a call and its result keeps them together.
    return _NOT_IN_ID.sub("_", call_id) or "_"


# Answers of Messages, plain or event by event.


_DELTA_TEXT = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
_INPUT_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class MessagesReader(StreamState):
    """Reads one answer: `take_message` for a plain one, else `take_event` for each event; then `close`."""

    def __init__(self) -> None:
        super().__init__()
        self.builder = AnswerBuilder()
        self.failure: Failure | None = None
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, _Block] = {}
        self._is_closed = False

    def take_message(self, message: dict[str, Any]) -> bool:
        """A plain answer; False where it is none."""
        content = message.get("content")
        if not isinstance(content, list):
            return False
        self._message = message
        for number, block in enumerate(content):
            self._blocks[number] = _Block(as_dict(block), self.builder)
            self._blocks[number].close()
        return True

    def take_event(self, name: str, data: str, value: Any) -> bool:
        """One event: its name, its data and the JSON in it (None where it holds none); whether it carried content."""
        if self.is_finished:  # clients stop reading at the last event
            return False
        kind = as_text(as_dict(value).get("type")) or name
        failure = failure_in(value, failed="error" in {kind, name})
        if failure is not None or kind == "error":
            self.failure = self.failure or failure or Failure(None, data[:2000] if value is None else None)
            return False
        if not isinstance(value, dict):
            # Relays end with chat's [DONE]; it has no meaning here.
            self.is_malformed = self.is_malformed or not data.lstrip().startswith("[DONE]")
            return False
        return self._take(kind, value)

    def _take(self, kind: str, event: dict[str, Any]) -> bool:
        index = as_count(event.get("index")) or 0
        if kind == "message_start":
            self.is_begun = True
            self._message = dict(as_dict(event.get("message")))
            usage = dict(as_dict(self._message.get("usage")))
            usage.pop("output_tokens", None)  # of the first token: their number is reported at the end
            self._message["usage"] = usage
        elif kind == "content_block_start":
            block = self._blocks[index] = _Block(dict(as_dict(event.get("content_block"))), self.builder)
            return block.has_content
        elif kind == "content_block_delta":
            return self._delta(index, as_dict(event.get("delta")))
        elif kind == "content_block_stop":
            if index in self._blocks:
                self._blocks[index].close()
        elif kind == "message_delta" and self._message is not None:
            self._note_end(self._message, event)
        elif kind == "message_stop":
            self.is_finished = self._message is not None
        return False

    def _delta(self, index: int, delta: dict[str, Any]) -> bool:
        kind = as_text(delta.get("type")) or ""
        block = self._blocks.get(index)
        if block is None:  # its start was not seen
            if kind not in {*_DELTA_TEXT, "input_json_delta", "citations_delta"}:
                return False
            made = {"input_json_delta": "tool_use", "thinking_delta": "thinking", "signature_delta": "thinking"}
            block = self._blocks[index] = _Block({"type": made.get(kind, "text")}, self.builder)
        return block.grow(kind, delta)

    def _note_end(self, message: dict[str, Any], event: dict[str, Any]) -> None:
        message.update({key: value for key, value in as_dict(event.get("delta")).items() if value is not None})
        # Cumulative: a reported count overwrites, a missing one stays (the cache-write split is only in the start). Counts of
        # the input never fall: some servers write 0 where they have reported it at the start.
        usage = as_dict(message.get("usage"))
        reported = {key: value for key, value in as_dict(event.get("usage")).items() if value is not None}
        for key in _INPUT_COUNTS:
            if reported.get(key) == 0 and as_count(usage.get(key)):
                del reported[key]
        message["usage"] = {**usage, **reported}
        self.has_reason = bool(as_text(message.get("stop_reason")))

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for _, block in sorted(self._blocks.items()):
            block.close()
        if self._message is not None and as_text(self._message.get("stop_reason")) == "refusal":
            explanation = as_text(as_dict(self._message.get("stop_details")).get("explanation"))
            if explanation and not any(piece.kind == "text" for piece in self.builder.pieces):
                self.builder.add_refusal(explanation)
        self.builder.close()

    def finish(self) -> AnswerBuilder:
        """The answer, when all of it is in."""
        self.close()
        builder, message = self.builder, self._message or {}
        builder.model = as_text(message.get("model"))
        builder.finish_reason = joined(as_text(message.get("stop_reason")) or "") or None
        builder.usage = messages_usage(self.message() or {}, has_content=builder.has_content)
        builder.failure = self.failure
        return builder

    def message(self) -> dict[str, Any] | None:
        """The answer as it would have come unstreamed; None where it never began."""
        if self._message is None:
            return None
        return {**self._message, "content": [block.assembled() for _, block in sorted(self._blocks.items())]}


class _Block:
    """One content block, growing. Only `text` and `tool_use` are sent to the client; the rest is kept in the record."""

    def __init__(self, block: dict[str, Any], builder: AnswerBuilder) -> None:
        self._block = block
        self._builder = builder
        self._parts: dict[str, list[str]] = {}
        self._call: Call | None = None
        self._is_closed = False
        kind = as_scalar(block.get("type"))
        if kind == "tool_use":
            self._call = builder.new_call()
            builder.name_call(self._call, call_id=as_text(block.get("id")), name=as_text(block.get("name")))
        elif kind == "text":
            builder.add_text(as_text(block.get("text")) or "")
        elif kind == "image":
            builder.mark("image")
        self.has_content = kind in {"tool_use", "redacted_thinking", "image"} or bool(block.get("text"))

    def grow(self, kind: str, delta: dict[str, Any]) -> bool:
        """Take a delta; whether it carried content."""
        if self._is_closed:
            return False
        if kind == "citations_delta":
            self._block["citations"] = [*as_list(self._block.get("citations")), delta.get("citation")]
            return False
        if kind == "input_json_delta":
            text = as_text(delta.get("partial_json")) or ""
            self._parts.setdefault("partial_json", []).append(text)
            if self._call is not None:
                self._builder.add_arguments(self._call, text)
            return bool(text)
        key = _DELTA_TEXT.get(kind)
        if key is None:
            return False
        text = as_text(delta.get(key)) or ""
        self._parts.setdefault(key, []).append(text)
        if key == "text":
            self._builder.add_text(text)
        return bool(text) and key != "signature"

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._call is not None:
            given = self._block.get("input")
            if not "".join(self._parts.get("partial_json", [])) and given not in (None, "", {}):
                self._builder.add_arguments(self._call, dump(given))
            self._builder.end_call(self._call)

    def assembled(self) -> dict[str, Any]:
        block = dict(self._block)
        for key, parts in self._parts.items():
            text = joined("".join(parts))
            if key == "partial_json":
                if text:
                    block["input"] = parsed_or_raw(text)
            elif key == "signature":
                block[key] = text
            else:
                block[key] = joined((as_text(block.get(key)) or "") + text)
        return block


# Answers in the shape of Anthropic Messages, whole or as a stream of events.


_STOP: dict[Stop, str] = {
    "end": "end_turn",
    "stop_sequence": "stop_sequence",
    "max_tokens": "max_tokens",
    "tool_use": "tool_use",
    "refusal": "refusal",
}


def plain_messages(reply: Reply) -> dict[str, Any]:
    """The unstreamed body."""
    text = (reply.text or "") + (reply.refusal or "")
    content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)} for call in reply.calls
    ]
    return {
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": _STOP[reply.stop],
        "stop_sequence": reply.stop_sequence,
        "usage": render_messages_usage(reply.usage),
    }


def render_messages_usage(usage: Usage) -> dict[str, Any]:
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    one_hour = usage.cache_write_1h_tokens or 0
    return {
        "input_tokens": max((usage.input_tokens or 0) - cached - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": max(written - one_hour, 0),
            "ephemeral_1h_input_tokens": one_hour,
        },
        "output_tokens": usage.output_tokens or 0,
        "service_tier": "standard",
    }


class MessagesWriter:
    """Events of one streamed answer."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, answer_id: str, model: str) -> None:
        self._id = answer_id
        self._model = model
        self._index = -1
        self._open: str | None = None

    def start(self, usage: Usage) -> bytes:
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**render_messages_usage(usage), "output_tokens": 1},
        }
        return _event({"type": "message_start", "message": message})

    def text(self, delta: str) -> bytes:
        opened = b"" if self._open == "text" else self._begin("text", {"type": "text", "text": ""})
        return opened + self._delta({"type": "text_delta", "text": delta})

    def refusal(self, delta: str) -> bytes:
        return self.text(delta)

    def call_start(self, call_id: str, name: str) -> bytes:
        return self._begin("tool_use", {"type": "tool_use", "id": call_id, "name": name, "input": {}})

    def call_arguments(self, delta: str) -> bytes:
        return self._delta({"type": "input_json_delta", "partial_json": delta})

    def finish(self, stop: Stop, usage: Usage, stop_sequence: str | None = None) -> bytes:
        reported = render_messages_usage(usage)
        # The cache-write split and the service tier are in the start event only.
        final = {key: value for key, value in reported.items() if key not in {"cache_creation", "service_tier"}}
        delta = {"stop_reason": _STOP[stop], "stop_sequence": stop_sequence}
        return (
            self._close()
            + _event({"type": "message_delta", "delta": delta, "usage": final})
            + _event({"type": "message_stop"})
        )

    def error(self, kind: str, message: str) -> bytes:
        return _event(error_body("messages", kind, message))

    def ping(self) -> bytes:
        return _event({"type": "ping"})

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        closed = self._close()
        self._index += 1
        self._open = kind
        return closed + _event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event({"type": "content_block_stop", "index": self._index})


def _event(data: dict[str, Any]) -> bytes:
    return render_event(dump(data), data["type"])


def _input(arguments: str) -> Any:
    parsed = parsed_or_raw(arguments)
    return parsed if isinstance(parsed, dict) else {}
