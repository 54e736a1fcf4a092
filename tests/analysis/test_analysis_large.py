"""A large experiment is read a part of its files at a time, and its tables are on disk; or workers read and sum the parts: the
numbers are the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from experiment_builders import EXPERIMENT, NOW, both_arms, connect, failing, frame
from inline_workers import InlineWorkers, inline

from evalpipe.analysis.analyze import analyze
from evalpipe.analysis.prepare import prepare_rows
from evalpipe.analysis.result import Analysis
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.sorted_values import SortedValues, TimeBins
from evalpipe.analysis.sql import Connection
from evalpipe.store.query import Selection, Store, open_store
from evalpipe.store.schema import BY_NAME, conformed


def written(data: Path, parts: Sequence[pd.DataFrame], *, leave_out: Sequence[str] = (), n_older: int = 1) -> Path:
    """The parts as files of one day each, the last `n_older` of them without the columns `leave_out`, as an older version wrote
    them."""
    for number, part in enumerate(parts):
        folder = data / "exchanges" / f"experiment={EXPERIMENT}" / f"date=2026-06-0{number + 1}"
        folder.mkdir(parents=True)
        with connect(exchanges=part) as connection:
            table: pa.Table = connection.sql("SELECT * EXCLUDE (experiment) FROM exchanges").to_arrow_table()
        table = conformed(table, BY_NAME["exchanges"])
        columns = [name for name in table.column_names if number < len(parts) - n_older or name not in leave_out]
        pq.write_table(table.select(columns), folder / f"part-{number}.parquet")
    return data


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalpipe.store.query.LARGE", 1)
    monkeypatch.setattr("evalpipe.store.query.LARGE_BYTES", 1)
    monkeypatch.setattr("evalpipe.analysis.prepare.PART_ROWS", 1)
    monkeypatch.setattr("evalpipe.analysis.sorted_values.READ_AT_ONCE", 50)
    monkeypatch.setattr("evalpipe.analysis.sorted_values._BLOCK", 30)
    monkeypatch.setattr("evalpipe.analysis.intervals.USERS_AT_ONCE", 20)
    monkeypatch.setattr("evalpipe.analysis.intervals.READ_WHOLE", 10)


@pytest.fixture(params=["", "workers"])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether workers read the files, one at a time."""
    monkeypatch.setattr("evalpipe.cluster.analysis.PART_ROWS", 1)
    return str(request.param)


def opened(data: Path) -> Store:
    return open_store(data, EXPERIMENT, compared=True, analysis=True)


def analysed(data: Path, *, mode: str = "shadow", on_disk: bool) -> Analysis:
    with opened(data) as store:
        assert (store.scratch is not None) == on_disk
        found = analyze(
            store.connection, experiment=EXPERIMENT, mode=mode, settings=Settings(looks="fixed"), now=NOW, details=True
        )
    assert store.scratch is None or not store.scratch.exists()
    return found


def by_workers(data: Path, *, mode: str = "shadow", selection: Selection | None = None) -> tuple[Analysis, list[str]]:
    """The analysis whose files are read, one at a time, by workers; and their tasks."""
    with open_store(data, EXPERIMENT, selection=selection, compared=True, analysis=True) as store:
        connection = inline(store)
        found = analyze(
            connection, experiment=EXPERIMENT, mode=mode, settings=Settings(looks="fixed"), now=NOW, details=True
        )
        assert isinstance(connection.workers, InlineWorkers)
        return found, connection.workers.tasks


def through(store: Store, workers: str) -> Connection:
    return inline(store) if workers else store.connection


def cut(exchanges: pd.DataFrame, at: Sequence[int]) -> list[pd.DataFrame]:
    return [exchanges.iloc[low:high] for low, high in zip([0, *at], [*at, len(exchanges)], strict=True)]


def shuffled(n: int) -> pd.DataFrame:
    """Both arms in no order: a request and its shadow request are in different files as a rule."""
    place = {"turn": np.arange(n) % 3 + 1, "step": 0, "conversation_id": [f"c{i // 3}" for i in range(n)]}
    place["unit_id"] = [f"u{i // 6}" for i in range(n)]
    exchanges = both_arms(
        n,
        control={**place, "outcome": failing(n, 0.05, seed=1), "streamed": np.arange(n) % 2 == 0, "ttft_ms": 90.0},
        treatment={**place, "outcome": failing(n, 0.1, seed=2), "streamed": np.arange(n) % 2 == 0, "ttft_ms": 80.0},
    )
    not_copied = (exchanges.arm == "treatment") & (exchanges.request_id.isin([f"r{i}" for i in range(20)]))
    return exchanges[~not_copied].sample(frac=1, random_state=3)


