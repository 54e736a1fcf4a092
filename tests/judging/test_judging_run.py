"""`evalpipe judge` over real stores and real HTTP: what is asked, what is stored, what is never asked again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_provider import Call, FakeProvider, Response, longer_wins, verdict

from evalpipe.analysis.result import Check
from evalpipe.calls.journal import Journal, compact, judging_lock
from evalpipe.cli.app import main
from evalpipe.cli.judge_text import summary_lines
from evalpipe.errors import BudgetError, ConfigError, DataError, UpstreamError, WorkspaceBusyError
from evalpipe.judging.judgments import RecordedCost, sent
from evalpipe.judging.plan import calls_for
from evalpipe.judging.runner import RunSummary, SystemClock
from evalpipe.store.query import open_store, read_selection
from evalpipe.workspace import call_runs, judge_setup
from evalpipe.workspace.analyze import analyze_workspace
from evalpipe.workspace.judge import estimate_judging, judge, show_prompts
from evalpipe.workspace.judge_review import reparse, self_test
from evalpipe.workspace.judge_setup import JudgeOptions
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.plan import plan

FAST = "requests_per_minute = 60000\ninput_tokens_per_minute = 100000000\noutput_tokens_per_minute = 100000000\n"


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalpipe.calls.runner.BACKOFF_S", 0.001)
    monkeypatch.setattr("evalpipe.calls.runner.DEFAULT_PAUSE_S", 0.01)


def pairs(n: int, **changes: Any) -> list[dict[str, Any]]:
    """Control's answer is the longer one in even pairs."""
    found = []
    for index in range(n):
        answers = ["a long answer, longer than the other", f"short {index}"]
        control, treatment = answers if index % 2 == 0 else answers[::-1]
        pair = {"pair_id": f"p{index}", "prompt": f"question {index}", "response_a": control, "response_b": treatment}
        found.append({**pair, **changes})
    return found


