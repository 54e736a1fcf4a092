"""A judge's reply → a verdict, or the reason why it is none. Pure; never guesses, never takes the first number it sees."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evalpipe.core.judgment import JudgeMode, ShownFirst, Winner
from evalpipe.core.traffic import Arm
from evalpipe.judging.spec import JudgeSpec

_FENCED = re.compile(r"```[A-Za-z]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_LONGEST_QUOTE = 80


class UnreadableReplyError(ValueError):
    """The reply is not what the schema asks for; `str()` says what is wrong, short enough to be quoted back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a judge said, in terms of arms. `preference`: P(treatment better), 0 | 0.5 | 1; None for a pointwise judge.

    `contradiction`: the winner has the lower mean score (flagged, never corrected: the winner counts).
    """

    winner: Winner | None = None
    preference: float | None = None
    control_scores: Mapping[str, float] = field(default_factory=dict)
    treatment_scores: Mapping[str, float] = field(default_factory=dict)
    reasoning: str | None = None
    contradiction: bool = False


def read_reply(text: str, spec: JudgeSpec, *, shown_first: ShownFirst, arm: Arm | None = None) -> Verdict:
    """The verdict of a reply. `arm`: whose answer a pointwise judge read. Raises UnreadableReplyError."""
    reply = _object(_json(text), "the reply")
    reasoning = _reasoning(reply, spec.reasoning)
    if spec.mode is JudgeMode.POINTWISE:
        if arm is None:
            raise ValueError("a pointwise verdict needs the arm whose answer was judged")
        _only(reply, ["reasoning", *spec.dimensions] if spec.reasoning else list(spec.dimensions), "the reply")
        scores = _scores(reply, spec, "the reply")
        if arm is Arm.CONTROL:
            return Verdict(control_scores=scores, reasoning=reasoning)
        return Verdict(treatment_scores=scores, reasoning=reasoning)
    known = ["response_1", "response_2", "winner"]
    _only(reply, ["reasoning", *known] if spec.reasoning else known, "the reply")
    first, second = (_seat(reply, seat, spec) for seat in ("response_1", "response_2"))
    seat = reply.get("winner")
    if seat not in ("response_1", "response_2", "tie"):
        raise UnreadableReplyError(f'"winner" is {_quote(seat)}, not "response_1", "response_2" or "tie"')
    control_seat = "response_2" if shown_first is ShownFirst.TREATMENT else "response_1"
    control, treatment = (second, first) if shown_first is ShownFirst.TREATMENT else (first, second)
    winner = Winner.TIE if seat == "tie" else Winner.CONTROL if seat == control_seat else Winner.TREATMENT
    lead = sum(treatment.values()) - sum(control.values())
    return Verdict(
        winner=winner,
        preference={Winner.CONTROL: 0.0, Winner.TIE: 0.5, Winner.TREATMENT: 1.0}[winner],
        control_scores=control,
        treatment_scores=treatment,
        reasoning=reasoning,
        contradiction=(winner is Winner.TREATMENT and lead < 0) or (winner is Winner.CONTROL and lead > 0),
    )


def _json(text: str) -> Any:
    """The reply's one JSON value: the whole text, or the one fenced block in it."""
    body = text.strip().removeprefix("\ufeff")
    if not body:
        raise UnreadableReplyError("the reply is empty")
    try:
        return json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise UnreadableReplyError("the reply is nested too deeply") from None
    except UnreadableReplyError:
        raise
    except ValueError as error:
        blocks = _FENCED.findall(body)
        if len(blocks) != 1:
            raise UnreadableReplyError(f"the reply is not one JSON object ({error})") from None
    try:
        return json.loads(blocks[0], object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnreadableReplyError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableReplyError(f"the fenced block is not one JSON object ({error})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnreadableReplyError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise UnreadableReplyError(f"{name} is not a number JSON knows")


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnreadableReplyError(f"{name} is {_quote(value)}, not an object")
    return value


def _only(found: Mapping[str, Any], known: list[str], name: str) -> None:
    missing = [key for key in known if key not in found]
    if missing:
        raise UnreadableReplyError(f"{name} lacks {_quote(missing[0])}")
    unknown = [key for key in found if key not in known]
    if unknown:
        raise UnreadableReplyError(f"{name} has a key it must not have: {_quote(unknown[0])}")


def _seat(reply: Mapping[str, Any], seat: str, spec: JudgeSpec) -> dict[str, float]:
    scores = _object(reply[seat], f'"{seat}"')
    _only(scores, list(spec.dimensions), f'"{seat}"')
    return _scores(scores, spec, f'"{seat}"')


def _scores(found: Mapping[str, Any], spec: JudgeSpec, name: str) -> dict[str, float]:
    low, high = spec.scale
    scores = {}
    for dimension in spec.dimensions:
        value = found[dimension]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UnreadableReplyError(f"{dimension} in {name} is {_quote(value)}, not a number")
        if not low <= value <= high:
            raise UnreadableReplyError(f"{dimension} in {name} is {_quote(value)}, outside {low:g} to {high:g}")
        scores[dimension] = float(value)
    return scores


def _reasoning(reply: Mapping[str, Any], wanted: bool) -> str | None:
    if not wanted:
        return None
    value = reply.get("reasoning")
    if value is not None and not isinstance(value, str):
        raise UnreadableReplyError(f'"reasoning" is {_quote(value)}, not text')
    return value


def _quote(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=True, default=str)
    return shown if len(shown) <= _LONGEST_QUOTE else shown[:_LONGEST_QUOTE] + "…"
