"""Power loss, replayed: the order of the spool writer's writes and syncs, with what no sync covers lost in every way.

The calls are recorded while they really happen. A file's bytes survive as far as the last fsync of the file; later
writes survive one by one, or not; a file whose name no fsync of the folder covers may be gone as a whole.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalpipe.spool.format import FeedbackRecord, read_record, render_record
from evalpipe.spool.writer import SpoolWriter

Operation = tuple[str, str, bytes]
"""(create | write | sync | names | promise, segment, bytes). After a promise nothing before it may be lost."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Operation]]:
    operations: list[Operation] = []
    names: dict[int, str] = {}
    real_open, real_write, real_sync, real_close = os.open, os.write, os.fsync, os.close

    def opened(path: object, flags: int, *more: object, **named: object) -> int:
        fd = real_open(path, flags, *more, **named)  # type: ignore[arg-type]
        if str(path).endswith(".jsonl"):
            names[fd] = Path(str(path)).name
            operations.append(("create", names[fd], b""))
        elif flags & os.O_DIRECTORY:
            names[fd] = "/"
        return fd

    def written(fd: int, data: bytes) -> int:
        n = real_write(fd, data)
        if fd in names:
            operations.append(("write", names[fd], bytes(data[:n])))
        return n

    def synced(fd: int) -> None:
        real_sync(fd)
        if fd in names:
            operations.append(("names" if names[fd] == "/" else "sync", names[fd], b""))

    def closed(fd: int) -> None:
        names.pop(fd, None)
        real_close(fd)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "write", written)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "close", closed)
    yield operations


def after_power_loss(operations: list[Operation], chance: random.Random | None) -> dict[str, bytes]:
    """What the disk holds; `chance` None: of what no sync covers nothing."""
    files: dict[str, list[tuple[bytes, bool]]] = {}
    named: set[str] = set()
    for what, name, data in operations:
        if what == "create":
            files[name] = []
        elif what == "write":
            files[name].append((data, False))
        elif what == "sync":
            files[name] = [(written, True) for written, _ in files[name]]
        elif what == "names":
            named |= files.keys()
    found = {}
    for name, pieces in files.items():
        if name not in named and (chance is None or chance.random() < 0.5):
            continue
        content, n_zeros = b"", 0
        for data, is_synced in pieces:
            if is_synced or (chance is not None and chance.random() < 0.5):
                kept = (
                    data
                    if is_synced or chance is None or chance.random() < 0.7
                    else data[: chance.randrange(len(data))]
                )
                content += bytes(n_zeros) + kept  # a hole reads as zeros
                n_zeros = len(data) - len(kept)
            else:
                n_zeros += len(data)
        found[name] = content
    return found


def read_ids(files: dict[str, bytes]) -> list[str]:
    """The records a reader of whole lines finds; broken ones are rejected."""
    ids = []
    for content in files.values():
        for line in content.split(b"\n")[:-1]:
            try:
                record = read_record(line)
            except ValueError:
                continue
            assert isinstance(record, FeedbackRecord)
            ids.append(record.request_id)
    return ids


def line(n: int) -> bytes:
    return render_record(FeedbackRecord(request_id=f"r{n}", experiment="x", arm="control", rating=1.0, at=float(n)))


def test_what_was_synced_survives_a_power_loss_at_any_moment(tmp_path: Path, recorded: list[Operation]) -> None:
    random_order = random.Random(7)
    writer = SpoolWriter(tmp_path, "served-1", segment_bytes=1200, segment_s=300)
    writer.open()
    written: list[str] = []
    promises: list[tuple[int, list[str]]] = []
    for n in range(60):
        writer.append_all([line(2 * n), line(2 * n + 1)], 2)
        written += [f"r{2 * n}", f"r{2 * n + 1}"]
        if random_order.random() < 0.3:
            writer.sync()
            # What was rotated away is synced by a thread of its own as it is closed: what the open segment holds is sure now.
            (name,) = writer.position()
            held = read_ids({name: (tmp_path / name).read_bytes()})
            promises.append((len(recorded), held))
    writer.close()
    assert len({name for what, name, _ in recorded if what == "create"}) > 5
    assert any(held for _, held in promises)
    for n in range(len(recorded) + 1):
        promised = {i for at, held in promises if at <= n for i in held}
        kept = read_ids(after_power_loss(recorded[:n], None))
        assert promised <= set(kept)
        assert len(kept) == len(set(kept))
    for _ in range(2000):
        n = random_order.randrange(len(recorded) + 1)
        promised = {i for at, held in promises if at <= n for i in held}
        kept = read_ids(after_power_loss(recorded[:n], random_order))
        assert promised <= set(kept)
        assert len(kept) == len(set(kept))
        assert set(kept) <= set(written)
