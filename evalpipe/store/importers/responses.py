"""The one reader of logged responses: its text, tool calls, end, model and tokens, whatever tool kept it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from evalpipe.providers.registry import read_answer as read_body
from evalpipe.store.importers.messages import answer_in, is_message, read_content, role_in, shown, tool_calls_of
from evalpipe.store.importers.values import NO_TOKENS, Tokens, instant, name, number, opened, read_tokens

_TEXT_KEYS = (
    "output_text", "generated_text", "completion", "generation", "outputText", "text", "answer", "response", "content", "output",
    "result", "reply", "value", "completion_text", "response_text", "assistant", "message", "prediction", "predictions",
)  # fmt: skip
_INNER_KEYS = (
    "body",
    "response",
    "result",
    "output",
    "outputs",
    "message",
    "data",
    "completion",
    "value",
    "kwargs",
    "return_value",
)
_MAX_DEPTH = 8


def read_logged_response(value: Any, depth: int = 0) -> LoggedResponse:
    """The answer in a log's field. The first of several choices is taken; reasoning is left out. Never raises."""
    if value is None or depth > _MAX_DEPTH:
        return NOTHING
    if isinstance(value, str):
        return _of_text(value, depth)
    if isinstance(value, Mapping):
        return _of_object(value, depth)
    if isinstance(value, list | tuple):
        return _of_list(list(value), depth)
    return LoggedResponse(text=json.dumps(value, default=str))


def is_answer(value: Any) -> bool:
    """Whether an opened text is an answer in some API's or framework's shape, and no text that only happens to be JSON."""
    if isinstance(value, Mapping):
        if is_message(value) or any(
            key in value for key in ("choices", "candidates", "generations", "output_text", "lc")
        ):
            return True
        if isinstance(value.get("output"), list) or isinstance(value.get("message"), Mapping):
            return True
        return (
            bool(value)
            and set(value) <= {"completion", "text", "content", "output", "model", "stop_reason", "usage"}
            and any(isinstance(value.get(key), str) for key in ("completion", "content", "text", "output"))
        )
    if isinstance(value, list) and value:
        return all(
            isinstance(item, Mapping) and (is_message(item) or is_answer(item) or _is_text_part(item)) for item in value
        )
    return False


def _is_text_part(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("type"), str) and (
        "text" in item or "content" in item or "name" in item or "thinking" in item
    )


def _of_text(value: str, depth: int) -> LoggedResponse:
    if REDACTED.fullmatch(value):
        return LoggedResponse(is_redacted=True)
    start = value.lstrip()[:7]
    if start[:1] in {"{", "["}:
        inner = opened(value)
        if not isinstance(inner, str) and is_answer(inner):
            return read_logged_response(inner, depth + 1)
    if start.startswith(("data:", "event:", ": ")) and "\ndata:" in f"\n{value}":
        return _streamed(value)
    return LoggedResponse(text=shown(value))


def _streamed(value: str) -> LoggedResponse:
    """A stream of events as it came over the wire."""
    endpoint = "messages" if "message_start" in value else "responses" if '"response.' in value else "chat.completions"
    answer = read_body(endpoint, 200, {"content-type": "text/event-stream"}, value.encode("utf-8", "surrogatepass"))
    if answer.text is None and not answer.tool_calls and answer.error_message is None:
        return LoggedResponse(text=value)
    usage = answer.usage
    return LoggedResponse(
        text=answer.text,
        tool_calls=answer.tool_calls,
        finish_reason=answer.finish_reason,
        model=answer.model,
        tokens=Tokens(
            usage.input_tokens,
            usage.cached_input_tokens,
            usage.cache_write_tokens,
            usage.output_tokens,
            usage.reasoning_tokens,
        ),
        error=answer.error_message,
        error_type=answer.error_type,
        streamed=True,
    )


def _of_list(values: list[Any], depth: int) -> LoggedResponse:
    values = [opened(value) if isinstance(value, str) and is_answer(opened(value)) else value for value in values]
    if not values:
        return LoggedResponse()
    if all(
        isinstance(value, list | tuple) for value in values
    ):  # LangChain's generations, lm-eval's repetitions: the first
        return read_logged_response(values[0], depth + 1)
    if all(isinstance(value, str) for value in values):  # several choices
        return read_logged_response(values[0], depth + 1)
    objects = [value for value in values if isinstance(value, Mapping)]
    if any(
        str(value.get("object", "")).endswith("chunk") or "delta" in value or "choices" in value for value in objects
    ):
        return _of_chunks(objects, depth)
    if any("candidates" in value for value in objects):
        return _of_gemini_chunks(objects, depth)
    if any(
        value.get("type") in {"message", "function_call", "reasoning", "web_search_call"} and "lc" not in value
        for value in objects
    ):
        return _of_items(objects)
    messages = [value for value in objects if is_message(value) or "message" in value or "parts" in value]
    if messages:
        return _of_messages(messages, depth)
    if any(("text" in value and "type" not in value) or "generated_text" in value for value in objects):
        return read_logged_response(objects[0], depth + 1)  # generations: the first choice
    content = read_content(values)
    return LoggedResponse(
        text=content.text if content.text is not None else content.refusal,
        tool_calls=content.tool_calls,
        refusal=content.refusal is not None,
    )


