"""The head of a request that is passed on to an arm of the client's own dialect: its lines as received, framing made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from evalpipe.collector.heads import (
    CODING,
    CONNECTION,
    CREDENTIAL,
    HOP,
    HOST,
    LENGTH,
    OWN,
    AnswerHead,
    Line,
    named_by_connection,
)

if TYPE_CHECKING:
    from evalpipe.collector.settings import Origin

_DROPPED: Final = HOP | CONNECTION | OWN


def render_passed_head(
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
    """The request head for an arm, blank line included. `key_line`: the arm's own key takes the place of the client's.

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


def pass_answer_head(answer: AnswerHead, *, chunked: bool, any_length: bool = False, decoded: bool = False) -> bytes:
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
