"""OpenAI Responses (`POST /v1/responses`)."""

from __future__ import annotations

from evalpipe.providers.responses.read_answer import ResponsesReader

__all__ = ["ResponsesReader"]
