"""Logs of other tools → records: one module per family of formats, and the list of importers."""

from __future__ import annotations

from typing import Any

from evalpipe.store.importers import evaluations, gateways, observability, opentelemetry, pairs, provider_files
from evalpipe.store.importers.base import Importer

IMPORTERS: tuple[Importer, ...] = (
    pairs.PAIRS_IMPORTER,
    gateways.LITELLM_IMPORTER,
    observability.LANGFUSE_IMPORTER,
    *observability.TRACKER_IMPORTERS,
    opentelemetry.IMPORTER,
    gateways.TENSORZERO_IMPORTER,
    evaluations.INSPECT_IMPORTER,
    observability.LANGSMITH_IMPORTER,
    evaluations.PROMPTFOO_IMPORTER,
    *gateways.GATEWAY_IMPORTERS,
    provider_files.HTTP_IMPORTER,
    provider_files.ANTHROPIC_IMPORTER,
    *pairs.TWO_ANSWER_IMPORTERS,
    *evaluations.EVALUATION_IMPORTERS,
    *provider_files.OPENAI_IMPORTERS,
)
"""In the order they are tried when no format is named: formats with more keys of their own first."""


def format_names() -> list[str]:
    """Every name `--format` takes for a log, once, in the order of the list."""
    return list(dict.fromkeys(importer.name for importer in IMPORTERS))


def detect(document: Any) -> Importer | None:
    """The importer that recognises this document; None where none does."""
    return next((importer for importer in IMPORTERS if importer.matches(document)), None)
