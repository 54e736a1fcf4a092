"""Which format a source is in, by its first documents; and what to report of a file in no known format."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalpipe.errors import ConfigError
from evalpipe.store.importers import IMPORTERS, detect, format_names
from evalpipe.store.importers.base import Importer
from evalpipe.store.importers.containers import Source
from evalpipe.store.importers.mapping import Mapped, columns_of, listed, mapped_in
from evalpipe.store.importers.values import normal, opened

LOOK = 200
"""Documents that are looked at before a source's format is decided."""
_MAX_DEPTH = 3
_TRIED = 5


@dataclass(slots=True)
class Examined:
    """A source and how it is read. `inner`: keys on the way to the documents of the format, where they are wrapped. `sample`: the
    first documents, unwrapped. `importer` None: in no format that is known."""

    source: Source
    importer: Importer | None
    inner: tuple[str, ...] = ()
    sample: list[Any] = field(default_factory=list)
    is_empty: bool = False

    def unwrapped(self, document: Any) -> Iterator[Any]:
        """The format's documents in one of the file's."""
        if not self.inner or (self.importer is not None and self.importer.matches(document)):
            yield document
            return
        yield from _inside(document, self.inner)


def _inside(document: Any, keys: Sequence[str]) -> Iterator[Any]:
    value = document
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            yield document  # another shape than the rest: its reader reports it
            return
        value = opened(value[key])
    if isinstance(value, list):
        yield from value
    else:
        yield value


def examine(
    source: Source, format_name: str = "auto", mapped: Mapped | None = None, *, may_lack: bool = False
) -> Examined:
    """Look at the first documents of a source; `may_lack` as in `mapped_in`.

    Raises ConfigError for an unknown format, for one whose shape no document has, and for a mapping whose paths lead
    nowhere; DataError for what cannot be read.
    """
    candidates = importers_named(format_name)
    documents = [one.value for one in itertools.islice(source.documents(), LOOK) if one.problem is None]
    if not documents:
        n_broken = sum(1 for _ in itertools.islice(source.documents(), LOOK))
        if not n_broken:
            return Examined(source, None, is_empty=True)
    if mapped is not None:
        importer = mapped.importer()
        inner = (
            ()
            if any(map(importer.matches, documents))
            else _path_to(documents, importer.matches) or _path_to_rows(documents)
        )
        sample = [one for document in documents for one in _inside(document, inner)] if inner else documents
        here = mapped_in(mapped, sample, source.name, may_lack=may_lack)
        return Examined(source, here.importer(), inner, sample)
    best = _most_matched(documents, candidates)
    if best is not None:
        return Examined(source, best, (), documents)
    found = _wrapped(documents, candidates)
    if found is not None:
        importer, inner = found
        return Examined(source, importer, inner, [one for document in documents for one in _inside(document, inner)])
    if format_name != "auto":
        if not documents:
            return Examined(source, candidates[0], (), documents)
        seen = next((one for one in map(detect, documents) if one is not None), None)
        what = f"it looks like {seen.name}" if seen is not None else describe(source.name, source.kind, documents)
        raise ConfigError(
            f"--format {format_name}: no entry at the beginning of {source.name} has the shape of {format_name}: {what}"
        )
    inner = _path_to_rows(documents)
    sample = [one for document in documents for one in _inside(document, inner)] if inner else documents
    return Examined(source, None, inner, sample)


def importers_named(format_name: str) -> Sequence[Importer]:
    """Every importer of that name. Raises ConfigError for a name that none has."""
    if format_name == "auto":
        return IMPORTERS
    found = [importer for importer in IMPORTERS if importer.name == format_name]
    if not found:
        raise ConfigError(f"--format {format_name}: no such format; known are auto, spool, {', '.join(format_names())}")
    return found


def _most_matched(documents: Sequence[Any], candidates: Sequence[Importer]) -> Importer | None:
    counted: Counter[int] = Counter()
    for document in documents:
        found = next((at for at, importer in enumerate(candidates) if importer.matches(document)), None)
        if found is not None:
            counted[found] += 1
    return candidates[counted.most_common(1)[0][0]] if counted else None


def _wrapped(documents: Sequence[Any], candidates: Sequence[Importer]) -> tuple[Importer, tuple[str, ...]] | None:
    """(the importer, the keys on the way) of documents that lie inside of others."""
    for document in documents[:_TRIED]:
        for keys, items in _insides(document):
            importer = _most_matched(items[:_TRIED], candidates)
            if importer is not None:
                return importer, keys
    return None


def _path_to(documents: Sequence[Any], matches: Any) -> tuple[str, ...]:
    for document in documents[:_TRIED]:
        for keys, items in _insides(document):
            if any(map(matches, items[:_TRIED])):
                return keys
    return ()


def _path_to_rows(documents: Sequence[Any]) -> tuple[str, ...]:
    """Where the rows of a file that is one object lie: its longest list of objects."""
    if len(documents) != 1:
        return ()
    lists = [
        (len(items), keys)
        for keys, items in _insides(documents[0])
        if len(items) > 1 and all(isinstance(one, Mapping) for one in items)
    ]
    return max(lists, key=lambda one: one[0])[1] if lists else ()


