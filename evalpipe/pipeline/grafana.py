"""`evalpipe grafana`: dashboard, provisioning, Prometheus' configuration and rules, written into a folder."""

from __future__ import annotations

from pathlib import Path

from evalpipe.errors import ConfigError
from evalpipe.pipeline.workspace import Workspace
from evalpipe.rollout.dashboard import MonitoringSettings, render_files


def write_monitoring(
    workspace: Workspace,
    folder: Path,
    *,
    targets: tuple[str, ...] = (),
    prometheus: str = "http://127.0.0.1:9090",
    token_file: str | None = None,
    force: bool = False,
) -> list[Path]:
    """What was written. Existing files are only replaced with `force`; ConfigError names the first."""
    config = workspace.require_config()
    limits = config.canary.guardrails
    settings = MonitoringSettings(
        experiment=config.experiment.name,
        targets=targets or (f"{config.collector.host}:{config.collector.port}",),
        prometheus=prometheus,
        token_file=token_file,
        error_rate=limits.get("error_rate", 0.02),
        p99_latency_s=limits.get("p99_latency_ms", 5000.0) / 1000,
    )
    files = {folder / name: text for name, text in render_files(settings).items()}
    taken = [path for path in files if path.exists()]
    if taken and not force:
        raise ConfigError(f"{taken[0]} exists already: choose another folder, or replace it with --force")
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or folder}: {error.strerror}") from error
    return list(files)
