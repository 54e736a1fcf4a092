"""Which requests are collected, where they are asked for at a server whose address has a path, and what is said of the rest."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import openai
import pytest
import zstandard
from collector_harness import (
    RawUpstream,
    Running,
    chat_answer,
    chat_request,
    chat_stream,
    chunked,
    eventually,
    exchange,
    plain,
)
from command_line import run_here

from evalpipe.collector.traffic_watch import folder_of, read_uncollected
from evalpipe.traffic_shape import summary

Start = Callable[..., Running]
Upstream = Callable[..., RawUpstream]

MESSAGES_ANSWER = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }
).encode()
RESPONSES_ANSWER = json.dumps(
    {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": "gpt-4o",
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}],
        "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
    }
).encode()


def answer_of(path: str) -> bytes:
    end = path.partition("?")[0].rstrip("/").rpartition("/")[2]
    return {"messages": MESSAGES_ANSWER, "responses": RESPONSES_ANSWER}.get(end, chat_answer())


def request_for(path: str) -> bytes:
    end = path.partition("?")[0].rstrip("/").rpartition("/")[2]
    if end == "messages":
        return json.dumps(
            {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        ).encode()
    if end == "responses":
        return json.dumps({"model": "gpt-4o", "input": "hi"}).encode()
    return chat_request()


def post(path: str, body: bytes, *, headers: bytes = b"", method: bytes = b"POST") -> bytes:
    return (
        b"%b %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"%bContent-Length: %d\r\n\r\n%b"
        % (
            method,
            path.encode(),
            headers,
            len(body),
            body,
        )
    )


def paths(server: RawUpstream) -> list[str]:
    return [request.line.split(b" ")[1].decode() for request in server.received]


def echo(request: object) -> list[bytes]:
    return [plain(answer_of(request.line.split(b" ")[1].decode()))]  # type: ignore[attr-defined]


def health(running: Running) -> dict[str, object]:
    answer = exchange(running.port, b"GET /_evalpipe/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    found: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


# --- which requests are collected

COLLECTED = {
    # Azure OpenAI, REST API reference: POST /openai/deployments/{deployment-id}/chat/completions?api-version=…
    "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21": "chat.completions",
    "/openai/responses?api-version=2025-04-01-preview": "responses",
    "/openai/v1/responses": "responses",  # Azure's v1 API, Groq
    "/chat/completions": "chat.completions",  # DeepSeek, Perplexity: base_url without /v1
    "/v1beta/openai/chat/completions": "chat.completions",  # Gemini, OpenAI compatibility
    "/api/v1/chat/completions": "chat.completions",  # OpenRouter
    "/api/v3/chat/completions": "chat.completions",  # Volcengine Ark
    "/api/paas/v4/chat/completions": "chat.completions",  # Zhipu
    "/compatible-mode/v1/chat/completions": "chat.completions",  # Alibaba Model Studio
    "/inference/v1/chat/completions": "chat.completions",  # Fireworks
    "/serving-endpoints/chat/completions": "chat.completions",  # Databricks
    "/client/v4/accounts/0123abcd/ai/v1/chat/completions": "chat.completions",  # Cloudflare Workers AI
    "/v1/projects/p/locations/eu/endpoints/openapi/chat/completions": "chat.completions",  # Vertex AI
    "//v1/chat/completions": "chat.completions",
    "/v1//chat/completions": "chat.completions",
    "/v1/chat/completions/": "chat.completions",
    "/v1/chat/completions/?beta=true": "chat.completions",
    "/v1/responses/": "responses",
    "/responses": "responses",
    "/messages": "messages",
    "/v1/messages/?beta=true": "messages",
    "/anthropic/v1/messages": "messages",  # DeepSeek, Moonshot, Z.ai
    "/api/anthropic/v1/messages": "messages",
}
PASSED = [
    "/v1/embeddings",
    "/v1/messages/count_tokens",
    "/v1/messages/batches",
    "/v1/responses/resp_1/cancel",
    "/v1/threads/thread_abc12345/messages",  # an assistant's thread: stores a message, asks no model
    "/v1/chat/completions/chatcmpl-1",
    "/v1/uploads/upload_abc123456/complete",
    "/mychat/completionsx",
]
UNCOLLECTED = {
    "/v1/completions": "/v1/completions",
    "/v1beta/models/gemini-2.5-pro:generateContent?key=sk-secret": "/v1beta/models/gemini-2.5-pro:generateContent",
    "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse": "/v1beta/models/gemini-2.5-pro:streamGenerateContent",
    "/model/anthropic.claude-sonnet-4-v1:0/invoke": "/model/anthropic.claude-sonnet-4-v1:0/invoke",
    "/model/amazon.nova-pro-v1:0/converse-stream": "/model/amazon.nova-pro-v1:0/converse-stream",
    "/v1/projects/p/locations/eu/publishers/anthropic/models/claude-opus-4:rawPredict": (
        "/v1/projects/p/locations/eu/publishers/anthropic/models/claude-opus-4:rawPredict"
    ),
    "/api/chat": "/api/chat",
    "/api/generate": "/api/generate",
    "/v1/responses/compact": "/v1/responses/compact",
    "/v1/threads/thread_abc12345/runs": "/v1/threads/*/runs",
}


def test_paths_are_known_by_their_end(upstream: Upstream, collector: Start) -> None:
    control, treatment = upstream(echo), upstream(echo)
    running = collector(control.url, treatment.url)
    for path in [*COLLECTED, *PASSED]:
        assert b" 200 " in exchange(running.port, post(path, request_for(path))).split(b"\r\n")[0], path
    for method in (b"GET", b"DELETE"):
        exchange(running.port, post("/v1/chat/completions", b"", method=method))
    assert paths(control)[: len(COLLECTED) + len(PASSED)] == [*COLLECTED, *PASSED], (
        "what has no base path passes as it came"
    )
    n_copies = sum(endpoint != "messages" for endpoint in COLLECTED.values())
    eventually(lambda: len(running.fates()) == len(COLLECTED) and len(treatment.received) >= n_copies)
    assert {record.target: record.endpoint for record in running.requests().values()} == COLLECTED
    assert {fate.status for fate in running.fates().values()} == {"sampled"}
    assert set(paths(treatment)) == {"/v1/chat/completions", "/v1/responses"}
    assert health(running)["uncollected"] == []
    assert "degraded" not in health(running)["status"], health(running)


def test_uncollected_calls_are_counted_and_named(upstream: Upstream, collector: Start) -> None:
    streaming = "/v2/something/new"

    def script(request: object) -> list[bytes]:
        if streaming.encode() in request.line:  # type: ignore[attr-defined]
            return chunked(chat_stream(["a", "b"]))
        return [plain(b"{}")]

    control, treatment = upstream(script), upstream(echo)
    running = collector(control.url, treatment.url)
    for path in [*UNCOLLECTED, *UNCOLLECTED, streaming, *PASSED]:
        exchange(running.port, post(path, b"{}"))
    exchange(running.port, post("/v1/chat/completions", chat_request()))
    expected = dict.fromkeys(UNCOLLECTED.values(), 2) | {streaming: 1}
    found = health(running)
    assert found["status"] == "degraded"
    assert {one["path"]: one["count"] for one in found["uncollected"]} == expected  # type: ignore[index,attr-defined]
    assert any("21 requests look like a model call" in reason for reason in found["reasons"])  # type: ignore[attr-defined]
    metrics = exchange(running.port, b"GET /_evalpipe/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b"evalpipe_uncollected_calls_total 21.0" in metrics
    running.stop()
    log = "".join(running.lines)
    for path in expected:
        assert log.count(f"POST {path} looks like a model call") == 1, path
    assert "sk-secret" not in log + json.dumps(found)
    # The next commands see it, too.
    doctor = evalpipe(running, "doctor", "--json")
    (diagnosis,) = [one for one in json.loads(doctor.stdout) if one["name"] == "uncollected calls"]
    assert diagnosis["status"] == "warn"
    assert "21 requests look like a model call" in diagnosis["detail"]
    assert evalpipe(running, "load").returncode == 0
    report = json.loads(evalpipe(running, "report", "--json").stdout)
    (check,) = [one for one in report["checks"] if one["name"] == "uncollected_calls"]
    assert check["status"] == "warn"
    assert "21 requests look like a model call" in check["detail"]
    # A new collector begins anew, the log's count goes on.
    again = collector(control.url, treatment.url, root=running.root)
    assert health(again)["uncollected"] == []
    exchange(again.port, post("/v1/completions", b"{}"))
    assert health(again)["uncollected"] == [{"method": "POST", "path": "/v1/completions", "count": 1}]
    again.stop()
    assert "22 requests" in summary(read_uncollected(folder_of(running.data, "test")))


def evalpipe(running: Running, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run_here(*arguments, cwd=running.root, env={"EVALPIPE_DATA": str(running.data), **(env or {})})


# --- where a server is asked whose address has a path of its own

CONTROL_ADDRESSES = [
    # base path and query of the address, the client's path, the path asked
    ("/v1", "/v1/chat/completions", "/v1/chat/completions"),
    ("/v1", "/chat/completions", "/v1/chat/completions"),
    ("/v1/", "//v1/chat/completions", "/v1/chat/completions"),
    ("/v1beta/openai", "/v1/chat/completions", "/v1beta/openai/chat/completions"),
    ("/v1beta/openai", "/chat/completions", "/v1beta/openai/chat/completions"),
    ("/v1beta/openai/", "/v1beta/openai/chat/completions", "/v1beta/openai/chat/completions"),
    ("/v1beta/openai", "/v1/models", "/v1beta/openai/models"),
    ("/api/v3", "/v1/chat/completions?x=1", "/api/v3/chat/completions?x=1"),
    ("/api/v1", "/v1/chat/completions", "/api/v1/chat/completions"),
    ("/api/v1", "/api/v1/chat/completions", "/api/v1/chat/completions"),
    ("/openai/v1", "/v1/responses", "/openai/v1/responses"),
    (
        "/openai/deployments/gpt-4o?api-version=2024-10-21",
        "/v1/chat/completions",
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
    ),
    (
        "/openai/deployments/gpt-4o?api-version=2024-10-21",
        "/openai/deployments/gpt-4o/chat/completions?api-version=2025-01-01-preview",
        "/openai/deployments/gpt-4o/chat/completions?api-version=2025-01-01-preview",
    ),
    (
        "/openai/deployments/gpt-4o?api-version=2024-10-21",
        "/openai/deployments/mini/chat/completions?a=b",
        "/openai/deployments/mini/chat/completions?a=b&api-version=2024-10-21",
    ),
    (
        "/openai/deployments/gpt-4o?api-version=2025-04-01-preview",
        "/v1/responses",
        "/openai/responses?api-version=2025-04-01-preview",
    ),
    (
        "/models?api-version=2024-05-01-preview",
        "/v1/chat/completions",
        "/models/chat/completions?api-version=2024-05-01-preview",
    ),
    # the whole address of an endpoint
    ("/chat/completions", "/v1/chat/completions", "/chat/completions"),
    ("/v4/chat/completions", "/v1/chat/completions", "/v4/chat/completions"),
    # Anthropic's SDK appends /v1/messages to its base_url, so /v1 is not the address's
    ("/anthropic", "/v1/messages", "/anthropic/v1/messages"),
    ("/anthropic", "/v1/messages/count_tokens", "/anthropic/v1/messages/count_tokens"),
    ("/anthropic/v1", "/v1/messages", "/anthropic/v1/messages"),
    ("/api/anthropic", "/api/anthropic/v1/messages", "/api/anthropic/v1/messages"),
]


@pytest.mark.parametrize(("base", "asked", "expected"), CONTROL_ADDRESSES)
def test_served_requests_at_an_address_with_a_path(base: str, asked: str, expected: str) -> None:
    """The rules by table; that the collector follows them over HTTP is tested below."""
    from evalpipe.collector.settings import Origin

    origin = Origin.of("https://host" + base)
    assert origin.served_target(asked.encode(), from_anthropic="messages" in asked).decode() == expected


def test_hosts_that_answer_at_their_root() -> None:
    """Perplexity: `base_url="https://api.perplexity.ai"`, and its /v1/chat/completions is a 404; its Responses are below /v1."""
    from evalpipe.collector.settings import Origin

    perplexity, deepseek = Origin.of("https://api.perplexity.ai"), Origin.of("https://api.deepseek.com")
    assert perplexity.endpoint_target("chat.completions") == b"/chat/completions"
    assert perplexity.served_target(b"/v1/chat/completions", from_anthropic=False) == b"/chat/completions"
    assert perplexity.served_target(b"/v1/responses", from_anthropic=False) == b"/v1/responses"
    assert deepseek.endpoint_target("chat.completions") == b"/v1/chat/completions"
    assert deepseek.served_target(b"/chat/completions", from_anthropic=False) == b"/chat/completions"


TREATMENT_ADDRESSES = [
    ("openai", "", "/v1/chat/completions"),
    ("openai", "/", "/v1/chat/completions"),
    ("openai", "/v1", "/v1/chat/completions"),
    ("openai", "/v1beta/openai/", "/v1beta/openai/chat/completions"),
    ("openai", "/api/v3", "/api/v3/chat/completions"),
    ("openai", "/serving-endpoints", "/serving-endpoints/chat/completions"),
    (
        "openai",
        "/openai/deployments/mini?api-version=2024-10-21",
        "/openai/deployments/mini/chat/completions?api-version=2024-10-21",
    ),
    ("openai", "/chat/completions", "/chat/completions"),
    ("anthropic", "", "/v1/messages"),
    ("anthropic", "/anthropic", "/anthropic/v1/messages"),
    ("anthropic", "/v1", "/v1/messages"),
    ("anthropic", "/gw/v1/messages", "/gw/v1/messages"),
]


@pytest.mark.parametrize(("provider", "base", "expected"), TREATMENT_ADDRESSES)
def test_where_the_treatment_is_asked(provider: str, base: str, expected: str) -> None:
    from evalpipe.collector.settings import Origin

    endpoint = "messages" if provider == "anthropic" else "chat.completions"
    assert Origin.of("https://host" + base).endpoint_target(endpoint).decode() == expected


@pytest.mark.parametrize(
    ("mode", "provider", "base", "expected", "header"),
    [
        ("shadow", "openai", "/v1beta/openai", "/v1beta/openai/chat/completions", "authorization"),
        ("shadow", "anthropic", "/anthropic", "/anthropic/v1/messages", "x-api-key"),
        ("ab", "openai", *TREATMENT_ADDRESSES[6][1:], "api-key"),
    ],
)
def test_copies_and_served_treatment_go_where_the_sdk_would_ask(
    upstream: Upstream, collector: Start, mode: str, provider: str, base: str, expected: str, header: str
) -> None:
    control, treatment = upstream(echo), upstream(echo)
    running = collector(
        control.url,
        treatment.url + base,
        treatment_provider=provider,
        mode=mode,
        experiment="treatment_percent = 100\n" if mode == "ab" else "",
        treatment_arm='api_key_env = "A_KEY"\n',
        env={"A_KEY": "the-key"},
    )
    answer = exchange(running.port, post("/v1/chat/completions", chat_request()))
    assert b'"hello"' in answer
    eventually(lambda: len(treatment.received) == 1)
    assert paths(treatment) == [expected]
    sent = treatment.received[0]
    assert (sent.header(header) or b"").endswith(b"the-key")
    assert {sent.header(name) for name in {"x-api-key", "api-key", "authorization"} - {header}} == {None}


def test_control_at_geminis_address_through_the_sdk(upstream: Upstream, collector: Start) -> None:
    """ai.google.dev/gemini-api/docs/openai: base_url https://generativelanguage.googleapis.com/v1beta/openai/."""
    control = upstream(echo)
    running = collector(control.url + "/v1beta/openai/", None)
    for client_path in ("", "/v1", "/v1beta/openai"):
        with openai.OpenAI(base_url=running.url + client_path, api_key="k", max_retries=0) as client:
            answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
            assert answer.choices[0].message.content == "hello"
    assert paths(control) == ["/v1beta/openai/chat/completions"] * 3
    eventually(lambda: len(running.responses()) == 3)


