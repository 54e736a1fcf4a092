"""Message headers: lines as they were received, what they mean for framing, and what may pass on (RFC 9110, RFC 9112).

llhttp (strict) decides whether a head is HTTP at all: it refuses obs-fold, bare LF, control characters, repeated or
signed or conflicting lengths. What is here only reads lines that passed it. Of an answer's head it is asked once more after
the repairs that RFC 9112 allows a proxy: clients read such answers from the server itself.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import httptools
import msgspec

from evalpipe.credentials import is_credential_name

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade "
    b"http2-settings".split()
)
CREDENTIALS = frozenset(b"authorization x-api-key api-key x-goog-api-key".split())
OWN_PREFIX: Final = b"x-evalpipe-"
OWN_ROUTES: Final = b"/_evalpipe/"

LOGGED_REQUEST_HEADERS = frozenset(
    b"content-type content-encoding user-agent accept accept-encoding anthropic-version anthropic-beta openai-beta "
    b"idempotency-key x-stainless-lang x-stainless-retry-count".split()
)
LOGGED_RESPONSE_HEADERS = frozenset(
    b"content-type content-encoding retry-after request-id x-request-id x-simulated-by openai-processing-ms openai-version "
    b"x-should-retry server-timing x-litellm-response-cost".split()
)
LOGGED_RESPONSE_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-")


class HttpError(Exception):
    """Not HTTP, or HTTP that a proxy must not pass on; `status` is the HTTP status of the reply to the sender."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# Roles of a header line, as bits.
HOP: Final = 1
CONNECTION: Final = 2
OWN: Final = 4
HOST: Final = 8
LENGTH: Final = 16
CODING: Final = 32
EXPECT: Final = 64
CREDENTIAL: Final = 128
LOGGED_REQUEST: Final = 256
LOGGED_ANSWER: Final = 512
QUOTA: Final = 1024
"""shows how much of a provider's limit is left"""
EVENTS: Final = 2048
"""the answer is an event stream"""
SECRET: Final = 4096
"""holds a credential or cookies, by its name"""
ENCODING: Final = 8192
"""names the body's encoding"""


class Line:
    """One header line: name in lower case, value without surrounding blanks, the line as received, its roles as bits."""

    __slots__ = ("_member", "name", "raw", "role", "value")

    def __init__(self, name: bytes, value: bytes, raw: bytes, role: int) -> None:
        self.name, self.value, self.raw, self.role = name, value, raw, role
        self._member: bytes | None = None

    @property
    def member(self) -> bytes:
        """As a member of a JSON object; rendered once, as lines repeat."""
        member = self._member
        if member is None:
            name, value = str(self.name, "latin-1"), str(self.value, "latin-1")
            member = self._member = msgspec.json.encode(name) + b":" + msgspec.json.encode(value)
        return member


_ROLES = {
    b"connection": CONNECTION,
    b"host": HOST,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"expect": EXPECT,
    b"content-encoding": ENCODING,
}
_KNOWN: Final[dict[bytes, Line]] = {}
"""Lines repeat from message to message: what they mean is remembered. In memory only; bounded."""
_MAX_KNOWN: Final = 8192
_MAX_KNOWN_LENGTH: Final = 256
_MAX_KNOWN_STATUS: Final = 64


def read_lines(head: bytes) -> tuple[bytes, list[Line], int]:
    """The first line, the header lines, and all their roles, of a head that llhttp accepted (its blank line included)."""
    return _understood(head.split(b"\r\n"))


def _understood(raw_lines: list[bytes]) -> tuple[bytes, list[Line], int]:
    roles = 0
    lines: list[Line] = []
    for number in range(1, len(raw_lines) - 2):
        raw = raw_lines[number]
        line = _KNOWN.get(raw)
        if line is None:
            line = _learn(raw)
        roles |= line.role
        lines.append(line)
    return raw_lines[0], lines, roles


