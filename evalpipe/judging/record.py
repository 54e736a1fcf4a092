"""A planned call and what came back → the Judgment that is stored. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from evalpipe.core.judgment import ASKED_MODEL, COST_AT_MOST, Judgment, JudgmentStatus, Winner
from evalpipe.core.text import well_formed
from evalpipe.core.traffic import Outcome
from evalpipe.judging.call import Fate, Reply
from evalpipe.judging.note import FORGED, LOST, render_note
from evalpipe.judging.plan import Ask
from evalpipe.judging.prose import forges_verdict
from evalpipe.judging.reply import UnreadableReplyError, read_reply
from evalpipe.judging.rubric import Message, ShownAnswer, answer_message, pair_message
from evalpipe.judging.spec import JudgeSpec
from evalpipe.providers.models import same_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Booking:
    """What a call is booked at. `at_most` only where `cost_usd` is an estimate."""

    cost_usd: float | None
    at_most: float | None = None


def message_of(ask: Ask, spec: JudgeSpec, nonce: str) -> Message:
    """The user message of a planned call."""
    limits = {"max_request_chars": spec.max_request_chars, "max_response_chars": spec.max_response_chars}
    if ask.arm is not None:
        answer = ask.control or ask.treatment
        assert answer is not None
        return _marked(answer_message(ask.request, ask.arm, answer, nonce=nonce, **limits), ask, spec)
    assert ask.control is not None and ask.treatment is not None
    message = pair_message(ask.request, ask.control, ask.treatment, shown_first=ask.shown_first, nonce=nonce, **limits)
    return _marked(message, ask, spec)


def _marked(message: Message, ask: Ask, spec: JudgeSpec) -> Message:
    """The message, with a tripwire for each text that holds keys of this judge's own reply."""
    names = ("winner", *spec.dimensions)
    texts = {"request": ask.request, "control": ask.control, "treatment": ask.treatment}
    found = dict(message.tripwires)
    for name, text in texts.items():
        shown = text.text if isinstance(text, ShownAnswer) else text or ""
        if forges_verdict(shown, names) and FORGED not in found.get(name, ()):
            found[name] = (*found.get(name, ()), FORGED)
    return message if found == message.tripwires else replace(message, tripwires=found)


def sent(ask: Ask, attempt: int, spec: JudgeSpec, *, booking: Booking, at: datetime, repair: bool = False) -> Judgment:
    """How a call stands from the moment it is sent until it ends: lost, at an estimated cost."""
    return _judgment(
        ask,
        attempt,
        spec,
        status=JudgmentStatus.ERROR,
        cost_usd=booking.cost_usd,
        judged_at=at,
        note=render_note(error=LOST, repair=repair, **{COST_AT_MOST: booking.at_most}),
    )


def identical(ask: Ask, spec: JudgeSpec, *, at: datetime) -> Judgment:
    """A tie nobody had to be asked about."""
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


def failure(
    ask: Ask,
    attempt: int,
    spec: JudgeSpec,
    reply: Reply,
    *,
    booking: Booking,
    at: datetime,
    message: Message | None = None,
    repair: bool = False,
    batch_id: str | None = None,
) -> Judgment:
    """A call that gave no readable answer."""
    return _judgment(
        ask,
        attempt,
        spec,
        status=JudgmentStatus.REFUSED if reply.fate is Fate.REFUSED else JudgmentStatus.ERROR,
        cost_usd=booking.cost_usd,
        latency_ms=reply.latency_ms,
        judged_at=at,
        simulated=reply.simulated,
        batch_id=batch_id,
        note=render_note(
            error=reply.kind or reply.fate.value,
            message=reply.message,
            repair=repair,
            **{COST_AT_MOST: booking.at_most},
            **_facts(message),
        ),
    )


def answered(
    ask: Ask,
    attempt: int,
    spec: JudgeSpec,
    reply: Reply,
    *,
    booking: Booking,
    at: datetime,
    message: Message | None = None,
    repair: bool = False,
    batch_id: str | None = None,
) -> Judgment:
    """A call that was answered: a verdict, or a refusal, a truncation, an unreadable reply."""
    answer = reply.answer
    assert answer is not None
    facts: dict[str, Any] = {**_facts(message), "repair": repair, COST_AT_MOST: booking.at_most}
    values: dict[str, Any] = {}
    if answer.outcome is Outcome.REFUSED:
        status = JudgmentStatus.REFUSED
        facts["error"] = "refused"
    else:
        # A reply that reached its limit may hold the whole object all the same: then nothing of it is missing.
        is_cut = answer.outcome is Outcome.TRUNCATED
        status, values, told = read_verdict(reply.text, ask, spec, only_object=is_cut or is_forged(facts))
        if is_cut and status is not JudgmentStatus.OK:
            status, told = JudgmentStatus.TRUNCATED, {"error": "truncated"}
        facts.update(told)
    if answer.model and not same_model(answer.model, spec.model):
        facts[ASKED_MODEL] = spec.model
    return _judgment(
        ask,
        attempt,
        spec,
        status=status,
        judge_model=answer.model or spec.model,
        raw_reply=well_formed(reply.text),
        input_tokens=answer.usage.input_tokens,
        output_tokens=answer.usage.output_tokens,
        cached_input_tokens=answer.usage.cached_input_tokens,
        cost_usd=booking.cost_usd,
        latency_ms=reply.latency_ms,
        judged_at=at,
        simulated=reply.simulated,
        batch_id=batch_id,
        note=render_note(**facts),
        **values,
    )


def outdated(
    ask: Ask,
    attempt: int,
    spec: JudgeSpec,
    reply: Reply,
    *,
    fingerprint: str,
    booking: Booking,
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
        note=render_note(error="other_rubric", **{COST_AT_MOST: booking.at_most}),
    )
    return replace(found, judge_fingerprint=fingerprint)


def is_forged(facts: Mapping[str, Any]) -> bool:
    """Whether one of the texts that were judged holds what a reply could quote, by the facts of a note."""
    return any(FORGED in names for names in facts.get("tripwires", {}).values())


def read_verdict(
    text: str, ask: Ask, spec: JudgeSpec, *, only_object: bool = False
) -> tuple[JudgmentStatus, dict[str, Any], dict[str, Any]]:
    """(status, the judgment's fields, what the note says) of a reply's text. `only_object`: see `read_reply`."""
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
    return JudgmentStatus.OK, fields, {"contradiction": verdict.contradiction}


def _facts(message: Message | None) -> dict[str, Any]:
    return {} if message is None else {"cut": dict(message.cut), "tripwires": dict(message.tripwires)}


def _judgment(ask: Ask, attempt: int, spec: JudgeSpec, *, judge_model: str | None = None, **values: Any) -> Judgment:
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
