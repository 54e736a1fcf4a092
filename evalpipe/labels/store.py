"""The journal of labelling: every draw, claim, label, skip and undo is one appended, synced line before the next pair is shown.

Labels come from here into the dataset `labels` (`take_out`), where their comments live from then on; draws, claims and skips
stay. One process at a time writes a journal (`Journal` holds its lock).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec

from evalpipe.calls.journal import one_line_if_full
from evalpipe.errors import EvalpipeError, WorkspaceBusyError
from evalpipe.files import is_locked, make_folder, sync_folder, try_lock, write_synced
from evalpipe.labels.sampling import DrawnPair, control_first
from evalpipe.models import Label
from evalpipe.text import well_formed

SOURCE = "human"
"""`source` of labels that were given on the page"""
CLAIM_S = 3600.0
"""how long a pair waits for who was shown it last"""
JOURNAL_NAME = "labelling.jsonl"
_LOCK_NAME = ".labelling.lock"
PREFERENCES = {"1": 0.0, "2": 1.0, "0": 0.5}
"""what each key of the page means where control's answer is the first one"""

Choice = Literal["1", "2", "0"]


class ClosedPairError(EvalpipeError):
    """The pair was given to somebody else meanwhile, or is labelled already."""


class Draw(msgspec.Struct, frozen=True, kw_only=True, tag="draw", tag_field="what"):
    """What is asked, in its order. `n_pairs`: of the log, that could have been drawn. `judge`: whose doubt made the strata.
    `mark`: a hash of the pairs that could have been drawn and their strata."""

    at: datetime
    seed: str
    n_pairs: int
    overlap: float
    judge: str | None
    fingerprint: str | None
    pairs: list[tuple[str, float, str | None, bool]]
    mark: str = ""


class Claim(msgspec.Struct, frozen=True, kw_only=True, tag="claim", tag_field="what"):
    """A pair was shown to a person. `is_again`: it is theirs since an undo."""

    at: datetime
    labeler: str
    request_id: str
    is_again: bool = False


class Given(msgspec.Struct, frozen=True, kw_only=True, tag="label", tag_field="what"):
    """A label. `seconds`: since the pair was shown. `stored`: it is in the dataset."""

    at: datetime
    labeler: str
    request_id: str
    preference: float
    seconds: float | None = None
    comment: str | None = None
    control_score: float | None = None
    treatment_score: float | None = None
    stored: bool = False


class Skip(msgspec.Struct, frozen=True, kw_only=True, tag="skip", tag_field="what"):
    at: datetime
    labeler: str
    request_id: str


class Undo(msgspec.Struct, frozen=True, kw_only=True, tag="undo", tag_field="what"):
    """The person's last label or skip is taken back."""

    at: datetime
    labeler: str
    request_id: str


