"""Headers on their way to the arm and back: hop-by-hop headers dropped, parsed headers cached."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

from typing import TYPE_CHECKING, Final

from evalpipe.http1.headers import (
    CHUNKED,
    CODING,
    CONNECTION,
    CREDENTIAL,
    EXPECT,
    HOP,
    HOST,
    LENGTH,
    OWN,
    OWN_ROUTES,
    HttpError,
    Line,
    ResponseHeaders,
    check_request,
    keeps_alive,
    named_by_connection,
    read_lines,
    request_length,
    target_authority,
    target_path,
)
from evalpipe.providers.paths import endpoint_of, looks_like_model_call

if TYPE_CHECKING:
    from evalpipe.collector.assignment import Assignment
    from evalpipe.collector.known_keys import KnownKeys
    from evalpipe.collector.settings import Origin
    from evalpipe.spool.writer import RequestTemplate, ResponseTemplate


_DROPPED: Final = HOP | CONNECTION | OWN


def render_request_head(
    method: bytes,
    target: bytes,
    lines: list[Line],
    origin: Origin,
    key_line: bytes,
    *,
    chunked: bool,
    whole_length: int | None = None,
    identity: bool = False,
    decoded: bool = False,
) -> bytes:
    """The request head for an arm, blank line included. `key_line`: the arm's own key replaces the client's.

    `whole_length`: the body goes out whole with this length (it was written for the arm); `identity`: and the answer must
    come uncompressed, as it will be read on its way; `decoded`: the body is no longer in the content encoding the client gave.
    """
    named = named_by_connection(lines)
    from_anthropic = any(line.name == b"anthropic-version" for line in lines) or b"/messages" in target
    head = [b"%b %b HTTP/1.1" % (method, origin.served_target(target, from_anthropic=from_anthropic))]
    dropped = _DROPPED | CODING
    if key_line:
        dropped |= CREDENTIAL
    if whole_length is not None:
        dropped |= LENGTH
    host = b"Host: " + origin.authority.encode("ascii")
    for line in lines:
        if line.role & dropped or line.name in named or (identity and line.name == b"accept-encoding"):
            continue
        if decoded and line.name == b"content-encoding":
            continue
        raw = line.raw
        if line.role & HOST:
            raw, host = host, b""
        head.append(raw)
    if host:
        head.insert(1, host)
    if key_line:
        head.append(key_line)
    if whole_length is not None:
        head.append(b"Content-Length: %d" % whole_length)
        if identity:
            head.append(b"Accept-Encoding: identity")
    elif chunked:
        head.append(b"Transfer-Encoding: chunked")
    head.append(b"\r\n")
    return b"\r\n".join(head)


def render_response_head(
    answer: ResponseHeaders, *, chunked: bool, any_length: bool = False, decoded: bool = False
) -> bytes:
    """The answer's head for the client, without the blank line at its end. `chunked`: the framing passes as it is.

    `any_length`: the body was changed on its way, so no length is promised; `decoded`: and it is no longer compressed.
    """
    dropped = _DROPPED if chunked else _DROPPED | CODING
    if any_length:
        dropped |= LENGTH
    if not decoded and not answer.roles & dropped and answer.first.startswith(b"HTTP/1.1"):
        return answer.raw[:-2]
    named = set(named_by_connection(answer.lines))
    if decoded:
        named.add(b"content-encoding")
    head = [b"HTTP/1.1" + answer.first[8:]]
    head += [line.raw for line in answer.lines if not line.role & dropped and line.name not in named]
    head.append(b"")
    return b"\r\n".join(head)


# Parsed request headers, cached: an SDK's headers differ in little but their length.


_MAX_KNOWN: Final = 2048
_MAX_KNOWN_LENGTH: Final = 4096
_REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE"))
_CR: Final = 13
_LF: Final = 10
_LENGTH_SPELLINGS: Final = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
_LENGTH_MARK: Final = Line(b"content-length", b"", b"\0", LENGTH)
"""marks the place of the length's line; no header line holds NUL"""


