"""OpenAI Responses (`POST /v1/responses`)."""

from __future__ import annotations

from evalpipe.providers.responses.read_answer import ResponsesReader
from evalpipe.providers.responses.view import read_request

__all__ = ["ResponsesReader", "read_request"]
