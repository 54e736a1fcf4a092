"""The journal: claims that run out, undo, what a crash leaves, and what is in it after labels were stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from label_harness import make_workspace, rows

from evalpipe.errors import ConfigError, EvalpipeError, WorkspaceBusyError
from evalpipe.labels.store import ClosedPairError, Draw, Journal, read_state
from evalpipe.workspace.label import LabelOptions, labeler_name, open_labelling, store_waiting
from evalpipe.workspace.label_estimate import estimate_labels
from evalpipe.workspace.retention import forget

START = datetime(2026, 11, 28, tzinfo=UTC)


def drawn(folder: Path, n: int = 4, *, shared: int = 0) -> Journal:
    journal = Journal(folder)
    pairs: list[tuple[str, float, str | None, bool]] = [(f"r{k}", 0.5, None, k < shared) for k in range(n)]
    journal.write(Draw(at=START, seed="s", n_pairs=8, overlap=0.0, judge=None, fingerprint=None, pairs=pairs, mark="m"))
    return journal


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def asked(journal: Journal, who: str, minutes: float) -> str | None:
    pair = journal.next_pair(who, now=at(minutes))
    return pair.request_id if pair else None


def test_a_claim_runs_out_after_an_hour_and_its_late_answer_is_refused(tmp_path: Path) -> None:
    journal = drawn(tmp_path, 1)
    assert asked(journal, "ana", 0) == "r0"
    assert asked(journal, "bo", 59) is None
    assert asked(journal, "bo", 61) == "r0"
    with pytest.raises(ClosedPairError, match="given to somebody else"):
        journal.label("ana", "r0", "1", now=at(62))
    journal.label("bo", "r0", "0", now=at(63))
    assert asked(journal, "ana", 200) is None
    assert [given.labeler for given in journal.state.given.values()] == ["bo"]


def test_who_is_still_reading_keeps_their_pair(tmp_path: Path) -> None:
    journal = drawn(tmp_path, 1)
    asked(journal, "ana", 0)
    assert asked(journal, "ana", 45) == "r0"  # the page was loaded again: the hour begins anew
    assert asked(journal, "bo", 70) is None
    journal.label("ana", "r0", "2", now=at(100))


def test_everybody_gets_a_shared_pair(tmp_path: Path) -> None:
    journal = drawn(tmp_path, 2, shared=1)
    assert (asked(journal, "ana", 0), asked(journal, "bo", 0)) == ("r0", "r0")
    journal.label("ana", "r0", "1", now=at(1))
    journal.label("bo", "r0", "1", now=at(1))
    assert (asked(journal, "ana", 2), asked(journal, "bo", 2)) == ("r1", None)


def test_undo_goes_back_step_by_step_and_the_last_label_counts(tmp_path: Path) -> None:
    journal = drawn(tmp_path)
    for minute, choice in enumerate("12"):
        asked(journal, "ana", minute)
        journal.label("ana", f"r{minute}", choice, now=at(minute))  # type: ignore[arg-type]
    before = dict(journal.state.given)
    assert journal.undo("ana", now=at(3)).request_id == "r1"  # type: ignore[union-attr]
    assert journal.undo("ana", now=at(3)).request_id == "r0"  # type: ignore[union-attr]
    assert journal.undo("ana", now=at(3)) is None
    journal.label("ana", "r0", "0", now=at(4))
    journal.close()
    again = Journal(tmp_path)
    assert {key: given.preference for key, given in again.state.given.items()} == {("ana", "r0"): 0.5}
    assert set(before) == {("ana", "r0"), ("ana", "r1")}
    assert asked(again, "ana", 5) == "r1"
    again.close()


def test_a_line_that_was_cut_off_is_dropped_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    journal = drawn(tmp_path)
    asked(journal, "ana", 0)
    journal.label("ana", "r0", "1", now=at(1))
    journal.close()
    path = journal.path
    whole = path.read_bytes()
    for cut in (1, 10, 40):
        path.write_bytes(whole[:-cut])
        found = Journal(tmp_path)
        assert found.state.given == {}
        asked(found, "ana", 2)
        found.label("ana", "r0", "2", now=at(2))
        found.close()
        assert len(read_state(path)[0].given) == 1
    path.write_bytes(whole.replace(b'"claim"', b'"clai', 1))
    with pytest.raises(EvalpipeError, match="line 2 is damaged"):
        Journal(tmp_path)
    path.write_bytes(whole)
    Journal(tmp_path).close()  # the failed one has let go of the lock


def test_after_labels_are_stored_the_journal_is_the_same_without_their_comments(tmp_path: Path) -> None:
    journal = drawn(tmp_path, 6)
    for minute, choice in enumerate("120"):
        asked(journal, "ana", minute)
        journal.label("ana", f"r{minute}", choice, now=at(minute), comment=f"why {minute}")  # type: ignore[arg-type]
    asked(journal, "ana", 3)
    journal.skip("ana", "r3", now=at(3))
    asked(journal, "ana", 4)
    assert asked(journal, "bo", 4) == "r3"
    waiting = journal.waiting(keep_last=True)
    assert [one.request_id for one in waiting] == ["r0", "r1", "r2"]  # the last step was the skip
    journal.take_out(waiting)
    assert b"why" not in journal.path.read_bytes()
    journal.close()
    again = Journal(tmp_path)
    assert (again.state.given, again.state.skipped) == (journal.state.given, journal.state.skipped)
    assert (again.state.holders, again.state.current) == (journal.state.holders, journal.state.current)
    assert not again.waiting(keep_last=False)
    assert asked(again, "ana", 5) == "r4"
    with pytest.raises(WorkspaceBusyError, match=r"another process \(\d+\) is labelling"):
        Journal(tmp_path)
    again.close()


def test_a_comment_that_waits_in_the_journal_is_forgotten_too(tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 4)
    labelling = open_labelling(found, LabelOptions(n_pairs=4, overlap=0.0))
    journal = labelling.journal
    for _ in range(4):
        pair, *_ = labelling.next_pair("ana")
        assert pair is not None
        journal.label("ana", pair.request_id, "1", now=datetime.now(UTC), comment=f"knows {pair.request_id}")
    (open_page,) = forget(found, "u0", dry_run=False)
    assert any("a page of `evalpipe label` is open" in note for note in open_page.notes)
    journal.close()  # killed before anything was stored
    assert b"knows r1" in journal.path.read_bytes()
    forget(found, "u1")
    notes = dict(rows(found, "SELECT request_id, note FROM labels"))
    assert notes == {"r0": "knows r0", "r1": None, "r2": "knows r2", "r3": "knows r3"}
    assert b"knows" not in journal.path.read_bytes()
    assert store_waiting(found, "t")


def test_a_draw_grows_and_keeps_its_probabilities_and_nothing_else_changes_it(tmp_path: Path) -> None:
    found = make_workspace(tmp_path, 100, verdicts=[("a", "b") if n < 40 else ("b", "b") for n in range(100)])

    def pairs(**options: object) -> dict[str, tuple[float, str | None]]:
        with open_labelling(found, LabelOptions(**options)) as labelling:  # type: ignore[arg-type]
            return {one.request_id: (one.probability, one.stratum) for one in labelling.journal.state.pairs.values()}

    def label_one() -> None:
        with open_labelling(found, LabelOptions()) as labelling:
            pair, *_ = labelling.next_pair("ana")
            assert pair is not None
            labelling.label("ana", pair.token, "1")

    small = pairs(n_pairs=50)
    label_one()  # until then another draw is as good
    assert pairs() == small
    with pytest.raises(ConfigError, match="--pairs 20 cannot make the draw smaller"):
        pairs(n_pairs=20)
    large = pairs(n_pairs=80)
    assert small.items() < large.items()
    assert set(large.values()) == set(small.values())
    for options in ({"seed": "x"}, {"overlap": 0.5}):
        with pytest.raises(ConfigError, match="start another draw with --new-draw"):
            pairs(**options)
    with pytest.raises(ConfigError, match=r"--judge 'nobody' has no verdicts here; judges with some: recorded"):
        pairs(judge="nobody")
    other = pairs(seed="x", new_draw=True, n_pairs=50)
    assert set(other) != set(small)
    label_one()
    make_workspace(tmp_path, 120)  # twenty more pairs, not judged: no candidates
    assert pairs() == other
    make_workspace(tmp_path, 140, verdicts=[("a", "b")] * 140)
    assert pairs() == other
    with pytest.raises(ConfigError, match="the draw cannot grow"):
        pairs(n_pairs=90)


def test_an_estimate_counts_people_alone_and_with_the_judge(tmp_path: Path) -> None:
    """1,000 pairs, nobody has labelled: V is at most 0.25, t(383) = 1.9662, so 1.9662² · 0.25 / 0.05² = 386.6 labels for ± 5."""
    verdicts = [("a", "a") if n % 2 else ("b", "b") for n in range(1000)]
    found = make_workspace(tmp_path, 1000, verdicts=verdicts, settings='[decision]\nlooks = "fixed"\n')
    needed = estimate_labels(found, 5, LabelOptions())
    assert (needed.variance, needed.variance_from, needed.alone) == (0.25, "at most", 387)
    assert None not in needed.with_judge.values()
    assert needed.with_judge[0.7] < needed.with_judge[0.5] < needed.with_judge[0.3] < needed.alone
    with pytest.raises(ConfigError, match="--estimate 0"):
        estimate_labels(found, 0, LabelOptions())


def test_names() -> None:
    assert labeler_name("  Ana   Müller ") == "Ana Müller"
    with pytest.raises(ConfigError, match="a name is needed"):
        labeler_name(" \n ")
    with pytest.raises(ConfigError, match="all of them visible"):
        labeler_name("a\u202eb")
