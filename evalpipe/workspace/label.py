"""`evalpipe label`: the draw from the store, the journal of labels and its way into the store, what a page shows of a pair."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from evalpipe.analysis.examples import MAX_REQUEST, messages_of
from evalpipe.errors import ConfigError, DataError, WorkspaceBusyError
from evalpipe.files import sql_statements
from evalpipe.identity import fingerprint
from evalpipe.judging.plan import UNJUDGEABLE
from evalpipe.labels.interchange import FileLabel, FilePair, Format, read_labels, write_pairs
from evalpipe.labels.sampling import Candidate, DrawnPair, control_first, draw
from evalpipe.labels.store import (
    JOURNAL_NAME,
    SOURCE,
    Choice,
    Draw,
    Given,
    Journal,
    Progress,
    State,
    as_label,
    labels_folder,
    read_state,
)
from evalpipe.models import ANSWERED, FINAL, Label
from evalpipe.store.importers.base import prompt_text
from evalpipe.store.query import Store, open_store, write_rows
from evalpipe.workspace.judge_setup import judge_settings, only_first_turns
from evalpipe.workspace.paths import Workspace, check_writable, has_record, loaded_experiment

_SQL = sql_statements("evalpipe.workspace", "label.sql")

SHOWN_CHARACTERS = 40_000
"""of a text that a person reads"""
STORED_AT_ONCE, STORED_AFTER_S = 10, 60.0
"""labels, or seconds, after which labels go from the journal into the store"""
DEFAULT_PAIRS, DEFAULT_OVERLAP = 100, 0.2
MAX_NAME = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelOptions:
    """The options of the command line; None: as drawn before, else the default.

    Attributes:
        n_pairs: pairs in the draw.
        overlap: share of the draw that everybody labels.
        seed: of the draw.
        judge: whose doubt makes the strata; None: the first configured one.
        new_draw: draw again, whatever was drawn before.
    """

    n_pairs: int | None = None
    overlap: float | None = None
    seed: str | None = None
    judge: str | None = None
    new_draw: bool = False
    experiment: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSide:
    """An answer as a person sees it, nothing of its arm with it. `state`: refused | truncated | empty | None."""

    text: str
    n_cut: int
    tool_calls: str | None
    state: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownPair:
    """A pair on the page. `token`: its id in forms, and nowhere else. `turns`: [{role, content}] of what was asked."""

    token: str
    request_id: str
    turns: Sequence[Mapping[str, str]]
    first: ShownSide
    second: ShownSide
    is_shared: bool

    @property
    def is_identical(self) -> bool:
        return self.first == self.second


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCounts:
    """The draw and the labels so far, those of earlier draws, too. `by_labeler`: person → labels. `n_labelled_drawn`: pairs of
    the draw with a label. `is_stored`: False: the draw that the same options would make, before anybody labels."""

    experiment: str
    n_pairs: int
    n_drawn: int
    overlap: float
    seed: str
    judge: str | None
    strata: Mapping[str, int]
    by_labeler: Mapping[str, int]
    n_labelled_pairs: int
    n_labelled_drawn: int
    is_stored: bool = True


class LabelView:
    """A draw and its labels, to be read; a page may be open meanwhile."""

    def __init__(self, workspace: Workspace, experiment: str, state: State) -> None:
        self.workspace, self.experiment, self.state = workspace, experiment, state
        self._lock = threading.Lock()
        # Read once: a page is open for hours, and a store that is open keeps others from removing its files.
        self._texts = _read_texts(workspace, experiment, list(state.pairs))

    @property
    def draw(self) -> Draw:
        assert self.state.draw is not None
        return self.state.draw

    def counts(self) -> LabelCounts:
        with self._lock, open_store(self.workspace.data, self.experiment) as store:
            return _counts(self.experiment, self.draw, _labelled(store, self.state))

    def drawn(self) -> list[tuple[DrawnPair, ShownPair | None]]:
        """Every pair of the draw, in its order, with the first seat drawn for nobody in particular: for files of other tools."""
        with self._lock:
            return [(pair, self._shown(pair, "")) for pair in self.state.pairs.values()]

    def given(self) -> list[Given]:
        with self._lock:
            return sorted(self.state.given.values(), key=lambda one: (one.at, one.labeler, one.request_id))

    def stored_comments(self) -> dict[tuple[str, str], str]:
        """(request, person) → the comment of a label that is in the store."""
        with self._lock, open_store(self.workspace.data, self.experiment) as store:
            rows = store.connection.execute(
                "SELECT request_id, labeler, note FROM labels WHERE source = $1 AND note IS NOT NULL AND labeler IS NOT NULL",
                [SOURCE],
            ).fetchall()
        return {(request_id, labeler): note for request_id, labeler, note in rows}

    def _shown(self, pair: DrawnPair, labeler: str) -> ShownPair | None:
        """The pair as this person sees it; None where its texts were removed since the draw."""
        found = self._texts.get(pair.request_id)
        if found is None:
            return None
        drawn = self.draw
        turns, *sides = found
        first, second = sides if control_first(drawn.seed, pair.request_id, labeler) else sides[::-1]
        return ShownPair(
            token=token_of(drawn.seed, pair.request_id),
            request_id=pair.request_id,
            turns=turns,
            first=first,
            second=second,
            is_shared=pair.is_shared,
        )


class Labelling(LabelView):
    """Labelling of one experiment, by one process: several people, one pair each at a time. Safe to call from several threads.

    `close` puts every label into the store.
    """

    def __init__(
        self, workspace: Workspace, experiment: str, journal: Journal, *, clock: Callable[[], datetime]
    ) -> None:
        super().__init__(workspace, experiment, journal.state)
        self.journal = journal
        self._clock = clock
        self._tokens = {token_of(self.draw.seed, request_id): request_id for request_id in journal.state.pairs}
        self._answered: frozenset[str] | None = None

    def __enter__(self) -> Labelling:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            try:
                self._store_labels(keep_last=False)
            finally:
                self.journal.close()

    def labelers(self) -> list[str]:
        """Everybody who has been shown a pair."""
        with self._lock:
            return self.journal.state.labelers

    def next_pair(self, labeler: str) -> tuple[ShownPair | None, Progress, bool]:
        """(the pair this person is asked about, their progress, whether their last label can be taken back)."""
        with self._lock:
            while True:
                now = self._clock()
                pair = self.journal.next_pair(labeler, now=now)
                found = None if pair is None else self._shown(pair, labeler)
                if pair is None or found is not None:
                    return found, self.journal.state.progress(labeler, now), self.journal.can_undo(labeler)
                self.journal.skip(labeler, pair.request_id, now=now)  # its texts were removed since the draw

    def label(
        self,
        labeler: str,
        token: str,
        choice: Choice,
        *,
        comment: str | None = None,
        scores: tuple[float | None, float | None] = (None, None),
    ) -> None:
        """Keep a label; it is on disk before this returns. Raises ClosedPairError."""
        with self._lock:
            request_id = self._tokens.get(token, "")
            now = self._clock()
            self.journal.label(labeler, request_id, choice, now=now, comment=comment, scores=scores)
            waiting = self.journal.waiting(keep_last=True)
            if len(waiting) >= STORED_AT_ONCE or any(
                (now - one.at).total_seconds() > STORED_AFTER_S for one in waiting
            ):
                self._store_labels(keep_last=True)

    def skip(self, labeler: str, token: str) -> None:
        """Leave a pair out. Raises ClosedPairError."""
        with self._lock:
            self.journal.skip(labeler, self._tokens.get(token, ""), now=self._clock())

    def undo(self, labeler: str) -> bool:
        """Take the person's last label or skip back; False where there is none that can be."""
        with self._lock:
            could = self.journal.can_undo(labeler)
            self.journal.undo(labeler, now=self._clock())
            return could

    def label_of(self, one: FileLabel) -> Label:
        """A label of a file as the store has it. Raises DataError for an unknown pair, ConfigError for a label of nobody."""
        with self._lock:
            request_id = self._tokens.get(one.pair)
            if request_id is None:  # a pair may be named by its request, too
                request_id = one.pair
                if self._answered is None:
                    self._answered = _answered_pairs(self.workspace, self.experiment)
                if request_id not in self._answered:
                    raise DataError(
                        f"{self.experiment}: no pair {one.pair[:80]!r} with answers of both arms; "
                        "was the file exported from this draw?"
                    )
            is_first = control_first(self.draw.seed, request_id, "")
        if one.labeler is None:
            raise ConfigError("the file names nobody who gave these labels: add --labeler NAME")
        preference = one.treatment
        if preference is None:
            first = 0.5 if one.first is None else one.first
            preference = 1 - first if is_first else first
        pair = self.journal.state.pairs.get(request_id)
        control, treatment = one.scores if is_first else one.scores[::-1]
        at = None if one.at is None else datetime.fromisoformat(one.at)
        return Label(
            request_id=request_id,
            preference=preference,
            source=SOURCE,
            labeler=labeler_name(one.labeler),
            labeled_at=at if at is None or at.tzinfo is not None else at.replace(tzinfo=UTC),
            note=one.comment,
            probability=None if pair is None else pair.probability,
            stratum=None if pair is None else pair.stratum,
            control_score=control,
            treatment_score=treatment,
        )

    def _store_labels(self, *, keep_last: bool) -> None:
        """Labels from the journal into the store. A crash in between repeats it, and the store adds no label twice."""
        waiting = self.journal.waiting(keep_last=keep_last)
        if waiting:
            pairs = self.journal.state.pairs
            labels = [as_label(one, pairs.get(one.request_id)) for one in waiting]
            write_rows(self.workspace.data, self.experiment, "labels", labels)
            self.journal.take_out(waiting)


