"""What a load did, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Tally:
    """Counts of rows, by dataset and fate. `n_waiting`: requests whose records are not all there yet; the next load takes
    them. `n_stopped`: requests or copies whose process died before their answer was recorded."""

    experiments: set[str] = field(default_factory=set)
    n_files: int = 0
    n_exchanges: int = 0
    n_judgments: int = 0
    n_labels: int = 0
    n_feedback: int = 0
    n_known: int = 0
    """what was there already: requests of a spool with all their rows, rows of other files"""
    n_repeated: int = 0
    """rows of a file whose key came before in it"""
    n_rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """why entries were rejected"""
    left_out: Counter[str] = field(default_factory=Counter)
    """what logs hold besides calls of a model, by kind"""
    notes: Counter[str] = field(default_factory=Counter)
    """what the rows lack, by kind"""
    faults: list[str] = field(default_factory=list)
    """files that are cut or damaged, a line each"""
    skipped: list[str] = field(default_factory=list)
    """files of a folder that hold no log"""
    planned: list[str] = field(default_factory=list)
    """what a load would do (`--dry-run`)"""
    arms: list[str] = field(default_factory=list)
    """which value of a log's own column is which arm"""
    rejected: list[str] = field(default_factory=list)
    """files that hold the broken lines"""
    n_waiting: int = 0
    n_stopped: int = 0
    n_segments_deleted: int = 0
    failed: set[str] = field(default_factory=set)
    """experiments that rows of failed requests were loaded into"""
    warnings: list[str] = field(default_factory=list)
    """set-up faults in those experiments, a line each"""

    def add(self, other: Tally) -> None:
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, mine | theirs if isinstance(mine, set) else mine + theirs)

    def as_json(self) -> dict[str, Any]:
        told = {**asdict(self), "experiments": sorted(self.experiments)}
        del told["failed"]
        for name in ("reasons", "left_out", "notes"):
            told[name] = dict(getattr(self, name).most_common())
        return told

    @property
    def is_failure(self) -> bool:
        """Nothing is in the store of what was named, though something was read."""
        n_stored = self.n_exchanges + self.n_judgments + self.n_labels + self.n_feedback + self.n_known
        return not n_stored and not self.n_waiting and bool(self.n_rejected or self.left_out)

    def _skipped(self) -> list[str]:
        if not self.skipped:
            return []
        shown = "; ".join(self.skipped[:3])
        more = f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
        return [f"{len(self.skipped):,} files hold no log that is known and were passed over: {shown}{more}"]

    def lines(self) -> list[str]:
        """The tally as lines for a person."""
        if self.planned:
            return [
                *(f"would load {line}" for line in self.planned),
                *self._skipped(),
                "nothing was stored (--dry-run)",
            ]
        counted = (
            ("exchanges", self.n_exchanges),
            ("judgments", self.n_judgments),
            ("labels", self.n_labels),
            ("ratings", self.n_feedback),
        )
        added = ", ".join(f"{n:,} {name}" for name, n in counted if n) or "nothing new"
        names = ", ".join(sorted(self.experiments))
        lines = [f"loaded {added} into {names}" if names else "loaded nothing new"]
        if self.n_known:
            lines.append(f"{self.n_known:,} requests or rows were there already: they are not added again")
        if self.n_repeated:
            lines.append(f"{self.n_repeated:,} rows came twice in their file: the first one stays")
        if self.arms:
            lines.append(f"arms: {', '.join(dict.fromkeys(self.arms))}")
        if self.left_out:
            lines.append(f"left out: {_counted(self.left_out)}")
        if self.notes:
            lines.append(f"note: {_counted(self.notes)}")
        lines += [*self.faults, *self._skipped()]
        if self.n_stopped:
            lines.append(
                f"{self.n_stopped:,} requests or copies were under way in a process that died: outcome client_closed, "
                "in no metric"
            )
        if self.n_waiting:
            lines.append(f"{self.n_waiting:,} requests are not finished yet: the next load takes them")
        if self.n_rejected:
            lines.append(f"{self.n_rejected:,} broken entries rejected, written to {', '.join(self.rejected)}")
            lines.append(f"reasons: {_counted(self.reasons)}")
        return [*lines, *(f"warning: {line}" for line in self.warnings)]


def _counted(counts: Counter[str], most: int = 5) -> str:
    shown = [f"{what} {n:,}" for what, n in counts.most_common(most)]
    left = len(counts) - most
    return "; ".join([*shown, f"{left} more kinds"] if left > 0 else shown)
