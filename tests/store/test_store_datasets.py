"""The datasets: columns as the contract has them, whole files, each key once, views that reach nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalpipe.errors import ConfigError, DataError
from evalpipe.models import Arm, Exchange, Judgment, JudgmentStatus, Label, Role, ShownFirst, Winner
from evalpipe.store.parquet import DatasetWriter, ParquetFile, sweep_stale, verify
from evalpipe.store.query import check_expression, open_store, read_selection
from evalpipe.store.schema import BY_NAME, EXCHANGES, to_table

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


def exchange(request_id: str, arm: Arm = Arm.CONTROL, **fields: object) -> Exchange:
    defaults = {
        "role": Role.SERVED if arm is Arm.CONTROL else Role.SHADOW,
        "unit_id": None,
        "conversation_id": None,
        "started_at": NOON,
    }
    return Exchange(request_id=request_id, arm=arm, **{**defaults, **fields})  # type: ignore[arg-type]


def judgment(request_id: str, attempt: int = 1, **fields: object) -> Judgment:
    defaults = {"key": f"k-{request_id}", "judge": "j", "judge_fingerprint": "f", "judge_model": None}
    return Judgment(
        request_id=request_id,
        attempt=attempt,
        shown_first=ShownFirst.CONTROL,
        **{**defaults, **fields},  # type: ignore[arg-type]
    )


def write(data: Path, rows: list[Exchange], experiment: str = "exp") -> int:
    with DatasetWriter(data, BY_NAME["exchanges"]) as writer:
        return writer.add(experiment, to_table(EXCHANGES, rows))


# The columns of docs/files.md, in its order.
CONTRACT = {
    "exchanges": "request_id arm role unit_id conversation_id started_at provider endpoint model_requested model "
    "request response meta text tool_calls finish_reason outcome status error_type error_message latency_ms ttft_ms "
    "streamed input_tokens cached_input_tokens cache_write_tokens output_tokens reasoning_tokens cost_usd priced_at "
    "config_fingerprint simulated shadow_status shadow_reason",
    "judgments": "judgment_id key attempt request_id judge judge_fingerprint judge_model shown_first repeat status winner "
    "preference control_scores treatment_scores reasoning raw_reply input_tokens output_tokens cached_input_tokens cost_usd "
    "latency_ms judged_at batch_id simulated",
    "labels": "request_id preference source labeler labeled_at note probability stratum control_score treatment_score",
    "feedback": "request_id arm rating comment at",
}


@pytest.mark.parametrize("name", CONTRACT)
def test_columns_are_those_of_the_contract(name: str) -> None:
    wanted = CONTRACT[name].split()
    assert BY_NAME[name].schema.names[: len(wanted)] == wanted


def test_an_empty_folder_gives_empty_views_with_the_right_columns(tmp_path: Path) -> None:
    with open_store(tmp_path / "nowhere") as store:
        for name, columns in CONTRACT.items():
            relation = store.connection.sql(f"FROM {name}")
            assert relation.fetchall() == []
            assert {"experiment", *columns.split()} <= set(relation.columns)
        pairs = set(store.connection.sql("FROM pairs").columns)
        assert {"request_id", "experiment", "unit_id", "started_at", "prompt"} <= pairs
        for column in CONTRACT["exchanges"].split():
            assert {f"control_{column}", f"treatment_{column}"} <= pairs


def test_empty_and_filled_views_have_the_same_types(tmp_path: Path) -> None:
    def types() -> dict[str, list[tuple[str, str]]]:
        with open_store(tmp_path, "exp") as store:
            return {
                name: [row[:2] for row in store.connection.sql(f"DESCRIBE {name}").fetchall()]
                for name in (*CONTRACT, "pairs")
            }

    before = types()
    write(tmp_path, [exchange("r1")])
    with open_store(tmp_path, "exp") as store:
        store.write_judgments([judgment("r1", control_scores={"clarity": 7.0})])
        store.write_labels([Label(request_id="r1", preference=1.0, source="human")])
    assert types() == before


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    row = exchange(
        "r1",
        text="tab\t, NUL \0, emoji 🙂, 中文",
        cost_usd=0.1,
        latency_ms=12.5,
        input_tokens=2**40,
        simulated=True,
        started_at=datetime(2026, 7, 1, 23, 59, 59, 999999, tzinfo=UTC),
    )
    write(tmp_path, [row])
    with open_store(tmp_path) as store:
        got = store.connection.execute(
            "SELECT text, cost_usd, latency_ms, input_tokens, simulated, started_at, ttft_ms, experiment, date::VARCHAR "
            "FROM exchanges"
        ).fetchall()
    assert got == [(row.text, 0.1, 12.5, 2**40, True, row.started_at, None, "exp", "2026-07-01")]


def test_a_lone_surrogate_is_stored_as_the_replacement_character(tmp_path: Path) -> None:
    write(tmp_path, [exchange("r1", text="bad \ud83d end"), exchange("r2", text=None)])
    with open_store(tmp_path) as store:
        texts = store.connection.sql("SELECT text FROM exchanges ORDER BY request_id").fetchall()
    assert texts == [("bad � end",), (None,)]


def test_each_key_is_stored_once_however_often_it_comes(tmp_path: Path) -> None:
    rows = [exchange("r1"), exchange("r1", Arm.TREATMENT), exchange("r1")]
    assert write(tmp_path, rows) == 2
    assert write(tmp_path, [*rows, exchange("r2")]) == 1
    assert write(tmp_path, rows, experiment="other") == 2
    with open_store(tmp_path) as store:
        counts = store.connection.sql("SELECT experiment, count(*) FROM exchanges GROUP BY 1 ORDER BY 1").fetchall()
    assert counts == [("exp", 3), ("other", 2)]


def test_labels_without_a_labeler_are_one_of_their_kind_too(tmp_path: Path) -> None:
    labels = [
        Label(request_id="r1", preference=1.0, source="human"),
        Label(request_id="r1", preference=1.0, source="h2"),
    ]
    with open_store(tmp_path, "exp") as store:
        assert store.write_labels(labels) == 2
        assert store.write_labels(labels) == 0


def test_judgments_are_added_by_attempt(tmp_path: Path) -> None:
    failed = judgment("r1", 1, status=JudgmentStatus.ERROR)
    done = judgment("r1", 2, winner=Winner.TIE, preference=0.5, control_scores={"clarity": 7.0, "accuracy": 5.5})
    with open_store(tmp_path, "exp") as store:
        assert [store.write_judgments([failed]), store.write_judgments([failed, done]), store.write_judgments([])] == [
            1,
            1,
            0,
        ]
    with open_store(tmp_path, "exp") as store:
        rows = store.connection.sql(
            "SELECT judgment_id, status, winner, preference, control_scores['clarity'] FROM judgments ORDER BY attempt"
        ).fetchall()
    assert rows == [("k-r1:1", "error", None, None, None), ("k-r1:2", "ok", "tie", 0.5, 7.0)]


def test_writing_to_no_experiment_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path) as store, pytest.raises(DataError, match="one experiment"):
        store.write_labels([Label(request_id="r", preference=1.0, source="s")])


@pytest.mark.parametrize("experiment", ["2026", "1.0", "true", "a-b_c.d", "NULL", "2026-07-01"])
def test_experiment_names_stay_text(tmp_path: Path, experiment: str) -> None:
    write(tmp_path, [exchange("r1")], experiment=experiment)
    with open_store(tmp_path) as store:
        assert store.connection.sql("SELECT experiment FROM exchanges").fetchall() == [(experiment,)]
        assert store.experiments() == [experiment]


def test_a_path_with_quotes_and_globs_is_only_a_path(tmp_path: Path) -> None:
    data = tmp_path / "it's [a] folder"
    write(data, [exchange("r1")])
    with open_store(data, "exp") as store:
        assert store.connection.execute("SELECT count(*) FROM exchanges").fetchall() == [(1,)]


def test_days_are_utc_and_hold_their_own_files(tmp_path: Path) -> None:
    rows = [exchange(f"r{hour}", started_at=NOON + timedelta(hours=hour)) for hour in (0, 11, 12, 36)]
    write(tmp_path, rows)
    folders = sorted(path.parent.name for path in (tmp_path / "exchanges").glob("*/*/*.parquet"))
    assert folders == ["date=2026-07-01", "date=2026-07-02", "date=2026-07-03"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = ParquetFile(tmp_path, EXCHANGES)
    file.append(to_table(EXCHANGES, [exchange("r1")]))
    assert list(tmp_path.glob("*.parquet")) == []
    path = file.finish()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    metadata = pq.ParquetFile(path).metadata
    assert metadata.num_rows == 1
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_one_key_on_two_days_is_two_rows_in_one_run_as_in_two(tmp_path: Path) -> None:
    days = [exchange("r1", started_at=NOON + timedelta(days=n)) for n in range(2)]
    write(tmp_path / "one", days)
    for row in days:
        write(tmp_path / "two", [row])
    for data in (tmp_path / "one", tmp_path / "two"):
        with open_store(data) as store:
            assert store.connection.execute("SELECT count(*) FROM exchanges").fetchall() == [(2,)]


def test_files_of_one_moment_have_names_of_their_own(tmp_path: Path) -> None:
    files = [ParquetFile(tmp_path, EXCHANGES) for _ in range(2)]
    for file in files:
        file.append(to_table(EXCHANGES, [exchange("r1")]))
    assert len({file.finish() for file in files}) == len(list(tmp_path.iterdir())) == 2


def test_where_one_file_cannot_be_finished_none_is_left_half(tmp_path: Path) -> None:
    rows = [exchange(f"r{n}", started_at=NOON + timedelta(days=n)) for n in range(3)]
    writer = DatasetWriter(tmp_path, BY_NAME["exchanges"])
    writer.add("exp", to_table(EXCHANGES, rows))
    first, *_ = sorted(tmp_path.rglob(".*.tmp"))
    first.unlink()  # what was written cannot be read back
    with pytest.raises(DataError, match="read back"):
        writer.finish()
    assert list(tmp_path.rglob("*.tmp")) == []


def test_an_abandoned_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), DatasetWriter(tmp_path, BY_NAME["exchanges"]) as writer:
        writer.add("exp", to_table(EXCHANGES, [exchange("r1")]))
        raise RuntimeError
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_damage_is_found_by_reading_back(tmp_path: Path) -> None:
    file = ParquetFile(tmp_path, EXCHANGES)
    file.append(to_table(EXCHANGES, [exchange("r1", text="x" * 10_000)]))
    path = file.finish()
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 0xFF  # one flipped bit pattern in a page
    path.write_bytes(data)
    with pytest.raises(DataError, match="read back"):
        verify(path, EXCHANGES, 1)


def test_a_file_of_other_rows_or_columns_is_not_what_was_written(tmp_path: Path) -> None:
    file = ParquetFile(tmp_path, EXCHANGES)
    file.append(to_table(EXCHANGES, [exchange("r1"), exchange("r2")]))
    path = file.finish()
    verify(path, EXCHANGES, 2)
    with pytest.raises(DataError, match="holds 2 of the 3 rows written"):
        verify(path, EXCHANGES, 3)
    with pytest.raises(DataError, match="rows written"):
        verify(path, BY_NAME["labels"].schema, 2)


def test_unfinished_files_of_dead_processes_are_swept(tmp_path: Path) -> None:
    folder = tmp_path / "exchanges" / "experiment=exp" / "date=2026-07-01"
    folder.mkdir(parents=True)
    (folder / ".20260701T000000-abc.tmp").write_bytes(b"half a file")
    assert sweep_stale(tmp_path, BY_NAME["exchanges"]) == 0
    assert sweep_stale(tmp_path, BY_NAME["exchanges"], now=datetime.now(UTC).timestamp() + 2 * 86400) == 1


def test_an_open_store_stays_on_its_state(tmp_path: Path) -> None:
    write(tmp_path, [exchange("r1")])
    with open_store(tmp_path, "exp") as store:
        write(tmp_path, [exchange("r2")])
        assert store.connection.execute("SELECT count(*) FROM exchanges").fetchall() == [(1,)]
    with open_store(tmp_path, "exp") as store:
        assert store.connection.execute("SELECT count(*) FROM exchanges").fetchall() == [(2,)]


def test_pairs_hold_both_arms_failures_included(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            exchange("both", text="c", prompt="What?"),
            exchange("both", Arm.TREATMENT, outcome="http_error", started_at=NOON + timedelta(hours=13)),
            exchange("alone"),
            exchange("replayed"),
            exchange("replayed", Arm.TREATMENT, role=Role.REPLAY, text="t"),
            exchange("both", Arm.TREATMENT, role=Role.REPLAY, text="once more", started_at=NOON + timedelta(days=1)),
        ],
    )
    with open_store(tmp_path) as store:
        rows = store.connection.sql(
            "SELECT request_id, experiment, prompt, control_text, treatment_outcome, treatment_text, started_at "
            "FROM pairs ORDER BY request_id"
        ).fetchall()
    # The treatment's own answer goes before a replayed one, also where it failed.
    assert rows == [
        ("both", "exp", "What?", "c", "http_error", None, NOON),
        ("replayed", "exp", None, None, "ok", "t", NOON),
    ]


def test_a_narrow_question_about_pairs_reads_no_text(tmp_path: Path) -> None:
    write(tmp_path, [exchange("r1", text="long"), exchange("r1", Arm.TREATMENT)])
    with open_store(tmp_path, "exp") as store:
        plan = store.connection.sql("EXPLAIN SELECT control_latency_ms - treatment_latency_ms FROM pairs").fetchall()[
            0
        ][1]
    scans = plan.split("Read Parquet")[1:]
    assert len(scans) == 2
    for scan in scans:
        for column in ("text", "request,", "response", "prompt", "meta"):
            assert column not in scan.split("rows")[0]


@pytest.mark.parametrize(
    "statement",
    [
        "FROM read_csv('/etc/passwd')",
        "FROM read_text('/etc/hostname')",
        "FROM '{path}'",
        "COPY (SELECT 1) TO '{path}.csv'",
        "ATTACH '{path}.db'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SET allowed_paths = ['/etc/passwd']",
        "FROM glob('/etc/*')",
        "EXPORT DATABASE '{path}.out'",
    ],
)
def test_the_connection_reaches_nothing_but_the_datasets(tmp_path: Path, statement: str) -> None:
    other = tmp_path / "other.parquet"
    write(tmp_path / "data", [exchange("r1")])
    duckdb.connect().execute(f"COPY (SELECT 1 AS a) TO '{other}'")
    with open_store(tmp_path / "data", "exp") as store, pytest.raises(duckdb.Error):
        store.connection.execute(statement.format(path=other))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "other.parquet"]


def test_a_selection_is_of_requests_and_copies_follow(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            exchange("early", started_at=NOON - timedelta(days=1), model="gpt-4o"),
            exchange("early", Arm.TREATMENT, model="claude"),
            exchange("late", model="gpt-4o"),
            exchange("late", Arm.TREATMENT, model="claude", started_at=NOON + timedelta(days=3)),
            exchange("other", model="gpt-5"),
            exchange("other", Arm.TREATMENT, model="claude"),
        ],
    )
    with open_store(tmp_path, "exp") as store:
        store.write_labels([Label(request_id=name, preference=1.0, source="s") for name in ("early", "late")])
    selection = read_selection("2026-07-01", "2026-07-02T00:00:00Z", "model = 'gpt-4o'")
    with open_store(tmp_path, "exp", selection=selection) as store:
        rows = store.connection.sql("SELECT request_id, arm FROM exchanges ORDER BY ALL").fetchall()
        labels = store.connection.sql("SELECT request_id FROM labels").fetchall()
        pairs = store.connection.sql("SELECT request_id FROM pairs").fetchall()
    assert rows == [("late", "control"), ("late", "treatment")]
    assert labels == pairs == [("late",)]


def test_a_selection_does_not_open_the_files_of_days_before_it(tmp_path: Path) -> None:
    write(tmp_path, [exchange(f"r{day}", started_at=NOON + timedelta(days=day)) for day in range(10)])
    write(tmp_path, [exchange("r4", Arm.TREATMENT, started_at=NOON + timedelta(days=4, hours=12))])  # after midnight
    with open_store(tmp_path, "exp", selection=read_selection("2026-07-04", "2026-07-06")) as store:
        rows = store.connection.sql("SELECT request_id, arm FROM exchanges ORDER BY ALL").fetchall()
        days = {path.parent.name for path in store.files}
    assert rows == [("r3", "control"), ("r4", "control"), ("r4", "treatment")]
    assert min(days) == "date=2026-07-04"


def test_a_selection_on_served_treatment_rows(tmp_path: Path) -> None:
    write(tmp_path, [exchange("a"), exchange("b", Arm.TREATMENT, role=Role.SERVED)])
    with open_store(tmp_path, "exp", selection=read_selection(where="arm = 'treatment'")) as store:
        assert store.connection.sql("SELECT request_id FROM exchanges").fetchall() == [("b",)]


@pytest.mark.parametrize(
    "text",
    [
        "a > 1",
        "outcome = 'ok' AND latency_ms < 10 -- quick",
        "request_id IN (SELECT request_id FROM exchanges)",
        "a or b",
    ],
)
def test_one_expression_is_accepted(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize(
    "text",
    ["", "1) OR (2", "1; DROP TABLE x", "1 FROM exchanges", "1 UNION SELECT 2", "*", "a AS b", "a, b", "1 LIMIT 1", "(1",
     "1=1) UNION ALL SELECT * FROM (SELECT 1", "1 /* x", "1 GROUP BY ALL", "1 WHERE true", "SELECT 1", "1 -- \n; SELECT 2"],
)  # fmt: skip
def test_anything_but_one_expression_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        check_expression(text)


@pytest.mark.parametrize(("option", "arguments"), [("--since", ("yesterday",)), ("--until", (None, "2026-13-01"))])
def test_an_instant_that_is_none_is_named(option: str, arguments: tuple[str | None, ...]) -> None:
    with pytest.raises(ConfigError, match=option):
        read_selection(*arguments)


def test_an_empty_period_is_named() -> None:
    with pytest.raises(ConfigError, match="--since 2026-06-02 is not before --until 2026-06-01"):
        read_selection("2026-06-02", "2026-06-01")


def test_a_value_of_the_log_is_in_no_error(tmp_path: Path) -> None:
    write(tmp_path, [exchange("r1", text="a secret")])
    with pytest.raises(ConfigError) as refused:
        open_store(tmp_path, "exp", selection=read_selection(where="cast(text AS INTEGER) = 1"))
    assert "a value cannot be converted" in str(refused.value) and "secret" not in str(refused.value)


def test_an_unknown_column_is_named(tmp_path: Path) -> None:
    write(tmp_path, [exchange("r1")])
    with pytest.raises(ConfigError, match="colour"):
        open_store(tmp_path, "exp", selection=read_selection(where="colour = 'red'"))


@pytest.mark.parametrize("name", ["exchanges", "judgments", "labels", "feedback"])
def test_a_condition_may_ask_the_other_datasets(tmp_path: Path, name: str) -> None:
    write(tmp_path, [exchange("r1"), exchange("r2")])
    where = f"request_id = 'r2' OR request_id IN (SELECT request_id FROM {name} WHERE request_id = 'r1')"
    with open_store(tmp_path, "exp", selection=read_selection(where=where)) as store:
        found = store.connection.execute("SELECT DISTINCT request_id FROM exchanges ORDER BY 1").fetchall()
    assert found == ([("r1",), ("r2",)] if name == "exchanges" else [("r2",)])


def test_a_foreign_file_among_the_data_is_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path, [exchange("r1")])
    folder = next((tmp_path / "exchanges").glob("*/*"))
    (folder / "notes.parquet").write_text("not parquet")
    with open_store(tmp_path) as store:
        assert [path.name for path in store.damaged] == ["notes.parquet"]
        assert store.connection.execute("SELECT request_id FROM exchanges").fetchall() == [("r1",)]


def test_files_of_an_older_schema_are_read_with_nulls(tmp_path: Path) -> None:
    write(tmp_path, [exchange("r1", prompt="Q")])
    [new] = (tmp_path / "exchanges").glob("*/*/*.parquet")
    table = pq.ParquetFile(new).read().drop_columns(["prompt", "forced"])
    pq.write_table(table.set_column(0, "request_id", [["r0"]]), new.with_name("0-older.parquet"))
    with open_store(tmp_path, "exp") as store:
        rows = store.connection.sql("SELECT request_id, prompt, forced FROM exchanges ORDER BY 1").fetchall()
    assert rows == [("r0", None, None), ("r1", "Q", None)]
    assert write(tmp_path, [exchange("r0"), exchange("r2")]) == 1


def test_labels_hold_how_the_pair_was_drawn_also_beside_older_files(tmp_path: Path) -> None:
    folder = tmp_path / "labels" / "experiment=exp"
    folder.mkdir(parents=True)
    schema = BY_NAME["labels"].schema
    columns = ["request_id", "preference", "source", "labeler", "labeled_at", "note"]
    row = {"request_id": "r1", "preference": 1.0, "source": "human"}
    pq.write_table(pa.Table.from_pylist([row], schema=schema).select(columns), folder / "old.parquet")
    labels = [
        Label(request_id="r1", preference=1.0, source="human"),  # the one that is there
        Label(request_id="r1", preference=1.0, source="page", labeler="ann", probability=0.25, stratum="tie"),
    ]
    with open_store(tmp_path, "exp") as store:
        assert store.write_labels(labels) == 1
    with open_store(tmp_path, "exp") as store:
        found = store.connection.sql(
            "SELECT labeler, probability, stratum FROM labels ORDER BY ALL NULLS FIRST"
        ).fetchall()
    assert found == [(None, None, None), ("ann", 0.25, "tie")]
