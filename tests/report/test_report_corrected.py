"""People's labels on the page: the corrected rate, what to label, and what a judge can hide without labels."""

from __future__ import annotations

import dataclasses

import pytest
from report_builders import judge, metric, mixed

from evalpipe.analysis.result import Analysis, CorrectedRate, JudgeError
from evalpipe.report.judge import LABELS_QUESTION, hidden, labels_answer
from evalpipe.report.render import render
from evalpipe.report.text import render_csv, render_markdown
from evalpipe.report.view import report_view


def _corrected(**changes: object) -> CorrectedRate:
    errors = [
        JudgeError(
            arm=arm,
            error=sign * 0.021,
            ci_low=-0.03 + sign * 0.021,
            ci_high=0.03 + sign * 0.021,
            n_labels=64,
            n_users=60,
        )
        for arm, sign in (("control", -1), ("treatment", 1))
    ]
    plain = CorrectedRate(
        judge="strict", value=0.573, ci_low=0.52, ci_high=0.62, confidence_level=0.95, standard_error=0.025, n_labels=64,
        n_users=60, n_pairs=412, lam=0.7, gain=1.8, sampling="known", sources=["page"], decides=True,
        method="prediction-powered, fixed", errors=errors,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def _report(corrected: CorrectedRate | None, **changes: object) -> Analysis:
    found = dataclasses.replace(mixed(), corrected=corrected, **changes)
    row = metric(
        name="win_rate_corrected", label="Corrected win rate", group="quality", unit="ratio", n=64, n_clusters=60
    )
    return dataclasses.replace(found, metrics=[*found.metrics, row]) if corrected is not None else found


def _answer(analysis: Analysis) -> str:
    return next(one.text for one in report_view(analysis).summary.questions if one.name == LABELS_QUESTION).replace(
        "\xa0", " "
    )


def test_the_corrected_rate_stands_beside_the_judges_own() -> None:
    own = next(one for one in mixed().judges if one.feeds_decision).win_rate
    text = _answer(_report(_corrected()))
    assert "preferred in 57.3 % (52.0 to 62.0 %) (64 labels and the verdicts on 412 pairs" in text
    assert f"the judge alone: {100 * (own or 0):.1f} %" in text
    assert "one label is worth 1.8" in text
    assert "It decides in place of the judge's own win rate." in text
    assert "not shown to favour either arm (the treatment's answers: +2.1 points (−0.9 to +5.1))" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decides": False, "needed_labels": 1}, "decides in place of the judge's own win rate from 1 more label on"),
        ({"decides": False, "setting": "off"}, 'It decides nothing (labels = "off" in [decision])'),
        ({"decides": False, "sampling": "random", "needed_labels": 9}, "taken for a random sample of the pairs"),
        ({"lam": 0.0, "note": "the judge's verdicts are not used"}, "The judge's verdicts are not used."),
        (
            {"errors": [JudgeError(arm="control", error=0.1, ci_low=0.02, ci_high=0.18, n_labels=64, n_users=60, biased=True)]},
            "The judge favours control's answers by +10.0 points (+2.0 to +18.0)",
        ),
    ],
)  # fmt: skip
def test_what_the_labels_show_in_words(changes: dict[str, object], words: str) -> None:
    assert words in _answer(_report(_corrected(**changes)))


def test_without_labels_the_page_says_what_preferred_means_and_what_it_can_hide() -> None:
    consistent = judge(shows_at_least=0.25, shows_at_most=0.5)
    found = dataclasses.replace(mixed(), corrected=None, judges=[consistent])
    text = _answer(found)
    assert "Preferred means preferred by this judge." in text
    assert "a true lead of 5 points shows as 1.2 to 2.5 points" in text  # 5 · .25 and 5 · √.25
    assert "a mistake made in both orders is not seen" in text
    assert "preferred by this" in render(found)
    assert "a true difference of any size can be hidden" in hidden(judge(shows_at_least=0.0, shows_at_most=0.0))
    assert labels_answer(dataclasses.replace(found, judges=[])) == ""


def test_page_markdown_and_csv_hold_the_corrected_rate() -> None:
    found = _report(_corrected())
    page = render(found)
    assert "The correction by labels in figures" in page
    assert "1.80 labels" in page
    assert LABELS_QUESTION in render_markdown(found)
    assert "win_rate_corrected,Corrected win rate" in render_csv(found)


def test_what_to_label_next_is_a_step() -> None:
    row = metric(name="win_rate_corrected", label="Corrected win rate", role="primary", status="too_few_labels", n=0)
    base = mixed()
    waiting = dataclasses.replace(
        base.decision, recommendation="collect_more", rule="unmeasured", blocking=["win_rate_corrected"], horizon=None
    )
    found = dataclasses.replace(
        base,
        metrics=[*base.metrics, row],
        decision=waiting,
        corrected=_corrected(n_labels=20, needed_labels=30, decides=False),
    )
    first = report_view(found).first
    assert first.lead == "Too few pairs are labelled by people."
    assert first.next[0] == "Label 30 more pairs: `evalpipe label`."
    measured = dataclasses.replace(row, status="ok", n=64, expected_more_requests=120)
    open_ = dataclasses.replace(waiting, rule="collect_more")
    found = dataclasses.replace(found, metrics=[*base.metrics, measured], decision=open_, corrected=_corrected())
    assert report_view(found).first.next[0] == "Label about 120 more pairs: `evalpipe label`."
