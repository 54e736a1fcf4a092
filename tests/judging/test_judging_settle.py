"""`evalpipe judge settle`: calls whose cost nobody reported stop holding the cap, on the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_provider import FakeProvider, longer_wins
from test_judging_run import pairs, run, workspace

from evalpipe.calls.journal import Journal
from evalpipe.cli.app import main
from evalpipe.errors import ConfigError, DataError
from evalpipe.judging.costs import read_settlements, settlements_folder
from evalpipe.judging.judgments import RecordedCost, sent
from evalpipe.judging.plan import calls_for
from evalpipe.judging.runner import SystemClock
from evalpipe.store.query import open_store
from evalpipe.workspace import call_runs, judge_setup
from evalpipe.workspace.analyze import analyze_workspace
from evalpipe.workspace.judge_review import settle
from evalpipe.workspace.judge_setup import JudgeOptions
from evalpipe.workspace.paths import Workspace

OPTIONS = JudgeOptions()
# One order of the first pair was answered: 100 input and 50 output tokens at 1 and 5 USD a million.
ANSWERED = 100e-6 + 50 * 5e-6


def crashed(root: Path, url: str) -> Workspace:
    """A log of five pairs whose judge was killed with three calls in flight, each estimated at 0.01 and at most 0.04 USD."""
    found = workspace(root, url, pairs(5))
    (spec,) = judge_setup.load_specs(found)
    journal = Journal(judge_setup.journal_folder(found, "t"))
    with open_store(found.data, "t") as store:
        asks = [calls_for(store.connection, spec, [f"p{n}"])[0] for n in range(3)]
    for ask in asks:
        booking = RecordedCost(cost_usd=0.01, at_most=0.04)
        journal.begin(sent(ask, 1, spec, booking=booking, at=SystemClock().utc()))
    journal.close()
    return found


def held(found: Workspace) -> float:
    """What counts against a cap."""
    (spec,) = judge_setup.load_specs(found)
    with open_store(found.data, "t") as store:
        return judge_setup.budget_of(store, spec, 1.0, call_runs.price_of(found, spec)).spent


@pytest.mark.parametrize(
    ("how", "settled_usd"),
    [({"usd": 0.03}, 0.03), ({"bill": 0.03}, 0.03), ({"worst_case": True}, 0.12), ({"usd": 0.0}, 0.0)],
)
def test_what_is_settled_is_known_from_then_on(tmp_path: Path, how: dict[str, float], settled_usd: float) -> None:
    with FakeProvider(longer_wins) as provider:
        found = crashed(tmp_path, provider.url)
        (shown,) = settle(found, OPTIONS)
        assert (shown.before.n_unsettled, shown.settlement) == (3, None)
        assert (shown.before.estimated_usd, shown.before.at_most_usd) == (pytest.approx(0.03), pytest.approx(0.12))
        assert held(found) == pytest.approx(0.12)
        (done,) = settle(found, OPTIONS, **how)  # type: ignore[arg-type]
        assert done.settlement is not None
        assert (done.settlement.usd, len(done.settlement.calls)) == (pytest.approx(settled_usd), 3)
        assert held(found) == pytest.approx(settled_usd)
        (again,) = settle(found, OPTIONS, worst_case=True)  # nothing is left to settle
        assert (again.settlement, again.before.n_unsettled) == (None, 0)
        assert len(read_settlements(settlements_folder(found.data, "t"))) == 1
        # The cap that was blocked is open again: ten judgments, each of a worst case below 0.012 USD.
        summary = run(found, max_usd=settled_usd + 0.05)
        assert (summary.n_succeeded, summary.stopped) == (10, None)
        assert summary.account is not None
        assert summary.account.known_usd == pytest.approx(settled_usd + 10 * ANSWERED)
    (judged,) = analyze_workspace(found, details=False).judges
    assert (judged.cost_usd, judged.cost_at_most_usd) == (pytest.approx(settled_usd + 10 * ANSWERED), None)


def test_what_breaks_off_later_is_settled_later(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = crashed(tmp_path, provider.url)
        settle(found, OPTIONS, usd=0.02)
        (spec,) = judge_setup.load_specs(found)
        with open_store(found.data, "t") as store:
            ask = calls_for(store.connection, spec, ["p4"])[0]
        journal = Journal(judge_setup.journal_folder(found, "t"))
        journal.begin(sent(ask, 1, spec, booking=RecordedCost(cost_usd=0.01, at_most=0.05), at=SystemClock().utc()))
        journal.close()
        (shown,) = settle(found, OPTIONS)
        assert (shown.before.n_unsettled, shown.before.known_usd) == (1, pytest.approx(0.02))
        assert held(found) == pytest.approx(0.02 + 0.05)
        (done,) = settle(found, OPTIONS, bill=0.025)  # of which 0.02 is known
        assert done.settlement is not None
        assert done.settlement.usd == pytest.approx(0.005)
    (judged,) = analyze_workspace(found, details=False).judges
    assert judged.cost_usd == pytest.approx(0.025)


def test_amounts_that_cannot_be_are_refused_and_settle_nothing(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = crashed(tmp_path, provider.url)
        run(found)
        with pytest.raises(DataError, match=r"a bill of \$0\.0010 is less than"):
            settle(found, OPTIONS, bill=0.001)
        with pytest.raises(DataError, match=r"cannot have cost \$5\.0000"):
            settle(found, OPTIONS, usd=5.0)
        with pytest.raises(ConfigError, match="one of --bill"):
            settle(found, OPTIONS, usd=0.1, worst_case=True)
        with pytest.raises(ConfigError, match=r"one judge's: name it with --judge \(pairwise, strict\)"):
            settle(found, JudgeOptions(judges=("pairwise", "strict")), bill=0.5)
        with pytest.raises(ConfigError, match="not nan"):
            settle(found, OPTIONS, usd=float("nan"))
        assert read_settlements(settlements_folder(found.data, "t")) == []


def test_the_command_prints_what_is_held_and_a_kill_leaves_no_half_settlement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = crashed(tmp_path, "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        main(["judge", "settle"])
    out = capsys.readouterr().out
    assert "3 calls whose cost was not reported, estimated at $0.0300 and held at $0.1200" in out
    assert "settle them with --bill USD" in out
    with monkeypatch.context() as killed:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        killed.setattr("evalpipe.files.os.fsync", die)
        with pytest.raises(SystemExit, match="130"):
            main(["judge", "settle", "--usd", "0.05"])
    assert read_settlements(settlements_folder(found.data, "t")) == []
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["judge", "settle", "--usd", "0.05", "--json"])
    (document,) = json.loads(capsys.readouterr().out)["settlements"]
    assert (document["unsettled_calls"], document["held_usd"], document["settled"]["usd"]) == (
        3,
        pytest.approx(0.12),
        0.05,
    )
    assert document["counted_against_the_cap_usd"] == pytest.approx(0.05)