def _learn(raw: bytes) -> Line:
    name, _, value = raw.partition(b":")
    name, value = name.lower(), value.strip(b" \t")
    is_quota = name.startswith(LOGGED_RESPONSE_PREFIXES)
    role = (
        _ROLES.get(name, HOP if name in HOP_BY_HOP else 0)
        | (OWN if name.startswith(OWN_PREFIX) else 0)
        | (CREDENTIAL if name in CREDENTIALS else 0)
        | (LOGGED_REQUEST if name in LOGGED_REQUEST_HEADERS else 0)
        | (LOGGED_ANSWER if name in LOGGED_RESPONSE_HEADERS or is_quota else 0)
        | (QUOTA if is_quota else 0)
        | (SECRET if name in CREDENTIALS or is_credential_name(str(name, "latin-1")) else 0)
        | (EVENTS if name == b"content-type" and value.lower().startswith(b"text/event-stream") else 0)
    )
    line = Line(name, value, raw, role)
    if len(raw) <= _MAX_KNOWN_LENGTH:
        if len(_KNOWN) >= _MAX_KNOWN:
            _KNOWN.clear()
        _KNOWN[raw] = line
    return line


class _NoEvents:
    """Only headers are parsed; the callbacks of a body are unused."""


_no_events: Final = _NoEvents()


def check_request(head: bytes) -> None:
    """Raises HeadError where the head is not HTTP/1."""
    parser = httptools.HttpRequestParser(_no_events)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:  # Upgrade and HTTP2-Settings are hop-by-hop: ignored, as RFC 9110 7.8 allows
        pass
    except httptools.HttpParserError as error:
        raise HttpError(400, f"malformed request: {error}") from None
    if parser.get_http_version() not in {"1.1", "1.0"}:
        raise HttpError(505, "only HTTP/1 is supported")


def check_response(head: bytes) -> int:
    """The status. Raises HeadError where the head is not HTTP/1."""
    parser = httptools.HttpResponseParser(_no_events)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        raise HttpError(502, "the server switched protocols") from None
    except httptools.HttpParserError as error:
        raise HttpError(502, f"malformed answer: {error}") from None
    status: int = parser.get_status_code()
    return status


_NOT_TO_BE_NAMED = frozenset((b"close", b"keep-alive", b"", b"host", b"content-length", b"transfer-encoding"))
"""tokens of Connection that drop no header: what determines where a message goes and ends stays, also if it is named"""


def named_by_connection(lines: Sequence[Line]) -> frozenset[bytes]:
    """Headers that the Connection header makes hop-by-hop."""
    names: set[bytes] = set()
    for line in lines:
        if line.role & CONNECTION:
            names.update(token.strip().lower() for token in line.value.split(b","))
    return frozenset(names - _NOT_TO_BE_NAMED)


def keeps_alive(lines: Sequence[Line], *, http10: bool) -> bool:
    """Whether the sender keeps the connection after this message (RFC 9112 9.3)."""
    tokens: set[bytes] = set()
    for line in lines:
        if line.role & CONNECTION:
            tokens.update(token.strip().lower() for token in line.value.split(b","))
    return b"close" not in tokens and (not http10 or b"keep-alive" in tokens)


class ResponseHeaders:
    """An answer's head, as received and as read."""

    __slots__ = ("first", "is_repaired", "lines", "raw", "roles", "status")

    def __init__(self, raw: bytes, status: int, first: bytes, lines: list[Line], roles: int) -> None:
        self.raw, self.status, self.first, self.lines, self.roles = raw, status, first, lines, roles
        self.is_repaired = False
        """`raw` is not what came: the server's framing is not to be trusted with a second answer"""


_KNOWN_STATUS: Final[dict[bytes, int]] = {}
"""status lines that llhttp has accepted"""
_NOT_PLAIN: Final = HOP | CONNECTION | CODING | EXPECT


def read_response_headers(raw: bytes) -> ResponseHeaders:
    """Raises HeadError where the head is not HTTP/1.

    llhttp need not look at every head: one made of a status line and of lines it has accepted before, none of them about
    framing but for one length, is one it would accept.
    """
    raw_lines: list[bytes] = raw.split(b"\r\n")
    first = raw_lines[0]
    status = _KNOWN_STATUS.get(first, 0)
    if status:
        roles = 0
        lines: list[Line] = []
        for number in range(1, len(raw_lines) - 2):
            line = _KNOWN.get(raw_lines[number])
            if line is None or (line.role | roles) & _NOT_PLAIN or line.role & roles & LENGTH:
                break
            roles |= line.role
            lines.append(line)
        else:
            return ResponseHeaders(raw, status, first, lines, roles)
    is_repaired = False
    try:
        status = check_response(raw)
    except HttpError as error:
        repaired = _repaired(raw_lines)
        if repaired is None:
            raise
        raw_lines, is_repaired = repaired, True
        raw = b"\r\n".join(raw_lines)
        try:
            status = check_response(raw)
        except HttpError:
            raise error from None
    if len(_KNOWN_STATUS) < _MAX_KNOWN_STATUS and status >= 200:
        _KNOWN_STATUS[first] = status
    first, lines, roles = _understood(raw_lines)
    answer = ResponseHeaders(raw, status, first, lines, roles)
    answer.is_repaired = is_repaired
    return answer


