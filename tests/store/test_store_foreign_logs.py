"""Logs of other tools, one file each with its right values (cases/logs/README.md), through `load` into the stored rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.store.load import LoadSummary
from evalpipe.store.query import Store, open_store
from evalpipe.workspace.load import LoadOptions, load
from evalpipe.workspace.paths import Workspace

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(400)  # the first test waits for all files to be loaded, with their fsyncs
QUESTIONS = (
    "How do I reset my password?", "Translate 'good morning' to French.", "What is 17 * 3?", "Write a haiku about rain.",
    "Is it safe to mix bleach and ammonia?", "Summarise: the meeting moved to Tuesday.",
)  # fmt: skip
ANSWERS = (
    "Open Settings, choose Security, then Reset password.", "Bonjour.", "17 times 3 is 51.",
    "Soft rain on tin roofs\na gutter hums in the dark\nmorning smells of earth",
    "No. It releases toxic chloramine gas; ventilate and leave.", "The meeting is on Tuesday now.",
)  # fmt: skip
NINE = datetime(2026, 11, 3, 9, tzinfo=UTC)

Loaded = dict[str, tuple[LoadSummary, list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]]
"""file → what the load said, its exchanges, labels and judgments"""


@pytest.fixture(scope="module")
def cases() -> Path:
    shared = Path(os.environ.get("EVALPIPE_SHARED", ROOT.parent / "shared"))
    folder = shared / "review" / "cases" / "logs"
    if not folder.is_dir():
        pytest.skip(f"no foreign logs at {folder}: set EVALPIPE_SHARED to the folder that holds review/cases/logs")
    return folder


@pytest.fixture(scope="module")
def loaded(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Every file that holds anything, loaded as an experiment of its own."""
    root = tmp_path_factory.mktemp("foreign")
    workspace = Workspace(root=root, data=root / "data", config=None)
    files = [path for path in sorted(cases.rglob("*")) if path.is_file() and path.name not in NOT_LOADED]
    summaries = {}
    for number, path in enumerate(files):
        name = str(path.relative_to(cases))
        summaries[name] = load(
            workspace, [path], experiment=f"e{number}", options=LoadOptions(yes=True), show_progress=False
        )
    with open_store(workspace.data) as store:
        yield {
            name: (
                summaries[name],
                *(_rows(store, table, f"e{number}") for table in ("exchanges", "labels", "judgments")),
            )
            for number, name in enumerate(summaries)
        }


NOT_LOADED = {"README.md", "judge_replies.json", "envoy_access.jsonl"}


def _rows(store: Store, table: str, experiment: str) -> list[dict[str, Any]]:
    order = "started_at, request_id, arm" if table == "exchanges" else "request_id"
    relation = store.connection.sql(f"SELECT * FROM {table} WHERE experiment = '{experiment}' ORDER BY {order}")
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


CONTROL_LOGS = (
    "openai_request_response.jsonl", "openai_messages_only.jsonl", "litellm_anthropic_messages.jsonl", "litellm_spend_logs.csv",
    "litellm_spend_logs.jsonl", "langfuse_traces_api.json", "langfuse_output_list.jsonl", "langfuse_old_usage.jsonl",
    "langfuse_observations_v2.jsonl", "langfuse_observations_v2.parquet", "langfuse_observations_v1.jsonl",
    "langfuse_prompt_object.jsonl", "langfuse_openai_usage_names.jsonl", "langfuse_json_text_io.jsonl", "langsmith_runs.jsonl",
    "otlp_file_exporter.jsonl", "openllmetry_spans.jsonl", "otel_agent_tool_spans.jsonl", "otel_pretty_printed.json",
    "otel_reasoning_part.jsonl", "openinference_spans.jsonl", "helicone.jsonl", "portkey.jsonl", "weave_calls.jsonl",
    "mlflow_traces.json", "deepeval.json", "ragas.jsonl", "inspect.eval", "lmeval_samples.jsonl", "alpacaeval_outputs.json",
    "vercel_ai_sdk_spans.jsonl", "litellm_cost_below_zero.jsonl", "otel_with_http_spans.jsonl",
)  # fmt: skip


