"""OpenAI chat completions (`POST /v1/chat/completions`) and the many compatible servers: read and written."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from typing import Any, Final

from evalpipe.providers.base import NotShadowableError, Reply, RequestView, Stop, Usage, error_body
from evalpipe.providers.conversation import (
    MARKS,
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
    image_url,
    is_strict,
    known_keys,
    make_view,
    opening_of,
    position_of,
    read_image_url,
    read_pdf,
)
from evalpipe.providers.json_values import as_count, as_dict, as_list, as_scalar, as_text, dump, parsed_or_raw
from evalpipe.providers.model_names import family, takes_max_completion_tokens, takes_sampling
from evalpipe.providers.outcomes import Failure, failure_in, of_error
from evalpipe.providers.response_builder import AnswerBuilder, Call, StreamState
from evalpipe.providers.sse import render_event
from evalpipe.providers.usage import chat_usage, counts_something, usage_in
from evalpipe.text import joined

_OTHER_ROLES: Final = {"developer": "system", "function": "tool"}


def read_request(body: dict[str, Any]) -> RequestView:
    """The fields of a request that evalpipe uses."""
    messages = []
    for message in map(as_dict, as_list(body.get("messages"))):
        role = as_text(message.get("role")) or "user"
        text = content_text(message.get("content"))
        calls = as_list(message.get("tool_calls"))
        if calls:
            text = "\n".join(part for part in [text, *[_request_call(as_dict(call)) for call in calls]] if part)
        messages.append({"role": _OTHER_ROLES.get(role, role), "content": text})
    streamed = body.get("stream") is True
    options = as_dict(body.get("stream_options"))
    return make_view(
        model=as_text(body.get("model")),
        streamed=streamed,
        messages=messages,
        first_user=opening_of(map(as_dict, as_list(body.get("messages")))),
        has_tools=bool(body.get("tools") or body.get("functions")),
        usage_requested=not streamed or options.get("include_usage") is True,
        usage_left_open=streamed and "stream_options" not in body,
        position=position_of(as_list(body.get("messages"))),
    )


def _request_call(call: dict[str, Any]) -> str:
    function = as_dict(call.get("function") or call.get("custom"))
    return f"[tool call {function.get('name')}: {function.get('arguments') or function.get('input') or ''}]"


# Chat completions requests → Conversation.


_CARRIED = frozenset(
    {"messages", "model", "tools", "tool_choice", "parallel_tool_calls", "max_tokens", "max_completion_tokens", "stop"}
    | {"temperature", "top_p", "response_format", "stream", "stream_options", "n"}
)
# Not sent to the other vendor: sampling, billing, storage. None changes the question.
_DROPPED = frozenset(
    {
        "frequency_penalty",
        "presence_penalty",
        "seed",
        "top_k",
        "min_p",
        "repetition_penalty",
        "user",
        "metadata",
        "store",
    }
    | {"service_tier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "safety_identifier"}
    | {"prediction", "reasoning_effort", "verbosity", "modalities", "logprobs", "top_logprobs", "moderation"}
)


def read_chat(body: dict[str, Any]) -> Conversation:
    """The conversation of a chat completions request. Raises NotShadowableError with the first reason against it."""
    _check(body)
    conversation = Conversation(
        tools=[read_tool(as_dict(tool)) for tool in as_list(body.get("tools"))],
        tool_choice=read_tool_choice(body.get("tool_choice")),
        parallel=body.get("parallel_tool_calls"),
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        stop=read_stop(body.get("stop")),
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        streamed=body.get("stream") is True,
    )
    read_format(conversation, body.get("response_format"))
    system: list[str] = []
    for message in map(as_dict, as_list(body.get("messages"))):
        _read_message(conversation, system, message)
    conversation.system = "\n\n".join(system)
    return conversation


def _check(body: dict[str, Any]) -> None:
    if body.get("functions") or body.get("function_call"):
        raise NotShadowableError("legacy_functions")
    if body.get("web_search_options") is not None:
        raise NotShadowableError("server_tools", "web_search_options")
    if body.get("audio") is not None or "audio" in as_list(body.get("modalities")):
        raise NotShadowableError("audio")
    if body.get("logit_bias"):
        raise NotShadowableError("logit_bias")
    if as_scalar(body.get("n")) not in {None, 1}:
        raise NotShadowableError("several_choices")
    known_keys(body, _CARRIED, _DROPPED | {"functions", "function_call", "audio", "logit_bias"})


def _read_message(conversation: Conversation, system: list[str], message: dict[str, Any]) -> None:
    role, content = message.get("role"), message.get("content")
    if role in {"system", "developer"}:
        if conversation.turns:
            raise NotShadowableError("system_message_mid_conversation")
        system.append(_text_only(content))
    elif role == "user":
        conversation.add("user", read_parts(content))
    elif role == "assistant":
        if message.get("function_call") or message.get("audio"):
            raise NotShadowableError("legacy_functions" if message.get("function_call") else "audio")
        parts: list[Part] = read_parts(content)
        if as_text(message.get("refusal")):
            parts.append(Text(message["refusal"]))
        parts += [_read_call(as_dict(call)) for call in as_list(message.get("tool_calls"))]
        conversation.add("assistant", parts)
    elif role == "tool":
        call_id = as_text(message.get("tool_call_id"))
        if call_id is None:
            raise NotShadowableError("tool_result_without_call")
        conversation.add("user", [ToolResult(id=call_id, text=_text_only(content))])
    else:
        raise NotShadowableError("unknown_role", str(role)[:60])


def read_parts(content: Any) -> list[Part]:
    """Parts of a message's content, chat's or Responses' (`input_text`, `input_image`, …); empty text is left out."""
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)] if content else []
    if not isinstance(content, list):
        raise NotShadowableError("content_unreadable")
    parts = [_read_part(as_dict(part)) for part in content]
    return [part for part in parts if not (isinstance(part, Text) and not part.text)]


