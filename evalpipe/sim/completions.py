"""One call of a simulated provider: which response it gives (from the corpus, as a judge, or generated; the same for the same
request and seed), and how it is served: limits, faults, pace, the bytes of the response, and its line in the ledger."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Any

import msgspec

from evalpipe.providers.base import Reply, ReplyCall, ReplyWriter, Stop, Usage
from evalpipe.providers.chat import ChatWriter, plain_chat
from evalpipe.providers.json_values import MalformedJSONError, as_dict, dump, parse
from evalpipe.providers.messages import MessagesWriter, plain_messages
from evalpipe.providers.pricing import Price, cost_of
from evalpipe.providers.responses import ResponsesWriter, plain_responses
from evalpipe.sim.http import HttpRequest, Responder
from evalpipe.sim.judges import JudgePrompt, SimulatedJudge, read_judge_prompt
from evalpipe.sim.limits import Limiter, common_headers, error_answer, limit_headers, retry_headers
from evalpipe.sim.requests import (
    CHARACTERS_PER_TOKEN,
    BadRequestError,
    Corpus,
    RecordedAnswer,
    SimRequest,
    count_tokens,
    made_up_json,
    made_up_text,
    read_sim_request,
    seeded,
)
from evalpipe.sim.settings import SimSettings

REFUSAL = "I'm sorry, but I can't help with that."
_ID_PREFIX = {"messages": "msg_sim", "chat.completions": "chatcmpl-sim", "responses": "resp_sim"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """An answer and its pace. `source`, `question`: see `Call`."""

    reply: Reply
    ttft_ms: float
    latency_ms: float
    source: str
    question: str


class Engine:
    """Plans answers; keeps what was cached. One per server."""

    def __init__(self, settings: SimSettings, corpus: Corpus, judge: SimulatedJudge) -> None:
        self.settings = settings
        self.corpus = corpus
        self.judge = judge
        self._n = 0
        self._cached: set[tuple[str, int, str]] = set()

    def next_id(self, prefix: str) -> str:
        self._n += 1
        return f"{prefix}_{self._n:016x}"

    def plan(self, request: SimRequest, fault: str | None = None) -> Planned:
        """The answer to `request`, changed by the faults that change answers: empty, refusal, max_tokens. Raises
        BadRequestError where the judge has no recorded judgment."""
        prompt = read_judge_prompt(request)
        known = self.corpus.find(request.model, request.key) if prompt is None else None
        source = "judge" if prompt is not None else "corpus" if known is not None else "made_up"
        answer = known or (self._made_up(request) if prompt is None else self._judged(request, prompt))
        stopped, stop_sequence = _stopped(answer, request.stop)
        answer = _limited(stopped, request.max_tokens)
        answer = _changed(answer, fault)
        input_tokens = request.input_tokens if answer.input_tokens is None else answer.input_tokens
        output_tokens = _output_tokens(answer)
        usage = self._with_cache(request, Usage(input_tokens=input_tokens, output_tokens=output_tokens))
        ttft_ms, latency_ms = self._pace(request.model, answer, output_tokens)
        refused = answer.stop == "refusal"
        reply = Reply(
            id=self.next_id(_ID_PREFIX[request.endpoint]),
            model=request.model,
            created=int(time.time()),
            text=None if refused and request.endpoint != "messages" else answer.text,
            refusal=answer.text if refused and request.endpoint != "messages" else None,
            calls=list(answer.calls),
            stop=answer.stop,
            stop_sequence=stop_sequence if answer.stop == "stop_sequence" else None,
            usage=usage,
        )
        return Planned(
            reply=reply,
            ttft_ms=ttft_ms,
            latency_ms=latency_ms,
            source=source,
            question=_question(request, prompt),
        )

    def _judged(self, request: SimRequest, prompt: JudgePrompt) -> RecordedAnswer:
        text = self.judge.reply(prompt, request.model)
        if request.must_call and request.schema is None:
            return RecordedAnswer(text=None, stop="tool_use", calls=(self._call(request.must_call[0], text),))
        return RecordedAnswer(text=text)

    def _made_up(self, request: SimRequest) -> RecordedAnswer:
        rng = seeded(self.settings.seed, request.model, request.key)
        called = self._tools_called(request)
        if called:
            schemas = {tool.name: tool.schema for tool in request.tools}
            calls = tuple(self._call(name, made_up_json(schemas[name], rng)) for name in called)
            return RecordedAnswer(text=None, stop="tool_use", calls=calls)
        if request.schema is not None:
            return RecordedAnswer(text=made_up_json(request.schema, rng))
        return RecordedAnswer(text=made_up_text(rng))

    def _tools_called(self, request: SimRequest) -> list[str]:
        """The tools the user names, else the first one; several at once only where that is allowed."""
        if not request.tools or not request.may_call or (request.must_call is None and not request.awaits_tools):
            return []
        offered = request.must_call or [tool.name for tool in request.tools]
        named = [name for name in offered if name and name in request.last_user_text] or offered[:1]
        return named if request.parallel else named[:1]

    def _call(self, name: str, arguments: str) -> ReplyCall:
        return ReplyCall(id=self.next_id("toolu_sim"), name=name, arguments=arguments)

    def _with_cache(self, request: SimRequest, usage: Usage) -> Usage:
        """Prompt caching: a marked prefix is written once and read ever after; below the minimum nothing happens."""
        n = min(request.cacheable_tokens, usage.input_tokens or 0)
        if n < self.settings.cache_min_tokens:
            return usage
        if self.cached_tokens(request):
            return msgspec.structs.replace(usage, cached_input_tokens=n)
        self._cached.add(_prefix(request))
        return msgspec.structs.replace(usage, cache_write_tokens=n)

    def cached_tokens(self, request: SimRequest) -> int:
        """Tokens of the request that are cached already: they count against no limit."""
        n = request.cacheable_tokens
        return n if n >= self.settings.cache_min_tokens and _prefix(request) in self._cached else 0

    def _pace(self, model: str, answer: RecordedAnswer, output_tokens: int) -> tuple[float, float]:
        settings = self.settings
        speed = settings.speed_of(model)
        ttft = settings.ttft_ms if answer.ttft_ms is None else answer.ttft_ms
        latency = answer.latency_ms
        if latency is None:
            latency = ttft + 1000 * output_tokens / settings.tokens_per_second
        ttft = min(ttft, latency)
        ttft, latency = ttft / speed, latency / speed
        if settings.max_latency_ms is not None and latency > settings.max_latency_ms:
            ttft, latency = ttft * settings.max_latency_ms / latency, settings.max_latency_ms
        return ttft, latency


def _prefix(request: SimRequest) -> tuple[str, int, str]:
    return request.model, request.cacheable_tokens, request.view.system_text or dump(request.body.get("tools"))


def _question(request: SimRequest, prompt: JudgePrompt | None) -> str:
    if prompt is None:
        return f"{request.model}:{request.key[:24]}"
    texts = [message["content"].replace(prompt.nonce, "") for message in request.view.messages]
    return f"{request.model}:{seeded(texts).getrandbits(96):024x}"


def _output_tokens(answer: RecordedAnswer) -> int:
    if answer.output_tokens is not None:
        return answer.output_tokens
    generated = (answer.text or "") + "".join(call.name + call.arguments for call in answer.calls)
    return max(count_tokens(generated), 1)


def _stopped(answer: RecordedAnswer, stop: list[str]) -> tuple[RecordedAnswer, str | None]:
    """The answer up to the first stop sequence in it, and which one that was."""
    text = answer.text or ""
    ends = [(position, word) for word in stop if (position := text.find(word)) >= 0]
    if not ends:
        return answer, None
    position, word = min(ends)
    return _cut(answer, position, "stop_sequence"), word


def _limited(answer: RecordedAnswer, max_tokens: int | None) -> RecordedAnswer:
    total = _output_tokens(answer)
    if max_tokens is None or total <= max_tokens:
        return answer
    text = answer.text or ""
    return replace(_cut(answer, len(text) * max_tokens // total, "max_tokens"), output_tokens=max_tokens, calls=())


def _cut(answer: RecordedAnswer, length: int, stop: Stop) -> RecordedAnswer:
    """The answer up to `length` characters, its tokens and time in proportion."""
    text = answer.text or ""
    share = length / len(text) if text else 1.0
    tokens, latency = answer.output_tokens, answer.latency_ms
    return replace(
        answer,
        text=text[:length],
        stop=stop,
        output_tokens=None if tokens is None else max(round(tokens * share), 1),
        latency_ms=None if latency is None else max(latency * share, answer.ttft_ms or 0),
    )


def _changed(answer: RecordedAnswer, fault: str | None) -> RecordedAnswer:
    if fault == "empty":
        return replace(answer, text="", calls=(), stop="end", output_tokens=1)
    if fault == "refusal":
        return replace(
            answer, text=REFUSAL, calls=(), stop="refusal", output_tokens=len(REFUSAL) // CHARACTERS_PER_TOKEN
        )
    if fault == "max_tokens":
        return replace(_cut(answer, len(answer.text or "") // 2, "max_tokens"), calls=())
    return answer


# Serving one call: limits, faults, pace, and the bytes of the response, whole or streamed. Every call ends in the
# ledger.


_STEP_S = 0.02
"""Output is counted, and paced, in steps of at least this."""
_BROKEN = frozenset({"cut", "stall", "malformed", "error_event"})


class Completions:
    """The three completion endpoints."""

    def __init__(self, engine: Engine, ledger: Ledger) -> None:
        self.engine = engine
        self.ledger = ledger
        self._limiters: dict[str, Limiter] = {}
        self._faults = Random(engine.settings.seed)

    def forget_limits(self) -> None:
        """Start with full buckets: limits were changed."""
        self._limiters.clear()

    def limiter(self, model: str) -> Limiter:
        if model not in self._limiters:
            self._limiters[model] = Limiter(self.engine.settings.limits, time.monotonic())
        return self._limiters[model]

    async def serve(self, endpoint: str, http: HttpRequest, responder: Responder) -> None:
        request_id = self.engine.next_id("req_sim")
        call = _Call(self, endpoint, request_id, responder)
        try:
            request = read_sim_request(endpoint, parse(http.body))
        except (MalformedJSONError, BadRequestError) as error:
            await call.fail(400, "bad_request", str(error))
            return
        await call.run(request)

    def draw_fault(self, model: str) -> str | None:
        """At most one fault, by the model's rates; drawn in the order of calls from the seed."""
        draw = self._faults.random()
        for name, rate in self.engine.settings.faults_of(model).items():
            if draw < rate:
                return name
            draw -= rate
        return None