def workspace(root: Path, url: str, rows: list[dict[str, Any]], *, extra: str = "", settings: str = FAST) -> Workspace:
    (root / "evalpipe.toml").write_text(f'[experiment]\nname = "t"\n[judge]\nbase_url = "{url}"\n{settings}{extra}')
    (root / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = open_workspace(root / "evalpipe.toml")
    if rows:  # an empty file is an error
        load(found, [root / "pairs.jsonl"], format_name="pairs")
    return found


def run(found: Workspace, **options: Any) -> RunSummary:
    (summary,) = judge(found, JudgeOptions(show_progress=False, **options))
    return summary


def rows(found: Workspace, sql: str) -> list[tuple[Any, ...]]:
    with open_store(found.data, "t") as store:
        result: list[tuple[Any, ...]] = store.connection.execute(sql).fetchall()
        return result


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(longer_wins) as found:
        yield found


def test_every_pair_in_both_orders_blind_and_never_again(tmp_path: Path, provider: FakeProvider) -> None:
    found = workspace(tmp_path, provider.url, pairs(6))
    summary = run(found)
    assert (dict(summary.asked), summary.n_calls, len(provider.calls)) == ({"ok": 12}, 12, 12)
    # The longer answer wins whatever seat it has: control's in even pairs, treatment's in odd ones.
    judged = rows(found, "SELECT request_id, shown_first, winner, preference FROM judgments ORDER BY ALL")
    assert judged == sorted(
        (f"p{index}", first, *(("control", 0.0) if index % 2 == 0 else ("treatment", 1.0)))
        for index in range(6)
        for first in ("control", "treatment")
    )
    sent = provider.calls[0].body
    assert "temperature" not in sent
    assert sent["output_config"]["format"]["type"] == "json_schema"
    assert len({call.user for call in provider.calls}) == 12
    assert not any(word in json.dumps(call.body) for call in provider.calls for word in ("treatment", "p0"))
    # 100 input and 50 output tokens a call at 1 and 5 dollars a million.
    assert summary.spent_usd == pytest.approx(12 * (100 * 1e-6 + 50 * 5e-6))
    again = run(found)
    assert (again.n_planned, again.n_known, len(provider.calls)) == (0, 12, 12)


def test_identical_answers_are_ties_without_a_call(tmp_path: Path, provider: FakeProvider) -> None:
    found = workspace(tmp_path, provider.url, pairs(3, response_a="same", response_b="same"))
    summary = run(found)
    assert (dict(summary.asked), len(provider.calls)) == ({"identical": 6}, 0)
    assert rows(found, "SELECT DISTINCT status, winner, preference, cost_usd FROM judgments") == [
        ("identical", "tie", 0.5, 0.0)
    ]


def test_an_unreadable_reply_is_repaired_once_with_the_error_quoted(tmp_path: Path) -> None:
    def behaviour(call: Call) -> Response:
        return longer_wins(call) if call.is_repair else Response("I prefer the first.")

    with FakeProvider(behaviour) as provider:
        found = workspace(tmp_path, provider.url, pairs(1))
        summary = run(found)
    assert (dict(summary.asked), summary.n_repairs, len(provider.calls)) == ({"ok": 2}, 2, 4)
    repair = next(call for call in provider.calls if call.is_repair)
    assert [message["role"] for message in repair.body["messages"]] == ["user", "assistant", "user"]
    assert "not one JSON object" in repair.body["messages"][-1]["content"]
    attempts = rows(found, "SELECT attempt, status, raw_reply FROM judgments ORDER BY attempt, status")
    assert [row[:2] for row in attempts] == [(1, "unparseable"), (1, "unparseable"), (2, "ok"), (2, "ok")]
    assert attempts[0][2] == "I prefer the first."


@pytest.mark.parametrize(
    ("response", "status", "reason", "n_calls"),
    [
        (Response("no verdict"), "unparseable", "unparseable", 2),
        (Response(""), "unparseable", "empty", 2),
        (Response("{", stop_reason="max_tokens"), "truncated", "truncated", 1),
        (Response("", stop_reason="refusal"), "refused", "refused", 1),
        (Response(status=400, error="invalid_request_error"), "error", "http_400", 1),
        (Response(status=529, error="overloaded_error"), "error", "http_529", 8),
        (Response("x", drop=True), "error", "cut", 3),
        (Response(raw=b'{"type": "message", "con'), "error", "malformed", 3),
    ],
)
def test_every_failure_is_a_visible_row_and_is_asked_again(
    tmp_path: Path, response: Response, status: str, reason: str, n_calls: int
) -> None:
    with FakeProvider(lambda call: response) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST + "concurrency = 1\n")
        summary = run(found)
        assert dict(summary.asked) == {status: 2}
        assert dict(summary.failed) == {reason: 2}
        assert len(provider.calls) == 2 * n_calls
        notes = rows(found, "SELECT note->>'$.error' FROM judgments ORDER BY attempt DESC LIMIT 1")
        assert notes == [(reason,)]
        provider.behaviour = longer_wins
        second = run(found)
    assert (second.n_planned, dict(second.asked)) == (2, {"ok": 2})
    assert rows(found, "SELECT count(*) FROM (SELECT judgment_id FROM judgments GROUP BY ALL HAVING count(*) > 1)") == [
        (0,)
    ]


def test_a_thinking_block_first_and_a_forced_tool(tmp_path: Path) -> None:
    def thinking(call: Call) -> Response:
        return Response(
            content=[{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": verdict()}]
        )

    def tool(call: Call) -> Response:
        name = call.body["tools"][0]["name"]
        return Response(
            content=[{"type": "tool_use", "id": "t", "name": name, "input": json.loads(verdict("tie"))}],
            stop_reason="tool_use",
        )

    with FakeProvider(thinking) as provider:
        found = workspace(tmp_path, provider.url, pairs(1))
        assert dict(run(found).asked) == {"ok": 2}
        (tmp_path / "judges").mkdir()
        shipped = (Path(__file__).parents[2] / "judges/pairwise.toml").read_text()
        (tmp_path / "judges/tooled.toml").write_text('reply = "tool"\n' + shipped)
        provider.behaviour = tool
        assert dict(run(found, judges=["tooled"]).asked) == {"ok": 2}
    assert rows(found, "SELECT DISTINCT winner FROM judgments WHERE judge = 'tooled'") == [("tie",)]


def test_429_waits_and_costs_nothing(tmp_path: Path) -> None:
    answers = iter([Response(status=429, headers={"retry-after": "0.05"}, error="rate_limit_error")] * 2)

    with FakeProvider(lambda call: next(answers, None) or longer_wins(call)) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST + "concurrency = 1\n")
        summary = run(found)
    assert (dict(summary.asked), dict(summary.retried)) == ({"ok": 2}, {"http_429": 2})
    assert rows(found, "SELECT count(*), sum(cost_usd) FROM judgments") == [(2, pytest.approx(2 * 0.00035))]


def test_a_call_that_is_always_told_to_wait_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalpipe.calls.runner.MAX_PAUSES", 4)
    waiting = Response(status=429, headers={"retry-after": "0.001"}, error="rate_limit_error")
    with FakeProvider(lambda call: waiting) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST + "concurrency = 1\n")
        summary = run(found)
        assert (len(provider.calls), dict(summary.failed)) == (2 * 4, {"http_429": 2})


