"""A response while it grows: the pieces it is made of, and text that comes in pieces."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from typing import Any, Final, Literal, NamedTuple

import msgspec

from evalpipe.providers.base import Usage
from evalpipe.providers.json_values import parsed_or_raw
from evalpipe.providers.outcomes import Failure
from evalpipe.text import joined, well_formed

PieceKind = Literal["text", "refusal", "thought", "call", "arguments", "call_end"]
NOT_TEXT: Final = "not_text"
"""`error_type` of an answer with content that a judge of texts does not get: a picture, a sound, a server's tool run"""


class Piece(msgspec.Struct, frozen=True, gc=False):
    """One step of an answer. `text`: of an answer, a refusal, reasoning written into the content (tags included), or a tool
    call's arguments; `call`: the call's number, in order of appearance; `id` and `name` of a call that begins."""

    kind: PieceKind
    text: str = ""
    call: int = 0
    id: str | None = None
    name: str | None = None


class Call:
    """A tool call that grows. It is announced with its first arguments, when its name is known."""

    __slots__ = ("arguments", "id", "is_announced", "is_custom", "is_ended", "joiner", "name", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.id: str | None = None
        self.name: str | None = None
        self.is_custom = False
        self.arguments: list[str] = []
        self.joiner = TextJoiner()
        self.is_announced = self.is_ended = False

    @property
    def argument_text(self) -> str:
        return "".join(self.arguments)

    def is_complete(self) -> bool:
        """Whether the arguments so far are a whole JSON object: more of them would be another call's."""
        text = self.argument_text
        return text.rstrip().endswith("}") and isinstance(parsed_or_raw(text), dict)


class AnswerBuilder:
    """Takes an answer's content as a dialect's reader finds it, and makes pieces of it."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.calls: list[Call] = []
        self.marks: list[str] = []
        """content that is no text, as people see it ("[image]")"""
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage = Usage()
        self.failure: Failure | None = None
        self.is_incomplete = False
        """the provider reports that there should have been more"""
        self.other_content: str | None = None
        """what an answer without a word or a call holds"""
        self._joiner = TextJoiner()
        self._filter = ReasoningFilter()
        self._refusal = TextJoiner()
        self._is_closed = False

    def add_text(self, text: str) -> None:
        if not text:
            return
        if self._filter.is_passed and text.isascii() and not self._joiner.is_waiting:
            self.pieces.append(Piece("text", text))  # by far the most
        else:
            self._add_split(self._joiner.add(text))

    def add_refusal(self, text: str) -> None:
        refusal = self._refusal.add(text) if text else ""
        if refusal:
            self.pieces.append(Piece("refusal", refusal))

    def mark(self, kind: str) -> None:
        """Note content that is no text ("image", "audio", …)."""
        if f"[{kind}]" not in self.marks:
            self.marks.append(f"[{kind}]")

    def new_call(self) -> Call:
        call = Call(len(self.calls))
        self.calls.append(call)
        return call

    def name_call(self, call: Call, *, call_id: str | None = None, name: str | None = None) -> None:
        """A delta of a tool call. Its first id holds; a name may come in parts, and a delta of a call that was
        announced comes too late."""
        if call.is_announced:
            return
        if call_id and not call.id:
            call.id = well_formed(call_id)
        if name and name != call.name:
            call.name = well_formed((call.name or "") + name)
        if call.arguments:
            self._announce_in_turn(call)

    def add_arguments(self, call: Call, text: str) -> None:
        if call.is_ended or not text:
            return
        text = call.joiner.add(text)
        if not text:
            return
        call.arguments.append(text)
        if call.is_announced:
            self.pieces.append(Piece("arguments", text, call.number))
        else:
            self._announce_in_turn(call)

    def end_call(self, call: Call) -> None:
        if call.is_ended:
            return
        rest = call.joiner.close()
        if rest:
            call.arguments.append(rest)
        if not call.is_announced:
            for earlier in self.calls[: call.number + 1]:
                if not earlier.is_announced:
                    self._announce(earlier)
        elif rest:
            self.pieces.append(Piece("arguments", rest, call.number))
        call.is_ended = True
        self.pieces.append(Piece("call_end", "", call.number))

    def close(self) -> None:
        """There is no more: what was held back becomes pieces."""
        if self._is_closed:
            return
        self._is_closed = True
        self._add_split(self._joiner.close())
        last = self._filter.close()
        self._append(last.text, last.thought)
        rest = self._refusal.close()
        if rest:
            self.pieces.append(Piece("refusal", rest))
        for call in self.calls:
            self.end_call(call)

    def text(self) -> str | None:
        """The answer's text, and the words of its refusal; None where it holds tool calls and no word."""
        text = without_reasoning(self._raw_text)
        if self.marks:
            text = "\n".join([text, *self.marks] if text else self.marks)
        return text if text or not self.calls else None

    @property
    def late_reasoning(self) -> str:
        """What `text` leaves out because only its end shows that it was reasoning: by then a stream of it has passed."""
        raw = self._raw_text
        return raw[: len(raw) - len(without_reasoning(raw))]

    @property
    def _raw_text(self) -> str:
        return "".join(piece.text for piece in self.pieces if piece.kind in {"text", "refusal"})

    @property
    def has_content(self) -> bool:
        """Whether it has text, or calls a tool."""
        return bool(self.calls) or any(piece.kind in {"text", "refusal", "thought"} for piece in self.pieces)

    def refusal(self) -> str:
        return "".join(piece.text for piece in self.pieces if piece.kind == "refusal")

    def tool_calls(self) -> list[dict[str, Any]]:
        """[{"id", "name", "arguments"}], the arguments parsed; a custom tool's input is text."""
        return [
            {
                "id": call.id,
                "name": call.name,
                "arguments": call.argument_text if call.is_custom else parsed_or_raw(call.argument_text),
            }
            for call in self.calls
        ]

    def _add_split(self, text: str) -> None:
        if text:
            split = self._filter.add(text)
            self._append(split.text, split.thought)

    def _append(self, text: str, thought: str) -> None:
        if thought:
            self.pieces.append(Piece("thought", thought))
        if text:
            self.pieces.append(Piece("text", text))

    def _announce_in_turn(self, call: Call) -> None:
        """Announce a call whose name is known, and those before it: calls keep the order in which they appeared."""
        for earlier in self.calls[: call.number + 1]:
            if not earlier.is_announced:
                if not earlier.name:
                    return
                self._announce(earlier)

    def _announce(self, call: Call) -> None:
        call.is_announced = True
        self.pieces.append(Piece("call", "", call.number, call.id, call.name))
        if call.arguments:
            self.pieces.append(Piece("arguments", call.argument_text, call.number))


class StreamState:
    """The state of a dialect's reader of a stream, beside its content."""

    def __init__(self) -> None:
        self.is_begun = False
        """the answer has begun: an event of it was read"""
        self.is_finished = False
        """the stream reported its end: no part of the response is missing"""
        self.has_reason = False
        """a reason to stop was given, though the end of the stream was not"""
        self.is_malformed = False
        """an event could not be read"""


# Text that comes in pieces: surrogate halves joined, and reasoning that a server left in the answer kept apart from it.


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
        if 0xD800 <= ord(text[-1]) <= 0xDBFF:
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

    Only reasoning that opens the content counts: a response may well mention tags. A server whose prompt holds the opening
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
    """`text` behind a closing tag of reasoning that is on a line of its own and was never opened: some chat templates
    put the opening tag into the prompt (DeepSeek R1, QwQ)."""
    if "</think>" not in text:
        return text
    closed = _CLOSED_ONLY.search(text)
    if closed is None or "<think>" in text[: closed.start()]:
        return text
    return text[closed.end() :].lstrip()
