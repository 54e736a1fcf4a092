"""Replies of every kind: read exactly, or refused with the reason; never guessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_provider import verdict
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.judging.spec import JudgeSpec, load_judge
from evalpipe.judging.verdict import UnreadableReplyError, read_reply
from evalpipe.models import Arm, ShownFirst, Winner

ROOT = Path(__file__).parents[2]


def spec(name: str = "pairwise", **changes: Any) -> JudgeSpec:
    return replace(load_judge(name, [ROOT / "judges"], [ROOT / "prompts"]), **changes)


@pytest.mark.parametrize(
    ("seat", "first", "winner", "preference"),
    [
        ("response_1", ShownFirst.CONTROL, Winner.CONTROL, 0.0),
        ("response_2", ShownFirst.CONTROL, Winner.TREATMENT, 1.0),
        ("response_1", ShownFirst.TREATMENT, Winner.TREATMENT, 1.0),
        ("response_2", ShownFirst.TREATMENT, Winner.CONTROL, 0.0),
        ("tie", ShownFirst.TREATMENT, Winner.TIE, 0.5),
    ],
)
def test_a_seat_becomes_an_arm(seat: str, first: ShownFirst, winner: Winner, preference: float) -> None:
    found = read_reply(verdict(seat, 3, 8), spec(), shown_first=first)
    assert (found.winner, found.preference) == (winner, preference)
    control, treatment = (8.0, 3.0) if first is ShownFirst.TREATMENT else (3.0, 8.0)
    assert found.control_scores["accuracy"] == control
    assert found.treatment_scores["clarity"] == treatment
    assert found.reasoning == "because"


def test_a_winner_against_its_own_scores_counts_and_is_flagged() -> None:
    assert read_reply(verdict("response_1", 2, 9), spec(), shown_first=ShownFirst.CONTROL).contradiction
    assert not read_reply(verdict("response_1", 9, 2), spec(), shown_first=ShownFirst.CONTROL).contradiction
    assert not read_reply(verdict("tie", 9, 2), spec(), shown_first=ShownFirst.CONTROL).contradiction


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{verdict()}\n```",
        f"```\n{verdict()}\n```",
        f"Here is my judgment:\n```json\n{verdict()}\n```\nDone.",
        f"\ufeff  {verdict()}\n",
    ],
)
def test_json_in_its_usual_wrappings(text: str) -> None:
    assert read_reply(text, spec(), shown_first=ShownFirst.CONTROL).winner is Winner.CONTROL


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(verdict()), **values})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("Response 1 is better, 8 against 5.", "not one JSON object"),
        ("8", "not an object"),
        ("[]", "not an object"),
        (verdict()[:-5], "not one JSON object"),
        (f"```json\n{verdict()}\n```\n```json\n{verdict('tie')}\n```", "not one JSON object"),
        (f"{verdict()} {verdict('tie')}", "not one JSON object"),
        (changed(winner="Response 1"), '"winner" is "Response 1"'),
        (changed(winner=1), '"winner" is 1'),
        (changed(winner=None), '"winner" is null'),
        (changed(extra=1), 'must not have: "extra"'),
        (changed(reasoning=["x"]), '"reasoning"'),
        (changed(response_1={"accuracy": 1, "clarity": 1}), 'lacks "completeness"'),
        (changed(response_1={"accuracy": 11, "clarity": 1, "completeness": 1}), "outside 0 to 10"),
        (changed(response_1={"accuracy": -1, "clarity": 1, "completeness": 1}), "outside 0 to 10"),
        (changed(response_1={"accuracy": "8", "clarity": 1, "completeness": 1}), "not a number"),
        (changed(response_1={"accuracy": True, "clarity": 1, "completeness": 1}), "not a number"),
        (verdict().replace(": 7", ": NaN", 1), "NaN"),
        (verdict().replace(": 7", ": 1e999", 1), "not a number"),
        ('{"winner": "tie", "winner": "response_1"}', "duplicate key"),
        ("[" * 100_000, "nested"),
    ],
)
def test_what_is_not_a_judgment_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(UnreadableReplyError) as refused:
        read_reply(text, spec(), shown_first=ShownFirst.CONTROL)
    assert complaint in str(refused.value)
    assert len(str(refused.value)) < 300


@given(
    st.text()
    | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
        json.dumps
    )
)
def test_nothing_but_a_judgment_ever_becomes_one(text: str) -> None:
    with pytest.raises(UnreadableReplyError):
        read_reply(text, spec(), shown_first=ShownFirst.CONTROL)


def test_a_pointwise_reply_scores_its_own_arm_only() -> None:
    text = json.dumps({"reasoning": "r", "relevance": 0.9, "faithfulness": 1})
    found = read_reply(text, spec("pointwise"), shown_first=ShownFirst.NEITHER, arm=Arm.TREATMENT)
    assert (found.winner, found.preference, dict(found.control_scores)) == (None, None, {})
    assert found.treatment_scores == {"relevance": 0.9, "faithfulness": 1.0}
    with pytest.raises(UnreadableReplyError, match="outside 0 to 1"):
        read_reply(text.replace("0.9", "9"), spec("pointwise"), shown_first=ShownFirst.NEITHER, arm=Arm.CONTROL)


def test_a_strict_judge_gives_no_reasoning() -> None:
    assert "reasoning" not in spec("strict").schema["properties"]
    with pytest.raises(UnreadableReplyError, match="reasoning"):
        read_reply(verdict(), spec("strict"), shown_first=ShownFirst.CONTROL)


def test_the_verdict_comes_last_in_the_schema_and_nothing_unknown_is_allowed() -> None:
    schema = spec().schema
    assert list(schema["properties"]) == ["reasoning", "response_1", "response_2", "winner"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["response_1"]["additionalProperties"] is False
