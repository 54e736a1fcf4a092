"""Untrusted text between tags it cannot forge, and the patterns that tell that someone is trying to speak to the judge."""

from __future__ import annotations

import re
from functools import lru_cache

from evalpipe.core.text import cut_middle, well_formed

_TAG = re.compile(r"<(?=\s*/?\s*(?:request|response(?:-[12])?)-[0-9A-Za-z])", re.IGNORECASE)
_NEUTRAL = "\u2039"
"""‹: reads like the tag it replaces, and closes nothing."""

TRIPWIRES: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (name, tuple(words.split()), re.compile(pattern, re.IGNORECASE))
    for name, words, pattern in (
        ("ignore_instructions", "ignore disregard forget",
         r"\b(?:ignore|disregard|forget)\b.{0,30}\b(?:previous|prior|above|earlier|all|your)\b.{0,20}\b(?:instruction|prompt|rule|rubric)"),
        ("choose_me", "best better winner highest superior 10 correct",
         r"\b(?:choose|select|pick|prefer|vote for|rate)\b.{0,40}\b(?:this|my|response [12]|answer [12ab]|output"
         r" \(?[ab12]\)?|the (?:first|second) (?:response|answer))\b.{0,60}\b(?:best|better|winner|highest|superior|10|correct)"),
        ("names_winner", "better best winner superior chosen",
         r"\b(?:response|answer|output|assistant|model) ?[(\[]?[12ab][)\]]? (?:is|wins|should win|must be)\b"
         r".{0,20}\b(?:better|best|winner|superior|chosen)\b"),
        ("forged_verdict", "winner [[ response_", r"\"winner\"\s*:|\[\[[abc12]\]\]|\"response_[12]\"\s*:\s*\{"),
        ("speaks_to_judge", "judge grader evaluator rater reviewer",
         r"\b(?:dear|attention|note to|message to|you are)\b.{0,20}\b(?:judge|grader|evaluator|rater|reviewer)\b"),
        ("forged_tag", "< [inst [/inst",
         r"<\s*/?\s*(?:request|response(?:-[12])?)-[0-9a-z]|<\|(?:im_start|im_end|system|assistant|user)\|>|"
         r"\[/?INST\]|</?(?:system|instructions?)>"),
    )
)  # fmt: skip
"""(name, words, pattern): counted, never acted upon. A hit is no proof: people do ask models about prompts. `words`: without one
of them, in lower case, there is no hit; looking for them is ten times cheaper than the pattern."""

_SCANNED_CHARS = 100_000


@lru_cache(maxsize=8)
def tripwires(text: str) -> tuple[str, ...]:
    """The names of the patterns that occur in the first 100,000 characters of `text`, in the order of `TRIPWIRES`. Remembered
    for a moment: the same texts come again in the other order."""
    head = text[:_SCANNED_CHARS]
    if not head.isascii():  # a pattern also takes letters of other scripts for ours, e.g. a long s
        return tuple(name for name, _, pattern in TRIPWIRES if pattern.search(head))
    low = head.lower()
    return tuple(
        name for name, words, pattern in TRIPWIRES if any(word in low for word in words) and pattern.search(head)
    )


def neutralise(text: str, nonce: str) -> str:
    """`text` with everything that looks like one of our tags, or names this call's code, made harmless but readable."""
    safe = _TAG.sub(_NEUTRAL, well_formed(text))
    # A pattern compiled for every call's code costs more than all the rest of a message: look first.
    if not nonce or nonce.lower() not in safe.lower():
        return safe
    return re.sub(re.escape(nonce), "[code]", safe, flags=re.IGNORECASE)


def fence(tag: str, text: str, *, nonce: str, limit: int, state: str | None = None) -> tuple[str, int]:
    """One block, and how many characters were cut out of its middle to keep it within `limit` characters."""
    shown, n_cut = cut_middle(text, limit)
    mark = f' state="{state}"' if state else ""
    return f"<{tag}-{nonce}{mark}>\n{neutralise(shown, nonce)}\n</{tag}-{nonce}>", n_cut
