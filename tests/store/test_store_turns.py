"""The columns `turn`, `step`, `request_kind` and `config_fingerprint` of what is loaded: from the client's request, alike for
both arms; and files that are older than the columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spool_builders import T0, copy, request, served, shadow, write_segment
from test_store_datasets import exchange

from evalpipe.identity import conversation_id, hash_unit
from evalpipe.models import Arm
from evalpipe.spool.format import Body, render_record
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.load import SpoolLoad
from evalpipe.store.query import open_store
from evalpipe.store.schema import EXCHANGES, to_table
from evalpipe.workspace.load import load as load_paths
from evalpipe.workspace.paths import Workspace

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CALL = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "21"}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": list(messages), **more}


def columns(root: Path, names: str, order: str = "arm") -> list[tuple[Any, ...]]:
    SpoolLoad(root / "data", root / "spool", rules=ReadingRules(unit_key=b"key"), now=T0 + 60).run()
    with open_store(root / "data") as store:
        return store.connection.sql(f"SELECT arm, {names} FROM exchanges ORDER BY {order}").fetchall()


@pytest.mark.parametrize(
    ("body", "fields", "expected"),
    [
        (chat(USER), {}, (1, 0)),
        (chat(USER, ASSISTANT, USER), {}, (2, 0)),
        (chat(USER, CALL, RESULT), {}, (1, 1)),
        (chat(USER), {"conversation_id": "the client's own"}, (None, 0)),
        (chat(USER, ASSISTANT, USER), {"conversation_id": "the client's own"}, (2, 0)),
        # A split stores the id it derived, plain or hashed: nobody named the conversation.
        (chat(USER), {"mode": "ab", "conversation_id": conversation_id("", "hi")}, (1, 0)),
        (chat(USER), {"mode": "ab", "conversation_id": hash_unit(b"key", conversation_id("", "hi"))}, (1, 0)),
        (chat(USER), {"mode": "ab", "conversation_id": hash_unit(b"key", "the client's own")}, (None, 0)),
        (b"no json", {}, (None, None)),
    ],
)
def test_both_arms_carry_the_clients_turn(
    tmp_path: Path, body: Any, fields: dict[str, Any], expected: tuple[int | None, int | None]
) -> None:
    # The copy was translated: an assistant's words less would make another turn of it.
    sent = Body.of(json.dumps({"model": "m", "messages": [USER, ASSISTANT, USER, ASSISTANT, USER]}).encode())
    write_segment(tmp_path / "spool", "served-1.000001", [request("r1", body=body, **fields), served("r1")])
    write_segment(tmp_path / "spool", "shadow-1.000001", [shadow("r1"), copy("r1", sent=sent)])
    assert columns(tmp_path, "turn, step") == [("control", *expected), ("treatment", *expected)]


def test_an_answer_that_was_lost_has_its_requests_turn(tmp_path: Path) -> None:
    write_segment(
        tmp_path / "spool", "served-1.000001", [request("r1", body=chat(USER, ASSISTANT, USER)), shadow("r1")]
    )
    assert columns(tmp_path, "outcome, turn, step, request_kind") == [
        ("control", "client_closed", 2, 0, "chat.completions"),
        ("treatment", "client_closed", 2, 0, "chat.completions"),
    ]


WITH_USAGE = {"include_usage": True}


@pytest.mark.parametrize(
    ("body", "fields", "expected"),
    [
        (chat(USER), {}, "chat.completions"),
        (chat(USER), {"injects_usage": True}, "chat.completions"),
        (chat(USER, stream=True), {}, "chat.completions streamed"),
        (chat(USER, stream=True), {"injects_usage": True}, "chat.completions streamed usage injected"),
        (chat(USER, stream=True, stream_options=WITH_USAGE), {}, "chat.completions streamed with usage"),
        (
            chat(USER, stream=True, stream_options=WITH_USAGE),
            {"injects_usage": True},
            "chat.completions streamed with usage",
        ),
        # The client declined it: nothing is asked on its account.
        (chat(USER, stream=True, stream_options={}), {"injects_usage": True}, "chat.completions streamed"),
        (
            chat(USER, stream=True, stream_options={"include_usage": False}),
            {"injects_usage": True},
            "chat.completions streamed",
        ),
        ({"messages": [USER], "stream": True}, {"endpoint": "messages"}, "messages streamed with usage"),
        ({"input": "hi"}, {"endpoint": "responses", "injects_usage": True}, "responses"),
    ],
)
def test_a_requests_kind_is_what_the_client_asked(
    tmp_path: Path, body: Any, fields: dict[str, Any], expected: str
) -> None:
    asked = Body.of(json.dumps({**body, "stream_options": WITH_USAGE}).encode())  # the copy always asks
    write_segment(tmp_path / "spool", "served-1.000001", [request("r1", body=body, **fields), served("r1")])
    write_segment(
        tmp_path / "spool", "shadow-1.000001", [shadow("r1"), copy("r1", sent=asked, endpoint="chat.completions")]
    )
    assert columns(tmp_path, "request_kind") == [("control", expected), ("treatment", expected)]


def test_older_records_show_in_what_was_sent_that_usage_was_injected(tmp_path: Path) -> None:
    body = chat(USER, stream=True)
    sent = Body.of(json.dumps({**body, "stream_options": WITH_USAGE}).encode())
    records = [
        *(request("r1", body=body, eligible=False), served("r1", sent=sent)),
        *(request("r2", body=body, eligible=False), served("r2")),
        # Served by the treatment: what that arm was asked says nothing of the client's request.
        *(request("r3", body=body, eligible=False, arm="treatment"), served("r3", sent=sent, arm="treatment")),
    ]
    write_segment(tmp_path / "spool", "served-1.000001", records)
    assert columns(tmp_path, "request_kind", "request_id") == [
        ("control", "chat.completions streamed usage injected"),
        ("control", "chat.completions streamed"),
        ("treatment", "chat.completions streamed"),
    ]


def test_each_row_has_its_own_arms_fingerprint(tmp_path: Path) -> None:
    records = [
        *(request("r1", config_fingerprint="aaaa-bbbb"), served("r1"), shadow("r1"), copy("r1")),
        *(request("r2", config_fingerprint="old"), served("r2"), shadow("r2"), copy("r2")),
        *(request("r3", config_fingerprint="aaaa-", eligible=False), served("r3")),
        *(request("r4", eligible=False), served("r4")),
    ]
    write_segment(tmp_path / "spool", "served-1.000001", records)
    assert columns(tmp_path, "config_fingerprint", "request_id, arm") == [
        ("control", "aaaa"),
        ("treatment", "bbbb"),
        ("control", "old"),
        ("treatment", "old"),
        ("control", "aaaa"),
        ("control", None),
    ]


def test_a_record_without_the_new_field_is_read(tmp_path: Path) -> None:
    line = render_record(request("r1", body=chat(USER, stream=True), eligible=False))
    assert b"injects_usage" not in line
    write_segment(tmp_path / "spool", "served-1.000001", [line, served("r1")])
    assert columns(tmp_path, "request_kind") == [("control", "chat.completions streamed")]


def test_imports(tmp_path: Path) -> None:
    pair = {"prompt": "Why?", "response_a": "a", "response_b": "b"}
    lines = [
        {**pair, "pair_id": "1"},
        {**pair, "pair_id": "2", "prompt": [USER, ASSISTANT, USER]},
        {**pair, "pair_id": "3", "conversation_id": "c"},
        {**pair, "pair_id": "4", "prompt": [USER, CALL, RESULT]},
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, lines)))
    log = {"call_type": "completion", "startTime": 1.0, "endTime": 2.0, "response": {}}
    litellm = tmp_path / "litellm.jsonl"
    litellm.write_text(json.dumps({**log, "id": "5", "messages": [USER, CALL, RESULT, ASSISTANT, USER]}) + "\n")
    span = {
        "gen_ai.input.messages": [{"role": "user", "parts": [{"content": "hi"}]}],
        "gen_ai.conversation.id": "c",
    }
    otel = tmp_path / "otel.jsonl"
    otel.write_text(json.dumps({"trace_id": "t", "span_id": "6", "attributes": span}) + "\n")
    asked = {"model": "gpt-4o", "messages": [USER, ASSISTANT, USER]}
    cassette = tmp_path / "cassette.jsonl"
    cassette.write_text(
        json.dumps(
            {
                "request": {"method": "POST", "uri": "https://h/v1/chat/completions", "body": asked},
                "response": {"headers": {}, "body": {"id": "x-7", "choices": [{"message": {"content": "a"}}]}},
            }
        )
        + "\n"
    )
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    load_paths(workspace, [pairs, litellm, otel, cassette], experiment="e")
    with open_store(workspace.data, "e") as store:
        found = store.connection.sql(
            "SELECT DISTINCT request_id, turn, step, request_kind, status FROM exchanges ORDER BY 1"
        ).fetchall()
    # No file says a status, so none is stored.
    assert found == [
        ("1", 1, 0, None, None),
        ("2", 2, 0, None, None),
        ("3", None, 0, None, None),
        ("4", 1, 1, None, None),
        ("5", 2, 0, None, None),
        ("t-6", None, 0, None, None),
        ("x-7", 2, 0, None, None),
    ]


def test_files_older_than_the_columns_are_read_beside_newer_ones(tmp_path: Path) -> None:
    folder = tmp_path / "exchanges" / "experiment=exp" / "date=2026-07-01"
    folder.mkdir(parents=True)
    new = ["turn", "step", "request_kind"]
    old_schema = pa.schema([field for field in EXCHANGES if field.name not in new])
    assert len(old_schema) == len(EXCHANGES) - 3
    pq.write_table(to_table(old_schema, [exchange("old")]), folder / "20260701T120000-0123456789ab.0a1b2c3d.parquet")
    with open_store(tmp_path) as store:  # nothing but old files
        assert store.connection.sql("SELECT request_id, turn, step, request_kind FROM exchanges").fetchall() == [
            ("old", None, None, None)
        ]
    written = exchange("new", turn=2, step=1, request_kind="chat.completions")
    with pq.ParquetWriter(folder / "20260702T120000-0123456789ab.parquet", EXCHANGES) as writer:
        writer.write_table(to_table(EXCHANGES, [written, exchange("new", Arm.TREATMENT, turn=2, step=1)]))
    with open_store(tmp_path) as store:
        assert store.connection.sql(
            "SELECT request_id, arm, turn, step, request_kind FROM exchanges ORDER BY ALL"
        ).fetchall() == [
            ("new", "control", 2, 1, "chat.completions"),
            ("new", "treatment", 2, 1, None),
            ("old", "control", None, None, None),
        ]
        assert store.connection.sql("SELECT request_id, control_turn, treatment_step FROM pairs").fetchall() == [
            ("new", 2, 1)
        ]
