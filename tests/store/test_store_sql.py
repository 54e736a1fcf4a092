"""`evalpipe sql` and the notebook: the views as a table, CSV, JSON or frames; reading only."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

import evalpipe
from evalpipe.errors import ConfigError
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.query import sql

HOSTILE = '\x1b]0;owned\x07 [bold red]x[/] \u202e, "quoted"\nnext <script>'


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("sql")
    lines = [
        {
            "pair_id": "p1",
            "prompt": "Q",
            "response_a": HOSTILE,
            "response_b": "b",
            "label": "b",
            "label_source": "human",
        },
        {
            "pair_id": "p2",
            "prompt": "Q",
            "response_a": "a",
            "response_b": "b",
            "judgements": [{"judge": "j", "verdict": "a"}],
        },
    ]
    (root / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    workspace = Workspace(root=root, data=root / "data", config=None)
    load(workspace, [root / "run.jsonl"])
    load(workspace, [root / "run.jsonl"], experiment="other")
    return workspace


def run(workspace: Workspace, query: str, form: str = "table", experiment: str | None = "run") -> str:
    out = io.StringIO()
    sql(workspace, query, experiment=experiment, form=form, out=out)
    return out.getvalue()


def test_csv_holds_every_row_as_it_was_logged(workspace: Workspace) -> None:
    out = run(
        workspace, "SELECT request_id, text, latency_ms, simulated FROM exchanges ORDER BY request_id, arm", "csv"
    )
    assert list(csv.reader(io.StringIO(out)))[:2] == [
        ["request_id", "text", "latency_ms", "simulated"],
        ["p1", HOSTILE, "", "false"],
    ]


def test_csv_on_a_terminal_carries_no_control_characters(workspace: Workspace) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    sql(workspace, "SELECT text FROM exchanges WHERE request_id = 'p1'", experiment="run", form="csv", out=out)
    assert "\x1b" not in out.getvalue()
    assert "\u202e" not in out.getvalue()


def test_json_is_one_document_of_plain_values(workspace: Workspace) -> None:
    query = """SELECT 1::BIGINT AS n, 'nan'::FLOAT AS nan, 1.5::DECIMAL(4,1) AS decimal, DATE '2026-07-01' AS day,
        NULL AS nothing, TIMESTAMPTZ '2026-07-01 12:00:00+00' AS at, [1, 2] AS list, MAP {'a': 1.0} AS map, 'x'::BLOB AS bytes,
        INTERVAL 1 DAY AS span"""
    [row] = json.loads(run(workspace, query, "json"))
    assert row == {
        "n": 1,
        "nan": None,
        "decimal": 1.5,
        "day": "2026-07-01",
        "nothing": None,
        "at": "2026-07-01T12:00:00+00:00",
        "list": [1, 2],
        "map": {"a": 1.0},
        "bytes": "78",
        "span": "1 day, 0:00:00",
    }
    assert json.loads(run(workspace, "FROM feedback", "json")) == []


def test_a_long_query_prints_no_progress_into_the_document(workspace: Workspace) -> None:
    """DuckDB's bar goes to stdout after two seconds, unless it is off."""
    out = io.StringIO()
    sql(workspace, "SELECT current_setting('enable_progress_bar') AS shown", form="json", out=out)
    assert json.loads(out.getvalue()) == [{"shown": False}]


def test_the_table_shows_text_as_text(workspace: Workspace) -> None:
    out = run(workspace, "SELECT request_id, text, finish_reason FROM exchanges ORDER BY request_id, arm")
    assert "[bold red]x[/]" in out
    assert "<script>" in out
    assert "NULL" in out
    assert not set(out) & {"\x1b", "\x07", "\u202e"}
    assert "4 rows" in out


def test_a_wide_row_is_shown_value_by_value(workspace: Workspace) -> None:
    out = run(workspace, "SELECT * FROM pairs WHERE request_id = 'p2'")
    assert "row 1" in out
    assert "control_finish_reason" in out