def _read_part(part: dict[str, Any]) -> Text | Image | Document:
    kind = as_scalar(part.get("type"))
    if kind in {"text", "input_text", "output_text"}:
        return Text(as_text(part.get("text")) or "")
    if kind == "refusal":
        return Text(as_text(part.get("refusal")) or "")
    if kind == "image_url":
        image = as_dict(part.get("image_url"))
        return read_image_url(image.get("url"), image.get("detail"))
    if kind == "input_image":
        if part.get("file_id"):
            raise NotShadowableError("provider_file")
        return read_image_url(part.get("image_url"), part.get("detail"))
    if kind in {"file", "input_file"}:
        file = as_dict(part.get("file")) if kind == "file" else part
        return read_pdf(file.get("file_data"), file.get("filename"))
    if kind == "input_audio":
        raise NotShadowableError("audio")
    raise NotShadowableError("unknown_content", str(kind)[:60])


def _text_only(content: Any) -> str:
    parts = read_parts(content)
    if not all(isinstance(part, Text) for part in parts):
        raise NotShadowableError("content_unreadable")
    return "\n".join(part.text for part in parts if isinstance(part, Text))


def _read_call(call: dict[str, Any]) -> ToolCall:
    if as_scalar(call.get("type")) not in {None, "function"}:
        raise NotShadowableError("custom_tools")
    function = as_dict(call.get("function"))
    return make_call(call.get("id"), function.get("name"), function.get("arguments"))


def make_call(call_id: Any, name: Any, arguments: Any) -> ToolCall:
    """A call from its JSON arguments. Raises NotShadowableError where they are no object: Anthropic takes nothing else."""
    parsed = parsed_or_raw(arguments if isinstance(arguments, str) else "")
    if not isinstance(parsed, dict):
        raise NotShadowableError("tool_arguments_not_json")
    if not isinstance(call_id, str) or not isinstance(name, str):
        raise NotShadowableError("tool_call_unreadable")
    return ToolCall(id=call_id, name=name, arguments=parsed)


def read_tool(tool: dict[str, Any]) -> Tool:
    """A function tool, chat's (nested) or Responses' (flat)."""
    if tool.get("type") != "function":
        raise NotShadowableError(
            "custom_tools" if tool.get("type") == "custom" else "server_tools", str(tool.get("type"))[:60]
        )
    function = as_dict(tool.get("function")) or tool
    name = as_text(function.get("name"))
    if name is None:
        raise NotShadowableError("tool_unreadable")
    return Tool(
        name=name,
        description=as_text(function.get("description")),
        schema=as_dict(function.get("parameters")),
        strict=function.get("strict") is True,
    )