def same(found: Any, expected: Any) -> bool:
    """Equal, numbers to the last digits but a few."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(same(a, b) for a, b in zip(found, expected, strict=True))
    if isinstance(expected, float):
        return bool(found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True))
    return bool(found == expected)


def in_four_files(data: Path, mode: str) -> Path:
    """300 requests of both arms, the last file without some columns."""
    exchanges = shuffled(300)
    if mode == "ab":
        exchanges = pd.concat([frame(300, arm=arm, seed=1, mode="ab") for arm in ("control", "treatment")])
        exchanges["request_id"] += exchanges["arm"]
        exchanges["unit_id"] += exchanges["arm"]
    return written(data, cut(exchanges, [150, 151, 400]), leave_out=["cost_note", "request_kind", "answer_empty"])


def as_builtins(analysis: Analysis) -> dict[str, Any]:
    return msgspec.to_builtins(analysis)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["shadow", "ab"])
def test_the_analysis_is_the_same_by_parts_and_on_disk(
    request: pytest.FixtureRequest, tmp_path: Path, mode: str
) -> None:
    data = in_four_files(tmp_path, mode)
    expected = analysed(data, mode=mode, on_disk=False)
    request.getfixturevalue("large")
    found = analysed(data, mode=mode, on_disk=True)
    assert same(as_builtins(found), as_builtins(expected))
    assert found.latency and found.series and found.segments


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("workers", ["workers"], indirect=True)
@pytest.mark.parametrize(
    ("mode", "selection"),
    [
        ("shadow", None),
        ("ab", None),
        ("shadow", Selection(where="try_cast(request_id[2:] AS INT) % 3 > 0")),
        ("shadow", Selection(since=NOW - pd.Timedelta(days=400), where="streamed")),
    ],
)
def test_the_analysis_is_the_same_by_workers(tmp_path: Path, mode: str, selection: Selection | None) -> None:
    data = in_four_files(tmp_path, mode)
    with open_store(data, EXPERIMENT, selection=selection, compared=True, analysis=True) as store:
        expected = analyze(
            store.connection, experiment=EXPERIMENT, mode=mode, settings=Settings(looks="fixed"), now=NOW, details=True
        )
    found, tasks = by_workers(data, mode=mode, selection=selection)
    assert same(as_builtins(found), as_builtins(expected))
    assert found.metrics[0].n > 50
    assert tasks.count("over_files") >= 4 * 4
    assert ("over_tables" in tasks) == (mode == "shadow")


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("copies", [1, 40])
@pytest.mark.parametrize("arm", ["control", "treatment"])
def test_a_line_repeated_in_another_file_is_found(tmp_path: Path, arm: str, copies: int, workers: str) -> None:
    exchanges = shuffled(60)
    again = exchanges[(exchanges.arm == arm) & (exchanges.request_id == "r33")]
    data = written(tmp_path, [*cut(exchanges, [50]), pd.concat([again] * copies)])
    with opened(data) as store:
        found = prepare_rows(through(store, workers), experiment=EXPERIMENT, mode="shadow")
        n = store.connection.execute("SELECT count(*), count(DISTINCT id) FROM ev_ids").fetchall()[0]
    assert (found.n_duplicates, found.n_rows, n) == (copies, 80, (60, 60))


@pytest.mark.usefixtures("large")
def test_a_request_counts_by_its_own_instant_in_whatever_file_its_copy_is(tmp_path: Path, workers: str) -> None:
    """r0 … r9, one a minute, each copied half a minute later: before 4 min 15 s there are r0 … r4, the copy of r4 after it."""
    exchanges = both_arms(10)
    copied = exchanges.arm == "treatment"
    exchanges.loc[copied, "started_at"] += pd.Timedelta(seconds=30)
    data = written(tmp_path, [exchanges[copied], exchanges[~copied]])
    until_us = int(exchanges.started_at.min().timestamp() * 1e6) + 255_000_000
    with opened(data) as store:
        found = prepare_rows(through(store, workers), experiment=EXPERIMENT, mode="shadow", until_us=until_us)
        n = store.connection.execute("SELECT count(*) FROM ev_ids WHERE control_attempted AND treatment_attempted")
        assert (found.n_rows, n.fetchall()) == (10, [(5,)])


@pytest.mark.parametrize("on_disk", [False, True])
def test_empty_answers_are_counted_in_old_and_new_files(
    request: pytest.FixtureRequest, tmp_path: Path, on_disk: bool
) -> None:
    """Of the treatment's 60 answers every seventh has nothing to read: 0, 7, … 56 are nine."""
    if on_disk:
        request.getfixturevalue("large")
    text = ["\u3000\n" if i % 7 == 0 else "an answer" for i in range(60)]
    parts = cut(both_arms(60, treatment={"text": text}).sample(frac=1, random_state=1), [40, 80])
    found = [
        analysed(written(tmp_path / str(n), parts, leave_out=["answer_empty"], n_older=n), on_disk=on_disk)
        for n in range(4)
    ]
    assert {next(one for one in each.metrics if one.name == "empty_rate").treatment.value for each in found} == {9 / 60}
    assert all(same(as_builtins(each), as_builtins(found[0])) for each in found)


