"""What `evalpipe forget` and `prune` must not leave, where a run fails half way and where texts hide."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from spool_builders import T0, request, served, write_segment
from test_store_retention import DAY, SECRET, build, everything, numbers

from evalpipe.calls.journal import Journal, judging_lock
from evalpipe.errors import WorkspaceBusyError
from evalpipe.models import Judgment, JudgmentStatus, Label, ShownFirst
from evalpipe.store import removal
from evalpipe.store.query import open_store
from evalpipe.workspace import retention
from evalpipe.workspace.judge_setup import journal_folder
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace


class StoppedError(Exception):
    """The run ends here."""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build(tmp_path, reported=False)


def left(workspace: Workspace) -> list[str]:
    return [name for name, text in everything(workspace.root).items() if SECRET in text]


def stops_at(number: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, which raises in place of its number-th run."""
    n_calls = [0]

    def stopping(*arguments: Any, **named: Any) -> Any:
        n_calls[0] += 1
        if n_calls[0] == number:
            raise StoppedError
        return call(*arguments, **named)

    return stopping


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_stopped_before_any_dataset_the_next_run_finds_the_rest(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = numbers(workspace)
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(retention, "scrub", stops_at(number, retention.scrub))
        retention.forget(workspace, "alice")
    retention.forget(workspace, "alice")
    assert left(workspace) == []
    assert numbers(workspace) == before


def test_stopped_between_two_files_a_user_stays_one_user(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = numbers(workspace)
    rewrite = removal._rewrite
    stored = [0]

    def stopping(path: Path, *arguments: Any) -> int:
        stored[0] += "exchanges" in str(path)
        if stored[0] == 2:
            raise StoppedError
        return rewrite(path, *arguments)

    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(removal, "_rewrite", stopping)
        retention.forget(workspace, "alice")
    retention.forget(workspace, "alice")
    assert numbers(workspace) == before
    assert list((workspace.data / "experiments").glob(".forget-*")) == [], "nobody can compute the new id"


def test_until_the_old_file_is_deleted_each_row_is_read_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = numbers(workspace)
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(removal, "remove_superseded", stops_at(1, removal.remove_superseded))
        retention.forget(workspace, "alice")
    assert numbers(workspace) == before
    retention.forget(workspace, "alice")
    assert left(workspace) == []


def test_labels_journals_calls_and_errors_hold_texts_too(workspace: Workspace) -> None:
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": f'{{"q": "{SECRET}"}}'}}
    document = {
        "id": "c",
        "object": "chat.completion",
        "model": "gpt-4o",
        "choices": [
            {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [call]}}
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }
    failure = {"error": {"message": f"cannot read {SECRET}", "type": "invalid_request_error"}}
    body = {"model": "gpt-4o", "user": "alice", "messages": [{"role": "user", "content": "hello"}]}
    records = [
        request("called", eligible=False, body=body),
        served("called", body=document),  # type: ignore[arg-type]
        request("failed", eligible=False, body=body),
        served("failed", body=failure, status=400),  # type: ignore[arg-type]
    ]
    write_segment(workspace.spool, "served-3.000001", records)
    load(workspace)
    pair = {"pair_id": "imported", "unit_id": "alice", "prompt": "hello", "response_a": "a", "response_b": "b"}
    (workspace.root / "pairs.jsonl").write_text(json.dumps(pair | {"meta": {"ticket": SECRET}}))
    load(workspace, [workspace.root / "pairs.jsonl"], experiment="exp")
    (workspace.root / "pairs.jsonl").unlink()
    with open_store(workspace.data, "exp") as store:
        store.write_labels(
            [Label(request_id="alice-0", preference=1.0, source="human", labeler="l", note=f"{SECRET} is better")]
        )
    journal = Journal(journal_folder(workspace, "exp"))
    told = Judgment(
        key="k",
        attempt=1,
        request_id="alice-1",
        judge="pairwise",
        judge_fingerprint="f",
        judge_model="m",
        shown_first=ShownFirst.CONTROL,
        status=JudgmentStatus.OK,
        raw_reply=f"{SECRET} is better",
    )
    journal.append(told)
    journal.append(replace(told, attempt=2, status=JudgmentStatus.UNPARSEABLE, note=f'{{"message": "not {SECRET}"}}'))
    journal.close()
    done = retention.forget(workspace, "alice")[0]
    assert (done.labels, done.judgments, done.exchanges) == (1, 8, 16)
    assert left(workspace) == []
    noted = [one["event"] for one in retention.removals(workspace.data, "exp")]
    assert noted == ["begun", "done"]


def test_nothing_is_removed_beside_a_judge_that_runs(workspace: Workspace) -> None:
    with judging_lock(journal_folder(workspace, "exp")), pytest.raises(WorkspaceBusyError, match="is judging"):
        retention.forget(workspace, "alice")


def test_a_dry_run_changes_no_file(workspace: Workspace) -> None:
    now = datetime.fromtimestamp(T0 + 300 * DAY, UTC)
    before = everything(workspace.root)
    planned = retention.prune(workspace, older_than="1d", now=now, dry_run=True)
    assert planned.exchanges > 0 and planned.rejected == 2
    assert everything(workspace.root) == before
    assert retention.prune(workspace, older_than="1d", now=now).rejected == 2
    assert not list((workspace.data / "rejected").glob("*.jsonl"))
