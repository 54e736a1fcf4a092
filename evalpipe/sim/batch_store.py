"""Where batches live: in memory, and in a folder too where they are to survive a restart."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evalpipe.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class StoredBatch:
    """A batch of either vendor. `items`: (custom_id, request body). `results` is filled when the batch ends: JSONL rows in
    the vendor's shape. Times are seconds since the epoch."""

    id: str
    vendor: str
    endpoint: str
    created_at: float
    items: list[tuple[str, dict[str, Any]]]
    ends_at: float
    ended_at: float | None = None
    cancel_at: float | None = None
    input_file_id: str | None = None
    output_file_id: str | None = None
    metadata: dict[str, Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)


class BatchStore:
    """Batches and uploaded files by id, oldest first. `folder` None: in memory only."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.batches: dict[str, StoredBatch] = {}
        self.files: dict[str, dict[str, Any]] = {}
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.json")):
                self._read(path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"cannot use the state folder {folder}: {error}") from error
        self.batches = dict(sorted(self.batches.items(), key=lambda item: item[1].created_at))

    def new_id(self, prefix: str) -> str:
        """An id no earlier run used."""
        return f"{prefix}_sim_{time.time_ns():x}{len(self.batches) + len(self.files):04x}"

    def save(self, batch: StoredBatch) -> None:
        self.batches[batch.id] = batch
        self._write(batch.id, {"kind": "batch", **asdict(batch)})

    def save_file(self, document: dict[str, Any], content: str) -> None:
        self.files[document["id"]] = {**document, "content": content}
        self._write(document["id"], {"kind": "file", **self.files[document["id"]]})

    def _read(self, path: Path) -> None:
        document = json.loads(path.read_text("utf-8"))
        if document.pop("kind") == "file":
            self.files[document["id"]] = document
        else:
            document["items"] = [(custom_id, body) for custom_id, body in document["items"]]
            self.batches[document["id"]] = StoredBatch(**document)

    def _write(self, name: str, document: dict[str, Any]) -> None:
        if self._folder is None:
            return
        # Whole under its final name or not there at all: the server may be killed at any time.
        partial = self._folder / f".{name}.partial"
        partial.write_text(json.dumps(document), "utf-8")
        partial.replace(self._folder / f"{name}.json")
