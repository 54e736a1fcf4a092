"""Manifests for a share of treatment: Istio, Argo Rollouts, Flagger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from evalpipe.errors import ConfigError

ISTIO_API_VERSION = "networking.istio.io/v1"
FORCE_HEADER = "x-evalpipe-arm"
Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshSettings:
    """`host`: the name clients call; `service`: the collectors' Kubernetes service; `port`: its port.

    Pods of the service carry the label evalpipe.io/arm: control or treatment (the subsets).
    """

    name: str
    host: str
    service: str = "evalpipe"
    namespace: str | None = None
    port: int = 8400
    gateways: tuple[str, ...] = ()


def weights(percentage: float) -> tuple[int, int]:
    """(control, treatment), adding up to 100. Raises ConfigError for a share that Istio's integer weights cannot express."""
    if not 0 <= percentage <= 100:
        raise ConfigError(f"a percentage lies between 0 and 100, got {percentage:g}")
    if percentage != int(percentage):
        raise ConfigError(
            f"Istio weights are whole percents: {percentage:g} cannot be split in the mesh (use --split evalpipe)"
        )
    return 100 - int(percentage), int(percentage)


def render_mesh_split(
    settings: MeshSettings, percentage: float, *, match_header: tuple[str, str] | None = None
) -> list[Manifest]:
    """The mesh splits: a VirtualService whose first rules serve a forced arm, then the weights; and the two subsets.

    Weights draw every request anew: a user may see both arms. Where users must stick, let evalpipe split.

    Args:
        percentage: the treatment's weight.
        match_header: (name, value) of a header; requests with it go to the treatment before any weight is looked at.
    """
    control, treatment = weights(percentage)
    forced = [
        {
            "name": f"forced-{arm}",
            "match": [{"headers": {FORCE_HEADER: {"exact": arm}}}],
            "route": [_destination(settings, arm, 100)],
        }
        for arm in ("treatment", "control")
    ]
    if match_header is not None:
        name, value = match_header
        forced.append(
            {
                "name": "matched",
                "match": [{"headers": {name: {"exact": value}}}],
                "route": [_destination(settings, "treatment", 100)],
            }
        )
    split = {
        "name": "split",
        "route": [_destination(settings, "control", control), _destination(settings, "treatment", treatment)],
    }
    return [_virtual_service(settings, [*forced, split]), _destination_rule(settings, subsets=True)]


def render_evalpipe_split(settings: MeshSettings) -> list[Manifest]:
    """evalpipe splits: everything goes to the collectors, which keep every unit in its arm."""
    route = {
        "name": "collect",
        "route": [{"destination": {"host": settings.service, "port": {"number": settings.port}}, "weight": 100}],
    }
    return [_virtual_service(settings, [route]), _destination_rule(settings, subsets=False)]


def render_yaml(manifests: list[Manifest], *, comment: str = "") -> str:
    """A stream of YAML documents, kubectl's food. Strings are quoted where YAML would take them for something else."""
    text = yaml.safe_dump_all(manifests, sort_keys=False, explicit_start=True, allow_unicode=True, width=110)
    return "".join(f"# {line}\n" for line in comment.splitlines()) + text


def _destination(settings: MeshSettings, arm: str, weight: int) -> Manifest:
    destination = {"host": settings.service, "subset": arm, "port": {"number": settings.port}}
    return {"destination": destination, "weight": weight}


def _virtual_service(settings: MeshSettings, routes: list[Manifest]) -> Manifest:
    for route in routes:
        # Answers stream for minutes, and a retried completion is paid twice: neither timeout nor retry in the mesh.
        route["timeout"] = "0s"
        route["retries"] = {"attempts": 0}
    spec: Manifest = {"hosts": [settings.host], "http": routes}
    if settings.gateways:
        spec["gateways"] = list(settings.gateways)
    return {
        "apiVersion": ISTIO_API_VERSION,
        "kind": "VirtualService",
        "metadata": _metadata(settings),
        "spec": spec,
    }


def _destination_rule(settings: MeshSettings, *, subsets: bool) -> Manifest:
    spec: Manifest = {
        "host": settings.service,
        "trafficPolicy": {"loadBalancer": {"simple": "LEAST_REQUEST"}},
    }
    if subsets:
        spec["subsets"] = [{"name": arm, "labels": {"evalpipe.io/arm": arm}} for arm in ("control", "treatment")]
    return {
        "apiVersion": ISTIO_API_VERSION,
        "kind": "DestinationRule",
        "metadata": _metadata(settings),
        "spec": spec,
    }


def _metadata(settings: MeshSettings) -> Manifest:
    metadata: Manifest = {"name": settings.name, "labels": {"app.kubernetes.io/managed-by": "evalpipe"}}
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    return metadata


