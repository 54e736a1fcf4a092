"""What a logged answer comes to, and the small things that are read of any of them: errors, reasons to end."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from evalpipe.store.importers.paths import opened
from evalpipe.store.importers.tokens import NO_TOKENS, Tokens

REDACTED = re.compile(
    r"\s*[\[<(*]*\s*(?:redacted(?:[-_ ]by[-_ ][\w-]+)?|__redacted__|__?redacted_due_to[\w]*|content redacted)\s*[\])>*]*\s*",
    re.IGNORECASE,
)
"""Texts that stand in the place of a text that the logging tool was set to leave out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a logged answer holds. `text` None: no text was there; `is_redacted`: the tool left it out on purpose."""

    text: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    model: str | None = None
    tokens: Tokens = NO_TOKENS
    cost_usd: float | None = None
    error: str | None = None
    error_type: str | None = None
    status: int | None = None
    created: datetime | None = None
    answer_id: str | None = None
    refusal: bool = False
    streamed: bool | None = None
    is_redacted: bool = False
    is_embedding: bool = False
    is_found: bool = True
    """some answer was there at all"""

    @property
    def is_empty(self) -> bool:
        return self.text is None and not self.tool_calls and self.error is None


NOTHING = Said(is_found=False)


def is_failure(value: Mapping[str, Any]) -> bool:
    """Whether an answer's object names an error."""
    return bool(value.get("error")) and value.get("error") is not False


def error_text(error: Any) -> str:
    """The words of an error: its message, wherever the object keeps it."""
    error = opened(error)
    if isinstance(error, Mapping):
        for key in ("message", "error", "detail", "msg", "description", "type"):
            if isinstance(error.get(key), str):
                return str(error[key])
            if isinstance(error.get(key), Mapping):
                return error_text(error[key])
        return json.dumps(error, default=str)[:2000]
    return str(error)


def reason_in(holder: Mapping[str, Any]) -> str | None:
    """Why an answer ended, under whichever name it stands."""
    for key in (
        "finish_reason",
        "finishReason",
        "stop_reason",
        "stopReason",
        "done_reason",
        "completionReason",
        "finish_reasons",
    ):
        value = holder.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str) and value:
            return value
    return None
