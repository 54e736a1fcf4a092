"""Judge prompts as a simulated judge reads them: the fenced blocks, the dimensions, the scale, the shape of the reply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalpipe.providers.jsontext import as_dict, dump
from evalpipe.sim.requests import SimRequest

# The layout that evalpipe.judging.rubric documents; a room of its own may not be imported from here.
_BLOCK = re.compile(r'<(request|response(?:-[12])?)-([0-9a-f]{16})(?: state="(\w+)")?>\n(.*?)\n?</\1-\2>', re.DOTALL)
_SCALE = re.compile(r"from (-?\d+(?:\.\d+)?) \(worst\) to (-?\d+(?:\.\d+)?) \(best\)")
_DIMENSION = re.compile(r"^- ([A-Za-z_][\w-]*):", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownResponse:
    text: str
    state: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgePrompt:
    """`responses`: two where pairs are judged, one where answers are judged alone. `n_turns`: a repair has more than one."""

    request: str
    responses: tuple[ShownResponse, ...]
    dimensions: tuple[str, ...]
    scale: tuple[float, float]
    with_reasoning: bool
    n_turns: int
    nonce: str

    def reply(self, scores: list[float], winner: str | None, reasoning: str) -> str:
        """The reply's JSON: the scores are per response in [0, 1], told on the judge's own scale."""
        low, high = self.scale
        whole = high - low >= 2

        def scored(score: float) -> dict[str, float]:
            value = low + score * (high - low)
            return dict.fromkeys(self.dimensions, round(value) if whole else round(value, 2))

        document: dict[str, Any] = {"reasoning": reasoning} if self.with_reasoning else {}
        if winner is None:
            return dump({**document, **scored(scores[0])})
        return dump({**document, "response_1": scored(scores[0]), "response_2": scored(scores[1]), "winner": winner})


def read_judge_prompt(request: SimRequest) -> JudgePrompt | None:
    """The judge prompt in a request, None where it is an ordinary one."""
    users = [message["content"] for message in request.view.messages if message["role"] == "user"]
    if not users or "<request-" not in users[0]:
        return None
    blocks: dict[str, ShownResponse] = {}
    nonce = ""
    for tag, code, state, text in _BLOCK.findall(users[0]):
        blocks.setdefault(tag, ShownResponse(text=text, state=state or None))
        nonce = nonce or code
    names = [name for name in ("response", "response-1", "response-2") if name in blocks]
    if "request" not in blocks or names not in (["response"], ["response-1", "response-2"]):
        return None
    schema = _reply_schema(request)
    system = request.view.system_text
    scale = _SCALE.search(system)
    return JudgePrompt(
        request=blocks["request"].text,
        responses=tuple(blocks[name] for name in names),
        dimensions=_dimensions(schema, paired=len(names) == 2) or tuple(_DIMENSION.findall(system)) or ("accuracy",),
        scale=(float(scale[1]), float(scale[2])) if scale else ((0.0, 10.0) if len(names) == 2 else (0.0, 1.0)),
        with_reasoning="reasoning" in _properties(schema) if schema else '"reasoning"' in system,
        n_turns=len(users),
        nonce=nonce,
    )


def _reply_schema(request: SimRequest) -> dict[str, Any] | None:
    """The schema of the reply: of the structured output, or of the tool that must be called."""
    if request.schema is not None:
        return request.schema
    if request.must_call:
        return next((tool.schema for tool in request.tools if tool.name == request.must_call[0]), None)
    return None


def _dimensions(schema: dict[str, Any] | None, *, paired: bool) -> tuple[str, ...]:
    if schema is None:
        return ()
    properties: Mapping[str, Any] = _properties(schema)
    if paired:
        properties = _properties(as_dict(properties.get("response_1")))
    return tuple(name for name in properties if name not in {"reasoning", "winner"})


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    return as_dict(schema.get("properties"))
