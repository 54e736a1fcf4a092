"""Flagger: a Canary that asks evalpipe's gate before it promotes, and a MetricTemplate of its guardrails."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.rollout.argo import error_rate_query
from evalpipe.rollout.istio import Manifest

API_VERSION = "flagger.app/v1beta1"


@dataclass(frozen=True, kw_only=True, slots=True)
class FlaggerSettings:
    """`target`: the Deployment that is rolled out. `collector`: its base URL. `stages`: weights in percent. `interval`: time
    between two checks."""

    name: str
    experiment: str
    target: str
    collector: str = "http://evalpipe:8400"
    prometheus: str = "http://prometheus:9090"
    namespace: str | None = None
    port: int = 8400
    stages: tuple[int, ...] = (1, 5, 10, 25, 50)
    interval: str = "1m"
    error_rate: float = 0.02


def render_canary(settings: FlaggerSettings) -> list[Manifest]:
    """The Canary and its two MetricTemplates. Flagger's own thresholds count failed checks; evalpipe's evidence decides."""
    breached = _template(
        settings,
        "evalpipe-guardrails",
        f'max(evalpipe_guardrail_breached{{experiment="{settings.experiment}"}}) or vector(0)',
    )
    errors = _template(
        settings, "evalpipe-error-rate", error_rate_query(settings.experiment, "treatment", "{{ interval }}")
    )
    canary: Manifest = {
        "apiVersion": API_VERSION,
        "kind": "Canary",
        "metadata": _metadata(settings, settings.name),
        "spec": {
            "provider": "istio",
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": settings.target},
            "service": {"port": settings.port, "timeout": "0s"},
            "analysis": {
                "interval": settings.interval,
                "threshold": 1,
                "stepWeights": list(settings.stages),
                "metrics": [
                    _metric(breached, {"max": 0}),
                    _metric(errors, {"max": settings.error_rate}),
                ],
                "webhooks": [
                    {
                        "name": "evalpipe-gate",
                        "type": "confirm-promotion",
                        "url": f"{settings.collector}/_evalpipe/gate",
                        "timeout": "10s",
                    },
                ],
            },
        },
    }
    return [canary, breached, errors]


def _template(settings: FlaggerSettings, name: str, query: str) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": "MetricTemplate",
        "metadata": _metadata(settings, name),
        "spec": {"provider": {"type": "prometheus", "address": settings.prometheus}, "query": query},
    }


def _metric(template: Manifest, allowed: Manifest) -> Manifest:
    name = template["metadata"]["name"]
    return {"name": name, "templateRef": {"name": name}, "thresholdRange": allowed, "interval": "1m"}


def _metadata(settings: FlaggerSettings, name: str) -> Manifest:
    metadata: Manifest = {"name": name, "labels": {"app.kubernetes.io/managed-by": "evalpipe"}}
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    return metadata
