"""Importing `pairs` files: what the contract says of each key, and figures others published from the same data."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.errors import ConfigError, DataError
from evalpipe.store.importers import pairs
from evalpipe.store.importers.base import BrokenLineError
from evalpipe.store.load_history import loads_in, unload
from evalpipe.store.query import Store, open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace

PAIR: dict[str, Any] = {"pair_id": "p1", "prompt": "Which?", "response_a": "This.", "response_b": "That."}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path, data=tmp_path / "data", config=None)


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def rows(workspace: Workspace, query: str) -> list[tuple[Any, ...]]:
    with open_store(workspace.data) as store:
        return store.connection.sql(query).fetchall()


def test_a_pair_becomes_one_exchange_per_arm(workspace: Workspace) -> None:
    path = write_lines(
        workspace.root / "my run.jsonl", {**PAIR, "model_a": "old", "model_b": "new", "meta": {"x": 1}, "unit_id": "u"}
    )
    summary = load(workspace, [path])
    assert (summary.n_exchanges, summary.experiments) == (2, {"my-run"})
    got = rows(
        workspace,
        "SELECT request_id, arm, role, model, text, outcome, status, meta, unit_id, prompt, latency_ms, cost_usd, simulated "
        "FROM exchanges ORDER BY arm",
    )
    common = ("ok", None, '{"x": 1}', "u", "Which?", None, None, False)
    assert got == [
        ("p1", "control", "imported", "old", "This.", *common),
        ("p1", "treatment", "imported", "new", "That.", *common),
    ]


def test_labels_are_preferences_for_treatment(workspace: Workspace) -> None:
    lines = [
        {**PAIR, "pair_id": str(label), "label": label, "label_source": "human"} for label in ("a", "b", "tie", None)
    ]
    load(workspace, [write_lines(workspace.root / "x.jsonl", *lines)])
    got = rows(workspace, "SELECT request_id, preference, source FROM labels ORDER BY 1")
    assert got == [("a", 0.0, "human"), ("b", 1.0, "human"), ("tie", 0.5, "human")]


def test_judgements_are_told_in_terms_of_arms(workspace: Workspace) -> None:
    judgements = [
        {"judge": "j", "method": "m", "order": "ab", "verdict": "a"},
        {"judge": "j", "method": "m", "order": "ba", "verdict": "b", "raw": "B!", "price_usd": 0.5, "time_s": 1.5},
        {"judge": "j", "method": "m", "order": "ab", "verdict": "tie"},
        {"judge": "j", "method": "m", "order": "ba", "verdict": None, "raw": "?"},
        {"judge": "solo", "order": "single", "verdict": "b", "preference": 0.9, "score_a": 3, "score_b": 4.5},
        {"judge": "solo", "verdict": None, "preference": 0.25},
    ]
    load(workspace, [write_lines(workspace.root / "x.jsonl", {**PAIR, "judgements": judgements})])
    got = rows(
        workspace,
        "SELECT judge, shown_first, repeat, status, winner, preference, raw_reply, cost_usd, latency_ms, "
        "control_scores['score'], treatment_scores['score'], judge_model FROM judgments ORDER BY judge, shown_first, repeat",
    )
    none = (None, None, None, None, None)
    assert got == [
        ("j/m", "control", 0, "ok", "control", 0.0, *none, "j"),
        ("j/m", "control", 1, "ok", "tie", 0.5, *none, "j"),
        ("j/m", "treatment", 0, "ok", "treatment", 1.0, "B!", 0.5, 1500.0, None, None, "j"),
        ("j/m", "treatment", 1, "unparseable", None, None, "?", None, None, None, None, "j"),
        ("solo", "neither", 0, "ok", "treatment", 0.9, None, None, None, 3.0, 4.5, "solo"),
        ("solo", "unknown", 0, "ok", "control", 0.25, *none, "solo"),
    ]


def test_loading_twice_adds_nothing_and_more_lines_add_themselves(workspace: Workspace) -> None:
    entry = {"judge": "j", "order": "ab", "verdict": "a"}
    line = {**PAIR, "label": "a", "judgements": [entry]}
    path = write_lines(workspace.root / "x.jsonl", line)
    load(workspace, [path])
    again = load(workspace, [path])
    assert (again.n_exchanges, again.n_judgments, again.n_labels, again.n_known) == (0, 0, 0, 4)
    more = load(workspace, [write_lines(path, line, {**line, "pair_id": "p2"})])
    assert (more.n_exchanges, more.n_judgments, more.n_labels) == (2, 1, 1)


def test_a_broken_line_is_put_aside_and_stops_nothing(workspace: Workspace) -> None:
    broken = [
        b"{not json",
        b'{"pair_id": "x"}',
        b"\xff\xfe not utf-8",
        json.dumps({**PAIR, "judgements": [{"order": "ab"}]}).encode(),
        json.dumps({**PAIR, "label": "left"}).encode(),
        b"[1, 2]",
        b"[" * 100_000,
        b'{"pair_id": "big", "prompt": "", "response_a": "", "response_b": "", "judgements": [{"judge": "j", "preference": 7}]}',
    ]
    path = write_lines(workspace.root / "x.jsonl", PAIR, *broken, b"", {**PAIR, "pair_id": "last"})
    summary = load(workspace, [path], format_name="pairs")
    assert (summary.n_exchanges, summary.n_rejected) == (4, len(broken))
    entries = [json.loads(line) for line in Path(summary.rejected[0]).read_text().splitlines()]
    assert [entry["line"] for entry in entries] == list(range(2, 2 + len(broken)))
    assert {entry["file"] for entry in entries} == {str(path)}
    reasons = [entry["reason"] for entry in entries]
    assert reasons[0].startswith("not JSON")
    assert reasons[1] == "prompt is neither text nor a list of messages"
    assert reasons[3] == "judgements[0].judge is missing"
    assert "label = 'left'" in reasons[4]
    assert entries[2]["base64"] and entries[0]["text"] == "{not json"
    load(workspace, [path], format_name="pairs")
    assert len(Path(summary.rejected[0]).read_text().splitlines()) == len(broken)


def test_a_repaired_file_leaves_no_rejects(workspace: Workspace) -> None:
    path = write_lines(workspace.root / "x.jsonl", PAIR, b"oops")
    rejected = Path(load(workspace, [path]).rejected[0])
    load(workspace, [write_lines(path, PAIR)])
    assert not rejected.exists()


def test_untrusted_text_comes_through(workspace: Workspace) -> None:
    hostile = "<script>alert(1)</script> \x1b[31m \u202e \0 '); DROP TABLE x; --"
    lone = b'{"pair_id":"s","prompt":"\\ud800","response_a":"a\\udfffb","response_b":""}'
    big = "x" * 10_000_000
    path = write_lines(
        workspace.root / "x.jsonl",
        {**PAIR, "response_a": hostile, "response_b": True},
        lone,
        {**PAIR, "pair_id": "big", "response_a": big, "response_b": None},
    )
    assert load(workspace, [path]).n_rejected == 0
    got = rows(workspace, "SELECT control_text, treatment_text, treatment_outcome FROM pairs ORDER BY request_id")
    assert got == [(big, None, "unreadable"), (hostile, "true", "ok"), ("a�b", "", "ok")]


def test_a_conversation_is_readable_and_kept(workspace: Workspace) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    load(workspace, [write_lines(workspace.root / "x.jsonl", {**PAIR, "prompt": messages})])
    prompt, request = rows(workspace, "SELECT prompt, control_request FROM pairs")[0]
    assert prompt == "[system]\nBe brief.\n\n[user]\nHi"
    assert json.loads(request) == {"messages": messages}


def test_a_time_that_is_not_told_is_no_real_date_but_keeps_the_order(workspace: Workspace) -> None:
    lines = [PAIR, {**PAIR, "pair_id": "p2", "started_at": "2026-07-01T12:00:00Z"}, {**PAIR, "pair_id": "p3"}]
    load(workspace, [write_lines(workspace.root / "x.jsonl", *lines)])
    got = dict(rows(workspace, "SELECT request_id, started_at FROM pairs"))
    assert got == {
        "p1": datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        "p2": datetime(2026, 7, 1, 12, tzinfo=UTC),
        "p3": datetime(1970, 1, 1, 0, 0, 0, 3, tzinfo=UTC),
    }


def test_wrong_paths_and_formats_are_one_clear_line(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(workspace, [workspace.root / "nowhere.jsonl"])
    with pytest.raises(ConfigError, match="no such format; known are"):
        load(workspace, [write_lines(workspace.root / "x.jsonl", PAIR)], format_name="parquet")
    with pytest.raises(DataError, match="empty"):
        load(workspace, [write_lines(workspace.root / "empty.jsonl")])
    with pytest.raises(ConfigError, match="no format that is known"):
        load(workspace, [write_lines(workspace.root / "other.jsonl", {"a": 1})])
    with pytest.raises(DataError, match="nothing to load"):
        load(workspace)
    assert not (workspace.data / "exchanges").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match="cannot write to"):
        load(Workspace(root=tmp_path, data=tmp_path / "data", config=None), [write_lines(tmp_path / "x.jsonl", PAIR)])


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(exclude_categories=()), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "pair_id",
    "prompt",
    "response_a",
    "response_b",
    "label",
    "judgements",
    "meta",
    "started_at",
    "status_a",
    "cost_usd_b",
]


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS), JSON),
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["judge", "method", "order", "verdict", "preference", "raw", "price_usd", "time_s", "tstamp", "score_a"]
            ),
            JSON,
        ),
        max_size=2,
    ),
)
def test_any_document_is_read_or_refused_with_a_reason(
    changes: dict[str, Any], judgements: list[dict[str, Any]]
) -> None:
    document = {**PAIR, "judgements": judgements, **changes}
    try:
        imported = pairs.read(document, 1)
    except BrokenLineError as error:
        assert str(error)
    else:
        assert [exchange.arm for exchange in imported.exchanges] == ["control", "treatment"]
        assert all(0 <= j.preference <= 1 for j in imported.judgments if j.preference is not None)


@pytest.fixture(scope="module")
def published(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    root = tmp_path_factory.mktemp("published")
    workspace = Workspace(root=root, data=root / "data", config=None)
    folder = shared / "data" / "pairs"
    summary = load(
        workspace, [*folder.glob("alpaca_eval2*.jsonl"), *folder.glob("llmbar_*.jsonl")], format_name="pairs"
    )
    assert summary.n_rejected == 0
    with open_store(workspace.data) as store:
        yield store


# Published by AlpacaEval 2, in percent: win rate, standard error (shared/data/README.md).
LEADERBOARD = {
    "gpt-3.5-turbo-1106": (9.1780, 0.8904),
    "gpt-3.5-turbo-1106_concise": (7.4159, 0.8374),
    "gpt-3.5-turbo-1106_verbose": (12.7632, 1.0442),
    "gemma-2b-it": (3.4020, 0.5390),
    "FuseChat-Llama-3.2-1B-Instruct": (29.9219, 1.3935),
    "gpt4_1106_preview": (50.0, 0.0),
}


@pytest.mark.shared
@pytest.mark.parametrize("model", LEADERBOARD)
def test_published_win_rates_are_in_the_rows(published: Store, model: str) -> None:
    [(win_rate, error, n)] = published.connection.execute(
        "SELECT avg(preference), stddev_samp(preference) / sqrt(count(preference)), count(*) FROM judgments "
        "WHERE experiment = $1",
        [f"alpaca_eval2_{model}"],
    ).fetchall()
    assert n == 805
    assert (100 * win_rate, 100 * error) == pytest.approx(LEADERBOARD[model], abs=5e-5)


# Counted as the authors do: over all n, what is unreadable is wrong, and two unreadable answers agree. A judge that rates
# each answer alone was run twice: its first run stands where the first order stands.
LLMBAR = """
WITH runs AS (
    SELECT judge, subset, request_id, truth,
        any_value(winner) FILTER (shown_first = 'control' OR (shown_first = 'neither' AND repeat = 0)) AS ab,
        any_value(winner) FILTER (shown_first = 'treatment' OR (shown_first = 'neither' AND repeat = 1)) AS ba
    FROM judgments
    JOIN (SELECT request_id, if(preference = 1, 'treatment', 'control') AS truth FROM labels) USING (request_id)
    JOIN (SELECT request_id, json_extract_string(meta, '$.subset') AS subset FROM exchanges WHERE arm = 'control')
        USING (request_id)
    WHERE experiment LIKE 'llmbar%'
    GROUP BY ALL
)
SELECT subset, judge, count(*), count(*) FILTER (ab = truth), count(*) FILTER (ba = truth),
    count(*) FILTER (ab = truth AND ba = truth), count(*) FILTER (ab IS NOT DISTINCT FROM ba)
