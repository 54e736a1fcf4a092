"""The head of a request that is passed on to an arm of the client's own dialect: its lines as received, framing made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalpipe.collector.heads import CHUNKED, CREDENTIALS, HOP_BY_HOP, OWN_PREFIX, Line, join_path, named_by_connection
from evalpipe.collector.settings import Origin

if TYPE_CHECKING:
    from evalpipe.collector.server import Request


_NOTHING: frozenset[bytes] = frozenset()
_LENGTH = frozenset((b"content-length",))
_LENGTH_AND_CODING = frozenset((b"content-length", b"accept-encoding"))


def render_passed_head(
    request: Request, origin: Origin, key_line: bytes, *, whole_length: int | None = None, identity: bool = False
) -> bytes:
    """The request head for an arm, blank line included. `key_line`: the arm's own key takes the place of the client's.

    `whole_length`: the body goes out whole with this length (it was written for the arm); `identity`: and the answer must
    come uncompressed, as it will be read on its way.
    """
    lines = request.head.lines
    dropped = named_by_connection(lines)
    head = [b"%b %b HTTP/1.1" % (request.method, join_path(origin.base_path, request.target))]
    replaced = CREDENTIALS if key_line else _NOTHING
    if whole_length is not None:
        replaced = replaced | (_LENGTH_AND_CODING if identity else _LENGTH)
    host = b"Host: " + origin.authority.encode("ascii")
    for name, _, raw in lines:
        if name in HOP_BY_HOP or name in dropped or name.startswith(OWN_PREFIX):
            continue
        if name == b"host":
            raw, host = host, b""
        elif name in replaced:
            continue
        head.append(raw)
    if host:
        head.insert(1, host)
    if key_line:
        head.append(key_line)
    if whole_length is not None:
        head.append(b"Content-Length: %d" % whole_length)
        if identity:
            head.append(b"Accept-Encoding: identity")
    elif request.length == CHUNKED:
        head.append(b"Transfer-Encoding: chunked")
    head.append(b"\r\n")
    return b"\r\n".join(head)


def pass_answer_lines(status_line: bytes, lines: list[Line], *, chunked: bool) -> tuple[list[bytes], bool]:
    """The answer head's lines for the client, and whether a length is among them. `chunked`: the framing passes as it is."""
    dropped = named_by_connection(lines)
    head = [b"HTTP/1.1" + status_line[8:]]
    has_length = False
    for name, _, raw in lines:
        if name == b"transfer-encoding" and chunked:
            head.append(raw)
            continue
        if name in HOP_BY_HOP or name in dropped or name.startswith(OWN_PREFIX):
            continue
        has_length = has_length or name == b"content-length"
        head.append(raw)
    return head, has_length
