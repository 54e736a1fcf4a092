"""Logs of other tools: the samples they publish, read by hand, and any damage to them refused with a reason."""

from __future__ import annotations

import copy
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.errors import ConfigError
from evalpipe.models import Exchange
from evalpipe.store.importers import IMPORTERS, detect
from evalpipe.store.importers.base import BrokenLineError
from evalpipe.store.importers.containers import sources_of
from evalpipe.store.query import open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace

SAMPLES = {
    "litellm_standard_logging_payload.json": "litellm",
    "litellm_spend_log_row.json": "litellm",
    "langfuse_trace_openai_assistants.json": "langfuse",
    "langfuse_trace_pydantic_ai.json": "langfuse",
    "litellm_langfuse_otel_span.json": "otel",
    "otel_genai_span_attributes.json": "otel",
    "tensorzero_chat_datapoints.jsonl": "tensorzero",
    "inspect_ai_log_formats.json": "inspect",
    "inspect_ai_popularity_log.json": "inspect",
    "openai_chat_cassette.json": "http",
}


@pytest.fixture(scope="module")
def samples(shared: Path) -> Path:
    return shared / "data" / "log-samples"


def documents(path: Path) -> list[Any]:
    return [one.value for source in sources_of(path) for one in source.documents()]


def exchanges(path: Path) -> list[Exchange]:
    importer = detect(documents(path)[0])
    assert importer is not None
    return [row for n, document in enumerate(documents(path), 1) for row in importer.read(document, n).exchanges]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "form"), SAMPLES.items())
def test_each_sample_is_recognised_by_one_importer(samples: Path, name: str, form: str) -> None:
    document = documents(samples / name)[0]
    assert [importer.name for importer in IMPORTERS if importer.matches(document)] == [form]


@pytest.mark.shared
def test_litellm(samples: Path) -> None:
    [row] = exchanges(samples / "litellm_standard_logging_payload.json")
    assert (row.request_id, row.provider, row.model) == (
        "chatcmpl-2299b6a2-82a3-465a-b47c-04e685a2227f",
        "openai",
        "gpt-4o",
    )
    assert (row.prompt, row.text, row.outcome, row.finish_reason) == ("Hello, world!", "hi", "ok", "stop")
    assert row.started_at == datetime(2025, 1, 24, 9, 20, 46, 847371, UTC)
    # 46.851954 − 46.847371 s, to the end and to the first token alike
    assert (row.latency_ms, row.ttft_ms) == (pytest.approx(4.583), pytest.approx(4.583))
    assert (row.input_tokens, row.output_tokens, row.cost_usd) == (10, 20, pytest.approx(0.000225))
    [spent] = exchanges(samples / "litellm_spend_log_row.json")
    assert (spent.text, spent.prompt, spent.cost_usd, spent.unit_id) == (None, None, pytest.approx(0.000225), None)


@pytest.mark.shared
def test_langfuse(samples: Path) -> None:
    [row] = exchanges(samples / "langfuse_trace_pydantic_ai.json")
    assert (row.unit_id, row.conversation_id, row.model) == ("user_123", "session_abc", "gpt-4o")
    assert row.prompt == (
        "[system]\nYou are a helpful assistant that answers questions clearly and concisely.\n\n[user]\nWhat is Langfuse?"
    )
    assert row.text is not None and row.text.startswith("Langfuse is a tool designed for observability")
    assert (row.latency_ms, row.input_tokens, row.output_tokens) == (4794.0, 31, 96)
    assert row.cost_usd == pytest.approx(0.0010375)
    [assistant] = exchanges(samples / "langfuse_trace_openai_assistants.json")
    assert (assistant.latency_ms, assistant.input_tokens) == (None, 49)  # it has no end time


