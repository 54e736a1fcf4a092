"""The container file and the Kustomize set for collectors in a cluster: plain files, copied out for the user to edit."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from importlib import resources

from evalpipe.errors import ConfigError
from evalpipe.rollout.cron import schedule_fault
from evalpipe.rollout.names import require_label

EVERY_MORNING = "15 6 * * *"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSettings:
    """What the set runs.

    Attributes:
        store: object storage that the pods share; None: one collector, whose data are on its volume.
        replicas: collectors, from 1; several need `store`.
        timeout_s: how long a served answer may take, in seconds.
        schedule: when `evalpipe run` begins, in cron's five fields, UTC. None: every morning with `store`, else never.
        ray: whether KubeRay's jobs for the judge and the report are written; they need `store`.
        namespace: the Kubernetes namespace of all of it; None: the one that kubectl works in.
    """

    store: str | None = None
    replicas: int = 1
    timeout_s: float = 600.0
    schedule: str | None = None
    ray: bool = False
    namespace: str | None = None


def kustomize_files(settings: ClusterSettings | None = None) -> dict[str, str]:
    """File name → text. Raises ConfigError for settings that do not go together."""
    settings = settings or ClusterSettings()
    _check(settings)
    texts = _on_a_volume(settings) if settings.store is None else _on_a_store(settings, settings.store)
    return {"Containerfile": _text("Containerfile"), **texts}


def _on_a_volume(settings: ClusterSettings) -> dict[str, str]:
    """One collector; what works on its data is scheduled beside it, onto the node that has its volume."""
    job = {} if settings.schedule is None else {"run.yaml": _filled("run.yaml", schedule=settings.schedule)}
    where = _namespace(settings)
    return {
        "kustomization.yaml": _filled("kustomization.yaml", run="".join(f"  - {name}\n" for name in job), **where),
        "collector.yaml": _filled("collector.yaml", **where),
        "ship.yaml": _text("ship.yaml"),
        **job,
    }


def _on_a_store(settings: ClusterSettings, store: str) -> dict[str, str]:
    """Collectors with a log of their own each, and jobs on any node."""
    role, storage_keys = _CREDENTIALS[store.partition("://")[0]]
    where = _namespace(settings)
    return {
        "kustomization.yaml": _filled("replicas/kustomization.yaml", **where),
        "collector.yaml": _filled(
            "replicas/collector.yaml",
            replicas=str(settings.replicas),
            grace_s=str(math.ceil(settings.timeout_s) + _DRAIN_S),
            role="\n".join(f"  #   {line}" for line in role),
            storage_keys=storage_keys,
            **where,
        ),
        "run.yaml": _filled(
            "replicas/run.yaml",
            schedule=settings.schedule or EVERY_MORNING,
            work=_WORK_BESIDE_RAY if settings.ray else _WORK,
            no_judge=", --no-judge" if settings.ray else "",
        ),
        "load-volume.yaml": _filled("replicas/load-volume.yaml", **where),
        **{
            f"ray-{job['command']}.yaml": _filled("replicas/ray.yaml", **job, **where)
            for job in _RAY_JOBS
            if settings.ray
        },
    }


def _namespace(settings: ClusterSettings) -> dict[str, str]:
    """The namespace where a file needs it: of the kustomization, of what is created without it, and in commands for the user."""
    name = settings.namespace
    if name is None:
        return {"namespace": "", "in_metadata": "", "in_command": ""}
    return {
        "namespace": f'namespace: "{name}"   # must be there: kubectl create namespace {name}\n',
        "in_metadata": f'  namespace: "{name}"\n',
        "in_command": f" -n {name}",
    }


_DRAIN_S = 30
"""what a collector has to end in beside a served answer, in seconds"""
_WORK = "judge what is new (within [judge] max_usd and max_usd_per_day), report, gate"
_WORK_BESIDE_RAY = "report and gate; the judge is ray-judge.yaml"
_RAY_JOBS = (
    {
        "command": "judge",
        "arguments": "judge --ray auto",
        "title": "The judge",
        "account": "automountServiceAccountToken: false   # no Secret: the head passes the judge's keys on",
        "storage": "",
        "requested": "1Gi",
        "limit": "2Gi",
    },
    {
        "command": "report",
        "arguments": "report --ray auto",
        "title": "The report",
        "account": "serviceAccountName: evalpipe   # the workers read the store",
        "storage": "                envFrom:\n                  - secretRef: {name: evalpipe-storage, optional: true}\n",
        "requested": "2Gi",
        "limit": "4Gi",
    },
)
_CREDENTIALS = {
    "s3": (
        ('annotations: {eks.amazonaws.com/role-arn: "arn:aws:iam::ACCOUNT:role/ROLE"}',),
        "--from-literal=AWS_ACCESS_KEY_ID=… --from-literal=AWS_SECRET_ACCESS_KEY=… --from-literal=AWS_REGION=…",
    ),
    "gs": (
        ("annotations: {iam.gke.io/gcp-service-account: NAME@PROJECT.iam.gserviceaccount.com}",),
        "--from-literal=GOOGLE_SERVICE_ACCOUNT_KEY=…",
    ),
    "az": (
        (
            'annotations: {azure.workload.identity/client-id: "…"}',
            'with the label azure.workload.identity/use: "true" on the pods below and on those of the jobs,',
        ),
        "--from-literal=AZURE_STORAGE_ACCOUNT_NAME=… --from-literal=AZURE_STORAGE_ACCOUNT_KEY=…",
    ),
}
"""for each kind of storage: the comment about the account, and what a Secret would hold (names that obstore reads)"""


def _check(settings: ClusterSettings) -> None:
    if settings.store is None and (settings.replicas > 1 or settings.ray):
        who = f"--replicas {settings.replicas}: collectors" if settings.replicas > 1 else "--ray: jobs and collectors"
        raise ConfigError(
            f'{who} share their data on object storage, and evalpipe.toml names none: set data = "s3://bucket/prefix" there '
            "(also gs://, az://), above the first [section]"
        )
    fault = None if settings.schedule is None else schedule_fault(settings.schedule)
    if fault is not None:
        raise ConfigError(f"--schedule {settings.schedule!r}: {fault}; e.g. '{EVERY_MORNING}'")
    if settings.namespace is not None:
        require_label("--namespace", settings.namespace)


def _text(name: str) -> str:
    return resources.files("evalpipe.rollout").joinpath("kubernetes", name).read_text("utf-8")


def _filled(name: str, **values: str) -> str:
    return string.Template(_text(name)).substitute(values)
