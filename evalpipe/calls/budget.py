"""Money and tokens before a call: what it will probably use, and the most it can cost. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from evalpipe.providers.base import Usage


class CostOf(Protocol):
    """What a usage costs at this judge's price."""

    def __call__(self, usage: Usage, answered: str | None = None) -> float | None:
        """USD, None where no price is known. `answered`: the model that answered, by its own word; a router may have asked
        another one than the judge's, at another price."""
        ...


def dearest(cost_of: CostOf, usage: Usage, other_models: Iterable[str]) -> float | None:
    """The most that a call of this usage costs: at the price of the model asked, or of one that has answered in its place.
    None where none of them has a known price."""
    costs = [cost_of(usage), *(cost_of(usage, model) for model in other_models)]
    return max((cost for cost in costs if cost is not None), default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class MostTokens:
    """The most tokens that a call can use."""

    input_tokens: int
    output_tokens: int

    def usd(self, cost_of: CostOf, other_models: Iterable[str] = ()) -> float | None:
        """The most that it costs; None where no price is known."""
        return dearest(cost_of, Usage(input_tokens=self.input_tokens, output_tokens=self.output_tokens), other_models)


def is_priced_by(cost_of: CostOf, model: str) -> bool:
    """Whether answers of this model have a known price."""
    return cost_of(Usage(input_tokens=1, output_tokens=1), model) is not None


SCHEMA_OVERHEAD_TOKENS = 1000
"""The most that a provider adds on its own account for a structured reply or a forced tool (a few hundred are usual)."""

OUTPUT_QUANTILE = 0.75
_WINDOW = 200
_FIRST_TOKENS_PER_CHAR = 0.3
_FIRST_OUTPUT_TOKENS = 300


@dataclass(slots=True)
class TokenEstimator:
    """Expected tokens of a call, learned from the calls before: input as a moving ratio to characters, output as a moving
    quantile of the last 200 replies. Reserving max_tokens would leave most of an output limit unused."""

    max_tokens: int
    _inputs: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _outputs: deque[int] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _whole: deque[int] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _n_chars: int = 0
    _n_tokens: int = 0
    _output: int | None = None

    def learn(self, n_chars: int, usage: Usage, *, whole: bool = True) -> None:
        """`whole`: a reply that came to its own end, neither refused nor truncated nor empty."""
        if usage.input_tokens is not None:
            if len(self._inputs) == _WINDOW:
                chars, tokens = self._inputs[0]
                self._n_chars -= chars
                self._n_tokens -= tokens
            self._inputs.append((n_chars, usage.input_tokens))
            self._n_chars += n_chars
            self._n_tokens += usage.input_tokens
        if usage.output_tokens is not None:
            self._outputs.append(usage.output_tokens)
            if whole:
                self._whole.append(usage.output_tokens)
            self._output = None

    def input_tokens(self, n_chars: int) -> int:
        ratio = self._n_tokens / self._n_chars if self._n_chars else _FIRST_TOKENS_PER_CHAR
        return math.ceil(n_chars * ratio)

    def output_tokens(self) -> int:
        """What to reserve of the output limit."""
        if self._output is None:
            if self._outputs:
                ordered = sorted(self._outputs)
                self._output = ordered[min(len(ordered) - 1, int(OUTPUT_QUANTILE * len(ordered)))]
            else:
                self._output = min(self.max_tokens, _FIRST_OUTPUT_TOKENS)
        return self._output

    def mean_output_tokens(self) -> int:
        """What a reply that was cut off probably held: as much as the whole ones do."""
        if not self._whole:
            return min(self.max_tokens, _FIRST_OUTPUT_TOKENS)
        return round(sum(self._whole) / len(self._whole))


def most_input_tokens(n_bytes: int) -> int:
    """The most input tokens a text of `n_bytes` (UTF-8) can be: no tokenizer makes more than one token a byte."""
    return n_bytes + SCHEMA_OVERHEAD_TOKENS


@dataclass(slots=True)
class Budget:
    """A hard cap in USD. `spent` is what is known; `held` is the worst case of calls in flight and of calls whose bill
    remains unknown. spent + held never passes the cap. `cap` None: no cap, only the account.
    `is_of_a_day`: what is left under the cap is what is left for today."""

    cap: float | None
    spent: float = 0.0
    held: float = 0.0
    is_of_a_day: bool = False

    def reserve(self, worst: float) -> bool:
        """Hold `worst` USD for a call; False where it does not fit."""
        if self.cap is not None and self.spent + self.held + worst > self.cap + 1e-12:
            return False
        self.held += worst
        return True

    def settle(self, worst: float, cost: float, *, certain: bool = True) -> None:
        """Book a call at `cost`. Where that is an estimate, the rest of the worst case stays held."""
        self.spent += cost
        self.held -= worst if certain else min(cost, worst)
        self.held = max(self.held, 0.0)

    @property
    def left(self) -> float | None:
        return None if self.cap is None else max(self.cap - self.spent - self.held, 0.0)

    def refusal(self, worst: float) -> str:
        """Why a call that can cost `worst` USD is not made."""
        today = " for today" if self.is_of_a_day else ""
        return f"the next call can cost ${worst:.4f}, and ${self.left or 0:.4f} are left{today}"
