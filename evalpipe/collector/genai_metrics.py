"""The same facts under OpenTelemetry's names for generative AI (`[telemetry] names = "otel"`), beside the contract's own.

Names, units, attributes and buckets follow the semantic conventions for generative AI client metrics, dots as underscores
and units as suffixes, as Prometheus spells them. Observed behind the traffic, from the spool.
"""

from __future__ import annotations

from prometheus_client import Histogram

from evalpipe.collector.metrics import shared_registry
from evalpipe.collector.settings import ArmSettings
from evalpipe.core.spool import ResponseRecord
from evalpipe.core.traffic import FAILED
from evalpipe.providers.base import Answer

_ATTRIBUTES = [
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
    "experiment",
    "arm",
    "role",
]
DURATION = Histogram(
    "gen_ai_client_operation_duration_seconds",
    "GenAI operation duration",
    [*_ATTRIBUTES, "error_type"],
    buckets=(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    registry=shared_registry(),
)
TOKENS = Histogram(
    "gen_ai_client_token_usage",
    "Number of input and output tokens used",
    [*_ATTRIBUTES, "gen_ai_token_type"],
    buckets=tuple(4**power for power in range(14)),
    registry=shared_registry(),
)
FIRST_CHUNK = Histogram(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "Time to receive the first chunk of a streamed answer",
    _ATTRIBUTES,
    buckets=(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    registry=shared_registry(),
)


def observe(record: ResponseRecord, answer: Answer, arm: ArmSettings) -> None:
    """One exchange, from its record and what was read in it."""
    labels = (
        "chat",
        record.provider,
        arm.model or "",
        answer.model or "",
        record.experiment,
        record.arm,
        record.role,
    )
    error = (answer.error_type or answer.outcome.value) if answer.outcome in FAILED else ""
    DURATION.labels(*labels, error).observe(record.latency_ms / 1000)
    if record.marks:
        FIRST_CHUNK.labels(*labels).observe(record.marks[0][1] / 1000)
    for kind, n in (("input", answer.usage.input_tokens), ("output", answer.usage.output_tokens)):
        if n is not None:
            TOKENS.labels(*labels, kind).observe(n)
