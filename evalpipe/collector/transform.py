"""Changes to requests and responses: translation for the treatment arm, `rewrite`, and `stream_usage = "inject"`.

Control's requests never come here. A request that cannot be translated for the treatment faithfully is served by control and left
out of the statistics: the user must not pay for our experiment.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from time import time
from typing import Any, Final

import msgspec

from evalpipe.collector.assignment import RequestHead
from evalpipe.collector.settings import ArmSettings, Origin
from evalpipe.http1.headers import Line
from evalpipe.providers.base import NotShadowableError, OutgoingRequest
from evalpipe.providers.decoding import EncodingError, StreamDecoder
from evalpipe.providers.json_values import MalformedJSONError, as_dict, as_list, parse_answer, without_members
from evalpipe.providers.registry import serves
from evalpipe.providers.setup_faults import provider_words
from evalpipe.providers.translate import render_treatment_request
from evalpipe.providers.translate_response import AnswerTranslator

_CARRIED = frozenset(b"accept accept-encoding user-agent openai-beta".split())
"""client headers a treatment arm of the same dialect gets besides the dialect's own; never credentials or cookies"""
_RETURNED = frozenset(b"retry-after retry-after-ms x-should-retry".split())
"""answer headers that mean the same in every dialect"""


def translate_request(arm: ArmSettings, head: RequestHead, body: bytes, *, ask_usage: bool = True) -> OutgoingRequest:
    """The request the treatment arm gets. `ask_usage` False: its server refuses `stream_options`. Raises NotShadowableError
    where there is no faithful one."""
    headers = {str(line.name, "latin-1"): str(line.value, "latin-1") for line in head.lines}
    return render_treatment_request(
        head.endpoint,
        body,
        provider=arm.provider,
        model=arm.model,
        params=arm.params,
        drop=arm.drop,
        ask_usage=ask_usage,
        system_prompt=arm.system_prompt,
        headers=headers,
        served=True,
    )


def render_outgoing_head(
    outgoing: OutgoingRequest, head: RequestHead, origin: Origin, key_line: bytes, *, identity: bool = False
) -> bytes:
    """The HTTP head of the request to the treatment arm, blank line included. `identity`: the answer must come uncompressed,
    as it will be read on its way."""
    lines = [
        b"POST %b HTTP/1.1" % origin.endpoint_target(outgoing.endpoint),
        b"Host: " + origin.authority.encode("ascii"),
        *(f"{name}: {value}".encode("latin-1") for name, value in outgoing.headers.items()),
        b"Content-Length: %d" % len(outgoing.body),
    ]
    identity = identity or outgoing.endpoint != head.endpoint  # what is translated must be read
    if outgoing.endpoint == head.endpoint:
        carried = _CARRIED - {b"accept-encoding"} if identity else _CARRIED
        lines += [line.raw for line in head.lines if line.name in carried]
    if identity:
        lines.append(b"Accept-Encoding: identity")
    if key_line:
        lines.append(key_line)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def request_id_line(is_anthropic: bool, request_id: str) -> bytes:
    """The header by which the dialect's SDKs name a request, in their exceptions too: here evalpipe's own id."""
    return (b"request-id: req_" if is_anthropic else b"x-request-id: req_") + request_id.encode("ascii")


