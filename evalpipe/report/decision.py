"""What surrounds the recommendation: excluded periods, what was decided before, and how much longer it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from evalpipe.analysis.reasons import horizon_sentence
from evalpipe.analysis.result import Analysis, Decision, DecisionChange
from evalpipe.report.terms import RECOMMENDATIONS, plain
from evalpipe.text import (
    format_day,
    format_instant,
    full_sentence,
    readable_instants,
    sentence_case,
    together,
    within_sentence,
)

LEVEL = "All findings at"
"""how the one sentence about the confidence level begins"""
ROLLBACK = "Roll back: users are served by the treatment."
_EVENTS = {"reached": "Decided", "undone": "Undone", "set": ""}
_ALTERNATIVE = " A period was excluded after "
"""how the headline's own sentence about the other decision begins"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """The decision in force and the one on all data, where a period was excluded after its data had been seen."""

    word: str
    headline: str
    other_word: str
    other_headline: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A decision reached or undone (`event`: Decided | Undone, `what`: the decision), or a change of what decides (both "")."""

    event: str
    when: str
    what: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionView:
    """Each a sentence, or "" where there is nothing to report.

    Attributes:
        exclusions: one per excluded period, oldest first.
        beside: the decision with and without the exclusions.
        rollback: that the treatment should no longer serve users.
        changes: the history, oldest first.
        undone: the last decision that was undone, and why.
        set_note: which set of what decides this is, where it is not the first.
        level: the confidence level of the findings.
        how_much_longer: what a decision still needs.
    """

    exclusions: list[str]
    beside: Beside | None
    rollback: str
    changes: list[Change]
    undone: str
    set_note: str
    level: str
    how_much_longer: str

    @property
    def head(self) -> list[tuple[str, str]]:
        """The lines of the head in plain text: (name, text), the name "" where the text is a sentence of its own."""
        lines = [("Excluded", text) for text in self.exclusions]
        if self.beside is not None:
            lines.append(("With the excluded time", f"{self.beside.other_word}. {self.beside.other_headline}"))
        return [*lines, *(("", text) for text in (self.rollback, self.undone, self.set_note) if text)]


def decision_view(analysis: Analysis) -> DecisionView:
    """The surroundings of an analysis' decision; its texts may hold anything and are escaped where they are shown."""
    decision = analysis.decision
    year = _instant(analysis.generated_at)
    return DecisionView(
        exclusions=[exclusion_text(one, year=year.year if year else None) for one in analysis.exclusions],
        beside=_beside(decision),
        rollback=ROLLBACK if decision.rollback else "",
        changes=_changes(decision),
        undone=undone_sentence(decision.changes, decision.reasons),
        set_note=set_sentence(decision.set_number, _alpha(analysis)),
        level=_level(analysis),
        how_much_longer=_how_much_longer(analysis),
    )


def headline_of(decision: Decision) -> str:
    """The sentence under the recommendation, which need not repeat it."""
    text = decision.headline or next(filter(None, decision.reasons), "")
    return without_recommendation(decision.recommendation, readable(text)) or (
        f"{RECOMMENDATIONS.get(decision.recommendation, decision.recommendation)}."
    )


def without_recommendation(recommendation: str, text: str) -> str:
    """A headline without the recommendation it begins with."""
    word = RECOMMENDATIONS.get(recommendation, recommendation).lower()
    head, _, rest = text.partition(": ")
    same = head.lower() in {word, "ship", "keep", "collect more", "invalid", "do not decide", "no decision can be made"}
    return sentence_case(rest.strip() if same and rest else text)


def readable(text: str) -> str:
    """A sentence of the analysis as it is printed: instants as people write them, numbers and units together."""
    return together(readable_instants(text))


def exclusion_text(entry: Mapping[str, Any], *, year: int | None = None) -> str:
    """An excluded period in one line: "27 Nov 09:00 to 11:30 UTC: wrong key of the treatment (declared 27 Nov 14:02)".

    Args:
        entry: since, until, why, declared_at (texts); seen, fault (bools, False where they are missing).
        year: the report's; instants of another year name theirs.
    """
    period = _period(str(entry.get("since", "")), str(entry.get("until", "")), year)
    declared = _moment(str(entry.get("declared_at", "")), year)
    notes = [f"declared {declared}"] if declared else []
    if entry.get("fault"):
        notes.append("a set-up fault was found in it")
    elif entry.get("seen"):
        notes.append("after its data had been seen")
    aside = f" ({', '.join(notes)})" if notes else ""
    return f"{period}: {' '.join(str(entry.get('why', '')).split())}{aside}"


def _period(since: str, until: str, year: int | None) -> str:
    start, end = _instant(since), _instant(until)
    if start is None or end is None:
        return " ".join(f"{since} to {until}".split())
    if start.date() != end.date():
        return f"{_moment(since, year)} to {_moment(until, year)} UTC"
    same_minute = (start.hour, start.minute) == (end.hour, end.minute) and (start.second or end.second)
    first, last = (f"{at:%H:%M:%S}" if same_minute else _clock(at) for at in (start, end))
    return f"{_moment(since, year).rsplit(' ', 1)[0]} {first} to {last} UTC"


