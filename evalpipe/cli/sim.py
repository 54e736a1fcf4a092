"""`evalpipe sim`: simulated providers for trying things out and for load tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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

    It speaks `/v1/chat/completions`, `/v1/responses`, `/v1/messages`, both batch APIs, `/v1/models`, and answers judge
    prompts. Every answer carries the header `x-simulated-by: evalpipe-sim`, and what it judged is marked *simulated* in the
    data and the report. `GET /_sim/ledger` tells what it was asked and bills; `POST /_sim/config` changes limits and faults
    while it runs, `POST /_sim/reset` empties the ledger.

    ```
    evalpipe sim --port 8500 --limits requests=1000,input=400000,output=80000 --faults 429=0.02,cut=0.01
    ```
    """
    from evalpipe.sim.settings import SimSettings
    from evalpipe.workspace.sim import read_faults, read_judge, read_limits, simulate

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
    simulate(settings, lambda url: typer.echo(f"listening on {url}"))
