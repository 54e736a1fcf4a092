"""The word diff: right where it helps, refused where it would not, and never slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.report.examples import word_diff


def kinds(control: str, treatment: str) -> list[tuple[str, str]]:
    return [(piece.kind, piece.text) for piece in word_diff(control, treatment).pieces]


def test_words_that_changed_are_marked() -> None:
    assert kinds("wait five days please", "wait three days please") == [
        ("same", "wait "),
        ("removed", "five "),
        ("added", "three "),
        ("same", "days please"),
    ]


@given(st.lists(st.sampled_from(["a", "b", "c", "wait", "days"]), min_size=1, max_size=30), st.randoms())
def test_each_side_can_be_read_back(words: list[str], random: object) -> None:
    other = [*words[1:], "end"]
    diff = word_diff(" ".join(words), " ".join(other))
    if diff.pieces:
        control = "".join(p.text for p in diff.pieces if p.kind != "added").split()
        treatment = "".join(p.text for p in diff.pieces if p.kind != "removed").split()
        assert (control, treatment) == (words, other)
    else:
        assert diff.note


def test_equal_and_unlike_texts_get_a_sentence_instead() -> None:
    assert "same" in (word_diff("a b", "a b").note or "")
    assert "few words" in (word_diff("alpha beta gamma", "eins zwei drei").note or "")


@pytest.mark.parametrize(
    ("control", "treatment"),
    [
        ("a " * 10_000, "a " * 9_999),
        ("a b " * 700, "b a " * 700),
        ("x" * 20_000, "x" * 19_999 + "y"),
        (" ".join(f"w{i % 300}" for i in range(2900)), " ".join(f"w{(i * 7) % 300}" for i in range(2900))),
        ("." * 20_000, "." * 19_000),
    ],
)
def test_no_pair_takes_long(control: str, treatment: str) -> None:
    started = time.process_time()
    word_diff(control, treatment)
    assert time.process_time() - started < 2.0
