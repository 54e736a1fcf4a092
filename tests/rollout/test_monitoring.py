"""The dashboard and the rules: complete, valid for promtool, and over metrics the collector really has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from evalpipe.errors import ConfigError
from evalpipe.rollout.grafana import panels
from evalpipe.workspace.manifests import write_monitoring
from evalpipe.workspace.paths import open_workspace

CONFIG = '[experiment]\nname = "x.y"\n[canary]\nguardrails = { error_rate = 0.03, p99_latency_ms = 8000 }\n'


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "evalpipe.toml").write_text(CONFIG)
    write_monitoring(open_workspace(root=tmp_path), tmp_path / "m", targets=("a:1", "b:2"), token_file="token")
    return tmp_path / "m"


def test_the_dashboard_shows_what_was_promised(written: Path) -> None:
    dashboard = json.loads((written / "dashboards/evalpipe.json").read_text())
    titles = " | ".join(panel["title"] for panel in dashboard["panels"])
    for word in ("Requests", "Errors", "Timeouts", "p50", "p95", "p99", "first token", "tokens per second", "per hour"):
        assert word in titles
    for word in ("per request", "User rating", "shed", "Funnel", "Share of treatment", "Guardrails"):
        assert word in titles
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    cells = [
        (p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy)
        for p in dashboard["panels"]
        for dx in range(p["gridPos"]["w"])
        for dy in range(p["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24, "no panel covers another"


def test_no_panel_asks_for_a_user() -> None:
    for panel in panels():
        for _, query in panel.queries:
            assert "unit" not in query and "user_id" not in query


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is not installed")
def test_prometheus_takes_configuration_rules_and_every_query(written: Path, tmp_path: Path) -> None:
    (written / "token").write_text("t")
    for check in (["check", "config", "prometheus.yml"], ["check", "rules", "evalpipe.rules.yml"]):
        done = subprocess.run(["promtool", *check], cwd=written, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    group = {
        "groups": [
            {
                "name": "panels",
                "rules": [
                    {"record": f"panel:{i}:{j}", "expr": query}
                    for i, panel in enumerate(panels("x", "5m"))
                    for j, (_, query) in enumerate(panel.queries)
                ],
            }
        ]
    }
    (tmp_path / "panels.yml").write_text(yaml.safe_dump(group))
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "panels.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_limits_and_targets_come_from_the_configuration(written: Path) -> None:
    rules = (written / "evalpipe.rules.yml").read_text()
    assert "> 0.03" in rules and "> 8" in rules and 'experiment="x.y"' in rules
    scrape = yaml.safe_load((written / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["a:1", "b:2"]
    assert scrape["authorization"]["credentials_file"] == "token"


def test_files_are_not_overwritten_unasked(written: Path) -> None:
    workspace = open_workspace(root=written.parent)
    with pytest.raises(ConfigError, match="--force"):
        write_monitoring(workspace, written)
    write_monitoring(workspace, written, force=True)


def test_every_metric_of_the_queries_exists() -> None:
    source = (Path(__file__).resolve().parents[2] / "evalpipe/collector/metrics.py").read_text()
    known = set(re.findall(r'"(evalpipe_[a-z_]+)"', source))
    asked = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for panel in panels()
        for _, query in panel.queries
        for name in re.findall(r"evalpipe_[a-z_]+", query)
    }
    assert asked <= known, asked - known
