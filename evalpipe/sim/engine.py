"""What a simulated provider answers to a request: from the corpus, as a judge, or made up; the same for the same request."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from evalpipe.providers.base import Reply, ReplyCall, Stop, Usage
from evalpipe.providers.json_values import dump
from evalpipe.sim.judges import JudgePrompt, SimulatedJudge, read_judge_prompt
from evalpipe.sim.requests import (
    CHARACTERS_PER_TOKEN,
    Corpus,
    RecordedAnswer,
    SimRequest,
    count_tokens,
    made_up_json,
    made_up_text,
    seeded,
)
from evalpipe.sim.settings import SimSettings

REFUSAL = "I'm sorry, but I can't help with that."
_ID_PREFIX = {"messages": "msg_sim", "chat.completions": "chatcmpl-sim", "responses": "resp_sim"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """An answer and its pace. `source`, `question`: see `ledger.Call`."""

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
        BadRequestError where the judge has nothing to say."""
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
            return replace(usage, cached_input_tokens=n)
        self._cached.add(_prefix(request))
        return replace(usage, cache_write_tokens=n)

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
    said = (answer.text or "") + "".join(call.name + call.arguments for call in answer.calls)
    return max(count_tokens(said), 1)


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