@pytest.mark.parametrize("name", CONTROL_LOGS)
def test_a_log_of_one_arm_is_six_answered_rows_with_prompt_and_plain_text(loaded: Loaded, name: str) -> None:
    rows = loaded[name][1]
    assert len(rows) == 6
    assert {(row["arm"], row["role"], row["outcome"]) for row in rows} == {("control", "imported", "ok")}
    by_text = {row["text"]: row["prompt"] for row in rows}
    assert set(by_text) == set(ANSWERS)
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        assert by_text[answer] in (question, f"[system]\nYou are a helpful support agent.\n\n[user]\n{question}")


MEASURED = (
    "openai_request_response.jsonl", "litellm_anthropic_messages.jsonl", "litellm_spend_logs.csv", "litellm_spend_logs.jsonl",
    "langfuse_observations_v2.jsonl", "langfuse_observations_v2.parquet", "langfuse_old_usage.jsonl", "langfuse_traces_api.json",
    "langsmith_runs.jsonl", "openllmetry_spans.jsonl", "otel_pretty_printed.json", "otel_reasoning_part.jsonl",
    "openinference_spans.jsonl", "helicone.jsonl", "vercel_ai_sdk_spans.jsonl", "mlflow_traces.json",
    "otel_with_http_spans.jsonl",
    "otel_agent_tool_spans.jsonl",
)  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_times_users_tokens_and_latency_are_those_of_the_log(loaded: Loaded, name: str) -> None:
    """Row i: 09:00 + i min, user u(i mod 3), 20 + i tokens in, 10 + i out, about 900 ms (in one file 800)."""
    rows = loaded[name][1]
    for i, row in enumerate(rows):
        assert row["started_at"] == NINE + timedelta(minutes=i)
        assert row["unit_id"] == f"u{i % 3}"
        assert (row["input_tokens"], row["output_tokens"]) == (20 + i, 10 + i)
        assert row["latency_ms"] == pytest.approx(803 if name.startswith("openai") else 900, abs=10)


@pytest.mark.parametrize("name", [one for one in MEASURED if one.startswith(("langfuse", "litellm"))])
def test_costs_and_first_tokens_are_those_of_the_log(loaded: Loaded, name: str) -> None:
    for i, row in enumerate(loaded[name][1]):
        assert row["cost_usd"] == pytest.approx(0.0001 * (i + 1))
        assert row["ttft_ms"] == (300 if name.startswith("langfuse") else None)


def test_tokens_under_the_names_of_openai_in_langfuse(loaded: Loaded) -> None:
    rows = loaded["langfuse_openai_usage_names.jsonl"][1]
    assert {(row["input_tokens"], row["output_tokens"]) for row in rows} == {(20, 10)}


def test_users_that_another_file_holds_are_missed_aloud(loaded: Loaded) -> None:
    summary, rows, *_ = loaded["langfuse_observations_v1.jsonl"]
    assert {row["unit_id"] for row in rows} == {None}
    assert any("traces/" in note for note in summary.notes)


def test_a_cost_below_zero_is_no_cost_and_said(loaded: Loaded) -> None:
    summary, rows, *_ = loaded["litellm_cost_below_zero.jsonl"]
    assert [row["cost_usd"] is None for row in rows].count(True) == 1
    assert any(note.startswith("cost") for note in summary.notes)