@pytest.mark.usefixtures("large")
def test_a_log_without_texts_has_no_empty_answers(tmp_path: Path) -> None:
    data = written(tmp_path, cut(both_arms(40, control={"text": None}, treatment={"text": None}), [30]))
    with opened(data) as store:
        found = prepare_rows(store.connection, experiment=EXPERIMENT, mode="shadow")
        n = store.connection.execute("SELECT count(*) FROM ev_pairs WHERE in_nonempty").fetchall()
    assert (found.has_texts, n) == (False, [(40,)])


@pytest.mark.parametrize("at_once", [10, 1000])
def test_quantiles_are_those_of_the_database(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """The database's own `quantile_disc` is the second implementation."""
    monkeypatch.setattr("evalpipe.analysis.sorted_values.READ_AT_ONCE", at_once)
    shares = [0.0, 0.001, 0.2, 0.25, 1 / 3, 0.5, 0.7, 0.99, 0.995, 1.0]
    with connect(exchanges=both_arms(40)) as connection:
        n = prepare_rows(connection, experiment=EXPERIMENT, mode="shadow").n_rows
        for paired, condition in ((True, "has_latency"), (True, "false"), (False, "has_latency AND latency_ms < 700")):
            values = SortedValues(connection, n_rows=n, paired=paired)
            for arm in (False, True):
                found = values.quantiles("latency_ms", condition, arm=arm, shares=shares)
                expected = connection.execute(
                    f"SELECT quantile_disc(latency_ms, {shares}) FROM ev_rows WHERE treatment = {arm} AND {condition}"
                ).fetchall()[0][0]
                assert found == (expected or [None] * len(shares))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("at_once", [10, 1000])
def test_medians_over_time_are_those_of_the_database(
    monkeypatch: pytest.MonkeyPatch, at_once: int, paired: bool
) -> None:
    monkeypatch.setattr("evalpipe.analysis.sorted_values.READ_AT_ONCE", at_once)
    monkeypatch.setattr("evalpipe.analysis.sorted_values._BLOCK", at_once)
    with connect(exchanges=both_arms(40)) as connection:
        prepared = prepare_rows(connection, experiment=EXPERIMENT, mode="shadow")
        assert prepared.first_us is not None and prepared.last_us is not None
        bins = TimeBins(first_us=prepared.first_us, width_us=(prepared.last_us - prepared.first_us) // 7 + 1)
        values = SortedValues(connection, n_rows=prepared.n_rows, paired=paired, bins={"latency_ms": bins})
        for arm in (False, True):
            found = values.medians("latency_ms", "has_latency", arm=arm)
            expected = connection.execute(
                f"SELECT (at_us - {bins.first_us}) // {bins.width_us}, quantile_disc(latency_ms, 0.5), count(*) FROM ev_rows "
                f"WHERE treatment = {arm} AND has_latency GROUP BY 1 ORDER BY 1"
            ).fetchall()
            assert [(number, one.value, one.n) for number, one in sorted(found.items())] == expected
            assert len(expected) > 1
