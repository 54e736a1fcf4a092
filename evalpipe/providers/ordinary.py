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
from evalpipe.providers.ordinary_shapes import Chat, Message, chat_decoder, message_decoder
from evalpipe.providers.outcomes import ending
from evalpipe.providers.usage import chat_usage, messages_usage


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
    usage = chat_usage({"usage": answer.usage, "service_tier": answer.service_tier}, has_content=True)
    return _answer(message.content, choice.finish_reason, answer.model, usage, body)


def _read_message(answer: Message, body: str) -> Answer | None:
    if answer.type == "error" or answer.stop_reason == "refusal":
        return None
    blocks = answer.content
    text = blocks[0].text if len(blocks) == 1 else "".join([block.text for block in blocks])
    usage = messages_usage({"usage": answer.usage}, has_content=True)
    return _answer(text, answer.stop_reason, answer.model, usage, body)


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
