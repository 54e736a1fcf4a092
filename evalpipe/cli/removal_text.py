"""What `prune` and `forget` did, as lines."""

from __future__ import annotations

from collections.abc import Iterator

from evalpipe.pipeline.retention import Removal

_COUNTED = {
    "exchanges": "answer",
    "judgments": "judgment",
    "feedback": "comment",
    "labels": "label",
    "rejected": "rejected line",
    "reports": "report page",
}


def lines(removal: Removal) -> Iterator[str]:
    """The counts in one line, then what is left, and why."""
    counts = [f"{n:,} {word}{'s' * (n != 1)}" for name, word in _COUNTED.items() if (n := getattr(removal, name))]
    done = "would take" if removal.dry_run else "took"
    whose = f" before {removal.before}" if removal.before else ""
    if counts:
        yield f"{removal.experiment}: {done} the texts out of {', '.join(counts)}{whose}"
    else:
        hint = "" if removal.before else "; is it the plain id, as the app sends it?"
        yield f"{removal.experiment}: nothing to remove{whose}{hint}"
    yield from (f"  {note}" for note in removal.notes)