def _repaired(raw_lines: list[bytes]) -> list[bytes] | None:
    """The lines of an answer's head with one length, or none beside the chunked coding; None where that is not its fault.

    RFC 9110 8.6: a recipient may fold repeated lengths that are equal, in one line or in several. RFC 9112 6.3: the transfer
    coding overrides a length, which a proxy must remove. Two lengths that differ stay an error.
    """
    values: set[bytes] = set()
    codings: list[bytes] = []
    n_lengths = 0
    for raw in raw_lines[1:]:
        name, _, value = raw.partition(b":")
        if name.lower() == b"content-length":
            parts = [part.strip(b" \t") for part in value.split(b",")]
            values.update(parts)
            n_lengths += len(parts)
        elif name.lower() == b"transfer-encoding":
            codings.append(value.strip(b" \t").lower())
    is_chunked = codings == [b"chunked"] and n_lengths > 0
    if not is_chunked and (codings or n_lengths < 2 or len(values) > 1):
        return None
    kept = [raw for raw in raw_lines if not raw.lower().startswith(b"content-length:")]
    if not is_chunked:
        kept.insert(1, b"Content-Length: " + next(iter(values)))
    return kept


_BARE_END: Final = re.compile(rb"\r?\n\r?\n")


def end_of_bare_head(data: bytes) -> int:
    """Where a head ends whose lines end with LF alone, or with either; 0 where it has not ended."""
    end = _BARE_END.search(data)
    return 0 if end is None else end.end()


def with_crlf(head: bytes) -> bytes:
    """A head with every line ended by CRLF. RFC 9112 2.2: a recipient may recognise a single LF as the end of a line."""
    return b"\r\n".join(line.removesuffix(b"\r") for line in head.split(b"\n"))


CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2


def request_length(lines: Sequence[Line]) -> int:
    """Body length of a request, or CHUNKED (RFC 9112 6.3)."""
    length = 0
    for line in lines:
        if line.role & LENGTH:
            length = int(line.value)
        elif line.role & CODING:
            if line.value.lower() != b"chunked":
                raise HttpError(501, "only the chunked transfer encoding is understood")
            return CHUNKED
    return length


def response_length(answer: ResponseHeaders, *, head_request: bool) -> int:
    """Body length of an answer, or CHUNKED, or UNTIL_CLOSE (RFC 9112 6.3)."""
    status = answer.status
    if head_request or status == 204 or status == 304 or status < 200:
        return 0
    length = UNTIL_CLOSE
    for line in answer.lines:
        if line.role & CODING:
            if line.value.lower() != b"chunked":
                raise HttpError(502, "the server used a transfer encoding other than chunked")
            return CHUNKED
        if line.role & LENGTH:
            length = int(line.value)
    return length


def logged(lines: Sequence[Line], role: int) -> dict[str, str]:
    """The headers that may be written to the spool: those of `role`, LOGGED_REQUEST or LOGGED_ANSWER."""
    return {str(line.name, "latin-1"): str(line.value, "latin-1") for line in lines if line.role & role}


def target_path(target: bytes) -> bytes:
    """Path and query of a request target; the origin in an absolute one is dropped: upstreams come from the configuration."""
    if target.startswith(b"/"):
        return target
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in {b"http", b"https"}:
        slash, question = rest.find(b"/"), rest.find(b"?")
        if slash >= 0 and (question < 0 or slash < question):
            return rest[slash:]
        return b"/" + rest[question:] if question >= 0 else b"/"
    raise HttpError(400, "the request target must be a path")


def target_authority(target: bytes) -> bytes:
    """Host and port of an absolute request target, b"" of any other."""
    if target.startswith(b"/"):
        return b""
    rest = target.partition(b"://")[2]
    for mark in (b"/", b"?", b"#"):
        rest = rest.partition(mark)[0]
    return rest.rpartition(b"@")[2]
