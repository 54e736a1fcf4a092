"""Redaction: what is found, across chunks, and that none of it reaches a file while the treatment gets the original."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from collections.abc import Callable
from urllib.request import Request, urlopen

import pytest
from collector_harness import CHAT, RawUpstream, Running, Script, chat_answer, chat_request, chat_stream, chunked, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.collector.redaction import Redactor
from evalpipe.spool.format import Body

ALL = Redactor(("email", "phone", "card", "api_key", r"regex:ACCT-\d{6}"))
SECRETS = [
    "jane.doe+x@example.co.uk",
    "4111 1111 1111 1111",
    "5555555555554444",
    "+49 171 1234567",
    "sk-ant-api03-abcdefghijklmnop1234",
    "ACCT-123456",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail jane.doe+x@example.co.uk now", "mail [email] now"),
        ("4111-1111-1111-1111", "[card]"),
        ("a 378282246310005 b", "a [card] b"),
        ("card 1 4111111111111111 2", "card 1 [card] 2"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),  # fails Luhn's check
        ("call +49 171 1234567 or (555) 123-4567", "call [phone] or [phone]"),
        ("415-555-2671", "[phone]"),
        ("at 1700000000 on 2024-01-15 10:30:00", "at 1700000000 on 2024-01-15 10:30:00"),
        ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"),
        ("key sk-proj-abcdefghijklmnop1234", "key [api_key]"),
        ("Authorization: Bearer abcdefghijklmnop1234", "Authorization: Bearer [api_key]"),
        ("AKIAIOSFODNN7EXAMPLE", "[api_key]"),
        ("a ACCT-123456 b", "a [redacted] b"),
        ("nothing here", "nothing here"),
    ],
)
def test_what_is_found(text: str, expected: str) -> None:
    assert ALL.text(text) == expected


def test_json_strings_keys_numbers_and_escapes() -> None:
    body = json.dumps(
        {"a": [{"jane@example.com": "x"}], "n": 4111111111111111, "args": '{"to": "jane\\u0040example.com"}'}
    )
    text = ALL.body(Body.of(body.replace("@", "\\u0040").encode()), None).text
    assert text is not None and "jane" not in text and "4111" not in text
    assert json.loads(text)["n"] == "[card]"


def test_compressed_bodies_are_redacted_and_broken_ones_not_written() -> None:
    data = gzip.compress(b'{"a": "jane@example.com"}')
    assert ALL.body(Body.of(data), "gzip").text == '{"a": "[email]"}'
    assert ALL.body(Body.of(b"\x1f\x8b nonsense"), "gzip") == Body(n_dropped_bytes=11)
    assert ALL.body(Body.of(bytes(range(128, 256))), None).n_dropped_bytes == 128


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 200), max_size=12), secrets=st.lists(st.sampled_from(SECRETS), min_size=1, max_size=4)
)
def test_streams_however_cut(cuts: list[int], secrets: list[str]) -> None:
    """Oracle: the text put together again is the redacted text, and no secret stands in the bytes."""
    text = "well, " + " and ".join(secrets) + ", that is all"
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    words = [text[a:b] for a, b in itertools.pairwise(places)]
    stream = b"".join(chat_stream(words))
    redacted = ALL.body(Body.of(stream), None).text
    assert redacted is not None
    events = [json.loads(line[6:]) for line in redacted.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == ALL.text(text)
    assert not any(secret in redacted for secret in secrets)
    assert redacted.endswith("data: [DONE]\n\n")


def test_streams_without_a_find_stay_as_received() -> None:
    stream = b"".join(chat_stream(["Hel", "lo"])) + b": odd\r\n\r\ndata: {\n\n"
    assert ALL.body(Body.of(stream), None).data == stream


@pytest.mark.parametrize("letter", ["a", "1", "@", "sk-", "eyJ", "1 ", "-"])
def test_megabytes_of_one_letter_are_no_trap(letter: str) -> None:
    began = time.process_time()
    ALL.text(letter * (200_000 // len(letter)))
    assert time.process_time() - began < 5


def test_nothing_secret_reaches_a_file(
    upstream: Callable[[Script], RawUpstream], collector: Callable[..., Running]
) -> None:
    words = ["Sure: ja", "ne.doe+x@exam", "ple.co.uk, 4111 11", "11 1111 1111 and AC", "CT-123456"]
    control = upstream(
        lambda r: chunked(chat_stream(words)) if b"stream" in r.body else [plain(chat_answer(" ".join(SECRETS)))]
    )
    treatment = upstream(lambda r: [plain(chat_answer(" ".join(SECRETS)))])
    running = collector(
        control.url, treatment.url, collector=r'redact = ["email", "phone", "card", "api_key", "regex:ACCT-\\d{6}"]'
    )
    for number in range(10):
        body = chat_request(f"{number} " + " ".join(SECRETS), **({"stream": True} if number % 2 else {}))
        headers = {"x-user-id": SECRETS[0], "user-agent": "me " + SECRETS[0], "content-type": "application/json"}
        with urlopen(Request(running.url + CHAT + "?to=" + SECRETS[0], body, headers)) as answer:
            answer.read()
    assert running.stop() == 0
    assert len(treatment.received) == 10  # in the original, through memory
    assert all(SECRETS[0].encode() in request.body for request in treatment.received)
    assert {f.status for f in running.fates().values()} == {"sampled"} and len(running.fates()) == 10
    for path in running.data.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(secret.encode() in data for secret in [*SECRETS, "jane.doe", "example.co.uk"]), path
