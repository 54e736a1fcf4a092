"""Which lease the files of a data folder belong to on a shared store: one kind of work may change each of them."""

from __future__ import annotations

import re

_RULES = tuple(
    (re.compile(pattern), lease)
    for pattern, lease in (
        (
            r"(?:damaged/)?(exchanges|feedback|judgments|labels|replays)/(?:.*/)?(?:[^/]+\.parquet|_manifest\.json)",
            r"write/\1",
        ),
        (r"judgments/experiment=([^/]+)/(?:journal-[^/]+\.jsonl|(?:batches|settled)/.*)", r"judgments/\1"),
        (r"replays/experiment=([^/]+)/(?:journal-[^/]+\.jsonl|batches/.*)", r"replays/\1"),
        (r"experiments/\.?([^/]+)\.(?:json|copy|recorded)", r"record/\1"),
        (r"(?:loads|rejected)/.*|experiments/(?:[^/]+\.unit-key|[^/]+\.removals\.jsonl|\.[^/]+\.control-from)", "load"),
        (r"exchanges/[^/]+/\.unit-key", "load"),
    )
)
_KEPT = re.compile(
    r".*/journal-[^/]+\.jsonl|rejected/.*|experiments/(?:[^/]+\.unit-key|\.[^/]+\.control-from)|exchanges/[^/]+/\.unit-key"
)
_IN_THE_MAKING = re.compile(r"(?:^|/)\.[^/]*\.(?:tmp|part)$")


def lease_of(path: str) -> str | None:
    """The lease under which a file of the data folder is changed.

    Args:
        path: below the data folder, with "/".

    Returns:
        Its name; None for what is this machine's own: the collector's log and state, locks, files in the making.

    Examples:
        >>> lease_of("exchanges/experiment=a/date=2026-01-01/x.parquet")
        'write/exchanges'
        >>> lease_of("judgments/experiment=a/journal-1.jsonl")
        'judgments/a'
        >>> lease_of("spool/1.000001.jsonl") is None
        True
    """
    if _IN_THE_MAKING.search(path):
        return None
    for pattern, lease in _RULES:
        found = pattern.fullmatch(path)
        if found is not None:
            return found.expand(lease)
    return None


def is_kept(path: str) -> bool:
    """Whether a file holds what nothing else does, also where the process that wrote it has ended: journals of calls that were
    paid for, rejected lines, notes that no lock is held for.

    Examples:
        >>> is_kept("judgments/experiment=a/journal-1.jsonl"), is_kept("exchanges/experiment=a/date=2026-01-01/x.parquet")
        (True, False)
    """
    return _KEPT.fullmatch(path) is not None