def test_azures_client_in_front_of_an_azure_deployment(upstream: Upstream, collector: Start) -> None:
    control = upstream(echo)
    running = collector(control.url + "/openai/deployments/gpt-4o?api-version=2024-10-21", None)
    with openai.AzureOpenAI(
        azure_endpoint=running.url, api_version="2024-12-01-preview", api_key="k", max_retries=0
    ) as client:
        answer = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "hello"
    assert paths(control) == ["/openai/deployments/gpt-4o/chat/completions?api-version=2024-12-01-preview"]
    assert control.received[0].header("api-key") == b"k"
    eventually(lambda: len(running.responses()) == 1)


@pytest.mark.shared
def test_requests_that_were_lost(shared: Path, upstream: Upstream, collector: Start) -> None:
    """Recorded cases: paths and codings that were not collected or copied, and addresses that were asked elsewhere."""
    folder = shared / "review/cases/wire/inputs"
    if not folder.is_dir():
        pytest.skip(f"no recorded cases at {folder}")
    cases = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    sent = {name: case for name, case in cases.items() if case["finding"] in ("H1", "H3", "H5")}
    addresses = [case for case in cases.values() if case["finding"] == "U1"]
    assert len(sent) >= 4
    assert len(addresses) >= 2
    queue = list(sent.values())

    def script(request: object) -> list[bytes]:
        return [base64.b64decode(piece["base64"]) for piece in queue.pop(0)["upstream_pieces"]]

    control, treatment = upstream(script), upstream(echo)
    running = collector(control.url, treatment.url)
    ids: dict[str, str] = {}
    for name, case in sent.items():
        asked = case["request"]
        headers = b"".join(line.encode() + b"\r\n" for line in asked["headers"])
        answer = exchange(running.port, post(asked["path"], base64.b64decode(asked["body_base64"]), headers=headers))
        assert answer.startswith(b"HTTP/1.1 200 "), name
        found = re.search(rb"x-evalpipe-request-id: (\w+)", answer)
        assert found is not None
        ids[name] = found[1].decode()
    eventually(lambda: len(running.fates()) == len(sent))
    requests, responses, fates = running.requests(), running.responses(), running.fates()
    for name, case in sent.items():
        assert ids[name] in requests, name
        assert fates[ids[name]].status == case["expected"].get("shadow_status", "sampled"), name
        assert b'"hello"' in responses[ids[name]].body.data, name
    for case in addresses:
        from evalpipe.collector.settings import Origin

        origin = Origin.of("http://host" + case["arm_base_url_path"])
        assert origin.endpoint_target("chat.completions").decode() == case["expected_path"]
        served = origin.served_target(case["client_path"].encode(), from_anthropic=False)
        assert served.decode() == case["expected_path"]


