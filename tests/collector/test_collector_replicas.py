"""Several collectors of one experiment: their names, and a budget that they never pass together, whatever dies when."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from collector_harness import CHAT, RawUpstream, Received, Running, Script, chat_answer, chat_request, eventually, plain
from objects.fixtures import Bucket

from evalpipe.objects.budget import booked_usd
from evalpipe.objects.client import open_objects

Start = Callable[..., Running]
Upstream = Callable[[Script], RawUpstream]

# A token of an answer costs 0.001 USD, nothing else does. A request asks for at most 40, so a copy is held at 0.040 USD; 5 come.
PRICES = '[prices."gpt-4o-mini"]\ninput = 0.0\noutput = 1000.0\n'
BUDGET_USD, COST_USD, HELD_USD = 0.6, 0.005, 0.040


def slow_answer(request: Received) -> Iterable[bytes | float | str]:
    return [0.02, plain(chat_answer("t", model="gpt-4o-mini"))]


@pytest.fixture
def replica(faulty_bucket: Bucket, tmp_path: Path, upstream: Upstream, collector: Start) -> Start:
    """Starts the replica of that name, again where it was before."""
    control = upstream(lambda r: [plain(chat_answer("control"))])

    def start(name: str, treatment: RawUpstream, *, key: str = "k" * 32, folder: str | None = None) -> Running:
        return collector(
            control.url,
            treatment.url,
            root=tmp_path / (folder or name),
            collector=f'shadow_budget_usd = {BUDGET_USD}\nreplica = "{name}"\n',
            treatment_arm=PRICES,
            env={"EVALPIPE_DATA": faulty_bucket.url, "EVALPIPE_UNIT_KEY": key, **faulty_bucket.env},
        )

    return start


_questions = itertools.count()


def ask(running: Running, n: int) -> None:
    """`n` requests, each with a text of its own."""

    def one(number: int) -> None:
        body = chat_request(f"question {number}", max_tokens=40)
        with urlopen(Request(running.url + CHAT, body, {"content-type": "application/json"}), timeout=30) as answer:
            answer.read()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, itertools.islice(_questions, n)))


def own_route(running: Running, name: str) -> bytes:
    with urlopen(f"{running.url}/_evalpipe/{name}", timeout=30) as answer:
        body: bytes = answer.read()
        return body


def kill(running: Running) -> None:
    """As a power cut of the machine would: every process of the collector at once."""
    main = psutil.Process(running.process.pid)
    for process in [main, *main.children(recursive=True)]:
        os.kill(process.pid, signal.SIGKILL)
    running.process.wait(10)


def test_replicas_never_pass_the_budget_whatever_dies(
    replica: Start, upstream: Upstream, faulty_bucket: Bucket
) -> None:
    treatment = upstream(slow_answer)
    faulty_bucket.faults.set(internal_error=0.03, reset_after=0.05, conflict=0.05)
    objects = open_objects(faulty_bucket.url)
    one, other = replica("one", treatment), replica("other", treatment)
    ask(one, 12)
    ask(other, 12)
    eventually(lambda: len(treatment.received) >= 8, timeout=30)
    kill(one)
    n_before = len(treatment.received)
    booked_before = booked_usd(objects, "test")
    assert n_before * COST_USD <= booked_before <= BUDGET_USD

    again = replica("one", treatment)
    for _ in range(12):
        ask(again, 8)
        ask(other, 8)
    eventually(lambda: len(again.fates()) >= 96 and len(other.fates()) >= 108, timeout=60)
    assert booked_usd(objects, "test") <= BUDGET_USD + 1e-9
    assert again.stop() == other.stop() == 0
    spent = len(treatment.received) * COST_USD
    booked = booked_usd(objects, "test")
    assert spent <= booked <= BUDGET_USD + 1e-9
    # All of it is spent, but for what one more copy would be held at, and for what the killed one had leased and not spent: the
    # eight copies under way, held at their worst, and one portion more.
    assert spent > BUDGET_USD - HELD_USD - (8 + 1) * HELD_USD
    assert Counter(fate.reason for fate in other.fates().values())["budget"] > 0
    texts = Counter(json.loads(r.body)["messages"][0]["content"] for r in treatment.received)
    assert max(texts.values()) == 1, "nothing is sent twice"


def test_users_are_served_where_the_storage_is_gone_and_a_clean_stop_gives_back(
    replica: Start, upstream: Upstream, faulty_bucket: Bucket
) -> None:
    treatment = upstream(slow_answer)
    one = replica("one", treatment)
    faulty_bucket.faults.outage(60)
    began = time.monotonic()
    ask(one, 10)
    assert time.monotonic() - began < 5
    assert json.loads(own_route(one, "health"))["replica"] == "one"
    assert b'evalpipe_replica_info{replica="one"} 1.0' in own_route(one, "metrics")
    assert treatment.received == []
    faulty_bucket.faults.outage(0)
    eventually(lambda: len(treatment.received) == 10, timeout=25)
    assert one.stop() == 0
    assert booked_usd(open_objects(faulty_bucket.url), "test") == pytest.approx(10 * COST_USD)
    with pytest.raises(RuntimeError, match="is not that of the experiment's other replicas"):
        replica("other", treatment, key="another" * 5)


def test_an_idle_replica_gives_back_and_both_report_what_all_have_spent(
    replica: Start, upstream: Upstream, faulty_bucket: Bucket
) -> None:
    treatment = upstream(slow_answer)
    objects = open_objects(faulty_bucket.url)
    one, other = replica("one", treatment), replica("other", treatment)
    ask(one, 12)
    eventually(lambda: len(treatment.received) == 12, timeout=30)
    eventually(lambda: booked_usd(objects, "test") == pytest.approx(12 * COST_USD), timeout=20)

    def budget(running: Running, what: str) -> float:
        samples = [line.split() for line in own_route(running, "metrics").decode().splitlines()]
        return sum(
            float(one[-1]) for one in samples if one[0] == f'evalpipe_shadow_budget_{what}_usd{{experiment="test"}}'
        )

    for what, usd in (("spent", 12 * COST_USD), ("left", BUDGET_USD - 12 * COST_USD)):
        eventually(lambda what=what, usd=usd: budget(other, what) == pytest.approx(usd), timeout=10)  # type: ignore[misc]
    assert one.stop() == other.stop() == 0


def test_a_second_living_collector_of_a_name_does_not_start(replica: Start, upstream: Upstream) -> None:
    treatment = upstream(slow_answer)
    one = replica("one", treatment)
    with pytest.raises(RuntimeError, match=r"collector\.replica = 'one': another living collector .* has this name"):
        replica("one", treatment, folder="elsewhere")
    assert one.stop() == 0
    began = time.monotonic()
    assert replica("one", treatment, folder="elsewhere").stop() == 0
    assert time.monotonic() - began < 8, "a name that was given back is had at once"
