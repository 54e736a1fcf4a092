"""The Grafana dashboard and its provisioning files, Prometheus' scrape and alert rules: rendered, not written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

ROWS = {"Requests": "The arms side by side", "Copies shed": "Copies (shadow mode)", "Share of treatment": "Rollout"}
_HEIGHT = 8
_WIDE = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitoringSettings:
    """`targets`: host:port of the collectors; `prometheus`: where Grafana finds Prometheus. Limits are the guardrails'."""

    experiment: str
    targets: tuple[str, ...] = ("127.0.0.1:8400",)
    prometheus: str = "http://127.0.0.1:9090"
    token_file: str | None = None
    error_rate: float = 0.02
    p99_latency_s: float = 5.0


def render_files(settings: MonitoringSettings) -> Mapping[str, str]:
    """File name → text: what `evalpipe grafana` writes."""
    return {
        "dashboards/evalpipe.json": json.dumps(render_dashboard(settings), indent=2) + "\n",
        "provisioning/dashboards/evalpipe.yaml": _yaml(_dashboard_provider()),
        "provisioning/datasources/evalpipe.yaml": _yaml(_datasource(settings)),
        "prometheus.yml": _yaml(_prometheus(settings)),
        "evalpipe.rules.yml": _yaml(render_rules(settings)),
    }


def render_dashboard(settings: MonitoringSettings) -> dict[str, Any]:
    """Grafana's dashboard model (schema 39). `experiment` is a variable filled from Prometheus."""
    shown: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(panels(), start=1):
        if panel.title in ROWS:
            y += _HEIGHT if x else 0
            x = 0
            shown.append(_row(100 + number, ROWS[panel.title], y))
            y += 1
        if x + panel.width > _WIDE:
            x, y = 0, y + _HEIGHT
        shown.append(_panel(number, panel, x, y))
        x += panel.width
    return {
        "uid": "evalpipe",
        "title": "evalpipe: two arms",
        "tags": ["evalpipe", "llm"],
        "schemaVersion": 39,
        "timezone": "browser",
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_datasource_variable(), _experiment_variable(settings)]},
        "annotations": {"list": []},
        "panels": shown,
    }


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    overrides = [
        {"matcher": {"id": "byRegexp", "options": f"^{arm}.*"}, "properties": [{"id": "color", "value": _fixed(color)}]}
        for arm, color in (("control", "blue"), ("treatment", "orange"))
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": overrides},
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}}
        if panel.kind == "timeseries"
        else {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background"},
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "expr": query,
                "legendFormat": legend,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
            }
            for i, (legend, query) in enumerate(panel.queries)
        ],
    }


def _fixed(color: str) -> dict[str, str]:
    return {"mode": "fixed", "fixedColor": color}


def _row(number: int, title: str, y: int) -> dict[str, Any]:
    return {"id": number, "type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": _WIDE, "h": 1}, "panels": []}


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus", "hide": 0}


def _experiment_variable(settings: MonitoringSettings) -> dict[str, Any]:
    return {
        "name": "experiment",
        "type": "query",
        "label": "Experiment",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": "label_values(evalpipe_requests_total, experiment)", "refId": "experiment"},
        "current": {"text": settings.experiment, "value": settings.experiment},
        "refresh": 2,
        "sort": 1,
    }


def _dashboard_provider() -> dict[str, Any]:
    folder = "/var/lib/grafana/dashboards/evalpipe"
    provider = {"name": "evalpipe", "type": "file", "updateIntervalSeconds": 30, "options": {"path": folder}}
    return {"apiVersion": 1, "providers": [provider]}


def _datasource(settings: MonitoringSettings) -> dict[str, Any]:
    source = {
        "name": "Prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": settings.prometheus,
        "isDefault": True,
    }
    return {"apiVersion": 1, "datasources": [source]}


def _prometheus(settings: MonitoringSettings) -> dict[str, Any]:
    job: dict[str, Any] = {
        "job_name": "evalpipe",
        "metrics_path": "/_evalpipe/metrics",
        "static_configs": [{"targets": list(settings.targets)}],
    }
    if settings.token_file is not None:
        job["authorization"] = {"type": "Bearer", "credentials_file": settings.token_file}
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["evalpipe.rules.yml"],
        "scrape_configs": [job],
    }