# --- compressed requests

CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "zstd, gzip": lambda data: gzip.compress(zstandard.compress(data)),
    "identity": lambda data: data,
    "utf-8": lambda data: data,
}


def test_compressed_requests_are_copied(upstream: Upstream, collector: Start) -> None:
    control, treatment = upstream(echo), upstream(echo)
    running = collector(control.url, treatment.url)
    for coding, encode in CODINGS.items():
        body = encode(chat_request(f"asked in {coding}"))
        exchange(
            running.port, post("/v1/chat/completions", body, headers=b"Content-Encoding: %b\r\n" % coding.encode())
        )
        assert control.received[-1].body == body
        assert control.received[-1].header("content-encoding") == coding.encode()
    eventually(lambda: len(treatment.received) == len(CODINGS))
    assert {fate.status for fate in running.fates().values()} == {"sampled"}
    asked = {json.loads(request.body)["messages"][0]["content"] for request in treatment.received}
    assert asked == {f"asked in {coding}" for coding in CODINGS}
    assert {request.header("content-encoding") for request in treatment.received} == {None}


def test_bombs_and_broken_bodies_are_served_and_not_copied(upstream: Upstream, collector: Start) -> None:
    control, treatment = upstream(echo), upstream(echo)
    running = collector(control.url, treatment.url)
    huge = 80 << 20
    zeros = zlib.compressobj(1, zlib.DEFLATED, 31)
    piece = bytes(1 << 20)
    gzip_bomb = b"".join(zeros.compress(piece) for _ in range(80)) + zeros.flush()
    bombs = {
        "gzip": gzip_bomb,
        "gzip, gzip": gzip.compress(gzip_bomb),
        "zstd": zstandard.ZstdCompressor().compress(bytes(huge)),
        "br": brotli.compress(bytes(huge), quality=1),
    }
    broken = {"gzip": b"no gzip at all", "zstd": zstandard.compress(chat_request())[:-9], "br": b"\xff" * 40}
    for coding, body in [*bombs.items(), *broken.items()]:
        answer = exchange(
            running.port,
            post("/v1/chat/completions", body, headers=b"Content-Encoding: %b\r\n" % coding.encode()),
            timeout=30,
        )
        assert b'"hello"' in answer
    eventually(lambda: len(running.fates()) == len(bombs) + len(broken), timeout=30)
    reasons = sorted(fate.reason or "" for fate in running.fates().values())
    assert reasons == ["request_too_large"] * len(bombs) + ["unreadable_request"] * len(broken)
    assert treatment.received == []
    import psutil

    for name in ("serve", "shadow"):
        assert psutil.Process(running.child(name)).memory_info().rss < 700 << 20, name


