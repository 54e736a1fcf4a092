"""Anthropic Messages (`POST /v1/messages`)."""

from __future__ import annotations

from evalpipe.providers.messages.read_answer import MessagesReader
from evalpipe.providers.messages.view import read_request

__all__ = ["MessagesReader", "read_request"]