def _of_messages(messages: list[Mapping[str, Any]], depth: int) -> LoggedResponse:
    """The answer that ends a list of messages. Several assistant messages alone are choices: the first is taken."""
    if all(isinstance(one.get("message"), Mapping) and "finish_reason" in one for one in messages):
        return _of_choice(messages[0], depth)
    roles = [role_in(one) for one in messages]
    if all(role == "assistant" for role in roles):
        return _of_object(messages[0], depth + 1)
    answers = [one for one, role in zip(messages, roles, strict=True) if role == "assistant"]
    return _of_object(answers[-1], depth + 1) if answers else LoggedResponse()


def _of_items(items: list[Mapping[str, Any]]) -> LoggedResponse:
    """The output of the Responses API: messages and calls in their order, reasoning left out."""
    texts, calls, refusal = [], [], None
    for item in items:
        kind = item.get("type")
        if kind in {"function_call", "custom_tool_call"}:
            calls += tool_calls_of(item)
        elif kind == "message" or "content" in item:
            if item.get("role") not in {None, "assistant"} or kind == "reasoning":
                continue
            content = read_content(item.get("content"))
            texts += [content.text] if content.text is not None else []
            calls += content.tool_calls
            refusal = refusal or content.refusal
    text = "".join(texts) if texts else refusal
    return LoggedResponse(text=text, tool_calls=calls, refusal=refusal is not None and not texts)


def _of_chunks(chunks: list[Mapping[str, Any]], depth: int) -> LoggedResponse:
    """The chunks of a streamed chat completion, stored as a list."""
    body = "".join(f"data: {json.dumps(chunk, default=str)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    found = _streamed(body)
    return found if found.text != body else read_logged_response(dict(chunks[0]), depth + 1)


def _of_gemini_chunks(chunks: list[Mapping[str, Any]], depth: int) -> LoggedResponse:
    found = [_of_object(chunk, depth + 1) for chunk in chunks]
    texts = [one.text for one in found if one.text is not None]
    ends = [one for one in found if one.finish_reason] or found[-1:]
    counted = [one for one in found if one.tokens != Tokens()] or found[-1:]
    return replace(
        ends[-1],
        text="".join(texts) if texts else None,
        tool_calls=[call for one in found for call in one.tool_calls],
        tokens=counted[-1].tokens,
    )


def _of_object(value: Mapping[str, Any], depth: int) -> LoggedResponse:
    for key, reader in _SHAPES:
        if value.get(key) is not None:
            found = reader(value, depth)
            if found is not None:
                return _with_head(found, value)
    return _with_head(_plain(value, depth), value)


def _choices(value: Mapping[str, Any], depth: int) -> LoggedResponse | None:
    choices = opened(value["choices"])
    if not isinstance(choices, list) or not choices:
        return None
    objects = [choice for choice in choices if isinstance(choice, Mapping)]
    if not objects:
        return read_logged_response(choices[0], depth + 1)
    if str(value.get("object", "")).endswith("chunk"):
        return _of_chunks([value], depth)
    best = min(objects, key=lambda one: number(one.get("index")) or 0)
    return _of_choice(best, depth)


def _of_choice(choice: Mapping[str, Any], depth: int) -> LoggedResponse:
    message = opened(choice.get("message", choice.get("delta")))
    if isinstance(message, Mapping):
        found = _of_object(message, depth + 1)
    else:
        found = read_logged_response(choice.get("text") if message is None else message, depth + 1)
    error = choice.get("error")
    logged = replace(found, finish_reason=reason_in(choice) or found.finish_reason)
    return logged if not error else replace(logged, error=error_text(error), error_type=logged.error_type or "error")


def _candidates(value: Mapping[str, Any], depth: int) -> LoggedResponse | None:
    candidates = value["candidates"]
    if not isinstance(candidates, list):
        return None
    if not candidates or not isinstance(candidates[0], Mapping):
        blocked = value.get("promptFeedback") or value.get("prompt_feedback")
        reason = blocked.get("blockReason") or blocked.get("block_reason") if isinstance(blocked, Mapping) else None
        return LoggedResponse(finish_reason=name(reason), refusal=reason is not None)
    first = candidates[0]
    content = read_content(_parts_of(first.get("content", first.get("output"))))
    return LoggedResponse(text=content.text, tool_calls=content.tool_calls, finish_reason=reason_in(first))


def _parts_of(content: Any) -> Any:
    return content.get("parts", content.get("content")) if isinstance(content, Mapping) else content


def _output(value: Mapping[str, Any], depth: int) -> LoggedResponse | None:
    """The Responses API's output, or Bedrock's Converse; any other `output` is looked at later."""
    output = opened(value["output"])
    if isinstance(output, list) and output and all(isinstance(item, Mapping) for item in output):
        found = _of_list(output, depth + 1)
        details = value.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, Mapping) else None
        return replace(found, finish_reason=name(reason) or found.finish_reason or name(value.get("status")))
    if isinstance(output, Mapping) and isinstance(output.get("message"), Mapping):
        return read_logged_response(output["message"], depth + 1)
    return None


