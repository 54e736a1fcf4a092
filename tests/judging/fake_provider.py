"""A tiny provider on a loopback port: answers come from a function of the parsed request, every call is counted."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BLOCK = re.compile(
    r'<(request|context|reference|response(?:-[12])?)-([0-9a-f]{16})(?: state="(\w+)")?>\n(.*?)\n</\1-\2>', re.DOTALL
)


@dataclass
class Call:
    path: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def user(self) -> str:
        messages = [message for message in self.body["messages"] if message["role"] == "user"]
        return messages[0]["content"]

    @property
    def blocks(self) -> dict[str, str]:
        return {match[1]: match[4] for match in BLOCK.finditer(self.user)}

    @property
    def is_repair(self) -> bool:
        return "Your reply could not be read: " in self.body["messages"][-1]["content"]


@dataclass
class Response:
    """`text` None with a status: an error. `drop`: the connection is closed in the middle of the body."""

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stop_reason: str = "end_turn"
    content: list[dict[str, Any]] | None = None
    raw: bytes | None = None
    drop: bool = False
    delay: float = 0.0
    after: threading.Event | None = None
    """the answer is kept back until this is set"""
    input_tokens: int = 100
    output_tokens: int = 50
    error: str = "api_error"


Behaviour = Callable[[Call], Response]


def verdict(winner: str = "response_1", first: int = 7, second: int = 5, **extra: Any) -> str:
    scores = ["accuracy", "clarity", "completeness"]
    return json.dumps(
        {
            "reasoning": "because",
            "response_1": dict.fromkeys(scores, first),
            "response_2": dict.fromkeys(scores, second),
            "winner": winner,
            **extra,
        }
    )


def longer_wins(call: Call) -> Response:
    """A judge without seat bias: the longer answer wins."""
    first, second = (len(call.blocks[f"response-{seat}"]) for seat in (1, 2))
    return Response(verdict("response_1" if first > second else "response_2" if second > first else "tie", 6, 6))


class FakeProvider:
    """`with FakeProvider(behaviour) as provider:` then `provider.url`, `provider.calls`."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.calls: list[Call] = []
        self.n_open = 0
        self.most_open = 0
        self._ready = threading.Event()

    def __enter__(self) -> FakeProvider:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        _, path, _ = head[0].split(" ")
        headers = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in head[1:] if ":" in line}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        call = Call(path, json.loads(body) if body else {}, headers)
        self.calls.append(call)
        self.n_open += 1
        self.most_open = max(self.most_open, self.n_open)
        try:
            response = self.behaviour(call)
            if response.delay:
                await asyncio.sleep(response.delay)
            while response.after is not None and not response.after.is_set():
                await asyncio.sleep(0.005)
        finally:
            self.n_open -= 1
        payload = response.raw if response.raw is not None else json.dumps(render(call, response)).encode()
        extra = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        head = f"HTTP/1.1 {response.status} X\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n"
        writer.write(f"{head}{extra}\r\n".encode())
        if response.drop:
            writer.write(payload[: len(payload) // 2])
            await writer.drain()
            return False
        writer.write(payload)
        await writer.drain()
        return True


def render(call: Call, response: Response) -> dict[str, Any]:
    if response.status != 200:
        return {"type": "error", "error": {"type": response.error, "message": "simulated failure"}}
    if call.path.endswith("/chat/completions"):
        reasons = {"end_turn": "stop", "max_tokens": "length", "refusal": "content_filter"}
        return {
            "id": "c1",
            "object": "chat.completion",
            "model": call.body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": response.text},
                    "finish_reason": reasons[response.stop_reason],
                }
            ],
            "usage": {"prompt_tokens": response.input_tokens, "completion_tokens": response.output_tokens},
        }
    content = response.content if response.content is not None else [{"type": "text", "text": response.text or ""}]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": call.body["model"],
        "content": content,
        "stop_reason": response.stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": response.input_tokens, "output_tokens": response.output_tokens},
    }
