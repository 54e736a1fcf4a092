"""The simulated provider as a server: corpus, ledger, configuration while it runs, restarts, malformed input, the command."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.cli.sim import read_faults, read_judge, read_limits
from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.providers.pricing import Price
from evalpipe.providers.registry import read_answer
from evalpipe.sim.app import Simulator, start_sim
from evalpipe.sim.settings import Limits, SimSettings


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with start_sim(SimSettings(speed=100)) as running:
        yield running


def post(sim: Simulator, path: str, document: Any, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=10)
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    try:
        connection.request("POST", path, body, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def chat(sim: Simulator, model: str, *messages: dict[str, Any], **more: Any) -> tuple[int, dict[str, Any]]:
    status, body = post(sim, "/v1/chat/completions", {"model": model, "messages": list(messages), **more})
    document: dict[str, Any] = json.loads(body)
    return status, document


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_corpus_answers_whatever_the_dialect_and_spacing(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    conversation = [{"role": "system", "content": "Be brief."}, user("Hello  there")]
    call = {"id": "c1", "name": "f", "arguments": {"x": 1}}
    rows = [
        {"model": "a", "messages": conversation, "text": "Hi from a", "finish_reason": "length", "input_tokens": 9,
         "output_tokens": 4, "latency_ms": 5, "ttft_ms": 1},
        {"model": "*", "messages": conversation, "text": "Hi from anybody"},
        {"model": "a", "prompt": "call", "text": None, "tool_calls": [call], "finish_reason": "tool_calls"},
        {"prompt": "p", "response_a": "from A", "response_b": "from B", "model_a": "A", "model_b": "B"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with start_sim(SimSettings(corpus=path)) as sim:
        _, answer = chat(sim, "a", {"role": "developer", "content": "Be\nbrief."}, user("Hello there"))
        assert answer["choices"][0]["message"]["content"] == "Hi from a"
        assert answer["choices"][0]["finish_reason"] == "length"
        assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (9, 4)
        body = {"model": "b", "max_tokens": 99, "system": "Be brief.", "messages": [user("Hello there")]}
        assert json.loads(post(sim, "/v1/messages", body)[1])["content"][0]["text"] == "Hi from anybody"
        _, called = chat(sim, "a", user("call"))
        assert called["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x":1}'}
        assert sim.ledger()["by_source"] == {"corpus": 3}
        chat(sim, "a", user("never recorded"))
        assert sim.ledger()["by_source"]["made_up"] == 1
        assert [chat(sim, model, user("p"))[1]["choices"][0]["message"]["content"] for model in "AB"] == [
            "from A",
            "from B",
        ]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"model": "m"}', r"corpus.jsonl:1: neither"), ('\n{"prompt": "p"}', r":2: no .model"), ("{", ":1:")],
)
def test_a_broken_corpus_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=message):
        start_sim(SimSettings(corpus=path))
    with pytest.raises(ConfigError, match="cannot read"):
        start_sim(SimSettings(corpus=tmp_path / "none"))


def test_made_up_answers_are_the_same_for_the_same_request(sim: Simulator) -> None:
    first, second, other = (
        chat(sim, "m", user(text))[1]["choices"][0]["message"]["content"] for text in ("x", "x", "y")
    )
    assert first == second != other
    status, stream = post(sim, "/v1/chat/completions", {"model": "m", "messages": [user("x")], "stream": True})
    answer = read_answer("chat.completions", status, {"content-type": "text/event-stream"}, stream)
    assert answer.text == first


def test_the_ledger_counts_and_bills() -> None:
    prices = {"m": Price(input=1.0, output=2.0)}
    with start_sim(SimSettings(speed=100, prices=prices)) as sim:
        sent = [chat(sim, "m", user(text))[1]["usage"] for text in ("a", "b", "a")]
        chat(sim, "unpriced", user("a"))
        assert chat(sim, "m")[0] == 400
        sim.configure(faults={"500": 1.0})
        chat(sim, "m", user("a"))
        ledger = sim.ledger()
        assert ledger["calls"] == 6
        assert ledger["by_kind"] == {"ok": 4, "bad_request": 1, "500": 1}
        billed = ledger["by_model"]["m"]
        expected = sum(usage["prompt_tokens"] + 2 * usage["completion_tokens"] for usage in sent) / 1e6
        assert (billed["billed_calls"], billed["usd"]) == (3, pytest.approx(expected))
        assert ledger["billed"]["unpriced_calls"] == 1
        # "a" was answered twice by m.
        assert (ledger["n_questions_answered"], ledger["n_answered_again"]) == (3, 1)
        assert [call["kind"] for call in sim.ledger(calls=True)["log"]][-1] == "500"
        sim.reset()
        assert sim.ledger()["calls"] == 0


@pytest.mark.parametrize(
    ("fault", "bill", "billed"), [("cut", True, 1), ("cut", False, 0), ("refusal", False, 1), ("529", True, 0)]
)
def test_what_faults_are_billed(fault: str, bill: bool, billed: int) -> None:
    with start_sim(SimSettings(speed=100, faults={fault: 1.0}, bill_faults=bill)) as sim:
        if fault == "cut":
            with pytest.raises(http.client.IncompleteRead):
                chat(sim, "m", user("a"))
        else:
            chat(sim, "m", user("a"))
        assert sim.ledger()["billed"]["billed_calls"] == billed


@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_first_byte_and_a_stall(stream: bool) -> None:
    with start_sim(SimSettings(speed=100, slow_s=0.3, stall_s=0.3, faults={"slow": 1.0})) as sim:
        begin = time.monotonic()
        assert post(sim, "/v1/chat/completions", {"model": "m", "messages": [user("a")], "stream": stream})[0] == 200
        assert time.monotonic() - begin >= 0.3
        sim.configure(faults={"stall": 1.0})
        connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=10)
        body = json.dumps({"model": "m", "messages": [user("a")], "stream": stream})
        connection.request("POST", "/v1/chat/completions", body)
        answer = connection.getresponse()
        assert answer.status == 200
        with pytest.raises(http.client.IncompleteRead) as broken:
            answer.read()
        assert broken.value.partial
        connection.close()


def test_models_may_differ() -> None:
    with start_sim(SimSettings(speed=100)) as sim:
        sim.configure(models={"bad": {"faults": {"500": 1.0}}})
        assert [chat(sim, model, user("a"))[0] for model in ("good", "bad")] == [200, 500]
        assert sim.configure(models={"bad": {"faults": None}})["models"]["bad"]["speed"] == 1.0
        assert chat(sim, "bad", user("a"))[0] == 200


def test_faults_come_at_their_rate_and_in_the_same_order() -> None:
    kinds = []
    for _ in range(2):
        with start_sim(SimSettings(speed=1e6, faults={"500": 0.2, "empty": 0.1}, seed=3)) as sim:
            for n in range(300):
                chat(sim, "m", user(str(n)))
            kinds.append([call["kind"] for call in sim.ledger(calls=True)["log"]])
    assert kinds[0] == kinds[1]
    assert kinds[0].count("500") == pytest.approx(60, abs=28)
    assert kinds[0].count("empty") == pytest.approx(30, abs=21)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"faults": {"boom": 1}}, "unknown fault"),
        ({"faults": {"500": 2}}, "0 to 1"),
        ({"faults": {"500": 0.6, "529": 0.6}}, "add up"),
        ({"limits": {"cats": 1}}, "limits.cats"),
        ({"judge": {"behaviour": "x"}}, "checks"),
        ({"judge": {"behaviour": "replay"}}, "pairs"),
        ({"host": "x"}, "cannot be changed"),
        ({"speed": 0}, "above 0"),
        ({"speed": "x"}, "cannot be changed"),
    ],
)
def test_wrong_changes_are_refused_and_change_nothing(sim: Simulator, change: dict[str, Any], message: str) -> None:
    status, body = post(sim, "/_sim/config", change)
    assert status == 400
    assert message in json.loads(body)["error"]["message"]
    assert chat(sim, "m", user("a"))[0] == 200


def test_batches_survive_a_restart(tmp_path: Path) -> None:
    items = [{"custom_id": "x", "params": {"model": "m", "max_tokens": 5, "messages": [user("a")]}}]
    with start_sim(SimSettings(state=tmp_path, batch_seconds=0)) as sim:
        created = json.loads(post(sim, "/v1/messages/batches", {"requests": items})[1])
    with start_sim(SimSettings(state=tmp_path, batch_seconds=0)) as sim:
        connection = http.client.HTTPConnection("127.0.0.1", sim.port)
        connection.request("GET", f"/v1/messages/batches/{created['id']}")
        assert json.load(connection.getresponse())["processing_status"] == "ended"
        connection.request("GET", f"/v1/messages/batches/{created['id']}/results")
        assert json.loads(connection.getresponse().read())["result"]["type"] == "succeeded"
        connection.close()


def raw(sim: Simulator, data: bytes) -> bytes:
    """What the server sends for `data` until it closes the connection (the client closes its own side first)."""
    with socket.create_connection(("127.0.0.1", sim.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            return received
        return received


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + b"a: " + b"b" * 80_000 + b"\r\n\r\n",
    ],
)
def test_malformed_http_is_refused(sim: Simulator, data: bytes) -> None:
    answer = raw(sim, data)
    assert answer == b"" or answer.split(b" ")[1].startswith(b"4")
    assert chat(sim, "m", user("still there"))[0] == 200


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), prefix=st.sampled_from([b"", b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n"]))
def test_any_bytes_are_survived(sim: Simulator, data: bytes, prefix: bytes) -> None:
    raw(sim, prefix + data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**40) | st.sampled_from(["user", "assistant", "text", "m", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "messages", "input", "role", "content", "type", "text", "tools", "max_tokens",
                             "requests", "custom_id", "params", "tool_choice", "stream", "stop", "response_format",
                             "json_schema", "schema", "name", "properties", "enum", "items", "system"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)  # fmt: skip
PATHS = ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/messages/batches", "/v1/batches", "/_sim/config", "/x",
         "/v1/messages/count_tokens", "/v1/files"]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(PATHS), value=json_values, wrap=st.booleans())
def test_any_json_is_answered(sim: Simulator, path: str, value: Any, wrap: bool) -> None:
    if wrap:
        value = {
            "model": "m",
            "max_tokens": 5,
            "messages": value if isinstance(value, list) else [value],
            "tools": [value],
        }
    status, _ = post(sim, path, value)
    assert status in {200, 400, 404}


def test_keep_alive_pipelining_and_expect_continue(sim: Simulator) -> None:
    body = json.dumps({"model": "m", "messages": [user("a")]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", sim.port), timeout=10) as connection:
        connection.sendall((head + b"\r\n" + body) * 3)
        received = b""
        while received.count(b'"finish_reason"') < 3:
            received += connection.recv(65536)
        assert received.count(b"HTTP/1.1 200") == 3
        connection.sendall(head + b"expect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_the_port_in_use_is_one_line(sim: Simulator) -> None:
    with pytest.raises(EvalpipeError, match=f"cannot listen on 127.0.0.1:{sim.port}"):
        start_sim(SimSettings(port=sim.port))


def test_words_of_the_command() -> None:
    assert read_limits("requests=10,output=5") == Limits(requests=10, output_tokens=5)
    assert read_faults("429=0.05, cut=0.1") == {"429": 0.05, "cut": 0.1}
    assert read_judge("accuracy=0.7,seat_bias=0.1", None).behaviour == "stated"
    assert read_judge("replay,judge=gpt-4/base", Path("p")).judge == "gpt-4/base"
    for wrong in (lambda: read_limits("cats=1"), lambda: read_limits("requests=0"), lambda: read_faults("429"),
                  lambda: read_judge("accuracy=2", None), lambda: read_judge("wisdom=1", None)):  # fmt: skip
        with pytest.raises(ConfigError):
            wrong()


def test_the_command_serves_and_ends_on_sigterm() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "evalpipe", "sim", "--port", "0", "--speed", "100"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "", "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        running = Simulator("127.0.0.1", int(line.rsplit(":", 1)[1]), lambda: None)
        assert chat(running, "m", user("a"))[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_wrong_query_values_are_refused(sim: Simulator) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=10)
    for path in ("/v1/messages/batches?limit=x", "/v1/batches?limit=x"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 400
    connection.close()


def test_many_at_once() -> None:
    with start_sim(SimSettings(ttft_ms=50, tokens_per_second=1e6)) as sim:
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(chat(sim, "m", user("a"))[0])) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 100
        assert sim.ledger()["by_kind"] == {"ok": 100}


def test_a_compressed_request_is_answered(sim: Simulator) -> None:
    question = {"model": "m", "messages": [{"role": "user", "content": "What is a lease?"}]}
    packed = gzip.compress(json.dumps(question).encode())
    status, answer = post(sim, "/v1/chat/completions", packed, **{"content-encoding": "gzip"})
    assert (status, json.loads(answer)["object"]) == (200, "chat.completion")
    status, answer = post(sim, "/v1/chat/completions", b"plain", **{"content-encoding": "gzip"})
    assert (status, "not gzip" in json.loads(answer)["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions/", "/openai/deployments/m/chat/completions?api-version=2024-10-21"]
)
def test_the_paths_of_other_vendors_are_answered(sim: Simulator, path: str) -> None:
    question = {"model": "m", "messages": [{"role": "user", "content": "What is a lease?"}]}
    status, answer = post(sim, path, question)
    assert (status, json.loads(answer)["object"]) == (200, "chat.completion")
