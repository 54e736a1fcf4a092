"""What is said of answers that are no whole texts, and of endings nobody documents."""

from __future__ import annotations

from experiment_builders import both_arms, check, run


def test_answers_that_are_no_whole_texts_are_named() -> None:
    marks = [None] * 90 + ["unknown_finish_reason"] * 6 + ["pause_turn"] * 3 + ["not_text"]
    reasons = ["stop"] * 90 + ["moon_phase"] * 4 + ["tide"] * 2 + ["pause_turn"] * 3 + ["stop"]
    found = run(both_arms(100, treatment={"error_type": marks, "finish_reason": reasons}))
    detail = check(found, "finish_reasons").detail
    assert "4 treatment answers ended with 'moon_phase' and 2 treatment answers ended with 'tide'" in detail
    odd = check(found, "unjudgeable_answers").detail
    assert "3 treatment answers are paused" in odd
    assert "1 treatment answer holds something other than text" in odd
    assert odd.endswith("only the text in such answers is judged; without any, their pair is left out")


def test_plain_answers_need_no_word() -> None:
    found = run(both_arms(100))
    assert not {"finish_reasons", "unjudgeable_answers"} & {one.name for one in found.checks}
