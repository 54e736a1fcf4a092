"""`evalpipe istio`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options

APPLIES_TO = {
    "split": ("istio",),
    "percentage": ("istio",),
    "match_header": ("istio",),
    "stage": ("istio",),
    "host": ("istio",),
    "service": ("istio", "argo", "flagger"),
    "port": ("istio", "argo", "flagger"),
    "namespace": ("istio", "argo", "flagger", "kustomize"),
    "gateway": ("istio",),
    "target": ("flagger",),
    "prometheus": ("argo", "flagger"),
    "replicas": ("kustomize",),
    "schedule": ("kustomize",),
    "ray": ("kustomize",),
    "watch": ("istio",),
    "apply": ("istio", "argo", "flagger"),
}
"""for each option the kinds of manifests that it changes; with another one it is refused"""


def _help(option: str, text: str) -> str:
    return f"{', '.join(APPLIES_TO[option])}: {text}"


def istio(
    context: typer.Context,
    kind: Annotated[str, typer.Option("--kind", "-k", help="istio | argo | flagger | kustomize")] = "istio",
    split: Annotated[
        str,
        typer.Option(
            "--split", help=_help("split", "what splits, the mesh or evalpipe (which keeps users in their arm).")
        ),
    ] = "mesh",
    percentage: Annotated[
        float | None,
        typer.Option(
            "--percentage",
            "-p",
            min=0,
            max=100,
            help=_help("percentage", "share of treatment.  [default: the one in force]"),
        ),
    ] = None,
    match_header: Annotated[
        str | None,
        typer.Option(
            "--match-header",
            metavar="NAME=VALUE",
            help=_help(
                "match_header",
                "requests with this header go to the treatment; the others by --percentage.  [default of that: 0]",
            ),
        ),
    ] = None,
    stage: Annotated[
        int | None, typer.Option("--stage", help=_help("stage", "the share of this stage, from 1."))
    ] = None,
    host: Annotated[str, typer.Option("--host", help=_help("host", "the name clients call."))] = "llm.example.internal",
    service: Annotated[
        str, typer.Option("--service", help=_help("service", "the collectors' Kubernetes service."))
    ] = "evalpipe",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help=_help("port", "its port."))] = 8400,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace", "-n", help="Kubernetes namespace, of any kind.  [default: the one kubectl works in]"
        ),
    ] = None,
    gateway: Annotated[
        list[str] | None, typer.Option("--gateway", help=_help("gateway", "Istio gateways to bind to."))
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help=_help("target", "the Deployment that is rolled out."))
    ] = "evalpipe",
    prometheus: Annotated[
        str, typer.Option("--prometheus", help=_help("prometheus", "Prometheus."))
    ] = "http://prometheus:9090",
    replicas: Annotated[
        int,
        typer.Option(
            "--replicas",
            min=1,
            max=1000,
            help=_help("replicas", "collectors; several share `data`, object storage."),
        ),
    ] = 1,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            metavar="CRON",
            help=_help(
                "schedule",
                "when a job for `evalpipe run` begins, UTC.  [default: 15 6 * * * with object storage, else no job]",
            ),
        ),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help=_help("ray", "KubeRay jobs for the judge and the report."))
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here (kustomize: a folder).  [default: stdout]")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help=_help("watch", "render again on every change of the canary."))
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help=_help("apply", "apply it with kubectl."))] = False,
    config: options.Config = None,
    data: options.Data = None,
) -> None:
    """Manifests for a cluster: an Istio split, Argo Rollouts, Flagger, or a Kustomize set to run collectors.

    ```
    evalpipe istio --percentage 10 | kubectl apply -f -
    evalpipe istio --match-header x-experiment=claude-v1
    evalpipe istio --watch --apply          # the mesh follows the canary
    evalpipe istio --kind kustomize --namespace llm -o deploy
    evalpipe istio --kind kustomize --replicas 3 --ray -o deploy
    ```
    """
    from evalpipe.errors import ConfigError
    from evalpipe.rollout import names
    from evalpipe.rollout.manifests import AnalysisSettings, FlaggerSettings, MeshSettings
    from evalpipe.workspace import manifests
    from evalpipe.workspace.paths import open_workspace

    if kind not in manifests.KINDS:
        raise ConfigError(f"--kind {kind}: one of {', '.join(manifests.KINDS)}")
    given = [name for name in APPLIES_TO if _is_given(context, name)]
    _refuse_others(kind, given)
    idle = [name for name in given if split == "evalpipe" and name in {"percentage", "stage", "watch"}]
    if idle:
        raise ConfigError(
            f"{_named(idle)}: about the mesh's weights, and with --split evalpipe it has none: leave it out"
        )
    if match_header is not None and watch:
        raise ConfigError("--match-header is for --kind istio, without --watch")
    if namespace is not None:
        names.require_label("--namespace", namespace)
    names.require_service("--service", service)
    names.require_host("--host", host)
    names.require_label("--target", target)
    names.require_http("--prometheus", prometheus)
    for one in gateway or ():
        names.require_gateway("--gateway", one)
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

    header = None if match_header is None else manifests.read_match_header(match_header)
    if kind == "kustomize":
        if out is None:
            raise ConfigError("--kind kustomize writes files: give a folder with --out")
        cluster = manifests.cluster_settings(
            configured, replicas=replicas, schedule=schedule, ray=ray, namespace=namespace
        )
        for path in manifests.write_kustomize(workspace, out, cluster):
            typer.echo(f"wrote {path}")
        for line in manifests.addresses_of_this_machine(configured):
            typer.echo(f"evalpipe: warning: {line}", err=True)
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


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_others(kind: str, given: list[str]) -> None:
    """Raises ConfigError with the options on the command line that a kind of manifests has no use for."""
    from evalpipe.errors import ConfigError

    others = [name for name in given if kind not in APPLIES_TO[name]]
    if not others:
        return
    by_kinds: dict[tuple[str, ...], list[str]] = {}
    for name in others:
        by_kinds.setdefault(APPLIES_TO[name], []).append(name)
    of = "; ".join(
        f"{_named(some)} {'are' if len(some) > 1 else 'is'} for --kind {_either(kinds)}"
        for kinds, some in by_kinds.items()
    )
    instead = "; `kubectl apply -k FOLDER` applies the set" if kind == "kustomize" and "apply" in others else ""
    raise ConfigError(f"{of}, not for {kind}: leave {'them' if len(others) > 1 else 'it'} out{instead}")


def _named(options_: list[str]) -> str:
    return _listed([f"--{name.replace('_', '-')}" for name in options_], "and")


def _either(kinds: tuple[str, ...]) -> str:
    return _listed(list(kinds), "or")


def _listed(words: list[str], last: str) -> str:
    return f" {last} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part) if words else ""
