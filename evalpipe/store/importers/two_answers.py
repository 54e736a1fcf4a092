"""Two answers to one prompt, with or without a preference: preference sets, AlpacaEval's annotations, Arena battles,
MT-Bench's human judgments. Each document is a pair in the `pairs` format, and is read by it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evalpipe.identity import fingerprint
from evalpipe.store.importers import pairs
from evalpipe.store.importers.base import BrokenLineError, Imported, Importer
from evalpipe.store.importers.messages import read_messages, split_answer
from evalpipe.store.importers.responses import read_said
from evalpipe.store.importers.values import first, has, instant, name, number, opened, truth

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
        return pairs.read_pair(found, line, derived=derived)


def _holds(*shapes: tuple[str, ...]) -> Callable[[Any], bool]:
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
        said = read_said(value)
        return asked, said.text if said.text is not None else str(last["content"]) if last else None
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):  # turns of Arena's older sets
        return [], str(value[-1])
    return [], read_said(value).text


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


_WINNERS = {"model_a": "a", "model_b": "b", "a": "a", "b": "b", "model_1": "a", "model_2": "b", "tie": "tie",
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
        "label": _winner(document),
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
        "label": _winner(document),
        "label_source": "arena",
    }


def _winner(document: Mapping[str, Any]) -> str | None:
    for key, label in (("winner_model_a", "a"), ("winner_model_b", "b"), ("winner_tie", "tie")):
        if truth(document.get(key)) is True or number(document.get(key)) == 1:
            return label
    return _WINNERS.get(str(document.get("winner") or "").strip().lower())


def _iso(value: Any) -> str | None:
    found = instant(value)
    return found.isoformat() if found else None


IMPORTERS = tuple(
    one.importer()
    for one in (
        PairFormat(
            name="arena",
            help="Chatbot Arena battles and MT-Bench's human judgments",
            matches=_holds(("conversation_a", "conversation_b")),
            pair=_battle,
        ),
        PairFormat(
            name="arena",
            help="",
            matches=_holds(("winner_model_a", "winner_model_b", "response_a", "response_b")),
            pair=_kaggle,
        ),
        PairFormat(
            name="alpacaeval",
            help="AlpacaEval annotations and model outputs",
            matches=_holds(
                ("instruction", "output_1", "output_2", "preference"),
                ("instruction", "output_1", "output_2", "annotator"),
            ),
            pair=_annotated,
        ),
        PairFormat(
            name="preferences",
            help="preference sets: chosen (treatment) and rejected (control); two responses with a label",
            matches=_holds(("chosen", "rejected")),
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


def label_of(value: Any) -> str | None:
    """The label of a pair as people write it in a column: a, b or tie; None for anything else."""
    if isinstance(value, str):
        return _WINNERS.get(value.strip().lower()) if value.strip().lower() in {"a", "b", "tie"} else None
    return None
