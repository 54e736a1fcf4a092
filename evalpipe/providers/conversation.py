"""A request in no vendor's terms: turns, tools, schemas, and its content as plain text."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from evalpipe.providers.base import NotShadowableError, RequestView
from evalpipe.providers.json_values import as_dict, as_list, as_text, dump

_DATA_URL = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """Either a `url` the provider fetches, or `media_type` and base64 `data`. `detail`: how closely OpenAI shall look, in its
    own word."""

    url: str | None = None
    media_type: str | None = None
    data: str | None = None
    detail: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A PDF as base64 `data`."""

    data: str
    name: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    """`images` can be sent to Anthropic only."""

    id: str
    text: str
    images: tuple[Image, ...] = ()
    is_error: bool = False


Part = Text | Image | Document | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["user", "assistant"]
    parts: list[Part]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    name: str
    description: str | None
    schema: dict[str, Any]
    strict: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolChoice:
    """`name` is set for "named" only."""

    kind: Literal["auto", "none", "required", "named"]
    name: str | None = None


@dataclass(kw_only=True, slots=True)
class Conversation:
    """`parallel`: whether several tools may be called at once, None = the provider's default. `max_tokens` None: no limit
    was asked for. `output_schema`: the JSON schema the answer must follow."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel: bool | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    temperature: float | None = None
    top_p: float | None = None
    output_schema: dict[str, Any] | None = None
    output_schema_name: str | None = None
    streamed: bool = False

    def add(self, role: Literal["user", "assistant"], parts: list[Part]) -> None:
        """Append parts; two consecutive messages of one side are one turn."""
        if self.turns and self.turns[-1].role == role:
            self.turns[-1].parts.extend(parts)
        else:
            self.turns.append(Turn(role, parts))


def read_image_url(url: Any, detail: Any = None) -> Image:
    """An image of a data URL or of an address. Raises NotShadowableError."""
    closely = detail if isinstance(detail, str) else None
    if not isinstance(url, str) or not url:
        raise NotShadowableError("image_unreadable")
    match = _DATA_URL.match(url)
    if match is not None:
        media_type = match[1].lower().replace("image/jpg", "image/jpeg")
        if media_type not in IMAGE_TYPES:
            raise NotShadowableError("image_type", media_type[:60])
        return Image(media_type=media_type, data=url[match.end() :], detail=closely)
    if url.startswith(("https://", "http://")):
        return Image(url=url, detail=closely)
    raise NotShadowableError("image_unreadable", url[:60])


def read_pdf(data: Any, name: Any) -> Document:
    """A PDF given as a data URL (or as bare base64 where `name` ends in .pdf). Raises NotShadowableError."""
    if not isinstance(data, str):
        raise NotShadowableError("provider_file")
    match = _DATA_URL.match(data)
    is_pdf = match[1].lower() == "application/pdf" if match else str(name).lower().endswith(".pdf")
    if not is_pdf:
        raise NotShadowableError("file_type")
    return Document(data=data[match.end() :] if match else data, name=name if isinstance(name, str) else None)


def image_url(image: Image) -> str:
    return image.url or f"data:{image.media_type};base64,{image.data}"


def known_keys(body: dict[str, Any], carried: frozenset[str], dropped: frozenset[str]) -> None:
    """Raise NotShadowableError for an unknown parameter: leaving it out could change the response."""
    for key, value in body.items():
        if value is not None and key not in carried and key not in dropped:
            raise NotShadowableError("unknown_parameter", key[:60])


# Where in its conversation a request is: the user's messages so far, and the assistant's since the last of them.
#
# One function for every dialect and every log, so that a turn means the same wherever a request comes from.


_ROLES = {
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
}
"""other names of the four roles: OpenAI's newer and older ones, LangChain's and Gemini's"""


class Position(NamedTuple):
    """`turn`: number of the client's user messages, from 1; None where it is not known (the provider keeps the conversation).
    `step`: assistant messages or tool calls since the last user message, 0 for an answer to the user; None where the
    request has no messages."""

    turn: int | None
    step: int | None


UNKNOWN = Position(None, None)
"""Of a request that cannot be read, or holds no message."""