Entry = Draw | Claim | Given | Skip | Undo
_DECODER = msgspec.json.Decoder(Entry)
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Of one person. `n_left`: pairs that may still be asked of them. `n_elsewhere`: unlabelled pairs that others were shown and
    that come to this person if those leave them. `seconds_left`: at their pace so far; None: not known yet."""

    n_labelled: int
    n_skipped: int
    n_left: int
    n_elsewhere: int
    seconds_left: float | None


@dataclass(slots=True)
class State:
    """What a journal's entries amount to.

    Attributes:
        draw: the last one.
        pairs: by request id.
        given: (person, request) → label.
        skipped: (person, request) → when a person left the pair out.
        shown: (person, request) → when it was shown last. current: person → the request they have not answered.
        holders: request → (person, since) of pairs that are shown to one person only.
        done: person → what they did, in order, for undo: ("label" | "skip", request).
    """

    draw: Draw | None = None
    pairs: dict[str, DrawnPair] = field(default_factory=dict)
    given: dict[tuple[str, str], Given] = field(default_factory=dict)
    skipped: dict[tuple[str, str], datetime] = field(default_factory=dict)
    shown: dict[tuple[str, str], datetime] = field(default_factory=dict)
    current: dict[str, str] = field(default_factory=dict)
    holders: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    done: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Take one more entry into account."""
        if isinstance(entry, Draw):
            self.draw = entry
            self.pairs = {
                request_id: DrawnPair(
                    request_id=request_id,
                    probability=probability,
                    stratum="sure" if stratum == "sure" else "unsure" if stratum == "unsure" else None,
                    is_shared=is_shared,
                )
                for request_id, probability, stratum, is_shared in entry.pairs
            }
            return
        key = entry.labeler, entry.request_id
        if isinstance(entry, Claim):
            self.current[entry.labeler] = entry.request_id
            self.holders[entry.request_id] = entry.labeler, entry.at
            self.shown[key] = entry.at
        elif isinstance(entry, Given):
            self.given[key] = entry
            self.skipped.pop(key, None)
            self._end(entry.labeler, entry.request_id, "label")
            self.holders[entry.request_id] = entry.labeler, entry.at
        elif isinstance(entry, Skip):
            self.skipped[key] = entry.at
            self._end(entry.labeler, entry.request_id, "skip")
            if self.holders.get(entry.request_id, ("",))[0] == entry.labeler:
                del self.holders[entry.request_id]
        else:
            self.given.pop(key, None)
            self.skipped.pop(key, None)
            self.done[entry.labeler] = [one for one in self.done.get(entry.labeler, []) if one[1] != entry.request_id]

    def _end(self, labeler: str, request_id: str, what: str) -> None:
        self.done.setdefault(labeler, []).append((what, request_id))
        if self.current.get(labeler) == request_id:
            del self.current[labeler]

    @property
    def labelers(self) -> list[str]:
        """Everybody who was shown a pair."""
        return sorted({labeler for labeler, _ in self.shown})

    def is_open(self, labeler: str, pair: DrawnPair, now: datetime) -> bool:
        """Whether the pair may be asked of this person: not done by them and, unless everybody labels it, nobody else's."""
        key = labeler, pair.request_id
        if key in self.given or key in self.skipped:
            return False
        if pair.is_shared:
            return True
        holder = self.holders.get(pair.request_id)
        if holder is None or holder[0] == labeler:
            return True
        is_labelled = (holder[0], pair.request_id) in self.given
        return not is_labelled and now - holder[1] > timedelta(seconds=CLAIM_S)

    def _is_elsewhere(self, labeler: str, pair: DrawnPair, now: datetime) -> bool:
        key, holder = (labeler, pair.request_id), self.holders.get(pair.request_id)
        if key in self.given or key in self.skipped or holder is None or self.is_open(labeler, pair, now):
            return False
        return (holder[0], pair.request_id) not in self.given

    def progress(self, labeler: str, now: datetime) -> Progress:
        mine = [given for (who, _), given in self.given.items() if who == labeler]
        times = sorted(given.seconds for given in mine if given.seconds is not None)
        left = sum(self.is_open(labeler, pair, now) for pair in self.pairs.values())
        return Progress(
            n_labelled=len(mine),
            n_skipped=sum(who == labeler for who, _ in self.skipped),
            n_left=left,
            n_elsewhere=sum(self._is_elsewhere(labeler, pair, now) for pair in self.pairs.values()),
            seconds_left=times[len(times) // 2] * left if times else None,
        )


class Journal:
    """The journal of one experiment, held by one process.

    Raises:
        WorkspaceBusyError: where another process holds it.
        NoRoomError: from every method that writes, where the disk is full; then nothing has changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / JOURNAL_NAME
        make_folder(folder)
        self._lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not try_lock(self._lock):
            owner = os.pread(self._lock, 64, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise WorkspaceBusyError(
                f"another process ({owner}) is labelling {folder.name.removeprefix('experiment=')}: "
                "use its page, or stop it with Ctrl-C"
            )
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode("ascii"), 0)
        try:
            self.state, end = read_state(self.path)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._file, end)  # a line that a crash cut short was never acknowledged
            self._end = end
            sync_folder(folder)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        os.close(self._file)
        os.close(self._lock)

    def write(self, entry: Entry) -> None:
        """The entry is on disk before this returns."""
        line = _ENCODER.encode(entry) + b"\n"
        at = self._end
        with one_line_if_full(self.folder):
            try:
                while line:
                    n_written = os.pwrite(self._file, line, at)
                    at, line = at + n_written, line[n_written:]
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, self._end)
                raise
        self._end = at
        self.state.add(entry)

    def next_pair(self, labeler: str, *, now: datetime) -> DrawnPair | None:
        """The pair this person is asked about, claimed for them; None where nothing is left. The same one until they answer."""
        state = self.state
        open_now = state.pairs.get(state.current.get(labeler, ""))
        if open_now is not None and state.is_open(labeler, open_now, now):
            holder = state.holders.get(open_now.request_id)
            is_theirs = open_now.is_shared or (holder is not None and holder[0] == labeler)
            if is_theirs and now - state.shown[labeler, open_now.request_id] < timedelta(seconds=CLAIM_S / 2):
                return open_now
            self.write(Claim(at=now, labeler=labeler, request_id=open_now.request_id))
            return open_now
        for pair in state.pairs.values():
            if state.is_open(labeler, pair, now):
                self.write(Claim(at=now, labeler=labeler, request_id=pair.request_id))
                return pair
        return None

    def label(
        self,
        labeler: str,
        request_id: str,
        choice: Choice,
        *,
        now: datetime,
        comment: str | None = None,
        scores: tuple[float | None, float | None] = (None, None),
    ) -> Given:
        """Keep a label.

        Args:
            labeler: whose it is.
            request_id: of the pair.
            choice: 1 or 2: the answer that was shown there is better; 0: a tie.
            now: the time.
            comment: of the person.
            scores: of the first and of the second answer.

        Raises:
            ClosedPairError: where the pair is not this person's, or not any more. The same label again is no error.
        """
        is_first = self._check(labeler, request_id, now)
        preference = PREFERENCES[choice] if is_first else 1 - PREFERENCES[choice]
        given = self.state.given.get((labeler, request_id))
        if given is not None and given.preference == preference:
            return given  # sent twice
        if given is not None:
            raise ClosedPairError("this pair is labelled already; undo takes the last label back")
        shown = self.state.shown.get((labeler, request_id))
        first, second = scores if is_first else scores[::-1]
        given = Given(
            at=now,
            labeler=labeler,
            request_id=request_id,
            preference=preference,
            seconds=None if shown is None else max(0.0, round((now - shown).total_seconds(), 3)),
            comment=well_formed(comment.strip()) if comment and comment.strip() else None,
            control_score=first,
            treatment_score=second,
        )
        self.write(given)
        return given

    def skip(self, labeler: str, request_id: str, *, now: datetime) -> None:
        """Leave a pair out; somebody else may get it. Raises ClosedPairError as `label` does."""
        self._check(labeler, request_id, now)
        if (labeler, request_id) in self.state.given:
            raise ClosedPairError("this pair is labelled already; undo takes the last label back")
        if (labeler, request_id) not in self.state.skipped:
            self.write(Skip(at=now, labeler=labeler, request_id=request_id))

    def can_undo(self, labeler: str) -> bool:
        done = self.state.done.get(labeler, [])
        return bool(done) and not self._is_stored(labeler, done[-1][1])

    def undo(self, labeler: str, *, now: datetime) -> DrawnPair | None:
        """Take the person's last label or skip back; its pair is shown to them again, where nobody else has it by now."""
        if not self.can_undo(labeler):
            return None
        _, request_id = self.state.done[labeler][-1]
        self.write(Undo(at=now, labeler=labeler, request_id=request_id))
        pair = self.state.pairs.get(request_id)
        if pair is None or not self.state.is_open(labeler, pair, now):
            return None
        self.write(Claim(at=now, labeler=labeler, request_id=request_id, is_again=True))
        return pair

    def waiting(self, *, keep_last: bool) -> list[Given]:
        """Labels that are not in the dataset yet. `keep_last`: without each person's last one, which may still be undone."""
        kept = {(who, done[-1][1]) for who, done in self.state.done.items() if done} if keep_last else set()
        return [given for key, given in self.state.given.items() if not given.stored and key not in kept]

    def take_out(self, labels: Sequence[Given]) -> None:
        """Mark labels that are in the dataset now. Their comments stay there alone: `forget` must find every text."""
        for one in labels:
            key = one.labeler, one.request_id
            self.state.given[key] = replace_given(self.state.given[key])
        entries: list[Entry] = list(entries_of(self.state))
        data = b"".join(_ENCODER.encode(entry) + b"\n" for entry in entries)
        with one_line_if_full(self.folder):
            write_synced(self.path, data)
        os.close(self._file)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        self._end = len(data)

    def _check(self, labeler: str, request_id: str, now: datetime) -> bool:
        """Whether control's answer was the first one. Raises ClosedPairError."""
        state = self.state
        pair = state.pairs.get(request_id)
        if pair is None or state.draw is None or (labeler, request_id) not in state.shown:
            raise ClosedPairError("this pair was not shown to you")
        holder = state.holders.get(request_id)
        if not pair.is_shared and holder is not None and holder[0] != labeler:
            raise ClosedPairError("this pair was given to somebody else meanwhile; your answer is not kept")
        return control_first(state.draw.seed, request_id, labeler)

    def _is_stored(self, labeler: str, request_id: str) -> bool:
        given = self.state.given.get((labeler, request_id))
        return given is not None and given.stored


def labels_folder(data: Path, experiment: str) -> Path:
    """Where the journal of an experiment is, beside its labels."""
    return data / "labels" / f"experiment={experiment}"


def has_waiting(data: Path, experiment: str) -> bool:
    """Whether a journal is there that may hold labels which are not in the dataset. It may be one of a running page."""
    path = labels_folder(data, experiment) / JOURNAL_NAME
    return path.exists() and any(not given.stored for given in read_state(path)[0].given.values())


def is_labelling(data: Path, experiment: str) -> bool:
    """Whether a page of the experiment is open."""
    return bool(is_locked(labels_folder(data, experiment) / _LOCK_NAME))


def replace_given(given: Given) -> Given:
    return msgspec.structs.replace(given, stored=True, comment=None)


def entries_of(state: State) -> list[Entry]:
    """The shortest journal of a state: nothing that was undone or has run out of time."""
    entries: list[Entry] = [] if state.draw is None else [state.draw]
    entries += [
        Claim(at=at, labeler=labeler, request_id=request_id)
        for (labeler, request_id), at in sorted(state.shown.items(), key=lambda one: one[1])
    ]
    ended: list[Given | Skip] = list(state.given.values())
    ended += [
        Skip(at=at, labeler=labeler, request_id=request_id) for (labeler, request_id), at in state.skipped.items()
    ]
    return [*entries, *sorted(ended, key=lambda one: one.at)]


def read_state(path: Path) -> tuple[State, int]:
    """The state of a journal, and where its last whole line ends. A line that cannot be read before the last is an error.

    Raises:
        EvalpipeError: for a line in the middle that is damaged.
    """
    state = State()
    end = 0
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return state, 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        try:
            entry = _DECODER.decode(line) if line.endswith(b"\n") else None
        except msgspec.DecodeError as error:
            if end + len(line) < len(data):
                raise EvalpipeError(
                    f"{path}, line {number} is damaged: {error}; restore the file from a backup"
                ) from error
            entry = None
        if entry is None:
            break
        state.add(entry)
        end += len(line)
    return state, end


def as_label(given: Given, pair: DrawnPair | None) -> Label:
    """The row of the dataset."""
    return Label(
        request_id=given.request_id,
        preference=given.preference,
        source=SOURCE,
        labeler=given.labeler,
        labeled_at=given.at,
        note=given.comment,
        probability=None if pair is None else pair.probability,
        stratum=None if pair is None else pair.stratum,
        control_score=given.control_score,
        treatment_score=given.treatment_score,
    )
