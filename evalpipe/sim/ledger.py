"""What a simulated provider was asked and what it bills: the other side's account of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from evalpipe.providers.base import Usage
from evalpipe.providers.pricing import Price, cost_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call. `kind`: ok, a fault's name, limit (a 429 of the enforced limits), bad_request, client_closed.
    `question`: the same for calls that ask the same (nonces of judge prompts left out). `source` of the answer: corpus,
    made_up (a prompt the corpus does not know), judge; "" where there was none."""

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
