"""Roles and margins: the defaults as documented, and what the configuration changes."""

from __future__ import annotations

import pytest

from evalpipe.analysis.decision import Terms, terms_of
from evalpipe.analysis.metrics import metrics
from evalpipe.analysis.settings import MetricRule, Settings

DEFAULTS = {  # metric: (role in shadow, role in a split, scale, margin)
    "win_rate": ("primary", "diagnostic", "absolute", 0.03),
    "cost_per_request_usd": ("benefit", "benefit", "relative", 0.10),
    "error_rate": ("guardrail", "guardrail", "absolute", 0.005),
    "timeout_rate": ("guardrail", "guardrail", "absolute", 0.005),
    "empty_rate": ("guardrail", "guardrail", "absolute", 0.01),
    "p50_latency_ms": ("guardrail", "guardrail", "relative", 0.25),
    "p99_latency_ms": ("diagnostic", "guardrail", "relative", 0.20),
}


def _terms(name: str, settings: Settings, mode: str = "shadow", sources: dict[str, bool] | None = None) -> Terms:
    item = next(one for one in metrics() if one.name == name)
    return terms_of(item, settings, mode=mode, sources=sources or {})


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults(name: str) -> None:
    shadow, split, scale, margin = DEFAULTS[name]
    for mode, role in (("shadow", shadow), ("ab", split), ("canary", split)):
        found = _terms(name, Settings(), mode)
        assert (found.role.value, found.scale, found.margin, found.default_margin) == (role, scale, margin, True)


def test_a_margin_of_the_configuration_replaces_the_default_in_value_and_scale() -> None:
    rules = {
        "error_rate": MetricRule(margin=0.02),
        "win_rate": MetricRule(margin=0.1, margin_relative=True),
        "p50_latency_ms": MetricRule(margin=40.0),
    }
    settings = Settings(metrics=rules)
    expected = {
        "error_rate": ("absolute", 0.02),
        "win_rate": ("relative", 0.1),
        "p50_latency_ms": ("absolute", 40.0),
    }
    for name, (scale, margin) in expected.items():
        found = _terms(name, settings)
        assert (found.scale, found.margin, found.default_margin) == (scale, margin, False)


def test_goals_that_are_named_replace_the_goal_by_default() -> None:
    settings = Settings(primary=("input_tokens",))
    assert _terms("input_tokens", settings).role.value == "primary"
    assert _terms("win_rate", settings).role.value == "diagnostic"
    assert _terms("error_rate", settings).role.value == "guardrail"
    assert _terms("cost_per_request_usd", settings).role.value == "benefit"


def test_what_the_source_cannot_measure_is_a_guardrail_only_where_it_was_asked_for() -> None:
    cannot = {"error_rate": False, "p50_latency_ms": False}
    asked = Settings(metrics={"p50_latency_ms": MetricRule(role="guardrail")})
    assert _terms("p50_latency_ms", Settings(), sources=cannot).role.value == "diagnostic"
    assert (
        _terms("p50_latency_ms", asked, sources=cannot).role.value,
        _terms("p50_latency_ms", asked, sources=cannot).measurable,
    ) == ("guardrail", True)