def position_of(items: Iterable[Any], *, continues: bool = False, is_stored: bool = False) -> Position:
    """The position of a request by its messages (chat completions, Messages) or input items (Responses).

    Args:
        items: in their order; what is no object is passed over.
        continues: the request names the answer it goes on from (`previous_response_id`): what came before is not in `items`.
        is_stored: the provider keeps the conversation, or its id was given: `items` may be its newest part only.

    Returns:
        Turn and step. A conversation without a user message of its own (a system text alone) is a first turn. A request
        that continues is at least in turn 2; one that only returns tool results adds the step it answers to. A stored
        conversation of which one user message is seen has no known turn: the order of its requests decides.
    """
    n_items = n_users = step = 0
    returns_results = False
    for item in items:
        if not isinstance(item, dict) and not isinstance(item, Mapping):  # the look at a dict is ten times as fast
            continue
        n_items += 1
        role = role_of(item)
        if role == "user":
            n_users, step, returns_results = n_users + 1, 0, False
        elif role == "assistant":
            step += 1
        elif role == "tool":
            returns_results = True
    if not n_items and not (continues or is_stored):
        return UNKNOWN
    if (continues or is_stored) and not n_users and returns_results:
        step += 1  # the call these are the results of was in an answer that the provider keeps
    if continues:
        return Position(max(2, n_users + 1), step)
    return Position(None if is_stored and n_users <= 1 else max(1, n_users), step)


def role_of(item: Mapping[str, Any]) -> str:
    """ "user", "assistant", "system" or "tool"; "" for an item that is no part of the talk (reasoning, references).

    A Messages-API user message that holds nothing but tool results is the tool's.
    """
    role = as_text(item.get("role"))
    if role is None:
        kind = as_text(item.get("type")) or "message"
        if kind == "message":
            return "user"
        return "assistant" if kind.endswith("_call") else "tool" if kind.endswith("_output") else ""
    role = _ROLES.get(role, role)
    return "tool" if role == "user" and _holds_only_results(item.get("content")) else role


def _holds_only_results(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(block, Mapping) and block.get("type") == "tool_result" for block in content)
    )


# Content of any dialect as plain text for people and judges, and the request view built from it.


MARKS = {
    "image_url": "[image]",
    "input_image": "[image]",
    "image": "[image]",
    "file": "[file]",
    "input_file": "[file]",
    "document": "[file]",
    "input_audio": "[audio]",
}
_TAG: Final = re.compile(r"<([A-Za-z][^<>/]{0,100})>")
_HIDDEN = frozenset({"thinking", "redacted_thinking", "reasoning"})


