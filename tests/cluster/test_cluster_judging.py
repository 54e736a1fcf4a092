"""Judging with shards: each call once, the limits and the cap over all of them, and what holds when one is lost."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "judging"))

from fake_provider import Call, FakeProvider, Response, longer_wins, render, verdict
from in_process import InProcessCluster

from evalpipe.cluster.judge import judge_on
from evalpipe.errors import ClusterError, UpstreamError
from evalpipe.judging.runner import RunSummary
from evalpipe.store.query import open_store
from evalpipe.workspace.judge import judge
from evalpipe.workspace.judge_setup import JudgeOptions
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.record import load_record

FAST = "requests_per_minute = 60000\ninput_tokens_per_minute = 100000000\noutput_tokens_per_minute = 100000000\n"


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalpipe.calls.runner.BACKOFF_S", 0.001)
    monkeypatch.setattr("evalpipe.calls.runner.DEFAULT_PAUSE_S", 0.01)


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(longer_wins) as found:
        yield found


def workspace(root: Path, url: str, n_pairs: int, *, settings: str = "", cluster: str = "", same: int = 0) -> Workspace:
    """Control's answer is the longer one in even pairs; the last `same` pairs have identical answers. Two pairs a user."""
    rows = []
    for index in range(n_pairs):
        answers = ["a long answer, longer than the other", f"short {index}"]
        control, treatment = answers if index % 2 == 0 else answers[::-1]
        if index >= n_pairs - same:
            treatment = control
        pair = {"pair_id": f"p{index}", "prompt": f"question {index}", "response_a": control, "response_b": treatment}
        rows.append({**pair, "unit_id": f"u{index // 2}"})
    (root / "evalpipe.toml").write_text(
        f'[experiment]\nname = "t"\n[judge]\nbase_url = "{url}"\n{FAST}{settings}[cluster]\n{cluster}'
    )
    (root / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = open_workspace(root / "evalpipe.toml")
    if rows:  # an empty file is an error
        load(found, [root / "pairs.jsonl"], format_name="pairs")
    return found


def run(found: Workspace, cluster: InProcessCluster | None, **options: Any) -> RunSummary:
    chosen = JudgeOptions(show_progress=False, **options)
    (summary,) = judge(found, chosen, by=judge_on(cluster)) if cluster else judge(found, chosen)
    return summary


def rows(found: Workspace, sql: str) -> list[tuple[Any, ...]]:
    with open_store(found.data, "t") as store:
        result: list[tuple[Any, ...]] = store.connection.execute(sql).fetchall()
        return result


FINAL = (
    "SELECT request_id, shown_first, status, winner, preference FROM judgments WHERE status IN ('ok', 'identical') "
    "ORDER BY ALL"
)


def test_the_same_judgments_and_the_same_summary_as_on_one_machine(tmp_path: Path, provider: FakeProvider) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    alone = workspace(tmp_path / "one", provider.url, 20, same=2)
    together = workspace(tmp_path / "many", provider.url, 20, same=2)
    cluster = InProcessCluster(3)
    first, second = run(alone, None), run(together, cluster)
    assert len(provider.calls) == 2 * 36  # the two pairs of identical answers are ties without a call
    assert rows(together, FINAL) == rows(alone, FINAL)
    assert second.as_json() == first.as_json()
    assert all(shard.n_finished for shard in cluster.shards)  # each had users of its own
    assert run(together, InProcessCluster(3)).n_planned == 0


def test_a_lost_shards_calls_in_flight_are_booked_at_their_worst_and_asked_elsewhere(
    tmp_path: Path, provider: FakeProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    found = workspace(tmp_path, provider.url, 40, settings="concurrency = 6\nmax_usd = 5.0\n")
    cluster = InProcessCluster(3, lost_at=[None, 5, None])
    summary = run(found, cluster)
    final = rows(found, FINAL)
    assert len(final) == len({row[:2] for row in final}) == 80
    assert dict(summary.asked) == {"ok": 80}
    lost = rows(found, "SELECT cost_usd, note->'$.cost_at_most_usd' FROM judgments WHERE note->>'$.error' = 'lost'")
    # What the provider answered and nobody heard of is asked again, nothing else; at most 6 calls are in flight.
    assert 1 <= len(lost) <= 6
    assert len(provider.calls) <= 80 + len(lost)
    assert all(cost > 0 and float(most) > cost for cost, most in lost)
    assert summary.retried["lost"] == len(lost)
    # The account of all runs holds them, too; its bound is tighter, as the answered question has shown its input tokens.
    assert summary.account is not None
    assert summary.account.n_unsettled == len(lost)
    assert sum(cost for cost, _ in lost) < summary.account.at_most_usd <= sum(float(most) for _, most in lost)
    assert (
        f"is lost (it was killed): {len(lost)} calls in flight are booked at their worst case" in capfd.readouterr().err
    )
    assert len(cluster.shards) == 4  # it was started again


def test_a_call_is_on_the_drivers_disk_before_it_is_sent(tmp_path: Path) -> None:
    lines: list[tuple[int, int]] = []

    def counting(call: Call) -> Response:
        paths = (tmp_path / "data/judgments/experiment=t").glob("journal-*.jsonl")
        written = [line for path in paths for line in path.read_bytes().strip(b"\0").splitlines()]
        lines.append((len(provider.calls), len({json.loads(line)["key"] for line in written})))
        return longer_wins(call)

    with FakeProvider(counting) as provider:
        run(workspace(tmp_path, provider.url, 10, settings="concurrency = 3\n"), InProcessCluster(2))
    assert len(lines) == 20
    assert all(n_written >= n_calls for n_calls, n_written in lines)


def test_another_model_that_answered_one_shard_makes_every_shards_calls_dearer(tmp_path: Path) -> None:
    def first_by_another(call: Call) -> Response:
        model = "claude-opus-4-5-20251101" if len(provider.calls) == 1 else "claude-haiku-4-5"
        return Response(raw=json.dumps({**render(call, longer_wins(call)), "model": model}).encode())

    cluster = InProcessCluster(3)
    with FakeProvider(first_by_another) as provider:
        run(workspace(tmp_path, provider.url, 20, settings="concurrency = 1\nmax_usd = 5.0\n"), cluster)
    assert [shard.other_models for shard in cluster.shards] == [{"claude-opus-4-5-20251101"}] * 3


def test_calls_in_flight_are_bounded_over_all_shards(tmp_path: Path) -> None:
    most, lock = Counter[str](), threading.Lock()

    def slow(call: Call) -> Response:
        with lock:
            most["now"] = max(most["now"], provider.n_open)
        return Response(longer_wins(call).text, delay=0.02)

    with FakeProvider(slow) as provider:
        found = workspace(tmp_path, provider.url, 20, settings="concurrency = 5\n")
        run(found, InProcessCluster(3))
        assert most["now"] <= 5
        (tmp_path / "own").mkdir()
        own = workspace(
            tmp_path / "own", provider.url, 20, settings="concurrency = 1\n", cluster="concurrency_per_shard = 4\n"
        )
        most.clear()
        run(own, InProcessCluster(3))
        assert 4 < most["now"] <= 12


@pytest.mark.parametrize("lost_at", [[], [7]])
def test_the_cap_holds_over_all_shards(tmp_path: Path, provider: FakeProvider, lost_at: list[int | None]) -> None:
    """A call is held at more than $0.005 (1,024 tokens of output at 5 dollars a million), so no four are in flight at a time."""
    found = workspace(tmp_path, provider.url, 60, settings="max_usd = 0.02\n")
    summary = run(found, InProcessCluster(3, lost_at=lost_at))
    # 100 input and 50 output tokens a call at 1 and 5 dollars a million: what is billed, whoever made the call.
    assert len(provider.calls) * (100 * 1e-6 + 50 * 5e-6) <= 0.02
    assert summary.stopped == "budget"
    assert 0 < len(provider.calls) < 120


def test_requests_a_minute_hold_over_all_shards(tmp_path: Path) -> None:
    """600 a minute are 10 a second, and 10 at once: 30 calls take 2 seconds."""
    times: list[float] = []

    def noting(call: Call) -> Response:
        times.append(time.monotonic())
        return longer_wins(call)

    with FakeProvider(noting) as provider:
        workspace(tmp_path, provider.url, 15, settings="concurrency = 30\n")
        config = (tmp_path / "evalpipe.toml").read_text()
        (tmp_path / "evalpipe.toml").write_text(
            config.replace("requests_per_minute = 60000", "requests_per_minute = 600")
        )
        run(open_workspace(tmp_path / "evalpipe.toml"), InProcessCluster(3))
    assert len(times) == 30
    assert max(times) - min(times) >= 1.9


def test_until_decided_looks_at_the_beginning_of_the_plan_and_stops_every_shard(tmp_path: Path) -> None:
    """The treatment wins every pair."""

    def good_wins(call: Call) -> Response:
        return Response(verdict("response_1" if "long" in call.blocks["response-1"] else "response_2", 5, 5))

    with FakeProvider(good_wins) as provider:
        found = workspace(tmp_path, provider.url, 0)
        pairs = [
            {"pair_id": f"p{n}", "prompt": f"q {n}", "response_a": "short", "response_b": "long", "unit_id": f"u{n}"}
            for n in range(200)
        ]
        (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
        load(found, [tmp_path / "pairs.jsonl"], format_name="pairs")
        summary = run(found, InProcessCluster(3), until_decided=True)
    assert summary.stopped == "decided"
    assert "Ship the treatment" in str(summary.message)
    assert summary.n_ended == len(provider.calls) == len(rows(found, FINAL)) < summary.n_planned
    record = load_record(found.data, "t")
    assert record is not None and record.decided is not None
    assert (record.decided.recommendation, record.decided.look) == ("ship", record.n_looks)


def test_a_refused_key_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with FakeProvider(lambda call: Response(status=401, error="authentication_error")) as provider:
        found = workspace(tmp_path, provider.url, 20, settings="concurrency = 4\n")
        with pytest.raises(UpstreamError, match="refuses the work: http_401"):
            run(found, InProcessCluster(2))
        assert len(provider.calls) <= 4


def test_retries_and_repairs_are_counted_as_on_one_machine(tmp_path: Path) -> None:
    seen = Counter[str]()
    lock = threading.Lock()

    def failing_once(call: Call) -> Response:
        with lock:
            asked = str(list(call.blocks.items()))  # the same pair in the other order is another question
            seen[asked] += 1
            n = seen[asked]
        if n == 1:
            return Response(status=529, error="overloaded_error")
        return longer_wins(call) if call.is_repair else Response("I prefer the first.")

    with FakeProvider(failing_once) as provider:
        found = workspace(tmp_path, provider.url, 3)
        summary = run(found, InProcessCluster(2))
    assert (dict(summary.asked), dict(summary.retried), summary.n_repairs) == ({"ok": 6}, {"http_529": 6}, 6)


def test_where_no_shard_is_left_the_run_ends_in_one_line_and_goes_on_later(
    tmp_path: Path, provider: FakeProvider
) -> None:
    found = workspace(tmp_path, provider.url, 20, settings="concurrency = 2\n")
    with pytest.raises(ClusterError, match="no shard of the cluster is left"):
        run(found, InProcessCluster(1, lost_at=[6] + [0] * 9))
    n_before = len(provider.calls)
    summary = run(found, InProcessCluster(2))
    assert len(rows(found, FINAL)) == 40
    assert summary.n_known >= 4
    assert len(provider.calls) == n_before + summary.n_planned
    assert len(provider.calls) <= 40 + 2  # two were in flight


def test_a_node_that_starts_no_shard_is_one_line(tmp_path: Path, provider: FakeProvider) -> None:
    found = workspace(tmp_path, provider.url, 2)
    with pytest.raises(ClusterError, match="it cannot start"):
        run(found, InProcessCluster(1, lost_at=[0] * 9))
    assert not provider.calls


def test_a_call_that_ends_every_shard_is_left_to_the_next_run(tmp_path: Path, provider: FakeProvider) -> None:
    """One call in flight when three shards in a row are lost: it may be why. All others are judged."""
    found = workspace(tmp_path, provider.url, 10, settings="concurrency = 1\n")
    summary = run(found, InProcessCluster(1, lost_at=[4, 1, 1]))
    assert dict(summary.failed) == {"lost": 1}
    assert len(rows(found, FINAL)) == 19
    assert run(found, InProcessCluster(1)).n_planned == 1
    assert len(rows(found, FINAL)) == 20
