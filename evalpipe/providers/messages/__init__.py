"""Anthropic Messages (`POST /v1/messages`)."""

from __future__ import annotations

from evalpipe.providers.messages.read_answer import MessagesReader

__all__ = ["MessagesReader"]
