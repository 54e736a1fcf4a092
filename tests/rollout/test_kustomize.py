"""The Kustomize set: what refers to what, what the programs in it accept, and what a user may get wrong."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import Typer
from typer.main import get_command
from typer.testing import CliRunner

from evalpipe.cli.app import build_app
from evalpipe.cli.istio import istio
from evalpipe.errors import ConfigError
from evalpipe.rollout.kustomize import ClusterSettings, kustomize_files
from evalpipe.workspace.paths import open_workspace

CONFIG = """
[experiment]
name = "replicas"
[arms.control]
provider = "openai"
[arms.treatment]
provider = "anthropic"
[collector]
timeout_s = 900.5
"""
Document = dict[str, Any]


def render(folder: Path, *arguments: str, data: str | None = "s3://bucket/logs") -> dict[str, list[Document]]:
    """File → its documents, of a workspace whose configuration names `data`."""
    folder.mkdir(exist_ok=True)
    config = folder / "evalpipe.toml"
    config.write_text(CONFIG if data is None else f'data = "{data}"\n{CONFIG}')
    app = Typer()
    app.command()(istio)
    words = ["--config", str(config), "--kind", "kustomize", "-o", str(folder / "deploy"), *arguments]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (folder / "deploy" / "evalpipe.toml").read_text() == config.read_text()
    return {path.name: list(yaml.safe_load_all(path.read_text())) for path in (folder / "deploy").glob("*.yaml")}


SETS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "one": ((), None),
    "scheduled": (("--schedule", "0 3 * * 1-5"), None),
    "store": ((), "gs://bucket"),
    "replicas": (("--replicas", "3"), "s3://bucket/logs"),
    "ray": (("--replicas", "5", "--ray", "--schedule", "30 5 * * *"), "az://container/logs"),
}


@pytest.fixture(scope="module", params=SETS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Document]]:
    arguments, data = SETS[request.param]
    return render(tmp_path_factory.mktemp(request.param), *arguments, data=data)


def applied(files: dict[str, list[Document]]) -> list[Document]:
    """What `kubectl apply -k` takes."""
    return [document for name in files["kustomization.yaml"][0]["resources"] for document in files[name]]


def every(files: dict[str, list[Document]]) -> list[Document]:
    return [document for name, documents in files.items() if name != "kustomization.yaml" for document in documents]


def pods(documents: list[Document]) -> Iterator[tuple[Document, Document]]:
    """(What makes the pods, their template)."""
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "CronJob":
            yield document, spec["jobTemplate"]["spec"]["template"]
        elif document["kind"] == "RayJob":
            cluster = spec["rayClusterSpec"]
            yield from (
                (document, group["template"]) for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
            )
        elif "template" in spec:
            yield document, spec["template"]


def containers(template: Document) -> list[Document]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def matches(selector: dict[str, str], template: Document) -> bool:
    return selector.items() <= template["metadata"]["labels"].items()


def one(documents: list[Document], kind: str, name: str = "evalpipe") -> Document:
    (found,) = (d for d in documents if d["kind"] == kind and d["metadata"].get("name") == name)
    return found


def test_selectors_match_the_collectors_and_nothing_else(files: dict[str, list[Document]]) -> None:
    made = {(d["kind"], d["metadata"].get("name") or d["metadata"]["generateName"]): t for d, t in pods(every(files))}
    documents = every(files)
    names = [(d["kind"], d["metadata"].get("name") or d["metadata"]["generateName"]) for d in documents]
    assert len(names) == len(set(names))
    selectors = [d["spec"]["selector"] for d in documents if d["kind"] == "Service"]
    selectors += [d["spec"]["selector"]["matchLabels"] for d in documents if d["kind"] == "PodDisruptionBudget"]
    selectors += [d["spec"]["selector"]["matchLabels"] for d in documents if d["kind"] in ("Deployment", "StatefulSet")]
    for template in made.values():
        spread = template["spec"].get("topologySpreadConstraints", [])
        selectors += [constraint["labelSelector"]["matchLabels"] for constraint in spread]
    collectors = "StatefulSet" if any(kind == "StatefulSet" for kind, _ in made) else "Deployment"
    for selector in selectors:
        assert [place for place, template in made.items() if matches(selector, template)] == [(collectors, "evalpipe")]


def test_volumes_are_there_and_mounted(files: dict[str, list[Document]]) -> None:
    documents = every(files)
    claims = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
    for owner, _ in pods(documents):
        for claim in owner["spec"].get("volumeClaimTemplates", []):
            claims |= {
                f"{claim['metadata']['name']}-evalpipe-{ordinal}" for ordinal in range(owner["spec"]["replicas"])
            }
    generated = {one["name"] for one in files["kustomization.yaml"][0]["configMapGenerator"]}
    for owner, template in pods(documents):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        volumes |= {claim["metadata"]["name"]: claim for claim in owner["spec"].get("volumeClaimTemplates", [])}
        mounted = {mount["name"] for container in containers(template) for mount in container["volumeMounts"]}
        assert mounted == set(volumes)
        for container in containers(template):
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(paths) == len(set(paths))
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume and owner["kind"] != "Job":
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "configMap" in volume:
                assert volume["configMap"]["name"] in generated
            # A name that kustomize changes is only found by what it applies.
            if "configMap" in volume and "generateName" in owner["metadata"]:
                assert volume["configMap"]["name"] == "evalpipe-once"
    accounts = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    assert {
        t["spec"]["serviceAccountName"] for _, t in pods(documents) if "serviceAccountName" in t["spec"]
    } == accounts


def commands(files: dict[str, list[Document]]) -> Iterator[list[str]]:
    """The words of each evalpipe command that the set runs."""
    for owner, template in pods(every(files)):
        if owner["kind"] == "RayJob":
            continue
        yield from (one["args"] for one in containers(template) if "evalpipe" in one["image"])
    for owner in every(files):
        if owner["kind"] == "RayJob":
            program, *words = shlex.split(owner["spec"]["entrypoint"])
            assert program == "evalpipe"
            yield words


def test_its_commands_are_accepted_by_the_program(files: dict[str, list[Document]]) -> None:
    program: Any = get_command(build_app())
    without_ray = []
    for name, *words in commands(files):
        command = program.commands[name]
        if "--ray" in words and not any("--ray" in parameter.opts for parameter in command.params):
            without_ray.append(name)
            continue
        with command.make_context(name, list(words)) as context:
            assert str(context.params["config"]) == "/workspace/evalpipe.toml"
    if without_ray:
        pytest.skip(f"evalpipe {' and '.join(without_ray)} of this version has no --ray")


def test_ports_and_probes_are_the_collectors(files: dict[str, list[Document]]) -> None:
    documents = applied(files)
    (template,) = (t for d, t in pods(documents) if d["kind"] in ("Deployment", "StatefulSet"))
    collector = containers(template)[0]
    ports = {port["name"]: port["containerPort"] for port in collector["ports"]}
    assert ports == {"http": 8400}
    for service in (d for d in documents if d["kind"] == "Service"):
        assert all(port["targetPort"] in ports for port in service["spec"]["ports"])
    for probe, path in (("readinessProbe", "/_evalpipe/ready"), ("livenessProbe", "/_evalpipe/health")):
        assert collector[probe]["httpGet"] == {"path": path, "port": "http"}


@pytest.mark.parametrize(("arguments", "replicas"), [((), 1), (("--replicas", "7"), 7)])
def test_each_replica_has_its_own_log_and_all_share_a_key(
    tmp_path: Path, arguments: tuple[str, ...], replicas: int
) -> None:
    documents = applied(render(tmp_path, *arguments))
    collectors = one(documents, "StatefulSet")
    spec = collectors["spec"]
    assert spec["replicas"] == replicas
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    headless = one(documents, "Service", spec["serviceName"])
    assert headless["spec"]["clusterIP"] == "None"
    (claim,) = spec["volumeClaimTemplates"]
    pod = spec["template"]["spec"]
    assert "hostname" not in pod  # then it is the pod's name, by which a collector calls itself
    assert pod["terminationGracePeriodSeconds"] == math.ceil(900.5) + 30
    assert one(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    collector = pod["containers"][0]
    mounts = {mount["name"]: mount["mountPath"] for mount in collector["volumeMounts"]}
    config = collector["args"][collector["args"].index("--config") + 1]
    assert mounts[claim["metadata"]["name"]] == str(Path(config).parent / "data")  # where its log is
    assert collector["args"][collector["args"].index("--load-every") + 1] == "10m"
    for _, template in pods(documents):
        for container in containers(template):
            environment = {entry["name"]: entry for entry in container["env"]}
            assert environment["EVALPIPE_DATA"]["value"] == ""
            optional = {
                ref["secretRef"]["name"]: ref["secretRef"].get("optional", False) for ref in container["envFrom"]
            }
            assert optional == {"evalpipe": False, "evalpipe-storage": True}
            if container["args"][0] != "gate":
                key = environment["EVALPIPE_UNIT_KEY"]["valueFrom"]["secretKeyRef"]
                assert key == {"name": "evalpipe", "key": "EVALPIPE_UNIT_KEY"}


def test_an_empty_variable_leaves_the_data_where_the_configuration_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image sets EVALPIPE_DATA=/data, which would go before `data` of evalpipe.toml."""
    config = tmp_path / "evalpipe.toml"
    config.write_text(f'data = "s3://bucket/logs"\n{CONFIG}')
    monkeypatch.setenv("EVALPIPE_DATA", "")
    workspace = open_workspace(config, pull=False)
    assert (workspace.url, workspace.spool) == ("s3://bucket/logs", tmp_path / "data" / "spool")
    monkeypatch.setenv("EVALPIPE_DATA", str(tmp_path / "other"))
    assert open_workspace(config, pull=False).url is None


