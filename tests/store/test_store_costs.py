"""Every row of the store says where its cost comes from, why it has none, or what is not in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from spool_builders import T0, copy, request, served, write_segment

from evalpipe.providers.pricing import Price
from evalpipe.spool.format import ResponseRecord
from evalpipe.store.exchange_rows import BROKEN_OFF, ReadingRules
from evalpipe.store.load import SpoolLoad
from evalpipe.store.parquet import schema_mark
from evalpipe.store.query import open_store

MODEL = "gpt-4o-2024-08-06"
LIST_USD = 1000 * 2.5e-6 + 100 * 10e-6
"""1000 input and 100 output tokens of gpt-4o, platform.openai.com/docs/pricing"""


def answer(model: str = MODEL, text: str = "An answer", **usage: Any) -> bytes:
    counts = usage or {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    document = {"id": "c1", "object": "chat.completion", "model": model, "choices": [choice], "usage": counts}
    return json.dumps(document).encode()


def costs(root: Path, response: ResponseRecord, **rules: Any) -> tuple[Any, ...]:
    """cost_usd, cost_source, cost_note of the one exchange."""
    write_segment(root / "spool", "served-1.000001", [request(response.request_id, eligible=False), response])
    SpoolLoad(root / "data", root / "spool", rules=ReadingRules(**rules), now=T0 + 60, processes=1).run()
    return read(root)


def read(root: Path) -> tuple[Any, ...]:
    with open_store(root / "data") as store:
        (row,) = store.connection.sql("SELECT cost_usd, cost_source, cost_note FROM exchanges").fetchall()
        return row


def test_a_list_price_names_the_library_and_its_version(tmp_path: Path) -> None:
    usd, source, note = costs(tmp_path, served("r1"))
    assert (usd, note) == (pytest.approx(LIST_USD), None)
    assert source.startswith("genai-prices ")


def test_an_own_price_goes_before_the_providers_own_figure(tmp_path: Path) -> None:
    said = answer(prompt_tokens=1000, completion_tokens=100, cost=0.5)
    own = {MODEL: Price(input=1.0, output=1.0)}
    assert costs(tmp_path, served("r1", body=said), prices=own) == (pytest.approx(0.0011), "config", None)


def test_the_providers_own_figure_goes_before_the_list(tmp_path: Path) -> None:
    said = answer("openai/gpt-4o", prompt_tokens=1000, completion_tokens=100, cost=0.5)
    assert costs(tmp_path, served("r1", body=said)) == (0.5, "usage.cost", None)


def test_the_proxys_header_is_the_cost(tmp_path: Path) -> None:
    headers = {"content-type": "application/json", "x-litellm-response-cost": "0.0042"}
    response = served("r1", provider="litellm", headers=headers)
    usd, source, note = costs(tmp_path, response)
    assert (usd, source, note) == (0.0042, "x-litellm-response-cost", None)


def test_a_model_without_a_price_says_so(tmp_path: Path) -> None:
    usd, source, note = costs(tmp_path, served("r1", body=answer("house-model-7"), arm="control"))
    assert (usd, source) == (None, None)
    assert "house-model-7" in note


def test_zeros_beside_a_text_are_not_told_and_free_of_no_charge(tmp_path: Path) -> None:
    response = served("r1", body=answer(prompt_tokens=0, completion_tokens=0, total_tokens=0))
    usd, source, note = costs(tmp_path, response)
    assert (usd, source) == (None, None)
    assert "counted no input or output tokens" in note


def test_a_refused_request_is_not_billed_but_a_torn_answer_may_be(tmp_path: Path) -> None:
    refused = served("r1", body=b'{"error": {"message": "no", "type": "server_error"}}', status=500)
    assert costs(tmp_path / "refused", refused) == (0.0, "not billed", None)
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": MODEL}
    torn = b"".join(
        b"data: " + json.dumps(piece).encode() + b"\n\n"
        for piece in (
            {**chunk, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Half of"}}]},
            {"error": {"message": "overloaded", "type": "server_error", "code": 503}},
        )
    )
    usd, _, note = costs(tmp_path / "torn", served("r1", body=torn, headers={"content-type": "text/event-stream"}))
    assert usd is None
    assert note


def test_only_what_is_not_billed_by_documentation_costs_nothing(tmp_path: Path) -> None:
    """An HTTP error instead of an answer, a request that never left; not an error within a 200, nor a broken connection."""
    error = b'{"error": {"message": "slow down", "type": "rate_limit_error", "code": 429}}'
    stream = {"content-type": "text/event-stream"}
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"body": error, "status": 429}, True),
        ({"body": b"", "status": 502, "ended": "connect_error", "error_type": "connect_error"}, True),
        ({"body": b"", "status": None, "ended": "connect_error", "error_type": "connect_error"}, True),
        ({"body": error, "status": 200}, False),
        ({"body": b"data: " + error + b"\n\n", "status": 200, "headers": stream}, False),
        ({"body": b"", "status": 502, "ended": "cut", "error_type": "cut"}, False),
        ({"body": b"", "status": 502, "ended": "protocol_error", "error_type": "protocol_error"}, False),
        ({"body": b"", "status": 504, "ended": "timeout", "error_type": "timeout"}, False),
    ]
    for number, (fields, is_free) in enumerate(cases):
        found = costs(tmp_path / str(number), served("r1", **fields))
        assert found == ((0.0, "not billed", None) if is_free else (None, None, BROKEN_OFF)), fields


def test_own_prices_reach_a_tier_and_a_one_hour_cache_write(tmp_path: Path) -> None:
    usage = {
        "input_tokens": 100,
        "output_tokens": 10,
        "cache_creation_input_tokens": 1000,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 1000},
        "service_tier": "priority",
    }
    document = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": "A"}],
        "stop_reason": "end_turn",
        "usage": usage,
    }
    own = Price(input=1.0, output=5.0, cache_write_1h=2.0, tiers={"priority": 3.0})
    response = copy("r1", body=json.dumps(document).encode(), arm="control", role="served")
    usd, source, note = costs(tmp_path, response, prices={"claude-haiku-4-5": own})
    assert (usd, source, note) == (pytest.approx(3.0 * (100 * 1e-6 + 10 * 5e-6 + 1000 * 2e-6)), "config", None)


def test_files_from_before_the_columns_read_as_null(tmp_path: Path) -> None:
    costs(tmp_path, served("r1"))
    (path,) = (tmp_path / "data").rglob("*.parquet")
    table = pq.ParquetFile(path).read()
    older = table.drop_columns(["cost_source", "cost_note"])
    path.unlink()
    pq.write_table(older, path.with_name(f"20260528T202640-0{schema_mark(older.schema)}"))
    assert read(tmp_path) == (pytest.approx(LIST_USD), None, None)