LEFT_OUT = {
    "litellm_mixed_embeddings.jsonl": (3, {"embeddings": 3}),
    "otel_agent_tool_spans.jsonl": (6, {"agent spans": 6, "tool spans": 6}),
    "otel_with_http_spans.jsonl": (6, {"HTTP spans": 12}),
    "otel_embeddings.jsonl": (0, {"embeddings": 6}),
    "langfuse_spans_only.jsonl": (0, {"SPAN": 6}),
    "litellm_redacted.jsonl": (0, {"texts left out by the logging tool (redacted)": 6}),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_call_is_left_out_and_counted(loaded: Loaded, name: str) -> None:
    summary, rows, *_ = loaded[name]
    n_rows, left_out = LEFT_OUT[name]
    assert len(rows) == n_rows
    assert dict(summary.left_out) == left_out
    assert summary.is_failure == (n_rows == 0)


def test_a_batch_s_requests_alone_say_where_the_answers_are(loaded: Loaded) -> None:
    summary, rows, *_ = loaded["openai_batch_input.jsonl"]
    assert not rows and summary.is_failure
    assert "output file" in " ".join(summary.lines())


def test_a_batch_s_answers_alone_have_no_prompt_and_say_so(loaded: Loaded) -> None:
    summary, rows, *_ = loaded["openai_batch_output.jsonl"]
    assert [row["text"] for row in rows] == list(ANSWERS)
    assert [(row["prompt"], row["input_tokens"], row["output_tokens"]) for row in rows] == [
        (None, 20 + i, 10 + i) for i in range(6)
    ]
    assert any("input file" in note for note in summary.notes)


def test_a_batch_with_its_requests_has_its_prompts(cases: Path, tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    load(workspace, [cases / "openai_batch_output.jsonl", cases / "openai_batch_input.jsonl"], experiment="b")
    with open_store(workspace.data) as store:
        prompts = store.connection.sql("SELECT prompt FROM exchanges ORDER BY started_at").fetchall()
    assert [prompt.rsplit("[user]\n")[-1] for (prompt,) in prompts] == list(QUESTIONS)


def test_a_line_without_its_answer_is_rejected_with_the_key(loaded: Loaded) -> None:
    summary, rows, *_ = loaded["litellm_one_without_response.jsonl"]
    assert len(rows) == 5 and dict(summary.reasons) == {"response is missing": 1}


def test_a_span_that_failed_is_a_failure(loaded: Loaded) -> None:
    rows = loaded["otel_status_error.jsonl"][1]
    assert [(row["outcome"], row["error_message"], row["text"]) for row in rows] == [
        ("http_error", "Timeout", None)
    ] * 6


def test_a_tool_call_is_no_text(loaded: Loaded) -> None:
    rows = loaded["otel_tool_call_part.jsonl"][1]
    assert len(rows) == 6
    assert all(row["text"] is None and '"name": "f"' in row["tool_calls"] for row in rows)


def test_spans_of_equal_attributes_are_told_apart_by_their_ids(loaded: Loaded) -> None:
    assert len({row["request_id"] for row in loaded["otel_console_same_attrs.jsonl"][1]}) == 6


PAIRS = (
    "alpacaeval_annotations.json", "arena_battles.jsonl", "arena_battles.parquet", "plain_pairs.csv", "plain_pairs.jsonl",
    "utf16.jsonl", "gzip_without_suffix.jsonl", "wrapped_in_data.json", "comma_ended_lines.json", "epoch_milliseconds.jsonl",
    "labels_spelled_otherwise.jsonl", "shadow_old_new.jsonl", "array_cut_at_end.json",
)  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_a_file_of_both_answers_is_pairs(loaded: Loaded, name: str) -> None:
    summary, rows, *_ = loaded[name]
    n_pairs = 5 if "cut" in name else 6
    pairs: dict[str, dict[str, Any]] = {}
    for row in rows:
        pairs.setdefault(row["request_id"], {})[row["arm"]] = row
    assert len(pairs) == n_pairs
    for pair in pairs.values():
        place = QUESTIONS.index(pair["control"]["prompt"])
        assert pair["control"]["text"] == ANSWERS[place]
        assert pair["treatment"]["text"].startswith(ANSWERS[place]) and pair["treatment"]["text"] != ANSWERS[place]
    assert bool(summary.faults) == ("cut" in name)


@pytest.mark.parametrize("name", ["epoch_milliseconds.jsonl", "shadow_old_new.jsonl", "arena_battles.jsonl"])
def test_pairs_are_at_their_times(loaded: Loaded, name: str) -> None:
    times = sorted({row["started_at"] for row in loaded[name][1]})
    assert times == [NINE + timedelta(minutes=i) for i in range(6)]


@pytest.mark.parametrize("name", ["arena_battles.jsonl", "arena_battles.parquet"])
def test_battles_carry_their_votes(loaded: Loaded, name: str) -> None:
    _, rows, labels, _ = loaded[name]
    assert [label["preference"] for label in labels] == [0, 1, 0.5, 0.5, 0, 1]
    assert all(str(row["unit_id"]).startswith("arena_user_") for row in rows)


def test_annotations_are_judgments(loaded: Loaded) -> None:
    assert sorted(one["preference"] for one in loaded["alpacaeval_annotations.json"][3]) == pytest.approx(
        [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    )


def test_labels_of_other_spellings_are_read_or_rejected_without_their_pair(loaded: Loaded) -> None:
    summary, rows, labels, _ = loaded["labels_spelled_otherwise.jsonl"]
    assert (len(rows), [label["preference"] for label in labels], summary.n_rejected) == (12, [0, 1, 0.5], 3)


def test_a_column_of_the_arm_makes_two_arms(loaded: Loaded) -> None:
    rows = loaded["ab_variant_column.jsonl"][1]
    assert [row["arm"] for row in rows] == ["control", "treatment"] * 3
    assert [row["unit_id"] for row in rows] == ["u0", "u1", "u2"] * 2
    assert [row["text"] for row in rows] == list(ANSWERS)


def test_what_people_bring(loaded: Loaded) -> None:
    [batch] = loaded["byo/openaibatch.jsonl"][1]
    assert (batch["text"], batch["finish_reason"], batch["model"], batch["input_tokens"], batch["output_tokens"]) == (
        "Hello.",
        "stop",
        "gpt-4o",
        22,
        2,
    )
    assert (batch["started_at"], batch["prompt"]) == (datetime(2024, 3, 28, 19, 6, 35, tzinfo=UTC), None)
    [one] = loaded["byo/pf.json"][1]
    assert (one["arm"], one["prompt"], one["text"], one["model_requested"]) == ("control", "hi", "hello", "gpt-4o")
    assert (one["input_tokens"], one["output_tokens"], one["cost_usd"], one["latency_ms"]) == (5, 5, 0.001, 500)
    first, second = loaded["byo/seedab.jsonl"][1]
    assert (first["arm"], first["unit_id"], first["text"], first["latency_ms"], first["input_tokens"]) == (
        "control",
        "u1",
        "hello",
        812,
        12,
    )
    assert (second["arm"], second["unit_id"], second["text"], second["output_tokens"]) == ("treatment", "u2", "hi", 31)
    assert [(row["arm"], row["text"]) for row in loaded["byo/pairs.csv"][1]] == [
        ("control", "hello"),
        ("treatment", "hey"),
    ]
    shadow = loaded["byo/seedshadow.jsonl"][1]
    assert [row["text"] for row in shadow] == ["4", "Four.", "Paris", "Paris is the capital."]
    assert [row["started_at"].minute for row in shadow] == [0, 0, 1, 1]


def test_an_access_log_is_named_as_one(cases: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="access log without bodies"):
        load(
            Workspace(root=tmp_path, data=tmp_path / "data", config=None),
            [cases / "envoy_access.jsonl"],
            options=LoadOptions(yes=True),
        )


@pytest.mark.parametrize(
    ("name", "form"),
    [("langfuse_observations_v2.jsonl", "litellm"), ("plain_pairs.csv", "langfuse"), ("inspect.eval", "pairs")],
)
def test_a_format_that_is_another_one_is_a_sentence(cases: Path, tmp_path: Path, name: str, form: str) -> None:
    with pytest.raises(EvalpipeError, match=f"has the shape of {form}"):
        load(Workspace(root=tmp_path, data=tmp_path / "data", config=None), [cases / name], format_name=form)
