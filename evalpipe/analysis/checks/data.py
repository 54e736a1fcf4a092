"""Checks of the log itself: duplicates, clocks, prices, usage, one user's weight, drift, endings, unjudgeable content."""

from __future__ import annotations

import math
import re
from typing import Any

from evalpipe.analysis.checks.base import PASS, WARN, CheckContext, CheckFunction
from evalpipe.analysis.intervals import UserSums, sum_by_user
from evalpipe.analysis.metric_formatting import amount, count, listed, percent
from evalpipe.analysis.metrics import Ratio, metrics
from evalpipe.analysis.result import Check
from evalpipe.analysis.sql import rows
from evalpipe.analysis.verdicts import sum_wins
from evalpipe.providers.outcomes import CALLS_MISSING, PAUSED, UNKNOWN_REASON
from evalpipe.providers.pricing import NOT_REPORTED
from evalpipe.providers.response_builder import NOT_TEXT
from evalpipe.stats.means import paired_difference, unpaired_difference

MAX_USER_SHARE = 0.2
MAX_UNMETERED = 0.05
MAX_EARLY_US = 1_000_000
MAX_DRIFT_ROWS = 1_000_000
DRIFT_Z = 3.29
"""two-sided p = .001: two halves of a steady experiment differ by more once in a thousand"""
DRIFTING = ("error_rate", "cost_per_request_usd", "output_tokens")
MAX_OTHER_MODEL = 0.01


def duplicates(evidence: CheckContext) -> Check:
    """The same request logged twice."""
    n = evidence.prepared.n_duplicates
    if n:
        return Check(
            name="duplicate_requests",
            status=WARN,
            detail=f"{count(n)} exchanges are in the log twice; the first of each counts",
            remedy="give every request its own id, and load a log only once",
        )
    return Check(name="duplicate_requests", status=PASS, detail="no exchange is in the log twice")


def clock_skew(evidence: CheckContext) -> Check | None:
    """Shadow requests that seem to start before their request, or responses that end before they begin or before their first
    token."""
    early = 0
    if evidence.prepared.paired:
        early = rows(evidence.connection, f"SELECT count(*) AS n FROM ev_ids WHERE lead_us < {-MAX_EARLY_US}")[0]["n"]
    odd = sum(one.reversed for one in evidence.responses)
    if early or odd:
        return Check(
            name="clock_skew",
            status=WARN,
            detail=f"{count(early)} copies start a second or more before their request, "
            f"{count(odd)} responses end before they begin or before their first token",
            remedy="check the clocks of the machines that write the log",
        )
    return Check(name="clock_skew", status=PASS, detail="the instants in the log are in order")


def no_usage_in_streams(evidence: CheckContext) -> Check | None:
    """Streamed answers that never reported their tokens."""
    n, unknown = (sum(getattr(one, name) for one in evidence.responses) for name in ("streamed", "unmetered"))
    if not n:
        return None
    detail = f"{count(unknown)} of {count(n)} streamed answers did not report their tokens"
    if unknown > MAX_UNMETERED * n:
        return Check(
            name="no_usage_in_streams",
            status=WARN,
            detail=detail,
            remedy=TELL_TOKENS,
        )
    return Check(name="no_usage_in_streams", status=PASS, detail=detail)


def arm_models(evidence: CheckContext) -> Check | None:
    """Did the models that answered bear the names that the configuration gives the arms?"""
    problems: list[str] = []
    for arm, expected in evidence.settings.arms.items():
        wanted = expected.get("model")
        if not wanted:
            continue
        seen = rows(
            evidence.connection,
            "SELECT model_requested AS asked, model AS answered, count(*) AS n FROM exchanges WHERE experiment = ? "
            "AND arm = ? AND role <> 'replay' AND coalesce(model_requested, model) IS NOT NULL "
            "GROUP BY ALL ORDER BY n DESC, 1, 2",
            [evidence.experiment, arm],
        )
        others = [row for row in seen if not any(_same_model(wanted, row[name]) for name in ("asked", "answered"))]
        n = sum(row["n"] for row in others)
        if n > MAX_OTHER_MODEL * sum(row["n"] for row in seen):
            names = list(dict.fromkeys(str(row["answered"] or row["asked"]) for row in others))
            problems.append(
                f"{count(n)} of {count(sum(row['n'] for row in seen))} {arm} exchanges are of {listed(names[:3])}, "
                f"not of {wanted}"
            )
    if not evidence.settings.arms:
        return None
    if problems:
        return Check(
            name="arm_models",
            status=WARN,
            detail=f"{'; '.join(problems)}: the arms are not as configured in [arms]",
            remedy="correct model in [arms], or look at one model only (--where \"model_requested = '…'\")",
        )
    return Check(name="arm_models", status=PASS, detail="the arms' models are those of [arms]")


