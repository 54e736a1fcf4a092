"""Serving from the treatment arm: the request as that arm must get it, and its answer in the client's own dialect.

Control's requests never come here. A request that cannot be said to the treatment faithfully is served by control and left
out of the statistics: the user must not pay for our experiment.
"""

from __future__ import annotations

from time import time

from evalpipe.collector.arms import RequestHead
from evalpipe.collector.heads import Line
from evalpipe.collector.settings import ArmSettings, Origin
from evalpipe.providers.base import OutgoingRequest
from evalpipe.providers.translate.answer import AnswerTranslator
from evalpipe.providers.translate.request import render_treatment_request

_CARRIED = frozenset(b"accept accept-encoding user-agent openai-beta".split())
"""client headers a treatment arm of the same dialect gets besides the dialect's own; never credentials or cookies"""
_RETURNED = frozenset(b"retry-after retry-after-ms x-should-retry".split())
"""answer headers that mean the same in every dialect"""


def say_to_treatment(arm: ArmSettings, head: RequestHead, body: bytes, *, ask_usage: bool = True) -> OutgoingRequest:
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


class TranslatedAnswer:
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
        """What a client whose stream broke off is told before the connection ends without its last chunk."""
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
