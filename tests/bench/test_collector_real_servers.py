# ruff: noqa: E402 - the harness lies beside the fast tests
"""Servers nobody here wrote, behind the collector: llama.cpp as both arms (OpenAI and Anthropic endpoints, streamed) and the
LiteLLM proxy as an upstream. `EVALPIPE_LLAMA` names a Python that has `evalpipe[local]`; `BENCH_LITELLM` the litellm program.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import anthropic
import openai
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "collector"))

from collector_harness import RawUpstream, Received, chat_answer, chat_stream, chunked, plain, start_collector


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, seconds: float, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urlopen(url, timeout=5).close()
        except (URLError, OSError) as error:
            if getattr(error, "code", None):  # it answers, if only with an error
                return
            time.sleep(0.3)
        else:
            return
    pytest.fail(f"{url} did not come up (exit code {process.poll()}):\n{log.read_text('utf-8', 'replace')[-2000:]}")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a llama.cpp server with a small real model."""
    running = os.environ.get("EVALPIPE_LLAMA_URL")
    if running:
        yield running
        return
    python = os.environ.get("EVALPIPE_LLAMA", sys.executable)
    if subprocess.run([python, "-c", "import xllamacpp"], capture_output=True).returncode:
        pytest.skip("no xllamacpp: pip install 'evalpipe[local]', or name a Python that has it in EVALPIPE_LLAMA")
    port = _free_port()
    command = [python, "-m", "evalpipe.sim.local", "smollm2-135m-instruct", "--port", str(port)]
    log = tmp_path_factory.mktemp("llama") / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
    try:
        _wait(f"http://127.0.0.1:{port}/health", 240, process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_llama_cpp_is_both_arms_streamed(llama: str, tmp_path: Path) -> None:
    running = start_collector(tmp_path, llama + "/v1", llama + "/v1", treatment_arm="params = { max_tokens = 8 }")
    options = {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 12,
        "temperature": 0,
        "seed": 1,
    }
    client = openai.OpenAI(base_url=running.url + "/v1", api_key="sk-x", max_retries=0, timeout=120)
    direct = openai.OpenAI(base_url=llama + "/v1", api_key="sk-x", max_retries=0, timeout=120)

    def streamed(which: openai.OpenAI) -> str:
        chunks = which.chat.completions.create(**options, stream=True)  # type: ignore[call-overload]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    messages = anthropic.Anthropic(base_url=running.url, api_key="sk-x", max_retries=0, timeout=120)

    def asked_in_messages() -> str:
        said: list[anthropic.types.Message] = []
        for _ in range(8):  # this server leaves a stream's message_start out now and then (1 in 12, asked directly)
            with (
                messages.messages.stream(
                    model="m", max_tokens=12, messages=[{"role": "user", "content": "Say hello."}]
                ) as stream,
                contextlib.suppress(AssertionError),
            ):
                said.append(stream.get_final_message())
            if said:
                break
        return "".join(block.text for block in said[0].content if block.type == "text")

    try:
        text = streamed(client)
        assert text and text == streamed(direct)
        assert asked_in_messages()
    finally:
        client.close(), direct.close(), messages.close()
        code = running.stop()
    assert code == 0
    served, shadow = running.responses(), running.responses("shadow")
    assert {r.endpoint for r in served.values()} == {"chat.completions", "messages"}
    assert all(r.ended == "complete" and r.status == 200 and r.marks for r in served.values())
    assert shadow.keys() == served.keys() and all(r.ended == "complete" and r.status == 200 for r in shadow.values())
    assert {f.status for f in running.fates().values()} == {"sampled"}


def test_litellm_proxy_is_an_upstream(tmp_path: Path) -> None:
    program = os.environ.get("BENCH_LITELLM")
    if not program:
        pytest.skip("no LiteLLM proxy: name its program in BENCH_LITELLM")
    words = ["through", " ", "litellm"]

    def answer(request: Received) -> list[bytes]:
        streamed = json.loads(request.body or b"{}").get("stream")
        return chunked(chat_stream(words)) if streamed else [plain(chat_answer("".join(words)))]

    server = RawUpstream(answer)
    port = _free_port()
    config = tmp_path / "litellm.yaml"
    arm = {"model": "openai/gpt-4o", "api_base": server.url + "/v1", "api_key": "sk-x"}
    # Without a master key the proxy refuses to start.
    key = "sk-master-of-this-test"
    settings = {"master_key": key}
    config.write_text(
        json.dumps({"model_list": [{"model_name": "gpt-4o", "litellm_params": arm}], "general_settings": settings})
    )
    log = tmp_path / "litellm.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=out,
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # no price list from the network
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health/liveliness", 240, process, log)
        running = start_collector(tmp_path / "w", f"http://127.0.0.1:{port}", provider="litellm")
        client = openai.OpenAI(base_url=running.url + "/v1", api_key=key, max_retries=0, timeout=60)
        asked: Any = [{"role": "user", "content": "hi"}]
        for _ in range(3):
            whole = client.chat.completions.create(model="gpt-4o", messages=asked)
            assert whole.choices[0].message.content == "".join(words)
            chunks = client.chat.completions.create(model="gpt-4o", messages=asked, stream=True)
            told = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(told) == "".join(words)
        client.close()
        assert running.stop() == 0
        records = list(running.responses().values())
        assert len(records) == 6
        assert {r.status for r in records} == {200}
        # The SDK hangs up at [DONE], which this server sends some time before the end of its chunked body.
        for record in records:
            hung_up = record.ended == "client_closed" and record.body.data.endswith(b"data: [DONE]\n\n")
            assert record.ended == "complete" or hung_up, (record.ended, record.body.data[-40:])
    finally:
        process.terminate()
        process.wait(30)
        server.close()
