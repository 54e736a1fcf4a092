"""Pairs of answers to one prompt: the `pairs` format, preference sets, AlpacaEval's annotations, Arena battles, MT-Bench's
human judgments. Every other format of pairs is converted to `pairs` and read by its reader."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from evalpipe.store.importers.messages import fact_text, is_message, read_messages, split_answer
from evalpipe.store.importers.responses import read_logged_response
from evalpipe.store.importers.values import first, has, instant, name, number, opened, truth

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
        # The request is written down in the shape of a chat completion, so that every reader of requests can read it.
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
        context=_fact(fields.document, "context"),
        reference=_fact(fields.document, "reference"),
        turn=position.turn,
        step=position.step,
    )


def _fact(document: Mapping[str, Any], key: str) -> str | None:
    return fact_text(opened(document.get(key))) or None


def _outcome(logged: str | None, status: int | None, text: str | None) -> Outcome:
    """An import without a status counts as answered; a response that is null is unreadable."""
    if logged is not None:
        try:
            return Outcome(logged)
        except ValueError:
            raise BrokenLineError(f"outcome {logged[:40]!r} is none of {', '.join(Outcome)}") from None
    if status is not None and not 200 <= status < 300:
        return Outcome.HTTP_ERROR
    return Outcome.OK if text is not None else Outcome.UNREADABLE


def _labels(fields: Fields, request_id: str) -> tuple[list[Label], list[str]]:
    """(the label, why it cannot be read): the pair is kept without it."""
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


PAIRS_IMPORTER = Importer(
    name="pairs",
    help="JSONL: pair_id, prompt, response_a (control), response_b (treatment), context, reference, label, judgements",
    matches=matches,
    read=read,
    tells_arms=True,
)


# Two answers to one prompt, with or without a preference: preference sets, AlpacaEval's annotations, Arena battles,
# MT-Bench's human judgments. Each document is a pair in the `pairs` format, and is read by it.


Pair = dict[str, Any]
_TRANSCRIPT = re.compile(r"(?:\A|\n\n)(Human|Assistant|H|A):\s?")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairFormat:
    """`pair` makes a document into one of the `pairs` format; it raises BrokenLineError where it cannot."""

    name: str
    help: str
    matches: Callable[[Any], bool]
    pair: Callable[[Mapping[str, Any]], Pair]

    def importer(self) -> Importer:
        return Importer(name=self.name, help=self.help, matches=self.matches, read=self._read, tells_arms=True)

    def _read(self, document: Any, line: int) -> Imported:
        if not isinstance(document, Mapping):
            raise BrokenLineError("not an object")
        try:
            made = self.pair(document)
        except (AttributeError, LookupError, TypeError, OverflowError) as error:
            raise BrokenLineError(
                f"cannot be read as {self.name} ({type(error).__name__}: {str(error)[:200]})"
            ) from error
        found = {key: value for key, value in made.items() if value is not None}
        derived = "pair_id" not in found
        if derived:
            found["pair_id"] = fingerprint(
                [found.get("prompt"), found.get("response_a"), found.get("response_b")], length=32
            )
        return read_pair(found, line, derived=derived)


def _has_keys(*shapes: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda document: (
        isinstance(document, Mapping) and any(all(has(document, key) for key in shape) for shape in shapes)
    )


def texts_of(value: Any) -> tuple[list[dict[str, Any]], str | None]:
    """(what was asked, the answer) in a text, a transcript, a list of messages or an answer in any API's shape."""
    value = opened(value)
    if isinstance(value, str):
        turns = _TRANSCRIPT.split(value)
        if len(turns) > 2 and not turns[0].strip():
            messages = [
                {"role": "user" if turns[at] in {"Human", "H"} else "assistant", "content": turns[at + 1].strip()}
                for at in range(1, len(turns) - 1, 2)
            ]
            asked, last = split_answer(messages)
            return asked, str(last["content"]) if last else None
        return [], value
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        asked, last = split_answer(read_messages(value))
        logged = read_logged_response(value)
        return asked, logged.text if logged.text is not None else str(last["content"]) if last else None
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):  # turns of Arena's older sets
        return [], str(value[-1])
    return [], read_logged_response(value).text


