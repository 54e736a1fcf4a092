"""Calls through the SDKs: every error they can raise becomes a reply with the right outcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from evalpipe.calls.client import CallOutcome, failed_reply, is_local, litellm_failure

REQUEST = httpx2.Request("POST", "http://127.0.0.1/v1/messages")
OUTCOMES = {
    400: CallOutcome.REJECTED,
    401: CallOutcome.FATAL,
    402: CallOutcome.FATAL,
    403: CallOutcome.FATAL,
    404: CallOutcome.FATAL,
    408: CallOutcome.SERVER_ERROR,
    409: CallOutcome.SERVER_ERROR,
    412: CallOutcome.REJECTED,
    413: CallOutcome.REJECTED,
    422: CallOutcome.REJECTED,
    429: CallOutcome.RATE_LIMITED,
    431: CallOutcome.REJECTED,
    499: CallOutcome.SERVER_ERROR,
    500: CallOutcome.SERVER_ERROR,
    501: CallOutcome.SERVER_ERROR,
    503: CallOutcome.SERVER_ERROR,
    504: CallOutcome.SERVER_ERROR,
    529: CallOutcome.SERVER_ERROR,
}


def subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


@pytest.mark.parametrize("sdk", [anthropic, openai])
def test_every_status_error_of_the_sdks(sdk: Any) -> None:
    statuses = set()
    for kind in {sdk.APIStatusError, *subclasses(sdk.APIStatusError)}:
        declared = getattr(kind, "status_code", None)
        status = declared if isinstance(declared, int) else 500
        statuses.add(status)
        response = httpx2.Response(status, request=REQUEST, headers={"retry-after": "3"})
        message = {} if kind.__name__ == "OAuthError" else {"message": "m"}  # that one words itself
        error = kind(**message, response=response, body={"error": {"type": "t", "message": "why"}})
        reply = failed_reply(error, 1.0)
        assert reply.outcome is OUTCOMES[status], kind
        assert (reply.kind, reply.retry_after_s) == (f"http_{status}", 3.0)
    assert {401, 429, 500} <= statuses


@pytest.mark.parametrize("sdk", [anthropic, openai])
@pytest.mark.parametrize(
    ("cause", "outcome"),
    [
        (httpx2.ConnectError("refused"), CallOutcome.NO_CONNECTION),
        (httpx2.ReadError("reset"), CallOutcome.BROKEN),
        (httpx2.RemoteProtocolError("cut"), CallOutcome.BROKEN),
    ],
)
def test_a_broken_connection_may_have_been_billed_one_never_made_was_not(
    sdk: Any, cause: Exception, outcome: CallOutcome
) -> None:
    error = sdk.APIConnectionError(request=REQUEST)
    error.__cause__ = cause
    assert failed_reply(error, 1.0).outcome is outcome
    assert failed_reply(cause, 1.0).outcome is outcome  # while the body was being read


@pytest.mark.parametrize(
    ("cause", "outcome"),
    [(httpx2.ConnectTimeout("t"), CallOutcome.NO_CONNECTION), (httpx2.ReadTimeout("t"), CallOutcome.BROKEN)],
)
def test_timeouts(cause: Exception, outcome: CallOutcome) -> None:
    error = anthropic.APITimeoutError(request=REQUEST)
    error.__cause__ = cause
    assert failed_reply(error, 1.0).outcome is outcome


def test_spent_accounts_stop_the_run_and_bugs_of_ours_are_not_swallowed() -> None:
    def refused(status: int, body: dict[str, Any]) -> CallOutcome:
        response = httpx2.Response(status, request=REQUEST)
        return failed_reply(anthropic.APIStatusError("m", response=response, body=body), 1.0).outcome

    assert refused(429, {"error": {"code": "insufficient_quota", "message": "m"}}) is CallOutcome.FATAL
    assert (
        refused(400, {"error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}})
        is CallOutcome.FATAL
    )
    with pytest.raises(ZeroDivisionError):
        failed_reply(ZeroDivisionError("ours"), 1.0)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8/v1", True),
        ("http://localhost", True),
        ("http://[::1]:8", True),
        ("https://10.0.0.1", False),
        (None, False),
    ],
)
def test_which_servers_need_no_key(url: str | None, local: bool) -> None:
    assert is_local(url) is local


def raised(*names: str, status: int = 500, response: Any = None) -> Exception:
    """An exception of LiteLLM with its chain of causes, outermost first; the last cause may hold an HTTP response."""
    error: Exception | None = None
    for index, name in enumerate(reversed(names)):
        made: Exception = type(name, (Exception,), {})("it went wrong")
        if index == 0 and response is not None:
            made.response = response  # type: ignore[attr-defined]
        made.__cause__, error = error, made
    assert error is not None
    error.status_code = status  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "outcome", "kind"),
    [
        (raised("InternalServerError", "AnthropicError", "ReadError", "ClientPayloadError"), CallOutcome.BROKEN, "cut"),
        (raised("InternalServerError", "OpenAIError", "APIConnectionError", "ReadError"), CallOutcome.BROKEN, "cut"),
        (raised("APIConnectionError", "AnthropicError", "JSONDecodeError"), CallOutcome.BROKEN, "malformed"),
        (raised("InternalServerError", "AnthropicError", "ConnectError"), CallOutcome.NO_CONNECTION, "no_connection"),
        (raised("Timeout", "ReadTimeout", status=408), CallOutcome.BROKEN, "timeout"),
        (raised("Timeout", "ConnectTimeout", status=408), CallOutcome.NO_CONNECTION, "no_connection"),
        (raised("BadRequestError", status=400), CallOutcome.REJECTED, "http_400"),
        (raised("AuthenticationError", status=401), CallOutcome.FATAL, "http_401"),
    ],
)
def test_litellm_gives_everything_a_status_and_the_causes_tell_the_truth(
    error: Exception, outcome: CallOutcome, kind: str
) -> None:
    """The chains are those that LiteLLM 1.106 raises for answers that break off, are no JSON, or never come."""
    reply = litellm_failure(error, 1.0)
    assert (reply.outcome, reply.kind) == (outcome, kind)


def test_litellm_hides_the_providers_answer_in_a_cause() -> None:
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    answer = httpx2.Response(529, headers={"retry-after": "7"}, json=body)
    error = raised("InternalServerError", "AnthropicError", "HTTPStatusError", status=500, response=answer)
    reply = litellm_failure(error, 1.0)
    assert (reply.outcome, reply.kind, reply.message) == (CallOutcome.SERVER_ERROR, "http_529", "Overloaded")
    assert reply.retry_after_s == 7
