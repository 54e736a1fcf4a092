"""Untrusted text → text that is safe to show, and Markdown → HTML that cannot do anything.

Nothing an arm, a judge or a user wrote becomes markup: Markdown is parsed with HTML off, links and images are shown as
their text and address, headings as bold lines (the page keeps its own outline), and nh3 keeps only what is in a
short list of elements.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

_HIDDEN = re.compile(
    # Controls but tab and newline, lone surrogates, and what reorders or hides text from the person who reads it.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)
_NAMES = {"\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO"}
_NAMES |= {"\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI"}
_LONG_MARKS = re.compile(
    "([\u0300-\u036f\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{8})[\u0300-\u036f"
    "\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)

MARKDOWN_TAGS = {
    "p", "br", "em", "strong", "s", "code", "pre", "ul", "ol", "li", "blockquote", "hr",
    "table", "thead", "tbody", "tr", "th", "td", "span",
}  # fmt: skip


def escape_invisible(text: str) -> str:
    """`text` with everything invisible shown: controls as ␀…␡, lone surrogates as \\uD800, bidi overrides as ⟨RLO⟩.

    Line ends become "\\n". Of more than eight stacked combining marks the rest is dropped: no language needs them, and
    a page of them covers its neighbours.
    """
    text = text.replace("\r\n", "\n")
    if _HIDDEN.search(text):
        text = _HIDDEN.sub(_show, text)
    return _LONG_MARKS.sub(r"\1", text)


def _show(match: re.Match[str]) -> str:
    char = match.group()
    code = ord(char)
    if char in _NAMES:
        return f"⟨{_NAMES[char]}⟩"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}"


def cut_bytes(text: str, limit: int) -> tuple[str, int]:
    """The beginning of `text` of at most `limit` bytes of UTF-8, and how many characters were left out."""
    if len(text) * 4 <= limit:
        return text, 0
    head = text[:limit]
    encoded = head.encode("utf-8", "surrogatepass")
    if len(encoded) > limit:
        end = limit
        while end and (encoded[end] & 0xC0) == 0x80:  # never within a character
            end -= 1
        head = encoded[:end].decode("utf-8", "surrogatepass")
    return head, len(text) - len(head)


def one_line(text: str, limit: int = 140) -> str:
    """The first words of a text on one line, at most `limit` characters."""
    line = " ".join(text[: limit * 8].split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def markdown_html(text: str) -> Markup:
    """The Markdown of an answer as HTML without links, images, headings, attributes or anything that acts."""
    try:
        rendered = _parser().render(text)
    except (RecursionError, ValueError, IndexError):  # a text that breaks the parser is shown as it is
        return Markup('<p class="plain">{}</p>').format(text)
    return Markup(nh3.clean(rendered, tags=MARKDOWN_TAGS, attributes=_ATTRIBUTES, link_rel=None))


_ATTRIBUTES = {"ol": {"start"}, "span": {"class"}}


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": False, "typographer": False})
    parser.enable(["table", "strikethrough"])
    parser.add_render_rule("heading_open", _paragraph_open)
    parser.add_render_rule("heading_close", _paragraph_close)
    parser.add_render_rule("link_open", _nothing)
    parser.add_render_rule("link_close", _link_close)
    parser.add_render_rule("image", _image)
    parser.add_render_rule("fence", _code_block)
    parser.core.ruler.push("addresses", _keep_addresses)
    return parser


def _paragraph_open(_self: Any, _tokens: Sequence[Token], _index: int, *_: Any) -> str:
    return "<p><strong>"


def _paragraph_close(_self: Any, _tokens: Sequence[Token], _index: int, *_: Any) -> str:
    return "</strong></p>\n"


def _nothing(_self: Any, _tokens: Sequence[Token], _index: int, *_: Any) -> str:
    return ""


def _keep_addresses(state: Any) -> None:
    """A link's address is on its opening token; its closing token needs it, to show it after the text."""
    for token in state.tokens:
        opened: list[str] = []
        for child in token.children or ():
            if child.type == "link_open":
                opened.append(str(child.attrs.get("href", "")))
            elif child.type == "link_close" and opened:
                child.meta["address"] = opened.pop()


def _link_close(_self: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return f' <span class="url">({escape(tokens[index].meta.get("address", ""))})</span>'


def _image(_self: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
    token = tokens[index]
    return f'<span class="url">[image: {escape(token.content)} ({escape(str(token.attrs.get("src", "")))})]</span>'


def _code_block(_self: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return f"<pre><code>{escape(tokens[index].content)}</code></pre>\n"