def _answered_pairs(workspace: Workspace, experiment: str) -> frozenset[str]:
    """Requests with an answer of both arms."""
    with open_store(workspace.data, experiment, compared=True) as store:
        found = store.connection.execute(
            "SELECT request_id FROM exchanges WHERE role <> 'replay' GROUP BY request_id HAVING count(DISTINCT arm) = 2"
        ).fetchall()
    return frozenset(request_id for (request_id,) in found)


def _read_texts(
    workspace: Workspace, experiment: str, request_ids: Sequence[str]
) -> dict[str, tuple[Sequence[Mapping[str, str]], ShownSide, ShownSide]]:
    """request → (what was asked, control's answer, the treatment's)."""
    arms: dict[str, dict[str, tuple[Any, ...]]] = {}
    with open_store(workspace.data, experiment, compared=True) as store:
        for request_id, arm, *columns in store.connection.execute(
            _SQL["texts"],
            {"request_ids": list(request_ids), "characters": SHOWN_CHARACTERS, "request_characters": MAX_REQUEST},
        ).fetchall():
            arms.setdefault(request_id, {}).setdefault(arm, tuple(columns))
    found: dict[str, tuple[Sequence[Mapping[str, str]], ShownSide, ShownSide]] = {}
    for request_id, rows in arms.items():
        if set(rows) == {"control", "treatment"} and not any(row[-1] for row in rows.values()):
            endpoint, request, prompt, *_ = rows["control"]
            control, treatment = (_side(*rows[arm][3:-1]) for arm in ("control", "treatment"))
            found[request_id] = (messages_of(endpoint, request, prompt), control, treatment)
    return found


