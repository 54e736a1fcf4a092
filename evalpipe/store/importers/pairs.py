"""`pairs` JSONL: a prompt, control's and treatment's response, a label and recorded judgements on one line.

Beyond the contract's keys a line may hold `unit_id`, `conversation_id`, `started_at` and, with `_a` or `_b` at their
end, `status, outcome, finish_reason, latency_ms, ttft_ms, input_tokens, output_tokens, cost_usd`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from evalpipe.identity import fingerprint
from evalpipe.models import Arm, Exchange, Judgment, JudgmentStatus, Label, Outcome, Role, ShownFirst, Winner
from evalpipe.store.importers.base import (
    BrokenLineError,
    Fields,
    Imported,
    Importer,
    conversation_of,
    json_text,
    position_in_log,
    prompt_text,
    unknown_time,
)
from evalpipe.store.importers.messages import is_message
from evalpipe.store.importers.values import opened

_WINNERS = {"a": Winner.CONTROL, "b": Winner.TREATMENT, "tie": Winner.TIE}
_PREFERENCES = {Winner.CONTROL: 0.0, Winner.TIE: 0.5, Winner.TREATMENT: 1.0}
_ORDERS = {
    "ab": ShownFirst.CONTROL,
    "ba": ShownFirst.TREATMENT,
    "single": ShownFirst.NEITHER,
    "unknown": ShownFirst.UNKNOWN,
    None: ShownFirst.UNKNOWN,
}


def matches(document: Any) -> bool:
    return isinstance(document, Mapping) and {"pair_id", "prompt", "response_a", "response_b"} <= document.keys()


def read(document: Any, line: int) -> Imported:
    """One line of a `pairs` file. Raises BrokenLineError with the key that is wrong."""
    if not isinstance(document, Mapping):
        raise BrokenLineError("the line is not a JSON object")
    return read_pair(document, line)


def read_pair(document: Mapping[str, Any], line: int, *, derived: bool = False) -> Imported:
    """A document with the keys of the `pairs` format. `derived`: its id was made of its texts. Raises BrokenLineError."""
    fields = Fields(document)
    request_id = fields.text("pair_id", required=True)
    if not request_id:
        raise BrokenLineError("pair_id is empty")
    started_at = fields.time("started_at") or unknown_time(line)
    messages = _messages(document)
    labels, refused = _labels(fields, request_id)
    return Imported(
        exchanges=[_exchange(fields, request_id, arm, started_at, messages) for arm in Arm],
        judgments=_judgments(document, request_id),
        labels=labels,
        rejected=refused,
        derived_ids=derived,
    )


def _messages(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    prompt = opened(document.get("prompt"))
    if not (isinstance(prompt, list) and prompt and all(map(is_message, prompt))):
        prompt = document.get("prompt")  # a text that happens to be JSON
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt and all(isinstance(message, Mapping) for message in prompt):
        return [dict(message) for message in prompt]
    raise BrokenLineError("prompt is neither text nor a list of messages")


def _exchange(
    fields: Fields, request_id: str, arm: Arm, started_at: datetime, messages: list[dict[str, Any]]
) -> Exchange:
    side = "a" if arm is Arm.CONTROL else "b"
    if f"response_{side}" not in fields.document:
        raise BrokenLineError(f"response_{side} is missing")
    text = fields.text(f"response_{side}")
    status = fields.count(f"status_{side}")
    model = fields.text(f"model_{side}")
    position = position_in_log(messages, is_named=bool(fields.text("conversation_id")))
    return Exchange(
        request_id=request_id,
        arm=arm,
        role=Role.IMPORTED,
        unit_id=fields.text("unit_id"),
        conversation_id=fields.text("conversation_id") or conversation_of(messages),
        started_at=started_at,
        # The request is written down in the shape of a chat completion, so that whoever reads requests can read it.
        endpoint="chat.completions",
        model_requested=model,
        model=model,
        request=json_text({"messages": messages}),
        meta=json_text(fields.document.get("meta")),
        text=text,
        finish_reason=fields.text(f"finish_reason_{side}"),
        outcome=_outcome(fields.text(f"outcome_{side}"), status, text),
        status=status,
        error_type="no_answer" if text is None and status is None else None,
        latency_ms=fields.number(f"latency_ms_{side}", low=0),
        ttft_ms=fields.number(f"ttft_ms_{side}", low=0),
        input_tokens=fields.count(f"input_tokens_{side}"),
        output_tokens=fields.count(f"output_tokens_{side}"),
        cost_usd=fields.number(f"cost_usd_{side}", low=0),
        prompt=prompt_text(messages),
        turn=position.turn,
        step=position.step,
    )


def _outcome(told: str | None, status: int | None, text: str | None) -> Outcome:
    """An import without a status counts as answered; a response that is null is an answer nobody could read."""
    if told is not None:
        try:
            return Outcome(told)
        except ValueError:
            raise BrokenLineError(f"outcome {told[:40]!r} is none of {', '.join(Outcome)}") from None
    if status is not None and not 200 <= status < 300:
        return Outcome.HTTP_ERROR
    return Outcome.OK if text is not None else Outcome.UNREADABLE


def _labels(fields: Fields, request_id: str) -> tuple[list[Label], list[str]]:
    """(the label, why it cannot be read): the pair stands without it."""
    label = fields.document.get("label")
    if label is None or label == "":
        return [], []
    source = fields.text("label_source") or "unknown"
    try:
        winner = _winner(label, "label")
    except BrokenLineError as error:
        return [], [f"{error}: the pair is loaded without a label"]
    assert winner is not None
    return [Label(request_id=request_id, preference=_PREFERENCES[winner], source=source)], []


def _judgments(document: Mapping[str, Any], request_id: str) -> list[Judgment]:
    entries = document.get("judgements", document.get("judgments")) or []
    if not isinstance(entries, list):
        raise BrokenLineError("judgements is not a list")
    n_seen: Counter[tuple[str, ShownFirst]] = Counter()
    judgments = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise BrokenLineError(f"judgements[{index}] is not an object")
        judgment = _judgment(Fields(entry, f"judgements[{index}]"), request_id, n_seen)
        judgments.append(judgment)
    return judgments


def _judgment(fields: Fields, request_id: str, n_seen: Counter[tuple[str, ShownFirst]]) -> Judgment:
    model, method = fields.text("judge", required=True), fields.text("method")
    judge = f"{model}/{method}" if method else str(model)
    order = fields.document.get("order")
    if not (order is None or isinstance(order, str)) or order not in _ORDERS:
        raise BrokenLineError(f"{fields.where}.order = {order!r:.40} is none of ab, ba, single, unknown")
    shown_first = _ORDERS[order]
    repeat = n_seen[judge, shown_first]
    n_seen[judge, shown_first] += 1
    key = fingerprint(["imported", request_id, judge, shown_first, repeat], length=32)
    winner = _winner(fields.document.get("verdict"), f"{fields.where}.verdict")
    preference = fields.number("preference", low=0, high=1)
    if preference is None and winner is not None:
        preference = _PREFERENCES[winner]
    if winner is None and preference is not None:
        winner = Winner.TIE if preference == 0.5 else Winner.TREATMENT if preference > 0.5 else Winner.CONTROL
    seconds = fields.number("time_s", low=0)
    return Judgment(
        key=key,
        attempt=1,
        request_id=request_id,
        judge=judge,
        judge_fingerprint=f"imported-{fingerprint(judge)}",
        judge_model=model,
        shown_first=shown_first,
        repeat=repeat,
        status=JudgmentStatus.OK if winner is not None else JudgmentStatus.UNPARSEABLE,
        winner=winner,
        preference=preference,
        control_scores=_scores(fields, "score_a"),
        treatment_scores=_scores(fields, "score_b"),
        raw_reply=fields.text("raw"),
        input_tokens=fields.count("input_tokens"),
        output_tokens=fields.count("output_tokens"),
        cost_usd=fields.number("price_usd", low=0),
        latency_ms=None if seconds is None else 1000 * seconds,
        judged_at=fields.time("tstamp"),
    )


def _scores(fields: Fields, key: str) -> dict[str, float]:
    score = fields.number(key)
    return {} if score is None else {"score": score}


def _winner(verdict: Any, name: str) -> Winner | None:
    if verdict is None:
        return None
    word = verdict.strip().lower() if isinstance(verdict, str) else ""
    if word not in _WINNERS:
        raise BrokenLineError(f"{name} = {verdict!r:.40} is none of a, b, tie, null")
    return _WINNERS[word]


IMPORTER = Importer(
    name="pairs",
    help="JSONL: pair_id, prompt, response_a (control), response_b (treatment), label, judgements",
    matches=matches,
    read=read,
    tells_arms=True,
)
