"""An experiment in the store's columns, looked at as the report and the gate do: `analyze`, then `take_look`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from experiments import PLAIN, START, Answers, Experiment

from evalpipe.analysis.analyze import analyze
from evalpipe.analysis.record import new_record, take_look
from evalpipe.analysis.result import Analysis, MetricResult
from evalpipe.analysis.settings import JudgeInfo, Settings
from evalpipe.store.schema import BY_NAME

NAME = "e"
JUDGE = "pairwise"
DEFAULTS = Settings(judges=(JudgeInfo(name=JUDGE),))


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One look: its number from 1, the raw analysis, and what the report shows (the recorded decision marked)."""

    number: int
    raw: Analysis
    shown: Analysis


@contextmanager
def stored(experiment: Experiment) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory with the experiment's tables `all_exchanges` and `all_judgments` and the store's views."""
    connection = duckdb.connect(config={"threads": 1})
    try:
        connection.execute("SET TimeZone = 'UTC'")
        given = {
            "exchanges": _exchanges(experiment),
            "judgments": _judgments(experiment),
            "feedback": _feedback(experiment),
        }
        for name, dataset in BY_NAME.items():
            connection.register("given", given.get(name, dataset.schema.empty_table()))
            connection.execute(f"CREATE TABLE all_{name} AS SELECT *, '{NAME}' AS experiment FROM given")
            connection.unregister("given")
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM all_{name}")
        yield connection
    finally:
        connection.close()


def look_through(
    experiment: Experiment,
    *,
    n_looks: int,
    settings: Settings = DEFAULTS,
    stop: bool = False,
    details: bool = False,
    n_star: dict[str, float] | None = None,
) -> Iterator[Look]:
    """`n_looks` looks at even times over the experiment; `stop`: end with the first ship, keep or invalid.

    `n_star`: planned samples by metric, as `evalpipe plan --save` would record them.
    """
    settings = replace(settings, treatment_percent=_planned_percent(experiment, settings))
    with stored(experiment) as connection:
        record = new_record(
            experiment=NAME, mode=experiment.mode, settings=settings, now=START.isoformat(), planned=n_star
        )
        for number in range(1, n_looks + 1):
            until = START + timedelta(days=experiment.asked.days * number / n_looks)
            for name, column in (("exchanges", "started_at"), ("judgments", "judged_at"), ("feedback", '"at"')):
                connection.execute(
                    f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM all_{name} WHERE {column} < '{until.isoformat()}'"
                )
            raw = analyze(
                connection,
                experiment=NAME,
                mode=experiment.mode,
                settings=replace(settings, n_star=record.n_star),
                now=until,
                details=details,
                record=record,
            )
            shown, record = take_look(raw, record, mode=experiment.mode, settings=settings, data=str(number))
            yield Look(number=number, raw=raw, shown=shown)
            if stop and shown.decision.recommendation != "collect_more":
                return


def row(analysis: Analysis, name: str) -> MetricResult:
    """The row of a metric."""
    return next(one for one in analysis.metrics if one.name == name)


def excludes(one: MetricResult, true: float = 0.0) -> bool:
    """Whether an interval shown in the row leaves out the true difference (and, for 0, the true ratio − 1)."""
    if one.status != "ok":
        return False
    intervals = [(one.ci_low, one.ci_high)]
    if true == 0:
        intervals.append((one.relative_low, one.relative_high))
    return any((low is not None and low > true) or (high is not None and high < true) for low, high in intervals)


def _planned_percent(experiment: Experiment, settings: Settings) -> float | None:
    return 50.0 if experiment.mode == "ab" and settings.treatment_percent is None else settings.treatment_percent


def _exchanges(experiment: Experiment) -> pa.Table:
    """Rows of both arms in shadow mode, of the arm that served in ab and canary."""
    everybody = np.ones(experiment.asked.n, bool)
    if experiment.mode == "shadow":
        roles = ("imported", "imported") if experiment.imported else ("served", "shadow")
        arms = [(arm, role, everybody) for arm, role in zip(("control", "treatment"), roles, strict=True)]
    else:
        assert experiment.in_treatment is not None
        arms = [("control", "served", ~experiment.in_treatment), ("treatment", "served", experiment.in_treatment)]
    return pa.concat_tables([_arm_rows(experiment, arm, role, kept) for arm, role, kept in arms])


def _arm_rows(experiment: Experiment, arm: str, role: str, kept: np.ndarray) -> pa.Table:
    asked = experiment.asked
    found: Answers = experiment.treatment if arm == "treatment" else experiment.control
    n = int(kept.sum())
    kinds = experiment.kind[kept] if experiment.kind is not None else PLAIN
    values: dict[str, Any] = {
        "request_id": np.char.mod("r%d", np.nonzero(kept)[0]),
        "arm": arm,
        "role": role,
        "unit_id": np.char.mod("u%d", asked.user[kept]),
        "started_at": _instants(asked.seconds[kept]),
        "provider": "openai",
        "endpoint": PLAIN,
        "model_requested": f"model-{arm}",
        "model": f"model-{arm}",
        "text": np.where(found.empty[kept], "", "an answer"),
        "outcome": found.outcome[kept],
        "status": found.status[kept],
        "latency_ms": found.latency_ms[kept],
        "ttft_ms": found.ttft_ms[kept],
        "streamed": found.streamed[kept],
        "input_tokens": found.input_tokens[kept],
        "output_tokens": found.output_tokens[kept],
        "cost_usd": found.cost_usd[kept],
        "config_fingerprint": f"{arm}-1",
        "simulated": False,
        "forced": False,
        "turn": 1,
        "step": 0,
        "request_kind": kinds,
    }
    if role == "served" and experiment.mode == "shadow":
        values["shadow_status"] = "sampled"
    if experiment.percentage is not None:
        values["percentage"] = experiment.percentage[kept]
    for name, given in (experiment.columns or {}).items():
        values[name] = given[kept] if isinstance(given, np.ndarray) else given
    return _table("exchanges", values, n)


def _judgments(experiment: Experiment) -> pa.Table:
    found = experiment.verdicts
    if found is None:
        return BY_NAME["judgments"].schema.empty_table()
    ids = np.char.mod("r%d", found.position)
    tables = []
    for first, preference in (("treatment", found.treatment_first), ("control", found.control_first)):
        key = np.char.add(ids, f"-{first}")
        values: dict[str, Any] = {
            "judgment_id": np.char.add(key, ":1"),
            "key": key,
            "attempt": 1,
            "request_id": ids,
            "judge": JUDGE,
            "judge_fingerprint": "f1",
            "judge_model": "a-judge",
            "shown_first": first,
            "repeat": 0,
            "status": "ok",
            "winner": np.where(preference == 0.5, "tie", np.where(preference > 0.5, "treatment", "control")),
            "preference": preference,
            "cost_usd": 0.0004,
            "judged_at": _instants(experiment.asked.seconds[found.position]),
            "simulated": False,
        }
        tables.append(_table("judgments", values, len(ids)))
    return pa.concat_tables(tables)


def _feedback(experiment: Experiment) -> pa.Table:
    if experiment.ratings is None:
        return BY_NAME["feedback"].schema.empty_table()
    rated = np.nonzero(~np.isnan(experiment.ratings))[0]
    treated = experiment.in_treatment if experiment.in_treatment is not None else np.zeros(experiment.asked.n, bool)
    values = {
        "request_id": np.char.mod("r%d", rated),
        "arm": np.where(treated[rated], "treatment", "control"),
        "rating": experiment.ratings[rated],
        "at": _instants(experiment.asked.seconds[rated]),
    }
    return _table("feedback", values, len(rated))


def _table(dataset: str, values: dict[str, Any], n: int) -> pa.Table:
    """A table of the dataset's schema; NaN and columns that are not given are null, one value stands for all rows."""
    schema = pa.schema([pa.field(field.name, field.type) for field in BY_NAME[dataset].schema])
    unknown = set(values) - set(schema.names)
    assert not unknown, f"{dataset} has no columns {unknown}"
    return pa.Table.from_arrays([_column(values.get(field.name), field.type, n) for field in schema], schema=schema)


def _column(given: Any, kind: pa.DataType, n: int) -> pa.Array:
    if given is None:
        return pa.nulls(n, kind)
    if not isinstance(given, np.ndarray):
        return pa.repeat(pa.scalar(given, kind), n)
    if given.dtype.kind == "f":
        return pa.array(given, pa.float64(), from_pandas=True).cast(kind)
    return pa.array(given, type=kind)


def _instants(seconds: np.ndarray) -> np.ndarray:
    start = np.datetime64(START.replace(tzinfo=None), "us")
    return np.asarray(start + np.rint(seconds * 1e6).astype("timedelta64[us]"))