def test_a_refused_key_stops_the_run_at_once_in_one_line(tmp_path: Path) -> None:
    with FakeProvider(lambda call: Response(status=401, error="authentication_error")) as provider:
        found = workspace(tmp_path, provider.url, pairs(50), settings=FAST + "concurrency = 4\n")
        with pytest.raises(UpstreamError, match="http_401: simulated failure"):
            run(found)
        assert len(provider.calls) <= 4


def test_the_cap_holds_over_runs_and_an_unknown_price_is_an_error(tmp_path: Path, provider: FakeProvider) -> None:
    provider.behaviour = lambda call: Response(verdict(), input_tokens=2000, output_tokens=1000)
    found = workspace(tmp_path, provider.url, pairs(20))
    cost = 2000 * 1e-6 + 1000 * 5e-6  # all but the worst case a call can cost
    summaries = [run(found, max_usd=0.05) for _ in range(2)]
    assert summaries[0].stopped == summaries[1].stopped == "budget"
    assert len(provider.calls) * cost <= 0.05
    assert len(provider.calls) >= 5
    unknown = workspace(tmp_path, provider.url, [], settings='model = "nobody-sells-this"\n')
    with pytest.raises(BudgetError, match="nobody-sells-this"):
        run(unknown, max_usd=0.05)


def test_a_changed_answer_or_model_is_asked_anew(tmp_path: Path, provider: FakeProvider) -> None:
    found = workspace(tmp_path, provider.url, pairs(2))
    run(found)
    (tmp_path / "evalpipe.toml").write_text((tmp_path / "evalpipe.toml").read_text() + 'model = "claude-opus-4-8"\n')
    assert run(open_workspace(tmp_path / "evalpipe.toml")).n_planned == 4
    for file in (tmp_path / "data/exchanges").rglob("*.parquet"):
        file.unlink()
    changed = [{**pair, "response_b": pair["response_b"] + " indeed"} for pair in pairs(2)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in [changed[0], pairs(2)[1]]))
    load(found, [tmp_path / "pairs.jsonl"], format_name="pairs")
    assert run(found).n_planned == 2  # both orders of the changed pair, of the first model


@pytest.mark.parametrize(("orders", "n_calls"), [("both", 400), ("balanced", 200)])
def test_orders(tmp_path: Path, provider: FakeProvider, orders: str, n_calls: int) -> None:
    found = workspace(tmp_path, provider.url, pairs(200), settings=f'{FAST}orders = "{orders}"\n')
    (estimate,) = estimate_judging(found, JudgeOptions())
    assert (estimate.calls, estimate.units) == (n_calls, 200)


def test_calibrated_judges_both_orders_of_a_share(tmp_path: Path, provider: FakeProvider) -> None:
    found = workspace(tmp_path, provider.url, pairs(400), settings=f'{FAST}orders = "calibrated"\n')
    (estimate,) = estimate_judging(found, JudgeOptions())
    assert 400 + 50 < estimate.calls < 400 + 50 + 130  # 50 pairs, and about a fifth of 350


def test_limit_names_the_same_pairs_every_time(tmp_path: Path, provider: FakeProvider) -> None:
    found = workspace(tmp_path, provider.url, pairs(20))
    assert run(found, limit=5).n_planned == 10
    assert run(found, limit=5).n_planned == 0
    assert run(found, limit=8).n_planned == 6
    assert run(found).n_planned == 24