class _Call:
    """One call from its first byte to its line in the ledger."""

    def __init__(self, parent: Completions, endpoint: str, request_id: str, responder: Responder) -> None:
        self._parent = parent
        self._settings = parent.engine.settings
        self._endpoint = endpoint
        self._request_id = request_id
        self._responder = responder
        self._model = ""
        self._question = request_id
        self._planned: Planned | None = None
        self._generated = 0.0

    async def run(self, request: SimRequest) -> None:
        self._model = request.model
        limiter = self._parent.limiter(request.model)
        counted = max(request.input_tokens - self._parent.engine.cached_tokens(request), 0)
        refused = limiter.admit(counted, time.monotonic())
        if refused is not None:
            name, wait = refused
            message = f"This request would exceed your rate limit of {name.replace('-', ' ')} per minute."
            await self.fail(429, "limit", message, retry_after=wait)
            return
        fault = self._parent.draw_fault(request.model)
        if fault == "error_event" and not request.view.streamed:
            fault = "500"
        if fault in {"429", "500", "529"}:
            await self.fail(int(fault), fault, retry_after=self._settings.retry_after_s if fault == "429" else None)
            return
        try:
            self._planned = self._parent.engine.plan(request, fault)
        except BadRequestError as error:
            await self.fail(400, "bad_request", str(error))
            return
        self._question = self._planned.question
        try:
            if fault == "slow":
                await asyncio.sleep(self._settings.slow_s)
            if request.view.streamed:
                await self._stream(request, self._planned, fault)
            else:
                await self._plain(request, self._planned, fault)
        except asyncio.CancelledError:
            # The client is gone: what was generated until then is billed.
            self._note("client_closed", 200, output_tokens=round(self._generated), billed=True)
            raise
        broken = fault in _BROKEN
        self._note(fault or "ok", 200, billed=not broken or self._settings.bill_faults)

    async def fail(
        self, status: int, kind: str, message: str | None = None, *, retry_after: float | None = None
    ) -> None:
        headers = [("content-type", "application/json"), *self._headers()]
        if retry_after is not None:
            headers += retry_headers(self._endpoint, retry_after)
        self._note(kind, status, billed=False)
        await self._responder.whole(status, headers, error_answer(self._endpoint, status, self._request_id, message))

    async def _plain(self, request: SimRequest, planned: Planned, fault: str | None) -> None:
        await self._generate(planned, lambda share: b"")
        body = dump(plain_body(request, planned)).encode("utf-8", "replace")
        headers = [("content-type", "application/json"), *self._headers()]
        if fault in {"cut", "stall"}:
            self._responder.head(200, headers, length=len(body))
            await self._responder.write(body[: len(body) // 2])
            await self._break_off(fault)
        elif fault == "malformed":
            await self._responder.whole(200, headers, body[: len(body) // 2])
        else:
            await self._responder.whole(200, headers, body)

    async def _stream(self, request: SimRequest, planned: Planned, fault: str | None) -> None:
        writer = make_writer(request, planned)
        events = _events(writer, planned)
        # The first event leaves with the head, as soon as the model begins.
        await asyncio.sleep(min(planned.ttft_ms, planned.latency_ms) / 1000)
        self._responder.head(200, [("content-type", writer.content_type), *self._headers()], length=None)
        first = writer.start(planned.reply.usage)
        if isinstance(writer, MessagesWriter):
            first += writer.ping()
        await self._responder.write(first)
        n_sent = 0

        def until(share: float) -> bytes:
            nonlocal n_sent
            end = round(share * len(events))
            data, n_sent = b"".join(event() for event in events[n_sent:end]), max(end, n_sent)
            return data

        breaks = fault in _BROKEN
        await self._generate(planned, until, after_ms=planned.ttft_ms, up_to=0.5 if breaks else 1.0)
        if fault == "error_event":
            kind, text = (
                ("overloaded_error", "Overloaded") if self._endpoint == "messages" else ("server_error", "Error")
            )
            await self._responder.write(writer.error(kind, text))
            self._responder.end()
        elif fault == "malformed":
            await self._responder.write(b'event: message_delta\ndata: {"type": "message_de\n\n')
            self._responder.end()
        elif fault in {"cut", "stall"}:
            await self._break_off(fault)
        else:
            reply = planned.reply
            await self._responder.write(writer.finish(reply.stop, reply.usage, reply.stop_sequence))
            self._responder.end()

    async def _break_off(self, fault: str) -> None:
        if fault == "stall":
            await asyncio.sleep(self._settings.stall_s)
        self._responder.abort()

    async def _generate(
        self, planned: Planned, until: Callable[[float], bytes], *, after_ms: float = 0.0, up_to: float = 1.0
    ) -> None:
        """Let the answer's time pass, count its tokens as they are made, and send what `until(share)` gives."""
        total = planned.reply.usage.output_tokens or 0
        limiter = self._parent.limiter(self._model)
        begin, duration = time.monotonic(), (planned.latency_ms - after_ms) / 1000
        share = 0.0
        while True:
            elapsed = time.monotonic() - begin
            share = min(elapsed / duration, up_to) if duration > 0 else up_to
            made = total * share
            limiter.generated(made - self._generated, time.monotonic())
            self._generated = made
            await self._responder.write(until(share))
            if share >= up_to:
                return
            await asyncio.sleep(max(min(_STEP_S, duration * up_to - elapsed), 0.001))

    def _headers(self) -> list[tuple[str, str]]:
        meters = self._parent.limiter(self._model).meters(time.monotonic()) if self._model else {}
        return [*common_headers(self._endpoint, self._request_id), *limit_headers(self._endpoint, meters)]

    def _note(self, kind: str, status: int, *, billed: bool, output_tokens: int | None = None) -> None:
        usage = self._planned.reply.usage if self._planned is not None else Usage()
        if output_tokens is not None:
            usage = Usage(
                input_tokens=usage.input_tokens,
                cached_input_tokens=usage.cached_input_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                output_tokens=output_tokens,
            )
        self._parent.ledger.add(
            Call(
                id=self._planned.reply.id if self._planned is not None else self._request_id,
                endpoint=self._endpoint,
                model=self._model,
                kind=kind,
                question=self._question,
                status=status,
                source=self._planned.source if self._planned is not None else "",
                billed=billed,
                input_tokens=usage.input_tokens or 0,
                cached_input_tokens=usage.cached_input_tokens or 0,
                output_tokens=usage.output_tokens or 0,
                usd=self._parent.ledger.price(usage, model=self._model, endpoint=self._endpoint, batch=False)
                if billed
                else None,
            )
        )


def plain_body(request: SimRequest, planned: Planned) -> dict[str, Any]:
    if request.endpoint == "messages":
        return plain_messages(planned.reply)
    if request.endpoint == "responses":
        return plain_responses(planned.reply, request.body)
    return plain_chat(planned.reply)


def make_writer(request: SimRequest, planned: Planned) -> ReplyWriter:
    reply = planned.reply
    if request.endpoint == "messages":
        return MessagesWriter(answer_id=reply.id, model=reply.model)
    if request.endpoint == "responses":
        return ResponsesWriter(answer_id=reply.id, model=reply.model, created=reply.created, request=request.body)
    include = as_dict(request.body.get("stream_options")).get("include_usage") is True
    return ChatWriter(answer_id=reply.id, model=reply.model, created=reply.created, include_usage=include)


def _events(writer: ReplyWriter, planned: Planned) -> list[Callable[[], bytes]]:
    """The content of a stream, one token an event. Writers keep count, so each must be called in its turn."""
    reply = planned.reply
    events: list[Callable[[], bytes]] = []
    for say, text in ((writer.text, reply.text), (writer.refusal, reply.refusal)):
        events += [partial(say, piece) for piece in _pieces(text or "")]
    for call in reply.calls:
        events.append(partial(writer.call_start, call.id, call.name))
        events += [partial(writer.call_arguments, piece) for piece in _pieces(call.arguments)]
    return events


def _pieces(text: str) -> list[str]:
    return [text[start : start + CHARACTERS_PER_TOKEN] for start in range(0, len(text), CHARACTERS_PER_TOKEN)]


# What a simulated provider was asked and what it bills: the other side's account of a run.


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call. `kind`: ok, a fault's name, limit (a 429 of the enforced limits), bad_request, client_closed.
    `question`: the same for calls that ask the same (nonces of judge prompts left out). `source` of the answer: corpus,
    made_up (a prompt that is not in the corpus), judge; "" where there was none."""

    id: str
    endpoint: str
    model: str
    kind: str
    question: str
    status: int
    source: str = ""
    batch_id: str | None = None
    custom_id: str | None = None
    billed: bool = False
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = None


@dataclass(kw_only=True, slots=True)
class Totals:
    calls: int = 0
    billed_calls: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    unpriced_calls: int = 0

    def add(self, call: Call) -> None:
        self.calls += 1
        if not call.billed:
            return
        self.billed_calls += 1
        self.input_tokens += call.input_tokens
        self.cached_input_tokens += call.cached_input_tokens
        self.output_tokens += call.output_tokens
        if call.usd is None:
            self.unpriced_calls += 1
        else:
            self.usd += call.usd


@dataclass(slots=True)
class Ledger:
    """Every call since the start or the last reset."""

    prices: dict[str, Price] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    by_model: defaultdict[str, Totals] = field(default_factory=lambda: defaultdict(Totals))
    by_kind: Counter[str] = field(default_factory=Counter)
    by_endpoint: Counter[str] = field(default_factory=Counter)
    by_source: Counter[str] = field(default_factory=Counter)
    questions: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)

    def add(self, call: Call) -> None:
        self.calls.append(call)
        self.totals.add(call)
        self.by_model[call.model].add(call)
        self.by_kind[call.kind] += 1
        self.by_endpoint[call.endpoint] += 1
        if call.source:
            self.by_source[call.source] += 1
        self.questions[call.question] += 1
        if call.billed:
            self.answered[call.question] += 1

    def price(self, usage: Usage, *, model: str, endpoint: str, batch: bool) -> float | None:
        provider = "anthropic" if endpoint == "messages" else "openai"
        cost = cost_of(usage, model=model, provider=provider, at=datetime.now(UTC), prices=self.prices, batch=batch)
        return None if cost is None else cost.usd

    def reset(self) -> None:
        fresh = Ledger(prices=self.prices)
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))

    def document(self, *, with_calls: bool) -> dict[str, Any]:
        """The JSON of `GET /_sim/ledger`. `n_answered_again`: billed answers to a question that had one already."""
        return {
            "calls": self.totals.calls,
            "by_kind": dict(self.by_kind),
            "by_endpoint": dict(self.by_endpoint),
            "by_source": dict(self.by_source),
            "billed": asdict(self.totals),
            "by_model": {model: asdict(totals) for model, totals in sorted(self.by_model.items())},
            "n_questions": len(self.questions),
            "n_questions_answered": len(self.answered),
            "n_asked_again": self.totals.calls - len(self.questions),
            "n_answered_again": self.totals.billed_calls - len(self.answered),
            **({"log": [asdict(call) for call in self.calls]} if with_calls else {}),
        }