@pytest.mark.parametrize(
    ("data", "annotation", "variable"),
    [
        ("s3://b/p", "eks.amazonaws.com/role-arn", "AWS_ACCESS_KEY_ID"),
        ("gs://b/p", "iam.gke.io/gcp-service-account", "GOOGLE_SERVICE_ACCOUNT_KEY"),
        ("az://b/p", "azure.workload.identity/client-id", "AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)
def test_the_account_names_the_vendor_of_the_storage(tmp_path: Path, data: str, annotation: str, variable: str) -> None:
    render(tmp_path, "--replicas", "2", data=data)
    text = (tmp_path / "deploy" / "collector.yaml").read_text()
    assert annotation in text and variable in text
    assert "$" not in text
    others = {"eks.amazonaws.com", "iam.gke.io", "azure.workload"} - {
        annotation.partition("/")[0].removesuffix(".identity")
    }
    assert not any(other in text for other in others)


def test_the_job_runs_when_it_is_asked_for(tmp_path: Path) -> None:
    assert "run.yaml" not in render(tmp_path / "a", data=None)
    at = {}
    for name, arguments, data in (("b", ("--schedule", "0 3 * * 1-5"), None), ("c", (), "s3://b")):
        job = one(applied(render(tmp_path / name, *arguments, data=data)), "CronJob", "evalpipe-run")
        assert (job["spec"]["timeZone"], job["spec"]["concurrencyPolicy"]) == ("Etc/UTC", "Forbid")
        at[name] = job["spec"]["schedule"]
        (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["run", "--config", "/workspace/evalpipe.toml"]
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert "/workspace/reports" in written  # where the report goes
    assert at == {"b": "0 3 * * 1-5", "c": "15 6 * * *"}


# KubeRay's RayJob (ray.io/v1, of KubeRay 1.7), as far as the set uses it: its Go types and validation, read by hand. The whole
# schema is looked at by check_kubernetes.py.
RAY_JOB = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
RAY_CLUSTER = {"headGroupSpec", "workerGroupSpecs"}
RAY_GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
RAY_JOB_NAME_LENGTH = 47
GENERATED_SUFFIX_LENGTH = 5


def test_ray_jobs_are_made_one_by_one(tmp_path: Path) -> None:
    files = render(tmp_path, "--ray")
    assert not [d for d in applied(files) if d["kind"] in ("RayJob", "Job")]  # nothing is spent by applying the set
    run = one(applied(files), "CronJob", "evalpipe-run")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert run["args"] == ["run", "--config", "/workspace/evalpipe.toml", "--no-judge"]
    for command in ("judge", "report"):
        (job,) = files[f"ray-{command}.yaml"]
        assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
        assert len(job["metadata"]["generateName"]) + GENERATED_SUFFIX_LENGTH <= RAY_JOB_NAME_LENGTH
        spec = job["spec"]
        assert set(spec) <= RAY_JOB and set(spec["rayClusterSpec"]) <= RAY_CLUSTER
        assert shlex.split(spec["entrypoint"])[:2] == ["evalpipe", command]
        assert spec["shutdownAfterJobFinishes"] is True  # ttlSecondsAfterFinished needs it
        head, (workers,) = spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"]
        assert set(head) <= RAY_GROUP and set(workers) <= RAY_GROUP
        assert 0 < workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
        assert all(isinstance(value, str) for group in (head, workers) for value in group["rayStartParams"].values())
        images = {c["image"] for group in (head, workers) for c in group["template"]["spec"]["containers"]}
        assert len(images) == 1  # the same Python, Ray and evalpipe on every node
        # Only the head, which runs the command, has the keys of providers; a report's workers read the store.
        (worker,) = workers["template"]["spec"]["containers"]
        read_store = command == "report"
        storage = [{"secretRef": {"name": "evalpipe-storage", "optional": True}}]
        assert worker.get("envFrom") == (storage if read_store else None)
        assert workers["template"]["spec"].get("serviceAccountName") == ("evalpipe" if read_store else None)
        for group in (head, workers):
            (container,) = group["template"]["spec"]["containers"]
            assert {"readinessProbe", "livenessProbe"} <= set(container)  # KubeRay's own run wget


def test_kustomize_renames_what_it_applies(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    render(tmp_path, "--replicas", "3", "--ray")
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "deploy")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    maps = {d["metadata"]["name"]: d["data"]["evalpipe.toml"] for d in documents if d["kind"] == "ConfigMap"}
    (hashed,) = set(maps) - {"evalpipe-once"}
    assert re.fullmatch(r"evalpipe-[a-z0-9]{10}", hashed) and maps[hashed] == maps["evalpipe-once"]
    for _, template in pods(documents):
        named = {volume["configMap"]["name"] for volume in template["spec"]["volumes"] if "configMap" in volume}
        assert named == {hashed}  # a changed configuration starts new pods
        assert {container["image"] for container in containers(template)} == {"registry.example/evalpipe:0.1.0"}


def test_manifests_are_valid_kubernetes(files: dict[str, list[Document]]) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="needs the package kubernetes-validate (70 MB): `make check-kubernetes`"
    )
    for document in every(files):
        if document["kind"] != "RayJob":
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("extras", "installed"),
    [
        ("", ["evalpipe"]),
        ("s3", ["evalpipe", "evalpipe[s3]"]),
        ("s3,ray", ["evalpipe", "evalpipe[s3,ray]", "ray[default]"]),
        ("ray", ["evalpipe", "evalpipe[ray]", "ray[default]"]),
        ("xray", ["evalpipe", "evalpipe[xray]"]),
    ],
)
def test_the_image_has_the_extras_that_are_asked_for(tmp_path: Path, extras: str, installed: list[str]) -> None:
    """The container file's own line, by the shell that a builder runs it with, and a pip that prints what it is given."""
    lines = kustomize_files()["Containerfile"].replace("\\\n", "").splitlines()
    (line,) = (line for line in lines if line.startswith("RUN --mount") and "pip install" in line)
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    pip.chmod(0o755)
    script = re.sub(r"^RUN --mount=\S+ +", "", line).replace("/opt/evalpipe/bin/pip", str(pip))
    done = subprocess.run(
        ["/bin/sh", "-ec", script],
        env={"EVALPIPE": "evalpipe", "EXTRAS": extras},
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.split()
    assert words[: words.index("/context") + 1] == ["install", "--no-cache-dir", "--find-links", "/context"]
    assert words[words.index("/context") + 1 :] == installed


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (ClusterSettings(replicas=3), r'--replicas 3: .* set data = "s3://bucket/prefix"'),
        (ClusterSettings(ray=True), r'--ray: .* set data = "s3://bucket/prefix"'),
        (ClusterSettings(schedule="daily"), "--schedule 'daily': cron's five fields"),
        (ClusterSettings(schedule='0 3 * * 1" x'), "cron's five fields"),
        (ClusterSettings(schedule="0 3 * * 1\n0 4 * * 1"), "cron's five fields"),
        (ClusterSettings(schedule="0 3 * * 1\n"), "the weekday"),
        (ClusterSettings(schedule="99 99 * * *"), r"--schedule '99 99 \* \* \*': the minute '99' is none: 0 to 59"),
        (ClusterSettings(namespace="Bad_NS!"), "--namespace 'Bad_NS!': a DNS-1123 label"),
    ],
)
def test_mistakes_are_one_line(settings: ClusterSettings, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as raised:
        kustomize_files(settings)
    assert "\n" not in str(raised.value)


# Each field's range and names are those of Kubernetes' own reader (robfig/cron 3, `bounds`): weekdays end with 6, and "?" is "*".
TAKEN = [
    "* * * * *",
    "0 0 1 1 0",
    "59 23 31 12 6",
    "*/15 0-6/2 1,15 JAN-dec Mon,FRI",
    "? ? ? ? ?",
    "5/20 * * * sun-sat",
]
REFUSED = {
    "60 * * * *": "minute",
    "* 24 * * *": "hour",
    "* * 0 * *": "day",
    "* * 32 * *": "day",
    "* * * 13 *": "month",
    "* * * * 7": "weekday",
    "* * * MON *": "month",
    "*/0 * * * *": "minute",
    "5-1 * * * *": "minute",
    "1, * * * *": "minute",
    "- * * * *": "minute",
    "1-2-3 * * * *": "minute",
    "\u0661 * * * *": "minute",
}


@pytest.mark.parametrize("schedule", TAKEN)
def test_schedules_that_kubernetes_takes(schedule: str) -> None:
    (job,) = yaml.safe_load_all(kustomize_files(ClusterSettings(schedule=schedule))["run.yaml"])
    assert job["spec"]["schedule"] == schedule


@pytest.mark.parametrize(("schedule", "field"), REFUSED.items())
def test_a_field_out_of_its_range_is_named(schedule: str, field: str) -> None:
    with pytest.raises(ConfigError, match=f"the {field} '"):
        kustomize_files(ClusterSettings(schedule=schedule))


@pytest.mark.parametrize(("arguments", "data"), [*SETS.values()])
def test_a_namespace_is_that_of_everything(tmp_path: Path, arguments: tuple[str, ...], data: str | None) -> None:
    files = render(tmp_path, *arguments, "-n", "prod", data=data)
    (kustomization,) = files["kustomization.yaml"]
    assert kustomization["namespace"] == "prod"  # of what it applies
    for name, documents in files.items():
        if name != "kustomization.yaml" and name not in kustomization["resources"]:  # what `kubectl create` takes alone
            assert {document["metadata"]["namespace"] for document in documents} == {"prod"}
        commands = re.findall(r"kubectl (?:create secret|wait|delete)[^#\n]*", (tmp_path / "deploy" / name).read_text())
        assert all(" -n prod" in command for command in commands)


def test_addresses_that_a_pod_does_not_reach_are_named(tmp_path: Path) -> None:
    config = tmp_path / "evalpipe.toml"
    config.write_text(
        """
        [experiment]
        name = "local"
        [arms.control]
        provider = "openai"
        base_url = "http://127.0.0.1:9000/v1"
        [arms.treatment]
        provider = "openai"
        base_url = "http://[::1]:9000/v1"
        [judge]
        base_url = "http://LOCALHOST:9001/v1"
        """
    )
    app = Typer()
    app.command()(istio)
    words = ["--config", str(config), "--kind", "kustomize", "-o", str(tmp_path / "deploy")]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    warned = [line.split(" = ")[0] for line in result.stderr.splitlines() if line.startswith("evalpipe: warning: ")]
    assert warned == [
        f"evalpipe: warning: {key}" for key in ("arms.control.base_url", "arms.treatment.base_url", "judge.base_url")
    ]
    config.write_text(
        config.read_text().replace("127.0.0.1", "10.0.0.1").replace("[::1]", "llm").replace("LOCALHOST", "judge")
    )
    result = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "other")], catch_exceptions=False)
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_configuration_that_names_one_collector_is_not_for_several(tmp_path: Path) -> None:
    config = tmp_path / "evalpipe.toml"
    config.write_text(f'data = "s3://bucket/logs"\n{CONFIG}replica = "host-1"\n')
    app = Typer()
    app.command()(istio)
    words = ["--config", str(config), "--kind", "kustomize", "-o", str(tmp_path / "deploy")]
    with pytest.raises(ConfigError, match=r"collector\.replica = 'host-1' would be the name of all of them"):
        CliRunner().invoke(app, [*words, "--replicas", "2"], catch_exceptions=False)
    assert not (tmp_path / "deploy").exists()
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0


@pytest.mark.parametrize("words", [["--replicas", "2"], ["--schedule", "0 3 * * *"], ["--ray"]])
def test_other_kinds_have_no_collectors(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(ConfigError, match="is for --kind kustomize, not for argo"):
        render(tmp_path, "--kind", "argo", *words)
