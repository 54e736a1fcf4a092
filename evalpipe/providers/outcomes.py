"""How responses end: the vendors' finish reasons, and errors in every shape they are written.

A reason that is not in the table is stored and marked (`UNKNOWN_REASON`): never taken for a normal end without a word.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from evalpipe.models import Outcome
from evalpipe.providers.json_values import as_dict, as_text
from evalpipe.text import joined

Kind = Literal["end", "calls", "truncated", "paused", "refused", "failed", "unfinished"]

UNKNOWN_REASON: Final = "unknown_finish_reason"
"""`error_type` of an answer that ended for a reason that is not in this table; its outcome stays `ok`"""
CALLS_MISSING: Final = "tool_call_missing"
"""`error_type` of an answer that ends for a tool call and holds none"""

PAUSED: Final = "pause_turn"
"""`error_type` of an answer that the client has to ask to go on (Anthropic's server tools)"""


class Vendor(NamedTuple):
    """A vendor's reasons by what they mean, and the page that lists them."""

    name: str
    source: str
    reasons: Mapping[Kind, tuple[str, ...]]


VENDORS: Final[tuple[Vendor, ...]] = (
    Vendor(
        "OpenAI chat completions",
        "API reference, The chat completion object, choices.finish_reason",
        {
            "end": ("stop",),
            "calls": ("tool_calls", "function_call"),
            "truncated": ("length",),
            "refused": ("content_filter",),
        },
    ),
    Vendor(
        "OpenAI Responses",
        "API reference, The response object, status and incomplete_details.reason",
        {
            "end": ("completed",),
            "truncated": ("max_output_tokens", "incomplete"),
            "refused": ("content_filter",),
            "failed": ("failed", "cancelled"),
            "unfinished": ("queued", "in_progress"),
        },
    ),
    Vendor(
        "Anthropic Messages",
        "docs, Handling stop reasons",
        {
            "end": ("end_turn", "stop_sequence"),
            "calls": ("tool_use",),
            "truncated": ("max_tokens", "model_context_window_exceeded"),
            "paused": (PAUSED,),
            "refused": ("refusal",),
        },
    ),
    Vendor(
        "Azure OpenAI",
        "learn.microsoft.com, Content filtering: finish_reason content_filter",
        {"refused": ("content_filter",)},
    ),
    Vendor(
        "Gemini",
        "ai.google.dev, API reference, GenerateContentResponse FinishReason (relays pass it on; the compatible endpoint maps it)",
        {
            "end": ("STOP",),
            "truncated": ("MAX_TOKENS",),
            "refused": (
                "SAFETY",
                "RECITATION",
                "LANGUAGE",
                "BLOCKLIST",
                "PROHIBITED_CONTENT",
                "SPII",
                "IMAGE_SAFETY",
                "IMAGE_PROHIBITED_CONTENT",
                "IMAGE_RECITATION",
                "MODEL_ARMOR",
            ),
            "failed": (
                "MALFORMED_FUNCTION_CALL",
                "UNEXPECTED_TOOL_CALL",
                "TOO_MANY_TOOL_CALLS",
                "MISSING_THOUGHT_SIGNATURE",
                "MALFORMED_RESPONSE",
                "NO_IMAGE",
                "IMAGE_OTHER",
            ),
        },
    ),
    Vendor(
        "Mistral",
        "docs.mistral.ai, API, chat completion: finish_reason stop | length | model_length | error | tool_calls",
        {
            "end": ("stop",),
            "calls": ("tool_calls",),
            "truncated": ("length", "model_length"),
            "failed": ("error",),
        },
    ),
    Vendor(
        "DeepSeek",
        "api-docs.deepseek.com, Create Chat Completion, choices.finish_reason",
        {"failed": ("insufficient_system_resource",)},
    ),
    Vendor(
        "OpenRouter",
        "openrouter.ai/docs, Errors: an error after the first token ends the stream with finish_reason error",
        {"failed": ("error",)},
    ),
    Vendor(
        "Zhipu (GLM)",
        "docs.z.ai, Chat Completion: finish_reason (sensitive, network_error, model_context_window_exceeded)",
        {
            "truncated": ("model_context_window_exceeded",),
            "refused": ("sensitive",),
            "failed": ("network_error",),
        },
    ),
    Vendor(
        "Cohere",
        "docs.cohere.com, Chat, finish_reason; v1 also: ERROR_TOXIC, ERROR_LIMIT, USER_CANCEL",
        {
            "end": ("COMPLETE", "STOP_SEQUENCE"),
            "calls": ("TOOL_CALL",),
            "truncated": ("MAX_TOKENS", "ERROR_LIMIT"),
            "refused": ("ERROR_TOXIC",),
            "failed": ("ERROR", "TIMEOUT", "USER_CANCEL"),
        },
    ),
    Vendor(
        "Amazon Bedrock",
        "docs.aws.amazon.com, Converse: stopReason",
        {
            "refused": ("guardrail_intervened", "content_filtered"),
            "failed": ("malformed_model_output", "malformed_tool_use"),
        },
    ),
    Vendor(
        "xAI",
        "docs.x.ai, chat completions: stop | length | end_turn",
        {"end": ("stop", "end_turn"), "truncated": ("length",)},
    ),
    Vendor(
        "Hugging Face TGI",
        "huggingface.co/docs/text-generation-inference, OpenAPI, FinishReason: length | eos_token | stop_sequence",
        {"end": ("eos_token", "stop_sequence"), "truncated": ("length",)},
    ),
    Vendor("Together AI", "docs.together.ai, chat completions: stop | eos | length | tool_calls", {"end": ("eos",)}),
    Vendor(
        "vLLM, SGLang",
        "vLLM's FinishReason: stop | length | abort | error | repetition; SGLang's: abort",
        {"truncated": ("repetition",), "failed": ("abort", "error")},
    ),
    Vendor(
        "IBM watsonx",
        "cloud.ibm.com, watsonx.ai text generation: stop_reason",
        {
            "end": ("eos_token", "stop_sequence"),
            "truncated": ("max_tokens", "token_limit", "time_limit"),
            "failed": ("cancelled", "error"),
        },
    ),
)

KINDS: Final[Mapping[str, Kind]] = {
    reason.lower(): kind for vendor in VENDORS for kind, reasons in vendor.reasons.items() for reason in reasons
}
"""reason in lower case → what it means"""

_OUTCOMES: Final[Mapping[Kind, Outcome]] = {
    "end": Outcome.OK,
    "calls": Outcome.OK,
    "truncated": Outcome.TRUNCATED,
    "paused": Outcome.TRUNCATED,
    "refused": Outcome.REFUSED,
    "failed": Outcome.HTTP_ERROR,
    "unfinished": Outcome.UNREADABLE,
}


class Ending(NamedTuple):
    """How an answer ended, by the reason given for it; `error_type` and `error_message` where that needs a word."""

    outcome: Outcome
    error_type: str | None = None
    error_message: str | None = None


_PLAIN: Final[Mapping[Outcome, Ending]] = {outcome: Ending(outcome) for outcome in Outcome}


def ending(reason: str | None, *, has_calls: bool) -> Ending:
    """The outcome of a finish reason.

    Args:
        reason: as the vendor wrote it; None where none was given.
        has_calls: the answer holds a tool call of the client's.
    """
    if reason is None:
        return Ending(Outcome.OK)
    kind = KINDS.get(reason.lower())
    if kind is None:
        return Ending(Outcome.OK, UNKNOWN_REASON, f"the finish reason {reason[:100]!r} is not known")
    outcome = _OUTCOMES[kind]
    if kind == "unfinished":
        return Ending(outcome, "unfinished", f"the answer is only {reason}")
    if kind == "failed":
        return Ending(outcome, reason[:100], f"the provider ended the answer with the finish reason {reason[:100]!r}")
    if kind == "paused":
        return Ending(outcome, PAUSED, "the turn is paused: the answer goes on in the client's next request")
    if kind == "calls" and not has_calls:
        message = f"the answer ended with the finish reason {reason[:100]!r} and holds no tool call"
        return Ending(Outcome.TRUNCATED, CALLS_MISSING, message)
    return _PLAIN[outcome]


# Errors in answers, in every shape providers and their relays write them, at any status.


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
"""Error codes, in lower case, by which a vendor reports that a filter blocked the prompt or the answer: a refusal, no failure."""
_FILTERED_MESSAGES: Final = ("content exists risk",)
"""DeepSeek's, which has no code of its own"""

_MAY_FAIL: Final = frozenset({"object", "type", "base_resp"})


class Failure(NamedTuple):
    """A provider's error report; `refused`: a content filter, not a fault."""

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