def read_tool_choice(choice: Any) -> ToolChoice | None:
    """OpenAI's tool_choice, chat's or Responses'."""
    if choice is None:
        return None
    if choice in ("auto", "none", "required"):
        return ToolChoice(kind=choice)
    named = as_dict(choice)
    name = as_text(as_dict(named.get("function")).get("name")) or as_text(named.get("name"))
    if named.get("type") == "function" and name is not None:
        return ToolChoice(kind="named", name=name)
    raise NotShadowableError("tool_choice", str(named.get("type", choice))[:60])


def read_stop(stop: Any) -> list[str]:
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else [word for word in as_list(stop) if isinstance(word, str)]


def read_format(conversation: Conversation, response_format: Any) -> None:
    """OpenAI's response format, chat's (`json_schema` nested) or Responses' (flat)."""
    wanted = as_dict(response_format)
    kind = as_scalar(wanted.get("type"))
    if kind in {None, "text"}:
        return
    if kind != "json_schema":
        # Only a schema can be enforced on the other side; "answer in JSON" cannot.
        raise NotShadowableError("json_mode_without_schema", str(kind)[:60])
    inner = as_dict(wanted.get("json_schema")) or wanted
    conversation.output_schema = as_dict(inner.get("schema"))
    conversation.output_schema_name = as_text(inner.get("name"))


# Conversation → OpenAI chat completions request.


_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MAX_STOP_SEQUENCES = 4
"""As many as chat completions takes (API reference, `stop`)."""


def render_chat(conversation: Conversation, model: str) -> dict[str, Any]:
    """The request body for `model`. Raises NotShadowableError where chat completions cannot express it."""
    if not conversation.turns:
        raise NotShadowableError("no_messages")
    if conversation.turns[-1].role == "assistant":
        raise NotShadowableError("assistant_prefill")
    messages: list[dict[str, Any]] = []
    if conversation.system.strip():
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        messages.extend(_render_assistant(turn) if turn.role == "assistant" else _render_user(turn))
    body: dict[str, Any] = {"model": model, "messages": messages}
    if conversation.max_tokens is not None:
        # Elsewhere than at OpenAI the older name is the one every server accepts.
        body["max_completion_tokens" if family(model) == "gpt" else "max_tokens"] = conversation.max_tokens
    _render_tools(body, conversation)
    if len(conversation.stop) > MAX_STOP_SEQUENCES:
        raise NotShadowableError("too_many_stop_sequences")
    if conversation.stop:
        if takes_max_completion_tokens(model):  # OpenAI's reasoning models answer 400 to it
            raise NotShadowableError("stop_sequences_not_taken")
        body["stop"] = conversation.stop
    if conversation.output_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": conversation.output_schema_name or "answer",
                "schema": conversation.output_schema,
                "strict": is_strict(conversation.output_schema),
            },
        }
    if takes_sampling(model):
        for key in ("temperature", "top_p"):
            value = getattr(conversation, key)
            if value is not None:
                body[key] = value
    if conversation.streamed:
        body["stream"] = True
    return body


def _render_user(turn: Turn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, ToolResult):
            if part.images:
                raise NotShadowableError("image_in_tool_result")
            messages.append({"role": "tool", "tool_call_id": part.id, "content": _result_text(part)})
    rest = [part for part in turn.parts if not isinstance(part, ToolResult)]
    if len(rest) == 1 and isinstance(rest[0], Text):
        messages.append({"role": "user", "content": rest[0].text})
    elif rest:
        messages.append({"role": "user", "content": [_render_part(part) for part in rest]})
    elif not messages:
        messages.append({"role": "user", "content": ""})
    return messages


def _result_text(result: ToolResult) -> str:
    """Chat completions has no flag for a tool that failed: the text itself reports it."""
    if not result.is_error or result.text.lstrip().lower().startswith(("error", "<error", '{"error"')):
        return result.text
    return f"Error: {result.text}" if result.text else "Error"


