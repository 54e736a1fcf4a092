"""Requests to a simulated provider, in any of the three dialects, and the corpus it answers from."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalpipe.errors import ConfigError
from evalpipe.providers.base import ReplyCall, RequestView, Stop
from evalpipe.providers.conversation import content_text
from evalpipe.providers.json_values import MalformedJSONError, as_count, as_dict, as_list, as_text, dump, parse
from evalpipe.providers.model_names import is_newer_claude, takes_max_completion_tokens
from evalpipe.providers.registry import DIALECTS

TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 800
_IMAGE = re.compile(r"\[image\]")


class BadRequestError(Exception):
    """What the provider would answer 400 to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OfferedTool:
    name: str
    schema: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SimRequest:
    """`must_call`: names of tools one of which has to be called; None: as the model likes. `cacheable_tokens`: tokens up
    to the last cache mark (Anthropic)."""

    endpoint: str
    body: dict[str, Any]
    view: RequestView
    model: str
    key: str
    input_tokens: int
    max_tokens: int | None
    stop: list[str] = field(default_factory=list)
    schema: dict[str, Any] | None = None
    tools: list[OfferedTool] = field(default_factory=list)
    must_call: list[str] | None = None
    may_call: bool = True
    parallel: bool = True
    cacheable_tokens: int = 0

    @property
    def last_user_text(self) -> str:
        return next((m["content"] for m in reversed(self.view.messages) if m["role"] == "user"), "")

    @property
    def awaits_tools(self) -> bool:
        """Whether the response follows a user's message, not a tool's result."""
        last = as_dict(next(reversed(as_list(self.body.get("messages")) or as_list(self.body.get("input"))), None))
        blocks = as_list(last.get("content"))
        is_result = any(as_dict(block).get("type") == "tool_result" for block in blocks)
        return not (last.get("role") == "tool" or is_result or last.get("type") == "function_call_output")


def read_sim_request(endpoint: str, body: Any) -> SimRequest:
    """The facts of a request. Raises BadRequestError with the provider's kind of message."""
    if not isinstance(body, dict):
        raise BadRequestError("the body is not a JSON object")
    model = as_text(body.get("model"))
    if not model:
        raise BadRequestError("model: field required")
    view = DIALECTS[endpoint].read_request(body)
    if not [message for message in view.messages if message["role"] != "system"]:
        raise BadRequestError("input: field required" if endpoint == "responses" else "messages: field required")
    max_tokens = _max_tokens(endpoint, body, model)
    if endpoint == "messages":
        _check_messages(body, model)
    tools = [_tool(as_dict(tool)) for tool in as_list(body.get("tools"))]
    must_call, may_call = _choice(body.get("tool_choice"), [tool.name for tool in tools])
    schema = _schema(body)
    texts = "".join(message["content"] for message in view.messages)
    extra = (dump(body["tools"]) if tools else "") + (dump(schema) if schema else "")
    n_images = len(_IMAGE.findall(texts))
    return SimRequest(
        endpoint=endpoint,
        body=body,
        view=view,
        model=model,
        key=conversation_key(view.messages),
        input_tokens=count_tokens(texts + extra)
        + TOKENS_PER_MESSAGE * len(view.messages)
        + TOKENS_PER_IMAGE * n_images,
        max_tokens=max_tokens,
        stop=_stop(body),
        schema=schema,
        tools=tools,
        must_call=must_call,
        may_call=may_call,
        parallel=body.get("parallel_tool_calls") is not False
        and as_dict(body.get("tool_choice")).get("disable_parallel_tool_use") is not True,
        cacheable_tokens=_cacheable_tokens(body) if endpoint == "messages" else 0,
    )