def render_rules(settings: MonitoringSettings) -> dict[str, Any]:
    """Alerts: what the controller found, and the same limits as Prometheus measures them, for a canary without a controller."""
    e = settings.experiment
    served = '{arm="treatment",role="served"}'

    def alert(name: str, expr: str, wait: str, severity: str, summary: str) -> dict[str, Any]:
        return {
            "alert": name,
            "expr": expr,
            "for": wait,
            "labels": {"severity": severity, "experiment": e},
            "annotations": {"summary": summary},
        }

    errors = f"evalpipe:error_rate:5m{served}"
    slow = f"evalpipe:p99_latency_seconds:5m{served}"
    return {
        "groups": [
            {
                "name": "evalpipe",
                "rules": [
                    {"record": "evalpipe:error_rate:5m", "expr": share(e, "5m", FAILED)},
                    {"record": "evalpipe:p99_latency_seconds:5m", "expr": quantile(e, "5m", 0.99, DURATION)},
                    alert(
                        "EvalpipeGuardrailBreached",
                        f'max by (guardrail) (evalpipe_guardrail_breached{{experiment="{e}"}}) > 0',
                        "0m",
                        "critical",
                        "guardrail {{ $labels.guardrail }} was breached: the canary went back to 0 %",
                    ),
                    alert(
                        "EvalpipeTreatmentErrors",
                        f"{errors} > {settings.error_rate:g}",
                        "5m",
                        "critical",
                        "treatment fails {{ $value | humanizePercentage }} of its requests",
                    ),
                    alert(
                        "EvalpipeTreatmentSlow",
                        f"{slow} > {settings.p99_latency_s:g}",
                        "5m",
                        "warning",
                        "treatment's p99 latency is {{ $value | humanizeDuration }}",
                    ),
                    alert(
                        "EvalpipeRecordsLost",
                        "sum(increase(evalpipe_records_lost_total[10m])) > 0",
                        "0m",
                        "critical",
                        "the collector could not write {{ $value }} records: check its disk",
                    ),
                    alert(
                        "EvalpipeCopiesShed",
                        f'sum(rate(evalpipe_shadow_shed_total{{experiment="{e}"}}[10m])) '
                        f'/ sum(rate(evalpipe_shadow_decisions_total{{experiment="{e}"}}[10m])) > 0.05',
                        "10m",
                        "warning",
                        "{{ $value | humanizePercentage }} of the copies are shed: the comparison may become invalid",
                    ),
                    alert(
                        "EvalpipeDown",
                        'up{job="evalpipe"} == 0',
                        "1m",
                        "critical",
                        "the collector {{ $labels.instance }} is down",
                    ),
                ],
            }
        ]
    }


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)


# What the dashboard shows and the rules watch, in PromQL over the collector's metrics.
#
# `experiment` is a label value or Grafana's variable. Where nothing ever happened (no timeout, no shed) the answer is 0
# for every arm that had traffic, not an empty panel.


VARIABLE = "$experiment"
FAILED = "http_error|timeout|unreadable"
COUNTED = "ok|refused|truncated|http_error|timeout|unreadable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One panel: `queries` are (legend, PromQL) pairs; `unit` in Grafana's names."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    description: str = ""
    kind: str = "timeseries"
    width: int = 8


def _requests(experiment: str, more: str = "") -> str:
    return f'evalpipe_requests_total{{experiment="{experiment}"{more}}}'


def rate(experiment: str, window: str, more: str = "") -> str:
    return f"sum by (arm, role) (rate({_requests(experiment, more)}[{window}]))"


def share(experiment: str, window: str, outcomes: str) -> str:
    """The share of requests that ended so, by arm and role; 0 where none did."""
    counted = rate(experiment, window, f',outcome=~"{COUNTED}"')
    hits = rate(experiment, window, f',outcome=~"{outcomes}"')
    return f"({hits} or {counted} * 0) / {counted}"


def quantile(experiment: str, window: str, level: float, metric: str) -> str:
    buckets = f'{metric}_bucket{{experiment="{experiment}"}}'
    return f"histogram_quantile({level:g}, sum by (arm, role, le) (rate({buckets}[{window}])))"