def _insides(document: Any, depth: int = 0, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Every list and object inside of a document, the outer ones first, with the keys on the way."""
    if not isinstance(document, Mapping) or depth >= _MAX_DEPTH:
        return
    deeper = []
    for key, value in document.items():
        value = opened(value)
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield (*keys, str(key)), value
        elif isinstance(value, Mapping) and value:
            yield (*keys, str(key)), [value]
            deeper.append((str(key), value))
    for key, value in deeper:
        yield from _insides(value, depth + 1, (*keys, key))


# The message about a file in no known format: what it is, the keys that were seen, the nearest format, a line to begin
# with.


_KEYS: Mapping[str, tuple[str, ...]] = {
    "pairs": ("pair_id", "prompt", "response_a", "response_b"),
    "litellm": ("call_type", "startTime", "endTime", "messages", "response"),
    "langfuse": ("trace", "observations", "traceId", "type", "startTime", "input", "output", "usageDetails"),
    "langsmith": ("run_type", "inputs", "outputs", "start_time", "trace_id"),
    "otel": ("trace_id", "span_id", "attributes", "start_time", "end_time"),
    "helicone": ("request_body", "response_body", "request_created_at", "delay_ms"),
    "portkey": ("ai_org", "ai_model", "request", "response", "cost_currency"),
    "cloudflare": ("tokens_in", "tokens_out", "provider", "model", "duration"),
    "braintrust": ("span_attributes", "span_id", "root_span_id", "input", "output", "metrics"),
    "weave": ("op_name", "inputs", "output", "started_at"),
    "promptfoo": ("promptIdx", "testIdx", "provider", "prompt", "response", "vars"),
    "inspect": ("eval", "plan", "samples"),
    "openai": ("custom_id", "response", "messages", "choices"),
    "anthropic": ("custom_id", "result", "params"),
    "alpacaeval": ("instruction", "output", "generator"),
    "arena": ("conversation_a", "conversation_b", "winner"),
    "preferences": ("prompt", "chosen", "rejected"),
    "ragas": ("user_input", "response", "retrieved_contexts"),
    "deepeval": ("input", "actualOutput", "expectedOutput"),
    "lm-eval": ("doc_id", "resps", "arguments"),
    "tensorzero": ("function_name", "input", "output", "episode_id"),
    "mlflow": ("info", "data", "trace_id"),
}
_ACCESS = (
    "path",
    "method",
    "status",
    "statuscode",
    "responsecode",
    "duration",
    "bytessent",
    "useragent",
    "url",
    "upstream",
    "requestmethod",
)
_TEXTS = (
    "prompt",
    "response",
    "messages",
    "answer",
    "question",
    "input",
    "output",
    "text",
    "content",
    "completion",
    "requestbody",
    "responsebody",
)


def nearest_format(documents: Sequence[Any]) -> tuple[str, list[str]] | None:
    """(the format that shares most keys, the keys of it that are missing); None where none shares half of its keys."""
    keys = {normal(str(key)) for document in documents if isinstance(document, Mapping) for key in document}
    shares = {
        form: sum(normal(key) in keys for key in wanted) / len(wanted)
        for form, wanted in _KEYS.items()
    }  # fmt: skip
    form = max(shares, key=lambda one: shares[one])
    if shares[form] < 0.5:
        return None
    return form, [key for key in _KEYS[form] if normal(key) not in keys]


def describe(name: str, kind: str, documents: Sequence[Any]) -> str:
    """The line about a file whose documents are in no format that is known."""
    objects = [document for document in documents if isinstance(document, Mapping)]
    if not objects:
        return f"{name} ({kind or 'no documents'}) holds no objects or rows: it is no log"
    columns = columns_of(objects[:20])
    words = {normal(column.rsplit(".", 1)[-1]) for column in columns}
    if len(words & set(_ACCESS)) >= 3 and not words & set(_TEXTS):
        return (
            f"{name} ({kind}) is an access log without bodies (keys: {listed(columns)}): it holds neither prompts nor answers, "
            "only status and latency; log the bodies, or send the traffic through `evalpipe collect`"
        )
    near = nearest_format(objects)
    parts = [f"{name} ({kind}) is in no format that is known here", f"keys: {listed(columns)}"]
    if near is not None:
        missing = f" (it lacks {', '.join(near[1])})" if near[1] else ""
        parts.append(f"nearest format: {near[0]}{missing}")
    parts.append(
        f'name the columns with --map "prompt={_best(columns, 0)}, text={_best(columns, 1)}", '
        f"or name it with --format ({', '.join(format_names())})"
    )
    return "; ".join(parts)


def _best(columns: Sequence[str], place: int) -> str:
    """A column that may hold it, else a word to fill in."""
    wanted = (
        ("prompt", "question", "input", "query", "request", "message"),
        ("answer", "response", "output", "completion", "result"),
    )[place]
    return next(
        (column for word in wanted for column in columns if word in column.lower()), ("QUESTION", "ANSWER")[place]
    )
