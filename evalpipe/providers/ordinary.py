"""The ordinary whole answer, one text and how it ended, read straight into typed records: what most of a log is.

A short way past the general readers (`chat.ChatReader`, `messages.MessagesReader`), for speed alone: it gives what they give,
and None for whatever it does not know. An answer with a field that is not listed, a tool call, a refusal or an error is left to
them.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

from typing import Final

import msgspec

from evalpipe.models import Outcome
from evalpipe.providers.base import Answer, Usage
from evalpipe.providers.ordinary_shapes import (
    Chat,
    Message,
    chat_decoder,
    chat_usage_decoder,
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
    return _answer(message.content, choice.finish_reason, answer.model, usage, body)


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
    return _answer(text, answer.stop_reason, answer.model, _message_usage(answer.usage), body)


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


def _answer(text: str, reason: str | None, model: str, usage: Usage, body: str) -> Answer | None:
    if text.lstrip()[:1] in _NOT_ORDINARY or "</think>" in text:
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
        assembled=body,
        error_type=end.error_type,
        error_message=end.error_message,
    )
