"""The dollars of a judged pair, before it is judged."""

from __future__ import annotations

from evalpipe.analysis.connection import rows
from evalpipe.errors import EvalpipeError
from evalpipe.judging.estimate import TOKENS_PER_CHAR
from evalpipe.pipeline.judge_setup import price_of, specs_of
from evalpipe.pipeline.workspace import Workspace
from evalpipe.providers.base import Usage
from evalpipe.store.datasets import open_store

OVERHEAD_TOKENS = 700
"""rubric, reply schema and fences around the pair"""
REPLY_TOKENS = 250


def price_per_pair(workspace: Workspace, experiment: str, orders: str) -> tuple[float | None, str | None, str | None]:
    """What a judged pair costs: what past calls cost on average, else by the lengths in the log and the price list.

    Args:
        experiment: whose answers are judged.
        orders: how a pair is asked: both (two calls) | calibrated | balanced.

    Returns:
        (dollars, the judge's name, why the dollars are not known); None where not known, or nothing to add.
    """
    try:
        spec = specs_of(workspace)[0]
    except EvalpipeError as error:
        return None, None, str(error)
    calls = 2 if orders == "both" else 1
    with open_store(workspace.data, experiment) as store:
        paid = rows(
            store.connection,
            "SELECT avg(cost_usd) AS usd, count(cost_usd) AS n FROM judgments "
            "WHERE judge = ? AND NOT simulated AND status = 'ok'",
            [spec.name],
        )[0]
        if paid["n"] >= 20:
            return calls * paid["usd"], spec.name, None
        length = rows(
            store.connection,
            "SELECT avg(least(length(prompt), ?)) * ? AS prompt, avg(least(length(text), ?)) * ? AS answer "
            "FROM exchanges WHERE text IS NOT NULL",
            [spec.max_request_chars, TOKENS_PER_CHAR, spec.max_response_chars, TOKENS_PER_CHAR],
        )[0]
    if length["prompt"] is None or length["answer"] is None:
        return None, spec.name, "There are no answers in the log yet, so the judge's dollars are not known."
    usage = Usage(
        input_tokens=round(OVERHEAD_TOKENS + length["prompt"] + 2 * length["answer"]), output_tokens=REPLY_TOKENS
    )
    usd = price_of(workspace, spec)(usage)
    if usd is None:
        return None, spec.name, f'The price of {spec.model} is not known: add it under [prices."{spec.model}"].'
    return calls * usd, spec.name, None