def _side(text: str | None, n_cut: int | None, tool_calls: str | None, outcome: str) -> ShownSide:
    state = outcome if outcome in {"refused", "truncated"} else None
    if state is None and not (text or "").strip() and not tool_calls:
        state = "empty"
    return ShownSide(text=text or "", n_cut=n_cut or 0, tool_calls=tool_calls, state=state)


def token_of(seed: str, request_id: str) -> str:
    """A pair's id in a form: nothing can be looked up by it."""
    return sha256(f"pair\0{seed}\0{request_id}".encode("utf-8", "surrogatepass")).hexdigest()[:20]


def labeler_name(text: str) -> str:
    """A person's name as it is stored: blanks around it and between its words are no part of it.

    Raises:
        ConfigError: for an empty or a long name, or one with signs that cannot be seen.
    """
    name = " ".join(text.split())
    if not name:
        raise ConfigError("a name is needed: it is stored with each label")
    if len(name) > MAX_NAME or not name.isprintable():
        raise ConfigError(f"a name has at most {MAX_NAME} characters, all of them visible")
    return name


def open_labelling(
    workspace: Workspace,
    options: LabelOptions | None = None,
    *,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Labelling:
    """Draw the pairs, or go on with those that were drawn. Labels of a run that was killed go into the store.

    Raises:
        ConfigError: for options that contradict the draw there is.
        DataError: where no pair can be labelled.
        WorkspaceBusyError: where another process is labelling.
    """
    options = options or LabelOptions()
    name = loaded_experiment(workspace, options.experiment)
    check_writable(workspace.data)
    journal = Journal(labels_folder(workspace.data, name))
    try:
        with open_store(workspace.data, name, compared=True) as store:
            wanted = _wanted_draw(workspace, store, options, journal.state, at=clock())
        if wanted is not None:
            journal.write(wanted)
        labelling = Labelling(workspace, name, journal, clock=clock)
    except BaseException:
        journal.close()
        raise
    try:
        labelling._store_labels(keep_last=False)
    except BaseException:
        labelling.close()
        raise
    return labelling


def label_status(workspace: Workspace, options: LabelOptions, *, now: datetime | None = None) -> LabelCounts:
    """The draw and the labels so far, from the journal and the store; nothing is written, and a page may be open.

    Raises:
        ConfigError: for options that contradict the draw there is.
        DataError: where no pair can be labelled.
    """
    name = loaded_experiment(workspace, options.experiment)
    state, _ = read_state(labels_folder(workspace.data, name) / JOURNAL_NAME)
    with open_store(workspace.data, name, compared=True) as store:
        wanted = _wanted_draw(workspace, store, options, state, at=now or datetime.now(UTC))
        drawn = wanted or state.draw
        assert drawn is not None
        return _counts(name, drawn, _labelled(store, state), is_stored=wanted is None)


@contextmanager
def view_labels(workspace: Workspace, experiment: str | None = None) -> Iterator[LabelView]:
    """The stored draw with its labels, while a page is open, too; where there is no draw, `open_labelling` makes one."""
    name = loaded_experiment(workspace, experiment)
    state, _ = read_state(labels_folder(workspace.data, name) / JOURNAL_NAME)
    if state.draw is not None:
        yield LabelView(workspace, name, state)
        return
    with open_labelling(workspace, LabelOptions(experiment=experiment)) as labelling:
        yield labelling


def _labelled(store: Store, state: State) -> set[tuple[str, str]]:
    """(person, request) of every label: of the store, which those of files are in, and of the journal, which has the latest."""
    rows = store.connection.execute(
        "SELECT DISTINCT labeler, request_id FROM labels WHERE source = $1 AND preference IS NOT NULL AND labeler IS NOT NULL",
        [SOURCE],
    ).fetchall()
    return set(state.given) | {(labeler, request_id) for labeler, request_id in rows}


def _counts(experiment: str, drawn: Draw, labelled: set[tuple[str, str]], *, is_stored: bool = True) -> LabelCounts:
    requests = {request_id for _, request_id in labelled}
    return LabelCounts(
        experiment=experiment,
        n_pairs=drawn.n_pairs,
        n_drawn=len(drawn.pairs),
        overlap=drawn.overlap,
        seed=drawn.seed,
        judge=drawn.judge,
        strata=dict(Counter(stratum or "all" for _, _, stratum, _ in drawn.pairs)),
        by_labeler=dict(sorted(Counter(labeler for labeler, _ in labelled).items())),
        n_labelled_pairs=len(requests),
        n_labelled_drawn=sum(request_id in requests for request_id, *_ in drawn.pairs),
        is_stored=is_stored,
    )


def store_waiting(workspace: Workspace, experiment: str) -> bool:
    """Put the labels of a run that ended into the store. False where a running page holds them."""
    folder = labels_folder(workspace.data, experiment)
    if not (folder / JOURNAL_NAME).exists():
        return True
    try:
        journal = Journal(folder)
    except WorkspaceBusyError:
        return False
    try:
        waiting = journal.waiting(keep_last=False)
        if waiting:
            pairs = journal.state.pairs
            write_rows(
                workspace.data, experiment, "labels", [as_label(one, pairs.get(one.request_id)) for one in waiting]
            )
            journal.take_out(waiting)
    finally:
        journal.close()
    return True


def _wanted_draw(
    workspace: Workspace, store: Store, options: LabelOptions, state: State, *, at: datetime
) -> Draw | None:
    """The draw to write down; None where the one there is stays."""
    before = state.draw
    judge, mark = stratifying_judge(workspace, store, options.judge)
    candidates = candidates_of(workspace, store, judge, mark)
    if not candidates:
        raise DataError(
            f"{store.experiment}: no pair to label: no request has an answer of both arms whose texts are there"
        )
    found = fingerprint([[one.request_id, one.stratum] for one in candidates], length=32)
    n = options.n_pairs or (len(before.pairs) if before is not None else DEFAULT_PAIRS)
    overlap = options.overlap if options.overlap is not None else before.overlap if before else DEFAULT_OVERLAP
    seed = options.seed if options.seed is not None else before.seed if before else store.experiment or ""
    is_new = options.new_draw
    if before is not None and not is_new:
        if (
            overlap != before.overlap
            or seed != before.seed
            or (options.judge is not None and options.judge != before.judge)
        ):
            raise ConfigError(
                f"{store.experiment}: pairs were drawn with --seed {before.seed!r}, --overlap {before.overlap:g} and "
                f"--judge {before.judge or 'none'}: leave these options out to go on with them, "
                "or start another draw with --new-draw"
            )
        n_drawn = len(before.pairs)
        if n == n_drawn or (n > n_drawn == len(candidates) and found == before.mark):
            return None
        requests = {request_id for _, request_id in _labelled(store, state)}
        is_unused = not any(request_id in requests for request_id, *_ in before.pairs)
        if n < n_drawn and not is_unused:
            raise ConfigError(
                f"{store.experiment}: {n_drawn:,} pairs are drawn and some of them labelled, so --pairs {n} cannot make the draw "
                "smaller: leave --pairs out to go on with it (you may stop at any pair), or start another one with --new-draw"
            )
        if found != before.mark and not is_unused:
            raise ConfigError(
                f"{store.experiment}: {len(before.pairs):,} pairs were drawn of {before.n_pairs:,}; the log or the judge's "
                "verdicts have changed since, so the draw cannot grow: leave --pairs out to go on with it, or start another one "
                "with --new-draw"
            )
        is_new = is_unused  # of a draw that nobody has labelled, no weight needs to be kept
    drawn = draw(
        candidates,
        n=n,
        overlap=overlap,
        seed=seed,
        stratified=before is None or is_new or _has_strata(before),
    )
    scale = {stratum: probability for _, probability, stratum, _ in before.pairs} if before and not is_new else {}
    return Draw(
        at=at,
        seed=seed,
        n_pairs=len(candidates),
        overlap=overlap,
        judge=judge,
        fingerprint=mark,
        # A larger draw keeps the probabilities of the first one: labels of both then weigh alike.
        pairs=[(one.request_id, scale.get(one.stratum, one.probability), one.stratum, one.is_shared) for one in drawn],
        mark=found,
    )


def _has_strata(drawn: Draw) -> bool:
    return any(stratum is not None for _, _, stratum, _ in drawn.pairs)


def stratifying_judge(workspace: Workspace, store: Store, asked: str | None) -> tuple[str | None, str | None]:
    """(the judge whose doubt makes the strata, its fingerprint); None where no pair is judged. Raises ConfigError."""
    found = store.connection.execute(_SQL["judges"], {"final": sorted(FINAL)}).fetchall()
    latest: dict[str, tuple[str, int]] = {}
    for judge, mark, n in found:
        latest.setdefault(judge, (mark, n))
    names = [asked] if asked is not None else list(judge_settings(workspace).name)
    for name in names:
        if name in latest:
            return name, latest[name][0]
    if asked is not None:
        raise ConfigError(
            f"--judge {asked!r} has no verdicts here; judges with some: {', '.join(sorted(latest)) or 'none'}"
        )
    if not latest:
        return None, None
    name = max(latest, key=lambda one: (latest[one][1], one))
    return name, latest[name][0]


def candidates_of(workspace: Workspace, store: Store, judge: str | None, mark: str | None) -> list[Candidate]:
    """Pairs that may be labelled: answered by both arms, counted in the win rate and, where there is a judge, judged."""
    record = None
    if has_record(workspace.data, store.experiment or ""):
        from evalpipe.workspace.record import load_record  # SciPy: a third of a second that a first run need not wait

        record = load_record(workspace.data, store.experiment or "")
    connection = store.connection
    connection.execute(_SQL["answered"], {"answered": sorted(ANSWERED), "unjudgeable": sorted(UNJUDGEABLE)})
    found = connection.execute(
        _SQL["candidates"], {"judge": judge, "fingerprint": mark, "final": sorted(FINAL)}
    ).fetchall()
    later: set[str] = set()
    if only_first_turns(workspace, store, record):
        rows = connection.execute(
            "SELECT request_id FROM label_answered JOIN ev_later ON hash(request_id) = id"
        ).fetchall()
        later = {request_id for (request_id,) in rows}
    periods = [(_microseconds(one.since), _microseconds(one.until)) for one in (record.exclusions if record else [])]
    return [
        Candidate(request_id=request_id, preference=preference, is_identical=is_identical)
        for request_id, preference, is_identical, at_us in found
        if request_id not in later and not any(since <= at_us < until for since, until in periods)
    ]


def _microseconds(text: str) -> float:
    found = datetime.fromisoformat(text)
    return (found.replace(tzinfo=UTC) if found.tzinfo is None else found).timestamp() * 1e6


def export_labels(labelling: LabelView, format_name: Format) -> tuple[str, int, int]:
    """The draw and its labels as another tool's file. (text, pairs, labels)."""
    by_pair: dict[str, list[Given]] = {}
    for one in labelling.given():
        by_pair.setdefault(one.request_id, []).append(one)
    comments = labelling.stored_comments()
    pairs = []
    for pair, shown in labelling.drawn():
        if shown is None:  # its texts were removed since the draw
            continue
        is_first = control_first(labelling.draw.seed, pair.request_id, "")
        labels = [
            FileLabel(
                pair=shown.token,
                labeler=one.labeler,
                first=1 - one.preference if is_first else one.preference,
                comment=one.comment or comments.get((one.request_id, one.labeler)),
                at=one.at.isoformat(timespec="seconds"),
                scores=(one.control_score, one.treatment_score)
                if is_first
                else (one.treatment_score, one.control_score),
            )
            for one in by_pair.get(pair.request_id, [])
        ]
        pairs.append(
            FilePair(
                pair=shown.token,
                prompt=prompt_text(shown.turns),
                answer_1=_written(shown.first),
                answer_2=_written(shown.second),
                probability=pair.probability,
                stratum=pair.stratum,
                labels=labels,
            )
        )
    return write_pairs(pairs, format_name), len(pairs), sum(len(pair.labels) for pair in pairs)


def import_labels(
    labelling: Labelling, text: str, format_name: Format | None, *, labeler: str | None = None
) -> tuple[int, int]:
    """Labels of another tool's file into the store, each (pair, person) once.

    Args:
        labelling: with the draw that the file was made of.
        text: of the file.
        format_name: None: recognised by its content.
        labeler: of labels whose file names nobody.

    Returns:
        Labels in the file, and how many of them are new.

    Raises:
        DataError: for a file that cannot be read, or a label of a pair that is not in this log; then nothing is stored.
        ConfigError: where the file names nobody and neither does `labeler`.
    """
    found = read_labels(text, format_name, labeler=labeler, known=labelling.labelers())
    labels = [labelling.label_of(one) for one in found]
    return len(labels), write_rows(labelling.workspace.data, labelling.experiment, "labels", labels)


def _written(side: ShownSide) -> str:
    return "\n".join(part for part in (side.text, side.tool_calls or "") if part)