class ResponseTranslation:
    """The arm's answer as the client gets it: framed for HTTP/1.1 or 1.0, streamed as it comes or whole at its end."""

    def __init__(
        self,
        outgoing: OutgoingRequest,
        head: RequestHead,
        body: bytes,
        *,
        request_id: str,
        http10: bool,
        head_lines: list[bytes],
    ) -> None:
        self._translator = AnswerTranslator(
            outgoing.endpoint,
            head.endpoint,
            request_body=body,
            answer_id=request_id,
            created=int(time()),
        )
        self._http10 = http10
        self._head_lines = [request_id_line(head.endpoint == "messages", request_id), *head_lines]
        self._status, self._content_type, self.streamed = 0, "", False
        self._returned: list[bytes] = []
        self.head_sent = False

    def head(self, status: int, lines: list[Line], *, keep: bool) -> bytes:
        """What the client gets when the arm's head is in: its own head where the answer is streamed, else nothing yet."""
        headers = {str(line.name, "latin-1"): str(line.value, "latin-1") for line in lines}
        self._status, self._content_type, self.streamed = self._translator.head(status, headers)
        self._returned = [line.raw for line in lines if line.name in _RETURNED]
        if not self.streamed:
            return b""
        self.head_sent = True
        framing = [] if self._http10 else [b"Transfer-Encoding: chunked"]
        return self._render_head([*framing, b"Cache-Control: no-cache"], keep=keep and not self._http10)

    def feed(self, data: bytes) -> bytes:
        return self._framed(self._translator.feed(data))

    def finish(self, *, keep: bool) -> bytes:
        """What is still due when the arm's answer is complete; for an answer that is not streamed, all of it."""
        rest = self._translator.finish()
        if self.streamed:
            return self._framed(rest) + (b"" if self._http10 else b"0\r\n\r\n")
        self.head_sent = True
        self._status = self._translator.status
        return self._render_head([b"Content-Length: %d" % len(rest)], keep=keep) + rest

    def broken(self, message: str) -> bytes:
        """What is sent to a client whose stream broke off, before the connection ends without its last chunk."""
        return self._framed(self._translator.broken(message))

    def _framed(self, data: bytes) -> bytes:
        if not data or self._http10 or not self.streamed:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)

    def _render_head(self, framing: list[bytes], *, keep: bool) -> bytes:
        connection = [] if keep and not self._http10 else [b"Connection: " + (b"keep-alive" if keep else b"close")]
        lines = [
            b"HTTP/1.1 %d " % self._status,
            b"Content-Type: " + self._content_type.encode("latin-1"),
            *framing,
            *self._returned,
            *connection,
            *self._head_lines,
        ]
        return b"\r\n".join(lines) + b"\r\n\r\n"


# Where `rewrite = true`: the served request with the arm's model, parameters and system prompt written in.


def rewrite(endpoint: str, body: bytes, arm: ArmSettings) -> bytes:
    """The body for the arm. A request that cannot be read goes out as it came: the provider reports what is wrong with it."""
    if not serves(arm.provider, endpoint):
        return body
    try:
        return render_treatment_request(
            endpoint,
            body,
            provider=arm.provider,
            model=arm.model,
            params=arm.params,
            drop=arm.drop,
            system_prompt=arm.system_prompt,
            served=True,
        ).body
    except NotShadowableError:
        return body


# `stream_usage = "inject"`: ask a chat stream for its usage on our account, and take every trace of that out again.
#
# OpenAI's `include_usage` adds a last chunk with `choices: []` and a `"usage": null` in all others
# (docs/wire.md#stream-usage). Others write the usage into a chunk with content (Gemini), into every one (vLLM), into a
# chunk without `choices`, into a choice (Moonshot) or into `x_groq`. The client asked for none of it and gets none;
# every other byte of the stream passes as received.


logger = logging.getLogger(__name__)

_END: Final = re.compile(rb"\r\n\r\n|\r\n\n|\n\r\n|\n\n|\r\r")
_LINE: Final = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|\Z)")
_USAGE: Final = ((b"usage",), (b"choices", b"usage"), (b"x_groq", b"usage"))
"""where vendors write the usage of a stream"""
_FRAME: Final = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "x_groq", "system_fingerprint", "service_tier", "provider"}
    | {"obfuscation", "stream_options"}
)
"""members of a usage chunk that are meaningless without its usage"""
_MAX_HELD: Final = 1 << 20
"""bytes of an event that are held back at most: what is longer holds no usage, and passes as it comes"""


def ask_for_usage(body: bytes) -> bytes | None:
    """The request with usage asked for, or None where it is no stream or asks for (or against) it itself."""
    try:
        request = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if not isinstance(request, dict) or request.get("stream") is not True or "stream_options" in request:
        return None
    opened, brace, rest = body.rpartition(b"}")  # the client's own bytes stay as they are
    return opened + b',"stream_options":{"include_usage":true}' + brace + rest


class UsageStripper:
    """Takes the usage out of the payload of a stream, event by event; only an event that is not whole yet is held back.

    `headers`: of the answer; a stream that comes compressed, although it was asked for uncompressed, is uncompressed.
    Raises EncodingError from `feed` where it is not what its headers declare.
    """

    def __init__(self, headers: dict[str, str] | None = None) -> None:
        self._decoder = StreamDecoder(headers or {})
        self._held = b""
        self._passes = False

    @property
    def is_identity(self) -> bool:
        """Whether the stream comes uncompressed."""
        return self._decoder.is_identity

    def feed(self, data: bytes) -> bytes:
        data = self._decoder.feed(data)
        searched = max(len(self._held) - 3, 0)  # an end may have begun in what is held
        data = self._held + data
        kept, start = [], 0
        for match in _END.finditer(data, searched):
            event = data[start : match.end()]
            kept.append(event if self._passes else _stripped(event))
            start, self._passes = match.end(), False
        self._held = data[start:]
        if self._passes or len(self._held) > _MAX_HELD:
            # All but what may be the beginning of the event's end.
            self._passes = True
            kept.append(self._held[:-3])
            self._held = self._held[-3:]
        return b"".join(kept)

    def finish(self) -> bytes:
        """What is left when the stream ends within an event."""
        rest, self._held = self._held, b""
        return rest


