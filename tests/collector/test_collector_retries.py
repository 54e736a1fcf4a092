"""An SDK's retries are one request: one copy, one pair, no failure that no user saw; the attempts stay in the log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import openai
from collector_harness import RawUpstream, Received, Running, Script, chat_answer, eventually, plain

from evalpipe.analysis.prepare import prepare_rows
from evalpipe.store.query import open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

Start = Callable[..., Running]
Upstream = Callable[[Script], RawUpstream]


def test_three_attempts_are_one_request_with_one_copy(upstream: Upstream, collector: Start) -> None:
    seen: Counter[bytes] = Counter()

    def throttled(request: Received) -> list[bytes]:
        seen[request.body] += 1
        fails = 0 if b"smooth" in request.body else 5 if b"hopeless" in request.body else 2
        if seen[request.body] <= fails:
            error = json.dumps({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}).encode()
            return [plain(error, status="429 X", headers=b"Content-Type: application/json\r\nretry-after-ms: 5\r\n")]
        return [plain(chat_answer("control"))]

    treatment = upstream(lambda r: [plain(chat_answer("treatment"))])
    running = collector(upstream(throttled).url, treatment.url)
    client = openai.OpenAI(base_url=running.url + "/v1", api_key="k", max_retries=2)
    for text in ("smooth", "rough", "hopeless"):
        try:
            client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": text}])
        except openai.RateLimitError:
            assert text == "hopeless"
    client.close()
    eventually(lambda: len(running.responses()) == 7 and len(running.responses("shadow")) == 3)
    assert running.stop() == 0
    assert len(treatment.received) == 3, "one copy a question, however often it was asked"
    workspace = open_workspace(running.root / "evalpipe.toml", data=running.data)
    for n_added in (12, 0):  # loading twice adds nothing
        tally = load(workspace, show_progress=False)
        assert tally.n_exchanges == n_added
    with open_store(running.data, "test") as store:
        rows = store.connection.execute(
            "SELECT json_extract_string(request, '$.messages[0].content'), arm, role, outcome, forced, "
            "json_array_length(meta, '$.earlier_attempts') FROM exchanges ORDER BY started_at, arm"
        ).fetchall()
        counted = [row[:4] + row[5:] for row in rows if not row[4]]
        assert sorted(row for row in counted if row[2] == "served") == [
            ("hopeless", "control", "served", "http_error", 2),
            ("rough", "control", "served", "ok", 2),
            ("smooth", "control", "served", "ok", None),
        ]
        assert sum(row[2] == "shadow" for row in counted) == 3
        assert sum(row[2] == "served" for row in rows) == 7, "every attempt is in the log"
        prepared = prepare_rows(store.connection, experiment="test", mode="shadow")
        assert prepared.n_rows == 6
        failed = store.connection.execute("SELECT count(*) FILTER (control_failed), count(*) FROM ev_ids").fetchone()
        assert failed == (1, 3)