def _prompt(document: Mapping[str, Any], paths: tuple[str, ...], *asked: list[dict[str, Any]]) -> Any:
    value = first(document, paths)
    messages = read_messages(value)
    if len(messages) == 1 and isinstance(opened(value), str):
        turns = texts_of(value)[0]
        messages = turns or messages
    system = name(first(document, ("system", "system_prompt")))
    found = messages or next((one for one in asked if one), [])
    if not found:
        raise BrokenLineError("no prompt in it")
    return [{"role": "system", "content": system}, *found] if system and found[0]["role"] != "system" else found


_PROMPTS = ("prompt", "question", "instruction", "input", "query", "history", "context", "post", "user_input")
_IDS = ("pair_id", "id", "prompt_id", "question_id", "uid", "example_id")


def _preference_pair(document: Mapping[str, Any]) -> Pair:
    """The rejected answer is control's, the chosen one treatment's: the label is always for treatment."""
    (asked_a, text_a), (asked_b, text_b) = texts_of(document.get("rejected")), texts_of(document.get("chosen"))
    if text_a is None or text_b is None:
        raise BrokenLineError("chosen or rejected holds no answer")
    return {
        "pair_id": name(first(document, _IDS)),
        "prompt": _prompt(document, _PROMPTS, asked_b, asked_a),
        "response_a": text_a,
        "response_b": text_b,
        "model_a": name(first(document, ("rejected_model", "rejected-model", "model_rejected"))),
        "model_b": name(first(document, ("chosen_model", "chosen-model", "model_chosen"))),
        "label": "b",
        "label_source": "chosen",
    }


_SIDES = (
    ("response_0", "response_1"),
    ("human_ref_A", "human_ref_B"),
    ("response1", "response2"),
    ("response_1", "response_2"),
    ("answer_0", "answer_1"),
    ("completion_a", "completion_b"),
    ("output_1", "output_2"),
)
_VERDICTS = (
    "better_response_id",
    "labels",
    "overall_preference",
    "preference",
    "preferred",
    "winner",
    "label",
    "choice",
)


def _labelled_pair(document: Mapping[str, Any]) -> Pair:
    left, right = next(sides for sides in _SIDES if all(has(document, side) for side in sides))
    return {
        "pair_id": name(first(document, _IDS)),
        "prompt": _prompt(document, _PROMPTS),
        "response_a": texts_of(document[left])[1],
        "response_b": texts_of(document[right])[1],
        "label": _verdict(document),
        "label_source": "preference",
    }


def _verdict(document: Mapping[str, Any]) -> str | None:
    for key in _VERDICTS:
        value = document.get(key)
        found = number(value)
        if found is None:
            continue
        if key == "overall_preference":  # HelpSteer: below 0 the first
            return "tie" if found == 0 else "a" if found < 0 else "b"
        if key == "labels":  # SHP: 1 where A is preferred
            return "a" if found == 1 else "b"
        return "a" if found == 0 else "b" if found == 1 else None
    return None


def _annotated(document: Mapping[str, Any]) -> Pair:
    """AlpacaEval: preference from 1 (the first output) to 2 (the second); 0 is its older word for a draw."""
    value = number(document.get("preference"))
    preference = None if value is None else 0.5 if value == 0 else value - 1 if 1 <= value <= 2 else None
    judge = name(document.get("annotator")) or "alpaca_eval"
    return {
        "pair_id": name(first(document, _IDS)),
        "prompt": _prompt(document, ("instruction", "prompt")),
        "response_a": texts_of(document.get("output_1"))[1],
        "response_b": texts_of(document.get("output_2"))[1],
        "model_a": name(document.get("generator_1")),
        "model_b": name(document.get("generator_2")),
        "judgements": [
            {"judge": judge, "order": "unknown", "preference": preference, "raw": name(document.get("raw_completion")),
             "price_usd": number(first(document, ("price_per_example", "preference_price_per_example"))),
             "time_s": number(first(document, ("time_per_example", "preference_time_per_example")))}
        ],
    }  # fmt: skip


_ARENA_WINNERS = {"model_a": "a", "model_b": "b", "a": "a", "b": "b", "model_1": "a", "model_2": "b", "tie": "tie",
    "tie (bothbad)": "tie",
            "both_bad": "tie", "bothbad": "tie", "tie(bothbad)": "tie"}  # fmt: skip