def test_a_pointwise_judge_reads_each_answer_alone(tmp_path: Path) -> None:
    def behaviour(call: Call) -> Response:
        score = 1.0 if "long" in call.blocks["response"] else 0.25
        return Response(json.dumps({"reasoning": "r", "relevance": score, "faithfulness": 1}))

    with FakeProvider(behaviour) as provider:
        found = workspace(tmp_path, provider.url, pairs(2))
        assert dict(run(found, judges=["pointwise"]).asked) == {"ok": 4}
    judged = rows(
        found,
        "SELECT request_id, shown_first, control_scores['relevance'], treatment_scores['relevance'], winner, preference "
        "FROM judgments ORDER BY 1, 3 NULLS LAST",
    )
    assert judged == [
        ("p0", "neither", 1.0, None, None, None),
        ("p0", "neither", None, 0.25, None, None),
        ("p1", "neither", 0.25, None, None, None),
        ("p1", "neither", None, 1.0, None, None),
    ]


def test_an_openai_judge(tmp_path: Path, provider: FakeProvider) -> None:
    found = workspace(tmp_path, provider.url + "/v1", pairs(1))
    (tmp_path / "judges").mkdir()
    shipped = (Path(__file__).parents[2] / "judges/pairwise.toml").read_text()
    (tmp_path / "judges/open.toml").write_text(
        shipped.replace('"anthropic"', '"openai"', 1).replace("claude-haiku-4-5", "gpt-4o-mini")
    )
    assert dict(run(found, judges=["open"]).asked) == {"ok": 2}
    body = provider.calls[0].body
    assert body["response_format"]["json_schema"]["strict"] is True
    assert (body["messages"][0]["role"], body["max_tokens"]) == ("system", 1024)


def test_what_a_killed_run_had_in_flight_is_a_visible_row_and_counts_against_the_cap(
    tmp_path: Path, provider: FakeProvider
) -> None:
    found = workspace(tmp_path, provider.url, pairs(1))
    run(found)
    with open_store(found.data, "t") as store:
        (path,) = store.files[-1:]
    # The journal of a process that was killed: one call sent, never heard of again, and a torn last line.
    folder = judge_setup.journal_folder(found, "t")
    journal = Journal(folder)
    (spec,) = judge_setup.load_specs(found)
    with open_store(found.data, "t") as store:
        ask = calls_for(store.connection, spec, ["p0"])[0]
    journal.begin(sent(ask, 7, spec, booking=RecordedCost(cost_usd=0.01, at_most=0.04), at=SystemClock().utc()))
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"key": "torn')
    assert path.exists()
    run(found)
    assert rows(found, "SELECT status, cost_usd FROM judgments WHERE attempt = 7") == [("error", 0.01)]
    assert not list(folder.glob("journal-*"))
    with open_store(found.data, "t") as store:
        budget = judge_setup.budget_of(store, spec, None, call_runs.price_of(found, spec))
    # Two answers at $1 and $5 a million tokens; the lost call's question was answered with 100 input tokens, so it cannot have
    # cost more than those (and 200 for other codes in the tags) and the longest answer of 1,024 tokens.
    assert budget.spent == pytest.approx(2 * (100e-6 + 50 * 5e-6) + (100 + 200) * 1e-6 + 1024 * 5e-6)
    # The report says what was booked, and that it is not certain.
    (judged,) = analyze_workspace(found, details=False).judges
    assert judged.cost_usd == pytest.approx(2 * 0.00035 + 0.01)
    assert judged.cost_at_most_usd == pytest.approx(2 * 0.00035 + 0.04)


def test_a_lost_call_of_a_question_never_answered_stays_at_its_worst_and_the_summary_says_so(tmp_path: Path) -> None:
    with FakeProvider(lambda call: Response(status=400)) as provider:
        found = workspace(tmp_path, provider.url, pairs(1))
        (spec,) = judge_setup.load_specs(found)
        with open_store(found.data, "t") as store:
            ask = calls_for(store.connection, spec, ["p0"])[0]
        journal = Journal(judge_setup.journal_folder(found, "t"))
        journal.begin(sent(ask, 1, spec, booking=RecordedCost(cost_usd=0.01, at_most=0.04), at=SystemClock().utc()))
        journal.close()
        summary = run(found)
    assert summary.account is not None
    assert (summary.account.n_unsettled, summary.account.estimated_usd, summary.account.cap_usd) == (1, 0.01, 0.04)
    (line,) = [line for line in summary_lines([summary]) if "cut off" in line]
    assert "1 call was cut off" in line
    assert "$0.0100" in line
    assert "$0.0400" in line


