"""Other people's logs → nouns: one module per family of formats, and the visible list."""

from __future__ import annotations

from typing import Any

from evalpipe.store.importers import (
    anthropic_batches,
    evaluations,
    gateways,
    inspect_log,
    langfuse,
    langsmith,
    litellm,
    openai_logs,
    opentelemetry,
    pairs,
    promptfoo,
    recorded_http,
    tensorzero,
    trackers,
    two_answers,
)
from evalpipe.store.importers.base import Importer

IMPORTERS: tuple[Importer, ...] = (
    pairs.IMPORTER,
    litellm.IMPORTER,
    langfuse.IMPORTER,
    *trackers.IMPORTERS,
    opentelemetry.IMPORTER,
    tensorzero.IMPORTER,
    inspect_log.IMPORTER,
    langsmith.IMPORTER,
    promptfoo.IMPORTER,
    *gateways.IMPORTERS,
    recorded_http.IMPORTER,
    anthropic_batches.IMPORTER,
    *two_answers.IMPORTERS,
    *evaluations.IMPORTERS,
    *openai_logs.IMPORTERS,
)
"""In the order they are tried when no format is named: what is known by more keys of its own first."""


def format_names() -> list[str]:
    """Every name `--format` takes for a log, once, in the order of the list."""
    return list(dict.fromkeys(importer.name for importer in IMPORTERS))


def detect(document: Any) -> Importer | None:
    """The importer whose format this document is in; None where none knows it."""
    return next((importer for importer in IMPORTERS if importer.matches(document)), None)
