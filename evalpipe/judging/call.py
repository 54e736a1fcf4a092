"""The nouns of asking a judge: one call, and what came back, whatever came back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from evalpipe.core.traffic import Outcome
from evalpipe.judging.limiter import Reported
from evalpipe.providers.base import Answer, Usage

Turns = Sequence[tuple[str, str]]
"""(role, text) in order, beginning with the user's message; the system text is the judge's own."""


class Fate(StrEnum):
    """What became of a call; decides whether it is asked again, what it is booked at, and whether the run goes on."""

    ANSWERED = "answered"
    """a readable answer, whatever it says"""
    RATE_LIMITED = "rate_limited"
    """429: not billed; wait until the reset"""
    SERVER_ERROR = "server_error"
    """5xx, 529, 408, 409: not billed; back off"""
    NO_CONNECTION = "no_connection"
    """nothing was sent; back off"""
    BROKEN = "broken"
    """cut, timed out or unreadable after it was sent: the provider may have billed it, and never said how much"""
    REJECTED = "rejected"
    """400, 413, 422: this request will never be answered; the others may"""
    REFUSED = "refused"
    """a filter took this input: this request will never be answered; the others may"""
    FATAL = "fatal"
    """401, 402, 403, 404, quota spent: no request will be answered"""


FREE = frozenset({Fate.RATE_LIMITED, Fate.SERVER_ERROR, Fate.NO_CONNECTION, Fate.REJECTED, Fate.REFUSED, Fate.FATAL})
"""Fates that cost nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came back from one call. `text` is what the judge said (a forced tool's input as JSON text); `latency_ms` from
    sending to the last byte; `retry_after_s` where the server named a time."""

    fate: Fate
    answer: Answer | None = None
    text: str = ""
    kind: str = ""
    """the failure in one snake_case word, e.g. "http_529"; "" where answered"""
    message: str = ""
    limits: Mapping[str, Reported] = field(default_factory=dict)
    retry_after_s: float | None = None
    asked_wait_s: float | None = None
    """what the server asked for, where that is more than is waited at once"""
    latency_ms: float | None = None
    simulated: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the judge came to the end of a reply: neither refused nor truncated nor empty."""
        return self.answer is not None and self.answer.outcome is Outcome.OK and bool(self.text.strip())

    @property
    def usage(self) -> Usage:
        return self.answer.usage if self.answer else Usage()

    @property
    def model(self) -> str | None:
        """The model that answered, by its own word."""
        return self.answer.model if self.answer else None


class JudgeClient(Protocol):
    """Asks one judge. Never raises for anything a provider may do: failures are replies."""

    async def ask(self, turns: Turns) -> Reply: ...

    async def close(self) -> None: ...


_INPUT = re.compile(
    r"\b(?:input|prompt|content|messages?|text)\b.{0,80}\b(?:flagged|moderation|moderated|violat\w+|filtered|harmful|unsafe)\b"
    r"|\bmoderation\b.{0,80}\b(?:input|prompt|content|messages?|text)\b",
    re.IGNORECASE | re.DOTALL,
)
_ACCOUNT = re.compile(
    r"\b(?:account|api[ _-]?key|key|organi[sz]ation|project|billing|permission|permitted|region|country|suspended|disabled|"
    r"access|token|user)\b",
    re.IGNORECASE,
)


def is_about_the_input(status: int, is_filtered: bool, message: str) -> bool:
    """Whether an HTTP error refuses this one input (a moderation or a content filter), not the key that asks.

    Args:
        status: 4xx.
        is_filtered: the error carries a filter's code, or the reasons of a moderation (OpenRouter's 403).
        message: the provider's words: they decide on a 403 without either, where they speak of the input and of no account.
    """
    if is_filtered:
        return status in (400, 403, 422, 451)
    return status == 403 and _INPUT.search(message) is not None and _ACCOUNT.search(message) is None


def fate_of_status(status: int, error_type: str, message: str) -> Fate:
    """The fate of a call that was answered with an HTTP error."""
    if status == 429:
        return Fate.FATAL if error_type == "insufficient_quota" else Fate.RATE_LIMITED
    if status in (401, 402, 403, 404):
        return Fate.FATAL
    if status in (408, 409, 499) or status >= 500:
        return Fate.SERVER_ERROR
    # A spent account is told with 400 by one vendor: asking on would only fail a thousand times.
    spent = any(word in message.lower() for word in ("credit balance", "spend limit", "usage limit"))
    return Fate.FATAL if spent else Fate.REJECTED
