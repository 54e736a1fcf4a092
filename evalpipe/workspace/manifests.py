"""`evalpipe istio` and `evalpipe grafana`: manifests and dashboards written into folders."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from evalpipe.collector.auth import is_loopback_name
from evalpipe.config import Config
from evalpipe.credentials import shown_url
from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.rollout.grafana import MonitoringSettings, render_files
from evalpipe.rollout.kustomize import ClusterSettings, kustomize_files
from evalpipe.rollout.manifests import (
    AnalysisSettings,
    FlaggerSettings,
    MeshSettings,
    render_analysis_template,
    render_canary,
    render_evalpipe_split,
    render_mesh_split,
    render_yaml,
)
from evalpipe.workspace.canary import configured_stages, open_history
from evalpipe.workspace.paths import Workspace

KINDS = ("istio", "argo", "flagger", "kustomize")
POLL_S = 0.5
KUBECTL_TIMEOUT_S = 60


def share(workspace: Workspace, percentage: float | None, stage: int | None) -> float:
    """The share asked for: a percentage, a stage (from 1), else the one in force."""
    config = workspace.require_config()
    if percentage is not None and stage is not None:
        raise ConfigError("--percentage and --stage exclude each other: give one of them")
    if percentage is not None:
        return percentage
    if stage is not None:
        stages = configured_stages(config)
        if not 1 <= stage <= len(stages):
            raise ConfigError(f"--stage {stage}: canary.stages has 1 to {len(stages)}")
        return stages[stage - 1].percentage
    if config.experiment.mode == "ab":
        return config.experiment.treatment_percent
    return open_history(workspace).state().percentage


_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+)=(\S.*)")


def read_match_header(text: str) -> tuple[str, str]:
    """ "x-experiment=claude-v1" → (name in lower case, as Istio requires, value). Raises ConfigError."""
    match = _HEADER.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--match-header {text!r}: give NAME=VALUE, e.g. x-experiment=claude-v1")
    return match.group(1).lower(), match.group(2)


def render_istio(
    workspace: Workspace,
    mesh: MeshSettings,
    split: str,
    percentage: float,
    *,
    match_header: tuple[str, str] | None = None,
) -> str:
    experiment = workspace.experiment(None)
    if split == "evalpipe":
        if match_header is not None:
            raise ConfigError(
                "--match-header is a rule of the mesh; with --split evalpipe the collectors split: leave one out"
            )
        return render_yaml(
            render_evalpipe_split(mesh), comment=f"{experiment}: evalpipe splits, the mesh only brings traffic"
        )
    if split != "mesh":
        raise ConfigError(f"--split {split}: mesh or evalpipe")
    comment = f"{experiment}: {percentage:g} % to treatment"
    if match_header is not None:
        comment = f"{experiment}: {': '.join(match_header)} and {percentage:g} % of the rest to treatment"
    return render_yaml(render_mesh_split(mesh, percentage, match_header=match_header), comment=comment)


def render_argo(workspace: Workspace, settings: AnalysisSettings) -> str:
    return render_yaml([render_analysis_template(settings)], comment=f"{workspace.experiment(None)}: Argo Rollouts")


def render_flagger(workspace: Workspace, settings: FlaggerSettings) -> str:
    comment = (
        f"{workspace.experiment(None)}: Flagger\n"
        "Its webhooks send no header: where the collector asks for a token, put it into their URL, http://any:TOKEN@…"
    )
    return render_yaml(render_canary(settings), comment=comment)


def whole_stages(config: Config) -> tuple[int, ...]:
    """The stages as Flagger's step weights (1 to 99; the promotion is the last step)."""
    odd = [stage.percentage for stage in config.canary.stages if stage.percentage != int(stage.percentage)]
    if odd:
        raise ConfigError(f"Flagger's weights are whole percents: canary.stages has {odd[0]:g}")
    return tuple(int(stage.percentage) for stage in config.canary.stages if stage.percentage < 100)


def guardrail(config: Config, name: str, default: float) -> float:
    return config.canary.guardrails.get(name, default)


def cluster_settings(
    config: Config, *, replicas: int, schedule: str | None, ray: bool, namespace: str | None = None
) -> ClusterSettings:
    """The Kustomize set of a workspace: whether its pods share object storage is in its configuration.

    Raises:
        ConfigError: where that gives all replicas one name.
    """
    if replicas > 1 and config.collector.replica is not None:
        raise ConfigError(
            f"--replicas {replicas}: collector.replica = {config.collector.replica!r} would be the name of all of them; leave it "
            "out of evalpipe.toml, and each has its pod's name"
        )
    return ClusterSettings(
        store=config.data,
        replicas=replicas,
        timeout_s=config.collector.timeout_s,
        schedule=schedule,
        ray=ray,
        namespace=namespace,
    )


def addresses_of_this_machine(config: Config) -> list[str]:
    """The addresses in a configuration that mean another machine in a pod than here: one line each, with the key."""
    arms = config.arms
    addresses = {
        "arms.control.base_url": arms and arms.control.base_url,
        "arms.treatment.base_url": arms and arms.treatment and arms.treatment.base_url,
        "judge.base_url": config.judge.base_url,
        "alerts.webhook": config.alerts.webhook,
    }
    return [
        f"{key} = '{shown_url(url)}' is this machine; in a pod it is the pod itself: set an address there that the cluster "
        "reaches, in the evalpipe.toml of the folder"
        for key, url in addresses.items()
        if url and is_loopback_name((urlsplit(url).hostname or "").lower())
    ]


def write_kustomize(workspace: Workspace, folder: Path, settings: ClusterSettings | None = None) -> list[Path]:
    """Write the set beside a copy of the workspace's configuration. Existing files are never touched."""
    files: Mapping[str, str] = kustomize_files(settings)
    if workspace.config_path is not None:
        files = {**files, "evalpipe.toml": workspace.config_path.read_text("utf-8")}
    taken = [folder / name for name in files if (folder / name).exists()]
    if taken:
        raise ConfigError(f"{taken[0]} exists already: choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or folder}: {error.strerror}") from error
    return [folder / name for name in files]


def apply(text: str) -> str:
    """Apply the manifests with kubectl; returns its output."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise ConfigError("--apply needs kubectl on the PATH")
    try:
        done = subprocess.run(
            [kubectl, "apply", "-f", "-"],
            check=False,
            input=text,
            capture_output=True,
            text=True,
            timeout=KUBECTL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise EvalpipeError(f"kubectl gave no answer within {KUBECTL_TIMEOUT_S} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EvalpipeError(f"kubectl apply failed: {last}")
    return done.stdout.strip()


def watch(
    workspace: Workspace,
    render: Callable[[float], str],
    deliver: Callable[[str], None],
    *,
    wait: Callable[[float], bool],
) -> None:
    """Render again whenever the share in force changes, until `wait` returns true. The first rendering comes at once."""
    last: float | None = None
    while True:
        now = share(workspace, None, None)
        if now != last:
            deliver(render(now))
            last = now
        if wait(POLL_S):
            return


def sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


# `evalpipe grafana`: dashboard, provisioning, Prometheus' configuration and rules, written into a folder.


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
