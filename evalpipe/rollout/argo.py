"""Argo Rollouts: an AnalysisTemplate that asks evalpipe's gate and Prometheus between two steps of a rollout."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.rollout.istio import Manifest


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
