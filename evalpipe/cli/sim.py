"""`evalpipe sim`: simulated providers for trying things out and for load tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evalpipe.errors import ConfigError

if TYPE_CHECKING:
    from evalpipe.sim.settings import JudgeBehaviour, Limits


def sim(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.")] = 8500,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    corpus: Annotated[
        Path | None,
        typer.Option(help="Answers to give: JSONL with model, prompt or messages, text, …; or a `pairs` file."),
    ] = None,
    limits: Annotated[
        str | None, typer.Option(help="Limits per minute and model: `requests=1000,input=400000,output=80000`.")
    ] = None,
    faults: Annotated[
        str | None,
        typer.Option(
            help="Shares of calls that fail: `429=0.05,500=0.01,529=,slow=,stall=,cut=,error_event=,malformed=,empty=,"
            "refusal=,max_tokens=`."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="How judge prompts are answered: `checks` (stated rules, the default), `accuracy=0.8,seat_bias=0.1,"
            "length_bias=,tie_rate=,unparseable_rate=`, or `replay` of recorded judgements (`replay,judge=NAME`)."
        ),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="A `pairs` file with recorded judgements, for `--judge replay`.")
    ] = None,
    speed: Annotated[float, typer.Option(help="Recorded times are divided by this.")] = 1.0,
    ttft_ms: Annotated[float, typer.Option(help="Time to the first token where none is recorded.")] = 20.0,
    tokens_per_second: Annotated[float, typer.Option(help="Pace of answers where none is recorded.")] = 400.0,
    max_latency_ms: Annotated[float | None, typer.Option(help="No answer takes longer than this.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder in which batches survive a restart.")] = None,
    batch_seconds: Annotated[float, typer.Option(help="How long a batch takes.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Moves every draw: faults, made-up text, a judge's rates.")] = 0,
) -> None:
    """Serve simulated OpenAI and Anthropic APIs: plain, streamed and in batches, with limits and faults.

    It serves `/v1/chat/completions`, `/v1/responses`, `/v1/messages`, both batch APIs, `/v1/models`, and answers judge
    prompts. Every answer carries the header `x-simulated-by: evalpipe-sim`, and what it judged is marked *simulated* in the
    data and the report. `GET /_sim/ledger` reports the calls and what they cost; `POST /_sim/config` changes limits and faults
    while it runs, `POST /_sim/reset` empties the ledger.

    ```
    evalpipe sim --port 8500 --limits requests=1000,input=400000,output=80000 --faults 429=0.02,cut=0.01
    ```
    """
    from evalpipe.sim.app import run_sim
    from evalpipe.sim.settings import SimSettings

    settings = SimSettings(
        host=host,
        port=port,
        corpus=corpus,
        limits=read_limits(limits),
        faults=read_faults(faults),
        judge=read_judge(judge, pairs),
        speed=speed,
        ttft_ms=ttft_ms,
        tokens_per_second=tokens_per_second,
        max_latency_ms=max_latency_ms,
        state=state,
        batch_seconds=batch_seconds,
        seed=seed,
    )
    run_sim(settings, lambda url: typer.echo(f"listening on {url}"))


_LIMIT_NAMES = {"requests": "requests", "input": "input_tokens", "output": "output_tokens"}
_RATES = ("accuracy", "seat_bias", "length_bias", "tie_rate", "unparseable_rate")


def read_limits(text: str | None) -> Limits:
    """ "requests=1000,input=400000,output=80000", all per minute, each optional. Raises ConfigError."""
    from evalpipe.sim.settings import Limits

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
    from evalpipe.sim.settings import JudgeBehaviour

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