@pytest.mark.shared
def test_opentelemetry(samples: Path) -> None:
    [row] = exchanges(samples / "otel_genai_span_attributes.json")
    assert row.request_id == "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
    assert (row.model_requested, row.model, row.provider, row.finish_reason) == (
        "gpt-4",
        "gpt-4-0613",
        "openai",
        "stop",
    )
    assert (row.input_tokens, row.cached_input_tokens, row.output_tokens) == (52, 20, 47)
    assert row.prompt == "[system]\nYou are a helpful bot\n\n[user]\nTell me a joke about OpenTelemetry"
    assert row.text is not None and row.text.startswith(" Why did the developer bring OpenTelemetry")
    [span] = exchanges(samples / "litellm_langfuse_otel_span.json")
    assert (span.text, span.unit_id, span.conversation_id) == (
        "Hello! How can I assist you today?",
        "test_user_id",
        "test_session_id",
    )
    assert span.cost_usd == pytest.approx(3.5e-05)


@pytest.mark.shared
def test_tensorzero_gives_a_row_for_each_output(samples: Path) -> None:
    rows = exchanges(samples / "tensorzero_chat_datapoints.jsonl")
    assert len(rows) == 31  # 41 datapoints, 10 of them without an output
    assert all(row.text for row in rows)
    assert any(row.prompt == 'user({"topic": "probability"})' for row in rows)


@pytest.mark.shared
def test_inspect(samples: Path) -> None:
    rows = exchanges(samples / "inspect_ai_popularity_log.json")
    assert [row.request_id for row in rows] == ["popularity:1:1", "popularity:2:1", "popularity:3:1"]
    first = rows[0]
    assert (first.text, first.model, first.latency_ms) == (
        "Yes",
        "gpt-4o-mini-2024-07-18",
        pytest.approx(538.119, abs=1e-3),
    )
    assert first.prompt is not None and "[assistant]" not in first.prompt


@pytest.mark.shared
def test_a_cassette(samples: Path) -> None:
    [row] = exchanges(samples / "openai_chat_cassette.json")
    assert (row.prompt, row.text, row.model_requested) == ("Say this is a test", "This is a test.", "gpt-4o-mini")
    assert (row.model, row.status, row.latency_ms) == ("gpt-4o-mini-2024-07-18", 200, 287.0)
    assert row.started_at == datetime(2024, 11, 11, 23, 43, 50, tzinfo=UTC)


@pytest.mark.shared
def test_two_logs_of_one_task_become_pairs(samples: Path, tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    load(workspace, [samples / "inspect_ai_popularity_log.json"], experiment="popularity")
    load(workspace, [samples / "inspect_ai_log_formats.json"], experiment="popularity", arm="treatment")
    with open_store(workspace.data, "popularity") as store:
        pairs = store.connection.sql(
            "SELECT control_model, treatment_model, control_text, treatment_text FROM pairs"
        ).fetchall()
    assert pairs == [("gpt-4o-mini-2024-07-18", "llama3.1", "Yes", "No")]


def test_an_arm_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--arm left"):
        load(Workspace(root=tmp_path, data=tmp_path / "data", config=None), [tmp_path], arm="left")


@pytest.mark.shared
@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_damage_is_read_or_refused_with_a_reason(samples: Path, name: str, seed: int) -> None:
    """Real documents with some of their values replaced: no importer may fail in any other way than by saying why."""
    chance = random.Random(seed)
    all_documents = _PARSED.setdefault(name, documents(samples / name))
    document = copy.deepcopy(chance.choice(all_documents))
    for _ in range(chance.randint(1, 6)):
        _damage(document, chance)
    importer = next(importer for importer in IMPORTERS if importer.name == SAMPLES[name])
    if not importer.matches(document):
        return
    try:
        rows = importer.read(document, 7).exchanges
    except BrokenLineError as error:
        assert str(error)
    else:
        assert all(row.request_id and row.started_at.tzinfo is UTC for row in rows)


_PARSED: dict[str, list[Any]] = {}
_VALUES = (
    None,
    True,
    -1,
    1e308,
    float("nan"),
    "",
    "text",
    "\ud800",
    [],
    [None],
    [[]],
    {},
    {"a": None},
    {"content": 7},
    "[1]",
    "{}",
)


def _damage(document: Any, chance: random.Random) -> None:
    """Replace or remove a value somewhere in the document."""
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = chance.choice(keys)
        child = node[key]
        if isinstance(child, dict | list) and child and chance.random() < 0.8:
            node = child
            continue
        if chance.random() < 0.3:
            del node[key]
        else:
            node[key] = chance.choice(_VALUES)
        return
