"""People's labels on the page: the corrected win rate, the judge's error, and what a judge can hide where nobody labelled."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.result import Analysis, CorrectedRate, JudgeResult
from evalpipe.report.judge import SHARE, TWO, share_with_interval
from evalpipe.report.labels import status_words
from evalpipe.report.metrics import Fact
from evalpipe.text import MINUS, MISSING, NBSP, format_count, format_counted, full_sentence

QUESTION = "Do people agree with the judge?"
EFFECT = 5.0
"""points of a true difference, as an example"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectedView:
    """Every figure of the correction."""

    facts: list[Fact]


def corrected_view(analysis: Analysis) -> CorrectedView | None:
    """None without labels."""
    found = analysis.corrected
    if found is None:
        return None
    return CorrectedView(facts=_facts(found, _deciding(analysis)))


def labels_answer(analysis: Analysis) -> str:
    """What people's labels show of the judge; without labels what the judge can hide; "" without either."""
    judge, found = _deciding(analysis), analysis.corrected
    if found is None or not found.n_labels:
        return "" if judge is None else hidden(judge)
    parts = [_rate(found, judge)]
    if found.note:
        parts.append(found.note)
    favoured = found.biased
    error = next((one for one in found.errors if one.arm == "treatment"), None)
    if favoured is not None:
        whose = "control's" if favoured.arm == "control" else "the treatment's"
        size = _points(favoured.error, favoured.ci_low, favoured.ci_high)
        parts.append(f"the judge favours {whose} answers by {size}, which its own win rate does not show")
    elif error is not None and error.status == "ok":
        size = _points(error.error, error.ci_low, error.ci_high)
        parts.append(f"the judge is not shown to favour either arm (the treatment's answers: {size})")
    if found.sampling == "random" and found.n_labels < found.n_pairs and not found.decides:  # else a check reports it
        parts.append("the labels hold no probability of their draw, so they are taken for a random sample of the pairs")
    return " ".join(full_sentence(part) for part in parts)


def hidden(judge: JudgeResult) -> str:
    """What "preferred" is without labels, and how small a true difference shows by the judge's consistency."""
    first = "Not known: no pair was labelled. Preferred means preferred by this judge."
    low, high = judge.shows_at_least, judge.shows_at_most
    if low is None or high is None:
        return first
    if high == 0:
        return f"{first} Its two orders agree no better than chance: a true difference of any size can be hidden."
    at_least, at_most = EFFECT * low, EFFECT * high
    shown = f"{at_most:.1f}" if f"{at_least:.1f}" == f"{at_most:.1f}" else f"{at_least:.1f} to {at_most:.1f}"
    return (
        f"{first} By the agreement of its two orders a true lead of {EFFECT:.0f} points shows as {shown} points, if its mistakes "
        "in the two orders are independent and alike for both arms; a mistake made in both orders is not seen in its "
        "consistency, and can hide more or invent a difference."
    )


def _rate(found: CorrectedRate, judge: JudgeResult | None) -> str:
    rate = share_with_interval(found.value, found.ci_low, found.ci_high)
    own = "" if judge is None or judge.win_rate is None else f"; the judge alone: {SHARE.value(judge.win_rate)}"
    size = f"{format_counted(found.n_labels, 'label')} and the verdicts on {format_counted(found.n_pairs, 'pair')}"
    text = f"corrected by people, the treatment is preferred in {rate} ({size}{own})"
    if found.gain is not None and found.lam > 0:
        text += f"; with the judge one label is worth {found.gain:.1f}"
    if found.decides:
        return f"{text}. It decides in place of the judge's own win rate"
    if found.setting == "off":
        return f'{text}. It decides nothing (labels = "off" in [decision])'
    if found.needed_labels:
        more = format_counted(found.needed_labels, "more label")
        return f"{text}. It decides in place of the judge's own win rate from {more} on"
    return text


def _facts(found: CorrectedRate, judge: JudgeResult | None) -> list[Fact]:
    used = f"{format_counted(found.n_labels, 'label')} of {format_counted(found.n_users, 'user')}"
    if found.n_left_out:
        left = format_counted(found.n_left_out, "labelled pair")
        used += f"; {left} not used (not among the pairs that count, or of another sample)"
    sampling = {
        "known": "drawn with recorded probabilities",
        "random": "taken for a random sample: no probability of the draw is recorded",
    }
    facts = [
        Fact(name="Corrected win rate", text=share_with_interval(found.value, found.ci_low, found.ci_high)),
        Fact(
            name="The judge alone",
            text=MISSING if judge is None else share_with_interval(judge.win_rate, judge.ci_low, judge.ci_high),
        ),
        Fact(name="Labels used", text=used),
        Fact(name="Labels from", text=", ".join(found.sources) or MISSING),
        Fact(name="How pairs were drawn", text=sampling.get(found.sampling, found.sampling)),
        Fact(name="Pairs in the win rate", text=format_count(found.n_pairs)),
        Fact(name="λ, how much of the judge is used", text=TWO.value(found.lam)),
        Fact(
            name="What a label is worth with the judge",
            text="not known" if found.gain is None else f"{found.gain:.2f} labels",
        ),
    ]
    for one in found.errors:
        whose = "control's" if one.arm == "control" else "the treatment's"
        text = _points(one.error, one.ci_low, one.ci_high) if one.status == "ok" else status_words(one.status)
        facts.append(Fact(name=f"The judge's error for {whose} answers", text=text))
    facts.append(Fact(name="Method", text=found.method or MISSING))
    if found.status != "ok":
        facts.append(Fact(name="Status", text=f"{found.status}: {status_words(found.status)}"))
    return facts


def _points(value: float | None, low: float | None, high: float | None) -> str:
    """ "+4.1 points (1.0 to 7.2)"."""
    if value is None:
        return MISSING
    text = f"{100 * value:+.1f}{NBSP}points"
    if low is not None and high is not None:
        text += f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return text.replace("-", MINUS)


def _deciding(analysis: Analysis) -> JudgeResult | None:
    return next((one for one in analysis.judges if one.feeds_decision), None)
