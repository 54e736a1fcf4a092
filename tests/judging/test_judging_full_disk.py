"""`evalpipe judge` on a full disk: one line, exit 1, nothing more is asked, and no answer is paid twice."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_provider import Call, FakeProvider, Response, longer_wins
from test_judging_run import FAST, pairs, rows, run, workspace
from warm_start import evalpipe_program

from evalpipe.calls.journal import Journal, read_journal
from evalpipe.models import Judgment, JudgmentStatus, ShownFirst
from evalpipe.workspace.paths import open_workspace

N = 40


def judge_under(limit: int | None, root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`evalpipe judge` in a process whose files may not grow beyond `limit` bytes."""

    def before() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [evalpipe_program(), "judge", *more],
        cwd=root,
        env={**os.environ, "ANTHROPIC_API_KEY": "k"},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=before,
        check=False,
    )


def asked(provider: FakeProvider) -> Counter[str]:
    """How often each question was asked: the order of the answers is part of it, the code in the tags is not."""
    return Counter("\0".join(call.blocks.values()) for call in provider.calls)


def test_a_full_disk_ends_the_run_in_one_line_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    long_reasons = (
        "because " * 1_200
    )  # an answer of some 9,600 characters, kept twice: 1,024 tokens can be 16,384 bytes

    def wordy(call: Call) -> Response:
        return Response((longer_wins(call).text or "").replace("because", long_reasons))

    with FakeProvider(wordy) as provider:
        found = workspace(tmp_path, provider.url, pairs(N), settings=FAST + "concurrency = 4\n")
        ended = judge_under(400_000, tmp_path)
        assert ended.returncode == 1
        (line,) = ended.stderr.strip().splitlines()
        assert line.startswith("evalpipe: the disk that holds ")
        assert "is full: nothing more is asked, and every answer so far is kept; free some room" in line
        n_asked = len(provider.calls)
        assert 0 < n_asked < 2 * N
        again = judge_under(2_000, tmp_path)  # not even room for what is kept already
        assert (again.returncode, len(provider.calls)) == (1, n_asked)
        assert "Traceback" not in ended.stderr + again.stderr
        run(found)
        assert len(provider.calls) == 2 * N
        assert set(asked(provider).values()) == {1}
    assert rows(found, "SELECT status, count(*), count(raw_reply) FROM judgments GROUP BY 1") == [("ok", 2 * N, 2 * N)]


def test_a_call_whose_answer_has_no_room_is_not_sent(tmp_path: Path) -> None:
    """20,000 bytes hold the line of a call that is sent, not the longest answer to it."""
    with FakeProvider(longer_wins) as provider:
        workspace(tmp_path, provider.url, pairs(N), settings=FAST + "concurrency = 4\n")
        ended = judge_under(20_000, tmp_path)
        assert (ended.returncode, provider.calls) == (1, [])
        assert "is full: nothing more is asked" in ended.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_small_disk_that_fills_up(tmp_path: Path, small_disk: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        workspace(tmp_path, provider.url, pairs(N), settings=FAST + "concurrency = 8\n")
        data = small_disk / "data"
        subprocess.run(["cp", "-r", str(tmp_path / "data"), str(data)], check=True)
        room = os.statvfs(small_disk)
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (room.f_bavail * room.f_bsize - 300_000))
        ended = judge_under(None, tmp_path, "--data", str(data))
        n_asked = len(provider.calls)
        assert (ended.returncode, len(ended.stderr.strip().splitlines())) in {(1, 1), (0, 0)}
        if ended.returncode == 1:
            assert "is full" in ended.stderr
        filler.unlink()
        run(open_workspace(tmp_path / "evalpipe.toml", data))
        assert n_asked <= 2 * N == len(provider.calls)
        assert set(asked(provider).values()) == {1}


def judgment(key: str, status: JudgmentStatus = JudgmentStatus.ERROR, raw: str | None = None) -> Judgment:
    return Judgment(
        key=key,
        attempt=1,
        request_id=key,
        judge="j",
        judge_fingerprint="f",
        judge_model="m",
        shown_first=ShownFirst.CONTROL,
        status=status,
        raw_reply=raw,
    )


def limited(code: str, folder: Path, limit: int) -> str:
    """What `code` prints in a process with a limit of file sizes."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(limit)],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_IN_FLIGHT = """
import resource, sys
from pathlib import Path
from test_judging_full_disk import judgment
from evalpipe.models import JudgmentStatus
from evalpipe.calls.journal import Journal
from evalpipe.calls.journal import NoRoomError
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
journal = Journal(folder, answer_bytes=10_000)
begun = []
try:
    for n in range(100):
        journal.begin(judgment(f"k{n}"))
        begun.append(f"k{n}")
except NoRoomError:
    pass
for key in begun:
    journal.append(judgment(key, JudgmentStatus.OK, "x" * 9_700))
try:
    journal.begin(judgment("late"))
    print("begun late")
except NoRoomError:
    print(len(begun))
journal.close()
"""


def test_every_call_that_may_be_sent_has_room_for_its_answer(tmp_path: Path) -> None:
    # 50,000 bytes hold four calls with 10,000 bytes of answer each, not five.
    assert limited(_IN_FLIGHT, tmp_path, 50_000).split() == ["4"]
    (path,) = tmp_path.glob("journal-*")
    last = {one.judgment_id: one for one in read_journal(path)}
    assert {key: one.status.value for key, one in last.items()} == {f"k{n}:1": "ok" for n in range(4)}
    assert all(one.raw_reply == "x" * 9_700 for one in last.values())


_ROTATED = """
import resource, sys
from pathlib import Path
from test_judging_full_disk import judgment
from evalpipe.models import JudgmentStatus
from evalpipe.calls.journal import Journal, NoRoomError
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
journal = Journal(folder, answer_bytes=10_000)
for key in "abc":
    journal.begin(judgment(key))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
try:
    journal.rotate()
except NoRoomError:
    print("no room")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for key in "abc":
    journal.append(judgment(key, JudgmentStatus.OK, "x" * 9_700))
journal.close()
"""


def test_without_room_for_a_new_journal_the_old_one_goes_on(tmp_path: Path) -> None:
    assert limited(_ROTATED, tmp_path, 20_000) == "no room\n"
    (path,) = tmp_path.glob("journal-*")
    assert [(one.key, one.status.value) for one in read_journal(path)][3:] == [(key, "ok") for key in "abc"]


_TOO_LONG = """
import resource, sys
from pathlib import Path
from test_judging_full_disk import judgment
from evalpipe.models import JudgmentStatus
from evalpipe.calls.journal import Journal
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
journal = Journal(folder, answer_bytes=10_000)
journal.begin(judgment("k"))
journal.append(judgment("k", JudgmentStatus.OK, "x" * 90_000))
journal.close()
"""


def test_an_answer_longer_than_its_room_keeps_its_verdict(tmp_path: Path) -> None:
    limited(_TOO_LONG, tmp_path, 20_000)
    (path,) = tmp_path.glob("journal-*")
    *_, last = read_journal(path)
    assert (last.status, last.raw_reply) == (JudgmentStatus.OK, None)


def test_a_journal_of_a_killed_run_ends_in_blank_room_and_is_read_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(judgment("a"))
    journal.append(judgment("a", JudgmentStatus.OK))
    size = journal.path.stat().st_size
    assert size > 8_192  # the room for the answer is there before it is asked for
    assert [one.status.value for one in read_journal(journal.path)] == ["error", "ok"]
    journal.close()
    assert journal.path.stat().st_size < 2_000
