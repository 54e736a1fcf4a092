"""The copies' budget to the cent: what is reserved, booked and released, and what a new life knows of the old one."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from collector_harness import CHAT, RawUpstream, Received, Running, Script, chat_answer, chat_request, eventually, plain

from evalpipe.spool.checkpoint import (
    STATE_FILE,
    TREATMENT_LOCK,
    ShadowState,
    is_lost,
    load_spent,
    load_state,
    save_spent,
    save_state,
    spent_path,
)
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

Start = Callable[..., Running]
Upstream = Callable[[Script], RawUpstream]

# A token of an answer costs 0.001 USD, nothing else does. A request asks for at most 40, so a copy is held at 0.040 USD; 5 come.
PRICES = '[prices."gpt-4o-mini"]\ninput = 0.0\noutput = 1000.0\n'
BUDGET = "shadow_budget_usd = 0.102\n"
PER_REQUEST = "infrastructure_usd_per_request = 0.005\n"


def answering(request: Received) -> Iterable[bytes | float | str]:
    return [plain(chat_answer("t", model="gpt-4o-mini"))]


def without_usage(request: Received) -> Iterable[bytes | float | str]:
    answer = json.loads(chat_answer("t", model="gpt-4o-mini"))
    del answer["usage"]
    return [plain(json.dumps(answer).encode())]


def start(
    upstream: Upstream, collector: Start, treatment: RawUpstream, *, arm: str = "", root: Path | None = None
) -> Running:
    more = {} if root is None else {"root": root}
    control = upstream(lambda r: [plain(chat_answer("control"))])
    return collector(control.url, treatment.url, collector=BUDGET, treatment_arm=arm + PRICES, **more)


def ask(running: Running, text: str, **more: object) -> None:
    request = Request(running.url + CHAT, chat_request(text, **more), {"content-type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        answer.read()


def ask_in_turn(running: Running, n: int, name: str = "q") -> None:
    """Each request after the fate of the one before it: no two copies are held at once."""
    for number in range(n):
        n_before = len(running.fates())
        ask(running, f"{name}{number}", max_tokens=40)
        eventually(lambda n_before=n_before: len(running.fates()) > n_before, timeout=60)  # type: ignore[misc]
        sent = [name for name, fate in running.fates().items() if fate.status == "sampled"]
        eventually(lambda sent=sent: running.responses("shadow").keys() >= set(sent), timeout=60)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("script", "arm", "n_copies"),
    [
        # Of n copies the last one is held at 0.040, the others cost 0.005 each: 0.005 (n - 1) + 0.040 <= 0.102.
        (answering, "", 13),
        # Each costs 0.005 more, held and booked: 0.010 (n - 1) + 0.045 <= 0.102.
        (answering, PER_REQUEST, 6),
        # What nobody reports the tokens of is booked as it was held: 0.040 (n - 1) + 0.040 <= 0.102.
        (without_usage, "", 2),
    ],
    ids=["reported", "with the server's cost", "not reported"],
)
def test_copies_are_held_at_their_worst_and_booked_at_what_they_cost(
    script: Script, arm: str, n_copies: int, upstream: Upstream, collector: Start
) -> None:
    treatment = upstream(script)
    running = start(upstream, collector, treatment, arm=arm)
    ask_in_turn(running, n_copies + 3)
    assert running.stop() == 0
    assert len(treatment.received) == n_copies
    assert Counter(fate.reason for fate in running.fates().values()) == {None: n_copies, "budget": 3}


def test_a_budget_without_room_for_one_copy_is_named_with_its_remedy(upstream: Upstream, collector: Start) -> None:
    treatment = upstream(answering)
    control = upstream(lambda r: [plain(chat_answer("control"))])
    running = collector(control.url, treatment.url, collector="shadow_budget_usd = 0.03", treatment_arm=PRICES)

    def reasons() -> list[str]:
        with urlopen(running.url + "/_evalpipe/health", timeout=30) as answer:
            found: list[str] = json.load(answer)["reasons"]
            return found

    assert reasons() == []
    for number in range(3):
        ask(running, f"q{number}", max_tokens=40)
    expected = "the copies' budget has no room: a copy may cost $0.0400 at most, $0.0300 of $0.03 is left;"
    eventually(lambda: any(one.startswith(expected) and "max_tokens" in one for one in reasons()), timeout=20)
    ask(running, "short", max_tokens=20)  # 0.020 at most
    eventually(lambda: len(treatment.received) == 1, timeout=20)
    assert running.stop() == 0
    assert sum(expected in line and "WARNING" in line for line in running.lines) == 1
    assert Counter(fate.reason for fate in running.fates().values()) == {"budget": 3, None: 1}


def keep_only_answers(data: Path) -> None:
    """The state and the second account are gone; the process's own segments hold what it did."""
    (data / "spool" / "shadow-state.json").unlink()
    (data / "experiments" / "test.shadow-spent").unlink()


def keep_only_second_account(data: Path) -> None:
    load(open_workspace(root=data.parent))
    (data / "spool" / "shadow-state.json").write_text('{"offsets": {')  # torn
    shutil.rmtree(data / "exchanges")


def keep_only_state(data: Path) -> None:
    load(open_workspace(root=data.parent))
    (data / "experiments" / "test.shadow-spent").write_text("garbage")
    shutil.rmtree(data / "exchanges")


