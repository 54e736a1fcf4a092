"""Checks of what the answers are: endings nobody knows, and content that a judge of texts cannot see."""

from __future__ import annotations

from typing import Any

from evalpipe.analysis.checks import WARN, CheckFunction, Evidence
from evalpipe.analysis.connection import rows
from evalpipe.analysis.result import Check
from evalpipe.analysis.wording import count, listed
from evalpipe.providers.building import NOT_TEXT
from evalpipe.providers.finish import CALLS_MISSING, PAUSED, UNKNOWN_REASON

UNFINISHED = (PAUSED, CALLS_MISSING)
MAX_NAMES = 5
_ODD = {
    NOT_TEXT: ("holds something other than text", "hold something other than text"),
    PAUSED: ("is paused, not finished", "are paused, not finished"),
    CALLS_MISSING: ("ends for a tool call it does not hold", "end for a tool call they do not hold"),
}
"""what is said of one answer, and of several"""


def finish_reasons(evidence: Evidence) -> Check | None:
    """Answers that ended for a reason that is not in the table of finish reasons: they count as `ok`, and are named here."""
    found = _marked(evidence, "finish_reason", (UNKNOWN_REASON,))
    if not found:
        return None
    named = listed([f"{_answers(row)} ended with {row['word']!r}" for row in found[:MAX_NAMES]])
    return Check(
        name="finish_reasons",
        status=WARN,
        detail=f"{named}: not a documented finish reason; such answers count as good ones",
        remedy="look at a few of them, and leave them out with --where if they are not",
    )


def unjudgeable_answers(evidence: Evidence) -> Check | None:
    """Answers that hold pictures, sound or a server's tool run, and answers that are not finished: a judge reads texts."""
    found = _marked(evidence, "error_type", (NOT_TEXT, *UNFINISHED))
    if not found:
        return None
    named = listed([f"{_answers(row)} {_ODD[row['word']][row['n'] > 1]}" for row in found])
    return Check(
        name="unjudgeable_answers",
        status=WARN,
        detail=f"{named}: only the text in such answers is judged; without any, their pair is left out",
        remedy="leave such requests out with --where",
    )


def _answers(row: dict[str, Any]) -> str:
    return f"{count(row['n'])} {row['arm']} answer{'' if row['n'] == 1 else 's'}"


def _marked(evidence: Evidence, column: str, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    marks = ", ".join("?" for _ in kinds)
    return rows(
        evidence.connection,
        f"SELECT arm, {column} AS word, count(*) AS n FROM exchanges WHERE experiment = ? AND role <> 'replay' "
        f"AND error_type IN ({marks}) GROUP BY 1, 2 ORDER BY n DESC, 1, 2",
        [evidence.experiment, *kinds],
    )


CHECKS: list[CheckFunction] = [finish_reasons, unjudgeable_answers]
