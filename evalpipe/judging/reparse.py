"""`judge reparse`: stored raw replies read again, by the reader of today, without a call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from evalpipe.core.judgment import ASKED_MODEL, Judgment, JudgmentStatus, ShownFirst
from evalpipe.judging.note import READ_AGAIN, read_note, render_note
from evalpipe.judging.plan import Connection, asks_of
from evalpipe.judging.record import is_forged, message_of, read_verdict
from evalpipe.judging.spec import JudgeSpec

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
        asks = {ask.key: ask for ask in asks_of(connection, spec, sorted({row[1] for row in page}))}
        for key, request_id, attempt, status, raw, model, simulated, winner, note, last in page:
            ask = asks.get(key)
            if ask is None:
                continue  # the answers have changed since: this reply is about something else
            tripwires = message_of(ask, spec, _NO_NONCE).tripwires
            only_object = status == JudgmentStatus.TRUNCATED or is_forged({"tripwires": tripwires})
            found, fields, told = read_verdict(raw, ask, spec, only_object=only_object)
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
                    note=render_note(**facts, **told, **{READ_AGAIN: attempt}),
                ),
                **fields,
            )