def _generations(value: Mapping[str, Any], depth: int) -> LoggedResponse | None:
    found = value["generations"]
    while isinstance(found, list) and found and isinstance(found[0], list):
        found = found[0]
    if not isinstance(found, list) or not found or not isinstance(found[0], Mapping):
        return None
    first = found[0]
    message = opened(first.get("message"))
    logged = read_logged_response(message, depth + 1) if isinstance(message, Mapping) else LoggedResponse()
    if logged.text is None and isinstance(first.get("text"), str) and (first["text"] or not logged.tool_calls):
        logged = replace(logged, text=shown(first["text"]))
    info = first.get("generation_info") or first.get("generationInfo")
    return replace(
        logged, finish_reason=(reason_in(info) if isinstance(info, Mapping) else None) or logged.finish_reason
    )


def _embedded(value: Mapping[str, Any], depth: int) -> LoggedResponse | None:
    data = value["data"]
    first = data[0] if isinstance(data, list) and data else None
    if isinstance(first, Mapping) and "embedding" in first:
        return LoggedResponse(is_embedding=True)
    if isinstance(first, Mapping) and ("b64_json" in first or "url" in first):
        return LoggedResponse(is_embedding=True)
    return _langchain(value, depth)


def _langchain(value: Mapping[str, Any], depth: int) -> LoggedResponse | None:
    """LangChain's serialised messages: `kwargs` (or `data`) holds the message itself."""
    inner = opened(value.get("kwargs") or value.get("data"))
    return _of_object(inner, depth + 1) if isinstance(inner, Mapping) and "content" in inner else None


def _message(value: Mapping[str, Any], depth: int) -> LoggedResponse | None:
    """One message with its content or parts."""
    text, calls = answer_in(value)
    refusal = value.get("refusal")
    if text is None and isinstance(refusal, str):
        return LoggedResponse(text=refusal, tool_calls=calls, refusal=True)
    if isinstance(text, str) and REDACTED.fullmatch(text):
        return LoggedResponse(is_redacted=True)
    return LoggedResponse(text=text, tool_calls=calls, refusal=isinstance(refusal, str) and not text)


def _roled(value: Mapping[str, Any], depth: int) -> LoggedResponse | None:
    if (
        "content" in value
        or "parts" in value
        or "tool_calls" in value
        or "function_call" in value
        or "refusal" in value
    ):
        return _message(value, depth)
    return None


def _content(value: Mapping[str, Any], depth: int) -> LoggedResponse | None:
    if isinstance(value["content"], str | list):
        return _message(value, depth)
    return read_logged_response(value["content"], depth + 1) if isinstance(value["content"], Mapping) else None


def _messages(value: Mapping[str, Any], depth: int) -> LoggedResponse | None:
    """A state that holds a conversation (LangGraph): its last answer."""
    messages = opened(value["messages"])
    if not isinstance(messages, list) or not messages:
        return None
    while isinstance(messages[0], list):
        messages = messages[0]
        if not messages:
            return None
    objects = [one for one in messages if isinstance(one, Mapping)]
    return _of_messages(objects, depth) if objects else None


def _plain(value: Mapping[str, Any], depth: int) -> LoggedResponse:
    """An object in no API's shape: a text under one of the usual names, or the one answer that an inner object is."""
    for key in _TEXT_KEYS:
        inner = value.get(key)
        if isinstance(inner, str):
            return _of_text(inner, depth + 1)
        if isinstance(inner, list) and inner and all(isinstance(one, str) for one in inner):
            return LoggedResponse(text=shown(inner[0]))
    for key in (*_INNER_KEYS, "results"):
        inner = opened(value.get(key))
        if isinstance(inner, Mapping | list) and inner:
            found = read_logged_response(inner, depth + 1)
            if not found.is_empty or found.is_redacted or found.is_embedding:
                return found
    texts = [one for one in value.values() if isinstance(one, str) and one]
    if len(value) == 1 and texts:
        return _of_text(texts[0], depth + 1)
    return LoggedResponse(is_found=bool(value) and not is_failure(value))


