"""The manifest of a partition: which merged files count, and which files they took the place of.

`_manifest.json` lies beside the Parquet files of its partition and is replaced whole, in one rename (on an object store: one
conditional put). Data files are never changed and have unique names, so that this swap is the only moment at which anything
changes for a reader. A partition without a manifest is one in which nothing was merged.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

import msgspec

from evalpipe.errors import DataError
from evalpipe.files import write_synced

NAME = "_manifest.json"
"""other tools that read a folder of Parquet files pass over names with an underscore"""
VERSION = 1
MERGED = "-merged"
"""The end of the stem of a file that holds the rows of several others: it counts only where the manifest lists it."""


class Merge(msgspec.Struct, frozen=True):
    """One merge: the files it read, the file it wrote (stems, without generation), and when it took effect."""

    at: datetime
    into: str
    files: tuple[str, ...]


class Manifest(msgspec.Struct, frozen=True):
    """`merged`: stem → rows, of every merged file that took effect. `replaced`: merges whose files are still there.

    `number` rises with each change.
    """

    number: int = 0
    merged: dict[str, int] = {}
    replaced: tuple[Merge, ...] = ()

    def replaced_stems(self) -> set[str]:
        """The stems of files whose rows a merged file holds."""
        return {stem for merge in self.replaced for stem in merge.files}

    def counts(self, stem: str, replaced: Collection[str]) -> bool:
        """Whether a file is to be read. `replaced`: as `replaced_stems` gives them."""
        return stem not in replaced and (not stem.endswith(MERGED) or stem in self.merged)

    def with_merge(self, merge: Merge, n_rows: int) -> Manifest:
        """The manifest in which a merge has taken effect."""
        return Manifest(self.number + 1, {**self.merged, merge.into: n_rows}, (*self.replaced, merge))

    def undone(self, merge: Merge) -> Manifest:
        """The manifest in which a merge has not taken effect: the files it read count again."""
        merged = {stem: n for stem, n in self.merged.items() if stem != merge.into}
        return Manifest(self.number + 1, merged, tuple(one for one in self.replaced if one != merge))

    def mended(self, present: Collection[str], whole: Collection[str]) -> Manifest:
        """Without the merges whose file is damaged or gone, where all files that they replaced are there: these count again.

        Args:
            present: the stems of the files that are there.
            whole: those of them that are not damaged.
        """
        found = self
        for merge in reversed(self.replaced):
            is_merged_again = merge.into in found.replaced_stems()
            if not is_merged_again and merge.into not in whole and all(stem in present for stem in merge.files):
                found = found.undone(merge)
        return found

    def removed(self, merge: Merge) -> Manifest:
        """The manifest after the files that a merge replaced were deleted."""
        merged = {stem: n for stem, n in self.merged.items() if stem not in merge.files}
        return Manifest(self.number + 1, merged, tuple(one for one in self.replaced if one != merge))


class _Envelope(msgspec.Struct):
    version: int
    crc32: str
    manifest: msgspec.Raw


def read_bytes(folder: Path) -> bytes | None:
    """The manifest's file as it is; None where there is none. Raises OSError."""
    try:
        return (folder / NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def decode(data: bytes, folder: Path) -> Manifest | None:
    """The manifest; None where it is damaged.

    Raises:
        DataError: where a newer version wrote it.
    """
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        if envelope.version > VERSION:
            raise DataError(
                f"{folder / NAME} has version {envelope.version}, this evalpipe reads version {VERSION}: use a newer one"
            )
        if f"{zlib.crc32(bytes(envelope.manifest)):08x}" != envelope.crc32:
            return None
        return msgspec.json.decode(envelope.manifest, type=Manifest)
    except msgspec.DecodeError:
        return None


def write(folder: Path, manifest: Manifest) -> None:
    """Swap the manifest in one step; it survives a power loss. The caller holds the dataset's write lock. Raises OSError."""
    inner = msgspec.json.encode(manifest)
    envelope = _Envelope(VERSION, f"{zlib.crc32(inner):08x}", msgspec.Raw(inner))
    write_synced(folder / NAME, msgspec.json.encode(envelope))
