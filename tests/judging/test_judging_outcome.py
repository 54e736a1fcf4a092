"""How a run ends: exit codes, and a summary that counts what succeeded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_provider import Call, FakeProvider, Response, longer_wins
from test_judging_run import FAST, pairs, rows, run, workspace

from evalpipe.calls.client import CallOutcome, ModelResponse, _SdkClient
from evalpipe.cli.app import main
from evalpipe.cli.judge_text import summary_lines
from evalpipe.errors import UpstreamError
from evalpipe.judging.runner import RunSummary
from evalpipe.workspace.judge import estimate_judging
from evalpipe.workspace.judge_setup import JudgeOptions


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalpipe.calls.runner.BACKOFF_S", 0.001)


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(["judge", *arguments])
    return int(str(ended.value.code))


def test_a_dead_address_ends_the_run_soon_with_its_name_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", pairs(30), settings=FAST + "concurrency = 4\n")
    assert command(monkeypatch, tmp_path) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "127.0.0.1:9" in line]
    assert "judge 'pairwise': anthropic at http://127.0.0.1:9 cannot be reached: " in line
    assert "onnect" in line.partition("reached: ")[2]
    # 3 calls without a connection end the run; at most the 3 others in flight were tried as well.
    failed = rows(found, "SELECT count(DISTINCT key) FROM judgments WHERE status = 'error' AND latency_ms IS NOT NULL")
    assert 3 <= failed[0][0] <= 6
    with FakeProvider(longer_wins) as provider:
        again = workspace(tmp_path, provider.url, [])
        assert (run(again).n_succeeded, len(provider.calls)) == (60, 60)


def test_fewer_calls_than_end_a_run_are_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace(tmp_path, "http://127.0.0.1:9", pairs(1))
    assert command(monkeypatch, tmp_path, "--json") == 1
    (document,) = json.loads(capsys.readouterr().out)["runs"]
    assert (document["succeeded"], document["failures"]) == (0, {"no_connection": 2})


def test_an_address_that_has_answered_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server is gone after its third answer, for longer than a dead address is given, and comes back.
    monkeypatch.setattr("evalpipe.calls.runner.MAX_UNREACHED_CALLS", 1)
    n_answers = n_refusals = 0

    async def ask(client: Any, turns: Any) -> ModelResponse:
        nonlocal n_answers, n_refusals
        if n_answers == 3 and n_refusals < 6:
            n_refusals += 1
            return ModelResponse(outcome=CallOutcome.NO_CONNECTION, kind="no_connection", message="connection refused")
        n_answers += 1
        return await whole(client, turns)

    whole = _SdkClient.ask
    monkeypatch.setattr(_SdkClient, "ask", ask)
    with FakeProvider(longer_wins) as provider:
        summary = run(workspace(tmp_path, provider.url, pairs(4), settings=FAST + "concurrency = 1\n"))
    assert (summary.n_succeeded, dict(summary.retried), summary.stopped) == (8, {"no_connection": 6}, None)


def test_a_run_that_failed_in_part_exits_0_and_counts_what_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def behaviour(call: Call) -> Response:
        if "question 0" in call.user:
            return Response(status=400, error="invalid_request_error")
        return Response("no verdict") if "question 1" in call.user else longer_wins(call)

    with FakeProvider(behaviour) as provider:
        same: dict[str, Any] = {**pairs(1)[0], "pair_id": "same", "response_a": "x", "response_b": "x"}
        workspace(tmp_path, provider.url, [*pairs(5), same])
        assert command(monkeypatch, tmp_path) == 0
        first = capsys.readouterr().out.splitlines()[0]
        assert "8 of 12 judgments succeeded (2 ties of identical answers, without a call); 4 failed (" in first
        assert "http_400 2: simulated failure" in first
        assert "unparseable 2: " in first


def test_ties_of_identical_answers_alone_are_a_success_and_beside_failed_calls_none(tmp_path: Path) -> None:
    same = pairs(2, response_a="x", response_b="x")
    found = workspace(tmp_path, "http://127.0.0.1:9", same)
    assert not run(found).is_failure
    workspace(tmp_path, "http://127.0.0.1:9", [{**pairs(1)[0], "pair_id": "other"}])
    assert run(found).is_failure
    assert not RunSummary(judge="j", fingerprint="f").is_failure  # nothing was to be done


@pytest.mark.parametrize(
    ("status", "setting"),
    [(401, "check the key in ANTHROPIC_API_KEY"), (404, "check base_url, and the model 'claude-haiku-4-5'")],
)
def test_a_refusal_names_the_address_and_the_setting(tmp_path: Path, status: int, setting: str) -> None:
    with FakeProvider(lambda call: Response(status=status, error="authentication_error")) as provider:
        found = workspace(tmp_path, provider.url, pairs(2), settings=FAST + "concurrency = 1\n")
        with pytest.raises(UpstreamError) as refused:
            run(found)
    assert f"anthropic at {provider.url} refuses the work: http_{status}: simulated failure; {setting}" in str(
        refused.value
    )


def test_estimate_and_summary_report_what_the_limit_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(10, unit_id="ann"))
        (estimate,) = estimate_judging(found, JudgeOptions())
        assert (estimate.units, estimate.calls, estimate.left_out) == (3, 6, 7)
        assert command(monkeypatch, tmp_path, "--estimate") == 0
        left_out = "7 pairs of users with enough others ([judge] pairs_per_unit)"
        assert f"left out: {left_out}" in capsys.readouterr().out
        summary = run(found)
        assert any(left_out in line for line in summary_lines([summary]))
        again = summary_lines([run(found)])
        assert "nothing to do, everything is judged" in again[0]
        assert any(left_out in line for line in again)
        everything = workspace(tmp_path, provider.url, [], settings=FAST + "pairs_per_unit = 0\n")
        assert run(everything).n_planned == 14


def test_a_limit_that_is_reached_names_what_is_left(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(5))
        run(found, limit=3)
        again = run(found, limit=3)
        assert (
            "nothing to do, the limit of 3 is reached; 2 more are left: raise --limit or leave it out"
            in summary_lines([again])[0]
        )
        assert again.as_json()["left_beyond_limit"] == 2
        run(found)
        assert "nothing to do, everything is judged" in summary_lines([run(found, limit=3)])[0]
        assert len(provider.calls) == 10


@pytest.mark.parametrize("until_decided", [False, True])
def test_every_kind_of_run_keeps_to_the_limit(tmp_path: Path, until_decided: bool) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(10, unit_id="ann"))
        assert run(found, limit=2, until_decided=until_decided).n_planned == 4
        assert run(found, until_decided=until_decided).n_planned == 2
        assert len(provider.calls) == 6


def test_a_refused_batch_names_the_key_too(tmp_path: Path) -> None:
    from evalpipe.workspace.judge import judge, judge_by_batches

    with FakeProvider(lambda call: Response(status=401, error="authentication_error")) as provider:
        found = workspace(tmp_path, provider.url, pairs(2))
        with pytest.raises(UpstreamError, match="http_401: simulated failure; check the key in ANTHROPIC_API_KEY"):
            judge(found, JudgeOptions(show_progress=False), by=judge_by_batches)
