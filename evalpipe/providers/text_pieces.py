"""Text that comes in pieces: surrogate halves joined, and reasoning that a server left in the answer kept apart from it."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from evalpipe.core.text import joined

_TAGS: Final = (
    (
        "<think>",
        "</think>",
    ),  # DeepSeek R1, Qwen, GLM and others, served by vLLM, SGLang, Ollama without a reasoning parser
    ("<thought>", "</thought>"),  # Gemini's OpenAI-compatible endpoint with include_thoughts
    ("<seed:think>", "</seed:think>"),  # ByteDance Seed-OSS
    ("[THINK]", "[/THINK]"),  # Mistral Magistral
    ("<|channel|>analysis<|message|>", "<|end|>"),  # gpt-oss in its Harmony format
    ("<|start|>assistant<|channel|>final<|message|>", ""),  # Harmony's head of the answer itself
    ("<|channel|>final<|message|>", ""),
)
"""(opening, closing) of reasoning at the beginning of an answer, as models are trained to write it; an empty closing: the
opening alone is left out. Tags that prompts ask for (<thinking>) are the application's own, and stay."""
_LONGEST_OPENING: Final = max(len(opening) for opening, _ in _TAGS)
_CLOSED_ONLY: Final = re.compile(r"(?:\A|\n)[ \t]*</think>[ \t]*(?:\n|\Z)")


class TextJoiner:
    """Joins pieces of one text: a character whose surrogate halves came in two pieces is one again."""

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""

    @property
    def is_waiting(self) -> bool:
        return bool(self._half)

    def add(self, text: str) -> str:
        """The part of the text so far that is now certain; a last high surrogate waits for the next piece."""
        if self._half:
            text, self._half = self._half + text, ""
        if text.isascii():
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return joined(text)

    def close(self) -> str:
        """What was held back: a half that found no other."""
        half, self._half = self._half, ""
        return "\ufffd" if half else ""


class Split(NamedTuple):
    """A piece of content: what belongs to the answer, and the reasoning (tags included) that came before it."""

    text: str
    thought: str


class ReasoningFilter:
    """Splits the pieces of an answer's content into reasoning at its beginning and the answer itself.

    Only reasoning that opens the content counts: an answer may well speak of tags. A server whose prompt holds the opening
    tag sends the closing one alone: that is known at the end only, see `without_reasoning`.
    """

    __slots__ = ("_closing", "_has_thought", "_held", "_is_open", "is_passed")

    def __init__(self) -> None:
        self._held = ""
        self._is_open = False
        self._closing = ""
        self.is_passed = False
        self._has_thought = False

    def add(self, piece: str) -> Split:
        if self.is_passed:
            return Split(piece, "")
        self._held += piece
        thoughts: list[str] = []
        while True:
            if self._is_open:
                end = self._held.find(self._closing)
                if end < 0:
                    keep = len(self._closing) - 1
                    cut = max(len(self._held) - keep, 0)
                    thoughts.append(self._held[:cut])
                    self._held = self._held[cut:]
                    return Split("", "".join(thoughts))
                end += len(self._closing)
                thoughts.append(self._held[:end])
                self._held, self._is_open = self._held[end:], False
            start = self._held.lstrip()
            opening, closing = _opened(start)
            if opening:
                self._has_thought = True
                blanks = len(self._held) - len(start)
                taken = blanks + len(opening)
                thoughts.append(self._held[:taken])
                self._held = self._held[taken:]
                self._is_open, self._closing = bool(closing), closing
                continue
            if not start or _may_open(start):
                return Split("", "".join(thoughts))
            self.is_passed = True
            text, self._held = (start if self._has_thought else self._held), ""
            return Split(text, "".join(thoughts))

    def close(self) -> Split:
        """What was held back: an answer cut off in its reasoning holds no text."""
        held, self._held = self._held, ""
        if self._is_open:
            return Split("", held)
        if self._has_thought:
            held = held.lstrip()
        return Split(held, "")


def _opened(text: str) -> tuple[str, str]:
    for opening, closing in _TAGS:
        if text.startswith(opening):
            return opening, closing
    return "", ""


def _may_open(text: str) -> bool:
    if len(text) >= _LONGEST_OPENING:
        return False
    return any(opening.startswith(text) for opening, _ in _TAGS)


def without_reasoning(text: str) -> str:
    """`text` behind a closing tag of reasoning that stands on a line of its own and was never opened: some chat templates
    put the opening tag into the prompt (DeepSeek R1, QwQ)."""
    if "</think>" not in text:
        return text
    closed = _CLOSED_ONLY.search(text)
    if closed is None or "<think>" in text[: closed.start()]:
        return text
    return text[closed.end() :].lstrip()