def _render_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": image_url(part)}}
    if isinstance(part, Document):
        name = part.name or "document.pdf"
        return {"type": "file", "file": {"filename": name, "file_data": f"data:application/pdf;base64,{part.data}"}}
    raise NotShadowableError("unknown_content", "in a user turn")


def _render_assistant(turn: Turn) -> list[dict[str, Any]]:
    text = "".join(part.text for part in turn.parts if isinstance(part, Text))
    calls = [part for part in turn.parts if isinstance(part, ToolCall)]
    if any(not isinstance(part, Text | ToolCall) for part in turn.parts):
        raise NotShadowableError("unknown_content", "in an assistant turn")
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": _name(call.name), "arguments": dump(call.arguments)},
            }
            for call in calls
        ]
    return [message]


def _render_tools(body: dict[str, Any], conversation: Conversation) -> None:
    if not conversation.tools:
        return
    body["tools"] = [
        {
            "type": "function",
            "function": {
                "name": _name(tool.name),
                **({"description": tool.description} if tool.description else {}),
                "parameters": tool.schema,
                **({"strict": True} if tool.strict and is_strict(tool.schema) else {}),
            },
        }
        for tool in conversation.tools
    ]
    choice = conversation.tool_choice
    if choice is not None:
        body["tool_choice"] = (
            {"type": "function", "function": {"name": choice.name}} if choice.kind == "named" else choice.kind
        )
    if conversation.parallel is False:
        body["parallel_tool_calls"] = False


def _name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise NotShadowableError("tool_name", name[:60])
    return name


# Answers of chat completions, plain or chunk by chunk, from any compatible server.


_REASONING = ("reasoning_content", "reasoning", "reasoning_text")
"""keys of hidden reasoning: DeepSeek and most · OpenRouter, Groq, newer vLLM · GitHub Copilot"""
HEAD = ("id", "created", "model", "system_fingerprint", "service_tier", "provider")
"""keys of an answer's chunks that are its own"""


