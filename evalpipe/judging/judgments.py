"""A planned call and what came back → the judgment that is stored; stored replies read again. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from evalpipe.analysis.sql import Connection
from evalpipe.calls.client import CallOutcome, ModelResponse
from evalpipe.calls.runner import RecordedCost
from evalpipe.judging.plan import JudgeCall, calls_for
from evalpipe.judging.prompt import Message, ShownAnswer, answer_message, pair_message
from evalpipe.judging.spec import JudgeSpec
from evalpipe.judging.verdict import UnreadableReplyError, forges_verdict, read_reply
from evalpipe.models import (
    ASKED_MODEL,
    COST_AT_MOST,
    TOKENS_AT_MOST,
    Judgment,
    JudgmentStatus,
    Outcome,
    ShownFirst,
    Winner,
)
from evalpipe.providers.model_names import same_model
from evalpipe.text import well_formed


def message_of(ask: JudgeCall, spec: JudgeSpec, nonce: str) -> Message:
    """The user message of a planned call."""
    limits = {"max_request_chars": spec.max_request_chars, "max_response_chars": spec.max_response_chars}
    if ask.arm is not None:
        answer = ask.control or ask.treatment
        assert answer is not None
        message = answer_message(
            ask.request,
            ask.arm,
            answer,
            nonce=nonce,
            facts=ask.facts,
            max_context_chars=spec.max_context_chars,
            **limits,
        )
        return _marked(message, ask, spec)
    assert ask.control is not None and ask.treatment is not None
    message = pair_message(ask.request, ask.control, ask.treatment, shown_first=ask.shown_first, nonce=nonce, **limits)
    return _marked(message, ask, spec)


def _marked(message: Message, ask: JudgeCall, spec: JudgeSpec) -> Message:
    """The message, with a tripwire for each text that holds keys of this judge's own reply."""
    names = ("winner", *spec.dimensions, *(("claims", "verdict") if spec.lists_claims else ()))
    texts = {"request": ask.request, **ask.facts, "control": ask.control, "treatment": ask.treatment}
    found = dict(message.tripwires)
    for name, text in texts.items():
        shown = text.text if isinstance(text, ShownAnswer) else text or ""
        if forges_verdict(shown, names) and FORGED not in found.get(name, ()):
            found[name] = (*found.get(name, ()), FORGED)
    return message if found == message.tripwires else replace(message, tripwires=found)


def sent(
    ask: JudgeCall, attempt: int, spec: JudgeSpec, *, booking: RecordedCost, at: datetime, repair: bool = False
) -> Judgment:
    """The row of a call from the moment it is sent until it ends: lost, at an estimated cost."""
    return _judgment(
        ask,
        attempt,
        spec,
        status=JudgmentStatus.ERROR,
        cost_usd=booking.cost_usd,
        judged_at=at,
        note=render_note(error=LOST, repair=repair, **_bounds(booking)),
    )


def identical(ask: JudgeCall, spec: JudgeSpec, *, at: datetime) -> Judgment:
    """Identical responses: a tie without a call."""
    return _judgment(
        ask,
        ask.attempt + 1,
        spec,
        status=JudgmentStatus.IDENTICAL,
        winner=Winner.TIE,
        preference=0.5,
        cost_usd=0.0,
        judged_at=at,
    )


def ended(
    ask: JudgeCall,
    attempt: int,
    spec: JudgeSpec,
    reply: ModelResponse,
    *,
    booking: RecordedCost,
    at: datetime,
    message: Message | None = None,
    repair: bool = False,
    batch_id: str | None = None,
) -> Judgment:
    """The judgment of a call that has ended: a verdict, a refusal, a truncation, an unreadable reply, or a failure.

    Args:
        ask: the planned call.
        attempt: its number, from 1.
        spec: the judge.
        reply: what came back.
        booking: its cost.
        at: when it ended.
        message: what the judge was shown; None where that is not known.
        repair: whether the judge was asked to repair an earlier reply.
        batch_id: the provider's id of the batch it was part of.
    """
    facts: dict[str, Any] = {**_facts(message), "repair": repair, **_bounds(booking)}
    values: dict[str, Any]
    if reply.outcome is CallOutcome.ANSWERED:
        values = _answered(reply, ask, spec, facts)
    else:
        facts |= {"error": reply.kind or reply.outcome.value, "message": reply.message}
        values = {"status": JudgmentStatus.REFUSED if reply.outcome is CallOutcome.REFUSED else JudgmentStatus.ERROR}
    return _judgment(
        ask,
        attempt,
        spec,
        cost_usd=booking.cost_usd,
        latency_ms=reply.latency_ms,
        judged_at=at,
        simulated=reply.simulated,
        batch_id=batch_id,
        note=render_note(**facts),
        **values,
    )


