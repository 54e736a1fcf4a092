"""The demo's users: they send the sample's requests through the official OpenAI SDK, at the recorded times compressed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """One request of the sample: who sent it, when (seconds after the first), and the body of the chat completion."""

    at_s: float
    user: str
    category: str
    body: dict[str, Any]


def load_sample_requests(path: Path) -> list[SampleRequest]:
    with path.open(encoding="utf-8") as lines:
        return [SampleRequest(**json.loads(line)) for line in lines]


def send_requests(
    requests: list[SampleRequest],
    *,
    base_url: str,
    duration_s: float | None,
    concurrency: int,
    progress: Callable[[], None],
) -> tuple[int, int]:
    """Send every request to the collector at `base_url` (".../v1"); (answered, failed).

    `duration_s`: the recorded arrival times are scaled to this; None = as fast as `concurrency` allows.
    """
    return asyncio.run(_send(requests, base_url, duration_s, concurrency, progress))


async def _send(
    requests: list[SampleRequest],
    base_url: str,
    duration_s: float | None,
    concurrency: int,
    progress: Callable[[], None],
) -> tuple[int, int]:
    import openai

    slots = asyncio.Semaphore(concurrency)
    scale = duration_s / max(request.at_s for request in requests) if duration_s is not None and requests else 0.0
    answered = failed = 0
    loop = asyncio.get_running_loop()
    start = loop.time()

    async with openai.AsyncOpenAI(base_url=base_url, api_key="demo", max_retries=0, timeout=120) as client:

        async def one(request: SampleRequest) -> None:
            nonlocal answered, failed
            await asyncio.sleep(max(0.0, start + request.at_s * scale - loop.time()))
            async with slots:
                try:
                    answer = await client.chat.completions.create(
                        **request.body, extra_headers={"x-user-id": request.user}
                    )
                    if request.body.get("stream"):
                        async for _ in answer:
                            pass
                    answered += 1
                except openai.APIError:  # what a user of the app would see as an error; the log holds the details
                    failed += 1
                progress()

        await asyncio.gather(*(one(request) for request in requests))
    return answered, failed