def keep_only_store(data: Path) -> None:
    load(open_workspace(root=data.parent))
    keep_only_answers(data)


@pytest.mark.parametrize("keep", [keep_only_answers, keep_only_second_account, keep_only_state, keep_only_store])
def test_any_one_account_keeps_the_budget_and_nothing_is_sent_twice(
    keep: Callable[[Path], None], upstream: Upstream, collector: Start
) -> None:
    treatment = upstream(answering)
    running = start(upstream, collector, treatment, arm=PER_REQUEST)
    ask_in_turn(running, 3)
    assert running.stop() == 0
    keep(running.data)
    again = start(upstream, collector, treatment, arm=PER_REQUEST, root=running.root)
    ask_in_turn(again, 6, "r")
    assert again.stop() == 0
    texts = Counter(json.loads(r.body)["messages"][0]["content"] for r in treatment.received)
    assert max(texts.values()) == 1
    assert len(treatment.received) == 6, "three of each life: 0.010 x 5 + 0.045 <= 0.102"


def test_a_copy_whose_decision_cannot_be_written_is_not_sent_and_holds_nothing(
    upstream: Upstream, collector: Start
) -> None:
    treatment = upstream(answering)
    running = start(upstream, collector, treatment)
    ask_in_turn(running, 1)
    process = running.child("shadow")
    resource.prlimit(process, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

    def n_unwritten() -> float:
        with urlopen(running.url + "/_evalpipe/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith("evalpipe_shadow_shed_total") and "unwritable" in line
        )

    for number in range(4):  # two of them held at once would fill the budget
        ask(running, f"w{number}", max_tokens=40)
        eventually(lambda number=number: n_unwritten() == number + 1, timeout=60)  # type: ignore[misc]
    assert len(treatment.received) == 1
    resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def sends_again() -> bool:
        ask(running, "after", max_tokens=40)
        return len(treatment.received) > 1

    eventually(sends_again, timeout=60)
    assert running.stop() == 0


def test_what_was_read_and_not_decided_is_decided_by_the_next_life(upstream: Upstream, collector: Start) -> None:
    control = upstream(lambda r: [plain(chat_answer("control"))])
    treatment = upstream(lambda r: [0.5, plain(chat_answer("t"))])
    running = collector(control.url, treatment.url, collector="shadow_concurrency = 1")
    state = running.data / "spool" / "shadow-state.json"
    for number in range(8):
        ask(running, f"q{number}")
    eventually(lambda: state.exists() and len(json.loads(state.read_bytes())["waiting"]) > 1, timeout=60)
    os.kill(running.child("shadow"), signal.SIGKILL)
    eventually(lambda: len(running.fates()) == 8, timeout=60)
    assert running.stop() == 0
    assert Counter(fate.status for fate in running.fates().values()) == {"sampled": 8}
    texts = Counter(json.loads(r.body)["messages"][0]["content"] for r in treatment.received)
    assert texts == Counter(f"q{number}" for number in range(8))


def test_one_process_decides_on_the_copies(upstream: Upstream, collector: Start) -> None:
    """While another process holds the spool's copies (here the test, elsewhere `load`), one that is started waits."""
    treatment = upstream(answering)
    running = start(upstream, collector, treatment)
    ask_in_turn(running, 1)
    first = running.child("shadow")
    with (running.data / "spool" / TREATMENT_LOCK).open("rb") as handle:
        waiter = threading.Thread(target=fcntl.flock, args=(handle, fcntl.LOCK_EX))
        waiter.start()
        os.kill(first, signal.SIGKILL)
        waiter.join(60)
        assert not waiter.is_alive()
        eventually(lambda: running.children().get("shadow") not in (None, first), timeout=60)
        ask(running, "meanwhile", max_tokens=40)
        time.sleep(3.0)
        assert len(treatment.received) == 1
    eventually(lambda: len(treatment.received) == 2, timeout=60)
    assert running.stop() == 0


def test_a_torn_state_is_lost_and_a_torn_account_counts_nothing(tmp_path: Path) -> None:
    """The other two accounts hold: the spool's own past, and the store."""
    save_state(tmp_path, ShadowState(spent_usd={"e": 0.5}))
    save_spent(tmp_path, "e", 0.25)
    assert (load_state(tmp_path).spent_usd, is_lost(tmp_path), load_spent(tmp_path, "e")) == ({"e": 0.5}, False, 0.25)
    for path in (tmp_path / STATE_FILE, spent_path(tmp_path, "e")):
        path.write_bytes(b'{"spen')
    assert (load_state(tmp_path), is_lost(tmp_path), load_spent(tmp_path, "e")) == (ShadowState(), True, 0.0)


def test_a_state_and_an_account_survive_a_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` deletes decisions that the state covers."""
    synced: list[str] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    save_state(tmp_path, ShadowState())
    save_spent(tmp_path, "e", 0.25)
    for name in (STATE_FILE, spent_path(tmp_path, "e").name):
        assert any(name in one for one in synced), "its bytes, before they are under their name"


def test_a_segment_of_decisions_is_covered_by_a_state_that_holds_all_of_it() -> None:
    state = ShadowState(offsets={"shadow-1.000001.jsonl": 100})
    assert [state.covers("shadow-1.000001.jsonl", n) for n in (99, 100, 101)] == [True, True, False]
    assert not state.covers("shadow-1.000002.jsonl", 0)