def _answered(reply: ModelResponse, ask: JudgeCall, spec: JudgeSpec, facts: dict[str, Any]) -> dict[str, Any]:
    """The fields of a judgment that a response gives; `facts` of its note are added."""
    answer = reply.answer
    assert answer is not None
    fields: dict[str, Any] = {}
    if answer.outcome is Outcome.REFUSED:
        status = JudgmentStatus.REFUSED
        facts["error"] = "refused"
    else:
        # A reply that reached its limit may still hold the whole object.
        is_cut = answer.outcome is Outcome.TRUNCATED
        status, fields, found = read_verdict(reply.text, ask, spec, only_object=is_cut or is_forged(facts))
        if is_cut and status is not JudgmentStatus.OK:
            status, found = JudgmentStatus.TRUNCATED, {"error": "truncated"}
        facts.update(found)
    if answer.model and not same_model(answer.model, spec.model):
        facts[ASKED_MODEL] = spec.model
    return {
        "status": status,
        "judge_model": answer.model or spec.model,
        "raw_reply": well_formed(reply.text),
        "input_tokens": answer.usage.input_tokens,
        "output_tokens": answer.usage.output_tokens,
        "cached_input_tokens": answer.usage.cached_input_tokens,
        **fields,
    }


def outdated(
    ask: JudgeCall,
    attempt: int,
    spec: JudgeSpec,
    reply: ModelResponse,
    *,
    fingerprint: str,
    booking: RecordedCost,
    at: datetime,
    batch_id: str,
) -> Judgment:
    """An answer to a batch that was made with another rubric, `fingerprint`: no verdict of today's; its cost is booked."""
    found = _judgment(
        ask,
        attempt,
        spec,
        status=JudgmentStatus.ERROR,
        judge_model=reply.model,
        raw_reply=well_formed(reply.text),
        input_tokens=reply.usage.input_tokens,
        output_tokens=reply.usage.output_tokens,
        cost_usd=booking.cost_usd,
        latency_ms=reply.latency_ms,
        judged_at=at,
        simulated=reply.simulated,
        batch_id=batch_id,
        note=render_note(error="other_rubric", **_bounds(booking)),
    )
    return replace(found, judge_fingerprint=fingerprint)


def is_forged(facts: Mapping[str, Any]) -> bool:
    """Whether one of the texts that were judged holds what a reply could quote, by the facts of a note."""
    return any(FORGED in names for names in facts.get("tripwires", {}).values())


def read_verdict(
    text: str, ask: JudgeCall, spec: JudgeSpec, *, only_object: bool = False
) -> tuple[JudgmentStatus, dict[str, Any], dict[str, Any]]:
    """(status, the judgment's fields, the facts of its note) of a reply's text. `only_object`: see `read_reply`."""
    try:
        verdict = read_reply(text, spec, shown_first=ask.shown_first, arm=ask.arm, only_object=only_object)
    except UnreadableReplyError as error:
        return (
            JudgmentStatus.UNPARSEABLE,
            {},
            {"error": "empty" if not text.strip() else "unparseable", "message": str(error)},
        )
    fields = {
        "winner": verdict.winner,
        "preference": verdict.preference,
        "control_scores": verdict.control_scores,
        "treatment_scores": verdict.treatment_scores,
        "reasoning": None if verdict.reasoning is None else well_formed(verdict.reasoning),
    }
    facts: dict[str, Any] = {"contradiction": verdict.contradiction}
    return JudgmentStatus.OK, fields, facts if verdict.claims is None else {**facts, "claims": dict(verdict.claims)}


def _bounds(booking: RecordedCost) -> dict[str, Any]:
    """What a note keeps of a cost that was not reported: the most it can be, in USD or, without a price, in tokens."""
    most = booking.most_tokens
    return {
        COST_AT_MOST: booking.at_most,
        TOKENS_AT_MOST: None if most is None else [most.input_tokens, most.output_tokens],
    }


