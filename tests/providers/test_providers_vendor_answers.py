"""Answers as vendors document them: what is stored of each. Every case names the page it is from."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from typing import Any, NamedTuple

import brotli
import pytest
import zstandard

from evalpipe.providers.base import Answer
from evalpipe.providers.outcomes import CALLS_MISSING, KINDS, UNKNOWN_REASON, VENDORS
from evalpipe.providers.registry import answer_reader, read_answer

JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}
CHAT, MESSAGES, RESPONSES = "chat.completions", "messages", "responses"


def sse(*events: Any) -> bytes:
    lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]
    return "".join(line + "\n\n" for line in lines).encode()


def chat(message: dict[str, Any], finish: Any = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return json.dumps({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], **more}).encode()


def chunk(delta: dict[str, Any], finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def message(content: list[Any], stop: Any = "end_turn", **more: Any) -> bytes:
    return json.dumps({"type": "message", "model": "m", "content": content, "stop_reason": stop, **more}).encode()


def response(output: list[Any], status: str = "completed", **more: Any) -> bytes:
    return json.dumps({"object": "response", "model": "m", "status": status, "output": output, **more}).encode()


# (vendor and page, reason, outcome, error_type)
FINISH_REASONS = [
    ("OpenAI, API reference, chat completion object", "stop", "ok", None),
    ("OpenAI, API reference, chat completion object", "length", "truncated", None),
    ("OpenAI, API reference, chat completion object", "content_filter", "refused", None),
    ("OpenAI, API reference, chat completion object", "tool_calls", "truncated", CALLS_MISSING),
    ("OpenAI, API reference, chat completion object", "function_call", "truncated", CALLS_MISSING),
    ("Mistral, docs.mistral.ai API, ChatCompletionChoice.finish_reason", "model_length", "truncated", None),
    ("Mistral, docs.mistral.ai API, ChatCompletionChoice.finish_reason", "error", "http_error", "error"),
    (
        "DeepSeek, Create Chat Completion",
        "insufficient_system_resource",
        "http_error",
        "insufficient_system_resource",
    ),
    ("Gemini, GenerateContentResponse, FinishReason", "STOP", "ok", None),
    ("Gemini, GenerateContentResponse, FinishReason", "MAX_TOKENS", "truncated", None),
    ("Gemini, GenerateContentResponse, FinishReason", "SAFETY", "refused", None),
    ("Gemini, GenerateContentResponse, FinishReason", "RECITATION", "refused", None),
    ("Gemini, GenerateContentResponse, FinishReason", "LANGUAGE", "refused", None),
    ("Gemini, GenerateContentResponse, FinishReason", "BLOCKLIST", "refused", None),
    ("Gemini, GenerateContentResponse, FinishReason", "PROHIBITED_CONTENT", "refused", None),
    ("Gemini, GenerateContentResponse, FinishReason", "SPII", "refused", None),
    ("Gemini, GenerateContentResponse, FinishReason", "IMAGE_SAFETY", "refused", None),
    (
        "Gemini, GenerateContentResponse, FinishReason",
        "MALFORMED_FUNCTION_CALL",
        "http_error",
        "MALFORMED_FUNCTION_CALL",
    ),
    ("Gemini, GenerateContentResponse, FinishReason", "UNEXPECTED_TOOL_CALL", "http_error", "UNEXPECTED_TOOL_CALL"),
    ("Gemini, GenerateContentResponse, FinishReason: 'Unknown reason'", "OTHER", "ok", UNKNOWN_REASON),
    ("Z.ai, Chat Completion", "sensitive", "refused", None),
    ("Z.ai, Chat Completion", "network_error", "http_error", "network_error"),
    ("Z.ai, Chat Completion", "model_context_window_exceeded", "truncated", None),
    ("Cohere, Chat, finish_reason", "COMPLETE", "ok", None),
    ("Cohere, Chat, finish_reason", "STOP_SEQUENCE", "ok", None),
    ("Cohere, Chat, finish_reason", "ERROR", "http_error", "ERROR"),
    ("Cohere, Chat v1, finish_reason", "ERROR_TOXIC", "refused", None),
    ("Cohere, Chat v1, finish_reason", "ERROR_LIMIT", "truncated", None),
    ("Oracle, OCI SDK, CohereChatResponse.FinishReasonEnum", "USER_CANCEL", "http_error", "USER_CANCEL"),
    ("Amazon Bedrock, Converse, stopReason", "guardrail_intervened", "refused", None),
    ("Amazon Bedrock, Converse, stopReason", "content_filtered", "refused", None),
    ("Hugging Face, TGI OpenAPI, FinishReason", "eos_token", "ok", None),
    ("Together AI, chat completions", "eos", "ok", None),
    ("xAI, chat completions", "end_turn", "ok", None),
    ("vLLM, v1 engine FinishReason", "abort", "http_error", "abort"),
    ("vLLM, v1 engine FinishReason", "repetition", "truncated", None),
    ("IBM watsonx.ai, text generation", "token_limit", "truncated", None),
    ("none: a reason no vendor documents", "moon_phase", "ok", UNKNOWN_REASON),
    ("Ollama before 0.1.45, SGLang 0.4: an empty reason in each chunk", "", "ok", None),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("source", "reason", "outcome", "error_type"), FINISH_REASONS)
def test_finish_reasons(source: str, reason: str, outcome: str, error_type: str | None, streamed: bool) -> None:
    body = (
        sse(chunk({"content": "x"}), chunk({}, reason), "data: [DONE]") if streamed else chat({"content": "x"}, reason)
    )
    answer = read_answer(CHAT, 200, SSE if streamed else JSON, body)
    stored = (answer.outcome.value, answer.error_type, answer.finish_reason, answer.text)
    assert stored == (outcome, error_type, reason or None, "x"), source


def test_no_vendor_means_something_else_by_a_reason() -> None:
    for vendor in VENDORS:
        for kind, reasons in vendor.reasons.items():
            assert {KINDS[reason.lower()] for reason in reasons} == {kind}, vendor.name


class Case(NamedTuple):
    """What a page shows, and what is stored of it. `stored`: fields of the answer; `calls`: names and arguments."""

    source: str
    endpoint: str
    body: bytes
    stored: dict[str, Any]
    status: int = 200
    headers: dict[str, str] = JSON


TOOL = {"id": "a", "type": "function", "function": {"name": "w", "arguments": '{"c":"Oslo"}'}}
CALL = [("w", {"c": "Oslo"})]
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
HARMONY = "<|channel|>analysis<|message|>secret<|end|><|start|>assistant<|channel|>final<|message|>Yes"
ITEM = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi", "annotations": []}]}
AZURE_FILTER = {
    "message": "The response was filtered",
    "type": None,
    "param": "prompt",
    "code": "content_filter",
    "status": 400,
}

CASES = {
    # --- errors
    "azure_filter": Case(
        "Azure OpenAI, Content filtering: a filtered prompt is a 400 with the code content_filter",
        CHAT,
        json.dumps({"error": AZURE_FILTER}).encode(),
        {"outcome": "refused", "error_type": "content_filter", "error_message": "The response was filtered"},
        status=400,
    ),
    "azure_filter_inner": Case(
        "Azure OpenAI, Content filtering: innererror.code ResponsibleAIPolicyViolation",
        CHAT,
        b'{"error":{"code":"400","message":"m","innererror":{"code":"ResponsibleAIPolicyViolation"}}}',
        {"outcome": "refused", "error_message": "m"},
        status=400,
    ),
    "deepseek_filter": Case(
        "DeepSeek, error 400 'Content Exists Risk'",
        CHAT,
        b'{"error":{"message":"Content Exists Risk","type":"invalid_request_error","code":"invalid_request_error"}}',
        {"outcome": "refused", "error_message": "Content Exists Risk"},
        status=400,
    ),
    "qwen_filter": Case(
        "Alibaba Model Studio, Error codes: data_inspection_failed",
        CHAT,
        b'{"error":{"code":"data_inspection_failed","message":"Input data may contain inappropriate content."}}',
        {"outcome": "refused", "error_type": "data_inspection_failed"},
        status=400,
    ),
    "openrouter_moderation": Case(
        "OpenRouter, Errors: moderation error metadata (403)",
        CHAT,
        b'{"error":{"code":403,"message":"flagged","metadata":{"reasons":["violence"],"flagged_input":"x"}}}',
        {"outcome": "refused", "error_type": "403", "error_message": "flagged"},
        status=403,
    ),
    "openrouter_midstream": Case(
        "OpenRouter, Errors: mid-stream errors",
        CHAT,
        sse(
            chunk({"content": "Hel"}),
            {**chunk({"content": ""}, "error"), "error": {"code": "server_error", "message": "Provider disconnected"}},
        ),
        {"outcome": "http_error", "error_type": "server_error", "error_message": "Provider disconnected"},
        headers=SSE,
    ),
    "gemini_error": Case(
        "Gemini, Troubleshooting: errors carry code, message and status; the compatible endpoint puts them in a list",
        CHAT,
        b'[{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}]',
        {"outcome": "http_error", "error_type": "UNAVAILABLE", "error_message": "The model is overloaded."},
        status=503,
    ),
    "vllm_error": Case(
        "vLLM, ErrorResponse before 0.11: object error, at the top",
        CHAT,
        b'{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}',
        {"outcome": "http_error", "error_type": "BadRequestError", "error_message": "too long"},
        status=400,
    ),
    "fastapi_detail": Case(
        "FastAPI, Handling errors: {'detail': …}",
        CHAT,
        b'{"detail":"Not authenticated"}',
        {"outcome": "http_error", "error_type": "http_401", "error_message": "Not authenticated"},
        status=401,
    ),
    "fastapi_validation": Case(
        "FastAPI, Handling errors: RequestValidationError",
        CHAT,
        b'{"detail":[{"type":"extra_forbidden","loc":["body","x"],"msg":"Extra inputs are not permitted"}]}',
        {
            "outcome": "http_error",
            "error_type": "extra_forbidden",
            "error_message": "Extra inputs are not permitted",
        },
        status=422,
    ),
    "mistral_error": Case(
        "Mistral, API errors: object error, message, type, code",
        CHAT,
        b'{"object":"error","message":"Unauthorized","type":"invalid_request_error","code":"1500"}',
        {"outcome": "http_error", "error_type": "invalid_request_error", "error_message": "Unauthorized"},
        status=401,
    ),
    "cohere_error": Case(
        "Cohere, Errors: {'message': …}",
        CHAT,
        b'{"message":"invalid api token"}',
        {"outcome": "http_error", "error_type": "http_401", "error_message": "invalid api token"},
        status=401,
    ),
    "minimax_error": Case(
        "MiniMax, ChatCompletion: base_resp.status_code and status_msg, at 200",
        CHAT,
        b'{"id":"","choices":null,"base_resp":{"status_code":1004,"status_msg":"login fail"}}',
        {"outcome": "http_error", "error_type": "1004", "error_message": "login fail"},
    ),
    "minimax_success": Case(
        "MiniMax, ChatCompletion: base_resp.status_code 0 is success",
        CHAT,
        chat({"content": "Hi"}, base_resp={"status_code": 0, "status_msg": ""}),
        {"outcome": "ok", "text": "Hi"},
    ),
    "oauth_error": Case(
        "RFC 6749 5.2, as gateways answer: error and error_description",
        CHAT,
        b'{"error":"invalid_client","error_description":"unknown client"}',
        {"outcome": "http_error", "error_type": "invalid_client", "error_message": "unknown client"},
        status=401,
    ),
    "ollama_error": Case(
        "Ollama, API: {'error': 'model not found'}",
        CHAT,
        b'{"error":"model \\"x\\" not found"}',
        {"outcome": "http_error", "error_type": "http_404", "error_message": 'model "x" not found'},
        status=404,
    ),
    "anthropic_error_event": Case(
        "Anthropic, Streaming: error events may follow a 200",
        MESSAGES,
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
        {"outcome": "http_error", "error_type": "overloaded_error", "error_message": "Overloaded"},
        headers=SSE,
    ),
    "responses_error_event": Case(
        "OpenAI, Responses streaming events: error",
        RESPONSES,
        sse({"type": "error", "code": "ERR_SOMETHING", "message": "went wrong", "param": None, "sequence_number": 1}),
        {"outcome": "http_error", "error_type": "ERR_SOMETHING", "error_message": "went wrong"},
        headers=SSE,
    ),
    "responses_failed": Case(
        "OpenAI, Responses streaming events: response.failed",
        RESPONSES,
        sse(
            {
                "type": "response.failed",
                "response": json.loads(
                    response([], "failed", error={"code": "server_error", "message": "The model failed"})
                ),
            }
        ),
        {"outcome": "http_error", "error_type": "server_error", "error_message": "The model failed"},
        headers=SSE,
    ),
    "json_error_to_a_stream": Case(
        "OpenAI, Errors: an error is JSON whatever was asked for (relays keep the stream's type)",
        CHAT,
        b'{"error":{"message":"quota","type":"insufficient_quota","code":"insufficient_quota"}}',
        {"outcome": "http_error", "error_type": "insufficient_quota", "error_message": "quota"},
        headers=SSE,
    ),
    # --- tool calls
    "gemini_calls": Case(
        "Gemini, OpenAI compatibility: streamed calls come whole, without an index",
        CHAT,
        sse(
            chunk({"tool_calls": [TOOL]}),
            chunk({"tool_calls": [{**TOOL, "id": "b", "function": {"name": "v", "arguments": "{}"}}]}),
            chunk({}, "tool_calls"),
            "data: [DONE]",
        ),
        {"outcome": "ok", "calls": [*CALL, ("v", {})]},
        headers=SSE,
    ),
    "gemini_calls_without_id": Case(
        "Gemini, OpenAI compatibility: ids may be empty",
        CHAT,
        sse(
            chunk({"tool_calls": [{**TOOL, "id": "", "index": 0}]}),
            chunk({"tool_calls": [{**TOOL, "id": "", "index": 0}]}),
            chunk({}, "stop"),
            "data: [DONE]",
        ),
        {"outcome": "ok", "calls": CALL * 2},
        headers=SSE,
    ),
    "openai_call_deltas": Case(
        "OpenAI, Function calling, Streaming: arguments are aggregated by index",
        CHAT,
        sse(
            chunk({"tool_calls": [{**TOOL, "index": 0, "function": {"name": "w", "arguments": ""}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"c":'}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]}),
            chunk({}, "tool_calls"),
            "data: [DONE]",
        ),
        {"outcome": "ok", "calls": CALL, "text": None},
        headers=SSE,
    ),
    "object_arguments": Case(
        "Ollama, Tool calling: arguments are an object",
        CHAT,
        chat({"content": "", "tool_calls": [{"function": {"name": "w", "arguments": {"c": "Oslo"}}}]}, "tool_calls"),
        {"outcome": "ok", "calls": CALL},
    ),
    "custom_tool": Case(
        "OpenAI, Custom tools: input is text",
        CHAT,
        chat({"content": None, "tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "sh", "input": "ls"}}]}),
        {"outcome": "ok", "calls": [("sh", "ls")]},
    ),
    "legacy_function": Case(
        "OpenAI, API reference: function_call (deprecated)",
        CHAT,
        chat({"content": None, "function_call": {"name": "w", "arguments": '{"c":"Oslo"}'}}, "function_call"),
        {"outcome": "ok", "calls": CALL},
    ),
    "anthropic_fine_grained": Case(
        "Anthropic, Fine-grained tool streaming: partial JSON may be cut by max_tokens",
        MESSAGES,
        sse(
            {"type": "message_start", "message": {"usage": {"input_tokens": 1}}},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "tool_use", "id": "a", "name": "w", "input": {}},
            },
            {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"c'}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 4}},
            {"type": "message_stop"},
        ),
        {"outcome": "truncated", "calls": [("w", '{"c')]},
        headers=SSE,
    ),
    "anthropic_server_tool": Case(
        "Anthropic, Web search tool: server_tool_use is run by the server",
        MESSAGES,
        message(
            [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, {"type": "text", "text": "x"}]
        ),
        {"outcome": "ok", "calls": [], "text": "x"},
    ),
    "local_shell": Case(
        "OpenAI, Local shell: local_shell_call is run by the client",
        RESPONSES,
        response(
            [
                {
                    "type": "local_shell_call",
                    "id": "l",
                    "call_id": "c",
                    "status": "completed",
                    "action": {"type": "exec", "command": ["ls"]},
                }
            ]
        ),
        {"outcome": "ok", "calls": [("local_shell", {"type": "exec", "command": ["ls"]})], "text": None},
    ),
    "mcp_approval": Case(
        "OpenAI, MCP: mcp_approval_request waits for the client",
        RESPONSES,
        response(
            [{"type": "mcp_approval_request", "id": "m", "name": "pay", "arguments": '{"n":1}', "server_label": "s"}]
        ),
        {"outcome": "ok", "calls": [("pay", {"n": 1})]},
    ),
    "responses_custom_tool": Case(
        "OpenAI, Responses: custom_tool_call",
        RESPONSES,
        response([{"type": "custom_tool_call", "id": "x", "call_id": "c", "name": "patch", "input": "*** Begin"}]),
        {"outcome": "ok", "calls": [("patch", "*** Begin")]},
    ),
    # --- reasoning
    "deepseek_reasoning": Case(
        "DeepSeek, Reasoning model: reasoning_content beside content",
        CHAT,
        chat({"content": "Yes", "reasoning_content": "secret"}),
        {"outcome": "ok", "text": "Yes"},
    ),
    "groq_reasoning": Case(
        "Groq, Reasoning: reasoning_format parsed",
        CHAT,
        chat({"content": "Yes", "reasoning": "secret"}),
        {"outcome": "ok", "text": "Yes"},
    ),
    "groq_raw": Case(
        "Groq, Reasoning: reasoning_format raw puts <think> into the content",
        CHAT,
        chat({"content": "<think>\nsecret\n</think>\nYes"}),
        {"outcome": "ok", "text": "Yes"},
    ),
    "r1_template": Case(
        "DeepSeek R1, model card: the template ends with <think>, so only the closing tag is generated",
        CHAT,
        chat({"content": "secret\n</think>\n\nYes"}),
        {"outcome": "ok", "text": "Yes"},
    ),
    "two_thoughts": Case(
        "Qwen3, model card: <think></think> may be empty",
        CHAT,
        chat({"content": "<think>\n\n</think>\n\n<think>b</think>Yes"}),
        {"outcome": "ok", "text": "Yes"},
    ),
    "thought_only": Case(
        "Qwen3, model card: an answer cut off within its thinking",
        CHAT,
        chat({"content": "<think>\nsecret and"}, "length"),
        {"outcome": "truncated", "text": ""},
    ),
    "gemini_thought": Case(
        "Gemini, OpenAI compatibility: include_thoughts puts <thought> into the content",
        CHAT,
        chat({"content": "<thought>secret</thought>Yes"}),
        {"outcome": "ok", "text": "Yes"},
    ),
    "magistral": Case(
        "Mistral, Magistral Small, model card: [THINK] … [/THINK]",
        CHAT,
        chat({"content": "[THINK]secret[/THINK]Yes"}),
        {"outcome": "ok", "text": "Yes"},
    ),
    "mistral_parts": Case(
        "Mistral, Reasoning: content is a list with a thinking part",
        CHAT,
        chat(
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "s"}]},
                    {"type": "text", "text": "Yes"},
                ]
            }
        ),
        {"outcome": "ok", "text": "Yes"},
    ),
    "harmony": Case(
        "OpenAI, Harmony response format: channels analysis and final",
        CHAT,
        chat({"content": HARMONY}),
        {"outcome": "ok", "text": "Yes"},
    ),
    "anthropic_thinking": Case(
        "Anthropic, Extended thinking: thinking and redacted_thinking blocks",
        MESSAGES,
        message(
            [{"type": "thinking", "thinking": "s"}, {"type": "redacted_thinking"}, {"type": "text", "text": "Yes"}]
        ),
        {"outcome": "ok", "text": "Yes"},
    ),
    "asked_tags": Case(
        "Anthropic, Prompting: <thinking> tags are the prompt's own convention",
        MESSAGES,
        message([{"type": "text", "text": "<thinking>a</thinking><answer>b</answer>"}]),
        {"outcome": "ok", "text": "<thinking>a</thinking><answer>b</answer>"},
    ),
    "spoken_of_tags": Case(
        "none: an answer about tags",
        CHAT,
        chat({"content": "Write <think> before and\n</think>\nbehind it."}),
        {"outcome": "ok", "text": "Write <think> before and\n</think>\nbehind it."},
    ),
    # --- what is no text
    "audio": Case(
        "OpenAI, Audio: message.audio.transcript",
        CHAT,
        chat({"content": None, "audio": {"id": "a", "data": "AAA", "transcript": "Hello there"}}),
        {"outcome": "ok", "text": "Hello there", "error_type": None},
    ),
    "audio_stream": Case(
        "OpenAI, Audio, streamed: delta.audio",
        CHAT,
        sse(
            chunk({"audio": {"id": "a", "transcript": "Hello "}}),
            chunk({"audio": {"data": "AAA"}}),
            chunk({"audio": {"transcript": "there"}}),
            chunk({}, "stop"),
            "data: [DONE]",
        ),
        {"outcome": "ok", "text": "Hello there"},
        headers=SSE,
    ),
    "images": Case(
        "OpenRouter, Image generation: message.images",
        CHAT,
        chat({"content": "", "images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}),
        {"outcome": "ok", "text": "[image]", "error_type": "not_text"},
    ),
    "images_and_text": Case(
        "OpenRouter, Image generation: a text beside message.images",
        CHAT,
        chat({"content": "Here.", "images": [{"type": "image_url"}]}),
        {"outcome": "ok", "text": "Here.\n[image]", "error_type": "not_text"},
    ),
    "image_generation": Case(
        "OpenAI, Image generation tool: image_generation_call",
        RESPONSES,
        response([{"type": "image_generation_call", "id": "i", "status": "completed", "result": "AAAA"}]),
        {"outcome": "ok", "text": "[image]", "error_type": "not_text"},
    ),
    "web_search_only": Case(
        "OpenAI, Web search: web_search_call without a message",
        RESPONSES,
        response([{"type": "web_search_call", "id": "w", "status": "completed"}]),
        {"outcome": "ok", "text": "", "error_type": "not_text"},
    ),
    "pause_turn": Case(
        "Anthropic, Handling stop reasons: pause_turn",
        MESSAGES,
        message([{"type": "text", "text": "Let me"}], "pause_turn"),
        {"outcome": "truncated", "error_type": "pause_turn", "finish_reason": "pause_turn"},
    ),
    "tool_use_without_block": Case(
        "Anthropic, Handling stop reasons: tool_use comes with a tool_use block",
        MESSAGES,
        message([{"type": "text", "text": "Let me"}], "tool_use"),
        {"outcome": "truncated", "error_type": CALLS_MISSING},
    ),
    "refusal_explained": Case(
        "Anthropic, Messages API: stop_details.explanation",
        MESSAGES,
        message([], "refusal", stop_details={"type": "refusal", "explanation": "I can't."}),
        {"outcome": "refused", "text": "I can't."},
    ),
    "queued": Case(
        "OpenAI, Background mode: queued",
        RESPONSES,
        response([], "queued"),
        {"outcome": "unreadable", "error_type": "unfinished"},
    ),
    "unknown_incomplete": Case(
        "OpenAI, The response object: incomplete_details.reason may be new",
        RESPONSES,
        response([ITEM], "incomplete", incomplete_details={"reason": "max_tool_calls"}),
        {"outcome": "truncated", "error_type": UNKNOWN_REASON, "text": "Hi"},
    ),
    # --- usage
    "groq_usage": Case(
        "Groq, Chat completion chunk: x_groq.usage",
        CHAT,
        sse(chunk({"content": "x"}), chunk({}, "stop", x_groq={"id": "r", "usage": USAGE}), "data: [DONE]"),
        {"tokens": (9, 3)},
        headers=SSE,
    ),
    "moonshot_usage": Case(
        "Moonshot, Streaming: usage in the last choice",
        CHAT,
        sse(
            chunk({"content": "x"}),
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]},
            "data: [DONE]",
        ),
        {"tokens": (9, 3)},
        headers=SSE,
    ),
    "zeros": Case(
        "none: a server that does not count",
        CHAT,
        chat({"content": "x"}, usage={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
        {"tokens": (None, None)},
    ),
    "zeros_after_counts": Case(
        "none: counts, then a chunk of zeros",
        CHAT,
        sse(chunk({"content": "x"}, "stop", usage=USAGE), chunk({}, usage={"prompt_tokens": 0}), "data: [DONE]"),
        {"tokens": (9, 3)},
        headers=SSE,
    ),
    "messages_start_alone": Case(
        "Anthropic, Streaming: message_start's output_tokens are of the beginning; message_delta's are cumulative",
        MESSAGES,
        sse(
            {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            {"type": "message_stop"},
        ),
        {"tokens": (9, None)},
        headers=SSE,
    ),
    # --- framing
    "bom": Case("httpx, json(): utf-8-sig", CHAT, codecs.BOM_UTF8 + chat({"content": "é"}), {"text": "é"}),
    "utf16": Case(
        "RFC 4627 3, json.detect_encoding", CHAT, chat({"content": "é"}).decode().encode("utf-16"), {"text": "é"}
    ),
    "utf32": Case(
        "RFC 4627 3, json.detect_encoding", CHAT, chat({"content": "é"}).decode().encode("utf-32-be"), {"text": "é"}
    ),
    "nan": Case(
        "Python, json: NaN and Infinity are read",
        CHAT,
        chat({"content": "x"}, logprobs=float("nan"), score=float("-inf")),
        {"outcome": "ok", "text": "x"},
    ),
    "stacked": Case(
        "RFC 9110 8.4: codings are named in the order in which they were applied",
        CHAT,
        brotli.compress(gzip.compress(chat({"content": "x"}))),
        {"text": "x"},
        headers={"content-encoding": "gzip, br"},
    ),
    "unknown_coding": Case(
        "httpx, decoders: a coding it does not know is passed over",
        CHAT,
        zstandard.compress(chat({"content": "x"})),
        {"text": "x"},
        headers={"content-encoding": "utf-8, zstd"},
    ),
    "raw_deflate": Case(
        "RFC 9110 8.4.1.2: some servers send deflate without the zlib format",
        CHAT,
        zlib.compress(chat({"content": "x"}), wbits=-15),
        {"text": "x"},
        headers={"content-encoding": "deflate"},
    ),
    "sse_as_json": Case(
        "WHATWG HTML 9.2: the OpenAI and Anthropic SDKs do not look at the type",
        CHAT,
        sse(chunk({"content": "x"}, "stop"), "data: [DONE]"),
        {"outcome": "ok", "text": "x"},
    ),
    "sse_comments": Case(
        "OpenRouter, Streaming: comments keep the connection alive",
        CHAT,
        sse(": OPENROUTER PROCESSING", chunk({"content": "x"}, "stop"), "data: [DONE]"),
        {"outcome": "ok", "text": "x"},
        headers={"content-type": "text/plain"},
    ),
    "azure_first_chunk": Case(
        "Azure OpenAI, Content filtering, streaming: the first chunk has no choice and names no model",
        CHAT,
        sse({"choices": [], "model": "", "prompt_filter_results": []}, chunk({"content": "x"}, "stop"), "data: [DONE]"),
        {"outcome": "ok", "text": "x", "model": "m"},
        headers=SSE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_documented_answers(name: str) -> None:
    case = CASES[name]
    answer = read_answer(case.endpoint, case.status, case.headers, case.body)
    assert {key: stored(answer, key) for key in case.stored} == case.stored, case.source
    if answer.assembled is not None:
        json.loads(answer.assembled, parse_constant=pytest.fail)


def stored(answer: Answer, key: str) -> Any:
    if key == "calls":
        return [(call["name"], call["arguments"]) for call in answer.tool_calls]
    if key == "tokens":
        return answer.usage.input_tokens, answer.usage.output_tokens
    value = getattr(answer, key)
    return value.value if key == "outcome" else value


def test_reasoning_is_left_out_of_a_stream_however_it_is_cut() -> None:
    text = "\n<think>a </thin> b</think>\n\n<think>c</think> Yes <think>no</think>"
    for size in range(1, len(text) + 1):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        body = sse(*(chunk({"content": piece}) for piece in pieces), chunk({}, "stop"), "data: [DONE]")
        assert read_answer(CHAT, 200, SSE, body).text == "Yes <think>no</think>"


def test_a_plain_answer_that_broke_off_is_not_whole_even_where_its_json_is() -> None:
    body = chat({"content": "x"})
    answer = read_answer(CHAT, 200, JSON, body, ended="cut")
    assert (answer.outcome.value, answer.error_type) == ("unreadable", "cut")


def test_blocks_that_begin_out_of_order_are_told_in_the_order_recorded() -> None:
    """No vendor sends it so; a relay that mixes up its indexes must not swap the calls of the user and of the record."""
    partial = {"type": "input_json_delta", "partial_json": None}
    body = sse(
        {"type": "message_start", "message": {"usage": None}},
        {"type": "content_block_delta", "index": 1, "delta": partial},
        {"type": "content_block_delta", "index": 0, "delta": {**partial, "partial_json": '{"c":1}'}},
        {"type": "message_stop"},
    )
    reader = answer_reader(MESSAGES, 200, SSE)
    reader.feed(body)
    recorded = reader.finish().tool_calls
    assert [call["arguments"] for call in recorded] == [{}, {"c": 1}]
    assert [piece.call for piece in reader.pieces if piece.kind == "call"] == [0, 1]
