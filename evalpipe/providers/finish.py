"""What the reasons mean by which vendors end an answer: one table, with where each vendor documents them.

A reason that is not in the table is stored and marked (`UNKNOWN_REASON`): never taken for a normal end without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from evalpipe.core.traffic import Outcome

Kind = Literal["end", "calls", "truncated", "paused", "refused", "failed", "unfinished"]

UNKNOWN_REASON: Final = "unknown_finish_reason"
"""`error_type` of an answer that ended for a reason this table does not know; its outcome stays `ok`"""
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


def ending(reason: str | None, *, has_calls: bool) -> Ending:
    """What a finish reason comes to.

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
    return Ending(outcome)
