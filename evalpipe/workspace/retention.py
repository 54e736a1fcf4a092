"""`evalpipe prune` and `evalpipe forget`: people's texts taken out of everything this workspace holds, counted, on the record.

Rows stay, with every number, so that what a decision rests on can be computed again. Killed at any point, the same command run
again finishes: what depends on the stored requests (judgments, ratings, reports, rejected lines) goes first, the requests last.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from evalpipe.errors import ConfigError, DataError
from evalpipe.files import sync_folder, unfinished, unlink_synced, within_resources, write_atomically
from evalpipe.identity import hash_unit
from evalpipe.labels.store import has_waiting, is_labelling
from evalpipe.models import AGAINST_ITSELF
from evalpipe.spool.format import RequestRecord, read_record
from evalpipe.spool.segments import holds_log, list_segments, read_lines
from evalpipe.store.load import rejected_folder
from evalpipe.store.parquet import private_file
from evalpipe.store.query import open_store, writing
from evalpipe.store.removal import Scrubber, of_requests, of_units, scrub
from evalpipe.store.replays import folder_of
from evalpipe.workspace.damaged import FOLDER as DAMAGED
from evalpipe.workspace.load import LoadOptions, load, only_load
from evalpipe.workspace.paths import Workspace, check_writable, loaded_experiment
from evalpipe.workspace.secrets import UNIT_KEY_ENV, unit_key

DATED_FROM = datetime(1971, 1, 1, tzinfo=UTC)
"""A row of an imported log without times has an instant before this: its age is unknown."""


@dataclass(kw_only=True, slots=True)
class Removal:
    """What was removed, in rows (`exchanges` … `labels`), lines (`rejected`) and files (`reports`).

    `waiting`: requests in log files that a running collector still writes. `undated`: requests without a time. `damaged`: damaged
    files put out of the way, which cannot be read.
    """

    action: str
    experiment: str
    dry_run: bool
    before: str | None = None
    exchanges: int = 0
    judgments: int = 0
    feedback: int = 0
    labels: int = 0
    rejected: int = 0
    reports: int = 0
    waiting: int = 0
    undated: int = 0
    damaged: int = 0
    notes: list[str] = field(default_factory=list)


def prune(
    workspace: Workspace,
    *,
    older_than: str | None = None,
    experiment: str | None = None,
    dry_run: bool = False,
    now: datetime | None = None,
) -> Removal:
    """Take the texts out of what is older than so many days ("90d"; default: `[experiment] keep_days`).

    Raises:
        ConfigError: for no or an impossible age, or an unknown experiment.
    """
    days = _days(workspace, older_than)
    before = (now or datetime.now(UTC)).astimezone(UTC) - timedelta(days=days)
    with _alone(workspace, dry_run):
        name = loaded_experiment(workspace, experiment)
        removal = Removal(action="prune", experiment=name, dry_run=dry_run, before=before.isoformat(timespec="seconds"))
        with open_store(workspace.data, name) as store:
            rows = store.connection.execute(
                "SELECT request_id FROM exchanges GROUP BY request_id HAVING min(started_at) < ? AND min(started_at) >= ?",
                [before, DATED_FROM],
            ).fetchall()
            undated = store.connection.execute(
                "SELECT count(DISTINCT request_id) FROM exchanges WHERE started_at < ? AND removed_at IS NULL",
                [DATED_FROM],
            ).fetchone()
        removal.undated = undated[0] if undated else 0
        removal.damaged = _old_damaged(workspace, name, before, dry_run)
        requests = {row[0] for row in rows}
        removal.rejected = _old_rejects(workspace, before, dry_run)
        removal.waiting = _waiting(
            workspace, name, lambda record: record.received_at < before.timestamp(), known=requests
        )
        _remove(workspace, removal, requests, Scrubber(secrets.token_bytes(32), at=datetime.now(UTC)))
    return removal


def forget(workspace: Workspace, user: str, *, experiment: str | None = None, dry_run: bool = False) -> list[Removal]:
    """Take everything a user wrote, and was answered, out of every experiment (or of the one named).

    The rows stay under another unit id that leads nowhere.

    Args:
        user: the plain id, as the app sends it.

    Raises:
        ConfigError: for an empty id, or where ids are hashed and the key is not the experiment's.
    """
    if not user.strip():
        raise ConfigError("--user is empty: give the id as the app sends it")
    with _alone(workspace, dry_run):
        names = [loaded_experiment(workspace, experiment)] if experiment else workspace.loaded_experiments()
        return [_forget(workspace, name, user, dry_run=dry_run) for name in names]


def _forget(workspace: Workspace, name: str, user: str, *, dry_run: bool) -> Removal:
    units = _stored_units(workspace, name, user)
    removal = Removal(action="forget", experiment=name, dry_run=dry_run)
    with open_store(workspace.data, name) as store:
        rows = store.connection.execute(
            "SELECT DISTINCT request_id FROM exchanges WHERE list_contains(?::VARCHAR[], unit_id)", [units]
        ).fetchall()
    requests = {row[0] for row in rows}
    removal.rejected = _rejects_of(workspace, {user, *units, *requests}, dry_run)
    removal.damaged = sum(1 for _ in (workspace.data / DAMAGED).rglob(f"experiment={name}/**/*.parquet"))
    removal.waiting = _waiting(workspace, name, lambda record: record.unit_id in units, known=requests)
    # The same user must get the same new id in every file, also by a second run after a kill: the key is stored here until then.
    mark = sha256(f"{name}:{units[-1]}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    key_path = workspace.data / "experiments" / f".forget-{mark}"
    key = secrets.token_bytes(32)
    if key_path.exists():
        key = bytes.fromhex(key_path.read_text("ascii"))
    elif requests and not dry_run:
        write_atomically(key_path, key.hex().encode())
    _remove(workspace, removal, requests, Scrubber(key, at=datetime.now(UTC), renames_units=True), units=units)
    if not dry_run:
        unlink_synced([key_path])  # it leads from the old id to the new one
    return removal


def _remove(
    workspace: Workspace, removal: Removal, requests: set[str], scrubber: Scrubber, *, units: Sequence[str] = ()
) -> None:
    """Everything of these requests; the stored requests themselves at last."""
    data, name, dry_run = workspace.data, removal.experiment, removal.dry_run
    if requests and not dry_run:
        _note(data, removal, "begun")
    with ExitStack() as stack:
        if not dry_run and folder_of(data, name).is_dir():
            from evalpipe.workspace.replay import (
                recover as recover_replays,
            )  # half a second, only where it was replayed
            from evalpipe.workspace.replay import replaying

            stack.enter_context(replaying(data, name))
            recover_replays(data, name)
        judged = (name, f"{name}{AGAINST_ITSELF}")
        for one in judged:
            if not dry_run and (data / "judgments" / f"experiment={one}").is_dir():
                from evalpipe.calls.journal import judging_lock
                from evalpipe.workspace.judge_setup import (
                    journal_folder,
                    recover,  # half a second, only where it is judged
                )

                stack.enter_context(judging_lock(journal_folder(workspace, one)))
                recover(workspace, one)
        if not dry_run and has_waiting(data, name):
            from evalpipe.workspace.label import store_waiting  # only where people have labelled

            store_waiting(workspace, name)
        if not dry_run and is_labelling(data, name):
            removal.notes.append(
                "a page of `evalpipe label` is open: it may show texts that were removed and hold the last comments; "
                "stop it, then run this again"
            )
        for dataset in ("judgments", "labels", "feedback"):
            with _held(data, dataset, dry_run):
                n_rows = sum(
                    scrub(data, dataset, one, of_requests(requests), scrubber, dry_run=dry_run) for one in judged
                )
            setattr(removal, dataset, n_rows)
        if requests and any(any(folder.glob("*.html")) for folder in (workspace.reports, workspace.reports / name)):
            from evalpipe.workspace.report import scrub_reports  # SciPy, Jinja: only where there is a page

            removal.reports = scrub_reports(workspace, name, requests, dry_run=dry_run)
        chosen = of_units(units) if units else of_requests(requests)
        with _held(data, "exchanges", dry_run):
            removal.exchanges = scrub(data, "exchanges", name, chosen, scrubber, dry_run=dry_run)
    if removal.waiting:
        removal.notes.append(
            f"{removal.waiting:,} requests lie in log files that are still written, or wait for their answer: run it again "
            "after the collector was stopped, or after `evalpipe load` has taken them"
        )
    if removal.undated:
        removal.notes.append(
            f"{removal.undated:,} imported requests have no time, so their age is unknown: their texts stay"
        )
    if removal.damaged:
        removal.notes.append(
            f"{removal.damaged} damaged files in {data / DAMAGED} may hold texts and cannot be read: delete them"
        )
    if requests and not dry_run:
        _note(data, removal, "done")


@contextmanager
def _alone(workspace: Workspace, dry_run: bool) -> Iterator[None]:
    """Load what waits in the log, then keep other loads away."""
    if dry_run:
        yield
        return
    check_writable(workspace.data)
    with within_resources("run it again where there is more room, it goes on from there"):
        if workspace.spool.is_dir() and holds_log(workspace.spool):
            load(workspace, show_progress=False, options=LoadOptions(compact=False))
        with only_load(workspace.data):
            unlink_synced(unfinished(rejected_folder(workspace.data), "*.jsonl"))
            yield


@contextmanager
def _held(data: Path, dataset: str, dry_run: bool) -> Iterator[None]:
    if dry_run:
        yield
        return
    with writing(data, dataset, erases=True):
        yield


def _days(workspace: Workspace, older_than: str | None) -> int:
    if older_than is None:
        kept = workspace.config.experiment.keep_days if workspace.config else None
        if kept is None:
            raise ConfigError("how old? give --older-than 90d, or set keep_days under [experiment]")
        return kept
    match = re.fullmatch(r"([0-9]{1,6})d?", older_than.strip())
    if match is None or int(match[1]) < 1:
        raise ConfigError(f"--older-than {older_than!r}: give a number of days from 1 on, such as 90d")
    return int(match[1])


def _stored_units(workspace: Workspace, name: str, user: str) -> list[str]:
    """The forms an id is stored in: as it is (imports, `hash_units = false`), and hashed where there is a key."""
    hashed = workspace.config is None or workspace.config.collector.hash_units
    has_key = bool(os.environ.get(UNIT_KEY_ENV)) or workspace.unit_key_path.exists()
    if not hashed or not has_key:
        return [user]
    own = workspace.config is not None and workspace.config.experiment.name == name
    return [user, hash_unit(unit_key(workspace, name if own else None), user)]


def _waiting(workspace: Workspace, name: str, chosen: Callable[[RequestRecord], bool], *, known: set[str]) -> int:
    """Requests that are chosen and in the log."""
    n_found = 0
    if not workspace.spool.is_dir():
        return 0
    for segment in list_segments(workspace.spool):
        try:
            for _, line in read_lines(segment):
                if not line.startswith(b'{"record":"request"'):
                    continue
                try:
                    record = read_record(line)
                except ValueError:  # load puts it with the rejected lines
                    continue
                if isinstance(record, RequestRecord) and record.experiment == name:
                    n_found += record.request_id in known or chosen(record)
        except FileNotFoundError:
            continue
    return n_found


def _old_rejects(workspace: Workspace, before: datetime, dry_run: bool) -> int:
    """Rejected lines in files that are older, which are deleted."""
    n_lines = 0
    for path in sorted(rejected_folder(workspace.data).glob("*.jsonl")):
        if path.stat().st_mtime < before.timestamp():
            n_lines += path.read_bytes().count(b"\n")
            if not dry_run:
                unlink_synced([path])
    return n_lines


def _old_damaged(workspace: Workspace, name: str, before: datetime, dry_run: bool) -> int:
    """Delete damaged files of a day before; how many are left that may hold texts."""
    n_left = 0
    for path in (workspace.data / DAMAGED).rglob(f"experiment={name}/**/*.parquet"):
        day = path.parent.name.removeprefix("date=")
        if day != path.parent.name and day < before.date().isoformat():
            if not dry_run:
                unlink_synced([path])
        else:
            n_left += 1
    return n_left


def _rejects_of(workspace: Workspace, words: set[str], dry_run: bool) -> int:
    """Take the rejected lines out that name the user or one of the requests."""
    wanted = [json.dumps(word, ensure_ascii=flag)[1:-1] for word in words for flag in (True, False)]
    needles = {word.encode("utf-8", "surrogatepass") for word in wanted} | {
        json.dumps(word)[1:-1].encode("ascii") for word in wanted
    }
    n_lines = 0
    for path in sorted(rejected_folder(workspace.data).glob("*.jsonl")):
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not any(needle in line for needle in needles)]
        n_lines += len(lines) - len(kept)
        if len(kept) < len(lines) and not dry_run:
            write_atomically(path, b"".join(kept))
    return n_lines


def _note(data: Path, removal: Removal, event: str) -> None:
    """One line in the experiment's list of removals, synced. It names no user."""
    path = data / "experiments" / f"{removal.experiment}.removals.jsonl"
    facts = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **asdict(removal)}
    with private_file(path, os.O_RDWR | os.O_APPEND) as handle:
        size = os.fstat(handle).st_size
        torn = size and os.pread(handle, 1, size - 1) != b"\n"  # by a power loss
        os.write(handle, (b"\n" if torn else b"") + json.dumps(facts).encode() + b"\n")
        os.fsync(handle)
    sync_folder(path.parent)


def removals(data: Path, experiment: str) -> list[dict[str, object]]:
    """What was removed, oldest first; runs that were killed left "begun" only."""
    try:
        lines = (data / "experiments" / f"{experiment}.removals.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot read the removals of experiment {experiment!r}: {error.strerror}") from error
    found = []
    for line in lines:
        with suppress(ValueError):  # cut short by a power loss
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict)]
