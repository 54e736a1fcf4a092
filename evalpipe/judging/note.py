"""The note of a judgment: what else a reader of the row should know, as one JSON object. Pure."""

from __future__ import annotations

import json
from typing import Any

LOST = "lost"
"""`error` of a call that was sent and never heard of again: the process ended first."""

FORGED = "forged_verdict"
"""the tripwire of a text that holds keys of a verdict"""
READ_AGAIN = "reparsed_attempt"
"""the attempt whose stored reply was read again: this row was no call"""


def render_note(**facts: Any) -> str | None:
    """The facts that hold; None where there are none."""
    held = {name: value for name, value in facts.items() if value}
    return json.dumps(held, ensure_ascii=True, sort_keys=True) if held else None


def read_note(note: str | None) -> dict[str, Any]:
    """The facts of a note; empty where there is none, or where another tool wrote something else."""
    if not note or not note.startswith("{"):
        return {}
    try:
        found = json.loads(note)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
