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


def finish_reasons(evidence: Evidence) -> Check | None:
    """Answers that ended for a reason that is not in the table of finish reasons: they count as `ok`, and are named here."""
    found = _marked(evidence, "finish_reason", (UNKNOWN_REASON,))
    if not found:
        return None
    named = listed([f"{count(row['n'])} {row['arm']} answers ended with {row['word']!r}" for row in found[:MAX_NAMES]])
    return Check(
        name="finish_reasons",
        status=WARN,
        detail=f"{named}: not a documented finish reason; they count as good answers",
        remedy="look at a few of them, and leave them out with --where if they are not",
    )


def unjudgeable_answers(evidence: Evidence) -> Check | None:
    """Answers that hold pictures, sound or a server's tool run, and answers that are not finished: a judge reads texts."""
    found = _marked(evidence, "error_type", (NOT_TEXT, *UNFINISHED))
    if not found:
        return None
    words = {NOT_TEXT: "hold something other than text", PAUSED: "are paused, not finished"}
    named = listed(
        [
            f"{count(row['n'])} {row['arm']} answers {words.get(row['word'], 'end for a tool call they do not hold')}"
            for row in found
        ]
    )
    return Check(
        name="unjudgeable_answers",
        status=WARN,
        detail=f"{named}: only their text is judged",
        remedy="leave such requests out with --where",
    )


def _marked(evidence: Evidence, column: str, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    marks = ", ".join("?" for _ in kinds)
    return rows(
        evidence.connection,
        f"SELECT arm, {column} AS word, count(*) AS n FROM exchanges WHERE experiment = ? AND role <> 'replay' "
        f"AND error_type IN ({marks}) GROUP BY 1, 2 ORDER BY n DESC, 1, 2",
        [evidence.experiment, *kinds],
    )


CHECKS: list[CheckFunction] = [finish_reasons, unjudgeable_answers]