FROM runs GROUP BY ALL
"""


@pytest.mark.shared
def test_llmbar_counts_are_those_of_its_authors(published: Store, shared: Path) -> None:
    numbers = ("n", "correct_order_ab", "correct_order_ba", "correct_both", "positional_agreement")
    with (shared / "data" / "pairs" / "llmbar_judge_summary.csv").open() as file:
        expected = {
            (row["subset"], f"{row['judge']}/{row['strategy']}"): tuple(int(row[name]) for name in numbers)
            for row in csv.DictReader(file)
        }
    got = {(subset, judge): tuple(counts) for subset, judge, *counts in published.connection.sql(LLMBAR).fetchall()}
    natural = {key: counts for key, counts in got.items() if key[0] == "LLMBar/Natural"}
    assert len(natural) == 65
    assert natural == {key: counts for key, counts in expected.items() if key[0] == "LLMBar/Natural"}
    # Of the other subsets the files hold some of the judges: those agree too.
    assert got.items() <= expected.items()
    assert len(got) == 283


def test_a_pair_of_an_id_is_the_first_one_whatever_its_day(workspace: Workspace) -> None:
    """An id is one pair: a copy with another time, or with none, would be paired with the first, judged and paid for twice."""
    first = write_lines(workspace.root / "first.jsonl", {**PAIR, "started_at": "2026-11-01T00:00:00Z"})
    other = {**PAIR, "response_a": "Other.", "started_at": "2026-11-02T00:00:00Z"}
    new = {**PAIR, "pair_id": "p2", "response_a": "New.", "started_at": "2026-11-03T00:00:00Z"}
    undated = {**PAIR, "pair_id": "p2", "response_a": "Late."}
    second = write_lines(workspace.root / "second.jsonl", other, new, undated)
    assert load(workspace, [first], experiment="e").n_exchanges == 2
    summary = load(workspace, [second], experiment="e")
    assert (summary.n_exchanges, summary.n_known, summary.n_repeated) == (2, 2, 2)
    texts = "SELECT request_id, text FROM exchanges WHERE arm = 'control' ORDER BY 1"
    assert rows(workspace, texts) == [("p1", "This."), ("p2", "New.")]
    assert rows(workspace, "SELECT count(*) FROM pairs") == [(2,)]
    again = load(workspace, [second], experiment="e")
    assert (again.n_exchanges, again.n_known + again.n_repeated) == (0, 6)
    unload(workspace.data, [one for one in loads_in(workspace.data) if one.source.endswith("second.jsonl")])
    assert rows(workspace, texts) == [("p1", "This.")]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=12), st.integers(0, 12))
@settings(deadline=None, max_examples=15)
def test_each_id_is_stored_once_in_the_order_of_the_lines(lines: list[tuple[int, int]], split: int) -> None:
    """`lines`: the number of the pair, and its day (0: none), in two files."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(root=Path(folder), data=Path(folder) / "data", config=None)
        made = [
            {
                **PAIR,
                "pair_id": f"p{number}",
                "response_a": f"line {place}",
                **({"started_at": f"2026-11-{day:02}T00:00:00Z"} if day else {}),
            }
            for place, (number, day) in enumerate(lines)
        ]
        for name, part in (("a", made[:split]), ("b", made[split:])):
            if part:
                load(workspace, [write_lines(workspace.root / f"{name}.jsonl", *part)], experiment="e")
        expected = {}
        for one in made:
            expected.setdefault(one["pair_id"], one["response_a"])
        found = rows(workspace, "SELECT request_id, text FROM exchanges WHERE arm = 'control'")
        assert sorted(found) == sorted(expected.items())
