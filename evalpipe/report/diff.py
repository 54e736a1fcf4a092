"""What changed between two answers, word by word; bounded, because answers are not."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass

MAX_WORDS = 3_000
"""words of either text; beyond it no diff is made"""
MAX_WORK = 1_500_000
"""comparisons SequenceMatcher may have to do in one pass: Σ over words of count in one text × count in the other"""
MIN_SHARED = 0.2
"""below this similarity a word diff is confetti, and a sentence helps more"""

_WORDS = re.compile(r"\s+|(?:[^\W_]+(?:['’][^\W_]+)*|[\W_])\s*")
"""a word or one mark, with the space behind it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A run of text. `kind`: same | removed (only in control) | added (only in treatment)."""

    kind: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WordDiff:
    """`pieces` is empty where no diff is shown; `note` is the reason."""

    pieces: list[Piece]
    note: str | None = None


def word_diff(control: str, treatment: str) -> WordDiff:
    """The way from control's text to treatment's as kept, removed and added words."""
    if control == treatment:
        return WordDiff(pieces=[], note="The two answers are the same, character for character.")
    a, b = _WORDS.findall(control), _WORDS.findall(treatment)
    if max(len(a), len(b)) > MAX_WORDS:
        return WordDiff(pieces=[], note="The answers are too long to compare word by word.")
    # Spacing alone is no change: words are compared without it, and shown with it.
    a_words, b_words = [word.strip() for word in a], [word.strip() for word in b]
    counts = Counter(b_words)
    if sum(counts[word] for word in a_words) > MAX_WORK:
        return WordDiff(pieces=[], note="The answers repeat themselves too much to compare word by word.")
    matcher = difflib.SequenceMatcher(None, a_words, b_words, autojunk=False)
    if matcher.ratio() < MIN_SHARED or not a or not b:
        return WordDiff(pieces=[], note="The answers share too few words for a word-by-word comparison to help.")
    pieces: list[Piece] = []
    for tag, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        if tag == "equal":
            pieces.append(Piece(kind="same", text="".join(b[b_from:b_to])))
            continue
        if a_to > a_from:
            pieces.append(Piece(kind="removed", text="".join(a[a_from:a_to])))
        if b_to > b_from:
            pieces.append(Piece(kind="added", text="".join(b[b_from:b_to])))
    return WordDiff(pieces=pieces)
