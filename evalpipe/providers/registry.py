"""The one visible list of wire formats and providers, and the doors that pick from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from evalpipe.core.spool import Ended
from evalpipe.core.traffic import Outcome
from evalpipe.providers import reading
from evalpipe.providers.anthropic import AnthropicMessages
from evalpipe.providers.base import Answer, RequestView
from evalpipe.providers.jsontext import MalformedJSONError, parse
from evalpipe.providers.openai_chat import OpenAIChat
from evalpipe.providers.openai_responses import OpenAIResponses
from evalpipe.providers.usage import with_reported_header


class EndpointDialect(reading.Dialect, Protocol):
    """A wire format: `read_request` of a parsed body, and the two steps of reading an answer."""

    def read_request(self, body: dict[str, Any]) -> RequestView: ...


DIALECTS: Mapping[str, EndpointDialect] = {
    "chat.completions": OpenAIChat(),
    "responses": OpenAIResponses(),
    "messages": AnthropicMessages(),
}
"""endpoint name → wire format"""

PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "openai": ("chat.completions", "responses"),
    "anthropic": ("messages",),
    "litellm": ("chat.completions",),
}
"""provider → the endpoints it is asked at; the first one takes what has to be translated"""


def speaks(provider: str, endpoint: str) -> bool:
    """Whether requests of that endpoint reach the provider without translation. Raises KeyError for an unknown provider."""
    return endpoint in PROVIDERS[provider]


def read_answer(
    endpoint: str, status: int | None, headers: Mapping[str, str], body: bytes, *, ended: Ended = "complete"
) -> Answer:
    """The answer in `body`, as received from an arm that speaks `endpoint`. Never raises on what was received.

    `headers` need only hold content-type, content-encoding and a gateway's own figure of the cost (`usage.COST_HEADER`).
    `ended` tells how the answer ended: a timeout or a client that left is the outcome, unless the stream's own last event
    had come.
    """
    dialect = DIALECTS.get(endpoint)
    if dialect is None:
        return Answer(outcome=Outcome.UNREADABLE, error_type="unknown_endpoint", error_message=endpoint[:100])
    try:
        answer = reading.read_answer(dialect, status, headers, body, ended=ended)
        usage = with_reported_header(answer.usage, headers, answer.model, streamed=answer.streamed)
        return answer if usage is answer.usage else replace(answer, usage=usage)
    except RecursionError:
        return Answer(outcome=Outcome.UNREADABLE, error_type="malformed", error_message="nested too deeply")


def read_request(endpoint: str, body: bytes | str) -> RequestView:
    """What evalpipe needs to know of a request. A body that is no JSON object gives an empty view: never raises."""
    try:
        document = parse(body)
        return DIALECTS[endpoint].read_request(document if isinstance(document, dict) else {})
    except (MalformedJSONError, RecursionError, KeyError):
        return RequestView(
            model=None,
            streamed=False,
            messages=[],
            system_text="",
            first_user_message=None,
            has_tools=False,
            usage_requested=True,
        )
