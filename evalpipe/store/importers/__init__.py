"""Other people's logs → nouns: one module per format, and the visible list."""

from __future__ import annotations

from typing import Any

from evalpipe.store.importers import inspect_log, langfuse, litellm, opentelemetry, pairs, recorded_http, tensorzero
from evalpipe.store.importers.base import Importer

IMPORTERS: tuple[Importer, ...] = (
    pairs.IMPORTER,
    litellm.IMPORTER,
    langfuse.IMPORTER,
    opentelemetry.IMPORTER,
    tensorzero.IMPORTER,
    inspect_log.IMPORTER,
    recorded_http.IMPORTER,
)
"""In the order they are tried when the format is not told."""


def detect(document: Any) -> Importer | None:
    """The importer whose format this document is in; None where none knows it."""
    return next((importer for importer in IMPORTERS if importer.matches(document)), None)
