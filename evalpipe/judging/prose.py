"""What may stand around the one object of a judge's reply: plain sentences that neither quote nor hold a verdict. Pure.

A wrong refusal costs one more call, which asks for the object alone; a wrong yes stores a verdict that nobody gave. So whatever
looks like a quotation, a draft or a second verdict is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import lru_cache

LONGEST_PROSE = 2_000
"""Characters of text before or after the object; who writes more has not kept to the rubric at all."""

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
    said = text[ends[-1] :].strip() if ends else text
    return None if _THINKING_BEGINS.match(said) else said


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
