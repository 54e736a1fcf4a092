"""The shapes of ordinary answers, as msgspec decodes them (`ordinary.read_ordinary`).

Each field that the general readers look at has the one type that is ordinary; others that vendors are known to send are listed
as `Any`, so that they are read, and refused where they are malformed, as the general readers do. Not compiled: msgspec takes the
fields' types from annotations, which a compiled class does not keep.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""what `json_values.as_count` takes for one"""
NOTHING: Final = msgspec.Raw(b"null")


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: str
    role: Any = None
    refusal: None = None
    annotations: Any = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = None
    images: list[Any] | None = None
    # What a server shows of its reasoning is no part of the text, and stays in the answer as it came.
    reasoning: Any = None
    reasoning_content: Any = None
    reasoning_details: Any = None


class AnyChoice(msgspec.Struct, forbid_unknown_fields=True, gc=False, kw_only=True):
    """What vendors send beside a choice's text, of a whole answer and of a chunk."""

    finish_reason: str | None = None
    logprobs: Any = None
    content_filter_results: Any = None
    native_finish_reason: Any = None
    stop_reason: Any = None
    token_ids: Any = None
    error: None = None


class Choice(AnyChoice, forbid_unknown_fields=True, gc=False, kw_only=True):
    message: ChatMessage
    index: Any = None


class Chat(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    choices: list[Choice]
    model: str
    usage: msgspec.Raw = NOTHING
    service_tier: Any = None
    id: Any = None
    object: str | None = None
    created: Any = None
    system_fingerprint: Any = None
    provider: Any = None
    prompt_filter_results: Any = None
    prompt_logprobs: Any = None
    prompt_token_ids: Any = None
    kv_transfer_params: Any = None
    error: None = None


class Delta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: str | None = None
    role: Any = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class ChunkChoice(AnyChoice, forbid_unknown_fields=True, gc=False, kw_only=True):
    delta: Delta
    index: Literal[0] = 0


class Chunk(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"]
    model: str
    id: str | None = None
    created: int | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None
    provider: str | None = None
    usage: dict[str, Any] | None = None
    obfuscation: Any = None
    error: None = None


class TextBlock(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["text"]
    text: str
    citations: Any = None


class Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: list[TextBlock]
    model: str
    type: str | None = None
    stop_reason: str | None = None
    usage: msgspec.Raw = NOTHING
    id: Any = None
    role: Any = None
    stop_sequence: Any = None
    stop_details: Any = None
    container: Any = None
    context_management: Any = None
    error: None = None


class MessageEvent(msgspec.Struct, forbid_unknown_fields=True, gc=False, tag_field="type"):
    """An event of a message's stream. What comes once is kept as it is; of the many deltas only the text."""


class MessageStart(MessageEvent, tag="message_start"):
    message: dict[str, Any]


class BlockStart(MessageEvent, tag="content_block_start"):
    index: Count
    content_block: dict[str, Any]


class TextDelta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["text_delta"]
    text: str


class BlockDelta(MessageEvent, tag="content_block_delta"):
    index: Count
    delta: TextDelta


class BlockStop(MessageEvent, tag="content_block_stop"):
    index: Count


class Ping(MessageEvent, tag="ping"):
    pass


class MessageDelta(MessageEvent, tag="message_delta"):
    delta: dict[str, Any]
    usage: dict[str, Any] | None = None
    context_management: Any = None


class MessageStop(MessageEvent, tag="message_stop"):
    pass


class PromptDetails(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None


class CompletionDetails(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    reasoning_tokens: Count | None = None
    audio_tokens: Count | None = None
    image_tokens: Count | None = None
    accepted_prediction_tokens: Any = None
    rejected_prediction_tokens: Any = None


class ChatUsage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class CacheCreation(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    ephemeral_5m_input_tokens: Any = None
    ephemeral_1h_input_tokens: Count | None = None


class MessageUsage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    input_tokens: Count
    output_tokens: Count
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_creation: CacheCreation | None = None
    server_tool_use: None = None
    service_tier: str | None = None
    inference_geo: str | None = None


chat_usage_decoder: Final = msgspec.json.Decoder(ChatUsage)
message_usage_decoder: Final = msgspec.json.Decoder(MessageUsage)
usage_decoder: Final = msgspec.json.Decoder(dict[str, Any] | None)
chunks_decoder: Final = msgspec.json.Decoder(list[Chunk])
events_decoder: Final = msgspec.json.Decoder(
    list[MessageStart | BlockStart | BlockDelta | BlockStop | Ping | MessageDelta | MessageStop]
)
chat_decoder: Final = msgspec.json.Decoder(Chat)
message_decoder: Final = msgspec.json.Decoder(Message)
