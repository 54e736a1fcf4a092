"""What a judge's call is booked at: the price of the model that answered, an estimate where no usage is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_provider import Call, FakeProvider, Response, longer_wins, render

from evalpipe.store.query import open_store
from evalpipe.workspace.judge import judge
from evalpipe.workspace.judge_setup import JudgeOptions
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

PAIR = {"pair_id": "p", "prompt": "q", "response_a": "a long answer, longer than the other", "response_b": "short"}


def told(**changes: Any) -> Callable[[Call], Response]:
    """A judge whose answer's document has `changes` on top."""

    def behave(call: Call) -> Response:
        return Response(raw=json.dumps({**render(call, longer_wins(call)), **changes}).encode())

    return behave


def booked(root: Path, behaviour: Callable[[Call], Response], prices: str = "") -> float:
    """USD of one call, as booked."""
    root.mkdir(exist_ok=True)
    with FakeProvider(behaviour) as provider:
        (root / "evalpipe.toml").write_text(
            f'[experiment]\nname = "t"\n[judge]\nbase_url = "{provider.url}"\nrequests_per_minute = 60000\n{prices}'
        )
        (root / "pairs.jsonl").write_text(json.dumps(PAIR))
        found = open_workspace(root / "evalpipe.toml")
        load(found, [root / "pairs.jsonl"], format_name="pairs")
        judge(found, JudgeOptions(show_progress=False))
    with open_store(found.data, "t") as store:
        (row,) = store.connection.sql("SELECT avg(cost_usd) FROM judgments WHERE status = 'ok'").fetchall()
        return float(row[0])


# claude-haiku-4-5 (the judge asked): 1 and 5 USD a million; claude-opus-4-5: 5 and 25 (platform.claude.com pricing, 2026-10).
HAIKU = 100 * 1e-6 + 50 * 5e-6


def test_the_model_that_answered_sets_the_price(tmp_path: Path) -> None:
    assert booked(tmp_path / "asked", told()) == pytest.approx(HAIKU)
    assert booked(tmp_path / "other", told(model="claude-opus-4-5-20251101")) == pytest.approx(5 * HAIKU)


def test_a_model_nobody_prices_is_booked_as_an_estimate_and_not_as_another_models_bill(tmp_path: Path) -> None:
    usd = booked(tmp_path, told(model="house-judge-7"))
    assert usd > HAIKU


def test_the_providers_own_figure_and_an_own_price(tmp_path: Path) -> None:
    said = {"usage": {"input_tokens": 100, "output_tokens": 50, "cost": 0.125}}
    assert booked(tmp_path / "said", told(**said)) == pytest.approx(0.125)
    own = '[prices."claude-haiku-4-5"]\ninput = 2.0\noutput = 4.0\n'
    assert booked(tmp_path / "own", told(**said), own) == pytest.approx(100 * 2e-6 + 50 * 4e-6)


def test_zeros_beside_a_verdict_are_not_free(tmp_path: Path) -> None:
    assert booked(tmp_path, told(usage={"input_tokens": 0, "output_tokens": 0})) > 0
