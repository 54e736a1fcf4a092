"""Check of the costs: whose is not known, whose is not whole, and why."""

from __future__ import annotations

from typing import Any

from evalpipe.analysis.checks import PASS, WARN, Evidence
from evalpipe.analysis.connection import rows
from evalpipe.analysis.result import Check
from evalpipe.analysis.wording import count, listed, percent
from evalpipe.providers.pricing import NOT_REPORTED

MAX_UNPRICED = 0.01
SHOWN = 3
"""reasons and models, the commonest"""
UNMETERED = "(input_tokens IS NULL OR output_tokens IS NULL)"
TELL_TOKENS = 'have clients send stream_options.include_usage, or set stream_usage = "inject" in [collector]'
TOLD_WHY = f"coalesce(cost_note, '{NOT_REPORTED}') <> '{NOT_REPORTED}'"
ADDS_A_PRICE = f"coalesce(cost_note LIKE '%add [prices.%', NOT {UNMETERED})"
ANSWERS = "FROM exchanges WHERE experiment = ? AND role <> 'replay' AND outcome IN ('ok', 'refused', 'truncated')"


def price_unknown(evidence: Evidence) -> Check | None:
    """Answers whose cost is not known (no price for their model, no tokens to multiply it with, tokens of a kind without a
    price) or not whole (a fee that the answer does not tell)."""
    cost = evidence.results.get("cost_per_request_usd")
    if cost is not None and not cost.measurable and not evidence.settings.priced:
        return None  # a log without costs, and no arm whose price could be missing
    found = rows(
        evidence.connection,
        "SELECT treatment, count(*) AS n, count(*) FILTER (cost_usd IS NULL) AS unknown "
        "FROM ev_rows WHERE answered GROUP BY treatment ORDER BY treatment",
    )
    short = [row for row in found if row["unknown"] > MAX_UNPRICED * row["n"]]
    partial = _notes(evidence, "cost_usd IS NOT NULL AND cost_note IS NOT NULL")
    part = _parts(partial)
    if not short:
        n_part, n = sum(row["n"] for row in partial), sum(row["n"] for row in found)
        if n_part > MAX_UNPRICED * n:
            return Check(
                name="price_unknown",
                status=WARN,
                detail=f"every answer has a price, {part}",
                remedy="set a price for what is missing under [prices] (web_search_per_1000, file_search_per_1000, "
                "code_interpreter_per_1000)",
            )
        return Check(name="price_unknown", status=PASS, detail="every answer has a price" + (part and f", {part}"))
    shares = [f"{'treatment' if row['treatment'] else 'control'} {percent(row['unknown'] / row['n'])}" for row in short]
    unmetered = _number(evidence, f"cost_usd IS NULL AND {UNMETERED} AND NOT {TOLD_WHY}")
    told = _notes(evidence, f"cost_usd IS NULL AND {TOLD_WHY}")
    why = "" if not unmetered else f"; {count(unmetered)} of them did not report their tokens"
    if told:
        why += f"; {_said(told)}"
    return Check(
        name="price_unknown",
        status=WARN,
        detail=f"the cost of some answers is not known ({listed(shares)}{why}); they are left out of the cost"
        + (part and f"; {part}"),
        remedy="; ".join(_remedies(evidence, unmetered=unmetered, told=told)),
    )


def _remedies(evidence: Evidence, *, unmetered: int, told: list[dict[str, Any]]) -> list[str]:
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
        remedies.append(TELL_TOKENS)
    if any("add [prices." not in row["cost_note"] for row in told):
        remedies.append(
            "where a price is what is missing, [prices] takes tiers, kinds of tokens and fees of tools, too"
        )
    return remedies


def _notes(evidence: Evidence, condition: str) -> list[dict[str, Any]]:
    """What the answers of `condition` say of their cost, the commonest first."""
    return rows(
        evidence.connection,
        f"SELECT cost_note, count(*) AS n {ANSWERS} AND {condition} GROUP BY 1 ORDER BY n DESC, 1",
        [evidence.experiment],
    )


def _number(evidence: Evidence, condition: str) -> int:
    n: int = rows(evidence.connection, f"SELECT count(*) AS n {ANSWERS} AND {condition}", [evidence.experiment])[0]["n"]
    return n


def _said(notes: list[dict[str, Any]]) -> str:
    said = "; ".join(f"{count(row['n'])}: {row['cost_note']}" for row in notes[:SHOWN])
    rest = sum(row["n"] for row in notes[SHOWN:])
    return said + (f"; {count(rest)} for other reasons" if rest else "")


def _parts(notes: list[dict[str, Any]]) -> str:
    n = sum(row["n"] for row in notes)
    return f"{count(n)} of the costs {'is' if n == 1 else 'are'} {notes[0]['cost_note']}" if n else ""
