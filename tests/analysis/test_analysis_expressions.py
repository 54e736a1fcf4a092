"""SQL that users write may compute over a row, and nothing else."""

from __future__ import annotations

import duckdb
import pandas as pd
import pytest
from experiment_builders import both_arms, metric, run

from evalpipe.analysis.settings import CustomMetric, MetricRule
from evalpipe.analysis.sql import check_expression
from evalpipe.errors import ConfigError

ALLOWED = [
    "length(text)",
    "latency_ms > 1000 AND model LIKE 'gpt%'",
    "CASE WHEN text IS NULL THEN 0 ELSE 1 END",
    "list_sum(list_transform([1, 2], lambda x: x + 1))",
    "regexp_matches(text, '(?i)sorry') -- an apology",
    "date_part('hour', started_at)",
]
REFUSED = [
    ("(SELECT max(latency_ms) FROM exchanges)", "subqueries"),
    ("EXISTS (SELECT 1)", "subqueries"),
    ("count(*)", "aggregate"),
    ("sum(latency_ms) OVER ()", "windows"),
    ("*", "subqueries, windows and *"),
    ("getenv('HOME')", "looks outside the row"),
    ("random()", "looks outside the row"),
    ("now()", "looks outside the row"),
    ("1), (2", "nothing more"),
    ("1) FROM exchanges; DROP TABLE exchanges; SELECT (1", "not valid SQL"),
    ("1) FROM exchanges WHERE (true", "not valid SQL"),
    ("1) FROM read_csv('/etc/passwd') -- ", "not valid SQL"),
    ("lenght(text)", "lenght"),
    ("no_such_column", "no_such_column"),
    ("text +", "not valid SQL"),
    ("", "is empty"),
]


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(
        "CREATE TABLE exchanges (text VARCHAR, latency_ms DOUBLE, model VARCHAR, started_at TIMESTAMPTZ)"
    )
    return connection


@pytest.mark.parametrize("expression", ALLOWED)
def test_a_plain_expression_is_fine(connection: duckdb.DuckDBPyConnection, expression: str) -> None:
    check_expression(connection, expression, name="metrics.m.sql")


@pytest.mark.parametrize(("expression", "why"), REFUSED)
def test_anything_else_is_one_line(connection: duckdb.DuckDBPyConnection, expression: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_expression(connection, expression, name="metrics.m.sql")
    assert why in str(error.value)
    assert "metrics.m.sql" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_python_function_is_a_metric_too(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text("def words(frame):\n    return frame['text'].str.split().str.len()\n")  # type: ignore[operator]
    monkeypatch.syspath_prepend(str(tmp_path))
    own = (CustomMetric(name="words", function="own_metrics:words"),)
    found = metric(run(both_arms(30, treatment={"text": "one two three"}), custom=own), "words")
    assert (found.control.value, found.treatment.value) == (2.0, 3.0)


@pytest.mark.parametrize("named", ["nowhere", "no_such_module:f", "math:no_such"])
def test_a_function_that_is_not_there_is_one_line(named: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.m\.function"):
        run(both_arms(5), custom=(CustomMetric(name="m", function=named),))


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="evalpipe's own"):
        run(both_arms(5), custom=(CustomMetric(name="error_rate", sql="1"),))


def test_a_metric_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"decision\.metrics\.win_rat is no metric; did you mean 'win_rate'"):
        run(both_arms(5), metrics={"win_rat": MetricRule(margin=0.1)})
    with pytest.raises(ConfigError, match=r"decision\.primary: words is no metric"):
        run(both_arms(5), primary=("words",))


def test_segments_of_ones_own() -> None:
    exchanges = both_arms(200, treatment={"outcome": ["http_error"] * 60 + ["ok"] * 140})
    exchanges["meta"] = [("old" if i % 200 < 60 else "new") for i in range(400)]
    found = run(exchanges, segments={"client": "meta"}, details=True).segments
    worst = found[0]
    assert (worst.dimension, worst.value, worst.metric, worst.discovered) == ("client", "old", "error_rate", True)
    assert isinstance(exchanges, pd.DataFrame)
