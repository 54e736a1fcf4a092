"""The container file and the Kustomize set for collectors in a cluster: plain files, copied out for the user to edit."""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from importlib import resources

from evalpipe.errors import ConfigError

EVERY_MORNING = "15 6 * * *"
_CRON_FIELD = r"[0-9A-Za-z*/,?-]+"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSettings:
    """What the set runs.

    Attributes:
        store: object storage that the pods share; None: one collector, whose data are on its volume.
        replicas: collectors, from 1; several need `store`.
        timeout_s: how long a served answer may take, in seconds.
        schedule: when `evalpipe run` begins, in cron's five fields, UTC. None: every morning with `store`, else never.
        ray: whether KubeRay's jobs for the judge and the report are written; they need `store`.
    """

    store: str | None = None
    replicas: int = 1
    timeout_s: float = 600.0
    schedule: str | None = None
    ray: bool = False


def kustomize_files(settings: ClusterSettings | None = None) -> dict[str, str]:
    """File name → text. Raises ConfigError for settings that do not go together."""
    settings = settings or ClusterSettings()
    _check(settings)
    files = {"Containerfile": _text("Containerfile")}
    return files | (_on_a_volume(settings) if settings.store is None else _on_a_store(settings, settings.store))


def _on_a_volume(settings: ClusterSettings) -> dict[str, str]:
    """One collector; what works on its data is scheduled beside it, onto the node that has its volume."""
    job = {} if settings.schedule is None else {"run.yaml": _filled("run.yaml", schedule=settings.schedule)}
    return {
        "kustomization.yaml": _filled("kustomization.yaml", run="".join(f"  - {name}\n" for name in job)),
        "collector.yaml": _text("collector.yaml"),
        "ship.yaml": _text("ship.yaml"),
        **job,
    }


def _on_a_store(settings: ClusterSettings, store: str) -> dict[str, str]:
    """Collectors with a log of their own each, and jobs on any node."""
    role, storage_keys = _CREDENTIALS[store.partition("://")[0]]
    return {
        "kustomization.yaml": _text("replicas/kustomization.yaml"),
        "collector.yaml": _filled(
            "replicas/collector.yaml",
            replicas=str(settings.replicas),
            grace_s=str(math.ceil(settings.timeout_s) + _DRAIN_S),
            role="\n".join(f"  #   {line}" for line in role),
            storage_keys=storage_keys,
        ),
        "run.yaml": _filled(
            "replicas/run.yaml",
            schedule=settings.schedule or EVERY_MORNING,
            work=_WORK_BESIDE_RAY if settings.ray else _WORK,
            no_judge=", --no-judge" if settings.ray else "",
        ),
        "load-volume.yaml": _text("replicas/load-volume.yaml"),
        **{f"ray-{job['command']}.yaml": _filled("replicas/ray.yaml", **job) for job in _RAY_JOBS if settings.ray},
    }


_DRAIN_S = 30
"""what a collector has to end in beside a served answer, in seconds"""
_WORK = "judge what is new (within [judge] max_usd and max_usd_per_day), report, gate"
_WORK_BESIDE_RAY = "report and gate; the judge is ray-judge.yaml"
_RAY_JOBS = (
    {"command": "judge", "arguments": "judge --ray auto", "title": "The judge", "workers": "2"},
    {"command": "report", "arguments": "report", "title": "The report, which the head makes alone,", "workers": "0"},
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
    if (
        settings.schedule is not None
        and re.fullmatch(rf"{_CRON_FIELD}(?: +{_CRON_FIELD}){{4}}", settings.schedule) is None
    ):
        raise ConfigError(
            f"--schedule {settings.schedule!r}: cron's five fields are expected (minute, hour, day, month, weekday; UTC), "
            f"e.g. '{EVERY_MORNING}'"
        )


def _text(name: str) -> str:
    return resources.files("evalpipe.rollout").joinpath("kubernetes", name).read_text("utf-8")


def _filled(name: str, **values: str) -> str:
    return string.Template(_text(name)).substitute(values)