def _max_tokens(endpoint: str, body: dict[str, Any], model: str) -> int | None:
    if endpoint == "messages":
        limit = as_count(body.get("max_tokens"))
        if not limit:
            raise BadRequestError("max_tokens: field required")
        return limit
    if endpoint == "responses":
        return as_count(body.get("max_output_tokens"))
    if body.get("max_tokens") is not None and takes_max_completion_tokens(model):
        raise BadRequestError(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
    return as_count(body.get("max_completion_tokens")) or as_count(body.get("max_tokens"))


def _check_messages(body: dict[str, Any], model: str) -> None:
    messages = [as_dict(message) for message in as_list(body.get("messages"))]
    if messages[0].get("role") != "user":
        raise BadRequestError('messages: first message must use the "user" role')
    for message in messages:
        if message.get("role") not in {"user", "assistant"}:
            raise BadRequestError(f"messages: unexpected role {message.get('role')!r}")
        content = message.get("content")
        empty = [b for b in as_list(content) if as_dict(b).get("type") == "text" and not as_dict(b).get("text")]
        if not content or empty:
            raise BadRequestError("messages: text content blocks must be non-empty")
    if not is_newer_claude(model):
        return
    for key in ("temperature", "top_p", "top_k"):
        if body.get(key) is not None:
            raise BadRequestError(f"{key}: not supported by this model")
    if as_dict(body.get("thinking")).get("budget_tokens") is not None:
        raise BadRequestError("thinking.budget_tokens: not supported by this model")
    if messages[-1].get("role") == "assistant":
        raise BadRequestError("prefilling the assistant's answer is not supported by this model")


def _tool(tool: dict[str, Any]) -> OfferedTool:
    function = as_dict(tool.get("function")) or tool
    schema = as_dict(function.get("parameters")) or as_dict(function.get("input_schema"))
    return OfferedTool(name=as_text(function.get("name")) or "", schema=schema)


def _choice(choice: Any, names: list[str]) -> tuple[list[str] | None, bool]:
    kind = choice if isinstance(choice, str) else as_text(as_dict(choice).get("type"))
    if kind == "none":
        return None, False
    if kind in {"required", "any"}:
        return names, True
    if kind in {"function", "tool"}:
        named = as_dict(choice)
        name = as_text(as_dict(named.get("function")).get("name")) or as_text(named.get("name"))
        if name not in names:
            raise BadRequestError(f"tool_choice: {name!r} is not among the tools")
        return [name], True
    return None, True


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    for wanted in (
        as_dict(as_dict(body.get("output_config")).get("format")),
        as_dict(as_dict(body.get("text")).get("format")),
        as_dict(body.get("response_format")),
    ):
        if wanted.get("type") == "json_schema":
            return as_dict(as_dict(wanted.get("json_schema")).get("schema")) or as_dict(wanted.get("schema"))
        if wanted.get("type") == "json_object":
            return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return None


def _stop(body: dict[str, Any]) -> list[str]:
    stop = body.get("stop_sequences") or body.get("stop")
    words = [stop] if isinstance(stop, str) else as_list(stop)
    return [word for word in words if isinstance(word, str) and word]


def _cacheable_tokens(body: dict[str, Any]) -> int:
    """Tokens of the prefix up to the last cache mark: tools, then system, then messages."""
    total = marked = 0
    blocks: list[Any] = [*as_list(body.get("tools"))]
    blocks += as_list(body.get("system")) or ([body["system"]] if as_text(body.get("system")) else [])
    for message in map(as_dict, as_list(body.get("messages"))):
        content = message.get("content")
        blocks += as_list(content) or [content]
    for block in blocks:
        total += count_tokens(as_text(as_dict(block).get("text")) or (block if isinstance(block, str) else dump(block)))
        if as_dict(block).get("cache_control"):
            marked = total
    return total if body.get("cache_control") else marked


# What the models answer: a JSONL file of recorded answers, looked up by model and conversation.
#
# One line an answer:
#
#     {"model": "smollm2-135m-instruct",            "*": for any model
#      "prompt": "…" or "messages": [{"role", "content"}, …],   system message first where there is one
#      "text": "…",                                 the answer; null where there are only tool calls
#      "finish_reason": "stop",                     stop | length | tool_calls | content_filter (or Anthropic's words)
#      "input_tokens": 31, "output_tokens": 87,     optional: counted from the characters where absent
#      "latency_ms": 812.4, "ttft_ms": 96.1,        optional: paced by the settings where absent
#      "tool_calls": [{"id", "name", "arguments"}]} optional; arguments as an object or as JSON text
#
# A `pairs` file ({"prompt", "response_a", "response_b", "model_a", "model_b"}) is a corpus too: two answers a line, for
# the models named, or "control" and "treatment" where none is. Conversations are compared by their words alone: roles
# of system and user, spaces and line breaks, and the dialect they come in make no difference.


_STOPS: Mapping[str, Stop] = {
    "length": "max_tokens",
    "max_tokens": "max_tokens",
    "tool_calls": "tool_use",
    "tool_use": "tool_use",
    "content_filter": "refusal",
    "refusal": "refusal",
    "stop_sequence": "stop_sequence",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedAnswer:
    """One answer of a model. Times in ms; None: not recorded."""

    text: str | None
    stop: Stop = "end"
    calls: tuple[ReplyCall, ...] = field(default=())
    input_tokens: int | None = None
    output_tokens: int | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None


class Corpus:
    """Recorded answers by model and conversation."""

    def __init__(self, answers: Iterable[tuple[str, str, RecordedAnswer]] = ()) -> None:
        self._answers = {(model, key): answer for model, key, answer in answers}

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def models(self) -> list[str]:
        return sorted({model for model, _ in self._answers if model != "*"})

    def find(self, model: str, key: str) -> RecordedAnswer | None:
        """The answer of `model` to the conversation with this `conversation_key`."""
        return self._answers.get((model, key)) or self._answers.get(("*", key))


def conversation_key(messages: Iterable[Mapping[str, Any]]) -> str:
    """What a conversation is recognised by, in any dialect: its words without spaces, and their roles."""
    digest = hashlib.sha256()
    for message in messages:
        speaker = b"a" if message.get("role") == "assistant" else b"u"
        words = "".join(content_text(message.get("content")).split())
        if words:
            digest.update(speaker + words.encode("utf-8", "replace"))
    return digest.hexdigest()


def load_corpus(path: Path) -> Corpus:
    """Read a corpus file. Raises ConfigError naming the file and line of the first mistake."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the corpus {path}: {error.strerror}") from error
    answers: list[tuple[str, str, RecordedAnswer]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                answers += _read_line(as_dict(parse(line)))
            except (MalformedJSONError, ValueError) as error:
                raise ConfigError(f"{path}:{number}: {error}") from error
    return Corpus(answers)


def _read_line(row: dict[str, Any]) -> list[tuple[str, str, RecordedAnswer]]:
    prompt = row.get("messages") or row.get("prompt")
    if not isinstance(prompt, str | list):
        raise ValueError('neither "prompt" nor "messages"')
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    key = conversation_key(map(as_dict, messages))
    if "response_a" in row or "response_b" in row:
        return [
            (
                as_text(row.get(f"model_{seat}")) or arm,
                key,
                RecordedAnswer(text=as_text(row.get(f"response_{seat}")) or ""),
            )
            for seat, arm in (("a", "control"), ("b", "treatment"))
        ]
    model = as_text(row.get("model"))
    if model is None:
        raise ValueError('no "model"')
    return [(model, key, _read_answer(row))]


def _read_answer(row: dict[str, Any]) -> RecordedAnswer:
    calls = tuple(
        ReplyCall(
            id=as_text(call.get("id")) or f"call_{number}",
            name=as_text(call.get("name")) or "",
            arguments=_arguments(call.get("arguments")),
        )
        for number, call in enumerate(map(as_dict, _list_of(row.get("tool_calls"))))
    )
    return RecordedAnswer(
        text=as_text(row.get("text")),
        stop=_STOPS.get(as_text(row.get("finish_reason")) or "", "tool_use" if calls else "end"),
        calls=calls,
        input_tokens=as_count(row.get("input_tokens")),
        output_tokens=as_count(row.get("output_tokens")),
        latency_ms=_milliseconds(row.get("latency_ms")),
        ttft_ms=_milliseconds(row.get("ttft_ms")),
    )


def _arguments(value: Any) -> str:
    return value if isinstance(value, str) else dump(value if isinstance(value, dict) else {})


def _list_of(value: Any) -> list[Any]:
    # Parquet exports carry JSON columns as text.
    return as_list(json.loads(value)) if isinstance(value, str) and value else as_list(value)


def _milliseconds(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and value >= 0 else None


# Text generated for prompts that are in no corpus: the same for the same request, of plausible length, and JSON where JSON is
# due.


_WORDS = [
    "the", "answer", "depends", "on", "what", "you", "measure", "and", "how", "often", "it", "changes", "so",
    "start", "with", "small", "steps", "keep", "notes", "compare", "both", "results", "before", "deciding", "ask",
    "again", "when", "something", "looks", "odd", "most", "people", "find", "that", "clear", "examples", "help",
    "more", "than", "long", "explanations", "while", "careful", "checks", "save", "time", "later", "and", "a",
    "short", "summary", "at", "the", "end", "makes", "it", "easy", "to", "remember",
]  # fmt: skip
CHARACTERS_PER_TOKEN = 4


def count_tokens(text: str) -> int:
    """Tokens of a text, four characters each: simulated models have no tokenizer."""
    return (len(text) + CHARACTERS_PER_TOKEN - 1) // CHARACTERS_PER_TOKEN


def seeded(*parts: object) -> random.Random:
    """A random generator that depends on `parts` alone."""
    return random.Random(hashlib.sha256(repr(parts).encode("utf-8", "replace")).digest())


def made_up_text(rng: random.Random) -> str:
    """A few sentences, 15 to 120 words."""
    left = rng.randint(15, 120)
    sentences = []
    while left > 0:
        words = rng.choices(_WORDS, k=min(left, rng.randint(6, 16)))
        left -= len(words)
        sentences.append(" ".join(words).capitalize() + ".")
    return " ".join(sentences)


def made_up_json(schema: Any, rng: random.Random) -> str:
    """A JSON text that follows the schema's types, enums and properties."""
    root = as_dict(schema)
    return dump(_value(root, root, rng, depth=0))


def _value(schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> Any:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        definitions = as_dict(root.get("$defs")) or as_dict(root.get("definitions"))
        return _value(as_dict(definitions.get(name)), root, rng, depth + 1) if depth < 20 else None
    if as_list(schema.get("enum")):
        return rng.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    for key in ("anyOf", "oneOf", "allOf"):
        if as_list(schema.get(key)):
            return _value(as_dict(schema[key][0]), root, rng, depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or "properties" in schema:
        properties = as_dict(schema.get("properties"))
        return {name: _value(as_dict(inner), root, rng, depth + 1) for name, inner in properties.items()}
    if kind == "array":
        return [_value(as_dict(schema.get("items")), root, rng, depth + 1) for _ in range(rng.randint(1, 3))]
    simple: dict[Any, Any] = {
        "integer": rng.randint(0, 10),
        "number": round(rng.uniform(0, 10), 2),
        "boolean": rng.random() < 0.5,
        "null": None,
    }
    return simple.get(kind, " ".join(rng.choices(_WORDS, k=rng.randint(1, 6))))
