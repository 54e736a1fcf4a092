"""The real clock and real chance, for the runner; tests bring their own."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from datetime import UTC, datetime


class SystemClock:
    """Monotonic seconds, UTC instants, sleep, jitter and nonces."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def monotonic(self) -> float:
        return time.monotonic()

    def utc(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def jitter(self) -> float:
        return self._random.random()

    def nonce(self) -> str:
        return secrets.token_hex(8)