class ChatReader(StreamState):
    """Reads one answer: `take_message` for a plain one, else `take_event` for each event; then `close`."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Failure | None = None
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._plain: dict[str, Any] | None = None
        self._nothing = AnswerBuilder()
        self._is_closed = False

    @property
    def builder(self) -> AnswerBuilder:
        """Of the first choice: the one of index 0, where the answer has one."""
        first = self._choices.get(0)
        if first is None and self._is_closed and self._choices:
            first = self._choices[min(self._choices)]
        return self._nothing if first is None else first.builder

    def take_message(self, message: dict[str, Any]) -> bool:
        """A plain answer; False where it is none."""
        choices = [as_dict(choice) for choice in as_list(message.get("choices"))]
        if not choices:
            return False
        first = min(choices, key=lambda choice: as_count(choice.get("index")) or 0)
        self._plain = message
        self._head["model"] = message.get("model")
        self._choices[0] = choice = _Choice()
        choice.add_message(as_dict(first.get("message")) or as_dict(first.get("delta")))
        choice.note_finish(first)
        self._note_error(first)
        return True

    def take_event(self, name: str, data: str, value: Any) -> bool:
        """One event: its name, its data and the JSON in it (None where it holds none); whether it carried content."""
        if data.lstrip().startswith("[DONE]"):
            self.is_finished = self.is_finished or bool(self._choices)
            return False
        if self.is_finished:  # clients stop reading at [DONE]; tokens are counted wherever they are reported
            if isinstance(value, dict):
                self._note_usage(value)
            return False
        failure = failure_in(value, failed=name == "error") or (
            Failure(None, data[:2000]) if name == "error" and value is None and data else None
        )
        if failure is not None:
            self.failure = self.failure or failure
            return False
        if not isinstance(value, dict):
            self.is_malformed = True
            return False
        self._note_head(value)
        content = False
        may_count = value.get("usage") is not None or "x_groq" in value
        for part in map(as_dict, as_list(value.get("choices"))):
            may_count |= "usage" in part
            self.is_begun = True
            content |= self._choice(as_count(part.get("index")) or 0).add(part)
            self._note_error(part)
        if may_count:
            self._note_usage(value)
        return content

    def close(self) -> None:
        self._is_closed = True
        self.has_reason = bool(self._choices) and all(
            choice.builder.finish_reason is not None for choice in self._choices.values()
        )
        for choice in self._choices.values():
            choice.close()

    def finish(self) -> AnswerBuilder:
        """The answer, when all of it is in."""
        self.close()
        builder = self.builder
        builder.model = as_text(self._head.get("model"))
        builder.usage = chat_usage(self.message() or {}, has_content=builder.has_content)
        builder.failure = self.failure
        return builder

    def message(self) -> dict[str, Any] | None:
        """The answer as it would have come unstreamed; None where nothing of it came."""
        if self._plain is not None or not self._choices:
            return self._plain
        usage = {"usage": self._head["usage"]} if "usage" in self._head else {}
        return {
            **{key: value for key, value in self._head.items() if key != "usage"},
            "object": "chat.completion",
            "choices": [choice.assembled(index) for index, choice in sorted(self._choices.items())],
            **usage,
        }

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice()
        return choice

    def _note_head(self, chunk: dict[str, Any]) -> None:
        head = self._head
        for key in HEAD:
            value = chunk.get(key)
            # Azure's first chunk names no model: an empty name does not replace a reported one.
            if value or (value is not None and key not in head):
                head[key] = value

    def _note_usage(self, chunk: dict[str, Any]) -> None:
        usage = usage_in(chunk)
        if usage is not None and ("usage" not in self._head or counts_something(usage)):
            self._head["usage"] = usage

    def _note_error(self, choice: dict[str, Any]) -> None:
        """An error inside a choice (OpenRouter)."""
        error = choice.get("error")
        if self.failure is None and error:
            self.failure = of_error(error) if isinstance(error, dict) else failure_in({"error": error})


class _Choice:
    """One choice, growing."""

    def __init__(self) -> None:
        self.builder = AnswerBuilder()
        self._texts: dict[str, list[str]] = {}
        self._audio: dict[str, list[str]] = {}
        self._images: list[Any] = []
        self._function: Call | None = None
        self._deltas = _CallDeltas(self.builder)

    def add(self, part: dict[str, Any]) -> bool:
        """Take one chunk's part of the choice; whether it carried content."""
        delta = as_dict(part.get("delta")) or as_dict(part.get("message"))
        content = self._add_content(delta.get("content"), between="")
        if len(delta) > 1 or "content" not in delta:
            content |= self._add_other(delta, is_whole=False)
        self.note_finish(part)
        return content

    def add_message(self, message: dict[str, Any]) -> None:
        self._add_content(message.get("content"), between="\n")
        self._add_other(message, is_whole=True)

    def note_finish(self, part: dict[str, Any]) -> None:
        reason = as_text(part.get("finish_reason"))
        if reason:  # older Ollama and SGLang write "" in each chunk
            self.builder.finish_reason = joined(reason)

    def close(self) -> None:
        if self._audio and not "".join(self._audio.get("transcript", [])):
            self.builder.mark("audio")
        self.builder.close()

    def _add_other(self, delta: dict[str, Any], *, is_whole: bool) -> bool:
        content = self._add_audio(as_dict(delta.get("audio")))
        refusal = as_text(delta.get("refusal"))
        if refusal is not None:
            self._keep("refusal", refusal)
            self.builder.add_refusal(refusal)
            content |= bool(refusal)
        for key in _REASONING:
            thought = as_text(delta.get(key))
            if thought is not None:
                self._keep(key, thought)
                content |= bool(thought)
        images = as_list(delta.get("images"))
        if images:
            self._images += images
            self.builder.mark("image")
        calls = [as_dict(call) for call in as_list(delta.get("tool_calls"))]
        if calls:
            self._deltas.add(calls, is_whole=is_whole)
        function = delta.get("function_call")
        if isinstance(function, dict):
            if self._function is None:
                self._function = self.builder.new_call()
            _grow(self.builder, self._function, None, function)
        return content or bool(images) or bool(calls) or isinstance(function, dict)

    def _keep(self, key: str, text: str) -> None:
        self._texts.setdefault(key, []).append(text)

    def _add_content(self, content: Any, *, between: str) -> bool:
        """A string, or parts (Mistral: reasoning, references and pictures are parts too)."""
        if isinstance(content, str):
            self._keep("content", content)
            self.builder.add_text(content)
            return bool(content)
        if isinstance(content, dict):
            content = [content]
        has_content = False
        n_texts = 0
        for part in as_list(content):
            if isinstance(part, str):
                part = {"type": "text", "text": part}
            part = as_dict(part)
            kind = as_text(part.get("type")) or "text"
            text = as_text(part.get("text"))
            if kind in {"thinking", "reasoning"}:
                has_content |= self._add_thinking(part)
            elif kind == "refusal":
                self._keep("refusal", as_text(part.get("refusal")) or "")
                self.builder.add_refusal(as_text(part.get("refusal")) or "")
                has_content = True
            elif text is not None:
                text = between + text if n_texts and text else text
                n_texts += bool(text)
                self._keep("content", text)
                self.builder.add_text(text)
                has_content |= bool(text)
            elif kind in MARKS:
                self.builder.mark(MARKS[kind].strip("[]"))
                has_content = True
        return has_content

    def _add_thinking(self, part: dict[str, Any]) -> bool:
        thinking = part.get("thinking") if part.get("thinking") is not None else part.get("text")
        parts = [thinking] if isinstance(thinking, str) else as_list(thinking)
        text = "".join(
            piece if isinstance(piece, str) else as_text(as_dict(piece).get("text")) or "" for piece in parts
        )
        self._keep("reasoning_content", text)
        return bool(text)

    def _add_audio(self, audio: dict[str, Any]) -> bool:
        """Speech: its transcript is the text."""
        for key in ("id", "data", "transcript"):
            text = as_text(audio.get(key))
            if text is not None:
                self._audio.setdefault(key, []).append(text)
        self.builder.add_text(as_text(audio.get("transcript")) or "")
        return bool(audio)

    def assembled(self, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        message.update({key: joined("".join(parts)) for key, parts in self._texts.items()})
        calls = [call for call in self.builder.calls if call is not self._function]
        if calls:
            message["tool_calls"] = [_assembled_call(call) for call in calls]
        if self._function is not None:
            message["function_call"] = {"name": self._function.name, "arguments": self._function.argument_text}
        if self._audio:
            message["audio"] = {key: joined("".join(parts)) for key, parts in self._audio.items()}
        if self._images:
            message["images"] = self._images
        return {"index": index, "message": message, "finish_reason": self.builder.finish_reason}


class _CallDeltas:
    """Puts the deltas of tool calls to the call they belong to: by id, else by index, else by order and name.

    Servers leave the index out (Gemini's compatible endpoint) or write 0 at every call, repeat id and name in each delta,
    or write neither: a name that comes when the arguments before it are whole begins a new call.
    """

    def __init__(self, builder: AnswerBuilder) -> None:
        self._builder = builder
        self._by_id: dict[str, Call] = {}
        self._by_index: dict[int, Call] = {}
        self._last: Call | None = None

    def add(self, deltas: list[dict[str, Any]], *, is_whole: bool) -> None:
        """Take the calls of one chunk; `is_whole`: of a plain message, where each is a call of its own."""
        taken: list[Call] = []
        for position, delta in enumerate(deltas):
            place = position if len(deltas) > 1 else None
            call = self._builder.new_call() if is_whole else self._find(delta, place, taken)
            taken.append(call)
            self._last = call
            function = as_dict(delta.get("function")) or as_dict(delta.get("custom"))
            call.is_custom |= delta.get("type") == "custom" or (not delta.get("function") and bool(delta.get("custom")))
            _grow(self._builder, call, as_text(delta.get("id")), function)

    def _find(self, delta: dict[str, Any], position: int | None, taken: list[Call]) -> Call:
        call_id = as_text(delta.get("id"))
        index = as_count(delta.get("index"))
        function = as_dict(delta.get("function")) or as_dict(delta.get("custom"))
        name = as_text(function.get("name"))
        by_id = self._by_id.get(call_id) if call_id else None
        if index is not None:
            known = self._by_index.get(index)
            if by_id is not None and (known is not None or not name):
                known = by_id  # every call is at index 0, or the index changed within a call
        elif by_id is not None:
            known = by_id
        elif position is not None and not call_id and not name and position < len(self._builder.calls):
            known = self._builder.calls[position]
        else:
            known = self._last
        if known is None or (
            name
            and (by_id is not known or by_id is None)
            and _is_another(known, call_id, name, function, is_indexed=index is not None, is_taken=known in taken)
        ):
            known = self._builder.new_call()
        if call_id:
            self._by_id[call_id] = known
        if index is not None:
            self._by_index[index] = known
        return known


def _is_another(
    call: Call, call_id: str | None, name: str, function: dict[str, Any], *, is_indexed: bool, is_taken: bool
) -> bool:
    """Whether a delta with a name, which would go on with `call`, begins another one. `is_taken`: an earlier delta of the same
    chunk was of `call`."""
    if is_taken and not (is_indexed and not call_id):
        return True  # one chunk names each call once
    if call_id and call.id and call_id != call.id:
        # Some servers make up an id for each delta: arguments that are not whole go on.
        return not call.arguments or call.is_complete()
    if call.is_complete():
        return name != call.name or bool(function.get("arguments"))
    return not is_indexed and not call_id and not call.arguments and name != call.name


def _grow(builder: AnswerBuilder, call: Call, call_id: str | None, function: dict[str, Any]) -> None:
    builder.name_call(call, call_id=call_id, name=as_text(function.get("name")))
    given = function.get("arguments") if function.get("arguments") is not None else function.get("input")
    if given is not None:
        builder.add_arguments(call, given if isinstance(given, str) else dump(given))


def _assembled_call(call: Call) -> dict[str, Any]:
    if call.is_custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.argument_text}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.argument_text}}


