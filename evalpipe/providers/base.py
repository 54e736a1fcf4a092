"""What every provider module gives: the records of a response, and the protocols of readers and writers.

Everything here is pure: bytes in, records out. An answer that cannot be read is an `Answer` with outcome `unreadable`,
never an exception; a request that cannot be copied to the other arm raises `NotShadowableError` with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import msgspec

from evalpipe.models import Outcome

ENDPOINTS: Mapping[str, str] = {
    "/v1/chat/completions": "chat.completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
"""Collected paths and the endpoint names that logs and Parquet carry."""

_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9_.-]")


class NotShadowableError(Exception):
    """The request cannot be sent faithfully to the other arm; `reason` is a short snake_case word for the funnel."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    @property
    def stored(self) -> str:
        """The reason as a row holds it. Where the request has an unknown key, or one that names what its own provider
        keeps, the key is named."""
        if self.detail and self.reason in {"unknown_parameter", "needs_server_state"}:
            return f"{self.reason}:{_UNUSUAL.sub('?', self.detail)}"
        return self.reason


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an answer used, as billed; None where the provider did not report it, never 0 in its place.

    `input_tokens` is the whole input, cached and cache-write tokens included; `output_tokens` the whole output, reasoning
    included. Audio and image counts are parts of these two, `cached_audio_tokens` a part of the cached ones.
    """

    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    """all tokens written to a cache; those kept for one hour (Anthropic) or twelve (OpenAI) are counted again below"""
    cache_write_1h_tokens: int | None = None
    cache_write_12h_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    cached_audio_tokens: int | None = None
    image_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    image_output_tokens: int | None = None
    server_tools: tuple[tuple[str, int], ...] = ()
    """(tool, calls) of tools the provider ran and charges beside tokens: the names are keys of `pricing.TOOL_FEES`"""
    service_tier: str | None = None
    """how the provider served the request, in its own lower-case word, where that is not its standard way"""
    speed: str | None = None
    inference_geo: str | None = None
    other_models: tuple[tuple[str, Usage], ...] = ()
    """(model, usage) of models that were asked on the way (Anthropic's advisor); not part of the counts above"""
    reported_usd: float | None = None
    """the provider's own figure for the whole answer, fees included"""
    reported_by: str | None = None
    """the field or header `reported_usd` was read from"""
    doubt: str | None = None
    """why the counts are implausible; then nothing is priced by them"""

    @property
    def is_plain(self) -> bool:
        """Whether the cost depends on the plain token counts alone, 5-minute cache writes included."""
        return (
            not (self.audio_input_tokens or self.image_input_tokens or self.cache_write_12h_tokens)
            and not (self.audio_output_tokens or self.image_output_tokens)
            and not (self.server_tools or self.other_models)
            and self.service_tier is None
            and self.speed is None
            and self.inference_geo is None
            and self.reported_usd is None
            and self.doubt is None
        )


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One arm's response, in terms all dialects share.

    `tool_calls`: [{"id", "name", "arguments" (parsed JSON, or the raw text where it does not parse)}]. `assembled`: the
    answer as the JSON text the provider would have sent unstreamed (None where nothing was readable). `content_offset`:
    body bytes up to and including the first event that carried content (text, tool call, thinking): where the time to
    first token is measured; None where not streamed or nothing came. Reasoning counts where the provider streams it, although
    users do not see it; of a provider that hides its reasoning the first visible word is measured. Between two such arms the
    time to first token is not the same quantity.
    """

    outcome: Outcome
    text: str | None = None
    tool_calls: list[dict[str, Any]] = msgspec.field(default_factory=list)
    finish_reason: str | None = None
    model: str | None = None
    usage: Usage = Usage()
    streamed: bool = False
    assembled: str | None = None
    content_offset: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    error_status: int | None = None
    """the HTTP status that an error within the answer names (`"code": 429`)"""
    late_reasoning: str = ""
    """reasoning that `text` leaves out and that a stream had passed before its end showed what it was"""


class RequestView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fields of a request that evalpipe uses, in any dialect.

    `messages`: [{"role": system|user|assistant|tool, "content": plain text}], images and files as "[image]" marks,
    system text first. `conversation_key`: (canonical system text, first user message) for `identity.conversation_id`.
    """

    model: str | None
    streamed: bool
    messages: list[dict[str, str]]
    system_text: str
    first_user_message: Any
    has_tools: bool
    usage_requested: bool
    """the stream will carry its usage (always true but for OpenAI chat streams that do not ask for it)"""
    usage_left_open: bool = False
    """a chat stream that leaves usage unspecified: the collector may ask for it (`stream_usage = "inject"`)"""
    turn: int | None = None
    """the client's user messages so far (`turns.position_of`); None: not known"""
    step: int | None = None
    """assistant messages or tool calls since the last of them"""


class OutgoingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request ready to be sent to an arm: path without the base_url's own path ("/v1/messages"), headers without
    credentials, body."""

    endpoint: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    asks_usage: bool = False
    """`stream_options` was added to have a chat stream report its usage; a server that refuses it gets the request without"""


# An answer in no vendor's terms, and the writer every dialect gives for it.


NO_USAGE = Usage()

Stop = Literal["end", "max_tokens", "stop_sequence", "tool_use", "refusal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyCall:
    """A tool call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A whole answer. `created`: seconds since the epoch. `refusal`: the text of a refusal where it is a field of its own."""

    id: str
    model: str
    created: int
    text: str | None = None
    calls: list[ReplyCall] = field(default_factory=list)
    stop: Stop = "end"
    stop_sequence: str | None = None
    usage: Usage = NO_USAGE
    refusal: str | None = None


class ReplyWriter(Protocol):
    """One response written in one dialect: whole with `plain`, or event by event. Each call gives the bytes to send."""

    content_type: str

    def start(self, usage: Usage) -> bytes: ...

    def text(self, delta: str) -> bytes: ...

    def refusal(self, delta: str) -> bytes: ...

    def call_start(self, call_id: str, name: str) -> bytes:
        """Begin the next tool call; what was open is closed."""
        ...

    def call_arguments(self, delta: str) -> bytes: ...

    def finish(self, stop: Stop, usage: Usage, stop_sequence: str | None = None) -> bytes:
        """Everything that ends the stream."""
        ...

    def error(self, kind: str, message: str) -> bytes:
        """An error after the headers have gone; nothing may follow."""
        ...


def error_body(
    endpoint: str, kind: str, message: str, *, code: str | None = None, request_id: str | None = None
) -> Any:
    """An error answer as the dialect of `endpoint` writes it."""
    if endpoint == "messages":
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
