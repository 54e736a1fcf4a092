"""Keys never rest: what providers repeat, parameters and URLs, in every form, however a stream cuts them."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import string
import time
from collections.abc import Callable
from urllib.request import Request, urlopen

import pytest
from collector_harness import (
    RawUpstream,
    Running,
    Script,
    chat_answer,
    chat_stream,
    eventually,
)
from hypothesis import given
from hypothesis import strategies as st
from key_cases import ALL, CLIENT, HELD, N_CASES, PARAM, PASSWORD, TOKEN, TREATMENT, answers, forms, left_in, send

from evalpipe.collector.known_keys import KnownKeys
from evalpipe.collector.redaction import Redactor
from evalpipe.credentials import is_credential_name, is_variable_name, secrets_in, shown_url, without_secrets
from evalpipe.spool.format import Body

START = Callable[..., Running]
UPSTREAM = Callable[[Script], RawUpstream]
PLAIN_KEY = "sk-proj-A1b2C3d4E5f6G7h8Q9zX"
ODD_KEY = 'k+/="q<&>\\ü%2F key~Zx'
KEYS = [PLAIN_KEY, "tok-canary-0123456789", "AKc/zz+QQ==7", ODD_KEY]


def holds(text: str, key: str) -> list[str]:
    """The forms of the key in a text, JSON's and a URL's escapes undone."""
    found = [name for name, form in forms(key).items() if form in text]
    try:
        decoded = json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        decoded = text
    return found + [name for name, form in forms(key).items() if json.dumps(form, ensure_ascii=False)[1:-1] in decoded]


@pytest.mark.parametrize("key", KEYS)
def test_every_form_is_found_and_taken_out(key: str) -> None:
    redactor, known = Redactor((), [key]), KnownKeys([key], [])
    for name, form in forms(key).items():
        for document in (
            json.dumps({"error": {"message": f"Incorrect key: {form}. See x"}}),
            json.dumps({"error": {"message": f"Incorrect key: {form}. See x"}}, ensure_ascii=False),
            json.dumps({form: ["x"]}),
            f"<html>Incorrect key: {form} </html>",
            json.dumps({"error": f"?key={form}&x=1"}).replace("/", "\\/").replace("+", "\\u002b"),
        ):
            data = document.encode()
            assert known.may_be_in_answer(data, streamed=False, failed=True), (name, document)
            assert known.may_be_in_answer(data, streamed=False, failed=False), (name, document)
            written = redactor.body(Body.of(data), None).text
            assert written is not None and not holds(written, key), (name, document, written)
            assert "[key]" in written


@given(cuts=st.lists(st.integers(1, 60), max_size=30), key=st.sampled_from(KEYS))
def test_a_stream_however_cut_holds_no_key(cuts: list[int], key: str) -> None:
    text = f"well, the key is {key}, that is all"
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    words = [text[a:b] for a, b in itertools.pairwise(places)]
    anthropic = [
        b"event: content_block_delta\ndata: "
        + json.dumps(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        ).encode()
        + b"\n\n"
        for word in words
    ]
    responses = [
        b"data: " + json.dumps({"type": "response.output_text.delta", "item_id": "m", "delta": word}).encode() + b"\n\n"
        for word in words
    ]
    read: dict[str, Callable[[dict[str, object]], str]] = {
        "chat": lambda event: event["choices"][0]["delta"]["content"],  # type: ignore[index,call-overload,no-any-return]
        "messages": lambda event: event["delta"]["text"],  # type: ignore[index,call-overload,no-any-return]
        "responses": lambda event: event["delta"],  # type: ignore[return-value]
    }
    for name, events in (("chat", chat_stream(words)), ("messages", anthropic), ("responses", responses)):
        stream = b"".join(events)
        assert KnownKeys([key], []).may_be_in_answer(stream, streamed=True, failed=False)
        written = Redactor((), [key]).body(Body.of(stream), None).text
        assert written is not None
        values = [json.loads(line[6:]) for line in written.splitlines() if line.startswith("data: {")]
        assert "".join(read[name](value) for value in values) == "well, the key is [key], that is all"


def test_answers_without_a_key_are_not_even_looked_into() -> None:
    """The needles are of no use where they always hit."""
    known = KnownKeys(KEYS[:3], ["sk-client-key-99"])
    for text in ("hello " * 300, "Paris is the capital of France. " * 60):
        assert not known.may_be_in_answer(chat_answer(text), streamed=False, failed=False)
        assert not known.may_be_in_answer(b"".join(chat_stream(text.split())), streamed=True, failed=False)
    # OpenAI pads each event with random letters and digits: every character of a key stands in a long stream.
    draw, alphabet = random.Random(3), string.ascii_letters + string.digits + "-_"
    keys = ["sk-" + "".join(draw.choices(alphabet, k=length)) for length in (20, 48, 160)]
    known = KnownKeys(keys[:2], keys[2:])
    event = '{"id":"chatcmpl-CfXQ8zJk21","choices":[{"delta":{"content":" word"}}],"obfuscation":"%s"}'
    padded = ["data: " + event % "".join(draw.choices(alphabet, k=8)) + "\n\n" for _ in range(400)]
    assert not known.may_be_in_answer("".join(padded).encode(), streamed=True, failed=False)
    for n in (1, 2, 5, 30):  # and the same stream with a key in it, cut into pieces of n characters
        for key in keys:
            pieces = [key[at : at + n] for at in range(0, len(key), n)]
            said = ["data: " + event.replace(" word", piece) % "XxYy0189" + "\n\n" for piece in pieces]
            stream = "".join([*padded[:200], *said, *padded[200:]]).encode()
            assert known.may_be_in_answer(stream, streamed=True, failed=False), (n, key)
    began = time.process_time()
    for _ in range(1000):
        known.may_be_in_answer(chat_answer("hello " * 300), streamed=False, failed=False)
    assert time.process_time() - began < 1


def test_what_names_and_addresses_say() -> None:
    secret = [
        "api_key",
        "X-API-Key",
        "apiKey",
        "extra_api_key",
        "Authorization",
        "aws_secret_access_key",
        "azure_ad_token",
    ]
    secret += ["client_secret", "vertex_credentials", "x-auth-token", "PASSWORD", "accessToken", "cookie"]
    harmless = [
        "max_tokens",
        "max_completion_tokens",
        "model",
        "prompt_cache_key",
        "Idempotency-Key",
        "tokenizer",
        "top_k",
    ]
    harmless += ["logit_bias", "keywords", "author", "response_format", "monkey", "stop_token"]
    assert [name for name in secret if not is_credential_name(name)] == []
    assert [name for name in harmless if is_credential_name(name)] == []
    params = {
        "api_key": "in-params-1",
        "max_tokens": 100,
        "extra_headers": {"Authorization": "Bearer in-params-2", "X-Team": "support"},
        "vertex_credentials": json.dumps({"private_key": "in-params-3", "client_email": "a@b"}),
        "api_base": "https://user:in-params-4@host/v1?sig=in-params-5&x=1",
        "fallbacks": [{"api_key": "in-params-6"}],
    }
    found = set(secrets_in(params))
    assert {f"in-params-{n}" for n in range(1, 7)} <= found and not {"support", "100", "a@b"} & found
    shown = json.dumps(without_secrets(params))
    assert (
        "in-params" not in shown
        and "support" in shown
        and "100" in shown
        and "https://host/v1?sig=redacted&x=1" in shown
    )
    assert shown_url("http://user:pass-word@h:1/v1") == "http://h:1/v1" and shown_url("https://h/v1") == "https://h/v1"
    assert is_variable_name("OPENAI_API_KEY") and is_variable_name("my_key") and is_variable_name("KEY2")
    for key in ("sk-CLIENTSECRET99", "gsk_0123456789abcdefghijkl", "AIzaSyA0123456789abcdefghijk", "0" * 32, "a b"):
        assert not is_variable_name(key)


@pytest.mark.parametrize("mode", ["shadow", "ab", "pass-through", "redacting"])
def test_what_providers_repeat_is_written_nowhere(upstream: UPSTREAM, collector: START, mode: str) -> None:
    control, treatment = upstream(answers), upstream(answers)
    params = f'api_key_env = "KEYS_TREATMENT"\nparams = {{ extra_api_key = "{PARAM}" }}'
    running = collector(
        f"http://user:{PASSWORD}@127.0.0.1:{control.port}",
        treatment.url,
        mode="ab" if mode == "ab" else "shadow",
        experiment="treatment_percent = 50" if mode == "ab" else "",
        arm="" if mode == "pass-through" else 'api_key_env = "KEYS_CONTROL"',
        treatment_arm=params,
        collector='redact = ["email"]' if mode == "redacting" else "",
        env={"KEYS_CONTROL": HELD, "KEYS_TREATMENT": TREATMENT, "EVALPIPE_TOKEN": TOKEN},
    )
    seen = [send(running, number) for number in range(N_CASES)]
    if mode != "ab":
        assert [status for status, _ in seen] == [401, 400, 200, 200, 200, 502, 200]
        held = (CLIENT if mode == "pass-through" else HELD).encode()
        assert held in seen[0][1] and held in seen[2][1]  # what the user gets is never touched
        eventually(lambda: len(treatment.received) == N_CASES)
        assert all(PARAM.encode() in request.body for request in treatment.received)
        assert all(CLIENT.encode() not in request.head for request in treatment.received)
    with urlopen(Request(running.url + "/_evalpipe/metrics", headers={"x-evalpipe-token": TOKEN})) as answer:
        metrics = answer.read().decode()
    with urlopen(running.url + "/_evalpipe/health") as answer:
        metrics += answer.read().decode()
    assert running.stop() == 0
    records = running.responses() if mode == "ab" else running.responses("shadow")
    assert len(running.responses()) == N_CASES and len(records) == N_CASES
    assert left_in(running.root) == {}
    for record in [*running.responses().values(), *records.values()]:
        if record.body.base64 is not None:
            assert not any(holds(gzip.decompress(record.body.data).decode(), key) for key in ALL)
    assert not any(form in metrics + "".join(running.lines) for key in ALL for form in forms(key).values())
    texts = [record.body.text or "" for record in running.responses().values()]
    assert any("[key]" in text for text in texts)
    assert any("indeed" in text for text in texts)  # the rest of a stream is kept