def _stripped(event: bytes) -> bytes:
    if b'"usage"' not in event:
        return event
    lines = [(match[1], match[2]) for match in _LINE.finditer(event) if match[0]]
    places = [number for number, (line, _) in enumerate(lines) if line.startswith(b"data:")]
    data = b"\n".join(lines[number][0][5:] for number in places)
    try:
        chunk, _ = parse_answer(data)
    except MalformedJSONError:
        return event
    if not isinstance(chunk, dict):
        return event
    if _is_usage_only(chunk):
        return b""
    rest = without_members(data, _USAGE)
    if rest == data:
        return event
    pieces = rest.split(b"\n")  # JSON has line breaks between its tokens only
    for number, piece in zip(places, pieces, strict=False):
        lines[number] = (b"data:" + piece, lines[number][1])
    gone = set(places[len(pieces) :])
    return b"".join(line + end for number, (line, end) in enumerate(lines) if number not in gone)


def _is_usage_only(chunk: dict[str, Any]) -> bool:
    """Whether the chunk is there for its usage alone. Azure's first chunk has no choices either, but the prompt's filter."""
    if as_list(chunk.get("choices")):
        return False
    if not as_dict(chunk.get("usage")) and not as_dict(as_dict(chunk.get("x_groq")).get("usage")):
        return False
    return not any(value for key, value in chunk.items() if key not in _FRAME)


_NAMED: Final = re.compile(r"stream_options|include_usage")
_EXTRA: Final = re.compile(
    r"extra[ _](?:inputs?|fields?|forbidden|parameters?)|additional propert|"
    r"(?:unknown|unrecogni[sz]ed|unsupported|unexpected|invalid)[ _](?:request[ _])?(?:argument|field|key|parameter|property)",
    re.IGNORECASE,
)

REFUSALS: Final = frozenset({400, 422})
"""statuses by which servers refuse an unknown field"""
MAX_REFUSAL_BYTES: Final = 64 << 10
"""of a refusal's body that are read; what is longer is none of a field"""


class UsageAsking:
    """Whether one arm's server takes `stream_options`, learned from its refusals.

    A server that names the field counts at once. One that only reports that some field is one too many is asked once more
    without it, and believed where it then answers; where it refuses that too, another field is meant.
    """

    def __init__(self, arm: str, *, refused: Callable[[str], None], say: Callable[[str], None]) -> None:
        """`refused` counts a request that has to be sent again, by arm; `say` takes a line for the log."""
        self._arm, self._refused, self._say = arm, refused, say
        self._means_another_field = False
        self._words = ""
        self.is_taken = True
        """False: no stream of this arm is asked for its usage any more"""

    def refuses(self, status: int, headers: dict[str, str], body: bytes) -> bool:
        """Whether this answer refuses the `stream_options` that evalpipe added: the request is then due once more."""
        if status not in REFUSALS:
            return False
        try:
            words = str(StreamDecoder(headers).feed(body), "utf-8", "replace")
        except EncodingError:
            return False
        is_named = _NAMED.search(words) is not None
        if not is_named and (self._means_another_field or _EXTRA.search(words) is None):
            return False
        self._refused(self._arm)
        self._words = f"HTTP {status}: {provider_words(words)}"
        if is_named:
            self._remember()
        return True

    def answered_without(self, status: int | None) -> None:
        """The status of the request that was sent again."""
        if status is not None and status < 400:
            self._remember()
        elif status in REFUSALS:
            self._means_another_field = True

    def _remember(self) -> None:
        if self.is_taken:
            self.is_taken = False
            self._say(
                f"the {self._arm} arm refuses stream_options ({self._words}): its streams are asked for their "
                "token counts no more, and have no cost unless it reports them by itself"
            )


def log(line: str) -> None:
    """A line for the collector's log."""
    logger.warning("%s", line)


def without_stream_options(body: bytes) -> bytes:
    """A request's body without `stream_options`, every other byte as it is."""
    return without_members(body, ((b"stream_options",),))