def test_compressed_requests_are_assigned_and_served_by_the_treatment(upstream: Upstream, collector: Start) -> None:
    """Who asks stands in the body; the treatment gets it in the clear, translated."""
    control, treatment = upstream(echo), upstream(echo)
    running = collector(
        control.url, treatment.url, treatment_provider="anthropic", mode="ab", experiment="treatment_percent = 50\n"
    )
    codings = [*CODINGS][:6]
    for number in range(24):
        coding = codings[number % 6]
        body = CODINGS[coding](chat_request("hi", user=f"user-{number // 6}"))
        answer = exchange(
            running.port, post("/v1/chat/completions", body, headers=b"Content-Encoding: %b\r\n" % coding.encode())
        )
        assert b'"hello"' in answer
    assert control.received
    assert treatment.received
    assert len(control.received) + len(treatment.received) == 24
    assert len(treatment.received) % 6 == 0, "a user is in one arm whatever the coding"
    assert set(paths(treatment)) == {"/v1/messages"}
    assert all(json.loads(request.body)["messages"][0]["content"] for request in treatment.received)
    assert {request.header("content-encoding") for request in control.received} == {
        coding.encode() for coding in codings
    }
    eventually(lambda: len(running.requests()) == 24)
    assert {record.unit_source for record in running.requests().values()} == {"body:user"}