def _moment(instant: str, year: int | None) -> str:
    """ "27 Nov 09:00", with the year where it is another one."""
    at = _instant(instant)
    if at is None:
        return " ".join(instant.split())
    day = format_day(at.isoformat())
    return f"{day if at.year != year else day.rsplit(' ', 1)[0]} {_clock(at)}"


def _clock(at: datetime) -> str:
    return f"{at:%H:%M:%S}" if at.second else f"{at:%H:%M}"


def _instant(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _beside(decision: Decision) -> Beside | None:
    other = decision.without_exclusions
    if other is None:
        return None
    return Beside(
        word=_word(decision.recommendation),
        headline=full_sentence(headline_of(decision).partition(_ALTERNATIVE)[0]),
        other_word=_word(other.recommendation),
        other_headline=full_sentence(without_recommendation(other.recommendation, readable(other.headline))),
    )


def _word(recommendation: str | None) -> str:
    return RECOMMENDATIONS.get(recommendation or "", recommendation or "")


def _changes(decision: Decision) -> list[Change]:
    several = any(change.set_number > 1 for change in decision.changes)
    return [_change(change, several=several) for change in decision.changes]


def _change(change: DecisionChange, *, several: bool) -> Change:
    when = f"look {change.look}, {format_instant(change.at)}{f', set {change.set_number}' if several else ''}"
    why = " ".join(readable(change.why).split())
    if change.event == "reached" and change.recommendation is not None:
        why = without_recommendation(change.recommendation, why)
    return Change(
        event=_EVENTS.get(change.event, sentence_case(plain(change.event))),
        when=when,
        what=_word(change.recommendation),
        why=full_sentence(why),
    )


def undone_sentence(changes: list[DecisionChange], reasons: list[str]) -> str:
    """The last decision that was undone or replaced, in one line; "" where there is none, or a reason reports it already."""
    text, force = "", None
    for change in changes:
        what, when = _word(change.recommendation), f"at look {change.look} ({format_instant(change.at)})"
        why = " ".join(readable(change.why).split()).rstrip(".")
        if change.event == "undone" and change.recommendation:
            reported = bool(why) and any(change.why.rstrip(".") in reason for reason in reasons)
            text = (
                ""
                if reported
                else f"the decision “{what}” was undone {when}{f': {within_sentence(why)}' if why else ''}"
            )
            force = None
        elif change.event == "reached":
            if force is not None and force != what:
                text = f"the decision “{force}” was replaced by “{what}” {when}"
            force = what
    return full_sentence(text)


def set_sentence(set_number: int, alpha: float) -> str:
    """Which set of what decides this is; "" for the first one."""
    if set_number < 2:
        return ""
    return together(
        f"This is set {set_number} of what decides; each set adds at most {100 * alpha:.4g} % to the probability of a false "
        "decision."
    )


def _alpha(analysis: Analysis) -> float:
    return 1 - analysis.metrics[0].confidence_level if analysis.metrics else 0.05


def _level(analysis: Analysis) -> str:
    """The levels, once: the analysis' own sentence where it has one."""
    own = next((reason for reason in analysis.decision.reasons if reason.startswith(LEVEL)), None)
    if own is not None:
        return full_sentence(own)
    return together(f"{LEVEL} {100 * (1 - _alpha(analysis)):.4g} % confidence.") if analysis.metrics else ""


def not_settled(analysis: Analysis) -> str:
    """The metrics a decision waits for, in a sentence; "" where there is a decision, or the data cannot support one."""
    decision = analysis.decision
    if decision.recommendation != "collect_more" or not decision.blocking:
        return ""
    labels = {metric.name: metric.label or plain(metric.name) for metric in analysis.metrics}
    blocking = [within_sentence(labels.get(name, plain(name))) for name in decision.blocking]
    return f"Not settled: {', '.join(blocking)}."


def _how_much_longer(analysis: Analysis) -> str:
    decision = analysis.decision
    if decision.recommendation != "collect_more":
        return ""
    open_ = not_settled(analysis)
    if decision.horizon is not None:
        results = {metric.name: metric for metric in analysis.metrics}
        return f"{full_sentence(horizon_sentence(decision.horizon, results))} {open_}".rstrip()
    if decision.rule == "unmeasured":
        return "More requests alone are not enough: no goal has a value yet."
    return f"No forecast can be made yet. {open_}".rstrip() if open_ else ""


def repeats_forecast(text: str, decision: Decision) -> bool:
    """Whether a sentence is the forecast of `decision.horizon` once more."""
    if decision.horizon is None:
        return False
    head = horizon_sentence(decision.horizon, {}).partition(" until ")[0]
    return " ".join(text.split()).lower().startswith(" ".join(together(head).split()).lower())
