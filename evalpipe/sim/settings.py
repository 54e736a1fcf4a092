"""What a simulated provider does: plain values, changeable while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from evalpipe.errors import ConfigError
from evalpipe.providers.pricing import Price

FAULTS = {
    "429": "rate limit error, with retry-after",
    "500": "internal error",
    "529": "overloaded",
    "slow": "the first byte comes late (slow_s)",
    "stall": "half an answer, then nothing for stall_s",
    "cut": "half an answer, then the connection closes",
    "error_event": "an error event after HTTP 200 (streams; else 500)",
    "malformed": "HTTP 200 with broken JSON",
    "empty": "an answer without text",
    "refusal": "a refusal",
    "max_tokens": "an answer cut at its token limit",
}
"""name → what happens; each has a rate in [0, 1], and at most one happens to a request"""

BEHAVIOURS = ("checks", "stated", "replay")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Per minute; None = unlimited. Buckets hold one sixth of a minute and refill all the time; output counts as it is
    generated. Each model has its own buckets."""

    requests: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeBehaviour:
    """How judge prompts are answered. `checks`: by stated rules (`judges.py`). `stated`: with `accuracy` the better answer
    (by a latent quality hashed from the text, or a recorded label), after the rates of the biases; all in [0, 1].
    `replay`: recorded judgements of a `pairs` file; `judge` names one where the request's model does not."""

    behaviour: str = "checks"
    accuracy: float = 0.8
    seat_bias: float = 0.0
    length_bias: float = 0.0
    tie_rate: float = 0.0
    unparseable_rate: float = 0.0
    pairs: Path | None = None
    judge: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """What one model does otherwise than all: `faults` replaces the general rates, `speed` multiplies."""

    faults: Mapping[str, float] | None = None
    speed: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SimSettings:
    """`port` 0: any free one. `speed`: recorded and generated times are divided by it. `ttft_ms` and
    `tokens_per_second` hold for answers the corpus has no times for; `max_latency_ms` caps every answer's duration after
    `speed`. `state`: folder where batches and their results survive a restart (None: memory only). `batch_seconds`: how
    long a batch takes. `bill_faults`: whether answers the server itself broke (cut, stall,
    malformed, error_event) are billed, as generated tokens usually are."""

    host: str = "127.0.0.1"
    port: int = 0
    corpus: Path | None = None
    limits: Limits = field(default_factory=Limits)
    faults: Mapping[str, float] = field(default_factory=dict)
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    judge: JudgeBehaviour = field(default_factory=JudgeBehaviour)
    speed: float = 1.0
    ttft_ms: float = 20.0
    tokens_per_second: float = 400.0
    max_latency_ms: float | None = None
    slow_s: float = 5.0
    stall_s: float = 600.0
    retry_after_s: float = 1.0
    seed: int = 0
    state: Path | None = None
    batch_seconds: float = 1.0
    bill_faults: bool = True
    prices: Mapping[str, Price] = field(default_factory=dict)
    cache_min_tokens: int = 4096

    def __post_init__(self) -> None:
        _check_faults(self.faults)
        for model in self.models.values():
            _check_faults(model.faults or {})
        if self.judge.behaviour not in BEHAVIOURS:
            raise ConfigError(f"judge behaviour {self.judge.behaviour!r}: allowed are {', '.join(BEHAVIOURS)}")
        if self.judge.behaviour == "replay" and self.judge.pairs is None:
            raise ConfigError("judge behaviour 'replay' needs a pairs file with recorded judgements")
        if not self.speed > 0:
            raise ConfigError(f"speed = {self.speed}: must be above 0")

    def faults_of(self, model: str) -> Mapping[str, float]:
        own = self.models.get(model)
        return self.faults if own is None or own.faults is None else own.faults

    def speed_of(self, model: str) -> float:
        own = self.models.get(model)
        return self.speed * (1.0 if own is None else own.speed)


def changed(settings: SimSettings, document: Mapping[str, Any]) -> SimSettings:
    """The settings with the changes of a JSON document, e.g. {"faults": {"500": 1}, "limits": {"requests": 60}}; what is
    not named stays. Raises ConfigError."""
    changes: dict[str, Any] = {}
    for key, value in document.items():
        if key == "limits":
            changes[key] = _section(Limits, settings.limits, key, value)
        elif key == "judge":
            value = (
                {**value, "pairs": Path(value["pairs"])} if isinstance(value, dict) and value.get("pairs") else value
            )
            changes[key] = _section(JudgeBehaviour, settings.judge, key, value)
        elif key == "models":
            known = {name: settings.models.get(name, ModelSettings()) for name in _mapping(key, value)}
            named = {name: _section(ModelSettings, known[name], f"models.{name}", own) for name, own in value.items()}
            changes[key] = {**settings.models, **named}
        elif key == "faults":
            changes[key] = {str(name): rate for name, rate in _mapping(key, value).items()}
        elif key in _SIMPLE and (value is None or isinstance(value, int | float)):
            changes[key] = value
        else:
            raise ConfigError(f"{key} = {value!r} cannot be changed: allowed are {', '.join(sorted(_CHANGEABLE))}")
    try:
        return replace(settings, **changes)
    except TypeError as error:
        raise ConfigError(f"a value of the wrong type: {error}") from error


_SIMPLE = frozenset(
    {
        "speed",
        "ttft_ms",
        "tokens_per_second",
        "max_latency_ms",
        "slow_s",
        "stall_s",
        "retry_after_s",
        "batch_seconds",
        "bill_faults",
    }
)
_CHANGEABLE = _SIMPLE | {"limits", "judge", "models", "faults"}


def _section(kind: type[Any], now: Any, name: str, value: Any) -> Any:
    known = {item.name for item in fields(kind)}
    for key in _mapping(name, value):
        if key not in known:
            raise ConfigError(f"{name}.{key} is unknown: allowed are {', '.join(sorted(known))}")
    return replace(now, **value)


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} = {value!r}: an object is expected")
    return value


def _check_faults(faults: Mapping[str, float]) -> None:
    for name, rate in faults.items():
        if name not in FAULTS:
            raise ConfigError(f"unknown fault {name!r}: allowed are {', '.join(FAULTS)}")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ConfigError(f"fault {name} = {rate!r}: a rate from 0 to 1 is expected")
    if sum(faults.values()) > 1 + 1e-9:
        raise ConfigError(f"the fault rates add up to {sum(faults.values()):g}: at most 1 is possible")
