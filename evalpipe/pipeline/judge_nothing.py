"""What `evalpipe judge` reports where there is nothing to judge: what was loaded, and why none of it can be."""

from __future__ import annotations

from evalpipe.core.judgment import JudgeMode
from evalpipe.core.setup_fault import provider_words, shown_failure
from evalpipe.core.traffic import ANSWERED
from evalpipe.store.datasets import Store

_NEEDS_BOTH = "a log with one answer per request needs a pointwise judge"


def nothing_to_judge(store: Store, mode: JudgeMode) -> str:
    """Why the open store holds no pair (or, for a pointwise judge, no answer) to judge, with the commonest failure."""
    what = "pairs" if mode is JudgeMode.PAIRWISE else "answers"
    rows = store.connection.execute(
        "SELECT arm, count(DISTINCT request_id), count(*) FILTER (list_contains($1::VARCHAR[], outcome)) FROM exchanges "
        "WHERE role <> 'replay' GROUP BY arm",
        [sorted(ANSWERED)],
    ).fetchall()
    n_requests = store.connection.execute(
        "SELECT count(DISTINCT request_id) FROM exchanges WHERE role <> 'replay'"
    ).fetchall()[0][0]
    start = f"{store.experiment}: no {what} to judge"
    if not n_requests:
        return f"{start}: no requests are loaded; load a log first with `evalpipe load`"
    loaded = f"{start}: {n_requests:,} request{' is' if n_requests == 1 else 's are'} loaded, but"
    silent = [arm for arm, _, n_answered in sorted(rows) if not n_answered]
    if silent:
        arms = [f"the {arm} answered none ({_commonest_failure(store, arm)})" for arm in silent]
        return f"{loaded} {', and '.join(arms)}"
    if len(rows) == 1:
        fate = _commonest_fate(store)
        if fate is not None:
            return f"{loaded} no copy of them was sent ({fate})"
        return f"{loaded} only the {rows[0][0]}'s answers are there ({_NEEDS_BOTH})"
    return f"{loaded} none was answered by both arms ({_NEEDS_BOTH})"


def _commonest_fate(store: Store) -> str | None:
    """Why copies were not sent; None where none was due."""
    found = store.connection.execute(
        "SELECT count(*) AS n, shadow_status, shadow_reason FROM exchanges WHERE shadow_status IS NOT NULL "
        "GROUP BY shadow_status, shadow_reason ORDER BY n DESC, shadow_status, shadow_reason LIMIT 1"
    ).fetchall()
    if not found:
        return None
    n, status, reason = found[0]
    return f"{n:,} × {status}: {provider_words(reason)}" if reason else f"{n:,} × {status}"


def _commonest_failure(store: Store, arm: str) -> str:
    n, outcome, status, code, message = store.connection.execute(
        "SELECT count(*) AS n, outcome, status, error_type, arg_min(error_message, started_at) FROM exchanges "
        "WHERE role <> 'replay' AND arm = $1 GROUP BY outcome, status, error_type "
        "ORDER BY n DESC, outcome, status, error_type LIMIT 1",
        [arm],
    ).fetchall()[0]
    return f"{n:,} × {shown_failure(status, code or outcome, message)}"
