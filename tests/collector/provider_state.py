"""A provider's account with all that providers keep for a client: what one request leaves there decides the next one's answer."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from collector_harness import Received, chunked, plain


class Account:
    """Script of a `RawUpstream`. `state` is all that is kept; answers repeat the last user text, so that one account's can be
    compared with another's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.responses: dict[str, int] = {}
        """id → turns so far"""
        self.items: set[str] = set()
        self.threads: dict[str, bool] = {}
        """message id → already continued"""
        self.conversations: dict[str, int] = {}
        self.containers: dict[str, int] = {}
        self.sessions: Counter[str] = Counter()
        self.request_ids: set[str] = set()
        self.credits: set[str] = set()
        self.spent: Counter[str] = Counter()
        self.audio: set[str] = set()
        self.stored: list[str] = []
        self.kept_answers: dict[str, dict[str, Any]] = {}
        """by id: what a later GET brings"""
        self.objects: Counter[str] = Counter()
        """requests of each object that other routes keep: assistants, threads, runs, batches, files, vector stores"""
        self.tickets: set[str] = set()
        """values of keys nobody has heard of, each good for one request"""
        self.faults: Counter[str] = Counter()
        self.n_made = 0
        self._lock = threading.Lock()

    def make(self, prefix: str) -> str:
        self.n_made += 1
        return f"{prefix}_{self.name}{self.n_made:06d}"

    def __call__(self, request: Received) -> Iterable[bytes | float | str]:
        body = json.loads(request.body or b"{}")
        path = request.line.split()[1].decode()
        with self._lock:
            if path.endswith("/conversations"):
                made = self.make("conv")
                self.conversations[made] = 0
                return [plain(json.dumps({"id": made, "object": "conversation"}).encode())]
            kept = re.search(r"/(?:responses|chat/completions)/(\w+)(/cancel)?$", path)
            if kept:
                return self._of_kept(request.line.split()[0], kept[1], is_cancelled=bool(kept[2]))
            if "/threads/" in path or not path.endswith(("/responses", "/chat/completions", "/messages")):
                return self._of_objects(path, body)
            fault = re.search(r"FAULT=(\w+)", json.dumps(body))
            if fault and not self.faults[fault[1]]:
                self.faults[fault[1]] += 1
                return [_error(529, "overloaded")]
            for key, value in body.items():
                if key.startswith("x_"):
                    if value in self.tickets:
                        return [_error(409, "ticket_used")]
                    self.tickets.add(value)
            kind = self._of_responses if path.endswith("/responses") else self._of_chat
            if path.endswith("/messages"):
                kind = self._of_messages
            return kind(body)

    def _of_kept(self, method: bytes, name: str, *, is_cancelled: bool) -> list[bytes]:
        if name not in self.kept_answers:
            return [_error(404, "not_found")]
        answer = self.kept_answers[name]
        if method == b"DELETE":
            del self.kept_answers[name]
            answer = {"id": name, "deleted": True}
        elif is_cancelled:
            answer["status"] = "cancelled"
        elif answer.get("status") == "queued":
            self.kept_answers[name] = {**answer, "status": "completed"}
        return [plain(json.dumps(answer).encode())]

    def _of_objects(self, path: str, body: dict[str, Any]) -> list[bytes]:
        """Any other route: how often it was asked, and what it was given."""
        self.objects[path] += 1
        answer = {"id": f"obj_{self.objects[path]}", "n": self.objects[path], "given": body}
        return [plain(json.dumps(answer).encode())]

    def _of_responses(self, body: dict[str, Any]) -> list[bytes]:
        turn = 1
        previous = body.get("previous_response_id")
        if previous:
            if previous not in self.responses:
                return [_error(400, "previous_response_not_found")]
            turn = self.responses[previous] + 1
        conversation = body.get("conversation")
        if conversation:
            if conversation not in self.conversations:
                return [_error(404, "conversation_not_found")]
            self.conversations[conversation] += 1
            turn = self.conversations[conversation]
        given = body["input"] if isinstance(body["input"], list) else [{"role": "user", "content": body["input"]}]
        for item in given:
            if item.get("type") == "item_reference" and item["id"] not in self.items:
                return [_error(404, "item_not_found")]
        for tool in body.get("tools") or []:
            if tool.get("type") == "mcp":
                self.sessions[tool["server_url"]] += 1  # a call may do anything there
                turn = self.sessions[tool["server_url"]]
            named = tool.get("container")
            if isinstance(named, str):
                if named not in self.containers:
                    return [_error(404, "container_not_found")]
                self.containers[named] += 1
                turn = self.containers[named]
        made, item_id = self.make("resp"), self.make("msg")
        output: list[dict[str, Any]] = []
        if any(isinstance(tool.get("container"), dict) for tool in body.get("tools") or []):
            container = self.make("cntr")
            self.containers[container] = 1
            output.append({"id": self.make("ci"), "type": "code_interpreter_call", "container_id": container})
        text = f"turn {turn} of {given[-1].get('content')}"
        content = [{"type": "output_text", "text": text, "annotations": []}]
        output.append(
            {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": content}
        )
        if body.get("store") is not False:
            self.responses[made], self.stored = turn, [*self.stored, made]
            self.items.add(item_id)
            self.kept_answers[made] = {"id": made, "status": "queued" if body.get("background") else "completed"}
        answer: dict[str, Any] = {
            "id": made,
            "object": "response",
            "status": "completed",
            "model": body.get("model"),
            "output": output,
        }
        answer["usage"] = {"input_tokens": 5, "output_tokens": 5, "total_tokens": 10}
        if body.get("stream") is not True:
            return [plain(json.dumps(answer).encode())]
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": {**answer, "output": [], "status": "in_progress"}},
            {"type": "response.output_text.delta", "item_id": item_id, "output_index": 0, "delta": text},
            {"type": "response.completed", "response": answer},
        ]
        return chunked(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events)

    def _of_messages(self, body: dict[str, Any]) -> list[bytes]:
        turn = 1
        thread, container = body.get("thread") or {}, body.get("container")
        user = (body.get("metadata") or {}).get("user_id")
        if user is not None and self._is_spent(user):
            return [_error(429, "budget")]
        if thread.get("type") == "continue":
            previous = thread["previous_message_id"]
            if previous not in self.threads:
                return [_error(404, "thread_not_found")]
            if self.threads[previous]:
                return [_error(409, "thread_already_continued")]
            self.threads[previous] = True
            turn = 2
        if isinstance(container, str):
            if container not in self.containers:
                return [_error(404, "container_not_found")]
            self.containers[container] += 1
            turn = self.containers[container]
        for server in body.get("mcp_servers") or []:
            self.sessions[server["url"]] += 1
            turn = self.sessions[server["url"]]
        credit = body.get("fallback_credit_token")
        if credit:
            if credit not in self.credits:
                return [_error(400, "credit_redeemed_or_unknown")]
            self.credits.discard(credit)
        made = self.make("msg")
        if thread:
            self.threads[made] = False
        text = f"turn {turn} of {body['messages'][-1]['content']}"
        answer: dict[str, Any] = {"id": made, "type": "message", "role": "assistant", "model": body.get("model")}
        answer |= {"content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": None}
        answer["usage"] = {"input_tokens": 5, "output_tokens": 5}
        if any(str(tool.get("type")).startswith("code_execution") for tool in body.get("tools") or []):
            name = container if isinstance(container, str) else self.make("container")
            self.containers.setdefault(name, 1)
            answer["container"] = {"id": name, "expires_at": "2030-01-01T00:00:00Z"}
        if "REFUSE" in text:
            credit = self.make("credit")
            self.credits.add(credit)
            answer |= {"stop_reason": "refusal", "stop_details": {"fallback_credit_token": credit}}
        return [plain(json.dumps(answer).encode())]

    def _of_chat(self, body: dict[str, Any]) -> list[bytes]:
        for user in (body.get("user"), body.get("safety_identifier")):
            if user is not None and self._is_spent(user):
                return [_error(429, "budget")]
        turn = 1
        session = (body.get("session_params") or {}).get("id") or body.get("session_id")
        if session is not None:
            self.sessions[session] += 1
            turn = self.sessions[session]
        if body.get("request_id"):
            if body["request_id"] in self.request_ids:
                return [_error(409, "request_id_in_use")]
            self.request_ids.add(body["request_id"])
        for earlier in body["messages"]:
            if (earlier.get("audio") or {}).get("id") not in {None, *self.audio}:
                return [_error(404, "audio_not_found")]
        text = f"turn {turn} of {body['messages'][-1].get('content')}"
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if body.get("audio"):
            made = self.make("audio")
            self.audio.add(made)
            message["audio"] = {"id": made, "data": "", "transcript": text, "expires_at": 1}
        answer: dict[str, Any] = {
            "id": self.make("chatcmpl"),
            "object": "chat.completion",
            "created": 1,
            "model": body.get("model"),
        }
        answer["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        answer["usage"] = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        if body.get("store"):
            self.stored.append(answer["id"])
            self.kept_answers[answer["id"]] = {"id": answer["id"], "metadata": body.get("metadata")}
        return [plain(json.dumps(answer).encode())]

    def _is_spent(self, user: str) -> bool:
        """A gateway's budget: three requests a user."""
        self.spent[user] += 1
        return self.spent[user] > 3


def _error(status: int, code: str) -> bytes:
    body = {"type": "error", "error": {"type": code, "message": code, "code": code}}
    return plain(
        json.dumps(body).encode(), status=f"{status} X", headers=b"Content-Type: application/json\r\nretry-after: 0\r\n"
    )


Ask = Callable[..., tuple[int, dict[str, Any]]]
"""(path, body) → (status, the answer's JSON)"""


def text_of(answer: dict[str, Any]) -> Any:
    """What the user reads."""
    if "n" in answer:
        return answer["n"]
    if "choices" in answer:
        return answer["choices"][0]["message"]["content"]
    if "output" in answer:
        return answer["output"][-1]["content"][0]["text"]
    if "content" in answer:
        return answer["content"][0]["text"]
    return answer["error"]["type"]