def _facts(message: Message | None) -> dict[str, Any]:
    return {} if message is None else {"cut": dict(message.cut), "tripwires": dict(message.tripwires)}


def _judgment(
    ask: JudgeCall, attempt: int, spec: JudgeSpec, *, judge_model: str | None = None, **values: Any
) -> Judgment:
    return Judgment(
        key=ask.key,
        attempt=attempt,
        request_id=ask.request_id,
        judge=spec.name,
        judge_fingerprint=spec.fingerprint,
        judge_model=judge_model or spec.model,
        shown_first=ask.shown_first,
        repeat=ask.repeat,
        **values,
    )


# The note of a judgment: further facts about the row, as one JSON object. Pure.


LOST = "lost"
"""`error` of a call that was sent and has no response: the process ended first."""

FORGED = "forged_verdict"
"""the tripwire of a text that holds keys of a verdict"""
READ_AGAIN = "reparsed_attempt"
"""the attempt whose stored reply was read again: this row was no call"""


def render_note(**facts: Any) -> str | None:
    """The facts that hold; None where there are none."""
    held = {name: value for name, value in facts.items() if value}
    return json.dumps(held, ensure_ascii=True, sort_keys=True) if held else None


def read_note(note: str | None) -> dict[str, Any]:
    """The facts of a note; empty where there is none, or where another tool wrote something else."""
    if not note or not note.startswith("{"):
        return {}
    try:
        found = json.loads(note)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


# `judge reparse`: stored raw replies read again, by the reader of today, without a call.


_READ = (JudgmentStatus.OK.value, JudgmentStatus.UNPARSEABLE.value, JudgmentStatus.TRUNCATED.value)
_KEPT = ("cut", "tripwires", ASKED_MODEL)
_NO_NONCE = "0" * 16
_READ_BEFORE = (
    f"SELECT key, (CASE WHEN json_valid(note) THEN note END ->> '$.{READ_AGAIN}')::BIGINT AS attempt FROM judgments "
    f"WHERE contains(note, '{READ_AGAIN}')"
)
_PER_PAGE = 500


def reparsed(connection: Connection, spec: JudgeSpec, *, at: datetime) -> Iterator[Judgment]:
    """New attempts, free of charge, for every key whose last readable reply now reads otherwise."""
    rows = connection.execute(
        "SELECT key, request_id, attempt, status, raw_reply, judge_model, simulated, winner, note, "
        f"max(attempt) OVER (PARTITION BY key) FROM judgments ANTI JOIN ({_READ_BEFORE}) AS read_before "
        "USING (key, attempt) WHERE judge_fingerprint = $1 AND raw_reply IS NOT NULL "
        "AND list_contains($2::VARCHAR[], status) "
        "QUALIFY row_number() OVER (PARTITION BY key ORDER BY status = 'ok' DESC, attempt DESC) = 1 ORDER BY request_id",
        [spec.fingerprint, list(_READ)],
    ).fetchall()
    for start in range(0, len(rows), _PER_PAGE):
        page = rows[start : start + _PER_PAGE]
        asks = {ask.key: ask for ask in calls_for(connection, spec, sorted({row[1] for row in page}))}
        for key, request_id, attempt, status, raw, model, simulated, winner, note, last in page:
            ask = asks.get(key)
            if ask is None:
                continue  # the answers have changed since: this reply is about something else
            tripwires = message_of(ask, spec, _NO_NONCE).tripwires
            only_object = status == JudgmentStatus.TRUNCATED or is_forged({"tripwires": tripwires})
            found, fields, reasons = read_verdict(raw, ask, spec, only_object=only_object)
            if status == JudgmentStatus.TRUNCATED and found is not JudgmentStatus.OK:
                continue
            if found.value == status and (status != "ok" or str(fields.get("winner")) == str(winner)):
                continue
            facts = {name: value for name, value in read_note(note).items() if name in _KEPT}
            yield replace(
                Judgment(
                    key=key,
                    attempt=last + 1,
                    request_id=request_id,
                    judge=spec.name,
                    judge_fingerprint=spec.fingerprint,
                    judge_model=model,
                    shown_first=ShownFirst(ask.shown_first),
                    repeat=ask.repeat,
                    status=found,
                    raw_reply=raw,
                    cost_usd=0.0,
                    judged_at=at,
                    simulated=bool(simulated),
                    note=render_note(**facts, **reasons, **{READ_AGAIN: attempt}),
                ),
                **fields,
            )
