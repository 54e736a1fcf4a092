"""What a batch comes to when its time is over: every item answered, billed at half price, and in the ledger."""

from __future__ import annotations

from typing import Any

from evalpipe.sim.engine import Engine, Planned
from evalpipe.sim.ledger import Call, Ledger
from evalpipe.sim.requests import BadRequestError, SimRequest, read_sim_request

_ANSWER_FAULTS = frozenset({"empty", "refusal", "max_tokens"})


def answer_item(
    engine: Engine,
    ledger: Ledger,
    *,
    endpoint: str,
    body: dict[str, Any],
    fault: str | None,
    batch_id: str,
    custom_id: str,
) -> tuple[SimRequest, Planned] | str:
    """The answer to one item, or the message of its error. Faults that break connections are errors in a batch."""
    model = str(body.get("model"))
    result: tuple[SimRequest, Planned] | str
    try:
        request = read_sim_request(endpoint, body)
        if fault is not None and fault not in _ANSWER_FAULTS and fault != "slow":
            result = "The server had an error while processing this request."
        else:
            result = (request, engine.plan(request, fault))
    except BadRequestError as error:
        result = str(error)
    planned = None if isinstance(result, str) else result[1]
    usage = None if planned is None else planned.reply.usage
    ledger.add(
        Call(
            id=planned.reply.id if planned else engine.next_id("req_sim"),
            endpoint=endpoint,
            model=model,
            kind="batch_ok" if planned else "batch_errored",
            question=planned.question if planned else custom_id,
            status=200 if planned else 400,
            source=planned.source if planned is not None else "",
            batch_id=batch_id,
            custom_id=custom_id,
            billed=planned is not None,
            input_tokens=(usage.input_tokens or 0) if usage else 0,
            cached_input_tokens=(usage.cached_input_tokens or 0) if usage else 0,
            output_tokens=(usage.output_tokens or 0) if usage else 0,
            usd=ledger.price(usage, model=model, endpoint=endpoint, batch=True) if usage else None,
        )
    )
    return result
