"""The one visible list of wire formats and providers, and the functions that pick from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from evalpipe.core.spool import Ended
from evalpipe.core.traffic import Outcome
from evalpipe.providers.base import Answer, RequestView
from evalpipe.providers.chat import ChatReader
from evalpipe.providers.chat import view as chat
from evalpipe.providers.jsontext import MalformedJSONError, parse
from evalpipe.providers.messages import MessagesReader
from evalpipe.providers.messages import view as messages
from evalpipe.providers.reading import AnswerReader, DialectReader
from evalpipe.providers.responses import ResponsesReader
from evalpipe.providers.responses import view as responses
from evalpipe.providers.usage import with_reported_header


@dataclass(frozen=True, slots=True)
class Dialect:
    """A wire format: how its requests are read, and a reader for each of its answers."""

    read_request: Callable[[dict[str, Any]], RequestView]
    reader: Callable[[], DialectReader]


DIALECTS: Mapping[str, Dialect] = {
    "chat.completions": Dialect(chat.read_request, ChatReader),
    "responses": Dialect(responses.read_request, ResponsesReader),
    "messages": Dialect(messages.read_request, MessagesReader),
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


def answer_reader(endpoint: str, status: int | None, headers: Mapping[str, str]) -> AnswerReader:
    """A reader for an answer of an arm that speaks `endpoint`, to be fed as the body comes. Raises KeyError for an unknown
    endpoint. `headers` need only hold content-type and content-encoding."""
    return AnswerReader(DIALECTS[endpoint].reader(), status, headers)


def read_answer(
    endpoint: str, status: int | None, headers: Mapping[str, str], body: bytes, *, ended: Ended = "complete"
) -> Answer:
    """The answer in a whole body.

    Args:
        endpoint: what the arm speaks: a key of `DIALECTS`.
        status: None where no answer came.
        headers: content-type, content-encoding and a gateway's own figure of the cost (`usage.COST_HEADER`) are looked at.
        body: as received, content encoding and all.
        ended: how the answer ended. A timeout or a client that left is the outcome, unless the stream's own last event had
            come.

    Returns:
        The answer, or what is known of its failure. Never raises on what was received.
    """
    if endpoint not in DIALECTS:
        return Answer(outcome=Outcome.UNREADABLE, error_type="unknown_endpoint", error_message=endpoint[:100])
    reader = answer_reader(endpoint, status, headers)
    reader.feed(body)
    answer = reader.finish(ended)
    usage = with_reported_header(answer.usage, headers, answer.model, streamed=answer.streamed)
    return answer if usage is answer.usage else replace(answer, usage=usage)


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
