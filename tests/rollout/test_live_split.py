"""A/B through the real SDKs: the served arm may speak another dialect than the client. Real servers, workers and files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anthropic
import openai
import pytest
from live import post, records, running, served, until

from evalpipe.identity import in_treatment
from evalpipe.providers.registry import read_answer
from evalpipe.spool.format import ResponseRecord

CONTROL, TREATMENT = "gpt-4o", "claude-haiku-4-5"
CONFIG = """
[experiment]
name = "split-{control}"
mode = "ab"
treatment_percent = 50
[arms.control]
provider = "{control}"
base_url = "{sim}{control_path}"
[arms.treatment]
provider = "{treatment}"
base_url = "{sim}{treatment_path}"
model = "{model}"
api_key_env = "TREATMENT_KEY"
[collector]
port = 0
hash_units = false
"""
TOOL = {
    "name": "get_weather",
    "description": "The weather",
    "schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
FORCE = {"x-evalpipe-arm": "treatment", "x-evalpipe-token": "secret"}
FREE = {"x-evalpipe-token": "secret"}


@dataclass
class Stack:
    url: str
    sim: str
    spool: Path
    control: str

    def last(self) -> ResponseRecord:
        return [r for r in records(self.spool) if isinstance(r, ResponseRecord)][-1]

    def openai(self, headers: dict[str, str]) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="client-key", default_headers=headers, max_retries=0)

    def anthropic(self, headers: dict[str, str]) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key="client-key", default_headers=headers, max_retries=0)


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("sim") / "sim.log"
    with running(log, "sim", "--port", "0", "--ttft-ms", "1", "--tokens-per-second", "5000") as process:
        yield process.url()


@pytest.fixture(scope="module", params=["openai", "anthropic"])
def stack(request: pytest.FixtureRequest, sim: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("split")
    control = request.param
    treatment = "anthropic" if control == "openai" else "openai"
    paths = {"openai": "/v1", "anthropic": ""}
    (folder / "evalpipe.toml").write_text(
        CONFIG.format(
            control=control,
            treatment=treatment,
            sim=sim,
            control_path=paths[control],
            treatment_path=paths[treatment],
            model=TREATMENT if treatment == "anthropic" else "gpt-4o-mini",
        )
    )
    env = {"TREATMENT_KEY": "treatment-key", "EVALPIPE_TOKEN": "secret"}
    with running(folder / "collect.log", "collect", "--config", str(folder / "evalpipe.toml"), env=env) as process:
        yield Stack(process.url(), sim, folder / "data" / "spool", control)


def _said(record: ResponseRecord) -> tuple[str | None, list[dict[str, object]]]:
    """What the arm itself said, read from the bytes it sent."""
    answer = read_answer(record.endpoint, record.status, record.headers, record.body.data)
    return answer.text, [{"name": call["name"], "arguments": call["arguments"]} for call in answer.tool_calls]


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_of_the_other_vendor_in_the_clients_own_shape(stack: Stack, streamed: bool, tools: bool) -> None:
    question = [{"role": "user", "content": f"weather in Paris? {streamed} {tools}"}]
    if stack.control == "openai":
        client = stack.openai(FORCE)
        given = (
            [{"type": "function", "function": {"name": TOOL["name"], "parameters": TOOL["schema"]}}]
            if tools
            else openai.omit
        )
        if streamed:
            with client.chat.completions.stream(model=CONTROL, messages=question, tools=given) as stream:
                answer = stream.get_final_completion()
        else:
            answer = client.chat.completions.create(model=CONTROL, messages=question, tools=given)
        message = answer.choices[0].message
        text, calls = (
            message.content,
            [
                {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
                for call in message.tool_calls or []
            ],
        )
        assert answer.choices[0].finish_reason == ("tool_calls" if tools else "stop")
    else:
        client = stack.anthropic(FORCE)
        given = [{"name": TOOL["name"], "input_schema": TOOL["schema"]}] if tools else anthropic.omit
        if streamed:
            with client.messages.stream(model=TREATMENT, max_tokens=500, messages=question, tools=given) as stream:
                answer = stream.get_final_message()
        else:
            answer = client.messages.create(model=TREATMENT, max_tokens=500, messages=question, tools=given)
        text = "".join(block.text for block in answer.content if block.type == "text") or None
        calls = [{"name": block.name, "arguments": block.input} for block in answer.content if block.type == "tool_use"]
        assert answer.stop_reason == ("tool_use" if tools else "end_turn")
        assert answer.usage.output_tokens > 0
    record = until(lambda: stack.last() if stack.last().arm == "treatment" else None)
    said, called = _said(record)
    assert (text or None, calls) == (said or None, called)
    assert bool(calls) is tools and bool(text) is not tools
    assert record.endpoint == ("messages" if stack.control == "openai" else "chat.completions")
    assert record.sent is not None and record.status == 200


def test_responses_clients_too(stack: Stack) -> None:
    if stack.control != "openai":
        pytest.skip("an OpenAI client's endpoint")
    client = stack.openai(FORCE)
    answer = client.responses.create(model=CONTROL, input="tell me something", store=False)
    assert answer.output_text == _said(stack.last())[0]
    with client.responses.stream(model=CONTROL, input="tell me more", store=False) as stream:
        assert stream.get_final_response().output_text == _said(stack.last())[0]


def test_units_stay_in_their_arm_and_the_client_is_told(stack: Stack) -> None:
    openai_client, anthropic_client = stack.openai(FREE), stack.anthropic(FREE)
    for number in list(range(12)) * 2:
        unit, question = {"x-user-id": f"user-{number}"}, [{"role": "user", "content": f"{number}"}]
        if stack.control == "openai":
            raw = openai_client.chat.completions.with_raw_response.create(
                model=CONTROL, messages=question, extra_headers=unit
            )
        else:
            raw = anthropic_client.messages.with_raw_response.create(
                model=TREATMENT, max_tokens=100, messages=question, extra_headers=unit
            )
        expected = "treatment" if in_treatment(f"split-{stack.control}", f"user-{number}", 50) else "control"
        assert raw.headers["x-evalpipe-arm"] == expected
        raw.parse()
    for request, response in served(stack.spool):
        assert request.arm == response.arm
        if not request.forced and request.unit_source == "header:x-user-id":
            assert (request.arm == "treatment") is in_treatment(f"split-{stack.control}", str(request.unit_id), 50)
        assert request.percentage == 50 and request.config_fingerprint


def test_no_key_of_the_client_reaches_the_treatment(stack: Stack) -> None:
    for record in records(stack.spool):
        assert "client-key" not in str(record) and "treatment-key" not in str(record)


def test_what_cannot_be_said_to_the_treatment_is_served_by_control_outside_the_statistics(stack: Stack) -> None:
    if stack.control != "openai":
        pytest.skip("a parameter of OpenAI's")
    unit = next(f"odd-{i}" for i in range(100) if in_treatment("split-openai", f"odd-{i}", 50))
    client = stack.openai(FREE | {"x-user-id": unit})
    raw = client.chat.completions.with_raw_response.create(
        model=CONTROL, n=2, messages=[{"role": "user", "content": "two"}]
    )
    assert raw.headers["x-evalpipe-arm"] == "control"
    request, _ = next(pair for pair in served(stack.spool) if pair[0].unit_id == unit)
    assert request.forced and request.arm == "control"
    with pytest.raises(openai.BadRequestError, match="cannot be translated for the treatment"):
        stack.openai(FORCE).chat.completions.create(model=CONTROL, n=2, messages=[{"role": "user", "content": "two"}])


def test_errors_of_the_arm_are_errors_of_the_clients_sdk(stack: Stack) -> None:
    def fault(rates: dict[str, float]) -> None:
        assert post(f"{stack.sim}/_sim/config", {"faults": rates})[0] == 200

    try:
        for name, kind in (("429", "RateLimitError"), ("500", "InternalServerError")):
            fault({name: 1.0})
            if stack.control == "openai":
                with pytest.raises(getattr(openai, kind)):
                    stack.openai(FORCE).chat.completions.create(
                        model=CONTROL, messages=[{"role": "user", "content": name}]
                    )
            else:
                with pytest.raises(getattr(anthropic, kind)):
                    stack.anthropic(FORCE).messages.create(
                        model=TREATMENT, max_tokens=10, messages=[{"role": "user", "content": name}]
                    )
            assert stack.last().status == int(name)
        fault({"cut": 1.0})
        with pytest.raises((openai.OpenAIError, anthropic.AnthropicError, Exception)):
            if stack.control == "openai":
                with stack.openai(FORCE).chat.completions.stream(
                    model=CONTROL, messages=[{"role": "user", "content": "x"}]
                ) as s:
                    s.get_final_completion()
            else:
                with stack.anthropic(FORCE).messages.stream(
                    model=TREATMENT, max_tokens=50, messages=[{"role": "user", "content": "x"}]
                ) as s:
                    s.get_final_message()
        assert stack.last().ended != "complete"
    finally:
        fault({})


def test_a_tester_without_the_token_is_told(stack: Stack) -> None:
    path = "/v1/chat/completions" if stack.control == "openai" else "/v1/messages"
    status, _, body = post(stack.url + path, {"model": "m", "messages": []}, {"x-evalpipe-arm": "treatment"})
    assert status in {401, 403} and b"token" in body
    status, _, body = post(stack.url + path, {"model": "m", "messages": []}, FORCE | {"x-evalpipe-arm": "b"})
    assert status == 400 and b"control or treatment" in body
