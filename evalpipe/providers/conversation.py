"""A request in no vendor's terms: what both dialects can say. Readers fill it, renderers write it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from evalpipe.providers.base import NotShadowableError

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
    """`images` can be said to Anthropic only."""

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
        """Append parts; what one side says twice in a row is one turn."""
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
    """Raise NotShadowableError for a parameter nobody here understands: leaving it out could change the answer."""
    for key, value in body.items():
        if value is not None and key not in carried and key not in dropped:
            raise NotShadowableError("unknown_parameter", key[:60])
