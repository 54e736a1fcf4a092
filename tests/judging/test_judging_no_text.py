"""Answers that hold no text to judge (sound, pictures, a paused turn) are no part of the plan, and are counted by kind."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fake_provider import FakeProvider, Response, longer_wins
from test_judging_run import FAST, rows, run

from evalpipe.cli.judge_text import estimate_lines, summary_lines
from evalpipe.errors import DataError
from evalpipe.models import Arm, Exchange, Outcome, Role
from evalpipe.store.parquet import DatasetWriter
from evalpipe.store.schema import BY_NAME, EXCHANGES, to_table
from evalpipe.workspace.judge import estimate_judging
from evalpipe.workspace.judge_setup import JudgeOptions
from evalpipe.workspace.paths import Workspace, open_workspace

START = datetime(2026, 6, 1, tzinfo=UTC)
MARKED = {  # request: (mark of control's answer, mark of the treatment's)
    "plain": (None, None),
    "sound": ("not_text", None),
    "sound in both": ("not_text", "not_text"),
    "paused": (None, "pause_turn"),
    "no call": (None, "tool_call_missing"),
    "odd end": ("unknown_finish_reason", None),  # a reason nobody documents ends an answer that is text all the same
}


def log(root: Path, url: str, names: list[str], *, models: tuple[str | None, str | None] = (None, None)) -> Workspace:
    root.mkdir(exist_ok=True)
    (root / "evalpipe.toml").write_text(f'[experiment]\nname = "t"\n[judge]\nbase_url = "{url}"\n{FAST}')
    found = open_workspace(root / "evalpipe.toml")
    exchanges = [
        Exchange(
            request_id=name,
            arm=arm,
            role=role,
            unit_id=name,
            conversation_id=name,
            started_at=START + timedelta(minutes=n),
            request=json.dumps({"messages": [{"role": "user", "content": f"question {n}"}]}),
            endpoint="chat.completions",
            text=f"an answer of {arm.value}, not the same {n}",
            outcome=Outcome.TRUNCATED if mark in ("pause_turn", "tool_call_missing") else Outcome.OK,
            error_type=mark,
            model=model,
        )
        for n, name in enumerate(names)
        for arm, role, mark, model in zip(
            (Arm.CONTROL, Arm.TREATMENT), (Role.SERVED, Role.SHADOW), MARKED[name], models, strict=True
        )
    ]
    with DatasetWriter(found.data, BY_NAME["exchanges"]) as writer:
        writer.add("t", to_table(EXCHANGES, exchanges))
    return found


def test_pairs_without_text_are_left_out_and_named(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = log(tmp_path, provider.url, list(MARKED))
        (estimate,) = estimate_judging(found, JudgeOptions())
        kinds = {"not_text": 2, "pause_turn": 1, "tool_call_missing": 1}
        assert (estimate.units, estimate.unjudgeable, estimate.as_json()["unjudgeable"]) == (2, kinds, kinds)
        words = "left out: 4 whose answer holds no text to judge (not_text 2, pause_turn 1, tool_call_missing 1)"
        assert any(words in line for line in estimate_lines([estimate]))
        summary = run(found)
        assert dict(summary.asked) == {"ok": 4}
        assert summary.as_json()["left_out_without_text"] == kinds
        assert any("4 whose answer holds no text to judge" in line for line in summary_lines([summary]))
    assert rows(found, "SELECT DISTINCT request_id FROM judgments ORDER BY 1") == [("odd end",), ("plain",)]


def test_an_estimate_warns_of_a_judge_that_is_an_arms_model(tmp_path: Path) -> None:
    def warnings(model: str) -> list[str]:
        found = log(tmp_path / model, "http://127.0.0.1:9", ["plain"], models=("gpt-4o-2024-08-06", model))
        (estimate,) = estimate_judging(found, JudgeOptions())
        assert estimate.as_json()["warning"] == estimate.warning
        return [line.strip() for line in estimate_lines([estimate]) if "WARNING" in line]

    remedy = "judge with a model of a third family, or measure the judge on labelled pairs"
    assert warnings("claude-haiku-4-5") == [
        "WARNING: the judge (claude-haiku-4-5) is the very model of the treatment arm: judges prefer their own answers; "
        + remedy
    ]
    assert warnings("claude-opus-4-8") == [
        "WARNING: the judge (claude-haiku-4-5) is of the same family as treatment: judges prefer their own kind; "
        + remedy
    ]
    assert warnings("gpt-4o-mini") == []


def test_a_judge_of_single_answers_reads_the_one_that_is_text(tmp_path: Path) -> None:
    text = json.dumps({"reasoning": "r", "relevance": 1, "faithfulness": 1})
    with FakeProvider(lambda call: Response(text)) as provider:
        found = log(tmp_path, provider.url, list(MARKED))
        summary = run(found, judges=["pointwise"])
    # Twelve answers, of which five are marked as without a text.
    assert (dict(summary.asked), summary.unjudgeable) == (
        {"ok": 7},
        {"not_text": 3, "pause_turn": 1, "tool_call_missing": 1},
    )


def test_a_log_of_nothing_but_sound_has_nothing_to_judge(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = log(tmp_path, provider.url, ["sound", "sound in both"])
        with pytest.raises(DataError, match="holds no text to judge"):
            run(found)
        assert provider.calls == []
