"""Small experiments made to order: exchanges and verdicts in an in-memory DuckDB with the store's columns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from evalpipe.analysis.analyze import analyze
from evalpipe.analysis.result import Analysis
from evalpipe.analysis.settings import JudgeInfo, Settings
from evalpipe.store.schema import BY_NAME

START = datetime(2026, 6, 1, tzinfo=UTC)
NOW = datetime(2026, 7, 1, tzinfo=UTC)
EXPERIMENT = "e"


def frame(
    n: int, *, arm: str, seed: int, n_users: int | None = None, mode: str = "shadow", **changes: Any
) -> pd.DataFrame:
    """`n` exchanges of one arm, all ok, with users u0, u1, … in turn; `changes` set columns (values or arrays)."""
    rng = np.random.default_rng([seed, arm == "treatment"])
    users = n_users or n
    latency = np.exp(rng.normal(6.5, 0.4, n))
    table = pd.DataFrame(
        {
            "request_id": [f"r{i}" for i in range(n)],
            "arm": arm,
            "role": "served" if arm == "control" or mode != "shadow" else "shadow",
            "unit_id": [f"u{i % users}" for i in range(n)],
            "conversation_id": [f"c{i}" for i in range(n)],
            "started_at": [START + timedelta(minutes=i) for i in range(n)],
            "provider": "openai" if arm == "control" else "anthropic",
            "endpoint": "chat.completions",
            "model": "gpt-4o" if arm == "control" else "claude-opus-4-8",
            "request": '{"messages": [{"role": "user", "content": "hello"}]}',
            "prompt": "hello",
            "text": "an answer",
            "outcome": "ok",
            "latency_ms": latency,
            "streamed": False,
            "input_tokens": 100,
            "output_tokens": rng.integers(80, 120, n),
            "cost_usd": rng.uniform(0.0009, 0.0011, n),
            "simulated": False,
            "shadow_status": "sampled" if arm == "control" and mode == "shadow" else None,
            "percentage": None,
            "forced": False,
        }
    )
    for name, value in changes.items():
        table[name] = value
    failed = ~table["outcome"].isin(["ok", "refused", "truncated"])
    table.loc[failed, ["output_tokens", "cost_usd"]] = None
    return table


def failing(n: int, share: float, *, seed: int, outcome: str = "http_error") -> np.ndarray[Any, Any]:
    """Outcomes of `n` exchanges, `share` of them failed, chosen by seed."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < share, outcome, "ok")


def verdicts(
    preference: np.ndarray[Any, Any] | list[float],
    *,
    other_order: np.ndarray[Any, Any] | list[float] | None = None,
    **changes: Any,
) -> pd.DataFrame:
    """Both orders of a judge for requests r0, r1, …: with the treatment shown first `preference`, second `other_order`."""
    first = np.asarray(preference, float)
    second = first if other_order is None else np.asarray(other_order, float)
    parts = []
    for shown_first, values in (("treatment", first), ("control", second)):
        table = pd.DataFrame({"request_id": [f"r{i}" for i in range(len(values))], "preference": values})
        table["shown_first"] = shown_first
        parts.append(table)
    table = pd.concat(parts, ignore_index=True)
    table["key"] = [f"{row.request_id}-{row.shown_first}" for row in table.itertuples()]
    table["judgment_id"] = table["key"] + ":1"
    table["attempt"], table["repeat"] = 1, 0
    table["judge"], table["judge_fingerprint"], table["judge_model"] = "pairwise", "f1", "some-judge"
    table["status"], table["simulated"] = "ok", False
    table["winner"] = np.select([table["preference"] > 0.5, table["preference"] < 0.5], ["treatment", "control"], "tie")
    table["judged_at"] = NOW
    for name, value in changes.items():
        table[name] = value
    return table


def draw(n: int, p_win: float, *, seed: int, p_tie: float = 0.2) -> np.ndarray[Any, Any]:
    """`n` preferences 0, 1/2, 1 with mean `p_win`."""
    rng = np.random.default_rng(seed)
    decisive = np.where(rng.random(n) < (p_win - p_tie / 2) / (1 - p_tie), 1.0, 0.0)
    return np.where(rng.random(n) < p_tie, 0.5, decisive)


def connect(**tables: pd.DataFrame | None) -> duckdb.DuckDBPyConnection:
    """A connection with the store's datasets as tables; what is not given is empty, missing columns are NULL."""
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET TimeZone = 'UTC'")
    for name, dataset in BY_NAME.items():
        given = tables.get(name)
        schema = dataset.schema
        if given is None:
            arrow = schema.empty_table()
        else:
            columns = [
                pa.array(given[field.name], field.type, from_pandas=True)
                if field.name in given
                else pa.nulls(len(given), field.type)
                for field in schema
            ]
            nullable = pa.schema([pa.field(field.name, field.type) for field in schema])
            arrow = pa.Table.from_arrays(columns, schema=nullable)
        connection.register("given", arrow)
        connection.execute(f"CREATE TABLE {name} AS SELECT *, '{EXPERIMENT}' AS experiment FROM given")
        connection.unregister("given")
    return connection


def run(
    exchanges: pd.DataFrame,
    judgments: pd.DataFrame | None = None,
    *,
    labels: pd.DataFrame | None = None,
    feedback: pd.DataFrame | None = None,
    mode: str = "shadow",
    now: datetime = NOW,
    details: bool = False,
    label_mode: str = "auto",
    **settings: Any,
) -> Analysis:
    """The analysis of an experiment; by default one fixed look, judged in both orders by "pairwise", without `details`
    (segments, series, curves, examples)."""
    settings = {"looks": "fixed", "judges": (JudgeInfo(name="pairwise"),), "labels": label_mode, **settings}
    with connect(exchanges=exchanges, judgments=judgments, labels=labels, feedback=feedback) as connection:
        return analyze(
            connection, experiment=EXPERIMENT, mode=mode, settings=Settings(**settings), now=now, details=details
        )


def both_arms(
    n: int, *, seed: int = 1, n_users: int | None = None, control: Any = None, treatment: Any = None
) -> pd.DataFrame:
    """A shadow experiment of `n` pairs; `control` and `treatment` are column changes."""
    return pd.concat(
        [
            frame(n, arm="control", seed=seed, n_users=n_users, **(control or {})),
            frame(n, arm="treatment", seed=seed, n_users=n_users, **(treatment or {})),
        ],
        ignore_index=True,
    )


def metric(analysis: Analysis, name: str) -> Any:
    return next(one for one in analysis.metrics if one.name == name)


def check(analysis: Analysis, name: str) -> Any:
    return next(one for one in analysis.checks if one.name == name)
