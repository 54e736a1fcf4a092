"""One arm's server refuses fields that the other one knows: said in the log and by `evalpipe doctor`, and mended by `drop`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from collector_harness import (
    CHAT,
    RawUpstream,
    Received,
    Running,
    chat_answer,
    chat_request,
    eventually,
    exchange,
    plain,
)

from evalpipe.providers.request_fields import field_named
from evalpipe.providers.setup_faults import RefusalWatch
from evalpipe.workspace.doctor import diagnose
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

Upstream = Callable[..., RawUpstream]
Start = Callable[..., Running]
WORDS = "Unrecognized request arguments supplied: top_k"


def strict(request: Received) -> list[bytes]:
    if "top_k" in json.loads(request.body):
        return [plain(json.dumps({"error": {"message": WORDS}}).encode(), status="400 Bad Request")]
    return [plain(chat_answer())]


def ask(running: Running, n: int, **more: object) -> None:
    for number in range(n):
        body = chat_request(f"question {number}", **more)
        head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (
            CHAT.encode(),
            len(body),
        )
        exchange(running.port, head + body)


def said(running: Running) -> list[str]:
    return [line for line in running.lines if "refuses" in line]


def test_a_field_only_control_knows(upstream: Upstream, collector: Start) -> None:
    control, treatment = upstream(lambda request: [plain(chat_answer())]), upstream(strict)
    running = collector(control.url, treatment.url)
    ask(running, 1)  # it answers: no set-up fault
    ask(running, 26, top_k=5)
    eventually(lambda: bool(said(running)))
    assert running.stop() == 0
    (line,) = said(running)
    assert "the treatment arm refuses" in line
    assert f"HTTP 400: {WORDS}" in line
    assert 'drop = ["top_k"] under [arms.treatment]' in line
    workspace = open_workspace(root=running.root)
    load(workspace)
    (found,) = [item for item in diagnose(workspace) if item.name == "requests treatment"]
    assert (found.status, WORDS in found.detail, 'drop = ["top_k"]' in found.detail) == ("warn", True, True)
    assert "the treatment arm refuses 26 of its last 27 requests" in found.detail
    assert "the control arm 0 of 27" in found.detail

    root = running.root
    again = collector(control.url, treatment.url, treatment_arm='drop = ["top_k"]', root=root)
    before = len(treatment.received)
    ask(again, 3, top_k=5)
    eventually(lambda: len(treatment.received) == before + 3)
    assert all("top_k" not in json.loads(request.body) for request in treatment.received[before:])
    assert all(json.loads(request.body)["top_k"] == 5 for request in control.received[-3:])
    assert again.stop() == 0
    load(workspace)
    assert not [item for item in diagnose(open_workspace(root=root)) if item.name == "requests treatment"]


def test_requests_that_both_refuse_are_the_clients_fault(upstream: Upstream, collector: Start) -> None:
    both = upstream(strict)
    running = collector(both.url, both.url)
    ask(running, 1)
    ask(running, 25, top_k=5)
    eventually(lambda: len(running.responses("shadow")) == 26)
    assert running.stop() == 0
    assert said(running) == []
    workspace = open_workspace(root=running.root)
    load(workspace)
    assert not [item for item in diagnose(workspace) if item.name.startswith("requests ")]


def test_a_dropped_field_reaches_no_arm_that_serves(upstream: Upstream, collector: Start) -> None:
    """A/B and `rewrite = true`: the same as in copies."""
    control, treatment = upstream(lambda request: [plain(chat_answer())]), upstream(strict)
    split = {"mode": "ab", "experiment": "treatment_percent = 100"}
    running = collector(control.url, treatment.url, treatment_arm='drop = ["top_k"]', **split)
    ask(running, 2, top_k=5)
    assert [set(json.loads(request.body)) for request in treatment.received] == [{"model", "messages"}] * 2
    rewritten = collector(treatment.url, arm='model = "gpt-4o"\nrewrite = true\ndrop = ["top_k"]')
    ask(rewritten, 1, top_k=5)
    assert set(json.loads(treatment.received[-1].body)) == {"model", "messages"}


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ('drop = ["top_k"]', "arms.control.drop not used"),
        ('drop = ["top_k"]\nparams = { seed = 1 }', "arms.control.params and drop not used"),
        ('drop = ["stream_options"]', None),
        ('drop = ["top_k"]\nmodel = "gpt-4o"\nrewrite = true', None),
    ],
)
def test_doctor_says_which_settings_of_control_do_nothing(tmp_path: Path, arm: str, words: str | None) -> None:
    text = f'[experiment]\nname = "e"\n[arms.control]\nprovider = "openai"\nbase_url = "http://127.0.0.1:9"\n{arm}'
    (tmp_path / "evalpipe.toml").write_text(text)
    found = [item.detail for item in diagnose(open_workspace(root=tmp_path)) if item.name == "settings control"]
    assert [words in detail for detail in found if words] == ([True] if words else [])
    assert bool(found) is (words is not None)


def watch(n: int, n_refused: int, n_other: int, n_other_refused: int, *, status: int = 400) -> bool:
    """Whether a treatment with so many refusals beside such a control is found."""
    found = RefusalWatch()
    for arm, count, refused in (("treatment", n, n_refused), ("control", n_other, n_other_refused)):
        for number in range(count):
            failed = number < refused
            found.saw(arm, failed=failed, status=status if failed else 200, message="no", request=b"")
    return found.found() is not None


@pytest.mark.parametrize(
    ("counts", "is_found"),
    [
        ((20, 16, 20, 4), True),
        ((20, 15, 20, 0), False),  # three quarters are not nearly all
        ((20, 20, 20, 5), False),  # control refuses a quarter itself
        ((19, 19, 40, 0), False),
        ((40, 40, 19, 0), False),
    ],
)
def test_nearly_all_against_few(counts: tuple[int, int, int, int], is_found: bool) -> None:
    assert watch(*counts) is is_found
    assert not watch(*counts, status=429)
    assert not watch(*counts, status=500)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("Unrecognized request argument supplied: top_k", "top_k"),
        ("body.messages.1.reasoning_content: Extra inputs are not permitted", "messages.reasoning_content"),
        ("Unknown parameter: 'chat_template_kwargs'.", "chat_template_kwargs"),
        ("property 'enable_thinking' is unsupported", "chat_template_kwargs.enable_thinking"),
        ("Invalid type for 'messages[0].content'", None),
        ("the model is busy", None),
        (None, None),
    ],
)
def test_the_field_is_named_as_drop_takes_it(words: str | None, field: str | None) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x", "reasoning_content": "y"}]
    body = {"model": "m", "messages": messages, "top_k": 5, "chat_template_kwargs": {"enable_thinking": False}}
    assert field_named(words, json.dumps(body).encode()) == field