def _same_model(wanted: str, name: str | None) -> bool:
    """A provider's prefix and a date behind the name do not make another model: openai/gpt-4o, gpt-4o-2024-08-06."""
    if not name:
        return False
    expected, found = (text.lower().rsplit("/", 1)[-1] for text in (wanted, name))
    return re.fullmatch(re.escape(expected) + r"([-@:](latest|\d{4,}[\d-]*(preview)?))?", found) is not None


def one_user_dominates(evidence: CheckContext) -> Check | None:
    """One user with a large share of the traffic, whose habits then dominate the result."""
    if not evidence.prepared.n_rows:
        return None
    row = rows(
        evidence.connection,
        "SELECT max(n) AS top, sum(n) AS total FROM (SELECT sum(requests) AS n FROM ev_users GROUP BY u)",
    )[0]
    share = row["top"] / row["total"]
    users = evidence.prepared.n_users
    detail = f"the busiest of {count(users)} users made {percent(share)} of the requests"
    if share > MAX_USER_SHARE:
        return Check(
            name="one_user_dominates",
            status=WARN,
            detail=f"{detail}: they decide most of the result",
            remedy="look at the result without them (--where), or wait for more users",
        )
    return Check(name="one_user_dominates", status=PASS, detail=detail)


def drift(evidence: CheckContext) -> Check | None:
    """Did the difference between the arms, or the win rate, change from the first to the second half of the experiment?"""
    first, last = evidence.prepared.first_us, evidence.prepared.last_us
    if first is None or last is None or last <= first:
        return None
    middle = first + (last - first) // 2
    chosen = [item for item in metrics() if item.name in DRIFTING]
    every = max(1, -(-evidence.prepared.n_rows // MAX_DRIFT_ROWS))  # whole users, by hash
    half_of = f"CASE WHEN at_us < {middle} THEN 'first' ELSE 'second' END"
    sum_by_user(
        evidence.connection,
        [item.values for item in chosen if isinstance(item.values, Ratio)],
        paired=evidence.prepared.paired,
        table="ev_halves",
        group=half_of,
        condition=f"u % {every} = 0",
        n_users=evidence.prepared.n_users // every,
    )
    users = UserSums(evidence.connection, "ev_halves")
    measured = [(item, users.aggregate(f"m{position}")) for position, item in enumerate(chosen)]
    if evidence.judge is not None:
        wins = sum_wins(evidence.connection, evidence.judge.name, evidence.judge.fingerprint, group=half_of)
        measured.append((next(item for item in metrics() if item.name == "win_rate"), wins))
    moved = []
    for item, halves in measured:
        if set(halves) != {"first", "second"}:
            continue
        estimates = []
        for name in ("first", "second"):
            half = halves[name]
            estimates.append(
                paired_difference(half.paired)
                if evidence.prepared.paired
                else unpaired_difference(half.control, half.treatment)
            )
        before, after = estimates
        if not all(one.status == "ok" and one.standard_error for one in estimates):
            continue
        assert before.point is not None and after.point is not None
        se = math.hypot(before.standard_error or 0.0, after.standard_error or 0.0)
        if abs(after.point - before.point) > DRIFT_Z * se:
            moved.append(
                f"{item.label.lower()} from {amount(before.point, item.unit, signed=True)} "
                f"to {amount(after.point, item.unit, signed=True)}"
            )
    if moved:
        return Check(
            name="drift",
            status=WARN,
            detail=f"the difference between the arms changed from the first half to the second: {listed(moved)}",
            remedy="look at the series: did a model, a prompt or the traffic change?",
        )
    return Check(name="drift", status=PASS, detail="the first and the second half agree")


# Check of the costs: whose is not known, whose is not whole, and why.


MAX_UNPRICED = 0.01
SHOWN = 3
"""reasons and models, the commonest"""
UNMETERED = "(input_tokens IS NULL OR output_tokens IS NULL)"
TELL_TOKENS = 'have clients send stream_options.include_usage, or set stream_usage = "inject" in [collector]'
TELL_COSTS = (
    "add the costs to the imported file (`load --map cost=COLUMN`; of pairs cost_usd_a and cost_usd_b), or the tokens and a "
    "price of the model (`load --price`), and load it again with --replace"
)
UNPRICED_WITH_NOTE = f"coalesce(cost_note, '{NOT_REPORTED}') <> '{NOT_REPORTED}'"
ADDS_A_PRICE = f"coalesce(cost_note LIKE '%add [prices.%', NOT {UNMETERED})"
ANSWERS = "FROM exchanges WHERE experiment = ? AND role <> 'replay' AND outcome IN ('ok', 'refused', 'truncated')"


def price_unknown(evidence: CheckContext) -> Check | None:
    """Answers whose cost is not known (no price for their model, no tokens to multiply it with, tokens of a kind without a
    price) or incomplete (a fee that the response does not report)."""
    cost = evidence.results.get("cost_per_request_usd")
    if cost is not None and not cost.measurable and not evidence.settings.priced:
        return None  # a log without costs, and no arm whose price could be missing
    found = [one for one in evidence.responses if one.answered]
    short = [one for one in found if one.unpriced > MAX_UNPRICED * one.answered]
    partial = _notes(evidence, "cost_usd IS NOT NULL AND cost_note IS NOT NULL")
    part = _parts(partial)
    if not short:
        n_part, n = sum(row["n"] for row in partial), sum(one.answered for one in found)
        if n_part > MAX_UNPRICED * n:
            return Check(
                name="price_unknown",
                status=WARN,
                detail=f"every answer has a price, {part}",
                remedy="set a price for what is missing under [prices] (web_search_per_1000, file_search_per_1000, "
                "code_interpreter_per_1000)",
            )
        return Check(name="price_unknown", status=PASS, detail="every answer has a price" + (part and f", {part}"))
    shares = [f"{'treatment' if one.treatment else 'control'} {percent(one.unpriced / one.answered)}" for one in short]
    unmetered = _number(evidence, f"cost_usd IS NULL AND {UNMETERED} AND NOT {UNPRICED_WITH_NOTE}")
    unpriced = _notes(evidence, f"cost_usd IS NULL AND {UNPRICED_WITH_NOTE}")
    why = "" if not unmetered else f"; {count(unmetered)} of them did not report their tokens"
    if unpriced:
        why += f"; {_notes_text(unpriced)}"
    return Check(
        name="price_unknown",
        status=WARN,
        detail=f"the cost of some answers is not known ({listed(shares)}{why}); they are left out of the cost"
        + (part and f"; {part}"),
        remedy="; ".join(_remedies(evidence, unmetered=unmetered, unpriced=unpriced)),
    )


def _remedies(evidence: CheckContext, *, unmetered: int, unpriced: list[dict[str, Any]]) -> list[str]:
    remedies = []
    models = rows(
        evidence.connection,
        f"SELECT coalesce(model, model_requested) AS model, count(*) AS n {ANSWERS} AND cost_usd IS NULL "
        f"AND {ADDS_A_PRICE} AND coalesce(model, model_requested) IS NOT NULL GROUP BY 1 ORDER BY n DESC, 1 LIMIT {SHOWN}",
        [evidence.experiment],
    )
    if models or _number(evidence, f"cost_usd IS NULL AND {ADDS_A_PRICE}"):
        names = [f'[prices."{row["model"]}"]' for row in models]
        remedies.append(f"add the model's price under {listed(names) or '[prices.MODEL]'} and load again")
    if unmetered:
        imported = _number(
            evidence, f"cost_usd IS NULL AND {UNMETERED} AND NOT {UNPRICED_WITH_NOTE} AND role = 'imported'"
        )
        remedies += [TELL_COSTS] if imported else []
        remedies += [TELL_TOKENS] if imported < unmetered else []
    if any("add [prices." not in row["cost_note"] for row in unpriced):
        remedies.append(
            "where a price is what is missing, [prices] takes tiers, kinds of tokens and fees of tools, too"
        )
    return remedies


def _notes(evidence: CheckContext, condition: str) -> list[dict[str, Any]]:
    """The cost notes of the responses of `condition`, the commonest first."""
    return rows(
        evidence.connection,
        f"SELECT cost_note, count(*) AS n {ANSWERS} AND {condition} GROUP BY 1 ORDER BY n DESC, 1",
        [evidence.experiment],
    )


def _number(evidence: CheckContext, condition: str) -> int:
    n: int = rows(evidence.connection, f"SELECT count(*) AS n {ANSWERS} AND {condition}", [evidence.experiment])[0]["n"]
    return n


def _notes_text(notes: list[dict[str, Any]]) -> str:
    text = "; ".join(f"{count(row['n'])}: {row['cost_note']}" for row in notes[:SHOWN])
    rest = sum(row["n"] for row in notes[SHOWN:])
    return text + (f"; {count(rest)} for other reasons" if rest else "")


def _parts(notes: list[dict[str, Any]]) -> str:
    n = sum(row["n"] for row in notes)
    return f"{count(n)} of the costs {'is' if n == 1 else 'are'} {notes[0]['cost_note']}" if n else ""


CHECKS: list[CheckFunction] = [
    duplicates,
    clock_skew,
    price_unknown,
    no_usage_in_streams,
    arm_models,
    one_user_dominates,
    drift,
]


# Checks of what the answers are: unknown finish reasons, and content that a judge of texts cannot see.


UNFINISHED = (PAUSED, CALLS_MISSING)
MAX_NAMES = 5
_ODD = {
    NOT_TEXT: ("holds something other than text", "hold something other than text"),
    PAUSED: ("is paused, not finished", "are paused, not finished"),
    CALLS_MISSING: ("ends for a tool call it does not hold", "end for a tool call they do not hold"),
}
"""the text about one response, and about several"""


def finish_reasons(evidence: CheckContext) -> Check | None:
    """Answers that ended for a reason that is not in the table of finish reasons: they count as `ok`, and are named here."""
    found = _marked(evidence, "finish_reason", (UNKNOWN_REASON,))
    if not found:
        return None
    named = listed([f"{_answers(row)} ended with {row['word']!r}" for row in found[:MAX_NAMES]])
    return Check(
        name="finish_reasons",
        status=WARN,
        detail=f"{named}: not a documented finish reason; such answers count as good ones",
        remedy="look at a few of them, and leave them out with --where if they are not",
    )


def unjudgeable_answers(evidence: CheckContext) -> Check | None:
    """Answers that hold pictures, sound or a server's tool run, and answers that are not finished: a judge reads texts."""
    found = _marked(evidence, "error_type", (NOT_TEXT, *UNFINISHED))
    if not found:
        return None
    named = listed([f"{_answers(row)} {_ODD[row['word']][row['n'] > 1]}" for row in found])
    return Check(
        name="unjudgeable_answers",
        status=WARN,
        detail=f"{named}: only the text in such answers is judged; without any, their pair is left out",
        remedy="leave such requests out with --where",
    )


def _answers(row: dict[str, Any]) -> str:
    return f"{count(row['n'])} {row['arm']} answer{'' if row['n'] == 1 else 's'}"


def _marked(evidence: CheckContext, column: str, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    marks = ", ".join("?" for _ in kinds)
    return rows(
        evidence.connection,
        f"SELECT arm, {column} AS word, count(*) AS n FROM exchanges WHERE experiment = ? AND role <> 'replay' "
        f"AND error_type IN ({marks}) GROUP BY 1, 2 ORDER BY n DESC, 1, 2",
        [evidence.experiment, *kinds],
    )


ANSWER_CHECKS: list[CheckFunction] = [finish_reasons, unjudgeable_answers]
