"""Errors in answers, in every shape providers and their relays write them, at any status."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from evalpipe.core.text import joined
from evalpipe.providers.jsontext import as_dict, as_text

MAX_ERROR_CHARACTERS: Final = 2000
"""Error messages are kept to this length: some gateways answer with whole web pages."""
_MAX_TYPE_CHARACTERS: Final = 100

FILTERED: Final = frozenset(
    {
        "content_filter",  # Azure OpenAI: the prompt was filtered (400)
        "responsibleaipolicyviolation",  # its inner code
        "content_policy_violation",  # OpenAI
        "moderation_blocked",  # OpenAI
        "data_inspection_failed",  # Alibaba Model Studio (Qwen)
        "datainspectionfailed",
        "1301",  # Zhipu
    }
)
"""Error codes, in lower case, by which a vendor says that a filter took the prompt or the answer: a refusal, no failure."""
_FILTERED_MESSAGES: Final = ("content exists risk",)
"""DeepSeek's, which has no code of its own"""

_MAY_FAIL: Final = frozenset({"object", "type", "base_resp"})


class Failure(NamedTuple):
    """What a provider said of its failure; `refused`: a content filter, not a fault."""

    kind: str | None
    message: str | None
    refused: bool = False
    status: int | None = None
    """the HTTP status it names"""


def short(text: str) -> str:
    text = joined(text)
    return text if len(text) <= MAX_ERROR_CHARACTERS else text[:MAX_ERROR_CHARACTERS] + "…"


def failure_in(value: Any, *, failed: bool = False) -> Failure | None:
    """The error that a whole answer, or one event's data, holds.

    Args:
        value: the parsed JSON.
        failed: it is known to be an error (by its status, or by its event's name): then a bare message counts as well.

    Returns:
        None where it holds none. Read are `{"error": {…}}` and `{"error": "…"}` (OpenAI, Anthropic, most), `{"object":
        "error", …}` (vLLM), `{"type": "error", …}` (Responses' events), lists of them (Gemini), `{"base_resp": {…}}`
        (MiniMax), and, of a known failure, `{"detail": …}` (FastAPI), `{"errors": […]}` and a `message` or `msg` at the top.
    """
    if isinstance(value, list):
        return next((found for item in value if (found := failure_in(item, failed=failed))), None)
    if not isinstance(value, dict):
        return Failure(None, short(value)) if failed and isinstance(value, str) and value else None
    error = value.get("error")
    if not error and not failed and not _MAY_FAIL.intersection(value):
        return None
    if isinstance(error, dict) and error:
        return of_error(error)
    if isinstance(error, list) and error:
        return failure_in(error, failed=True)
    if isinstance(error, str) and error:
        # {"error": "invalid_request", "message": "…"}: the message is the longer of the two
        message = as_text(value.get("message")) or as_text(value.get("error_description"))
        return _failure(error if message else None, message or error)
    if value.get("object") == "error" or value.get("type") == "error":
        return of_error({key: item for key, item in value.items() if (key, item) != ("type", "error")})
    status = as_dict(value.get("base_resp"))
    if status.get("status_code") not in (None, 0, "0"):
        return _failure(str(status["status_code"]), as_text(status.get("status_msg")))
    return _bare(value) if failed else None


def of_error(error: dict[str, Any]) -> Failure:
    """An error object: {"message", "type", "code", "status"}, of which any may be missing, and a code may be a number."""
    code, status = error.get("code"), as_text(error.get("status"))
    named = as_text(code) or ""
    has_word = bool(named) and not named.isdigit()
    kind = named if has_word else as_text(error.get("type")) or status or named or None
    if kind is None and isinstance(code, int) and not isinstance(code, bool):
        kind = str(code)
    message = next((text for key in ("message", "msg", "detail") if (text := as_text(error.get(key)))), None)
    inner = as_text(as_dict(error.get("innererror")).get("code")) or ""
    flagged = bool(as_dict(error.get("metadata")).get("reasons"))  # OpenRouter's moderation (403)
    failure = _failure(kind, message)
    refused = failure.refused or flagged or inner.lower() in FILTERED or str(code).lower() in FILTERED
    return failure._replace(refused=refused, status=_http_status(code, error.get("status"), error.get("http_code")))


def _http_status(*named: Any) -> int | None:
    """The first number, or text of one, that is an error's status of HTTP."""
    for value in named:
        text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        if len(text) == 3 and text.isascii() and text.isdigit() and 400 <= int(text) <= 599:
            return int(text)
    return None


def _bare(value: dict[str, Any]) -> Failure | None:
    """A failure without an error object."""
    detail = value.get("detail")
    if isinstance(detail, list) and detail:  # FastAPI's validation: [{"loc", "msg", "type"}]
        first = as_dict(detail[0])
        return _failure(as_text(first.get("type")), as_text(first.get("msg")))
    if isinstance(detail, dict) and detail:
        return failure_in({"error": detail})
    errors = value.get("errors")
    if isinstance(errors, list) and errors:
        return of_error(as_dict(errors[0])) if isinstance(errors[0], dict) else _failure(None, as_text(errors[0]))
    message = next(
        (
            text
            for key in ("detail", "message", "msg", "error_message", "error_msg")
            if (text := as_text(value.get(key)))
        ),
        None,
    )
    return of_error({**value, "message": message}) if message else None


def _failure(kind: str | None, message: str | None) -> Failure:
    refused = (kind or "").lower() in FILTERED or (message or "").strip().lower() in _FILTERED_MESSAGES
    return Failure(
        None if kind is None else joined(kind)[:_MAX_TYPE_CHARACTERS],
        None if message is None else short(message),
        refused,
    )
