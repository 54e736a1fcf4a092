"""OpenAI chat completions (`POST /v1/chat/completions`), and the many servers that speak it."""

from __future__ import annotations

from evalpipe.providers.chat.read_answer import ChatReader

__all__ = ["ChatReader"]
