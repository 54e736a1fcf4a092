"""Clients whose streams carry no usage: no false conclusion on cost and tokens, and a true one where enough is known.

evalpipe's own requests (shadow copies, the treatment's served streams) ask for usage; control's streams are as the client asked
for them. Means of what is known would then compare different requests.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from chunks import Chunk, Sums
from experiments import PLAIN, STREAMED, Answers, Experiment, Model, Traffic, answers, split_users, traffic
from lines import Line
from through_analyze import look_through, row

REQUESTS, DAYS = 2400, 2.0
SPLIT_REQUESTS = 3000
DEAREST = 0.01
SHORT, LONG = 15.0, 420.0
"""tokens of a plain and of a streamed answer"""
FALSE_ROWS = (
    "cost_per_request_usd",
    "input_tokens",
    "output_tokens",
    "tokens_used",
    "tokens_per_second",
)
CONCLUSIONS = ("better", "worse")


def simulate_half_streams(chunk: Chunk, *, mode: str) -> Sums:
    """A/A: every user has one short plain answer and one long stream without usage; conclusions that are false, by row."""
    sums: Sums = dict.fromkeys((*FALSE_ROWS, "harm", "ship"), 0.0)
    for _ in range(chunk.n):
        asked, streamed = _requests(chunk.rng, mode)
        lengths = replace(asked, length=asked.length + np.where(streamed, np.log(LONG / SHORT), 0.0))
        model = Model(error_rate=0.0, timeout_rate=0.0, tokens=SHORT, tokens_sd=0.2)
        control, treatment = (answers(chunk.rng, lengths, model, streamed=streamed) for _ in range(2))
        _look(
            sums,
            _experiment(chunk.rng, lengths, control.without_usage(streamed), treatment, mode, streamed),
            FALSE_ROWS,
        )
    return sums


def report_half_streams(sums: Sums, *, mode: str) -> list[Line]:
    runs = sums["replications"]
    return [
        Line(name=f"half of the streams without usage, A/A, {mode}: {name} false", seen=sums[name], designed="0", bound=0,
             detail=f"of {runs:.0f} experiments")
        for name in (*FALSE_ROWS, "harm", "ship")
    ]  # fmt: skip


def simulate_cheaper(chunk: Chunk, *, mode: str) -> Sums:
    """Half of the clients stream without usage; the treatment is 30 % cheaper: experiments that show it."""
    sums: Sums = {"cost_per_request_usd": 0.0, "harm": 0.0, "ship": 0.0}
    for _ in range(chunk.n):
        asked, streamed = _requests(chunk.rng, mode, by_user=True)
        models = (Model(error_rate=0.002), Model(error_rate=0.002, price=0.7))
        control, treatment = (answers(chunk.rng, asked, model, streamed=streamed) for model in models)
        experiment = _experiment(chunk.rng, asked, control.without_usage(streamed), treatment, mode, streamed)
        _look(sums, experiment, ("cost_per_request_usd",), wanted="better")
    return sums


def report_cheaper(sums: Sums, *, mode: str) -> list[Line]:
    runs = sums["replications"]
    return [
        Line(name=f"half of the clients without usage, 30 % cheaper, {mode}: shown", seen=sums["cost_per_request_usd"] / runs,
             designed=">= .9", bound=0.9, at_least=True, detail=f"{runs:.0f} experiments")
    ]  # fmt: skip


def simulate_dearest(chunk: Chunk, *, mode: str) -> Sums:
    """A/A; the treatment's dearest 1 % have no usage: experiments in which it looks cheaper."""
    sums: Sums = {"cost_per_request_usd": 0.0, "harm": 0.0, "ship": 0.0}
    for _ in range(chunk.n):
        asked, _ = _requests(chunk.rng, mode)
        model = Model(error_rate=0.002, tokens_sd=1.0)
        control, treatment = (answers(chunk.rng, asked, model) for _ in range(2))
        dearest = treatment.cost_usd >= np.nanquantile(treatment.cost_usd, 1 - DEAREST)
        experiment = _experiment(chunk.rng, asked, control, treatment.without_usage(dearest), mode, None)
        _look(sums, experiment, ("cost_per_request_usd",), wanted="better")
    return sums


def report_dearest(sums: Sums, *, mode: str) -> list[Line]:
    runs = sums["replications"]
    return [
        Line(name=f"treatment's dearest 1 % unknown, A/A, {mode}: cheaper", seen=sums["cost_per_request_usd"], designed="0",
             bound=0, detail=f"of {runs:.0f} experiments")
    ]  # fmt: skip


def _requests(rng: np.random.Generator, mode: str, *, by_user: bool = False) -> tuple[Traffic, np.ndarray]:
    """Two requests a user, and which are streams: one of the two, or (`by_user`) both of every other user."""
    n = REQUESTS if mode == "shadow" else SPLIT_REQUESTS
    number = np.arange(n)
    user = number // 2
    streamed = user % 2 == 1 if by_user else number % 2 == 1
    return traffic(rng, n=n, days=DAYS, user=user), streamed


def _experiment(
    rng: np.random.Generator,
    asked: Traffic,
    control: Answers,
    treatment: Answers,
    mode: str,
    streamed: np.ndarray | None,
) -> Experiment:
    kind = None if streamed is None else np.where(streamed, STREAMED, PLAIN)
    split = None if mode == "shadow" else split_users(rng, asked.n_users, 50.0, asked.user)
    return Experiment(asked=asked, control=control, treatment=treatment, mode=mode, kind=kind, in_treatment=split)


def _look(sums: Sums, experiment: Experiment, names: tuple[str, ...], *, wanted: str | None = None) -> None:
    """Count the rows with a conclusion (with the `wanted` finding), and what is decided."""
    for look in look_through(experiment, n_looks=1):
        for name in names:
            found = row(look.raw, name).finding
            sums[name] += found in CONCLUSIONS if wanted is None else found == wanted
        sums["harm"] += look.raw.decision.rule == "harm"
        sums["ship"] += look.raw.decision.recommendation == "ship"