def test_a_compressed_request_that_is_written_into_goes_out_in_the_clear(upstream: Upstream, collector: Start) -> None:
    control = upstream(echo)
    running = collector(control.url, None, arm='model = "gpt-4o-mini"\nrewrite = true\n')
    body = zstandard.compress(chat_request("hi"))
    exchange(running.port, post("/v1/chat/completions", body, headers=b"Content-Encoding: zstd\r\n"))
    (sent,) = control.received
    assert sent.header("content-encoding") is None
    assert json.loads(sent.body)["model"] == "gpt-4o-mini"
    broken = b"\x28\xb5\x2f\xfd broken"
    exchange(running.port, post("/v1/chat/completions", broken, headers=b"Content-Encoding: zstd\r\n"))
    assert control.received[-1].body == broken
    assert control.received[-1].header("content-encoding") == b"zstd"


# --- websockets

HANDSHAKE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
)


@pytest.mark.serial
def test_websockets_are_refused_at_once(upstream: Upstream, collector: Start) -> None:
    """Codex (Responses over a WebSocket) falls back to HTTP at once on 426 alone."""
    control = upstream(echo)
    running = collector(control.url, None)
    for target, upgrade in (
        (b"/v1/realtime?model=gpt-realtime", HANDSHAKE),
        (b"/v1/responses", HANDSHAKE),
        (b"/v1/responses", HANDSHAKE),
        (b"/v1/live", HANDSHAKE.replace(b"Upgrade: websocket", b"upgrade: WebSocket")),
    ):
        started = time.monotonic()
        request = b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (target, upgrade)
        head, _, body = exchange(running.port, request).partition(b"\r\n\r\n")
        assert time.monotonic() - started < 5
        assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
        assert re.search(rb"\r\nUpgrade: ", head), "RFC 9110 15.5.22"
        assert "WebSockets" in json.loads(body)["error"]["message"]
    # Java's HttpClient offers h2c with every request over plain HTTP; RFC 9110 7.8 lets a server ignore it.
    assert control.received == []
    offer = b"Upgrade: h2c\r\nConnection: close, Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    body = chat_request()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: %d\r\n\r\n%b" % (
        offer,
        len(body),
        body,
    )
    assert exchange(running.port, request).startswith(b"HTTP/1.1 200 ")
    assert control.received[0].header("upgrade") is None
    running.stop()
    assert "".join(running.lines).count("was refused with 426") == 3


