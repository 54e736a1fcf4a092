"""The litellm library as an arm: a loopback server in a process of its own that answers chat completions through it.

The library is slow to import and blocks where it likes: beside the workers it can do neither to a user. What it answers is
collected like any other arm's answer. Needs the optional extra: pip install 'evalpipe[litellm]'.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from evalpipe.collector.settings import CollectorSettings
from evalpipe.providers.paths import endpoint_of

ASKED = frozenset(
    {
        "messages",
        "model",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "response_format",
    }
    | {"max_tokens", "max_completion_tokens", "stop", "temperature", "top_p", "n", "seed", "logit_bias", "logprobs"}
    | {"frequency_penalty", "presence_penalty", "top_logprobs", "stream", "stream_options", "user", "service_tier"}
    | {"modalities", "audio", "prediction", "reasoning_effort", "verbosity", "thinking", "web_search_options"}
)
"""What a client may set. The library takes addresses, keys, credential files and callbacks as keywords of the same call: of
those only what the configuration sets (`params` of the arm) gets there."""


def serve_litellm(fd: int, settings: CollectorSettings) -> None:
    """Serve on the listening socket `fd` until the parent closes stdin (or ends)."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no download of a price list at start
    import litellm

    litellm.drop_params = True  # what a provider does not support is left out, as for any other treatment
    litellm.suppress_debug_info = True
    sock = socket.socket(fileno=fd)
    sock.setblocking(True)
    server = _Server(sock.getsockname()[:2], _Handler, bind_and_activate=False)
    arms = (settings.control, settings.treatment)
    server.configured = [arm.params for arm in arms if arm is not None and arm.provider == "litellm"]
    port = sock.getsockname()[1]
    origins = [arm.origin for arm in arms if arm is not None and arm.provider == "litellm"]
    server.bases = tuple(f"{origin.base_path}/" for origin in origins if origin.port == port)
    server.socket.close()
    server.socket = sock
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.write(1, b"ready\n")
    while os.read(0, 1):
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    configured: Sequence[Mapping[str, Any]] = ()
    bases: tuple[str, ...] = ()
    """beginnings of the paths at which the collector asks"""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "evalpipe-litellm", ""

    def do_POST(self) -> None:
        """One chat completion. The arm's key, where it has one, comes as a bearer token."""
        length = self.headers.get("content-length")
        if length is None or not length.isdigit():
            self.close_connection = True  # what follows cannot be distinguished from the next request
            self._error(411, "length_required", "the litellm library is asked with a Content-Length only")
            return
        body = self.rfile.read(int(length))
        path = self.path.partition("?")[0]
        if endpoint_of(path) != "chat.completions" or not path.startswith(self.server.bases):
            self._error(404, "not_found", "the litellm library answers chat completions only")
            return
        try:
            asked = allowed(json.loads(body), self.server.configured)
            answer = _ask(asked, self.headers.get("authorization"))
            if asked.get("stream"):
                self._stream(answer)
            else:
                self._whole(200, answer.model_dump_json().encode())
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the collector left: its client did
        except Exception as error:  # noqa: BLE001 - litellm wraps every vendor's errors, and its own, in many classes
            self._failed(error)

    def _stream(self, chunks: Iterable[Any]) -> None:
        """Server-sent events. The first chunk comes before the head: a refusal by the provider keeps its own status."""
        pieces = iter(chunks)
        first = next(pieces, None)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            while first is not None:
                self._chunk(b"data: " + first.model_dump_json(exclude_none=True).encode() + b"\n\n")
                first = next(pieces, None)
            self._chunk(b"data: [DONE]\n\n")
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001 - see do_POST; the head is out, so it becomes an event of the stream
            self._chunk(b"data: " + _error_body(type(error).__name__, str(error)) + b"\n\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _failed(self, error: Exception) -> None:
        status = getattr(error, "status_code", None)
        known = isinstance(status, int) and 400 <= status < 600
        self._error(status if known else 502, type(error).__name__, str(error))  # type: ignore[arg-type]

    def _error(self, status: int, kind: str, message: str) -> None:
        self._whole(status, _error_body(kind, message))

    def _whole(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """The collector's spool is the log."""


def allowed(asked: Any, configured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What of a request's body may reach the library. Raises ValueError where it is no JSON object."""
    if not isinstance(asked, dict):
        raise ValueError("the body is not a JSON object")
    return {
        key: value
        for key, value in asked.items()
        if key in ASKED or any(key in params and params[key] == value for params in configured)
    }


def _ask(asked: Mapping[str, Any], authorization: str | None) -> Any:
    import litellm

    key = authorization.removeprefix("Bearer ") if authorization else None
    return litellm.completion(**asked, api_key=key, max_retries=0)


def _error_body(kind: str, message: str) -> bytes:
    return json.dumps({"error": {"message": message[:2000], "type": kind, "param": None, "code": None}}).encode()
