"""What a judge is sent, as the parameters of the vendors' SDK methods. Pure, so that it can be printed and tested."""

from __future__ import annotations

from typing import Any

from evalpipe.judging.call import Turns
from evalpipe.judging.spec import JudgeSpec
from evalpipe.providers.models import takes_max_completion_tokens

TOOL = "give_judgment"
_TOOL_TEXT = "Give the judgment. Call it exactly once."


def message_params(spec: JudgeSpec, turns: Turns) -> dict[str, Any]:
    """Parameters of Anthropic's `messages.create`, and of one request of a message batch."""
    params: dict[str, Any] = {
        "model": spec.model,
        "max_tokens": spec.max_tokens,
        "system": spec.system,
        "messages": [{"role": role, "content": text} for role, text in turns],
    }
    if spec.reply == "schema":
        params["output_config"] = {"format": {"type": "json_schema", "schema": spec.schema}}
    elif spec.reply == "tool":
        params["tools"] = [{"name": TOOL, "description": _TOOL_TEXT, "input_schema": spec.schema, "strict": True}]
        params["tool_choice"] = {"type": "tool", "name": TOOL}
    return params


def chat_params(spec: JudgeSpec, turns: Turns) -> dict[str, Any]:
    """Parameters of OpenAI's `chat.completions.create`, which compatible servers and LiteLLM take too."""
    messages = [{"role": "system", "content": spec.system}]
    messages += [{"role": role, "content": text} for role, text in turns]
    limit = "max_completion_tokens" if takes_max_completion_tokens(spec.model) else "max_tokens"
    params: dict[str, Any] = {"model": spec.model, limit: spec.max_tokens, "messages": messages}
    if spec.reply == "schema":
        schema = {"name": "judgment", "strict": True, "schema": spec.schema}
        params["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif spec.reply == "tool":
        function = {"name": TOOL, "description": _TOOL_TEXT, "parameters": spec.schema, "strict": True}
        params["tools"] = [{"type": "function", "function": function}]
        params["tool_choice"] = {"type": "function", "function": {"name": TOOL}}
    return params


def shown_params(spec: JudgeSpec, turns: Turns) -> dict[str, Any]:
    """What is sent for these turns, params of the judge's own included."""
    build = message_params if spec.provider == "anthropic" else chat_params
    return {**build(spec, turns), **spec.params}
