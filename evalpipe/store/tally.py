"""What a load did, in numbers."""

from __future__ import annotations

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
    n_rejected: int = 0
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
        return told

    def lines(self) -> list[str]:
        """The tally as lines for a person."""
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
        if self.n_stopped:
            lines.append(
                f"{self.n_stopped:,} requests or copies were under way in a process that died: outcome client_closed, "
                "in no metric"
            )
        if self.n_waiting:
            lines.append(f"{self.n_waiting:,} requests are not finished yet: the next load takes them")
        if self.n_rejected:
            lines.append(f"{self.n_rejected:,} broken lines put aside in {', '.join(self.rejected)}")
        return [*lines, *(f"warning: {line}" for line in self.warnings)]