def total(experiment: str, window: str, metric: str, more: str = "") -> str:
    return f'sum by (arm, role) (rate({metric}{{experiment="{experiment}"{more}}}[{window}]))'


DURATION = "evalpipe_request_duration_seconds"
FIRST_TOKEN = "evalpipe_time_to_first_token_seconds"


def panels(experiment: str = VARIABLE, window: str = "$__rate_interval") -> list[Panel]:
    """Every panel, in the order of the page: the arms side by side, then the funnel of shadow requests, then the rollout."""
    arm = "{{arm}} {{role}}"
    e, w = experiment, window
    busy = total(e, w, f"{DURATION}_sum")
    counted = rate(e, w, f',outcome=~"{COUNTED}"')
    return [
        Panel(title="Requests", unit="reqps", queries=((arm, rate(e, w)),)),
        Panel(
            title="Errors",
            unit="percentunit",
            queries=((arm, share(e, w, FAILED)),),
            description="http_error, timeout, unreadable",
        ),
        Panel(title="Timeouts", unit="percentunit", queries=((arm, share(e, w, "timeout")),)),
        *(
            Panel(title=f"Latency p{level * 100:g}", unit="s", queries=((arm, quantile(e, w, level, DURATION)),))
            for level in (0.5, 0.95, 0.99)
        ),
        *(
            Panel(
                title=f"Time to first token p{level * 100:g}",
                unit="s",
                queries=((arm, quantile(e, w, level, FIRST_TOKEN)),),
            )
            for level in (0.5, 0.95, 0.99)
        ),
        Panel(
            title="Output tokens per second of answering",
            unit="none",
            queries=((arm, f"{total(e, w, 'evalpipe_tokens_total', _kind('output'))} / {busy}"),),
        ),
        Panel(
            title="Cost per hour",
            unit="currencyUSD",
            queries=((arm, f"3600 * {total(e, w, 'evalpipe_cost_usd_total')}"),),
        ),
        Panel(
            title="Cost per request",
            unit="currencyUSD",
            queries=((arm, f"{total(e, w, 'evalpipe_cost_usd_total')} / {counted}"),),
        ),
        Panel(
            title="User rating",
            unit="percentunit",
            description="Mean of the ratings sent to /_evalpipe/feedback",
            queries=(
                (
                    "{{arm}}",
                    f'sum by (arm) (increase(evalpipe_user_rating_sum{{experiment="{e}"}}[1h])) / '
                    f'sum by (arm) (increase(evalpipe_user_rating_count{{experiment="{e}"}}[1h]))',
                ),
            ),
        ),
        Panel(
            title="Copies shed",
            unit="cps",
            queries=(
                (
                    "{{reason}}",
                    f'sum by (reason) (rate(evalpipe_shadow_shed_total{{experiment="{e}"}}[{w}])) or vector(0)',
                ),
            ),
        ),
        Panel(
            title="Funnel of copies",
            unit="cps",
            description="sampled, not_sampled, not_shadowable and shed add up to every eligible request",
            queries=(
                (
                    "{{status}}",
                    f'sum by (status) (rate(evalpipe_shadow_decisions_total{{experiment="{e}"}}[{w}])) or vector(0)',
                ),
            ),
        ),
        Panel(
            title="Share of treatment",
            unit="percent",
            queries=(
                (
                    "{{experiment}}",
                    f'max by (experiment) (evalpipe_canary_percentage{{experiment="{e}"}}) or vector(0)',
                ),
            ),
        ),
        Panel(
            title="Guardrails breached",
            unit="bool_yes_no",
            kind="stat",
            queries=(
                ("{{guardrail}}", f'max by (guardrail) (evalpipe_guardrail_breached{{experiment="{e}"}}) or vector(0)'),
            ),
        ),
        Panel(
            title="The collector's own time p99",
            unit="s",
            queries=(
                ("p99", f"histogram_quantile(0.99, sum by (le) (rate(evalpipe_proxy_overhead_seconds_bucket[{w}])))"),
            ),
        ),
    ]


def _kind(kind: str) -> str:
    return f',kind="{kind}"'
