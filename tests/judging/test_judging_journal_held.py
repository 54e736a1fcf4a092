"""What a call is held at from the moment it is sent: the journal of a killed run is all that the next one knows of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_provider import Call, FakeProvider, Response, longer_wins
from test_judging_run import FAST, pairs, rows, run, workspace


def test_a_call_that_breaks_off_is_held_at_the_longest_answer_and_one_token_a_byte(tmp_path: Path) -> None:
    """claude-haiku-4-5: 1 and 5 USD a million tokens; max_tokens of the pairwise judge: 1,024."""
    sizes: list[int] = []

    def broken(call: Call) -> Response:
        texts = [message["content"] for message in call.body["messages"]]
        sizes.append(sum(len(text.encode()) for text in [call.body["system"], *texts]))
        return Response("x", drop=True)

    with FakeProvider(broken) as provider:
        found = workspace(tmp_path, provider.url, pairs(1, prompt="判断" * 2_000), settings=FAST + "concurrency = 1\n")
        summary = run(found)
    assert dict(summary.failed) == {"cut": 2}
    found_at_most = rows(found, "SELECT json_extract(note, '$.cost_at_most_usd')::DOUBLE FROM judgments")
    # The bytes that were sent as text, and 1,000 tokens of a provider's own; the schema, some 1,000 bytes, comes on top.
    least = (min(sizes) + 1000) * 1e-6 + 1024 * 5e-6
    assert all(least < at_most < least + 2_500e-6 for (at_most,) in found_at_most)
    assert summary.account is not None
    assert summary.account.at_most_usd == pytest.approx(sum(at_most for (at_most,) in found_at_most))


def test_the_next_run_holds_what_the_last_one_left_open(tmp_path: Path) -> None:
    with FakeProvider(lambda call: Response("x", drop=True)) as provider:
        found = workspace(tmp_path, provider.url, pairs(4), settings=FAST + "concurrency = 1\n")
        first = run(found)
        assert first.account is not None
        provider.behaviour = longer_wins
        n = len(provider.calls)
        # Open is what the lost calls can have cost, and half a cent: no call fits, each can cost a cent.
        second = run(found, max_usd=first.account.at_most_usd + 0.005)
        assert (second.stopped, len(provider.calls) - n) == ("budget", 0)