# Argo Rollouts: an AnalysisTemplate that asks evalpipe's gate and Prometheus between two steps of a rollout.


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalysisSettings:
    """`collector` and `prometheus`: base URLs inside the cluster. `secret`: the Secret that holds the collector's token."""

    name: str
    experiment: str
    collector: str = "http://evalpipe:8400"
    prometheus: str = "http://prometheus:9090"
    secret: str = "evalpipe"
    namespace: str | None = None
    interval: str = "1m"
    error_rate: float = 0.02
    p99_latency_s: float = 5.0


def error_rate_query(experiment: str, arm: str, window: str) -> str:
    """The share of failed answers of an arm, as Prometheus sees it."""
    selector = f'experiment="{experiment}",arm="{arm}",role="served"'
    failed = f'evalpipe_requests_total{{{selector},outcome=~"http_error|timeout|unreadable"}}'
    counted = f'evalpipe_requests_total{{{selector},outcome!~"client_closed|shed"}}'
    return f"sum(rate({failed}[{window}])) / sum(rate({counted}[{window}]))"


def latency_query(experiment: str, arm: str, window: str, quantile: float) -> str:
    selector = f'experiment="{experiment}",arm="{arm}",role="served"'
    rates = f"rate(evalpipe_request_duration_seconds_bucket{{{selector}}}[{window}])"
    return f"histogram_quantile({quantile:g}, sum by (le) ({rates}))"


def render_analysis_template(settings: AnalysisSettings) -> Manifest:
    """A decision to promote passes, one to roll back fails, anything else is inconclusive: Argo then waits for a person, as
    evalpipe would. A set-up fault of control alone is no reason to roll back: that would send everybody to it."""
    metadata: Manifest = {"name": settings.name, "labels": {"app.kubernetes.io/managed-by": "evalpipe"}}
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    prometheus = {"address": settings.prometheus}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AnalysisTemplate",
        "metadata": metadata,
        "spec": {
            "args": [{"name": "token", "valueFrom": {"secretKeyRef": {"name": settings.secret, "key": "token"}}}],
            "metrics": [
                {
                    "name": "evalpipe-gate",
                    "interval": settings.interval,
                    "successCondition": 'result == "promote"',
                    "failureCondition": 'result == "roll_back"',
                    "failureLimit": 0,
                    "provider": {
                        "web": {
                            "url": f"{settings.collector}/_evalpipe/gate",
                            "headers": [{"key": "x-evalpipe-token", "value": "{{args.token}}"}],
                            "jsonPath": "{$.rollout}",
                            "timeoutSeconds": 10,
                        }
                    },
                },
                {
                    "name": "guardrails",
                    "interval": settings.interval,
                    "successCondition": "len(result) == 0 || result[0] == 0",
                    "failureLimit": 0,
                    "provider": {
                        "prometheus": {
                            **prometheus,
                            "query": f'max(evalpipe_guardrail_breached{{experiment="{settings.experiment}"}})',
                        }
                    },
                },
                _threshold(
                    settings,
                    "error-rate",
                    error_rate_query(settings.experiment, "treatment", "5m"),
                    settings.error_rate,
                ),
                _threshold(
                    settings,
                    "p99-latency",
                    latency_query(settings.experiment, "treatment", "5m", 0.99),
                    settings.p99_latency_s,
                ),
            ],
        },
    }


def _threshold(settings: AnalysisSettings, name: str, query: str, limit: float) -> Manifest:
    # No traffic gives an empty result (or NaN): neither pass nor fail.
    known = "len(result) > 0 && !isNaN(result[0])"
    return {
        "name": name,
        "interval": settings.interval,
        "successCondition": f"{known} && result[0] <= {limit:g}",
        "failureCondition": f"{known} && result[0] > {limit:g}",
        "failureLimit": 2,
        "provider": {"prometheus": {"address": settings.prometheus, "query": query}},
    }


# Flagger: a Canary that asks evalpipe's gate before it promotes, and a MetricTemplate of its guardrails.


FLAGGER_API_VERSION = "flagger.app/v1beta1"


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
        "apiVersion": FLAGGER_API_VERSION,
        "kind": "Canary",
        "metadata": _flagger_metadata(settings, settings.name),
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
        "apiVersion": FLAGGER_API_VERSION,
        "kind": "MetricTemplate",
        "metadata": _flagger_metadata(settings, name),
        "spec": {"provider": {"type": "prometheus", "address": settings.prometheus}, "query": query},
    }


def _metric(template: Manifest, allowed: Manifest) -> Manifest:
    name = template["metadata"]["name"]
    return {"name": name, "templateRef": {"name": name}, "thresholdRange": allowed, "interval": "1m"}


def _flagger_metadata(settings: FlaggerSettings, name: str) -> Manifest:
    metadata: Manifest = {"name": name, "labels": {"app.kubernetes.io/managed-by": "evalpipe"}}
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    return metadata
