"""Other people's logs → nouns: one module per format, and the visible list."""

from __future__ import annotations

from typing import Any

from evalpipe.store.importers import pairs
from evalpipe.store.importers.base import Importer

IMPORTERS: tuple[Importer, ...] = (pairs.IMPORTER,)
"""In the order they are tried when the format is not told."""


def detect(document: Any) -> Importer | None:
    """The importer whose format this document is in; None where none knows it."""
    return next((importer for importer in IMPORTERS if importer.matches(document)), None)
