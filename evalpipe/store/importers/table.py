"""A format as a table of paths: which documents it is, and where each column of an exchange is found in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalpipe.identity import fingerprint
from evalpipe.models import Arm, Exchange, Outcome, Role
from evalpipe.providers.outcomes import KINDS, ending
from evalpipe.providers.paths import endpoint_of
from evalpipe.store.importers.base import (
    BrokenLineError,
    Imported,
    Importer,
    conversation_of,
    json_text,
    position_in_log,
    prompt_text,
    unknown_time,
)
from evalpipe.store.importers.messages import fact_text, read_content, read_messages, split_answer, tool_calls_of
from evalpipe.store.importers.responses import NOTHING, REDACTED, LoggedResponse, error_text, read_logged_response
from evalpipe.store.importers.values import (
    Tokens,
    count,
    find,
    first,
    has,
    instant,
    milliseconds_of,
    name,
    number,
    opened,
    read_tokens,
    truth,
)

NO_TEXT, NO_PROMPT, REDACTED_TEXTS = (
    "answered without a text",
    "no prompt in the log",
    "texts left out by the logging tool (redacted)",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A log format.

    `shapes`: sets of paths; a document that holds all of one set is of this format. `fields`: column → paths, the first
    filled one counts. `calls`: the calls in a document (a trace holds several). `left_out`: why a call is no exchange.
    `amend`: columns found by another way than a path. `answer_key` of the columns: see `read_call`.
    """

    name: str
    help: str
    shapes: Sequence[Sequence[str]] = ()
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)
    matches: Callable[[Any], bool] | None = None
    calls: Callable[[Any], Iterable[Any]] | None = None
    left_out: Callable[[Any], str | None] | None = None
    amend: Callable[[Any, dict[str, Any]], None] | None = None
    tokens_apart: bool = False
    companion: Callable[[Any], tuple[str, Any] | None] | None = None
    joined: Callable[[Any, Mapping[str, Any]], Any] | None = None
    guesses_users: bool = True

    def importer(self) -> Importer:
        return Importer(
            name=self.name,
            help=self.help,
            matches=self.matches or self._has_shape,
            read=self.read,
            companion=self.companion,
            joined=self.joined,
        )

    def _has_shape(self, document: Any) -> bool:
        return isinstance(document, Mapping) and any(
            all(has(document, path) for path in shape) for shape in self.shapes
        )

    def read(self, document: Any, line: int) -> Imported:
        """The exchanges of one document. Raises BrokenLineError."""
        try:
            return self._read(document, line)
        except BrokenLineError:
            raise
        except (
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            OverflowError,
        ) as error:  # any shape may turn up in a log
            words = f"{type(error).__name__}: {str(error)[:200]}"
            raise BrokenLineError(f"cannot be read as {self.name} ({words})") from error

    def _read(self, document: Any, line: int) -> Imported:
        if not isinstance(document, Mapping | list):
            raise BrokenLineError(f"{kind_of(document)}, no object")
        exchanges: list[Exchange] = []
        variants: list[str | None] = []
        left_out: list[str] = []
        notes: list[str] = []
        derived = False
        for call in [document] if self.calls is None else self.calls(document):
            reason = None if self.left_out is None else self.left_out(call)
            if reason is not None:
                left_out.append(reason)
                continue
            found = read_call(self, call, line)
            notes += found.notes
            if found.left_out is not None:
                left_out.append(found.left_out)
                continue
            assert found.exchange is not None
            exchanges.append(found.exchange)
            variants.append(found.variant)
            derived = derived or found.is_derived
        return Imported(
            exchanges=exchanges,
            left_out=left_out,
            notes=notes,
            variants=variants if any(variants) else (),
            derived_ids=derived,
        )


@dataclass(kw_only=True, slots=True)
class Call:
    """One call read: its exchange, or why it is none; `variant`: the log's own word for the arm."""

    exchange: Exchange | None = None
    left_out: str | None = None
    variant: str | None = None
    notes: list[str] = field(default_factory=list)
    is_derived: bool = False


