"""Nothing to judge: the message names what was loaded and the commonest reason."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evalpipe.models import Arm, Exchange, JudgeMode, Outcome, Role
from evalpipe.store.parquet import DatasetWriter
from evalpipe.store.query import open_store, writing
from evalpipe.store.schema import BY_NAME, EXCHANGES, to_table
from evalpipe.workspace.judge_setup import nothing_to_judge

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
KEY: dict[str, Any] = {
    "outcome": Outcome.HTTP_ERROR, "status": 401, "error_type": "authentication_error", "error_message": "invalid x-api-key"
}  # fmt: skip
SLOW: dict[str, Any] = {
    "outcome": Outcome.TIMEOUT,
    "error_type": "timeout",
    "error_message": "no whole answer within 120 s",
}
LEFT: dict[str, Any] = {"outcome": Outcome.CLIENT_CLOSED}
OK: dict[str, Any] = {}


def told(data: Path, control: Sequence[dict[str, Any]], treatment: Sequence[Any], mode: str = "pairwise") -> str:
    """What is reported for requests r0, r1, … with these answers; None: no row."""
    exchanges = [
        Exchange(
            request_id=f"r{i}",
            arm=arm,
            role=Role.SERVED if arm is Arm.CONTROL else Role.SHADOW,
            unit_id=None,
            conversation_id=None,
            started_at=NOON + timedelta(seconds=i),
            **changes,
        )
        for arm, answers in ((Arm.CONTROL, control), (Arm.TREATMENT, treatment))
        for i, changes in enumerate(answers)
        if changes is not None
    ]
    with writing(data, "exchanges"), DatasetWriter(data, BY_NAME["exchanges"]) as writer:
        writer.add("e", to_table(EXCHANGES, exchanges))
    with open_store(data, "e") as store:
        return nothing_to_judge(store, JudgeMode(mode))


@pytest.mark.parametrize(
    ("control", "treatment", "expected"),
    [
        ([], [], "no requests are loaded; load a log first with `evalpipe load`"),
        (
            [OK] * 3,
            [KEY, SLOW, KEY],
            "3 requests are loaded, but the treatment answered none (2 × HTTP 401: invalid x-api-key)",
        ),
        (
            [SLOW] * 2,
            [KEY] * 2,
            "2 requests are loaded, but the control answered none (2 × timeout: no whole answer within 120 s), "
            "and the treatment answered none (2 × HTTP 401: invalid x-api-key)",
        ),
        ([OK] * 2, [LEFT] * 2, "2 requests are loaded, but the treatment answered none (2 × client closed)"),
        (
            [OK] * 2,
            [],
            "2 requests are loaded, but only the control's answers are there "
            "(a log with one answer per request needs a pointwise judge)",
        ),
        (
            [{"shadow_status": "not_shadowable", "shadow_reason": "server_tools"}] * 2
            + [{"shadow_status": "not_sampled"}],
            [],
            "3 requests are loaded, but no shadow request was sent (2 × not_shadowable: server_tools)",
        ),
        (
            [OK, KEY],
            [KEY, OK],
            "2 requests are loaded, but none was answered by both arms "
            "(a log with one answer per request needs a pointwise judge)",
        ),
    ],
)
def test_pairs(tmp_path: Path, control: list[Any], treatment: list[Any], expected: str) -> None:
    assert told(tmp_path, control, treatment) == f"e: no pairs to judge: {expected}"


def test_answers(tmp_path: Path) -> None:
    assert told(tmp_path, [KEY] * 4, [], "pointwise") == (
        "e: no answers to judge: 4 requests are loaded, but the control answered none (4 × HTTP 401: invalid x-api-key)"
    )
