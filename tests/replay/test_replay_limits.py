"""The cap, failures and refusals of a replay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from replay_harness import NOON, logged, query, run, workspace, write
from typer.testing import CliRunner

from evalpipe.calls.batches import BatchItem, BatchState, save_intent
from evalpipe.calls.budget import MostTokens
from evalpipe.cli.app import build_app
from evalpipe.errors import BudgetError, ConfigError, DataError, UpstreamError
from evalpipe.sim.app import Simulator, start_sim
from evalpipe.sim.settings import SimSettings
from evalpipe.store.replays import folder_of
from evalpipe.workspace.paths import open_workspace


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with start_sim(SimSettings(ttft_ms=1, tokens_per_second=100_000)) as found:
        yield found


@pytest.fixture(autouse=True)
def plain(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    sim.reset()
    monkeypatch.setattr("evalpipe.calls.runner.BACKOFF_S", 0.001)
    yield
    sim.configure(faults={})


def test_the_cap_is_never_passed_and_a_higher_one_goes_on(tmp_path: Path, sim: Simulator) -> None:
    found = workspace(tmp_path, sim.base_url, [logged(number) for number in range(30)])
    with pytest.raises(BudgetError, match="nothing was sent"):
        run(found, max_usd=0.001)
    assert sim.ledger()["calls"] == 0
    summary = run(found, max_usd=0.016)
    assert summary.stopped == "budget" and 0 < summary.n_answered < 30
    assert sim.ledger()["billed"]["usd"] <= 0.016
    rest = run(found, max_usd=10.0)
    assert (rest.n_answered, sim.ledger()["calls"]) == (30 - summary.n_answered, 30)
    with pytest.raises(BudgetError, match="is not known"):
        run(workspace(tmp_path / "b", sim.base_url, [logged(1)], models=("gpt-4.1-mini", "nobody-knows")), max_usd=1.0)


def test_calls_without_a_price_count_once_there_is_one(tmp_path: Path, sim: Simulator) -> None:
    """What was answered, at its tokens; what broke off, at one token a byte and the longest answer: 2,000 tokens."""
    rows = [logged(number) for number in range(3)]
    found = workspace(tmp_path, sim.base_url, rows, models=("gpt-4.1-mini", "claude-nobody-knows"))
    assert run(found).n_answered == 3
    sim.configure(faults={"cut": 1.0})
    write(found.data, [logged(number) for number in range(3, 6)])
    assert run(found).account.cap_usd == 0
    n_broken = sim.ledger()["calls"] - 3
    assert n_broken == 9, "three tries each, all of which may be billed"

    file = tmp_path / "evalpipe.toml"
    file.write_text(file.read_text() + '[prices."claude-nobody-knows"]\ninput = 1.0\noutput = 5.0\n')
    write(found.data, [logged(6)])
    n_input, n_output = query(
        found, "SELECT sum(input_tokens), sum(output_tokens) FROM exchanges WHERE role = 'replay' AND status = 200"
    )[0]
    # A request is some hundred bytes, and a provider may add 1,000 tokens of its own.
    least = n_broken * (1000 * 1e-6 + 2000 * 5e-6)
    capped = run(open_workspace(file), max_usd=least)
    assert (capped.stopped, capped.n_calls) == ("budget", 0)
    assert capped.account.known_usd == pytest.approx((n_input + 5 * n_output) * 1e-6)
    assert capped.account.n_unsettled == n_broken and least < capped.account.at_most_usd < 1.1 * least


def test_open_batches_of_either_arm_hold_the_cap(tmp_path: Path, sim: Simulator) -> None:
    """Submitted at a known price, or without one: then at the most tokens of each request, at today's batch price."""
    found = workspace(tmp_path, sim.base_url, [logged(1)])
    folder = folder_of(found.data, "exp") / "batches"
    facts = {"fingerprint": "f", "provider": "openai", "created_at": NOON, "state": "submitted", "batch_id": "b"}
    save_intent(folder, BatchState(name="a", judge="control", n_items=0, at_most_usd=0.25, **facts), [])
    # claude-haiku-4-5 in a batch: 0.5 and 2.5 USD a million tokens
    item = BatchItem(
        custom_id="c", attempt=1, request_id="r", most_tokens=MostTokens(input_tokens=10**5, output_tokens=10**5)
    )
    open_item = msgspec.structs.asdict(item) | {"arm": "treatment"}
    unpriced = BatchState(name="b", judge="treatment", n_items=1, **facts)
    save_intent(folder, unpriced, [item])
    (folder / "b.jsonl").write_bytes(msgspec.json.encode(open_item) + b"\n")
    with pytest.raises(BudgetError, match="can cost"):
        run(found, max_usd=0.25 + 0.3 + 0.005)
    assert sim.ledger()["calls"] == 0
    assert run(found, max_usd=0.25 + 0.3 + 0.05).n_answered == 1


