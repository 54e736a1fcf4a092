"""Answers in the shape of OpenAI Responses, whole or as a stream of events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalpipe.providers.base import Usage
from evalpipe.providers.jsontext import dump
from evalpipe.providers.reply import Reply, ReplyCall, Stop
from evalpipe.providers.sse import render_event

_ECHOED = (
    "instructions",
    "max_output_tokens",
    "parallel_tool_calls",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "text",
)
_DEFAULTS: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "text": {"format": {"type": "text"}},
}


def plain_responses(reply: Reply, request: Mapping[str, Any]) -> dict[str, Any]:
    """The unstreamed body; settings of the `request` are repeated in it, as the provider does."""
    output: list[dict[str, Any]] = []
    if reply.text is not None or reply.refusal is not None or not reply.calls:
        output.append(_message_item(reply.id, reply.text, reply.refusal))
    output += [_call_item(reply.id, call) for call in reply.calls]
    missing = _missing(reply.stop, in_words=reply.refusal is not None)
    return {**_response(reply, request, output, missing=missing), **_usage(reply.usage)}


def responses_usage(usage: Usage) -> dict[str, Any] | None:
    """None where the tokens are not known."""
    given, made = usage.input_tokens, usage.output_tokens
    if given is None or made is None:
        return None
    return {
        "input_tokens": given,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": given + made,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    """Left out where the tokens are not known: some clients take no null for it."""
    counts = responses_usage(usage)
    return {} if counts is None else {"usage": counts}


class ResponsesWriter:
    """Events of one streamed answer; the last one repeats the whole of it."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, answer_id: str, model: str, created: int, request: Mapping[str, Any]) -> None:
        self._id, self._model, self._created, self._request = answer_id, model, created, request
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._open: str | None = None
        self._refused = False
        self._pieces: list[str] = []
        self._call: tuple[str, str] = ("", "")

    def start(self, usage: Usage) -> bytes:
        response = {**_response(self._reply(), self._request, []), "status": "in_progress"}
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def text(self, delta: str) -> bytes:
        return self._content("output_text", delta)

    def refusal(self, delta: str) -> bytes:
        self._refused = True
        return self._content("refusal", delta)

    def call_start(self, call_id: str, name: str) -> bytes:
        closed = self._close()
        self._open, self._call = "function_call", (call_id, name)
        item = {**_call_item(self._id, ReplyCall(id=call_id, name=name, arguments="")), "status": "in_progress"}
        return closed + self._event("response.output_item.added", output_index=len(self._output), item=item)

    def call_arguments(self, delta: str) -> bytes:
        self._pieces.append(delta)
        return self._event("response.function_call_arguments.delta", **self._where(), delta=delta)

    def finish(self, stop: Stop, usage: Usage, stop_sequence: str | None = None) -> bytes:
        closed = self._close()
        missing = _missing(stop, in_words=self._refused)
        response = {
            **_response(self._reply(stop), self._request, self._output, missing=missing),
            **_usage(usage),
        }
        return closed + self._event(f"response.{response['status']}", response=response)

    def error(self, kind: str, message: str) -> bytes:
        return self._event("error", code=kind, message=message, param=None)

    def _content(self, kind: str, delta: str) -> bytes:
        opened = b""
        if self._open != kind:
            opened = self._close()
            self._open = kind
            index = len(self._output)
            item = {"id": _item_id(self._id, index), "type": "message", "status": "in_progress", "role": "assistant"}
            opened += self._event("response.output_item.added", output_index=index, item={**item, "content": []})
            opened += self._event("response.content_part.added", **self._where(), content_index=0, part=_part(kind, ""))
        self._pieces.append(delta)
        more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        name = f"response.{kind}.delta"
        return opened + self._event(name, **self._where(), content_index=0, delta=delta, **more)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        kind, whole, where = self._open, "".join(self._pieces), self._where()
        self._open, self._pieces = None, []
        if kind == "function_call":
            call = ReplyCall(id=self._call[0], name=self._call[1], arguments=whole)
            item = _call_item(self._id, call)
            done = self._event("response.function_call_arguments.done", **where, name=call.name, arguments=whole)
        else:
            key = "text" if kind == "output_text" else "refusal"
            more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            item = {
                "id": where["item_id"],
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [_part(kind, whole)],
            }
            done = self._event(f"response.{kind}.done", **where, content_index=0, **{key: whole}, **more)
            done += self._event("response.content_part.done", **where, content_index=0, part=_part(kind, whole))
        done += self._event("response.output_item.done", output_index=where["output_index"], item=item)
        self._output.append(item)
        return done

    def _where(self) -> dict[str, Any]:
        index = len(self._output)
        item_id = f"fc_{self._call[0]}" if self._open == "function_call" else _item_id(self._id, index)
        return {"item_id": item_id, "output_index": index}

    def _event(self, kind: str, **data: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence, **data}
        self._sequence += 1
        return render_event(dump(event), kind)

    def _reply(self, stop: Stop = "end") -> Reply:
        return Reply(id=self._id, model=self._model, created=self._created, stop=stop)


def _missing(stop: Stop, *, in_words: bool) -> str | None:
    """Why the answer is not whole. A refusal in words is one; without words a filter took the rest."""
    if stop == "max_tokens":
        return "max_output_tokens"
    return "content_filter" if stop == "refusal" and not in_words else None


def _response(
    reply: Reply, request: Mapping[str, Any], output: list[dict[str, Any]], *, missing: str | None = None
) -> dict[str, Any]:
    echoed = {key: request[key] if request.get(key) is not None else _DEFAULTS[key] for key in _ECHOED}
    return {
        "id": reply.id,
        "object": "response",
        "created_at": reply.created,
        "status": "completed" if missing is None else "incomplete",
        "error": None,
        "incomplete_details": None if missing is None else {"reason": missing},
        "model": reply.model,
        "output": output,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "truncation": "disabled",
        "user": None,
        "metadata": {},
        **echoed,
    }


def _message_item(answer_id: str, text: str | None, refusal: str | None) -> dict[str, Any]:
    content = [_part("output_text", text)] if text is not None else []
    if refusal is not None:
        content.append(_part("refusal", refusal))
    return {
        "id": _item_id(answer_id, 0),
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": content,
    }


def _item_id(answer_id: str, index: int) -> str:
    return f"msg_{answer_id.removeprefix('resp_')}_{index}"


def _call_item(answer_id: str, call: ReplyCall) -> dict[str, Any]:
    return {
        "id": f"fc_{call.id}",
        "type": "function_call",
        "status": "completed",
        "arguments": call.arguments,
        "call_id": call.id,
        "name": call.name,
    }


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
