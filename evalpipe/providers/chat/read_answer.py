"""Answers of chat completions, plain or chunk by chunk, from any server that speaks them."""

from __future__ import annotations

from typing import Any

from evalpipe.core.text import joined
from evalpipe.providers.building import AnswerBuilder, Call, StreamState
from evalpipe.providers.failures import Failure, failure_in, of_error
from evalpipe.providers.jsontext import as_count, as_dict, as_list, as_text, dump
from evalpipe.providers.plain_text import MARKS
from evalpipe.providers.usage import chat_usage, counts_something, usage_in

_REASONING = ("reasoning_content", "reasoning", "reasoning_text")
"""keys of hidden reasoning: DeepSeek and most · OpenRouter, Groq, newer vLLM · GitHub Copilot"""
_HEAD = ("id", "created", "model", "system_fingerprint", "service_tier", "provider")


class ChatReader(StreamState):
    """Reads one answer: `take_message` for a plain one, else `take_event` for each event; then `close`."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Failure | None = None
        self._head: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self._plain: dict[str, Any] | None = None
        self._nothing = AnswerBuilder()
        self._is_closed = False

    @property
    def builder(self) -> AnswerBuilder:
        """Of the first choice: the one of index 0, where the answer has one."""
        first = self._choices.get(0)
        if first is None and self._is_closed and self._choices:
            first = self._choices[min(self._choices)]
        return self._nothing if first is None else first.builder

    def take_message(self, message: dict[str, Any]) -> bool:
        """A plain answer; False where it is none."""
        choices = [as_dict(choice) for choice in as_list(message.get("choices"))]
        if not choices:
            return False
        first = min(choices, key=lambda choice: as_count(choice.get("index")) or 0)
        self._plain = message
        self._head["model"] = message.get("model")
        self._choices[0] = choice = _Choice()
        choice.add_message(as_dict(first.get("message")) or as_dict(first.get("delta")))
        choice.note_finish(first)
        self._note_error(first)
        return True

    def take_event(self, name: str, data: str, value: Any) -> bool:
        """One event: its name, its data and the JSON in it (None where it holds none); whether it carried content."""
        if data.lstrip().startswith("[DONE]"):
            self.is_finished = self.is_finished or bool(self._choices)
            return False
        if self.is_finished:  # clients stop reading at [DONE]; tokens are counted wherever they stand
            if isinstance(value, dict):
                self._note_usage(value)
            return False
        failure = failure_in(value, failed=name == "error") or (
            Failure(None, data[:2000]) if name == "error" and value is None and data else None
        )
        if failure is not None:
            self.failure = self.failure or failure
            return False
        if not isinstance(value, dict):
            self.is_malformed = True
            return False
        self._note_head(value)
        content = False
        may_count = value.get("usage") is not None or "x_groq" in value
        for part in map(as_dict, as_list(value.get("choices"))):
            may_count |= "usage" in part
            self.is_begun = True
            content |= self._choice(as_count(part.get("index")) or 0).add(part)
            self._note_error(part)
        if may_count:
            self._note_usage(value)
        return content

    def close(self) -> None:
        self._is_closed = True
        self.has_reason = bool(self._choices) and all(
            choice.builder.finish_reason is not None for choice in self._choices.values()
        )
        for choice in self._choices.values():
            choice.close()

    def finish(self) -> AnswerBuilder:
        """The answer, when all of it is in."""
        self.close()
        builder = self.builder
        builder.model = as_text(self._head.get("model"))
        builder.usage = chat_usage(self.message() or {}, has_content=builder.has_content)
        builder.failure = self.failure
        return builder

    def message(self) -> dict[str, Any] | None:
        """The answer as it would have come unstreamed; None where nothing of it came."""
        if self._plain is not None or not self._choices:
            return self._plain
        usage = {"usage": self._head["usage"]} if "usage" in self._head else {}
        return {
            **{key: value for key, value in self._head.items() if key != "usage"},
            "object": "chat.completion",
            "choices": [choice.assembled(index) for index, choice in sorted(self._choices.items())],
            **usage,
        }

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice()
        return choice

    def _note_head(self, chunk: dict[str, Any]) -> None:
        head = self._head
        for key in _HEAD:
            value = chunk.get(key)
            # Azure's first chunk names no model: what is empty does not take the place of what was told.
            if value or (value is not None and key not in head):
                head[key] = value

    def _note_usage(self, chunk: dict[str, Any]) -> None:
        usage = usage_in(chunk)
        if usage is not None and ("usage" not in self._head or counts_something(usage)):
            self._head["usage"] = usage

    def _note_error(self, choice: dict[str, Any]) -> None:
        """An error inside a choice (OpenRouter)."""
        error = choice.get("error")
        if self.failure is None and error:
            self.failure = of_error(error) if isinstance(error, dict) else failure_in({"error": error})


class _Choice:
    """One choice, growing."""

    def __init__(self) -> None:
        self.builder = AnswerBuilder()
        self._texts: dict[str, list[str]] = {}
        self._audio: dict[str, list[str]] = {}
        self._images: list[Any] = []
        self._function: Call | None = None
        self._deltas = _CallDeltas(self.builder)

    def add(self, part: dict[str, Any]) -> bool:
        """Take one chunk's part of the choice; whether it carried content."""
        delta = as_dict(part.get("delta")) or as_dict(part.get("message"))
        content = self._add_content(delta.get("content"), between="")
        if len(delta) > 1 or "content" not in delta:
            content |= self._add_other(delta, is_whole=False)
        self.note_finish(part)
        return content

    def add_message(self, message: dict[str, Any]) -> None:
        self._add_content(message.get("content"), between="\n")
        self._add_other(message, is_whole=True)

    def note_finish(self, part: dict[str, Any]) -> None:
        reason = as_text(part.get("finish_reason"))
        if reason:  # older Ollama and SGLang write "" in each chunk
            self.builder.finish_reason = joined(reason)

    def close(self) -> None:
        if self._audio and not "".join(self._audio.get("transcript", [])):
            self.builder.mark("audio")
        self.builder.close()

    def _add_other(self, delta: dict[str, Any], *, is_whole: bool) -> bool:
        content = self._add_audio(as_dict(delta.get("audio")))
        refusal = as_text(delta.get("refusal"))
        if refusal is not None:
            self._keep("refusal", refusal)
            self.builder.add_refusal(refusal)
            content |= bool(refusal)
        for key in _REASONING:
            thought = as_text(delta.get(key))
            if thought is not None:
                self._keep(key, thought)
                content |= bool(thought)
        images = as_list(delta.get("images"))
        if images:
            self._images += images
            self.builder.mark("image")
        calls = [as_dict(call) for call in as_list(delta.get("tool_calls"))]
        if calls:
            self._deltas.add(calls, is_whole=is_whole)
        function = delta.get("function_call")
        if isinstance(function, dict):
            if self._function is None:
                self._function = self.builder.new_call()
            _grow(self.builder, self._function, None, function)
        return content or bool(images) or bool(calls) or isinstance(function, dict)

    def _keep(self, key: str, text: str) -> None:
        self._texts.setdefault(key, []).append(text)

    def _add_content(self, content: Any, *, between: str) -> bool:
        """A string, or parts (Mistral: reasoning, references and pictures are parts too)."""
        if isinstance(content, str):
            self._keep("content", content)
            self.builder.add_text(content)
            return bool(content)
        if isinstance(content, dict):
            content = [content]
        has_content = False
        n_texts = 0
        for part in as_list(content):
            if isinstance(part, str):
                part = {"type": "text", "text": part}
            part = as_dict(part)
            kind = as_text(part.get("type")) or "text"
            text = as_text(part.get("text"))
            if kind in {"thinking", "reasoning"}:
                has_content |= self._add_thinking(part)
            elif kind == "refusal":
                self._keep("refusal", as_text(part.get("refusal")) or "")
                self.builder.add_refusal(as_text(part.get("refusal")) or "")
                has_content = True
            elif text is not None:
                text = between + text if n_texts and text else text
                n_texts += bool(text)
                self._keep("content", text)
                self.builder.add_text(text)
                has_content |= bool(text)
            elif kind in MARKS:
                self.builder.mark(MARKS[kind].strip("[]"))
                has_content = True
        return has_content

    def _add_thinking(self, part: dict[str, Any]) -> bool:
        thinking = part.get("thinking") if part.get("thinking") is not None else part.get("text")
        parts = [thinking] if isinstance(thinking, str) else as_list(thinking)
        text = "".join(
            piece if isinstance(piece, str) else as_text(as_dict(piece).get("text")) or "" for piece in parts
        )
        self._keep("reasoning_content", text)
        return bool(text)

    def _add_audio(self, audio: dict[str, Any]) -> bool:
        """Speech: its transcript is what was said."""
        for key in ("id", "data", "transcript"):
            text = as_text(audio.get(key))
            if text is not None:
                self._audio.setdefault(key, []).append(text)
        self.builder.add_text(as_text(audio.get("transcript")) or "")
        return bool(audio)

    def assembled(self, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        message.update({key: joined("".join(parts)) for key, parts in self._texts.items()})
        calls = [call for call in self.builder.calls if call is not self._function]
        if calls:
            message["tool_calls"] = [_assembled_call(call) for call in calls]
        if self._function is not None:
            message["function_call"] = {"name": self._function.name, "arguments": self._function.argument_text}
        if self._audio:
            message["audio"] = {key: joined("".join(parts)) for key, parts in self._audio.items()}
        if self._images:
            message["images"] = self._images
        return {"index": index, "message": message, "finish_reason": self.builder.finish_reason}


class _CallDeltas:
    """Puts the deltas of tool calls to the call they belong to: by id, else by index, else by order and name.

    Servers leave the index out (Gemini's compatible endpoint) or write 0 at every call, repeat id and name in each delta,
    or write neither: a name that comes when the arguments before it are whole begins a new call.
    """

    def __init__(self, builder: AnswerBuilder) -> None:
        self._builder = builder
        self._by_id: dict[str, Call] = {}
        self._by_index: dict[int, Call] = {}
        self._last: Call | None = None

    def add(self, deltas: list[dict[str, Any]], *, is_whole: bool) -> None:
        """Take the calls of one chunk; `is_whole`: of a plain message, where each is a call of its own."""
        taken: list[Call] = []
        for position, delta in enumerate(deltas):
            place = position if len(deltas) > 1 else None
            call = self._builder.new_call() if is_whole else self._find(delta, place, taken)
            taken.append(call)
            self._last = call
            function = as_dict(delta.get("function")) or as_dict(delta.get("custom"))
            call.is_custom |= delta.get("type") == "custom" or (not delta.get("function") and bool(delta.get("custom")))
            _grow(self._builder, call, as_text(delta.get("id")), function)

    def _find(self, delta: dict[str, Any], position: int | None, taken: list[Call]) -> Call:
        call_id = as_text(delta.get("id"))
        index = as_count(delta.get("index"))
        function = as_dict(delta.get("function")) or as_dict(delta.get("custom"))
        name = as_text(function.get("name"))
        by_id = self._by_id.get(call_id) if call_id else None
        if index is not None:
            known = self._by_index.get(index)
            if by_id is not None and (known is not None or not name):
                known = by_id  # every call is at index 0, or the index changed within a call
        elif by_id is not None:
            known = by_id
        elif position is not None and not call_id and not name and position < len(self._builder.calls):
            known = self._builder.calls[position]
        else:
            known = self._last
        if known is None or (
            name
            and (by_id is not known or by_id is None)
            and _is_another(known, call_id, name, function, is_indexed=index is not None, is_taken=known in taken)
        ):
            known = self._builder.new_call()
        if call_id:
            self._by_id[call_id] = known
        if index is not None:
            self._by_index[index] = known
        return known


def _is_another(
    call: Call, call_id: str | None, name: str, function: dict[str, Any], *, is_indexed: bool, is_taken: bool
) -> bool:
    """Whether a delta with a name, which would go on with `call`, begins another one. `is_taken`: an earlier delta of the same
    chunk was of `call`."""
    if is_taken and not (is_indexed and not call_id):
        return True  # one chunk names each call once
    if call_id and call.id and call_id != call.id:
        # Some servers make up an id for each delta: arguments that are not whole go on.
        return not call.arguments or call.is_complete()
    if call.is_complete():
        return name != call.name or bool(function.get("arguments"))
    return not is_indexed and not call_id and not call.arguments and name != call.name


def _grow(builder: AnswerBuilder, call: Call, call_id: str | None, function: dict[str, Any]) -> None:
    builder.name_call(call, call_id=call_id, name=as_text(function.get("name")))
    given = function.get("arguments") if function.get("arguments") is not None else function.get("input")
    if given is not None:
        builder.add_arguments(call, given if isinstance(given, str) else dump(given))


def _assembled_call(call: Call) -> dict[str, Any]:
    if call.is_custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.argument_text}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.argument_text}}
