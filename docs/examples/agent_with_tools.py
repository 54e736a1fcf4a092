"""An agent with a tool. Control's calls are run, as always; the treatment's answer is logged and compared, never executed."""

import json
import os
from typing import Any

import openai

client = openai.OpenAI(base_url=os.environ.get("EVALPIPE_URL", "http://127.0.0.1:8400") + "/v1")
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def weather(city: str) -> str:
    """The tool itself: effects happen once, since only control's calls reach it."""
    return f"18 °C and sunny in {city}"


def run(question: str, *, user: str, most_steps: int = 4) -> str:
    """Ask, run the tools that are called for, and ask again until there is an answer."""
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(most_steps):
        answer = client.chat.completions.create(model="gpt-4o", messages=messages, tools=[WEATHER], user=user)
        message = answer.choices[0].message
        if not message.tool_calls:
            return message.content or ""
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            result = weather(**json.loads(call.function.arguments))
            print(f"tool: {call.function.name}({call.function.arguments})")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return "no answer within the steps"


if __name__ == "__main__":
    print(run("What is the weather in Lisbon?", user="u-7"))