class ParsedHeaders:
    """All facts of a request's headers but its body's length. `lines` are without a Content-Length."""

    __slots__ = (
        "after",
        "answer_templates",
        "assignment",
        "authority",
        "before",
        "encoding",
        "endpoint",
        "expects",
        "http10",
        "is_admitted",
        "is_own",
        "is_websocket",
        "keep",
        "keys",
        "lines",
        "looks_like_model_call",
        "method",
        "target",
        "template",
    )

    def __init__(self, first: bytes, lines: list[Line], roles: int) -> None:
        self.method, target, version = first.split(b" ")
        if self.method in _REFUSED_METHODS:
            raise HttpError(405, "this method is not proxied")
        self.http10 = version == b"HTTP/1.0"
        n_hosts = sum(1 for line in lines if line.role & HOST)
        if n_hosts > 1 or (n_hosts == 0 and not self.http10):
            raise HttpError(400, "exactly one Host header is needed")
        self.target = target_path(target)
        self.authority = target_authority(target)
        self.is_admitted = False
        """the guard has let a request with this very head pass"""
        self.is_own = self.target.startswith(OWN_ROUTES)
        self.keep = keeps_alive(lines, http10=self.http10)
        self.expects = bool(roles & EXPECT)
        self.lines = lines
        path = str(self.target.partition(b"?")[0], "latin-1")
        self.endpoint = endpoint_of(path) if self.method == b"POST" else None
        """the collected endpoint; None: the request passes through without a log"""
        self.looks_like_model_call = (
            self.endpoint is None and not self.is_own and self.method == b"POST" and looks_like_model_call(path)
        )
        self.encoding = ""
        """the body's content encodings"""
        self.is_websocket = False
        for line in lines:
            if line.name == b"content-encoding":
                value = str(line.value, "latin-1")
                self.encoding = f"{self.encoding}, {value}" if self.encoding else value
            elif line.name == b"upgrade" and self.method == b"GET" and b"websocket" in line.value.lower():
                self.is_websocket = True
        self.before = self.after = b""
        """the head as control gets it, what comes before and after the length's line"""
        self.assignment: Assignment | None = None
        """where the head alone decides"""
        self.keys: KnownKeys | None = None
        """what must not be written of requests with this head, once known"""
        self.template: RequestTemplate | None = None
        self.answer_templates: dict[str, ResponseTemplate] = {}
        """by arm: an arm answers all requests of one endpoint in the same dialect"""


class HeaderCache:
    """Reads request heads for a worker whose control arm is at `origin`. What they hold stays in memory; bounded."""

    def __init__(self, origin: Origin, key_line: bytes) -> None:
        self._origin, self._key_line = origin, key_line
        self._known: dict[bytes, ParsedHeaders] = {}
        self._known_without_length: dict[bytes, ParsedHeaders] = {}

    def read(self, head: bytes) -> tuple[ParsedHeaders, int, bytes]:
        """(facts, length of the body or CHUNKED, the length's line as received with the CRLF before it).

        Raises HeadError for a head that is not HTTP/1, or that a proxy must not pass on.
        """
        rest, length, length_line = _split_length(head)
        known = self._known if length_line else self._known_without_length
        facts = known.get(rest)
        if facts is None:
            facts, length, length_line = self._learn(known, rest, head, length, length_line)
        return facts, length, length_line

    def _learn(
        self, known: dict[bytes, ParsedHeaders], rest: bytes, head: bytes, length: int, length_line: bytes
    ) -> tuple[ParsedHeaders, int, bytes]:
        check_request(head)
        first, lines, roles = read_lines(head)
        found = request_length(lines)
        lengths = [number for number, line in enumerate(lines) if line.role & LENGTH]
        # Any other spelling of the length, or none: the same way, but a head with a strange spelling is not remembered.
        plain = (found == length and len(lengths) == (length_line != b"")) and found != CHUNKED
        if lengths:
            length_line = b"\r\n" + lines[lengths[0]].raw
            lines = [_LENGTH_MARK if number == lengths[0] else line for number, line in enumerate(lines)]
        facts = ParsedHeaders(first, [line for line in lines if not line.role & LENGTH], roles)
        if facts.http10 and found == CHUNKED:
            raise HttpError(400, "HTTP/1.0 has no chunked bodies")
        rendered = render_request_head(
            facts.method, facts.target, lines, self._origin, self._key_line, chunked=found == CHUNKED
        )
        facts.before, mark, facts.after = rendered.partition(b"\r\n\0")
        if lengths and not mark:  # nothing may drop it: what follows would be read as another request
            raise HttpError(400, "the length of the request is not clear")
        if plain and len(head) <= _MAX_KNOWN_LENGTH:
            if len(known) >= _MAX_KNOWN:
                known.clear()
            known[rest] = facts
        return facts, found, length_line


def _split_length(head: bytes) -> tuple[bytes, int, bytes]:
    """The head without its one plain Content-Length line, the length, the line. A second one stays in the head, where it
    is found and refused."""
    at = head.find(_LENGTH_SPELLINGS[0])
    if at < 0:
        at = head.find(_LENGTH_SPELLINGS[1])
        if at < 0:
            return head, 0, b""
    start = end = at + len(_LENGTH_SPELLINGS[0])
    length = 0
    while end < start + 15:  # the blank line ends the head: it has no end within a number
        digit = head[end] - 48
        if not 0 <= digit <= 9:
            break
        length = 10 * length + digit
        end += 1
    if end == start or head[end] != _CR or head[end + 1] != _LF:
        return head, 0, b""
    return head[:at] + head[end:], length, head[at:end]