def content_text(content: Any) -> str:
    """A message's content (a string, or a list of parts or blocks) as text: images and files as marks, thinking left out."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return ""
    return "\n".join(text for text in map(_part_text, content) if text)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    part = as_dict(part)
    kind = as_text(part.get("type")) or ""
    for key in ("text", "refusal"):
        text = as_text(part.get(key))
        if text is not None:
            return text
    if kind in MARKS:
        return MARKS[kind]
    if kind == "tool_use":
        return f"[tool call {part.get('name')}: {dump(part.get('input'))}]"
    if kind == "tool_result":
        return content_text(part.get("content"))
    return f"[{kind}]" if kind and kind not in _HIDDEN else ""


def opening_of(messages: Iterable[Mapping[str, Any]]) -> Any:
    """The content of the user message by which a conversation is known: the first one that is more than a frame.

    Coding agents begin every session with messages of their own, each a block in tags (`<environment_context>`) or a file of
    instructions, and the user's words come after them: by the first message all their sessions were one conversation. A frame
    that no word of the user follows before an answer is all there is, and counts.
    """
    first: Any = None
    for message in messages:
        role = message.get("role")
        if role == "assistant":
            break
        content = message.get("content")
        if role != "user" or content is None:
            continue
        if first is None:
            first = content
        if not _is_frame(content_text(content)):
            return content
    return first


def _is_frame(text: str) -> bool:
    """Whether a message is nothing but blocks in tags, or a file of instructions that an agent hands over."""
    text = text.strip()
    if text.startswith("# AGENTS.md instructions"):
        return True
    if not text.startswith("<"):
        return False
    at = 0
    while at < len(text):
        opened = _TAG.match(text, at)
        if opened is None:
            return False
        end = -1
        for name in (opened[1], opened[1].split()[0]):
            closing = f"</{name}>"
            end = text.find(closing, opened.end())
            if end >= 0:
                at = end + len(closing)
                break
        if end < 0:
            return False
        while at < len(text) and text[at].isspace():
            at += 1
    return True


def make_view(
    *,
    model: str | None,
    streamed: bool,
    messages: list[dict[str, str]],
    first_user: Any,
    has_tools: bool,
    usage_requested: bool,
    position: Position,
    usage_left_open: bool = False,
) -> RequestView:
    """The view with the system text first, whatever place the dialect gave it."""
    system = [message for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    return RequestView(
        model=model,
        streamed=streamed,
        messages=[*system, *rest],
        system_text="\n\n".join([message["content"] for message in system]),
        first_user_message=first_user,
        has_tools=has_tools,
        usage_requested=usage_requested,
        usage_left_open=usage_left_open,
        turn=position.turn,
        step=position.step,
    )


# JSON schemas of structured answers, in the subset each vendor enforces.


_BOUNDS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"}
    | {"minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "pattern"}
)


def for_anthropic(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as `output_config.format` takes it: closed objects, bounds in words. Raises NotShadowableError where it is
    recursive or its objects are open: neither can be expressed."""
    definitions = {
        f"#/{key}/{name}": inner for key in ("$defs", "definitions") for name, inner in as_dict(schema.get(key)).items()
    }
    _refuse_recursion(schema, definitions, ())
    closed: dict[str, Any] = _closed(schema)
    return closed


def is_strict_for_anthropic(schema: dict[str, Any]) -> bool:
    """Whether Anthropic's strict tool use takes the schema as it is: closed objects, no bounds, no recursion. Where it does
    not, the tool is better offered with its bounds than strict without them."""
    try:
        return for_anthropic(schema) == schema
    except NotShadowableError:
        return False


def is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes the schema: every object closed, every property required."""
    if isinstance(schema, list):
        return all(is_strict(item) for item in schema)
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict) or schema.get("type") == "object":
        named = as_dict(properties)
        if schema.get("additionalProperties") is not False or set(as_list(schema.get("required"))) != set(named):
            return False
    return all(is_strict(value) for value in schema.values())


def _closed(value: Any) -> Any:
    if isinstance(value, list):
        return [_closed(item) for item in value]
    if not isinstance(value, dict):
        return value
    result: dict[str, Any] = {}
    for key, inner in value.items():
        if key in {"properties", "$defs", "definitions"} and isinstance(inner, dict):
            # The keys in here are names, not keywords.
            result[key] = {name: _closed(sub) for name, sub in inner.items()}
        elif key in {"enum", "const", "default", "examples", "required"}:
            result[key] = inner
        elif key not in _BOUNDS:
            result[key] = _closed(inner)
    bounds = ", ".join(f"{key}: {dump(inner)}" for key, inner in value.items() if key in _BOUNDS)
    if bounds:  # written as text, in the form of Anthropic's own SDK
        described = result.get("description")
        result["description"] = f"{described}\n\n{{{bounds}}}" if described else f"{{{bounds}}}"
    if value.get("type") == "object" or "properties" in value:
        if value.get("additionalProperties") not in (None, False):
            raise NotShadowableError("open_schema")
        result["additionalProperties"] = False
    return result


def _refuse_recursion(value: Any, definitions: dict[str, Any], seen: tuple[str, ...]) -> None:
    if isinstance(value, list):
        for item in value:
            _refuse_recursion(item, definitions, seen)
    elif isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str):
            if reference in seen or reference == "#" or len(seen) > 50:
                raise NotShadowableError("recursive_schema")
            _refuse_recursion(definitions.get(reference), definitions, (*seen, reference))
        for key, inner in value.items():
            if key not in {"$defs", "definitions"}:
                _refuse_recursion(inner, definitions, seen)