def _with_head(logged: LoggedResponse, value: Mapping[str, Any]) -> LoggedResponse:
    """The fields beside the text: model, tokens, end, time, error."""
    meta = opened(
        value.get("response_metadata") or value.get("llm_output") or value.get("llmOutput") or value.get("metadata")
    )
    aside: Mapping[str, Any] = meta if isinstance(meta, Mapping) else {}
    tokens = logged.tokens
    if tokens == Tokens():
        tokens = next(
            (
                found
                for holder in (value, aside)
                for key in (
                    "usage",
                    "usage_metadata",
                    "usageMetadata",
                    "token_usage",
                    "tokenUsage",
                    "meta",
                    "tokens",
                    "metrics",
                )
                if (found := read_tokens(holder.get(key))) != Tokens()
            ),
            Tokens(),
        )
    if tokens == Tokens() and ("eval_count" in value or "prompt_eval_count" in value):  # Ollama
        tokens = read_tokens({key: value.get(key) for key in ("prompt_eval_count", "eval_count")})
    usage = opened(value.get("usage"))
    error = value.get("error")
    failed = is_failure(value) and logged.text is None
    kind = error.get("type") or error.get("code") if isinstance(error, Mapping) else None
    return replace(
        logged,
        tokens=tokens,
        model=logged.model
        or name(
            value.get("model")
            or value.get("modelVersion")
            or value.get("model_version")
            or aside.get("model_name")
            or aside.get("model")
        ),
        finish_reason=logged.finish_reason or reason_in(value) or reason_in(aside),
        cost_usd=logged.cost_usd
        if logged.cost_usd is not None
        else number(usage.get("cost"))
        if isinstance(usage, Mapping)
        else None,
        created=logged.created or instant(value.get("created") or value.get("created_at") or value.get("createTime")),
        answer_id=logged.answer_id or (value["id"] if isinstance(value.get("id"), str) else None),
        error=logged.error or (error_text(error) if failed else None),
        error_type=logged.error_type or (name(kind) if failed else None),
    )


# The content of a logged response, and fields common to all of them: errors, finish reasons.


REDACTED = re.compile(
    r"\s*[\[<(*]*\s*(?:redacted(?:[-_ ]by[-_ ][\w-]+)?|__redacted__|__?redacted_due_to[\w]*|content redacted)\s*[\])>*]*\s*",
    re.IGNORECASE,
)
"""Placeholders of texts that the logging tool was configured to leave out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedResponse:
    """What a logged answer holds. `text` None: no text was there; `is_redacted`: the tool left it out on purpose."""

    text: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    model: str | None = None
    tokens: Tokens = NO_TOKENS
    cost_usd: float | None = None
    error: str | None = None
    error_type: str | None = None
    status: int | None = None
    created: datetime | None = None
    answer_id: str | None = None
    refusal: bool = False
    streamed: bool | None = None
    is_redacted: bool = False
    is_embedding: bool = False
    is_found: bool = True
    """some answer was there at all"""

    @property
    def is_empty(self) -> bool:
        return self.text is None and not self.tool_calls and self.error is None


NOTHING = LoggedResponse(is_found=False)


def is_failure(value: Mapping[str, Any]) -> bool:
    """Whether an answer's object names an error."""
    return bool(value.get("error")) and value.get("error") is not False


def error_text(error: Any) -> str:
    """The words of an error: its message, wherever the object keeps it."""
    error = opened(error)
    if isinstance(error, Mapping):
        for key in ("message", "error", "detail", "msg", "description", "type"):
            if isinstance(error.get(key), str):
                return str(error[key])
            if isinstance(error.get(key), Mapping):
                return error_text(error[key])
        return json.dumps(error, default=str)[:2000]
    return str(error)


def reason_in(holder: Mapping[str, Any]) -> str | None:
    """Why a response ended, under any of the field's names."""
    for key in (
        "finish_reason",
        "finishReason",
        "stop_reason",
        "stopReason",
        "done_reason",
        "completionReason",
        "finish_reasons",
    ):
        value = holder.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str) and value:
            return value
    return None


_SHAPES: tuple[tuple[str, Callable[[Mapping[str, Any], int], LoggedResponse | None]], ...] = (
    ("choices", _choices),
    ("candidates", _candidates),
    ("generations", _generations),
    ("output", _output),
    ("data", _embedded),
    ("kwargs", _langchain),
    ("role", _roled),
    ("parts", _roled),
    ("content", _content),
    ("tool_calls", _roled),
    ("messages", _messages),
)
"""The shapes an answer is known by, the surest first: a key, and its reader."""
