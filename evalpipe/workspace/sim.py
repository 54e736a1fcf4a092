"""`evalpipe sim`: the command's words turned into the settings of a simulated provider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalpipe.errors import ConfigError
from evalpipe.sim.app import run_sim
from evalpipe.sim.settings import JudgeBehaviour, Limits, SimSettings

_LIMIT_NAMES = {"requests": "requests", "input": "input_tokens", "output": "output_tokens"}
_RATES = ("accuracy", "seat_bias", "length_bias", "tie_rate", "unparseable_rate")


def simulate(settings: SimSettings, announce: Callable[[str], None]) -> None:
    """Serve until interrupted; `announce` gets the base URL once it listens."""
    run_sim(settings, announce)


def read_limits(text: str | None) -> Limits:
    """ "requests=1000,input=400000,output=80000", all per minute, each optional. Raises ConfigError."""
    rates = {name: _number("--limits", name, value) for name, value in _assignments("--limits", text)}
    for name, value in rates.items():
        if name not in _LIMIT_NAMES:
            raise ConfigError(f"--limits: unknown limit {name!r}; allowed are {', '.join(_LIMIT_NAMES)}")
        if value <= 0:
            raise ConfigError(f"--limits: {name} = {value:g}; above 0 is expected")
    return Limits(**{_LIMIT_NAMES[name]: value for name, value in rates.items()})


def read_faults(text: str | None) -> dict[str, float]:
    """ "429=0.05,cut=0.01": fault → share of calls. Raises ConfigError."""
    return {name: _number("--faults", name, value) for name, value in _assignments("--faults", text)}


def read_judge(text: str | None, pairs: Path | None) -> JudgeBehaviour:
    """ "checks" | "replay" | "replay,judge=NAME" | "accuracy=0.8,seat_bias=0.1,…" (stated rates). Raises ConfigError."""
    behaviour = JudgeBehaviour(pairs=pairs)
    for word in (text or "").split(","):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not name:
            continue
        if not equals:
            behaviour = replace(behaviour, behaviour=name)
        elif name == "judge":
            behaviour = replace(behaviour, judge=value)
        elif name in _RATES:
            rate = _number("--judge", name, value)
            if not 0 <= rate <= 1:
                raise ConfigError(f"--judge: {name} = {value}; a rate from 0 to 1 is expected")
            kind = "stated" if behaviour.behaviour == "checks" else behaviour.behaviour
            changes: dict[str, Any] = {name: rate}
            behaviour = replace(behaviour, behaviour=kind, **changes)
        else:
            raise ConfigError(
                f"--judge: unknown word {name!r}; allowed are checks, stated, replay, judge=, {'=, '.join(_RATES)}="
            )
    return behaviour


def _assignments(option: str, text: str | None) -> list[tuple[str, str]]:
    pairs = []
    for word in (text or "").split(","):
        if word.strip():
            name, equals, value = word.partition("=")
            if not equals:
                raise ConfigError(f"{option}: {word.strip()!r}; NAME=NUMBER is expected")
            pairs.append((name.strip(), value.strip()))
    return pairs


def _number(option: str, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{option}: {name} = {value!r}; a number is expected") from None
