"""After a power loss: the ordinary commands run on what the disk holds, and nothing that was reported as stored is missing.

Each check gets the folder and what was promised before the power went, and raises where a promise is broken.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from power_runs import LATER, SECRET

from evalpipe.calls.batches import OPEN, intents
from evalpipe.judging.batches import items_of
from evalpipe.judging.costs import settled_calls, settlements_folder
from evalpipe.spool.checkpoint import OWN_PREFIX, load_state
from evalpipe.spool.format import RequestRecord, ShadowRecord, read_record
from evalpipe.spool.reader import SpoolTail
from evalpipe.spool.segments import holds_log
from evalpipe.store.query import open_store
from evalpipe.workspace import compact, load, retention
from evalpipe.workspace.canary import open_history
from evalpipe.workspace.decide import exclusions
from evalpipe.workspace.judge_setup import batches_folder, journal_folder, recover
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.record import load_record
from evalpipe.workspace.secrets import key_fingerprint, unit_key


def _of(promised: list[Any], name: str) -> list[Any]:
    return [one[name] for one in promised if name in one]


def _rows(workspace: Workspace, experiment: str = "exp") -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    with open_store(workspace.data, experiment) as store:
        assert not store.damaged, f"damaged: {store.damaged}"
        rows = store.connection.sql("SELECT request_id, arm, outcome FROM exchanges").fetchall()
    for request_id, arm, outcome in rows:
        found.setdefault(request_id, []).append((arm, outcome))
    return found


def _loaded(workspace: Workspace, experiment: str = "exp") -> dict[str, list[tuple[str, str]]]:
    """What the next `evalpipe load` makes of it, and the one after that."""
    if workspace.spool.is_dir() and holds_log(workspace.spool):
        load.load(workspace)
        if holds_log(workspace.spool):
            before = _rows(workspace, experiment)
            load.load(workspace)
            assert _rows(workspace, experiment) == before, "a second load adds rows"
            return before
    return _rows(workspace, experiment)


def check_spool(root: Path, promised: list[Any]) -> None:
    found = _loaded(open_workspace(root=root))
    wanted = {name for names in _of(promised, "served") for name in names}
    missing = sorted(name for name in wanted if found.get(name) != [("control", "ok")])
    assert not missing, f"lost after their sync: {missing[:4]} ({len(missing)} of {len(wanted)})"
    assert all(len(rows) == 1 for rows in found.values()), "a request is stored twice"


def check_load(root: Path, promised: list[Any]) -> None:
    workspace = open_workspace(root=root)
    decided = {name for names in _of(promised, "decided") for name in names}
    _no_copy_twice(workspace, decided)
    wanted = {name for names in _of(promised, "pairs") for name in names}
    found = _loaded(workspace)
    both = [("control", "ok"), ("treatment", "ok")]
    missing = sorted(name for name in wanted if sorted(found.get(name, [])) != both)
    assert not missing, f"lost or incomplete: {missing[:4]} ({len(missing)} of {len(wanted)}): {found.get(missing[0])}"
    assert all(len(rows) == len({arm for arm, _ in rows}) for rows in found.values()), "a row is stored twice"
    rejected = Counter(
        str(json.loads(line))
        for path in (workspace.data / "rejected").glob("*.jsonl")
        for line in path.read_bytes().splitlines()
    )
    for words in _of(promised, "rejected"):
        n = sum(count for line, count in rejected.items() if words in line)
        assert n == 1, f"the line that is {words!r} is there {n} times among the rejected ones"


def check_compaction(root: Path, promised: list[Any]) -> None:
    """What was loaded is read once, as it was found and after the next compaction, which leaves nothing over."""
    workspace = open_workspace(root=root)
    wanted = {name for names in _of(promised, "loaded") for name in names}
    if not (workspace.data / "exchanges").is_dir():
        assert not wanted
        return

    def whole(found: dict[str, list[tuple[str, str]]]) -> None:
        missing = sorted(name for name in wanted if found.get(name) != [("control", "ok")])
        assert not missing, f"lost or twice: {missing[:4]} ({len(missing)} of {len(wanted)})"
        assert all(len(rows) == 1 for rows in found.values()), "a row is read twice"

    found = _rows(workspace)
    whole(found)
    whole(_loaded(workspace))
    if workspace.loaded_experiments() and _rows(workspace):
        compact.compact(workspace, grace_minutes=0, show_progress=False)
        whole(_rows(workspace))
        assert found.items() <= _rows(workspace).items(), "the next compaction lost a row"
        assert len(list(workspace.data.glob("exchanges/*/*/*.parquet"))) == 1, "something is left over"


def _no_copy_twice(workspace: Workspace, decided: set[str]) -> None:
    """A successor of the treatment process starts here: it comes across no request whose copy was decided on before, unless it
    knows the decision; nor does it forget what was spent."""
    if not workspace.spool.is_dir():
        return
    state = load_state(workspace.spool)
    known = set(state.decided)
    for prefix in (OWN_PREFIX, "served-"):
        tail = SpoolTail(workspace.spool, prefix, state.offsets)
        tail.look_for_segments()
        for line in tail.read():
            try:
                record = read_record(line.line)
            except ValueError:
                continue
            if isinstance(record, ShadowRecord):
                known.add(record.request_id)
            elif isinstance(record, RequestRecord) and record.request_id in decided:
                assert record.request_id in known, f"the copy of {record.request_id} would be sent, and paid for, twice"
        tail.close()


def _judgments(workspace: Workspace, experiment: str, promised: list[Any]) -> dict[str, str]:
    recover(workspace, experiment)
    with open_store(workspace.data, experiment) as store:
        assert not store.damaged
        rows = store.connection.sql("SELECT judgment_id, status FROM judgments").fetchall()
    found = dict(rows)
    assert len(found) == len(rows), "a judgment is stored twice"
    wanted: dict[str, str] = {}
    for one in _of(promised, "judgments"):
        wanted.update(one)
    # A call that was in flight may have ended since; what had ended has not.
    lost = sorted(key for key, status in wanted.items() if found.get(key) not in {status, "ok"})
    assert not lost, f"judgments lost after their sync: {lost[:4]} ({len(lost)} of {len(wanted)})"
    return found


def check_journal(root: Path, promised: list[Any]) -> None:
    workspace = open_workspace(root=root)
    _judgments(workspace, "exp", promised)
    assert not list(journal_folder(workspace, "exp").glob("journal-*.jsonl")), "a journal is left"


def check_batches(root: Path, promised: list[Any]) -> None:
    workspace = open_workspace(root=root)
    found = {one.name: one for one in intents(batches_folder(workspace, "exp"))}
    order = ("intended", "submitted", "collected", "abandoned")
    for one in promised:
        if "batch" not in one:
            continue
        intent = found.get(one["batch"])
        assert intent is not None, f"batch {one['batch']} ({one['state']}) is forgotten: it would be paid for twice"
        assert order.index(intent.state) >= order.index(one["state"]), f"{intent.name} is {intent.state} again"
        if one["state"] == "submitted":
            assert intent.batch_id, "its id is lost"
    for intent in found.values():
        if intent.state in OPEN:
            assert len(list(items_of(batches_folder(workspace, "exp"), intent))) == intent.n_items
    _judgments(workspace, "exp", promised)


def check_judge(root: Path, promised: list[Any]) -> None:
    workspace = open_workspace(root=root)
    _judgments(workspace, "t", promised)
    found = settled_calls(settlements_folder(workspace.data, "t"))
    for settled in _of(promised, "settled"):
        assert found == settled, "a settlement is lost"


def check_canary(root: Path, promised: list[Any]) -> None:
    history = open_history(open_workspace(root=root))
    if not promised:
        history.state()
        return
    last, state, event = promised[-1], history.state(), history.last()
    assert history.loss() is None, history.loss()
    assert event is not None and event.seq >= last["seq"], f"change {last['seq']} is lost"
    if event.seq == last["seq"]:
        assert (state.status, state.percentage) == (last["status"], last["percentage"])
    history.evaluation()
    history.note_loss(now=2_000_000.0)
    assert [one.seq for one in history.events()] == list(range(1, event.seq + 1)), "the history has gaps"


def check_records(root: Path, promised: list[Any]) -> None:
    workspace = open_workspace(root=root)
    for key in _of(promised, "key"):
        assert key_fingerprint(unit_key(workspace, "exp")) == key, "the key of unit ids is another one"
    _loaded(workspace)
    listed = _of(promised, "exclusions")
    record = load_record(workspace.data, "exp")
    if listed:
        assert record is not None, "the record is lost"
        assert record.n_looks >= _of(promised, "looks")[-1], "a look is forgotten"
        found = [one.since for one in exclusions(workspace)]
        later = _FUTURE[-1] if len(listed) >= len(_FUTURE) else _FUTURE[len(listed)]
        assert found in (listed[-1], later), f"exclusions are {found}, not {listed[-1]}"
    if _of(promised, "verdict"):
        json.loads((workspace.data / "verdict.json").read_bytes())


_ONE, _TWO = "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"
_FUTURE = [[_ONE], [_ONE, _TWO], [_ONE, _TWO], [_TWO], [_TWO], [_TWO]]
"""The exclusions after each promise: a change that was written, but not yet reported, may be there."""


def texts_left(root: Path) -> list[str]:
    """Every file in which the words still are, Parquet decoded, whatever its name."""
    found = []
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        if text.startswith("PAR1"):
            try:
                with pq.ParquetFile(path) as file:
                    text += str(file.read().to_pylist())
            except (pa.ArrowException, OSError):  # torn: nothing can be read out of it
                pass
        if SECRET in text:
            found.append(str(path.relative_to(root)))
    return found


def check_removal(action: str, before: list[Any], numbers: Any) -> Any:
    """`forget` or `prune`: after its success no text is left; before it every number is, and the next run finishes."""

    def check(root: Path, promised: list[Any]) -> None:
        workspace = open_workspace(root=root)
        if promised:
            left = texts_left(root)
            assert not left, f"removed texts are back in {left}"
        assert numbers(workspace)[0] == before[0], "rows or numbers are lost, or there twice"
        retention.removals(workspace.data, "exp")
        if action == "forget":
            retention.forget(workspace, "alice")
        else:
            retention.prune(workspace, older_than="30d", now=LATER)
        assert numbers(workspace) == before, "the second run changed a number"
        left = texts_left(root)
        assert not left, f"the second run left texts in {left}"

    return check


def check_collector(root: Path, promised: list[Any]) -> None:
    workspace = open_workspace(root=root)
    found = _loaded(workspace, "test")
    wanted = {name for names in _of(promised, "answered") for name in names}
    missing = sorted(name for name in wanted if ("control", "ok") not in found.get(name, []))
    assert not missing, (
        f"answered, and lost more than fsync_interval_s later: {missing[:4]} ({len(missing)} of {len(wanted)})"
    )
