"""`evalpipe istio`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options


def istio(
    kind: Annotated[str, typer.Option("--kind", "-k", help="istio | argo | flagger | kustomize")] = "istio",
    split: Annotated[
        str, typer.Option("--split", help="istio: what splits, the mesh or evalpipe (which keeps users in their arm).")
    ] = "mesh",
    percentage: Annotated[
        float | None, typer.Option("--percentage", "-p", help="Share of treatment.  [default: the one in force]")
    ] = None,
    match_header: Annotated[
        str | None,
        typer.Option(
            "--match-header",
            metavar="NAME=VALUE",
            help="istio: requests with this header go to the treatment; the others by --percentage.  [default of that: 0]",
        ),
    ] = None,
    stage: Annotated[int | None, typer.Option("--stage", help="The share of this stage, from 1.")] = None,
    host: Annotated[str, typer.Option("--host", help="The name clients call.")] = "llm.example.internal",
    service: Annotated[str, typer.Option("--service", help="The collectors' Kubernetes service.")] = "evalpipe",
    port: Annotated[int, typer.Option("--port", help="Its port.")] = 8400,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Kubernetes namespace.")] = None,
    gateway: Annotated[list[str] | None, typer.Option("--gateway", help="Istio gateways to bind to.")] = None,
    target: Annotated[str, typer.Option("--target", help="flagger: the Deployment that is rolled out.")] = "evalpipe",
    prometheus: Annotated[
        str, typer.Option("--prometheus", help="argo, flagger: Prometheus.")
    ] = "http://prometheus:9090",
    replicas: Annotated[
        int,
        typer.Option(
            "--replicas", min=1, max=1000, help="kustomize: collectors; several share `data`, object storage."
        ),
    ] = 1,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            metavar="CRON",
            help="kustomize: when a job for `evalpipe run` begins, UTC.  [default: 15 6 * * * with object storage, else no job]",
        ),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="kustomize: KubeRay jobs for the judge and the report.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here (kustomize: a folder).  [default: stdout]")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="istio: render again on every change of the canary.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Apply it with kubectl.")] = False,
    config: options.Config = None,
    data: options.Data = None,
) -> None:
    """Manifests for a cluster: an Istio split, Argo Rollouts, Flagger, or a Kustomize set to run collectors.

    ```
    evalpipe istio --percentage 10 | kubectl apply -f -
    evalpipe istio --match-header x-experiment=claude-v1
    evalpipe istio --watch --apply          # the mesh follows the canary
    evalpipe istio --kind kustomize -o deploy
    evalpipe istio --kind kustomize --replicas 3 --ray -o deploy
    ```
    """
    from evalpipe.errors import ConfigError
    from evalpipe.rollout.manifests import AnalysisSettings, FlaggerSettings, MeshSettings
    from evalpipe.workspace import manifests
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(config, data, pull=False, has_data=kind == "istio")  # where the canary's share is
    configured = workspace.require_config()
    name = configured.experiment.name.lower().replace("_", "-").replace(".", "-").strip("-")
    collector = f"http://{service}:{port}"

    def deliver(text: str) -> None:
        if out is not None:
            try:
                out.write_text(text, "utf-8")
            except OSError as error:
                raise ConfigError(f"cannot write {out}: {error.strerror}") from error
        elif not apply:
            typer.echo(text, nl=False)
        if apply:
            typer.echo(manifests.apply(text), err=True)

    if kind not in manifests.KINDS:
        raise ConfigError(f"--kind {kind}: one of {', '.join(manifests.KINDS)}")
    if match_header is not None and (kind != "istio" or watch):
        raise ConfigError("--match-header is for --kind istio, without --watch")
    header = None if match_header is None else manifests.read_match_header(match_header)
    if watch and kind != "istio":
        raise ConfigError(f"--watch follows the canary's share, which --kind {kind} does not hold")
    if kind != "kustomize" and (replicas > 1 or schedule is not None or ray):
        raise ConfigError("--replicas, --schedule and --ray are for --kind kustomize")
    if kind == "kustomize":
        if out is None:
            raise ConfigError("--kind kustomize writes files: give a folder with --out")
        cluster = manifests.cluster_settings(configured, replicas=replicas, schedule=schedule, ray=ray)
        for path in manifests.write_kustomize(workspace, out, cluster):
            typer.echo(f"wrote {path}")
        return
    if kind == "argo":
        limits = AnalysisSettings(
            name=name,
            experiment=configured.experiment.name,
            collector=collector,
            prometheus=prometheus,
            namespace=namespace,
            error_rate=manifests.guardrail(configured, "error_rate", 0.02),
            p99_latency_s=manifests.guardrail(configured, "p99_latency_ms", 5000.0) / 1000,
        )
        deliver(manifests.render_argo(workspace, limits))
        return
    if kind == "flagger":
        rollout = FlaggerSettings(
            name=name,
            experiment=configured.experiment.name,
            target=target,
            collector=collector,
            prometheus=prometheus,
            namespace=namespace,
            port=port,
            stages=manifests.whole_stages(configured),
            error_rate=manifests.guardrail(configured, "error_rate", 0.02),
        )
        deliver(manifests.render_flagger(workspace, rollout))
        return
    mesh = MeshSettings(
        name=name, host=host, service=service, namespace=namespace, port=port, gateways=tuple(gateway or ())
    )
    if watch:
        if percentage is not None or stage is not None:
            raise ConfigError("--watch follows the canary: leave --percentage and --stage out")
        manifests.watch(
            workspace, lambda now: manifests.render_istio(workspace, mesh, split, now), deliver, wait=manifests.sleep
        )
        return
    if header is not None and percentage is None and stage is None:
        percentage = 0.0
    now = manifests.share(workspace, percentage, stage)
    deliver(manifests.render_istio(workspace, mesh, split, now, match_header=header))
