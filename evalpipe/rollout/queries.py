"""What the dashboard shows and the rules watch, in PromQL over the collector's metrics.

`experiment` is a label value or Grafana's variable. Where nothing ever happened (no timeout, no shed) the answer is 0 for
every arm that had traffic, not an empty panel.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Every panel, in the order of the page: the arms side by side, then what became of copies, then the rollout."""
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
