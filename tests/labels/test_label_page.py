"""The page over real HTTP, without a browser: who gets which pair, what is kept, what is refused."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from label_harness import CONTROL, TREATMENT, PageEndedError, Person, forked_page, label_page, make_workspace, rows

from evalpipe.cli.app import main
from evalpipe.workspace.analyze import analyze_workspace
from evalpipe.workspace.label import token_of
from evalpipe.workspace.paths import Workspace

pytestmark = pytest.mark.timeout(300)

KILLS = int(os.environ.get("EVALPIPE_KILLS", "15"))
"""moments at which the page is killed; 50 of them take a minute"""


def first_arm(page: str) -> str:
    """The arm of the answer in the first seat, by the words of the texts."""
    return "control" if page.index(CONTROL) < page.index(TREATMENT) else "treatment"


def arm_in(page: str, seat: str) -> str:
    first = first_arm(page)
    return first if seat == "1" else {"control": "treatment", "treatment": "control"}[first]


def label_all(person: Person, prefers: str) -> list[tuple[str, str]]:
    """Prefer one arm until nothing is left: (token, seat of that arm)."""
    done = []
    while True:
        page = person.page()
        token = person.token(page)
        if token is None:
            return done
        seat = "1" if first_arm(page) == prefers else "2"
        assert person.send(seat, token).status == 303
        done.append((token, seat))


def stored(found: Workspace) -> list[dict[str, Any]]:
    names = "request_id, labeler, preference, source, probability, stratum, note, control_score, treatment_score"
    return [
        dict(zip(names.split(", "), row, strict=True))
        for row in rows(found, f"SELECT {names} FROM labels ORDER BY labeled_at, labeler, request_id")
    ]


def test_two_people_label_the_draw_once_and_the_overlap_twice(tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 60)
    with label_page(tmp_path, "--pairs", "40", "--overlap", "0.25", "--seed", "s") as page:
        ana, bo = Person(page, "Ana"), Person(page, "Bo Doe")
        by_ana = label_all(ana, "control")
        by_bo = label_all(bo, "treatment")
        assert page.stop() == 0
    labels = stored(found)
    assert len(labels) == len(by_ana) + len(by_bo)
    # Ana labels all forty before Bo begins: what is left for Bo is the overlap.
    shared = {token for token, _ in by_bo}
    assert len(by_ana) == 40
    assert 3 <= len(shared) <= 20
    assert shared < {token for token, _ in by_ana}
    assert {one["labeler"]: one["preference"] for one in labels} == {"Ana": 0.0, "Bo Doe": 1.0}
    assert {(one["source"], one["stratum"]) for one in labels} == {("human", None)}
    assert {one["probability"] for one in labels} == {40 / 60}
    # Sides are a coin: of forty, all but one in ten thousand such runs have between 8 and 32 in the first seat.
    assert 8 <= sum(seat == "1" for _, seat in by_ana) <= 32
    # A pair that two people labelled counts with the mean of both.
    (result,) = [one for one in analyze_workspace(found).judges if one.name == "label:human"]
    assert (result.n_pairs, result.win_rate) == (40, pytest.approx(0.5 * len(shared) / 40))


def test_the_page_is_blind(tmp_path: Path) -> None:
    make_workspace(tmp_path, 20, verdicts=[("a", "a")] * 20)
    with forked_page(tmp_path, n_pairs=20) as page:
        person = Person(page, "Ana")
        for _ in range(20):
            shown = person.page()
            assert CONTROL in shown
            assert TREATMENT in shown
            for word in ("secret-model", "control", "treatment", "recorded", "u1", 'value="r'):
                assert word not in shown, word
            person.send("0", person.token(shown))


def test_a_draw_follows_the_judges_doubt(tmp_path: Path) -> None:
    """100 pairs, 40 of them with a judge that contradicts itself: of 60, 2 · 40 / (2 · 40 + 60) · 60 = 34.3 are unsure ones."""
    verdicts = [("a", "b") if n < 40 else ("b", "b") for n in range(100)]
    found = make_workspace(tmp_path, 100, verdicts=verdicts)
    with forked_page(tmp_path, n_pairs=60, overlap=0.0) as page:
        label_all(Person(page, "Ana"), "treatment")
        page.stop()
    labels = stored(found)
    assert Counter((one["stratum"], one["probability"]) for one in labels) == {
        ("unsure", 34 / 40): 34,
        ("sure", 26 / 60): 26,
    }
    unsure = {f"r{n}" for n in range(40)}
    assert all((one["request_id"] in unsure) == (one["stratum"] == "unsure") for one in labels)


def test_undo_skip_comment_scores_and_going_on(tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 10)
    with forked_page(tmp_path, n_pairs=4, overlap=0.0) as page:
        ana = Person(page, "Ana")
        shown = ana.page()
        assert re.search(r'data-key="u" disabled', shown)
        first = ana.token(shown)
        ana.send("1", first)
        second = ana.token()
        assert second != first
        ana.send("undo")
        again = ana.page()
        assert ana.token(again) == first  # the same pair again
        seat = "1" if first_arm(again) == "treatment" else "2"
        scores = {"score_1": "5", "score_2": "2"} if seat == "1" else {"score_1": "2", "score_2": "5"}
        ana.send(seat, first, comment="  clearer ", **scores)
        assert ana.token() == second
        ana.send("skip", second)
        third = ana.token()
        assert third not in (first, second)
        bo = Person(page, "Bo")
        assert bo.token() == second  # a skipped pair is somebody else's
        page.stop()
    (label,) = stored(found)
    assert (label["preference"], label["note"]) == (1.0, "clearer")
    assert (label["control_score"], label["treatment_score"]) == (2.0, 5.0)
    with forked_page(tmp_path) as page:  # another day: the claims of before still hold
        assert Person(page, "Ana").token() == third
        assert Person(page, "Bo").token() == second
        assert Person(page, "Cy").token() not in (first, second, third)
        assert "1 of 4" not in Person(page, "Ana").page()


def test_a_pair_is_never_given_to_two_people_at_once(tmp_path: Path) -> None:
    """Eight people at once, each asking and answering as fast as they can: every pair has one label."""
    found = make_workspace(tmp_path, 120)
    with forked_page(tmp_path, n_pairs=120, overlap=0.0) as page:

        def work(name: str) -> int:
            person, n = Person(page, name), 0
            while person.label(random.choice("120")) is not None:
                n += 1
            return n

        with ThreadPoolExecutor(8) as people:
            counts = list(people.map(work, [f"p{n}" for n in range(8)]))
        assert sum(counts) == 120
        page.stop()
    labels = stored(found)
    assert len(labels) == 120
    assert max(Counter(one["request_id"] for one in labels).values()) == 1
    assert sum(count > 0 for count in counts) == len({one["labeler"] for one in labels}) > 1


def test_what_others_are_working_at_is_shown_at_the_end(tmp_path: Path) -> None:
    make_workspace(tmp_path, 3)
    with forked_page(tmp_path, n_pairs=3, overlap=0.0) as page:
        ana, bo = Person(page, "Ana"), Person(page, "Bo")
        token = bo.token()
        assert "1 of 3" in bo.page()
        for _ in range(2):
            assert ana.label() is not None
        shown = ana.page()
        assert "Nothing left for you" in shown
        assert "2 labelled" in shown
        assert "1 pair of the draw is shown to somebody else" in shown
        bo.send("skip", token)
        assert ana.label() == token  # it comes to Ana after all
        shown = ana.page()
        assert "Nothing left for you" in shown
        assert "somebody else" not in shown


def test_a_form_that_is_sent_twice_is_one_label_and_a_second_opinion_is_none(tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 6)
    with forked_page(tmp_path, n_pairs=6, overlap=0.0) as page:
        ana, bo = Person(page, "Ana"), Person(page, "Bo")
        token = ana.token()
        for _ in range(2):
            assert ana.send("1", token).headers["location"] == "/?as=Ana"
        assert "note=kept" in ana.send("2", token).headers["location"]
        assert "note=closed" in bo.send("1", token).headers["location"]  # never shown to Bo
        assert "note=closed" in bo.send("1", "0" * 20).headers["location"]
        page.stop()
    assert len(stored(found)) == 1


def test_a_form_that_cannot_be_kept_is_one_line(tmp_path: Path) -> None:
    make_workspace(tmp_path, 4)
    with forked_page(tmp_path) as page:
        ana = Person(page, "Ana")
        token = ana.token() or ""
        for form, message in (
            ({"choice": "3"}, "choice = '3'"),
            ({"choice": "1", "score_1": "9"}, "a score of '9'"),
            ({"choice": "1", "comment": "x" * 2001}, "at most 2,000"),
            ({"choice": "1", "as": " "}, "a name is needed"),
            ({"choice": "1", "as": "x" * 65}, "at most 64 characters"),
            ({"choice": "1", "as": "a\x00b"}, "all of them visible"),
        ):
            answered = ana.request("POST", "/answer", {"as": "Ana", "pair": token, **form})
            assert (answered.status, message in answered.text, answered.text.count("\n")) == (400, True, 1), form
        assert ana.token() == token
        page.stop()
    assert rows(make_workspace(tmp_path, 4), "SELECT * FROM labels") == []


def test_other_pages_and_other_people_can_neither_read_nor_write(tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 4)
    with forked_page(tmp_path) as page:
        ana = Person(page, "Ana")
        token = ana.token()
        stranger = Person(page, "Ana")
        stranger.cookie = ""
        assert stranger.request("GET", "/?as=Ana").headers["location"].startswith("/sign-in")
        form = {"as": "Ana", "pair": token or "", "choice": "1"}
        own = f"http://127.0.0.1:{page.port}"
        assert stranger.request("POST", "/answer", form, {"Origin": own}).status == 401
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "evil.example"},
        ):
            assert ana.request("POST", "/answer", form, headers).status == 403, headers
        # With the cookie alone: a form of another page in a browser that names nobody.
        ana.connection.request(
            "POST",
            "/answer",
            body="as=Ana&choice=1",
            headers={"Cookie": ana.cookie, "Content-Type": "application/x-www-form-urlencoded"},
        )
        refused = ana.connection.getresponse()
        why = refused.read().decode()
        assert (refused.status, "the request lacks an Origin" in why, why.count("\n")) == (401, True, 1)
        guessed = ana.request("GET", "/start?token=guess")
        assert (guessed.status, guessed.headers["location"]) == (303, "/sign-in")
        assert "set-cookie" not in guessed.headers
        headers = ana.request("GET", "/?as=Ana").headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        page.stop()
    assert stored(found) == []


def test_a_token_of_ones_own_is_asked_for_and_never_printed(tmp_path: Path) -> None:
    make_workspace(tmp_path, 4)
    with label_page(tmp_path, EVALPIPE_TOKEN="a-secret-of-mine") as page:
        assert "a-secret-of-mine" not in "".join(page.output)
        assert page.start_path == "/"
        person = Person(page, "Ana")
        signed = person.request(
            "POST", "/sign-in", {"token": "a-secret-of-mine", "next": "/"}, {"Origin": f"http://127.0.0.1:{page.port}"}
        )
        person.cookie = signed.headers["set-cookie"].split(";")[0]
        assert person.token() is not None


def test_one_page_at_a_time_for_an_experiment(tmp_path: Path) -> None:
    make_workspace(tmp_path, 4)
    with (
        label_page(tmp_path) as page,
        pytest.raises(AssertionError, match=r"another process \(\d+\) is labelling t: use its page"),
        label_page(tmp_path),
    ):
        pass
    assert page.process.returncode is not None


def test_status_and_export_while_the_page_is_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = make_workspace(tmp_path, 8)
    with forked_page(tmp_path, n_pairs=8, overlap=0.0) as page:
        ana = Person(page, "Ana")
        for _ in range(3):
            ana.label()
        assert stored(found) == []  # in the journal only
        for words, code in ((["--status"], 0), (["export", str(tmp_path / "pairs.csv")], 0)):
            with pytest.raises(SystemExit) as ended:
                main(["label", *words, "--config", str(tmp_path / "evalpipe.toml")])
            assert (ended.value.code or 0) == code
        captured = capsys.readouterr()
        assert "3 labels of 3 pairs (Ana 3); 3 of the 8 pairs of this draw have a label" in captured.out
        assert "pairs.csv: 8 pairs, 3 labels" in captured.err
        ana.label()
        page.stop()
    assert len(stored(found)) == 4


# kill -9.


def test_kill_9_at_any_moment_loses_no_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A person labels, the process is killed at a random moment, and again. Every label that was acknowledged is there at the
    end, none twice, and nothing that was never sent."""
    found = make_workspace(tmp_path, 400)
    rng = random.Random(11)
    acknowledged: dict[str, str] = {}
    unsure: dict[str, str] = {}
    n_kills = 0
    for _ in range(KILLS):
        with forked_page(tmp_path, n_pairs=400, overlap=0.0, seed="k") as page:
            person = Person(page, "Ana")
            killer = threading.Timer(rng.uniform(0.0, 0.04), page.kill)
            n_before = rng.randrange(12)  # labels until the clock of the kill begins
            with suppress(OSError, HTTPException, PageEndedError):
                while True:
                    if n_before == 0:
                        killer.start()
                    n_before -= 1
                    shown = person.page()
                    token, seat = person.token(shown), rng.choice("12")
                    assert token is not None
                    assert token not in acknowledged
                    unsure[token] = arm_in(shown, seat)  # sent: it may be kept, it need not
                    if person.send(seat, token).status == 303:
                        acknowledged[token] = unsure.pop(token)
            killer.join()
            assert page.exit_code() == -9
            n_kills += 1
    with forked_page(tmp_path) as last:  # the labels of the last run go into the store
        last.stop()
    labels = stored(found)
    by_token = {token_of("k", one["request_id"]): one for one in labels}
    lost = [token for token in acknowledged if token not in by_token]
    with capsys.disabled():
        print(f"\n{n_kills} kills, {len(acknowledged)} labels acknowledged, {len(labels)} stored, {len(lost)} lost")
    assert lost == []
    assert len(by_token) == len(labels)
    assert set(by_token) <= set(acknowledged) | set(unsure)
    for token, arm in {**unsure, **acknowledged}.items():
        if token in by_token:
            assert by_token[token]["preference"] == (0.0 if arm == "control" else 1.0)
    assert len(acknowledged) >= 3 * KILLS
    lines = (found.data / "labels/experiment=t/labelling.jsonl").read_bytes().splitlines()
    assert sum(json.loads(line)["what"] == "label" for line in lines) == len(labels)


def test_labels_of_a_killed_page_are_in_the_next_report(tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 30)
    with forked_page(tmp_path, n_pairs=30) as page:
        ana = Person(page, "Ana")
        for _ in range(7):
            ana.label()
        page.kill()
        page.exit_code()
    (result,) = [one for one in analyze_workspace(found).judges if one.name == "label:human"]
    assert result.n_pairs == 7
    assert len(stored(found)) == 7


def test_labels_reach_the_store_while_the_page_is_open(tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 60)
    with forked_page(tmp_path, n_pairs=60, overlap=0.0) as page:
        ana = Person(page, "Ana")
        for _ in range(25):
            ana.label()
        until = time.monotonic() + 30
        while len(stored(found)) < 20 and time.monotonic() < until:
            time.sleep(0.05)
        assert 20 <= len(stored(found)) < 25
        page.stop()
    assert len(stored(found)) == 25
