"""Batches against the simulated provider's batch APIs: half price, every item once, whatever moment a run was killed at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from evalpipe.calls import batch_client
from evalpipe.calls.batches import intents
from evalpipe.judging.runner import RunSummary
from evalpipe.sim.app import start_sim
from evalpipe.sim.settings import JudgeBehaviour, SimSettings
from evalpipe.store.query import open_store
from evalpipe.workspace.judge import batch_statuses, cancel_batches, judge, judge_by_batches
from evalpipe.workspace.judge_setup import JudgeOptions, batches_folder
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace

STATED = JudgeBehaviour(behaviour="stated", accuracy=0.9)


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalpipe.calls.batches.FIRST_POLL_S", 0.05)
    monkeypatch.setattr("evalpipe.calls.batches.SETTLING_S", 0.2)


@pytest.fixture
def sim() -> Iterator[Any]:
    with start_sim(SimSettings(judge=STATED, batch_seconds=0.1)) as found:
        yield found


def workspace(root: Path, url: str, n: int = 5, texts: Sequence[str] = ()) -> Workspace:
    (root / "evalpipe.toml").write_text(f'[experiment]\nname = "t"\n[judge]\nbase_url = "{url}"\n')
    rows = [
        {"pair_id": f"p{i}", "prompt": f"q{i}", "response_a": f"one {text}", "response_b": f"another {text}"}
        for i, text in enumerate(texts or map(str, range(n)))
    ]
    (root / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = open_workspace(root / "evalpipe.toml")
    load(found, [root / "pairs.jsonl"], format_name="pairs")
    return found


def run(found: Workspace, **options: Any) -> RunSummary:
    (summary,) = judge(found, JudgeOptions(show_progress=False, **options), by=judge_by_batches)
    return summary


def final_rows(found: Workspace) -> Counter[tuple[str, str]]:
    with open_store(found.data, "t") as store:
        rows = store.connection.execute(
            "SELECT request_id, shown_first FROM judgments WHERE status IN ('ok', 'identical')"
        ).fetchall()
    return Counter(rows)


def each_once(found: Workspace, n: int = 5) -> bool:
    return final_rows(found) == {(f"p{i}", first): 1 for i in range(n) for first in ("control", "treatment")}


def test_a_batch_from_intent_to_parquet_at_half_the_price(tmp_path: Path, sim: Any) -> None:
    found = workspace(tmp_path, sim.base_url)
    summary = run(found)
    assert dict(summary.asked) == {"ok": 10}
    assert each_once(found)
    assert summary.spent_usd == pytest.approx(sim.ledger()["billed"]["usd"])
    assert summary.spent_usd == pytest.approx((summary.input_tokens * 1e-6 + summary.output_tokens * 5e-6) / 2)
    assert summary.n_simulated == 10
    assert [one.state for one in intents(batches_folder(found, "t"))] == ["collected"]
    assert run(found).n_planned == 0


@pytest.mark.parametrize("collected", [False, True])
def test_killed_between_submitted_and_acknowledged_the_batch_is_found_again(
    tmp_path: Path, sim: Any, collected: bool
) -> None:
    found = workspace(tmp_path, sim.base_url)
    other = workspace_of_another_project(tmp_path / "other", sim)
    forget(found, run, keep_rows=collected)
    n_calls = sim.ledger()["calls"]
    run(found)
    assert sim.ledger()["calls"] == n_calls
    assert each_once(found)
    assert each_once(other)


def workspace_of_another_project(folder: Path, sim: Any) -> Workspace:
    """The same key is used elsewhere: its batches of the same size are not ours."""
    folder.mkdir()
    found = workspace(folder, sim.base_url)
    (folder / "evalpipe.toml").write_text((folder / "evalpipe.toml").read_text() + 'model = "claude-opus-4-8"\n')
    found = open_workspace(folder / "evalpipe.toml")
    run(found)
    return found


def forget(found: Workspace, judge_it: Any, *, keep_rows: bool) -> None:
    """Judge, and then put the disk back to the moment before the provider's answer to the submission was read."""
    folder = batches_folder(found, "t")
    saved: dict[Path, bytes] = {}
    original = Path.replace

    def remember(self: Path, target: Any) -> Path:
        if Path(target).parent == folder and Path(target) not in saved:
            saved[Path(target)] = self.read_bytes()
        return original(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", remember)
        judge_it(found)
    for path, content in saved.items():
        path.write_bytes(content)
    assert [one.state for one in intents(folder)] == ["intended"]
    if not keep_rows:
        for file in (found.data / "judgments").rglob("*.parquet"):
            file.unlink()


def test_an_intent_that_never_arrived_is_given_up_and_asked_anew(tmp_path: Path, sim: Any) -> None:
    found = workspace(tmp_path, sim.base_url)
    forget(found, run, keep_rows=False)
    (lost,) = intents(batches_folder(found, "t"))
    assert lost.at_most_usd is not None
    # Another provider, which never heard of the batch. What was held for it is free again: the cap has no room for two.
    with start_sim(SimSettings(judge=STATED, batch_seconds=0.1)) as fresh:
        judge = f'[judge]\nbase_url = "{fresh.base_url}"\nmax_usd = {lost.at_most_usd * 1.2}\n'
        (tmp_path / "evalpipe.toml").write_text(f'[experiment]\nname = "t"\n{judge}')
        moved = open_workspace(tmp_path / "evalpipe.toml")
        run(moved)
        assert fresh.ledger()["calls"] == 10
    assert each_once(moved)
    assert sorted(one.state for one in intents(batches_folder(moved, "t"))) == ["abandoned", "collected"]


def test_open_batches_are_seen_cancelled_and_not_asked_online_meanwhile(tmp_path: Path) -> None:
    with start_sim(SimSettings(judge=STATED, batch_seconds=3600)) as sim:
        found = workspace(tmp_path, sim.base_url)
        import threading

        from evalpipe.calls import batches as calls_batches

        submitted = threading.Event()
        original = calls_batches.save_state

        class Killed(BaseException):
            pass

        def killed_after_acknowledgement(folder: Path, intent: Any) -> None:
            original(folder, intent)
            if intent.state == "submitted":
                submitted.set()
                raise Killed

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(calls_batches, "save_state", killed_after_acknowledgement)
            run(found)
        assert submitted.is_set()
        (seen,) = batch_statuses(found, JudgeOptions())
        assert (seen["requests"], seen["state"]) == (10, "in_progress")
        (online,) = judge(found, JudgeOptions(show_progress=False))
        assert online.n_planned == 0
        cancel_batches(found, JudgeOptions())
        sim.configure(batch_seconds=0.1)
        summary = run(found)
        assert summary.asked["ok"] == 10
        assert summary.failed["canceled"] == 10
        assert each_once(found)


def test_the_cap_bounds_what_a_batch_may_cost(tmp_path: Path, sim: Any) -> None:
    found = workspace(tmp_path, sim.base_url, n=40)
    summary = run(found, max_usd=0.03)
    assert summary.stopped == "budget"
    assert 0 < sim.ledger()["billed"]["usd"] <= 0.03


NASTY = ("plain words", "\N{GRINNING FACE}" * 200, "\x01\x02" * 200, 'quoted "text"\n\\' * 100, "\u4e2d\u6587" * 200)
VENDORS = {"anthropic": ("claude-haiku-4-5", ""), "openai": ("gpt-4o-mini", "/v1")}


def vendor_workspace(root: Path, url: str, vendor: str) -> Workspace:
    """Five pairs of texts that grow when they become JSON, and a judge of this vendor."""
    model, prefix = VENDORS[vendor]
    (root / "judges").mkdir()
    shipped = (Path(__file__).parents[2] / "judges/pairwise.toml").read_text()
    changed = shipped.replace('"anthropic"', f'"{vendor}"', 1).replace("claude-haiku-4-5", model)
    (root / "judges/pairwise.toml").write_text(changed)
    return workspace(root, url + prefix, texts=NASTY)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("bound", ["requests", "bytes"])
def test_what_does_not_fit_one_batch_goes_into_several(
    tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch, vendor: str, bound: str
) -> None:
    """The provider refuses a batch above its bounds, which stand here at a few requests, or a few of the long ones."""
    most_requests, most_bytes = (3, 10**9) if bound == "requests" else (10**6, 20_000)
    client = batch_client._MessageBatches if vendor == "anthropic" else batch_client._OpenAIBatches
    monkeypatch.setattr(client, "max_requests", most_requests)
    monkeypatch.setattr(client, "max_bytes", most_bytes)
    monkeypatch.setattr(f"evalpipe.sim.batches.{vendor.upper()}_MAX_REQUESTS", most_requests)
    monkeypatch.setattr(f"evalpipe.sim.batches.{vendor.upper()}_MAX_BYTES", most_bytes)
    found = vendor_workspace(tmp_path, sim.base_url, vendor)
    summary = run(found)
    assert (summary.asked["ok"], summary.failed) == (10, Counter())
    batches = Counter(call["batch_id"] for call in sim.ledger(calls=True)["log"])
    assert sum(batches.values()) == 10
    if bound == "requests":
        assert sorted(batches.values()) == [1, 3, 3, 3]
    else:
        assert 2 <= len(batches) < 10
    assert each_once(found)


def test_the_vendors_bounds() -> None:
    """https://docs.anthropic.com/en/docs/build-with-claude/batch-processing and https://platform.openai.com/docs/guides/batch"""
    assert (batch_client._MessageBatches.max_requests, batch_client._MessageBatches.max_bytes) == (100_000, 256_000_000)
    assert (batch_client._OpenAIBatches.max_requests, batch_client._OpenAIBatches.max_bytes) == (50_000, 200_000_000)


def test_openai_batches(tmp_path: Path, sim: Any) -> None:
    found = workspace(tmp_path, sim.base_url + "/v1")
    (tmp_path / "judges").mkdir()
    shipped = (Path(__file__).parents[2] / "judges/pairwise.toml").read_text()
    (tmp_path / "judges/pairwise.toml").write_text(
        shipped.replace('"anthropic"', '"openai"', 1).replace("claude-haiku-4-5", "gpt-4o-mini")
    )
    forget(found, run, keep_rows=False)
    n_calls = sim.ledger()["calls"]
    run(found)
    assert (each_once(found), sim.ledger()["calls"]) == (True, n_calls)
