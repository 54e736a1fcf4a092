"""Pairs to read: texts cut, made visible, rendered and compared, within a budget for the whole page."""

from __future__ import annotations

import difflib
import html
import json
import re
import shlex
from collections import Counter
from dataclasses import dataclass

from markupsafe import Markup

from evalpipe.analysis.result import Example, ExampleSide
from evalpipe.report.sanitize import cut_bytes, escape_invisible, markdown_html, one_line
from evalpipe.report.terms import EXAMPLE_KINDS, EXAMPLE_KINDS_SHORT, plain
from evalpipe.text import (
    MISSING,
    NBSP,
    NumberFormat,
    format_count,
    format_instant,
    format_number,
    format_usd,
    number_format,
)

TEXT_LIMIT = 20_000
"""bytes of UTF-8 shown of any one text"""
PAGE_BUDGET = 600_000
"""bytes of all the examples' texts together; each is shown up to three times (rendered, raw, diff)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextView:
    """A text as it may be shown. `n_cut` characters were left out; `rest` is the command that shows them."""

    raw: str
    html: Markup
    n_cut: int
    rest: str

    @property
    def is_plain(self) -> bool:
        """Whether the rendered text is the raw one, to the letter: one paragraph without markup."""
        return self.html.strip() == f"<p>{html.escape(self.raw, quote=False)}</p>"

    @property
    def cut_mark(self) -> str:
        return f"{format_count(self.n_cut)} more characters were cut here" if self.n_cut else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnView:
    role: str
    text: TextView


@dataclass(frozen=True, kw_only=True, slots=True)
class SideView:
    arm: str
    text: TextView | None
    failed: str
    tool_calls: TextView | None
    facts: list[str]
    scores: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictView:
    judge: str
    order: str
    winner: str
    reasoning: TextView | None


# What changed between two answers, word by word; bounded, because answers are not.


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleView:
    number: int
    kind: str
    kind_word: str
    title: str
    request_id: str
    meta: str
    outcome: str
    turns: list[TurnView]
    control: SideView
    treatment: SideView
    verdicts: list[VerdictView]
    diff: WordDiff


def example_views(examples: list[Example], *, experiment: str) -> list[ExampleView]:
    limit = text_limit(examples)
    return [_example(n, example, limit, experiment) for n, example in enumerate(examples, start=1)]


def chosen(examples: list[Example], limit: int) -> list[Example]:
    """At most `limit` examples, as even over the kinds as there are, kind by kind in reading order."""
    kinds = list(EXAMPLE_KINDS)
    by_kind: dict[str, list[Example]] = {kind: [] for kind in kinds}
    for example in examples:
        by_kind[example.kind if example.kind in by_kind else "unjudged"].append(example)
    while (total := sum(map(len, by_kind.values()))) > limit:
        longest = max(kinds, key=lambda kind: len(by_kind[kind]))
        surplus = total - limit
        second = max(len(by_kind[kind]) for kind in kinds if kind != longest)
        drop = max(1, min(surplus, len(by_kind[longest]) - second))
        del by_kind[longest][len(by_kind[longest]) - drop :]
    return [example for kind in kinds for example in by_kind[kind]]


def example_groups(views: list[ExampleView]) -> list[tuple[str, str, int]]:
    """(kind, heading, number of examples) of the kinds that occur, in reading order."""
    counts = {kind: sum(view.kind == kind for view in views) for kind in EXAMPLE_KINDS}
    return [(kind, EXAMPLE_KINDS_SHORT[kind], n) for kind, n in counts.items() if n]


def text_limit(examples: list[Example]) -> int:
    """The bytes of each text that keep the page within its budget: at most TEXT_LIMIT, less where many are long."""
    lengths = [len(text) for example in examples for text in _texts(example)]
    limit = TEXT_LIMIT
    while limit > 500 and sum(min(length, limit) for length in lengths) > PAGE_BUDGET:
        limit = limit * 3 // 4
    return limit


def _texts(example: Example) -> list[str]:
    texts = [turn.get("content") or "" for turn in example.prompt]
    for side in (example.control, example.treatment):
        texts += [side.text or "", side.tool_calls or ""]
    return texts + [str(verdict.get("reasoning") or "") for verdict in example.verdicts]


def _example(number: int, example: Example, limit: int, experiment: str) -> ExampleView:
    def shown(text: str, column: str, *, arm: str | None = None, n_cut: int = 0) -> TextView:
        return text_view(text, limit, n_cut=n_cut, rest=sql_command(example.request_id, column, experiment, arm))

    def side(arm: str, value: ExampleSide) -> SideView:
        return SideView(
            arm=arm,
            text=None if not value.text else shown(value.text, "text", arm=arm, n_cut=value.n_cut),
            failed=_failure(value),
            tool_calls=None if not value.tool_calls else shown(_pretty(value.tool_calls), "tool_calls", arm=arm),
            facts=_side_facts(value),
            scores=[(plain(name), format_number(score, 1)) for name, score in value.scores.items()],
        )

    question = next((t.get("content") or "" for t in reversed(example.prompt) if t.get("role") == "user"), "")
    kind = example.kind if example.kind in EXAMPLE_KINDS else "unjudged"
    control, treatment = side("control", example.control), side("treatment", example.treatment)
    return ExampleView(
        number=number,
        kind=kind,
        kind_word=EXAMPLE_KINDS_SHORT[kind],
        title=escape_invisible(one_line(question)) or "(no user message)",
        request_id=example.request_id,
        meta=" · ".join(
            part for part in (format_instant(example.started_at), example.endpoint, _user(example.unit_id)) if part
        ),
        outcome=_outcome(example),
        turns=[
            TurnView(
                role=turn.get("role") or "message", text=shown(turn.get("content") or "", "request", arm="control")
            )
            for turn in example.prompt
        ],
        control=control,
        treatment=treatment,
        verdicts=[_verdict(verdict, limit, example.request_id, experiment) for verdict in example.verdicts],
        diff=_diff(control, treatment),
    )


def text_view(text: str, limit: int, *, n_cut: int = 0, rest: str = "") -> TextView:
    """`text` cut to `limit` bytes, made visible, and rendered. `n_cut`: characters already cut before it got here."""
    head, n_more = cut_bytes(text, limit)
    raw = escape_invisible(head)
    return TextView(raw=raw, html=markdown_html(raw), n_cut=n_cut + n_more, rest=rest)


_SHELL_ACTIVE = re.compile(r'([\\"$`])')


def sql_command(request_id: str, column: str, experiment: str, arm: str | None) -> str:
    """The shell command that prints the whole text: quoted for SQL, then for the shell."""
    identifier = request_id.replace("'", "''")
    by_arm = f" AND arm = '{arm}'" if arm else ""
    view = "exchanges" if arm else "judgments"
    query = f"SELECT {column} FROM {view} WHERE request_id = '{identifier}'{by_arm}"
    # An interactive shell acts on "!" in double quotes and a backslash does not help; on four other characters it does.
    quoted = shlex.quote(query) if "!" in query else '"' + _SHELL_ACTIVE.sub(r"\\\1", query) + '"'
    return f"evalpipe sql --experiment {shlex.quote(experiment)} {quoted}"


def _diff(control: SideView, treatment: SideView) -> WordDiff:
    if control.text is None or treatment.text is None:
        return WordDiff(pieces=[], note="One of the answers is empty: there is nothing to compare.")
    return word_diff(control.text.raw, treatment.text.raw)


def _failure(side: ExampleSide) -> str:
    """What went wrong with an answer, or that it is empty; "" where nothing did."""
    if side.outcome not in {"ok", ""}:
        words = plain(side.outcome)
        # A code ("no_answer") in words, a provider's message as it is.
        error = plain(side.error) if side.error and " " not in side.error else side.error
        return escape_invisible(f"{words}: {error}" if error else words)
    return "" if side.text or side.tool_calls else "empty answer"


def _side_facts(side: ExampleSide) -> list[str]:
    facts = [side.model or ""]
    if side.latency_ms is not None:
        facts.append(number_format("ms", largest=side.latency_ms, half_width=20.0).value(side.latency_ms))
    if side.output_tokens is not None:
        facts.append(f"{format_count(side.output_tokens)} tokens")
    if side.cost_usd is not None:
        facts.append(format_usd(side.cost_usd))
    if side.finish_reason and side.finish_reason not in {"stop", "end_turn"}:
        facts.append(f"ended by {plain(side.finish_reason)}")
    return [fact for fact in facts if fact]


def _pretty(tool_calls: str) -> str:
    try:
        return json.dumps(json.loads(tool_calls), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return tool_calls


def _user(unit_id: str | None) -> str:
    return f"user {one_line(unit_id, 24)}" if unit_id else ""


def _outcome(example: Example) -> str:
    if example.preference is None:
        return "no verdict"
    share = NumberFormat(factor=100.0, decimals=0, suffix=f"{NBSP}%").value(example.preference)
    if example.preference == 0.5:
        return "" if example.kind == "tie" else "tie"
    winner = "treatment" if example.preference > 0.5 else "control"
    return (
        f"{winner} preferred"
        if min(example.preference, 1 - example.preference) < 0.005
        else f"preference for treatment {share}"
    )


def _verdict(verdict: dict[str, object], limit: int, request_id: str, experiment: str) -> VerdictView:
    first = str(verdict.get("shown_first") or "")
    order = {"control": "control shown first", "treatment": "treatment shown first", "neither": "each judged alone"}
    winner, status = verdict.get("winner"), str(verdict.get("status") or "ok")
    if winner == "tie":
        word = "tie"
    elif winner:
        word = f"{winner} wins"
    else:
        word = plain(status) if status not in {"ok", "identical"} else _preference_word(verdict.get("preference"))
    reasoning = str(verdict.get("reasoning") or "")
    command = sql_command(request_id, "reasoning", experiment, None)
    return VerdictView(
        judge=str(verdict.get("judge") or ""),
        order=order.get(first, "order not recorded"),
        winner=f"{word} (identical answers)" if status == "identical" else word,
        reasoning=text_view(reasoning, limit, rest=command) if reasoning else None,
    )


def _preference_word(preference: object) -> str:
    if not isinstance(preference, int | float):
        return MISSING
    return f"preference for treatment {format_number(float(preference) * 100, 0)}{NBSP}%"


MAX_WORDS = 3_000
"""words of either text; beyond it no diff is made"""
MAX_WORK = 1_500_000
"""comparisons SequenceMatcher may have to do in one pass: Σ over words of count in one text × count in the other"""
MIN_SHARED = 0.2
"""below this similarity a word diff is confetti, and a sentence helps more"""

_WORDS = re.compile(r"\s+|(?:[^\W_]+(?:['’][^\W_]+)*|[\W_])\s*")
"""a word or one mark, with the space behind it"""


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
