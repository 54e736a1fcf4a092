"""Untrusted text stays text: shown, never run, never hidden."""

from __future__ import annotations

import html.parser
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.report.sanitize import MARKDOWN_TAGS, cut_bytes, escape_invisible, markdown_html, one_line
from evalpipe.report.text import escape_markdown

TEXTS = st.text(st.characters(exclude_categories=()), max_size=200)
MARKUP = st.lists(
    st.sampled_from(
        ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "![i](http://x/y.png)",
         "</pre></details></main>", "<svg onload=alert(1)>", "`", "**", "# h", "\n\n", "> ", "- ", "|a|b|\n|-|-|\n|<b>|",
         "{{7*7}}",
         "<style>*{display:none}</style>", "&lt;b&gt;", "\x00", "<!--", "]]>", "<http://x.example>", "```html\n<b>\n```",
         '"><', "[x]: http://e.example/ \"t\"\n", "\u202e", "<a href=//x>", "<form action=//x>"]
    ), max_size=12,
).map("".join)  # fmt: skip


class Elements(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("a\x00b", "a␀b"),
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("\x7f\x85", "␡\\x85"),
        ("\ud800", "\\uD800"),
        ("abc\u202ecba", "abc⟨RLO⟩cba"),
        ("שלום", "שלום"),
        ("e" + "\u0301" * 40, "e" + "\u0301" * 8),
        ("line\r\nend\r", "line\nend␍"),
    ],
)
def test_what_hides_is_shown(text: str, expected: str) -> None:
    assert escape_invisible(text) == expected


@given(TEXTS)
def test_visible_text_can_be_encoded_and_is_stable(text: str) -> None:
    shown = escape_invisible(text)
    shown.encode("utf-8")
    assert escape_invisible(shown) == shown
    assert not any(ord(char) < 32 and char not in "\n\t" for char in shown)


@given(TEXTS, st.integers(0, 60))
def test_a_cut_keeps_the_beginning_within_the_bytes(text: str, limit: int) -> None:
    head, n_cut = cut_bytes(text, limit)
    assert text.startswith(head)
    assert len(head) + n_cut == len(text)
    assert len(head.encode("utf-8", "surrogatepass")) <= limit
    if n_cut:  # no more could have been kept: the next character would pass the limit
        assert len((head + text[len(head)]).encode("utf-8", "surrogatepass")) > limit


@settings(max_examples=150)
@given(st.one_of(TEXTS, MARKUP))
def test_rendered_markdown_holds_only_the_allowed_elements(text: str) -> None:
    found = Elements()
    found.feed(str(markdown_html(escape_invisible(text))))
    assert found.tags <= MARKDOWN_TAGS
    assert found.attributes <= {("ol", "start"), ("span", "class")}


def test_markdown_reads_as_markdown() -> None:
    html_text = str(
        markdown_html("# Title\n\nSome **bold** text\n\n1. one\n2. two\n\n```python\n<b>\n```\n\n|a|b|\n|-|-|\n|1|2|")
    )
    assert "<p><strong>Title</strong></p>" in html_text
    assert "<strong>bold</strong>" in html_text
    assert "<li>one</li>" in html_text
    assert "<pre><code>&lt;b&gt;\n</code></pre>" in html_text
    assert "<td>2</td>" in html_text


def test_links_and_images_are_shown_as_text() -> None:
    shown = str(markdown_html("[here](https://example.org/a) ![a cat](https://example.org/cat.png)"))
    assert "<a" not in shown
    assert "<img" not in shown
    assert "here" in shown
    assert "https://example.org/a" in shown
    assert "[image: a cat (https://example.org/cat.png)]" in shown


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "*" * 20_000, "> " * 10_000, "`" * 19_999, "![" * 10_000, "a" * 20_000, "- " * 10_000, "<" * 20_000,
     "|" * 20_000, "](" * 10_000, "**a " * 5_000, "\\" * 20_000, "&" * 20_000, "[a](" * 5_000, "~~" * 10_000],
)  # fmt: skip
def test_no_text_of_the_shown_size_takes_long_to_render(text: str) -> None:
    started = time.process_time()
    markdown_html(text)
    assert time.process_time() - started < 3.0


def test_one_line() -> None:
    assert one_line("a\n\n  b\tc") == "a b c"
    assert one_line("x" * 500, 10) == "x" * 9 + "…"


def test_markdown_output_mentions_nobody_and_holds_no_markup() -> None:
    shown = escape_markdown("@team <b>x</b> | [l](http://e.example) `c` *i*\n# h")
    assert "@" not in shown
    assert "<" not in shown
    assert "\n" not in shown
    assert "\\|" in shown
    assert "\\[l\\]" in shown
    assert "http://" not in shown
