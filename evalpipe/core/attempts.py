"""The number of an SDK's attempt at a request, as its headers tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ATTEMPT_HEADER: Final = "x-stainless-retry-count"


def attempt_of(headers: Mapping[str, str]) -> int:
    """0 for the first attempt, and where nothing is told."""
    told = headers.get(ATTEMPT_HEADER, "")
    return int(told) if told.isascii() and told.isdigit() and len(told) < 4 else 0
