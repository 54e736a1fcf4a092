"""The client token, in whichever header the program that holds it can send."""

from __future__ import annotations

import base64

import pytest

from evalpipe.collector.auth import TokenAuth
from evalpipe.collector.settings import ArmSettings, CollectorSettings, Secret
from evalpipe.http1.headers import read_lines

METRICS, CHAT = b"/_evalpipe/metrics", b"/v1/chat/completions"


def passes(target: bytes, name: bytes, value: bytes, *, key: str | None = None, token: str | None = "right") -> bool:
    control = ArmSettings(
        arm="control", provider="openai", base_url="http://x", api_key=None if key is None else Secret(key)
    )
    settings = CollectorSettings(
        experiment="x", control=control, spool="s", data="d", client_token=None if token is None else Secret(token)
    )
    return (
        TokenAuth(settings).refusal(target, read_lines(b"GET / HTTP/1.1\r\n" + name + b": " + value + b"\r\n\r\n")[1])
        is None
    )


def basic(text: bytes) -> bytes:
    return b"Basic " + base64.b64encode(text)


@pytest.mark.parametrize("target", [METRICS, b"/_evalpipe/gate", b"/_evalpipe/gate?x=1", b"/_evalpipe/feedback"])
def test_prometheus_argo_and_flagger_reach_the_own_routes(target: bytes) -> None:
    assert passes(target, b"x-evalpipe-token", b"right")
    assert passes(target, b"authorization", b"Bearer right")
    assert passes(target, b"authorization", b"bearer right")
    assert passes(target, b"authorization", basic(b"evalpipe:right"))
    for wrong in (
        b"Bearer wrong",
        b"Bearer ",
        b"right",
        b"Basic !",
        basic(b"right"),
        basic(b"right:wrong"),
        b"Basic ",
        b"",
    ):
        assert not passes(target, b"authorization", wrong)


def test_a_providers_key_is_no_token() -> None:
    """Where the client's own key passes through, its header says nothing about who may use the collector."""
    assert not passes(CHAT, b"authorization", b"Bearer right")
    assert not passes(CHAT, b"x-api-key", b"right")
    assert passes(CHAT, b"authorization", b"Bearer right", key="sk-ours")
    assert passes(CHAT, b"x-api-key", b"right", key="sk-ours")
    assert not passes(CHAT, b"authorization", b"Bearer sk-ours", key="sk-ours")


def test_probes_need_none() -> None:
    for target in (b"/_evalpipe/health", b"/_evalpipe/ready", b"/_evalpipe/ready?x"):
        assert passes(target, b"accept", b"*/*")
    assert not passes(b"/_evalpipe/readyx", b"accept", b"*/*")
    assert passes(METRICS, b"accept", b"*/*", token=None)