def test_a_path_chooses_the_requests_that_are_judged(
    tmp_path: Path, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = workspace(tmp_path, provider.url, pairs(6))
    (tmp_path / "more.jsonl").write_text(json.dumps({**pairs(1)[0], "pair_id": "new"}) + "\n" + json.dumps(pairs(6)[5]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(["judge", "more.jsonl", "--json"])
    assert json.loads(capsys.readouterr().out)["runs"][0]["judgments"] == {"ok": 4}
    assert rows(found, "SELECT DISTINCT request_id FROM judgments ORDER BY 1") == [("new",), ("p5",)]


def test_the_cap_counts_what_was_spent_on_requests_that_are_not_selected_now(
    tmp_path: Path, provider: FakeProvider
) -> None:
    # Dear answers: what was spent is several times what a call can cost at most, some 0.011 USD.
    provider.behaviour = lambda call: Response(verdict(), input_tokens=2000, output_tokens=1000)
    found = workspace(tmp_path, provider.url, pairs(6))
    run(found, selection=read_selection(where="request_id <> 'p0'"))
    spent = 10 * (2000e-6 + 1000 * 5e-6)
    summary = run(found, selection=read_selection(where="request_id = 'p0'"), max_usd=spent + 0.005)
    assert (summary.stopped, summary.n_calls) == ("budget", 0)


@pytest.mark.parametrize("cap", [0.0, 0.001])
def test_a_cap_below_one_call_is_an_error_not_a_success(tmp_path: Path, provider: FakeProvider, cap: float) -> None:
    found = workspace(tmp_path, provider.url, pairs(1))
    with pytest.raises(
        BudgetError, match=r"nothing was asked: the next call can cost \$0\.0\d+, and .* raise --max-usd"
    ):
        run(found, max_usd=cap)
    assert provider.calls == []


def test_a_rotated_journal_loses_nothing_of_what_is_in_flight(tmp_path: Path) -> None:
    from evalpipe.models import Judgment, JudgmentStatus, ShownFirst

    def judgment(key: str, status: JudgmentStatus) -> Judgment:
        return Judgment(
            key=key,
            attempt=1,
            request_id=key,
            judge="j",
            judge_fingerprint="f",
            judge_model="m",
            shown_first=ShownFirst.CONTROL,
            status=status,
            note="lone \ud800 surrogate",
        )

    stored: dict[str, str] = {}

    def write(found: Any) -> int:
        new = {one.judgment_id: one.status.value for one in found if one.judgment_id not in stored}
        stored.update(new)
        return len(new)

    journal = Journal(tmp_path)
    journal.begin(judgment("a", JudgmentStatus.ERROR))
    journal.begin(judgment("b", JudgmentStatus.ERROR))
    journal.append(judgment("a", JudgmentStatus.OK))
    in_flight = journal.rotate()
    compact(tmp_path, write, keep=journal.path, in_flight=in_flight, rejected=tmp_path / "rejected")
    assert stored == {"a:1": "ok"}
    journal.append(judgment("b", JudgmentStatus.OK))
    journal.close()
    compact(tmp_path, write, rejected=tmp_path / "rejected")
    assert stored == {"a:1": "ok", "b:1": "ok"}


def test_two_runners_never_pay_twice(tmp_path: Path, provider: FakeProvider) -> None:
    found = workspace(tmp_path, provider.url, pairs(1))
    with (
        judging_lock(judge_setup.journal_folder(found, "t")),
        pytest.raises(WorkspaceBusyError, match=f"process {os.getpid()}"),
    ):
        run(found)
    assert provider.calls == []


def test_until_decided_stops_early_and_says_so(tmp_path: Path) -> None:
    def treatment_wins(call: Call) -> Response:
        first = "good" in call.blocks["response-1"]
        return Response(verdict("response_1" if first else "response_2", 5, 5))

    with FakeProvider(treatment_wins) as provider:
        found = workspace(
            tmp_path, provider.url, [{**pair, "response_a": "bad", "response_b": "good"} for pair in pairs(300)]
        )
        summary = run(found, until_decided=True)
        assert summary.stopped == "decided"
        assert str(summary.message).startswith("Ship the treatment: its answers were preferred in 100")
        n_first = len(provider.calls)
        assert 40 <= n_first < 300
        again = run(found, until_decided=True)
        assert (again.stopped, len(provider.calls)) == ("decided", n_first)
        # The plan is fixed from the first look of judging on, and the report says that judging stopped.
        with pytest.raises(ConfigError, match="its plan is fixed"):
            plan(found, metric="win_rate", effect="0.1", save=True)
        (told,) = stop_checks(found)
        assert (told.status, "would not have changed the decision" in told.detail) == ("pass", True)
        config = found.root / "evalpipe.toml"
        config.write_text(config.read_text() + '\n[decision]\nlooks = "fixed"\n')
        (told,) = stop_checks(open_workspace(config))
        assert (told.status, "too narrow" in told.detail) == ("warn", True)
        # Where the rest is judged after all, no stop is left to speak of.
        assert run(found).stopped is None
        assert stop_checks(found) == []


def stop_checks(found: Workspace) -> list[Check]:
    return [check for check in analyze_workspace(found, details=False).checks if check.name == "judging_stopped"]


def test_stored_replies_are_read_again_without_a_call(tmp_path: Path) -> None:
    with FakeProvider(lambda call: Response("prose")) as provider:
        found = workspace(tmp_path, provider.url, pairs(1))
        run(found)
        n_calls = len(provider.calls)
        assert reparse(found, JudgeOptions()) == {"pairwise": {}}
        # As if the reader had become better since: the stored text is one it can read.
        with open_store(found.data, "t") as store:
            files = [file for file in store.files if "judgments" in str(file)]
        import pyarrow as pa
        import pyarrow.parquet as pq

        for file in files:
            table = pq.ParquetFile(file).read()
            replies = pa.array([verdict("response_1")] * table.num_rows, pa.string())
            table = table.set_column(
                table.schema.get_field_index("raw_reply"), table.schema.field("raw_reply"), replies
            )
            file.unlink()
            pq.write_table(table, file.with_name("rewritten.parquet"))
        assert reparse(found, JudgeOptions()) == {"pairwise": {"ok": 2}}
        assert reparse(found, JudgeOptions()) == {"pairwise": {}}
        assert run(found).n_planned == 0
        assert len(provider.calls) == n_calls


def test_self_test_tells_a_judge_from_a_coin(tmp_path: Path) -> None:
    from evalpipe.judging.selftest import CASES

    good = {answer for _, _, (_, answer), _ in CASES}

    def knows(call: Call) -> Response:
        first, second = (call.blocks[f"response-{seat}"] in good for seat in (1, 2))
        return Response(verdict("tie" if first == second else "response_1" if first else "response_2", 5, 5))

    with FakeProvider(knows) as provider:
        found = workspace(tmp_path, provider.url, pairs(1))
        (test,) = self_test(found, JudgeOptions())
        assert (test.trusted, test.reasons) == (True, [])
        assert test.cost_usd == pytest.approx(2 * len(CASES) * 0.00035)
        provider.behaviour = lambda call: Response(verdict("response_1"))
        (test,) = self_test(found, JudgeOptions())
        assert not test.trusted
        assert test.shares == {"clear": 0.5, "injection": 0.5, "identical": 0.0}
    assert rows(found, "SELECT count(*) FROM judgments") == [(0,)]


def test_show_prompt_is_what_is_sent(tmp_path: Path, provider: FakeProvider) -> None:
    found = workspace(tmp_path, provider.url, pairs(2))
    shown = show_prompts(found, "p1", JudgeOptions())
    run(found)

    def without_nonce(document: dict[str, Any]) -> str:
        import re

        return re.sub(r"[0-9a-f]{16}", "NONCE", json.dumps(document, sort_keys=True))

    sent = {without_nonce(call.body) for call in provider.calls}
    assert len(shown) == 2
    assert all(without_nonce(one["sent"]) in sent for one in shown)
    with pytest.raises(DataError, match="no request 'nope'"):
        show_prompts(found, "nope", JudgeOptions())


def test_nothing_to_judge_and_a_missing_key_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", [])
    with pytest.raises(ConfigError, match="no data of experiment 't'"):
        run(found)
    one_armed = workspace(tmp_path, "http://127.0.0.1:9", pairs(1, response_b=None))
    with pytest.raises(
        DataError, match=r"no pairs to judge: 1 request is loaded, but the treatment answered none \(1 × no answer\)"
    ):
        run(one_armed)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set ANTHROPIC_API_KEY"):
        run(workspace(tmp_path, "https://api.example.com", []))