# Answers in the shape of chat completions, whole or as a stream of chunks.


_FINISH: dict[Stop, str] = {
    "end": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def plain_chat(reply: Reply) -> dict[str, Any]:
    """The unstreamed body."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": reply.refusal, "annotations": []}
    if reply.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.calls
        ]
    finish = "stop" if reply.refusal is not None and reply.stop == "refusal" else _FINISH[reply.stop]
    usage = render_chat_usage(reply.usage)
    return {
        "id": reply.id,
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        **({"usage": usage} if usage is not None else {}),
        "service_tier": "default",
        "system_fingerprint": None,
    }


def render_chat_usage(usage: Usage) -> dict[str, Any] | None:
    """None where the tokens are not known: the dialect can leave them out, and 0 would be a count."""
    prompt, completion = usage.input_tokens, usage.output_tokens
    if prompt is None or completion is None:
        return None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens or 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens or 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


class ChatWriter:
    """Chunks of one streamed answer. `include_usage`: the client asked for the usage chunk."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, answer_id: str, model: str, created: int, include_usage: bool) -> None:
        self._head = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._include_usage = include_usage
        self._n_calls = 0
        self._refused = False

    def start(self, usage: Usage) -> bytes:
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text(self, delta: str) -> bytes:
        return self._chunk({"content": delta})

    def refusal(self, delta: str) -> bytes:
        self._refused = True
        return self._chunk({"refusal": delta})

    def call_start(self, call_id: str, name: str) -> bytes:
        function = {"name": name, "arguments": ""}
        call = {"index": self._n_calls, "id": call_id, "type": "function", "function": function}
        self._n_calls += 1
        return self._chunk({"tool_calls": [call]})

    def call_arguments(self, delta: str) -> bytes:
        if not delta:
            return b""
        return self._chunk({"tool_calls": [{"index": self._n_calls - 1, "function": {"arguments": delta}}]})

    def finish(self, stop: Stop, usage: Usage, stop_sequence: str | None = None) -> bytes:
        finish = "stop" if self._refused and stop == "refusal" else _FINISH[stop]
        end = self._chunk({}, finish)
        reported = render_chat_usage(usage) if self._include_usage else None
        if reported is not None:
            end += render_event(dump({**self._head, **_COMMON, "choices": [], "usage": reported}))
        return end + render_event("[DONE]")

    def error(self, kind: str, message: str) -> bytes:
        return render_event(dump(error_body("chat.completions", kind, message)))

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = {**self._head, **_COMMON, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return render_event(dump(chunk))


_COMMON = {"service_tier": "default", "system_fingerprint": None}
