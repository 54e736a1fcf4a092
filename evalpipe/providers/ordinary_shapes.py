"""The shapes of ordinary whole answers, as msgspec decodes them (`ordinary.read_ordinary`).

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


class Choice(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    message: ChatMessage
    finish_reason: str | None = None
    index: Any = None
    logprobs: Any = None
    content_filter_results: Any = None
    native_finish_reason: Any = None
    stop_reason: Any = None
    token_ids: Any = None
    error: None = None


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
chat_decoder: Final = msgspec.json.Decoder(Chat)
message_decoder: Final = msgspec.json.Decoder(Message)
