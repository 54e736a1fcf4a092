"""Facts that an answer is checked against: the context its model was given, and the answer it should have given. Pure.

A logged row's own columns `context` and `reference` count first (imports fill them). Else they are read from the request as
this arm got it: a JSON path of the configuration, documents, and the results of tools.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evalpipe.providers.conversation import content_text
from evalpipe.providers.json_values import MalformedJSONError, as_dict, as_list, as_text, parse
from evalpipe.store.importers.messages import document_text, fact_text
from evalpipe.store.importers.values import find

FactName = Literal["context", "reference"]

_NEXT = "\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class FactRules:
    """Where facts are found in a request: `[judge.context]`.

    Attributes:
        path: JSON path of the context in the request's body, e.g. `metadata.context` or `messages[0].content`.
        reference: JSON path of the reference answer.
        tool_results: the results of tools count as context.
        documents: so do documents and search results.
    """

    path: str | None = None
    reference: str | None = None
    tool_results: bool = True
    documents: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What an answer is checked against; None where the request holds none."""

    context: str | None = None
    reference: str | None = None

    def lacks(self, names: tuple[str, ...]) -> str | None:
        """The first of these facts that is not there."""
        return next((name for name in names if getattr(self, name) is None), None)

    def mark(self, names: tuple[str, ...]) -> str:
        """A hash of these facts: another context is another question."""
        texts = [str(getattr(self, name)) for name in names]
        sizes = ":".join(str(len(text)) for text in texts)
        return hashlib.sha256(f"{sizes}:{''.join(texts)}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def facts_of(request: str | None, context: str | None, reference: str | None, rules: FactRules) -> Facts:
    """The facts of a logged row.

    Args:
        request: the body of the request, JSON text.
        context: the row's own column, as an import gave it.
        reference: likewise.
        rules: where to look in the request where the columns are empty.
    """
    body: Mapping[str, Any] = {}
    if request is not None and not (_filled(context) and (_filled(reference) or rules.reference is None)):
        body = _body(request)
    if not _filled(context):
        context = _NEXT.join(_context(body, rules))
    if not _filled(reference) and rules.reference is not None:
        reference = fact_text(find(body, rules.reference))
    return Facts(context=_filled(context), reference=_filled(reference))


def _filled(text: str | None) -> str | None:
    return text if text is not None and text.strip() else None


def _body(request: str) -> Mapping[str, Any]:
    try:
        return as_dict(parse(request))
    except MalformedJSONError:  # a request that was logged cut off
        return {}


def _context(body: Mapping[str, Any], rules: FactRules) -> Iterator[str]:
    found: list[str] = []
    if rules.path is not None:
        found.append(fact_text(find(body, rules.path)))
    if rules.documents:
        found += [fact_text(one) for one in as_list(body.get("documents"))]  # vLLM, Cohere
    for message in [*as_list(body.get("messages")), *as_list(body.get("input"))]:
        found += _of_message(as_dict(message), rules)
    yield from dict.fromkeys(text for text in found if text.strip())  # a path may lead to what is found anyhow


def _of_message(message: Mapping[str, Any], rules: FactRules) -> Iterator[str]:
    role, kind = as_text(message.get("role")), as_text(message.get("type")) or ""
    if role in {"tool", "function"} or kind == "tool_result":
        if rules.tool_results:
            yield content_text(message.get("content"))
        return
    if role is None and kind.endswith("_output"):  # the Responses API's results of calls
        if rules.tool_results:
            output = message.get("output")
            yield output if isinstance(output, str) else content_text(output)
        return
    if role is None and kind == "file_search_call":
        if rules.documents:
            for result in as_list(message.get("results")):
                yield document_text(as_dict(result))
        return
    for block in as_list(message.get("content")):
        part = as_dict(block)
        kind = as_text(part.get("type")) or ""
        if kind == "tool_result" and rules.tool_results:
            yield content_text(part.get("content"))
        elif kind in {"document", "search_result"} and rules.documents:
            yield document_text(part)