# --- ready


READY = """
[experiment]
name = "t"
mode = "{mode}"
{share}
[arms.control]
provider = "openai"
base_url = "{control}"
[arms.treatment]
provider = "openai"
base_url = "{treatment}"
model = "m"
[collector]
workers = 2
"""
SHARES = {
    "shadow": "",
    "ab": "treatment_percent = 100",
    "canary": "[canary]\nguardrails = { error_rate = 0.9 }\nstages = [{ percentage = 100, duration_hours = 1 }]",
}


def ask(port: int, path: str, body: bytes | None = None) -> bytes:
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    length = "" if body is None else f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return exchange(port, f"{head}{length}\r\n".encode() + (body or b""))


@pytest.mark.uncompiled
@pytest.mark.timeout(280)
@pytest.mark.parametrize("mode", list(SHARES))
def test_ready_means_that_every_process_runs(mode: str, upstream: Upstream, tmp_path: Path) -> None:
    """Asked from the first moment on: never ready while health still misses a process, or while the arm that the
    configuration names does not serve. The second start finds the files of the first one."""
    control, treatment = upstream(echo), upstream(echo)
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    (tmp_path / "evalpipe.toml").write_text(
        READY.format(mode=mode, share=SHARES[mode], control=control.url, treatment=treatment.url)
    )
    states: list[int] = []
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-m", "evalpipe", "collect", "--port", str(port)],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "EVALPIPE_DATA": str(tmp_path / "data")},
        ) as process:
            deadline = time.monotonic() + 100
            status = 0
            while status != 200 and time.monotonic() < deadline:
                try:
                    ready = ask(port, "/_evalpipe/ready")
                except OSError:
                    time.sleep(0.005)  # it does not listen yet
                    continue
                status = int(ready[9:12])
                states.append(status)
            state = ask(port, "/_evalpipe/health")
            answer = ask(port, "/v1/chat/completions", json.dumps({"model": "m", "messages": []}).encode())
            process.terminate()
            assert process.wait(30) == 0
        assert json.loads(state.partition(b"\r\n\r\n")[2])["status"] == "ok", state
        arm = [line for line in answer.split(b"\r\n") if line.lower().startswith(b"x-evalpipe-arm:")]
        assert arm == ([] if mode == "shadow" else [b"x-evalpipe-arm: treatment"])
    assert states.count(200) == 2
    assert set(states) <= {200, 503}


@pytest.mark.uncompiled
def test_a_canary_whose_controller_cannot_run_is_ready_and_degraded(
    upstream: Upstream, collector: Start, tmp_path: Path
) -> None:
    """A folder is where the controller's lock should be. Users are served all the same, by control, and health reports it."""
    control, treatment = upstream(echo), upstream(echo)
    root = tmp_path / "locked"
    (root / "data" / "canary" / "test.controller.lock").mkdir(parents=True)
    running = collector(control.url, treatment.url, root=root, mode="canary", collector=SHARES["canary"])
    assert ask(running.port, "/_evalpipe/ready").startswith(b"HTTP/1.1 200 ")
    health = json.loads(ask(running.port, "/_evalpipe/health").partition(b"\r\n\r\n")[2])
    assert health["reasons"] == ["the canary's controller is not running: the guardrails are not evaluated"]
    answer = ask(running.port, "/v1/chat/completions", chat_request())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"x-evalpipe-arm: control" in answer
