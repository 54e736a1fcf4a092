"""What a simulated judge goes by, in words: a reader must not take its verdicts for a model's."""

from __future__ import annotations

from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.verdicts import JudgeSeen

STATED_RULES = (
    "Stated rules broken",
    "each answer begins with 9 points and loses some for having no words, repeating the request, the wrong language, not the "
    "JSON, code or list asked for, the same sentence three times, being cut off, or being marked a refusal; more points win "
    "(evalpipe sim --judge checks)",
)
"""how the reasons of the simulated judge of stated rules begin, and its rule in words"""


def simulated_rule(connection: Connection, judge: JudgeSeen, experiment: str) -> str:
    """What the simulated judge went by, as its own reasons tell."""
    begins, rule = STATED_RULES
    stated = rows(
        connection,
        "SELECT count(*) AS n FROM judgments WHERE experiment = ? AND judge = ? AND judge_fingerprint = ? "
        "AND starts_with(reasoning, ?)",
        [experiment, judge.name, judge.fingerprint, begins],
    )[0]["n"]
    return rule if stated else "stated rates of being right, or verdicts recorded before (evalpipe sim --judge)"
