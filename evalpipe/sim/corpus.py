"""What the models answer: a JSONL file of recorded answers, looked up by model and conversation.

One line an answer:

    {"model": "smollm2-135m-instruct",            "*": for any model
     "prompt": "…" or "messages": [{"role", "content"}, …],   system message first where there is one
     "text": "…",                                 the answer; null where there are only tool calls
     "finish_reason": "stop",                     stop | length | tool_calls | content_filter (or Anthropic's words)
     "input_tokens": 31, "output_tokens": 87,     optional: counted from the characters where absent
     "latency_ms": 812.4, "ttft_ms": 96.1,        optional: paced by the settings where absent
     "tool_calls": [{"id", "name", "arguments"}]} optional; arguments as an object or as JSON text

A `pairs` file ({"prompt", "response_a", "response_b", "model_a", "model_b"}) is a corpus too: two answers a line, for the
models named, or "control" and "treatment" where none is. Conversations are compared by their words alone: roles of
system and user, spaces and line breaks, and the dialect they come in make no difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalpipe.errors import ConfigError
from evalpipe.providers.jsontext import MalformedJSONError, as_count, as_dict, as_list, as_text, dump, parse
from evalpipe.providers.plain_text import content_text
from evalpipe.providers.reply import ReplyCall, Stop

_STOPS: Mapping[str, Stop] = {
    "length": "max_tokens",
    "max_tokens": "max_tokens",
    "tool_calls": "tool_use",
    "tool_use": "tool_use",
    "content_filter": "refusal",
    "refusal": "refusal",
    "stop_sequence": "stop_sequence",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedAnswer:
    """One answer of a model. Times in ms; None: not recorded."""

    text: str | None
    stop: Stop = "end"
    calls: tuple[ReplyCall, ...] = field(default=())
    input_tokens: int | None = None
    output_tokens: int | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None


class Corpus:
    """Recorded answers by model and conversation."""

    def __init__(self, answers: Iterable[tuple[str, str, RecordedAnswer]] = ()) -> None:
        self._answers = {(model, key): answer for model, key, answer in answers}

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def models(self) -> list[str]:
        return sorted({model for model, _ in self._answers if model != "*"})

    def find(self, model: str, key: str) -> RecordedAnswer | None:
        """The answer of `model` to the conversation with this `conversation_key`."""
        return self._answers.get((model, key)) or self._answers.get(("*", key))


def conversation_key(messages: Iterable[Mapping[str, Any]]) -> str:
    """What a conversation is recognised by, in any dialect: its words without spaces, and who of the two said them."""
    digest = hashlib.sha256()
    for message in messages:
        speaker = b"a" if message.get("role") == "assistant" else b"u"
        words = "".join(content_text(message.get("content")).split())
        if words:
            digest.update(speaker + words.encode("utf-8", "replace"))
    return digest.hexdigest()


def load_corpus(path: Path) -> Corpus:
    """Read a corpus file. Raises ConfigError naming the file and line of the first mistake."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the corpus {path}: {error.strerror}") from error
    answers: list[tuple[str, str, RecordedAnswer]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                answers += _read_line(as_dict(parse(line)))
            except (MalformedJSONError, ValueError) as error:
                raise ConfigError(f"{path}:{number}: {error}") from error
    return Corpus(answers)


def _read_line(row: dict[str, Any]) -> list[tuple[str, str, RecordedAnswer]]:
    prompt = row.get("messages") or row.get("prompt")
    if not isinstance(prompt, str | list):
        raise ValueError('neither "prompt" nor "messages"')
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    key = conversation_key(map(as_dict, messages))
    if "response_a" in row or "response_b" in row:
        return [
            (
                as_text(row.get(f"model_{seat}")) or arm,
                key,
                RecordedAnswer(text=as_text(row.get(f"response_{seat}")) or ""),
            )
            for seat, arm in (("a", "control"), ("b", "treatment"))
        ]
    model = as_text(row.get("model"))
    if model is None:
        raise ValueError('no "model"')
    return [(model, key, _read_answer(row))]


def _read_answer(row: dict[str, Any]) -> RecordedAnswer:
    calls = tuple(
        ReplyCall(
            id=as_text(call.get("id")) or f"call_{number}",
            name=as_text(call.get("name")) or "",
            arguments=_arguments(call.get("arguments")),
        )
        for number, call in enumerate(map(as_dict, _list_of(row.get("tool_calls"))))
    )
    return RecordedAnswer(
        text=as_text(row.get("text")),
        stop=_STOPS.get(as_text(row.get("finish_reason")) or "", "tool_use" if calls else "end"),
        calls=calls,
        input_tokens=as_count(row.get("input_tokens")),
        output_tokens=as_count(row.get("output_tokens")),
        latency_ms=_milliseconds(row.get("latency_ms")),
        ttft_ms=_milliseconds(row.get("ttft_ms")),
    )


def _arguments(value: Any) -> str:
    return value if isinstance(value, str) else dump(value if isinstance(value, dict) else {})


def _list_of(value: Any) -> list[Any]:
    # Parquet exports carry JSON columns as text.
    return as_list(json.loads(value)) if isinstance(value, str) and value else as_list(value)


def _milliseconds(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and value >= 0 else None
