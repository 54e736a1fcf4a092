"""Istio manifests (networking.istio.io/v1) for a share of treatment: what a person or a pipeline applies with kubectl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from evalpipe.errors import ConfigError

API_VERSION = "networking.istio.io/v1"
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
    """(control, treatment), adding up to 100. Raises ConfigError for a share Istio's whole weights cannot say."""
    if not 0 <= percentage <= 100:
        raise ConfigError(f"a percentage lies between 0 and 100, got {percentage:g}")
    if percentage != int(percentage):
        raise ConfigError(
            f"Istio weights are whole percents: {percentage:g} cannot be split in the mesh (use --split evalpipe)"
        )
    return 100 - int(percentage), int(percentage)


def render_mesh_split(settings: MeshSettings, percentage: float) -> list[Manifest]:
    """The mesh splits: a VirtualService whose first rules serve a forced arm, then the weights; and the two subsets.

    Weights draw every request anew: a user may see both arms. Where users must stick, let evalpipe split.
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
        "apiVersion": API_VERSION,
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
        "apiVersion": API_VERSION,
        "kind": "DestinationRule",
        "metadata": _metadata(settings),
        "spec": spec,
    }


def _metadata(settings: MeshSettings) -> Manifest:
    metadata: Manifest = {"name": settings.name, "labels": {"app.kubernetes.io/managed-by": "evalpipe"}}
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    return metadata
