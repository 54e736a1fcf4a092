"""The official SDKs against the simulated providers: sync and async, streams, helpers, tools, images, batches, errors."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from evalpipe.sim.app import Simulator, start_sim
from evalpipe.sim.settings import Limits, SimSettings

HI: Any = [{"role": "user", "content": "hi"}]
CLAUDE = "claude-haiku-4-5"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": WEATHER}} for name in ("get_weather", "get_time")
]
CLAUDE_TOOLS: Any = [{"name": name, "input_schema": WEATHER} for name in ("get_weather", "get_time")]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with start_sim(SimSettings(speed=20, batch_seconds=0.0)) as running:
        yield running


@pytest.fixture(scope="module")
def gpt(sim: Simulator) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{sim.base_url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(sim: Simulator) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=sim.base_url, api_key="k", max_retries=0) as client:
        yield client


def test_chat_plain_and_streamed_say_the_same(gpt: openai.OpenAI) -> None:
    plain = gpt.chat.completions.create(model="gpt-4o", messages=HI)
    chunks = list(
        gpt.chat.completions.create(model="gpt-4o", messages=HI, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert [chunk.choices == [] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage == plain.usage
    assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason == "stop"
    without = list(gpt.chat.completions.create(model="gpt-4o", messages=HI, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in without)


def test_messages_plain_and_streamed_say_the_same(claude: anthropic.Anthropic) -> None:
    plain = claude.messages.create(model=CLAUDE, max_tokens=500, messages=HI)
    with claude.messages.stream(model=CLAUDE, max_tokens=500, messages=HI) as stream:
        kinds = [event.type for event in stream if event.type not in {"text", "input_json"}]
        final = stream.get_final_message()
    assert [block.type for block in plain.content] == ["text"]
    assert final.content[0].text == plain.content[0].text  # type: ignore[union-attr]
    assert (final.usage.input_tokens, final.usage.output_tokens) == (
        plain.usage.input_tokens,
        plain.usage.output_tokens,
    )
    assert final.stop_reason == plain.stop_reason == "end_turn"
    # The order of docs/wire.md.
    assert kinds[0] == "message_start"
    assert kinds[1:3] == ["content_block_start", "content_block_delta"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_responses_plain_and_streamed_say_the_same(gpt: openai.OpenAI) -> None:
    plain = gpt.responses.create(model="gpt-5", input="hi")
    with gpt.responses.stream(model="gpt-5", input="hi") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == plain.output_text != ""
    assert final.usage == plain.usage
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"


def test_parallel_tool_calls_and_their_results(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    ask: Any = [{"role": "user", "content": "Use get_weather and get_time for Rome."}]
    chat = gpt.chat.completions.create(model="gpt-4o", messages=ask, tools=CHAT_TOOLS).choices[0]
    assert chat.finish_reason == "tool_calls"
    calls: Any = chat.message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather", "get_time"]
    assert all(isinstance(json.loads(call.function.arguments)["city"], str) for call in calls)
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "fine"} for call in calls]
    answered = gpt.chat.completions.create(
        model="gpt-4o", messages=[*ask, chat.message.model_dump(exclude_none=True), *results], tools=CHAT_TOOLS
    )
    assert answered.choices[0].message.content

    with claude.messages.stream(model=CLAUDE, max_tokens=500, messages=ask, tools=CLAUDE_TOOLS) as stream:
        message = stream.get_final_message()
    blocks: Any = message.content
    assert [(block.type, block.name) for block in blocks] == [("tool_use", "get_weather"), ("tool_use", "get_time")]
    assert all(isinstance(block.input["city"], str) for block in blocks)
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": "fine"} for block in blocks]
    turns: Any = [*ask, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    final = claude.messages.create(model=CLAUDE, max_tokens=500, messages=turns, tools=CLAUDE_TOOLS)
    assert final.stop_reason == "end_turn"


def test_tool_choice(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    none = gpt.chat.completions.create(model="gpt-4o", messages=HI, tools=CHAT_TOOLS, tool_choice="none")
    assert none.choices[0].message.tool_calls is None
    named = claude.messages.create(
        model=CLAUDE, max_tokens=500, messages=HI, tools=CLAUDE_TOOLS, tool_choice={"type": "tool", "name": "get_time"}
    )
    assert named.content[0].name == "get_time"  # type: ignore[union-attr]


def test_images_count_as_input(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    url = f"data:image/png;base64,{PNG}"
    parts: Any = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": url}}]
    seen = gpt.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": parts}])
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    blocks: Any = [{"type": "text", "text": "hi"}, {"type": "image", "source": source}]
    looked = claude.messages.create(model=CLAUDE, max_tokens=500, messages=[{"role": "user", "content": blocks}])
    assert seen.usage is not None
    assert seen.usage.prompt_tokens == looked.usage.input_tokens > 500


def test_structured_output(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    class City(BaseModel):
        name: str
        population: int

    parsed = gpt.chat.completions.parse(model="gpt-4o", messages=HI, response_format=City).choices[0].message.parsed
    assert isinstance(parsed, City)
    reply = claude.messages.create(
        model=CLAUDE, max_tokens=500, messages=HI, output_config={"format": {"type": "json_schema", "schema": WEATHER}}
    )
    assert list(json.loads(reply.content[0].text)) == ["city"]  # type: ignore[union-attr]


def test_max_tokens_and_stop_sequences(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    cut = gpt.chat.completions.create(model="gpt-4o", messages=HI, max_completion_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 3
    full = claude.messages.create(model=CLAUDE, max_tokens=500, messages=HI).content[0].text  # type: ignore[union-attr]
    word = full.split()[3]
    stopped = claude.messages.create(model=CLAUDE, max_tokens=500, messages=HI, stop_sequences=[word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    assert stopped.content[0].text == full[: full.index(word)]  # type: ignore[union-attr]
    incomplete = gpt.responses.create(model="gpt-5", input="hi", max_output_tokens=2)
    assert incomplete.status == "incomplete"


def test_async_clients(sim: Simulator) -> None:
    async def both() -> tuple[int, str]:
        async with (
            openai.AsyncOpenAI(base_url=f"{sim.base_url}/v1", api_key="k") as gpt,
            anthropic.AsyncAnthropic(base_url=sim.base_url, api_key="k") as claude,
        ):
            stream = await gpt.chat.completions.create(model="gpt-4o", messages=HI, stream=True)
            n = len([chunk async for chunk in stream])
            async with claude.messages.stream(model=CLAUDE, max_tokens=500, messages=HI) as messages:
                text = await messages.get_final_text()
            return n, text

    n, text = asyncio.run(both())
    assert n > 5
    assert text


def test_the_vendors_refusals(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        claude.messages.create(model="claude-opus-4-8", max_tokens=5, messages=HI, extra_body={"temperature": 0})
    with pytest.raises(anthropic.BadRequestError, match="prefill"):
        claude.messages.create(
            model="claude-opus-4-8", max_tokens=5, messages=[*HI, {"role": "assistant", "content": "{"}]
        )
    with pytest.raises(openai.BadRequestError, match="max_completion_tokens"):
        gpt.chat.completions.create(model="gpt-5", messages=HI, max_tokens=5)
    with pytest.raises(openai.NotFoundError):
        gpt.embeddings.create(model="x", input="y")


def test_token_counts_and_models(gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model=CLAUDE, messages=HI).input_tokens
    assert counted == claude.messages.create(model=CLAUDE, max_tokens=500, messages=HI).usage.input_tokens
    # Without a corpus any name is answered: the list still holds one that a client can pick.
    assert [one.id for one in gpt.models.list()] == [one.id for one in claude.models.list()] == ["evalpipe-sim"]
    assert gpt.chat.completions.create(model="evalpipe-sim", messages=HI).choices[0].message.content


def test_prompt_caching(claude: anthropic.Anthropic) -> None:
    system: Any = [{"type": "text", "text": "Rules. " * 3000, "cache_control": {"type": "ephemeral"}}]
    first, second = (
        claude.messages.create(model=CLAUDE, max_tokens=5, messages=HI, system=system).usage for _ in range(2)
    )
    assert first.cache_creation_input_tokens == second.cache_read_input_tokens > 4096
    assert first.cache_read_input_tokens == second.cache_creation_input_tokens == 0
    assert second.input_tokens < 50


def test_cached_tokens_count_against_no_limit() -> None:
    system: Any = [{"type": "text", "text": "Rules. " * 3000, "cache_control": {"type": "ephemeral"}}]
    with (
        start_sim(SimSettings(speed=1000, limits=Limits(input_tokens=60_000))) as limited,
        anthropic.Anthropic(base_url=limited.base_url, api_key="k", max_retries=0) as client,
    ):
        # The bucket holds 10,000: one writing of the prefix, and then any number of readings.
        for _ in range(8):
            client.messages.create(model=CLAUDE, max_tokens=5, messages=HI, system=system)


def test_message_batches(sim: Simulator, claude: anthropic.Anthropic) -> None:
    requests: Any = [
        {"custom_id": f"r-{n}", "params": {"model": CLAUDE, "max_tokens": 400, "messages": HI}} for n in range(5)
    ]
    requests.append({"custom_id": "bad", "params": {"model": CLAUDE, "messages": HI}})
    before = sim.ledger()["billed"]["usd"]
    created = claude.messages.batches.create(requests=requests)
    assert created.processing_status == "in_progress"
    ended = claude.messages.batches.retrieve(created.id)
    assert ended.processing_status == "ended"
    assert (ended.request_counts.succeeded, ended.request_counts.errored) == (5, 1)
    results = {row.custom_id: row.result for row in claude.messages.batches.results(created.id)}
    assert {name for name, result in results.items() if result.type == "succeeded"} == {f"r-{n}" for n in range(5)}
    usage = results["r-0"].message.usage  # type: ignore[union-attr]
    # Half of $1 in and $5 out a million, five times.
    expected = 5 * (usage.input_tokens * 1 + usage.output_tokens * 5) / 2e6
    assert sim.ledger()["billed"]["usd"] - before == pytest.approx(expected)
    assert claude.messages.batches.list().data[0].id == created.id
    again = claude.messages.batches.create(requests=requests[:1])
    assert [batch.id for batch in claude.messages.batches.list(limit=1)] == [again.id, created.id]
    with pytest.raises(anthropic.BadRequestError, match="custom_id"):
        claude.messages.batches.create(requests=[requests[0], requests[0]])


def test_openai_batches(gpt: openai.OpenAI) -> None:
    rows = [
        {
            "custom_id": f"r-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "gpt-4o", "messages": HI},
        }
        for n in range(3)
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = gpt.files.create(file=("in.jsonl", content), purpose="batch")
    created = gpt.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    done = gpt.batches.retrieve(created.id)
    assert done.status == "completed"
    assert done.request_counts is not None
    assert done.request_counts.completed == 3
    assert done.output_file_id is not None
    lines = [json.loads(line) for line in gpt.files.content(done.output_file_id).text.splitlines()]
    assert {line["custom_id"] for line in lines} == {"r-0", "r-1", "r-2"}
    assert all(line["response"]["body"]["choices"][0]["message"]["content"] for line in lines)
    assert [batch.id for batch in gpt.batches.list()][0] == created.id  # noqa: RUF015


@pytest.mark.parametrize(("fault", "status"), [("429", 429), ("500", 500), ("529", 529), ("error_event", 500)])
def test_error_faults_raise_the_sdks_errors(
    sim: Simulator, gpt: openai.OpenAI, claude: anthropic.Anthropic, fault: str, status: int
) -> None:
    sim.configure(faults={fault: 1.0})
    try:
        with pytest.raises(anthropic.APIStatusError) as theirs:
            claude.messages.create(model=CLAUDE, max_tokens=5, messages=HI)
        with pytest.raises(openai.APIStatusError) as ours:
            gpt.chat.completions.create(model="gpt-4o", messages=HI)
    finally:
        sim.configure(faults={})
    assert (theirs.value.status_code, ours.value.status_code) == (status, status)
    if fault == "429":
        assert int(theirs.value.response.headers["retry-after"]) >= 1
    assert theirs.value.response.headers["x-simulated-by"] == "evalpipe-sim"


def test_stream_faults(sim: Simulator, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    try:
        sim.configure(faults={"error_event": 1.0})
        with (
            pytest.raises(anthropic.APIStatusError, match="Overloaded"),
            claude.messages.stream(model=CLAUDE, max_tokens=500, messages=HI) as stream,
        ):
            stream.get_final_message()
        sim.configure(faults={"cut": 1.0})
        with pytest.raises(openai.APIConnectionError):
            list(gpt.chat.completions.create(model="gpt-4o", messages=HI, stream=True))
        sim.configure(faults={"malformed": 1.0})
        with pytest.raises((json.JSONDecodeError, openai.APIError, ValueError)):
            gpt.chat.completions.create(model="gpt-4o", messages=HI)
        sim.configure(faults={"refusal": 1.0})
        assert claude.messages.create(model=CLAUDE, max_tokens=500, messages=HI).stop_reason == "refusal"
        assert gpt.chat.completions.create(model="gpt-4o", messages=HI).choices[0].message.refusal
        sim.configure(faults={"empty": 1.0})
        assert claude.messages.create(model=CLAUDE, max_tokens=500, messages=HI).content == []
        sim.configure(faults={"max_tokens": 1.0})
        assert gpt.chat.completions.create(model="gpt-4o", messages=HI).choices[0].finish_reason == "length"
    finally:
        sim.configure(faults={})


def test_limits_with_the_vendors_headers(sim: Simulator, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    try:
        sim.configure(limits={"requests": 12, "input_tokens": 60_000})
        # A bucket holds a sixth of a minute: two requests pass at once, the third does not.
        answers = [claude.messages.with_raw_response.create(model=CLAUDE, max_tokens=5, messages=HI) for _ in range(2)]
        assert answers[0].headers["anthropic-ratelimit-requests-limit"] == "12"
        assert [answer.headers["anthropic-ratelimit-requests-remaining"] for answer in answers] == ["1", "0"]
        assert answers[0].headers["anthropic-ratelimit-input-tokens-limit"] == "60000"
        assert answers[1].headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        with pytest.raises(anthropic.RateLimitError) as refused:
            claude.messages.create(model=CLAUDE, max_tokens=5, messages=HI)
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 5
        # Each model has its own buckets; OpenAI tells its limits by other names.
        raw = gpt.chat.completions.with_raw_response.create(model="gpt-4o", messages=HI)
        assert raw.headers["x-ratelimit-limit-requests"] == "12"
        assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
    finally:
        sim.configure(limits={"requests": None, "input_tokens": None})


def test_pace_is_kept() -> None:
    with start_sim(SimSettings(ttft_ms=50, tokens_per_second=200)) as paced:
        client = openai.OpenAI(base_url=f"{paced.base_url}/v1", api_key="k")
        begin = time.monotonic()
        arrivals = []
        tokens = 0
        with client.chat.completions.create(
            model="gpt-4o", messages=HI, stream=True, stream_options={"include_usage": True}
        ) as stream:
            for chunk in stream:
                arrivals.append(time.monotonic() - begin)
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        expected = 0.05 + tokens / 200
        assert arrivals[0] >= 0.049
        # No token comes early; how late they come is the machine's business.
        assert expected * 0.95 <= arrivals[-1] <= expected + 10
        client.close()


def test_a_client_that_leaves_is_billed_for_what_was_made() -> None:
    with start_sim(SimSettings(tokens_per_second=20, limits=Limits(requests=1000))) as slow:
        client = openai.OpenAI(base_url=f"{slow.base_url}/v1", api_key="k", max_retries=0)
        stream = client.chat.completions.create(model="gpt-4o", messages=HI, stream=True)
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        stream.close()
        client.close()
        deadline = time.monotonic() + 20
        while not (log := slow.ledger(calls=True)["log"]) and time.monotonic() < deadline:
            pass
        [call] = log
        assert call["kind"] == "client_closed"
        assert call["billed"]
        assert 0 <= call["output_tokens"] < 60