def test_a_table_is_a_grid_as_long_as_its_cells_have_room(workspace: Workspace) -> None:
    cells = ", ".join(f"repeat('{letter}', 40) AS {letter}" for letter in "abcdefgh")
    # Piped output is 200 characters wide; a cell folds from 24 on, so that seven such columns fit and eight do not.
    assert "row 1" in run(workspace, f"SELECT {cells}")
    assert "row 1" not in run(workspace, f"SELECT {cells.rsplit(', ', 2)[0]}")
    # Many short columns are a grid, too.
    assert "row 1" not in run(workspace, "SELECT " + ", ".join(f"{n} AS c{n}" for n in range(20)))


def test_no_rows_of_many_columns_are_their_names(workspace: Workspace) -> None:
    shown = run(workspace, "FROM exchanges WHERE false")
    assert "columns: experiment, request_id, arm, role" in shown
    assert "0 rows" in shown
    assert len(shown.splitlines()) < 12


def test_a_long_table_says_where_it_ends(workspace: Workspace) -> None:
    assert "the first 1,000 rows" in run(workspace, "FROM range(3000)")
    assert run(workspace, "FROM range(3000)", "csv").count("\n") == 3001


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("DROP VIEW exchanges", "only queries that read"),
        ("INSERT INTO exchanges VALUES (1)", "only queries that read"),
        ("COPY exchanges TO 'x.csv'", "only queries that read"),
        ("ATTACH 'x.db'", "only queries that read"),
        ("INSTALL httpfs", "only queries that read"),
        ("SET lock_configuration = false", "only queries that read"),
        ("CREATE VIEW exchanges AS SELECT 1", "only queries that read"),
        ("SELECT 1; SELECT 2", "one query"),
        ("", "empty"),
        ("SELEC 1", "cannot be read"),
        ("SELECT colour FROM exchanges", "colour"),
        ("FROM read_csv('/etc/passwd')", "does not work"),
    ],
)
def test_what_is_no_reading_query_is_one_clear_line(workspace: Workspace, query: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        run(workspace, query)
    assert "\n" not in str(error.value)


def test_an_unknown_format_is_named(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="--format xml"):
        run(workspace, "SELECT 1", "xml")


def test_without_a_configuration_all_experiments_are_there(workspace: Workspace) -> None:
    out = run(workspace, "SELECT DISTINCT experiment FROM exchanges ORDER BY 1", "csv", experiment=None)
    assert out.split() == ["experiment", "other", "run"]


def test_with_a_configuration_it_is_the_workspace_s(workspace: Workspace) -> None:
    (workspace.root / "evalpipe.toml").write_text('[experiment]\nname = "other"\n')
    try:
        configured = open_workspace(root=workspace.root)
        out = run(configured, "SELECT DISTINCT experiment FROM exchanges", "csv", experiment=None)
        notebook = evalpipe.open(workspace.root)
        assert notebook.experiments == ["other"]
    finally:
        (workspace.root / "evalpipe.toml").unlink()
    assert out.split() == ["experiment", "other"]


def test_the_notebook_gives_frames(workspace: Workspace) -> None:
    notebook = evalpipe.open(workspace.root)
    assert notebook.experiments == ["other", "run"]
    assert len(notebook.exchanges) == 8
    assert set(notebook.pairs["control_text"]) == {HOSTILE, "a"}
    assert list(notebook.judgments["winner"].unique()) == ["control"]
    assert list(notebook.labels["preference"]) == [1.0, 1.0]
    assert notebook.feedback.empty
    assert notebook.exchanges["latency_ms"].isna().all()
    assert str(notebook.exchanges["started_at"].dt.tz) == "UTC"
    counts = notebook.sql("SELECT experiment, count(*) AS n FROM pairs GROUP BY 1 ORDER BY 1")
    assert counts.to_dict("list") == {"experiment": ["other", "run"], "n": [2, 2]}
    assert "2 experiments" in repr(notebook)


def test_the_notebook_sees_new_rows_when_asked(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    notebook = evalpipe.open(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"pair_id": "p", "prompt": "Q", "response_a": "a", "response_b": "b"}\n')
    load(workspace, [tmp_path / "x.jsonl"])
    assert len(notebook.pairs) == 0
    assert len(notebook.refresh().pairs) == 1


def test_a_folder_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        evalpipe.open(tmp_path / "nowhere")