def _battle(document: Mapping[str, Any]) -> Pair:
    """Positions are the arms: model a is control, model b treatment, whichever models they are."""
    asked, text_a = _up_to(document, "conversation_a")
    asked_b, text_b = _up_to(document, "conversation_b")
    if text_a is None or text_b is None:
        raise BrokenLineError("a conversation holds no answer")
    battle = name(first(document, ("question_id", "id", "conversation_id")))
    if not has(document, "anony") and has(document, "judge"):  # MT-Bench: a question is judged for many pairs of models
        battle = "-".join(
            str(document.get(key))
            for key in ("question_id", "model_a", "model_b", "judge", "turn")
            if document.get(key) is not None
        )
    return {
        "pair_id": battle,
        "prompt": asked or asked_b,
        "response_a": text_a,
        "response_b": text_b,
        "model_a": name(document.get("model_a")),
        "model_b": name(document.get("model_b")),
        "unit_id": name(first(document, ("judge", "judge_hash", "evaluation_session_id", "user_id"))),
        "started_at": _iso(first(document, ("tstamp", "timestamp"))),
        "label": _arena_winner(document),
        "label_source": "arena" if has(document, "anony") or not has(document, "judge") else "human",
    }


def _up_to(document: Mapping[str, Any], key: str) -> tuple[list[dict[str, Any]], str | None]:
    messages = opened(document.get(key))
    turn = number(document.get("turn"))
    if isinstance(messages, list) and turn is not None and 0 < 2 * turn < len(messages):
        messages = messages[: int(2 * turn)]
    return texts_of(messages)


def _kaggle(document: Mapping[str, Any]) -> Pair:
    """The Arena's set of 55,000 votes: lists of turns as JSON text, and a column for each outcome."""
    prompts, left, right = (opened(document.get(key)) for key in ("prompt", "response_a", "response_b"))
    turns: list[dict[str, Any]] = []
    lists = [one if isinstance(one, list) else [one] for one in (prompts, left, right)]
    for at, question in enumerate(lists[0]):
        turns.append({"role": "user", "content": str(question)})
        if at < len(lists[0]) - 1:
            turns.append({"role": "assistant", "content": str(lists[1][at]) if at < len(lists[1]) else ""})
    return {
        "pair_id": name(document.get("id")),
        "prompt": turns,
        "response_a": None if not lists[1] or lists[1][-1] is None else str(lists[1][-1]),
        "response_b": None if not lists[2] or lists[2][-1] is None else str(lists[2][-1]),
        "model_a": name(document.get("model_a")),
        "model_b": name(document.get("model_b")),
        "label": _arena_winner(document),
        "label_source": "arena",
    }


def _arena_winner(document: Mapping[str, Any]) -> str | None:
    for key, label in (("winner_model_a", "a"), ("winner_model_b", "b"), ("winner_tie", "tie")):
        if truth(document.get(key)) is True or number(document.get(key)) == 1:
            return label
    return _ARENA_WINNERS.get(str(document.get("winner") or "").strip().lower())


def _iso(value: Any) -> str | None:
    found = instant(value)
    return found.isoformat() if found else None


TWO_ANSWER_IMPORTERS = tuple(
    one.importer()
    for one in (
        PairFormat(
            name="arena",
            help="Chatbot Arena battles and MT-Bench's human judgments",
            matches=_has_keys(("conversation_a", "conversation_b")),
            pair=_battle,
        ),
        PairFormat(
            name="arena",
            help="",
            matches=_has_keys(("winner_model_a", "winner_model_b", "response_a", "response_b")),
            pair=_kaggle,
        ),
        PairFormat(
            name="alpacaeval",
            help="AlpacaEval annotations and model outputs",
            matches=_has_keys(
                ("instruction", "output_1", "output_2", "preference"),
                ("instruction", "output_1", "output_2", "annotator"),
            ),
            pair=_annotated,
        ),
        PairFormat(
            name="preferences",
            help="preference sets: chosen (treatment) and rejected (control); two responses with a label",
            matches=_has_keys(("chosen", "rejected")),
            pair=_preference_pair,
        ),
        PairFormat(
            name="preferences",
            help="",
            matches=lambda document: (
                isinstance(document, Mapping)
                and any(has(document, key) for key in _VERDICTS)
                and any(has(document, key) for key in _PROMPTS)
                and any(all(has(document, side) for side in sides) for sides in _SIDES)
            ),
            pair=_labelled_pair,
        ),
    )
)