def read_call(table: Format, call: Any, line: int) -> Call:
    """One call by the table's paths. Raises BrokenLineError where it holds neither prompt nor answer nor any
    measure."""
    if not isinstance(call, Mapping):
        raise BrokenLineError(f"{kind_of(call)}, no object")
    row: dict[str, Any] = {column: first(call, paths) for column, paths in table.fields.items()}
    for column in ("answer", "text"):  # an empty text is an answer, of no words
        if row.get(column) is None and any(find(call, path) == "" for path in table.fields.get(column, ())):
            row[column] = ""
    if table.amend is not None:
        table.amend(call, row)
    return build(table, call, row, line)


def build(table: Format, call: Mapping[str, Any], row: dict[str, Any], line: int) -> Call:
    """The exchange of the values that were found."""
    notes: list[str] = []
    logged = row["logged"] if isinstance(row.get("logged"), LoggedResponse) else read_logged_response(row.get("answer"))
    messages = _asked(row)
    if row.get("conversation_log") is not None:
        asked, last = split_answer(read_messages(row["conversation_log"]))
        messages = messages or asked
        if last is not None and not logged.is_found:
            logged = _response_in(row["conversation_log"], last)
    if logged.is_embedding:
        return Call(left_out="embeddings or images", notes=notes)
    if logged.is_redacted or _is_redacted(row.get("prompt")):
        return Call(left_out=REDACTED_TEXTS, notes=notes)
    status = count(row.get("status")) if number(row.get("status")) is not None else logged.status
    error, error_type = failure_of(row, logged, status)
    text = logged.text if row.get("text") is None else read_content(row["text"]).text
    calls = logged.tool_calls or _calls(row.get("tool_calls"))
    is_something = (
        text is not None or calls or error is not None or messages or _measures(row) or row.get("is_answered")
    )
    if not is_something:
        raise BrokenLineError("neither a prompt nor an answer was found in it")
    start = time_of(row, "start", notes)
    end = time_of(row, "end", notes)
    token_first = time_of(row, "first_token", notes)
    tokens = tokens_of(row, logged, apart=table.tokens_apart)
    finish = name(row.get("finish_reason")) or logged.finish_reason
    outcome, type_, message = outcome_of(error, error_type, status, finish, logged, bool(calls))
    if text is None and not calls and error is None:
        notes.append(NO_TEXT)
    if row.get("note"):
        notes.append(row["note"])
    elif not messages:
        notes.append(NO_PROMPT)
    unit = user_of(call, row, guesses=table.guesses_users)
    session = name(row.get("conversation")) or (name(first(call, SESSIONS)) if table.guesses_users else None)
    given = name(row.get("id")) or logged.answer_id
    started = start or (logged.created if row.get("start") is None else None)
    model = name(row.get("model")) or logged.model
    position = position_in_log(messages, is_named=session is not None)
    latency = span_of(row, "latency", start, end, notes)
    ttft = span_of(row, "ttft", start, token_first, notes)
    cost = cost_of(row, logged, notes)
    streamed = truth(row.get("streamed"))
    exchange = Exchange(
        request_id=given
        or fingerprint([prompt_text(messages), text, started.isoformat() if started else None], length=32),
        arm=Arm.CONTROL,
        role=Role.IMPORTED,
        unit_id=unit,
        conversation_id=session or conversation_of(messages),
        started_at=started or unknown_time(line),
        provider=name(row.get("provider")),
        endpoint=endpoint_of(str(row["endpoint"])) if row.get("endpoint") else "chat.completions",
        model_requested=name(row.get("model_requested")) or _model_in(row.get("prompt")) or model,
        model=model,
        request=json_text(_request(row, messages)),
        response=_stored(row.get("answer")),
        meta=_stored(row.get("meta")),
        text=text,
        tool_calls=json_text(calls or None),
        finish_reason=finish,
        outcome=outcome,
        status=status if status is None or 100 <= status < 1000 else None,
        error_type=type_,
        error_message=message,
        latency_ms=latency,
        ttft_ms=ttft,
        streamed=streamed
        if streamed is not None
        else True
        if ttft is not None and latency != ttft
        else logged.streamed,
        input_tokens=tokens.input,
        cached_input_tokens=tokens.cached,
        cache_write_tokens=tokens.cache_write,
        output_tokens=tokens.output,
        reasoning_tokens=tokens.reasoning,
        cost_usd=cost,
        prompt=prompt_text(messages) if messages else None,
        context=fact_text(opened(row.get("context"))) or None,
        reference=fact_text(opened(row.get("reference"))) or None,
        turn=position.turn,
        step=position.step,
    )
    return Call(
        exchange=exchange,
        variant=name(row.get("variant")),
        notes=notes,
        is_derived=given is None or bool(row.get("by_question")),
    )


