"""Broken lines put aside: `data/rejected/NAME.jsonl` holds each with its file, its line number and the reason."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from evalpipe.files import unlink_synced, write_synced
from evalpipe.store.documents import put_aside_form


class Rejects:
    """The broken lines of one source file. Written once, at the end, over what an earlier load of the file left there:
    loading twice puts nothing aside twice."""

    def __init__(self, data: Path, source: Path) -> None:
        self._source = source
        # Two files of one name in different folders keep apart.
        mark = hashlib.sha256(str(source.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        self.path = data / "rejected" / f"{source.name[:120]}.{mark}.jsonl"
        self._lines: list[bytes] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: int, data: bytes, reason: str) -> None:
        entry = {"file": str(self._source), "line": line, "reason": reason, **put_aside_form(data)}
        self._lines.append(json.dumps(entry).encode() + b"\n")

    def write(self) -> None:
        """Put the lines in place, safe from a power loss; nothing is left behind where there were none."""
        if self._lines:
            write_synced(self.path, b"".join(self._lines))
        elif self.path.exists():
            unlink_synced([self.path])