def test_errors_are_retried_but_where_they_are_measured(tmp_path: Path, sim: Simulator) -> None:
    sim.configure(faults={"500": 0.3})
    rows = [logged(number) for number in range(30)]
    retried = run(workspace(tmp_path / "a", sim.base_url, rows))
    assert (retried.n_answered, retried.retried["http_500"] > 0) == (30, True)
    measured = workspace(tmp_path / "b", sim.base_url, rows)
    summary = run(measured, with_control=True)
    assert summary.failed["http_500"] > 0 and not summary.retried
    failed = query(
        measured, "SELECT count(*) FROM exchanges WHERE role = 'replay' AND outcome = 'http_error' AND status = 500"
    )
    assert failed == [(summary.failed["http_500"],)]
    assert run(measured, with_control=True).n_planned == 0  # that is the arms' answer
    sim.configure(faults={})
    again = run(measured, with_control=True, retry_failed=True)
    assert again.n_answered == summary.failed["http_500"]
    assert query(measured, "SELECT count(*) FROM exchanges WHERE role = 'replay' AND outcome = 'ok'") == [(60,)]


def test_a_refused_key_or_a_wrong_address_ends_the_run_in_one_line(tmp_path: Path, sim: Simulator) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", [logged(number) for number in range(5)])
    with pytest.raises(UpstreamError, match=r"arms.treatment: .* cannot be reached") as unreached:
        run(found)
    assert "\n" not in str(unreached.value)
    assert query(found, "SELECT count(*) FROM exchanges WHERE role = 'replay'") == [(0,)]


def test_another_configuration_needs_an_experiment_of_its_own(tmp_path: Path, sim: Simulator) -> None:
    rows = [logged(number) for number in range(3)]
    run(workspace(tmp_path, sim.base_url, rows))
    with pytest.raises(ConfigError, match="control_from"):
        run(workspace(tmp_path, sim.base_url, treatment="params = { temperature = 0.5 }"))
    second = workspace(
        tmp_path, sim.base_url, experiment="second", control_from="exp", treatment="params = { temperature = 0.5 }"
    )
    assert run(second).n_answered == 3
    assert query(second, "SELECT count(*) FROM pairs", "second") == [(3,)]


def test_what_cannot_be_replayed_is_said(tmp_path: Path, sim: Simulator) -> None:
    with pytest.raises(ConfigError, match="mode = 'shadow'"):
        run(workspace(tmp_path / "a", sim.base_url, [logged(1)], mode="ab"))
    with pytest.raises(DataError, match="control_failed 1"):
        run(workspace(tmp_path / "b", sim.base_url, [logged(1, outcome="http_error")]))


def test_a_sample_is_by_user_and_a_larger_one_holds_it(tmp_path: Path, sim: Simulator) -> None:
    rows = [logged(5 * user + n, user=f"u{user}") for user in range(10) for n in range(5)]
    rows += [logged(100, user="u1", turn=2, conversation_id="c5")]
    found = workspace(tmp_path, sim.base_url, rows)
    assert run(found, users=4, pairs_per_unit=2).n_answered == 8
    first = query(found, "SELECT DISTINCT unit_id FROM exchanges WHERE role = 'replay'")
    assert len(first) == 4
    assert run(found, users=6, pairs_per_unit=2).n_answered == 4
    more = query(found, "SELECT DISTINCT unit_id FROM exchanges WHERE role = 'replay'")
    assert len(more) == 6 and set(first) < set(more)
    per_user = query(found, "SELECT DISTINCT count(*) FROM exchanges WHERE role = 'replay' GROUP BY unit_id")
    assert per_user == [(2,)]


def test_it_asks_before_it_spends(tmp_path: Path, sim: Simulator) -> None:
    workspace(tmp_path, sim.base_url, [logged(number) for number in range(3)])
    arguments = ["replay", "--config", str(tmp_path / "evalpipe.toml")]
    with pytest.raises(ConfigError, match="add --yes"):
        CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    shown = CliRunner().invoke(build_app(), [*arguments, "--estimate", "--json"], catch_exceptions=False)
    estimate = json.loads(shown.stdout)["estimate"]
    assert (estimate["calls"], estimate["users"], estimate["usd"] > 0) == (3, 3, True)
    assert estimate["batch_usd"] == pytest.approx(estimate["usd"] / 2)
    assert sim.ledger()["calls"] == 0
    done = CliRunner().invoke(build_app(), [*arguments, "--yes", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["replay"]["answered"] == 3