def kind_of(value: Any) -> str:
    """What a value is, for a reason that people read."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"


def _asked(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = read_messages(row.get("prompt"))
    system = row.get("system")
    if system is not None and not any(message["role"] == "system" for message in messages):
        text = read_content(opened(system)).text
        if text:
            messages = [{"role": "system", "content": text}, *messages]
    return messages


def _response_in(conversation: Any, last: Mapping[str, Any]) -> LoggedResponse:
    raw = opened(conversation)
    raw = raw.get("messages", raw.get("conversations")) if isinstance(raw, Mapping) else raw
    found = read_logged_response(raw[-1]) if isinstance(raw, list) and raw else NOTHING
    return found if not found.is_empty else LoggedResponse(text=str(last["content"]))


def _is_redacted(value: Any) -> bool:
    if isinstance(value, list) and value:
        value = value[-1].get("content") if isinstance(value[-1], Mapping) else value[-1]
    return isinstance(value, str) and REDACTED.fullmatch(value) is not None


def _calls(value: Any) -> list[dict[str, Any]]:
    return tool_calls_of({"tool_calls": value}) if value else []


def _measures(row: Mapping[str, Any]) -> bool:
    """Whether the call holds anything a metric is made of, though no text."""
    return any(
        row.get(column) is not None
        for column in ("usage", "input_tokens", "output_tokens", "cost", "latency_ms", "latency_s")
    )


def _model_in(prompt: Any) -> str | None:
    body = opened(prompt)
    return name(body.get("model")) if isinstance(body, Mapping) else None


def _request(row: Mapping[str, Any], messages: list[dict[str, Any]]) -> Any:
    """The request as it was where the log has one in the shape of an API, else the messages as a chat completion."""
    body = opened(row.get("prompt"))
    if isinstance(body, Mapping) and isinstance(body.get("messages"), list) and "model" in body:
        return body
    return {"messages": messages} if messages else None


def _stored(value: Any) -> str | None:
    value = opened(value)
    if not isinstance(value, Mapping | list) or not value:
        return None
    try:
        return json_text(value)
    except (TypeError, ValueError, RecursionError):  # times, bytes and decimals of Parquet
        return json.dumps(json.loads(json.dumps(value, default=str, skipkeys=True)))


# Columns of an exchange out of the values that a format's paths led to: times, failures, tokens, users, costs.


UNITS = (
    "user_id", "userId", "user", "end_user", "end_user_id", "enduser.id", "user.id", "unit_id", "customer_id", "uid",
    "account_id",
    "metadata.user_id", "metadata.userId", "metadata.user", "metadata._user", "metadata.user_email", "metadata.customer_id",
    "extra.metadata.user_id", "properties.user_id", "attributes.user_id",
)  # fmt: skip
"""where a user is named in logs that have no rule of their own"""
SESSIONS = (
    "session_id", "sessionId", "session.id", "conversation_id", "conversationId", "thread_id", "threadId", "chat_id",
    "metadata.session_id", "metadata.sessionId", "metadata.conversation_id", "metadata.thread_id",
)  # fmt: skip
_BODY_UNITS = ("user", "metadata.user_id", "safety_identifier", "metadata.userId", "metadata.user")
NOBODY = frozenset({"default_user", "default_user_id", "anonymous", "none", "null", "unknown", "n/a"})
"""what tools write where no user was named"""
_FAILED = frozenset(
    {
        "error",
        "failed",
        "failure",
        "errored",
        "exception",
        "fail",
        "expired",
        "canceled",
        "cancelled",
        "status_code_error",
    }
)


def time_of(row: Mapping[str, Any], column: str, notes: list[str]) -> Any:
    value = row.get(column)
    if value is None or value == "":
        return None
    found = instant(value)
    if found is None:
        notes.append(f"{column} is no time, left empty (e.g. {str(value)[:40]!r})")
    return found


def failure_of(row: Mapping[str, Any], logged: LoggedResponse, status: int | None) -> tuple[str | None, str | None]:
    """(the error's message, its type), from any error field of the log; (None, None) without a failure."""
    error = opened(row.get("error"))
    kind = name(row.get("error_type"))
    if isinstance(error, Mapping) and kind is None:
        kind = name(error.get("type") or error.get("code"))
    state = row.get("state")
    word = (
        state.strip().lower().removeprefix("statuscode.").removeprefix("status_code_") if isinstance(state, str) else ""
    )
    succeeded = truth(row.get("succeeded"))
    failed = (
        word in _FAILED
        or succeeded is False
        or truth(row.get("failed")) is True
        or (status is not None and status >= 400)
    )
    if error not in (None, "", False, [], {}) or (kind and not word):
        shown = error_text(error) if error not in (None, "", False, [], {}) else str(kind)
        return shown, kind or logged.error_type
    if failed:
        return logged.error or (
            f"status {status}" if status is not None and status >= 400 else "failed"
        ), kind or logged.error_type
    return logged.error, logged.error_type


def outcome_of(
    error: str | None,
    error_type: str | None,
    status: int | None,
    finish: str | None,
    logged: LoggedResponse,
    has_calls: bool,
) -> tuple[Outcome, str | None, str | None]:
    """(outcome, error's type, error's words)."""
    if error is not None:
        late = status in {408, 504} or (error_type or "").lower().rsplit(".", 1)[-1] in {
            "timeout",
            "timeouterror",
            "readtimeout",
        }
        return (Outcome.TIMEOUT if late else Outcome.HTTP_ERROR), error_type, error
    if logged.refusal:
        return Outcome.REFUSED, None, None
    if finish is None:
        return Outcome.OK, None, None
    word = finish.lower().replace("-", "_").rsplit(".", 1)[-1]
    word = {"tool_call": "tool_calls", "contentfilter": "content_filter", "maxtokens": "max_tokens"}.get(word, word)
    kind = KINDS.get(word)
    if kind is None or kind in {"end", "calls"} or (kind in {"failed", "unfinished"} and (logged.text or has_calls)):
        return Outcome.OK, None, None
    found = ending(word, has_calls=has_calls)
    return found.outcome, found.error_type, found.error_message


def tokens_of(row: Mapping[str, Any], logged: LoggedResponse, *, apart: bool) -> Tokens:
    """Columns of their own first, then the usage object, then the answer's own counts."""
    usage = read_tokens(row.get("usage"), apart=apart)
    own = Tokens(
        *(
            count(row.get(column))
            for column in (
                "input_tokens",
                "cached_input_tokens",
                "cache_write_tokens",
                "output_tokens",
                "reasoning_tokens",
            )
        )
    )
    inner = logged.tokens
    return Tokens(
        *(next((one for one in three if one is not None), None) for three in zip(own, usage, inner, strict=True))
    )


def user_of(call: Mapping[str, Any], row: Mapping[str, Any], *, guesses: bool) -> str | None:
    places = [row.get("unit")]
    if guesses:
        places.append(first(call, UNITS))
    body = opened(row.get("prompt"))
    if isinstance(body, Mapping):
        places.append(first(body, _BODY_UNITS))
    for place in places:
        found = name(opened(place))
        if found is not None and found.lower() not in NOBODY:
            return found
    return None


def span_of(row: Mapping[str, Any], which: str, start: Any, end: Any, notes: list[str]) -> float | None:
    """Milliseconds by a column of its own, else from start to end; None where neither is there or they contradict
    each other."""
    for column, unit in ((f"{which}_ms", 1.0), (f"{which}_s", 1000.0), (f"{which}_ns", 1e-6)):
        value = row.get(column)
        if value is None or value == "":
            continue
        found = milliseconds_of(value, unit_ms=unit)
        if found is None:
            notes.append(f"{column} is no duration, left empty (e.g. {str(value)[:40]!r})")
            continue
        return found
    if start is None or end is None or end < start:
        return None
    return float((end - start).total_seconds() * 1000)


def cost_of(row: Mapping[str, Any], logged: LoggedResponse, notes: list[str]) -> float | None:
    for column, share in (("cost", 1.0), ("cost_cents", 0.01)):
        value = row.get(column)
        if value is None or value == "":
            continue
        found = number(value)
        if found is None or found < 0:
            notes.append(f"cost is no amount, left empty (e.g. {str(value)[:40]!r})")
            continue
        return found * share
    return logged.cost_usd
