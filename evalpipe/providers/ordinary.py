"""The ordinary answer, one text and how it ended, read straight into typed records: what most of a log is.

A short way past the general readers (`chat.ChatReader`, `messages.MessagesReader`), for speed alone: it gives what they give,
and None for whatever it does not know. An answer with a field that is not listed, a tool call, a refusal or an error is left to
them.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from evalpipe.models import Outcome
from evalpipe.providers.base import Answer, Usage
from evalpipe.providers.chat import HEAD
from evalpipe.providers.json_values import dump
from evalpipe.providers.messages import MessagesReader
from evalpipe.providers.ordinary_shapes import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Chat,
    Chunk,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    chat_decoder,
    chat_usage_decoder,
    chunks_decoder,
    events_decoder,
    message_decoder,
    message_usage_decoder,
    usage_decoder,
)
from evalpipe.providers.outcomes import ending
from evalpipe.providers.usage import chat_usage, geography, messages_usage, plausible, settled, tier


def read_ordinary(endpoint: str, body: str) -> Answer | None:
    """The answer in a whole body of a success, or None where the general reader of `endpoint` has to look at it."""
    try:
        if endpoint == "chat.completions":
            return _read_chat(chat_decoder.decode(body), body)
        if endpoint == "messages":
            return _read_message(message_decoder.decode(body), body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    return None


_NOT_ORDINARY: Final = frozenset({"", "<", "["})
"""first characters of a text without a word, or that reasoning may open (`response_builder.ReasoningFilter`)"""


def _read_chat(answer: Chat, body: str) -> Answer | None:
    if len(answer.choices) != 1 or answer.object == "error":
        return None
    choice = answer.choices[0]
    message = choice.message
    if message.tool_calls or message.images:
        return None
    usage = _chat_usage(answer.usage, answer.service_tier)
    return _answer(message.content, choice.finish_reason, answer.model, usage, assembled=body)


def _chat_usage(data: msgspec.Raw, service_tier: object) -> Usage:
    """As `chat_usage` reads it; that one where a vendor reports more than the plain counts."""
    try:
        found = chat_usage_decoder.decode(data)
    except msgspec.MsgspecError:
        return chat_usage({"usage": usage_decoder.decode(data), "service_tier": service_tier}, has_content=True)
    given, made = found.prompt_tokens_details, found.completion_tokens_details
    counts = Usage(
        input_tokens=found.prompt_tokens,
        cached_input_tokens=None if given is None else given.cached_tokens,
        cache_write_tokens=None if given is None else given.cache_write_tokens,
        output_tokens=found.completion_tokens,
        reasoning_tokens=None if made is None else made.reasoning_tokens,
        audio_input_tokens=None if given is None else given.audio_tokens,
        image_input_tokens=None if given is None else given.image_tokens,
        audio_output_tokens=None if made is None else made.audio_tokens,
        image_output_tokens=None if made is None else made.image_tokens,
        service_tier=tier(service_tier),
    )
    return plausible(settled(counts, found.total_tokens), has_content=True)


def _read_message(answer: Message, body: str) -> Answer | None:
    if answer.type == "error" or answer.stop_reason == "refusal":
        return None
    blocks = answer.content
    text = blocks[0].text if len(blocks) == 1 else "".join([block.text for block in blocks])
    return _answer(text, answer.stop_reason, answer.model, _message_usage(answer.usage), assembled=body)


def _message_usage(data: msgspec.Raw) -> Usage:
    """As `messages_usage` reads it; that one where there is more than the plain counts."""
    try:
        found = message_usage_decoder.decode(data)
    except msgspec.MsgspecError:
        return messages_usage({"usage": usage_decoder.decode(data)}, has_content=True)
    cached, written, kept = found.cache_read_input_tokens, found.cache_creation_input_tokens, found.cache_creation
    counts = Usage(
        input_tokens=found.input_tokens + (cached or 0) + (written or 0),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=None if kept is None else kept.ephemeral_1h_input_tokens,
        output_tokens=found.output_tokens,
        service_tier=tier(found.service_tier),
        inference_geo=geography(found.inference_geo),
    )
    return plausible(counts, has_content=True)


_BEHIND: Final = "\n\ndata: "
_DONE: Final = "\n\ndata: [DONE]\n\n"


_EVENT: Final = re.compile(r"(?:\A|\n\n)event: [a-z_]+\ndata: ")


def read_ordinary_stream(endpoint: str, body: str) -> Answer | None:
    """The answer in a whole event stream, or None where the general reader of `endpoint` has to look at it.

    Read are chunks of chat completions up to `[DONE]`, and the events of a message, each one line of data: all of them at
    once, as one JSON list.
    """
    if "\r" in body:
        return None
    try:
        if endpoint == "chat.completions" and body.startswith("data: {") and body.endswith(_DONE):
            n_chunks = body.count(_BEHIND)
            if body.count("\n") != 2 * (n_chunks + 1):
                return None
            # No text in JSON holds a line break.
            data = body[len("data: ") : -len(_DONE)].replace(_BEHIND, ",")
            chunks = chunks_decoder.decode(f"[{data}]")
            return _read_chunks(chunks, body) if len(chunks) == n_chunks else None
        if endpoint == "messages" and body.startswith("event: message_start\n") and body.endswith("}\n\n"):
            data, n_events = _EVENT.subn(",", body)
            if body.count("\n") != 3 * n_events or "event: error\n" in body:
                return None
            events = events_decoder.decode(f"[{data[1:]}]")
            return _read_events(events, body) if len(events) == n_events else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
    return None


def _read_chunks(chunks: list[Chunk], body: str) -> Answer | None:
    first = chunks[0]
    texts: list[str] = []
    reason: str | None = None
    usage: dict[str, Any] | None = None
    started: int | None = None
    for number, chunk in enumerate(chunks):
        if (
            chunk.id != first.id
            or chunk.model != first.model
            or chunk.created != first.created
            or chunk.system_fingerprint != first.system_fingerprint
            or chunk.service_tier != first.service_tier
            or chunk.provider != first.provider
        ):
            return None
        if chunk.usage is not None:
            if usage is not None:
                return None
            usage = chunk.usage
        choices = chunk.choices
        if not choices:
            continue
        choice = choices[0]
        if len(choices) > 1:
            return None
        reason = choice.finish_reason or reason
        content = choice.delta.content
        if content:
            texts.append(content)
            if started is None:
                started = number
    if started is None or not first.model:
        return None
    text = "".join(texts)
    message: dict[str, Any] = {key: value for key in HEAD if (value := getattr(first, key)) is not None}
    message["object"] = "chat.completion"
    message["choices"] = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}]
    if usage is not None:
        message["usage"] = usage
    counts = chat_usage(message, has_content=True)
    offset = _end_of_event(body, started)
    return _answer(text, reason, first.model, counts, assembled=dump(message), content_offset=offset)


def _read_events(events: list[Any], body: str) -> Answer | None:
    """The texts of each block put together; the rest is for the general reader."""
    reader = MessagesReader()
    is_open = is_stopped = False
    n_blocks = 0
    texts: list[str] = []
    started: int | None = None
    for number, event in enumerate(events):
        kind = type(event)
        if is_stopped or (kind is MessageStart) != (number == 0):
            return None
        if kind is BlockDelta:
            if not is_open or event.index != n_blocks - 1:
                return None
            text = event.delta.text
            texts.append(text)
            if text and started is None:
                started = number
        elif kind is BlockStop:
            if not is_open or event.index != n_blocks - 1:
                return None
            delta = {"type": "text_delta", "text": "".join(texts)}
            if texts:
                _take(reader, "content_block_delta", {"index": event.index, "delta": delta})
            _take(reader, "content_block_stop", {"index": event.index})
            is_open, texts = False, []
        elif kind is BlockStart:
            block = event.content_block
            if is_open or event.index != n_blocks or block.get("type") != "text" or block.get("text") != "":
                return None
            _take(reader, "content_block_start", {"index": event.index, "content_block": block})
            is_open, n_blocks = True, n_blocks + 1
        elif kind is MessageStart:
            _take(reader, "message_start", {"message": event.message})
        elif kind is MessageDelta:
            _take(reader, "message_delta", {"delta": event.delta, "usage": event.usage})
        elif kind is MessageStop:
            is_stopped = True
    if is_open or not is_stopped or started is None:
        return None
    builder, message = reader.finish(), reader.message()
    if message is None or not builder.model or builder.text() is None:
        return None
    return _answer(
        builder.text() or "",
        builder.finish_reason,
        builder.model,
        builder.usage,
        assembled=dump(message),
        content_offset=_end_of_event(body, started),
    )


def _take(reader: MessagesReader, kind: str, event: dict[str, Any]) -> None:
    reader.take_event(kind, "", {"type": kind, **event})


def _end_of_event(body: str, number: int) -> int:
    """Bytes up to and including the blank line behind an event."""
    at = 0
    for _ in range(number + 1):
        at = body.index("\n\n", at) + 2
    return len(body[:at].encode())


def _answer(
    text: str, reason: str | None, model: str, usage: Usage, *, assembled: str, content_offset: int | None = None
) -> Answer | None:
    """`content_offset`: of a stream."""
    # One character is found ten times as fast as a word.
    if text.lstrip()[:1] in _NOT_ORDINARY or ("<" in text and "</think>" in text):
        return None
    end = ending(reason or None, has_calls=False)
    if end.outcome is Outcome.REFUSED:
        return None
    return Answer(
        outcome=end.outcome,
        text=text,
        finish_reason=reason or None,
        model=model,
        usage=usage,
        streamed=content_offset is not None,
        assembled=assembled,
        content_offset=content_offset,
        error_type=end.error_type,
        error_message=end.error_message,
    )
