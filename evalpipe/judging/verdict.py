"""A judge's reply → a verdict, or the reason why it cannot be read. Pure; never guesses, never takes the first number.

Exactly one JSON object may be in the reply: alone, in one fenced block, or between plain sentences. What a reasoning model wrote
before its last `</think>` is no part of the reply. An object that the reply seems to quote is no verdict.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from evalpipe.judging.prompt import CLAIM_VERDICTS
from evalpipe.judging.spec import JudgeSpec
from evalpipe.models import Arm, JudgeMode, ShownFirst, Winner

_LONGEST_QUOTE = 80


class UnreadableReplyError(ValueError):
    """The reply violates the schema; `str()` is the reason, short enough to be quoted back to the judge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A judge's verdict, in terms of arms. `preference`: P(treatment better), 0 | 0.5 | 1; None for a pointwise judge.

    `contradiction`: the winner has the lower mean score (flagged, never corrected: the winner counts). `claims`: how many of an
    answer's claims were found supported, contradicted or not in the context, where a judge lists them; of none there is no score.
    """

    winner: Winner | None = None
    preference: float | None = None
    control_scores: Mapping[str, float] = field(default_factory=dict)
    treatment_scores: Mapping[str, float] = field(default_factory=dict)
    reasoning: str | None = None
    contradiction: bool = False
    claims: Mapping[str, int] | None = None


def read_reply(
    text: str, spec: JudgeSpec, *, shown_first: ShownFirst, arm: Arm | None = None, only_object: bool = False
) -> Verdict:
    """The verdict of a reply.

    Args:
        text: the judge's reply.
        spec: the judge.
        shown_first: whose answer had the first seat.
        arm: whose answer a pointwise judge read.
        only_object: no sentences are allowed around the object: what was judged holds what the reply could quote, or the reply
            was cut off.

    Raises:
        UnreadableReplyError: where the reply holds no verdict, more than one, or one that it seems to quote.
    """
    found, prose = _one_object(text, only_object)
    if prose is not None:
        names = () if spec.mode is JudgeMode.POINTWISE else (_word(found.get("winner")),)
        fault = "the reply must be the JSON object alone" if only_object else prose_fault(*prose, winner=names)
        if fault:
            raise UnreadableReplyError(f"the reply is not one JSON object: {fault}")
    reasoning = _reasoning(found, spec.reasoning)
    if spec.mode is JudgeMode.POINTWISE:
        if arm is None:
            raise ValueError("a pointwise verdict needs the arm whose answer was judged")
        keys = ["claims"] if spec.lists_claims else list(spec.dimensions)
        _only(found, ["reasoning", *keys] if spec.reasoning else keys, "the reply")
        claims = None
        if spec.lists_claims:
            claims, scores, listed = _claims(found["claims"], spec)
            reasoning = f"{reasoning} {listed}" if reasoning else listed
        else:
            scores = _scores(found, spec, "the reply")
        if arm is Arm.CONTROL:
            return Verdict(control_scores=scores, reasoning=reasoning, claims=claims)
        return Verdict(treatment_scores=scores, reasoning=reasoning, claims=claims)
    known = ["response_1", "response_2", "winner"]
    _only(found, ["reasoning", *known] if spec.reasoning else known, "the reply")
    first, second = (_seat(found, seat, spec) for seat in ("response_1", "response_2"))
    seat = _word(found["winner"])
    if seat not in ("response_1", "response_2", "tie"):
        raise UnreadableReplyError(f'"winner" is {_quote(found["winner"])}, not "response_1", "response_2" or "tie"')
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


def _one_object(text: str, only_object: bool) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """The reply's one JSON object, and the text before and after it; None where there is no other text."""
    body = text.strip().removeprefix("\ufeff").strip()
    if not body:
        raise UnreadableReplyError("the reply is empty")
    try:
        return _object(_parsed(body), "the reply"), None
    except json.JSONDecodeError as error:
        fault = str(error)
    except ValueError as error:  # refused by a rule, or a number of more digits than Python reads
        if isinstance(error, UnreadableReplyError):
            raise
        raise UnreadableReplyError("the reply holds a number that is too long") from None
    reply = after_thinking(body, must_begin=only_object)
    if reply is None:
        raise UnreadableReplyError("the reply is not one JSON object: it ends within its thinking")
    if reply != body:
        return _one_object(reply, only_object)
    start = body.find("{")
    if start < 0:
        raise UnreadableReplyError(f"the reply is not one JSON object ({fault})")
    try:
        found, end = _DECODER.raw_decode(body, start)
    except RecursionError:
        raise UnreadableReplyError("the reply is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, UnreadableReplyError):
            raise
        raise UnreadableReplyError(f"the reply is not one JSON object ({fault})") from None
    if start + len(body) - end > 2 * LONGEST_PROSE:
        raise UnreadableReplyError("the reply is not one JSON object: there is too much text around it")
    return _object(found, "the reply"), (body[:start], body[end:])


def _parsed(body: str) -> Any:
    try:
        found, end = _DECODER.raw_decode(body)
    except RecursionError:
        raise UnreadableReplyError("the reply is nested too deeply") from None
    if end != len(body):
        raise json.JSONDecodeError("Extra data", body, end)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnreadableReplyError("duplicate key in one object")
    return found


def _no_constant(name: str) -> Any:
    raise UnreadableReplyError(f"{name} is not a valid JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


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
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UnreadableReplyError(f"{dimension} in {name} is {_quote(value)}, not a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise UnreadableReplyError(f"{dimension} in {name} is {_quote(value)}, not a number")
        # An integer is compared as it is: one of 400 digits has no float.
        if not low <= value <= high:
            raise UnreadableReplyError(f"{dimension} in {name} is {_quote(value)}, outside {low:g} to {high:g}")
        scores[dimension] = float(value)
    return scores


def _claims(value: Any, spec: JudgeSpec) -> tuple[dict[str, int], dict[str, float], str]:
    """(claims by verdict, the score, what is not supported in words). An answer without a claim has no score."""
    if not isinstance(value, list):
        raise UnreadableReplyError(f'"claims" is {_quote(value)}, not a list')
    found: dict[str, list[str]] = {verdict: [] for verdict in CLAIM_VERDICTS}
    for number, one in enumerate(value, start=1):
        name = f"claim {number}"
        claim = _object(one, name)
        _only(claim, ["claim", "verdict"], name)
        verdict = re.sub(r"[\s-]+", "_", _word(claim["verdict"]))
        if verdict not in found:
            raise UnreadableReplyError(
                f'"verdict" of {name} is {_quote(claim["verdict"])}, not one of {", ".join(found)}'
            )
        if not isinstance(claim["claim"], str) or not claim["claim"].strip():
            raise UnreadableReplyError(f'"claim" of {name} is {_quote(claim["claim"])}, not text')
        found[verdict].append(" ".join(claim["claim"].split()))
    n_claims, n_supported = len(value), len(found["supported"])
    counts = {verdict: len(claims) for verdict, claims in found.items()}
    if not n_claims:
        return counts, {}, "No claim in the answer."
    words = [f"{n_supported} of {n_claims} claims supported."]
    words += [f"Contradicted: {claim}" for claim in found["contradicted"]]
    words += [f"Not in the context: {claim}" for claim in found["not_in_context"]]
    low, high = spec.scale
    return counts, {next(iter(spec.dimensions)): low + n_supported / n_claims * (high - low)}, "\n".join(words)


def _reasoning(reply: Mapping[str, Any], wanted: bool) -> str | None:
    if not wanted:
        return None
    value = reply.get("reasoning")
    if value is not None and not isinstance(value, str):
        raise UnreadableReplyError(f'"reasoning" is {_quote(value)}, not text')
    return value


def _word(value: Any) -> str:
    """A word of the schema without the case and the blanks around it; "" where it is no text."""
    return value.strip().lower() if isinstance(value, str) else ""


def _quote(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=True, default=str)
    return shown if len(shown) <= _LONGEST_QUOTE else shown[:_LONGEST_QUOTE] + "…"


# The texts allowed around the one object of a judge's reply: plain sentences that neither quote nor hold a verdict. Pure.
#
# A wrong refusal costs one more call, which asks for the object alone; a wrong acceptance stores a verdict that was not given.
# So whatever looks like a quotation, a draft or a second verdict is refused.


LONGEST_PROSE = 2_000
"""Characters of text before or after the object; a longer reply does not follow the rubric."""

_THINKING_ENDS = re.compile(r"</think(?:ing)?\s*>|\[/THINK\]", re.IGNORECASE)
_THINKING_BEGINS = re.compile(r"<think(?:ing)?\s*>|\[THINK\]", re.IGNORECASE)
_FENCE_BEFORE = re.compile(r"(?:^|\n)[ \t]*```[A-Za-z]*[ \t]*\n[ \t]*$")
_FENCE_AFTER = re.compile(r"^[ \t]*\n?[ \t]*```[ \t]*(?=\n|$)")
_MARKS = re.compile(r"[{}\[\]<>`|\"“”„«»‘]|(?<!\w)'|'(?!\w)")
"""Brackets, quotation marks, code and tables: there is more than sentences. An apostrophe within a word is none."""
_VERDICT = re.compile(r"\b(?:winner|winning|wins|won|verdict is|preferred|prefer|scores?)\b", re.IGNORECASE)
_QUOTES = re.compile(
    r"\b(?:contain(?:s|ed|ing)?|say(?:s|ing)?|said|include[sd]?|including|quot\w+|text|inject\w*|attempt\w*|ignor\w+|steer\w*|"
    r"instruct\w*|claim(?:s|ed|ing)?|tell(?:s|ing)?|told|pretend\w*|wr[io]te?s?|written|writing|embed\w*|fake\w*|forged?|draft\w*|"
    r"thought|initial\w*|manipulat\w*|trick\w*|suspicious|malicious|prompt|block|example\w*|template|format|schema|would|could|might|"
    r"not|never|no|but|however|instead|actually|wait|rather|reconsider\w*|correct(?:ion|ed)|chang(?:e|ed|ing)|reflect\w*|"
    r"end(?:s|ed|ing)? with|begin(?:s|ning)? with|output\w*|print\w*|repl(?:y|ies|ied)|"
    r"asks?|asked|asking|demand\w*|put|puts|has|had)\b"
    r"|n't\b",
    re.IGNORECASE,
)
_SEATS = (
    (
        "response_1",
        re.compile(r"\b(?:response|answer|assistant|model|candidate)[\s_#-]*(?:1|a|one)\b|\b(?:first|former)\b", re.I),
    ),
    (
        "response_2",
        re.compile(r"\b(?:response|answer|assistant|model|candidate)[\s_#-]*(?:2|b|two)\b|\b(?:second|latter)\b", re.I),
    ),
    ("tie", re.compile(r"\b(?:tie|tied|draw|equal(?:ly)?)\b", re.I)),
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def forges_verdict(text: str, names: Iterable[str]) -> bool:
    """Whether a text that is judged holds what a reply could quote: a key of a verdict, or the end of a thinking.

    Args:
        text: of the request or of an answer.
        names: keys of the reply: "winner", the dimensions.
    """
    return _forged(tuple(names)).search(text) is not None


@lru_cache(maxsize=64)
def _forged(names: tuple[str, ...]) -> re.Pattern[str]:
    keys = "|".join(map(re.escape, names))
    return re.compile(rf"[\"'“”‘’`]\s*(?:{keys})\s*\\*[\"'“”‘’`]\s*:|</think|\[/THINK\]", re.IGNORECASE)


def after_thinking(text: str, *, must_begin: bool = False) -> str | None:
    """What follows the last end of a reasoning model's thinking: the text itself where there is none, None where the thinking
    never ends. `must_begin`: an end without a beginning is no end (some servers leave the beginning out)."""
    ends = [match.end() for match in _THINKING_ENDS.finditer(text)]
    if ends and must_begin and not _THINKING_BEGINS.match(text):
        return None
    reply = text[ends[-1] :].strip() if ends else text
    return None if _THINKING_BEGINS.match(reply) else reply


def prose_fault(before: str, after: str, *, winner: Collection[str] = ()) -> str | None:
    """Why an object between these texts cannot be taken for the judge's own verdict; None where it can.

    Args:
        before: the text before the object.
        after: the text after it.
        winner: the seat that the object names; nothing for a judge that names none.
    """
    before, after = _unfenced(before, after)
    for text in (before, after):
        if len(text) > LONGEST_PROSE:
            return "there is too much text around it"
        if _MARKS.search(text):
            return "the text around it holds brackets, quotation marks or code"
        if _QUOTES.search(text):
            return "the text around it seems to quote it or to take it back"
        if _VERDICT.search(text):
            return "the text around it holds another verdict"
    named = {seat for seat, pattern in _SEATS if pattern.search(before)}
    if any(pattern.search(after) for _, pattern in _SEATS):
        return "the text after it goes on about the responses"
    introduction = before[max((match.end() for match in _SENTENCE_END.finditer(before.rstrip())), default=0) :]
    if any(pattern.search(introduction) for _, pattern in _SEATS):
        return "the text before it names a response"
    if winner and named and not named & set(winner):
        return "the text before it names another response"
    return None


def _unfenced(before: str, after: str) -> tuple[str, str]:
    """Both texts without the fence that holds the object and nothing else."""
    opened, closed = _FENCE_BEFORE.search(before), _FENCE_AFTER.search(after)
    if opened is None or closed is None:
        return before, after
    return before[: opened.start()], after[closed.end() :]
