"""Manifests: valid by the projects' own schemas, the forced arm first, weights that add up, and what a user may get wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from evalpipe.cli.istio import istio
from evalpipe.errors import ConfigError
from evalpipe.rollout.kustomize import kustomize_files
from evalpipe.rollout.manifests import MeshSettings, render_mesh_split, weights
from evalpipe.workspace import manifests as workspace_manifests
from evalpipe.workspace.canary import change_state, open_history
from evalpipe.workspace.paths import Workspace, open_workspace

CONFIG = """
[experiment]
name = "Claude_migration.v1"
mode = "canary"
[arms.control]
provider = "openai"
[arms.treatment]
provider = "anthropic"
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "evalpipe.toml").write_text(CONFIG)
    return open_workspace(root=tmp_path)


@pytest.fixture(scope="session")
def schemas(shared: Path) -> dict[str, Any]:
    folder = shared / "data" / "schemas"
    found: dict[str, Any] = {}
    for path in folder.glob("*.json"):
        found |= json.loads(path.read_text("utf-8"))
    return found


def run(workspace: Workspace, *arguments: str) -> str:
    config = str(workspace.root / "evalpipe.toml")
    app = Typer()
    app.command()(istio)
    result = CliRunner().invoke(app, ["--config", config, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def check(schemas: dict[str, Any], manifest: dict[str, Any]) -> None:
    key = f"{manifest['kind']}.{manifest['apiVersion'].split('/')[1]}"
    jsonschema.Draft202012Validator(strict(schemas[key])).validate(manifest)


def strict(schema: Any) -> Any:
    """As the API server sees it: an unknown field is a mistake wherever fields are listed. (Kubernetes prunes them.)"""
    if isinstance(schema, dict):
        closed = {key: strict(value) for key, value in schema.items()}
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
            closed["additionalProperties"] = False
            closed["properties"] = (
                {"apiVersion": {}, "kind": {}, "metadata": {}, **closed["properties"]}
                if "spec" in schema["properties"]
                else closed["properties"]
            )
        return closed
    return [strict(item) for item in schema] if isinstance(schema, list) else schema


def test_a_header_goes_to_the_treatment_and_the_others_as_the_share_says(
    workspace: Workspace, schemas: dict[str, Any]
) -> None:
    for words, left in ((["--match-header", "X-Experiment=claude-v1"], 0), (["--percentage", "20"], 20)):
        header = ["--match-header", "X-Experiment=claude-v1"]
        service, _ = yaml.safe_load_all(run(workspace, *header, *([] if words == header else words)))
        jsonschema.validate(service, schemas[f"{service['kind']}.v1"])
        routes = {route["name"]: route for route in service["spec"]["http"]}
        assert list(routes) == ["forced-treatment", "forced-control", "matched", "split"]
        assert routes["matched"]["match"] == [{"headers": {"x-experiment": {"exact": "claude-v1"}}}]
        assert [one["destination"]["subset"] for one in routes["matched"]["route"]] == ["treatment"]
        assert [one["weight"] for one in routes["split"]["route"]] == [100 - left, left]


@pytest.mark.shared
@pytest.mark.parametrize("percentage", [0, 1, 10, 50, 100])
@pytest.mark.parametrize("split", ["mesh", "evalpipe"])
def test_istio_is_valid_and_a_forced_arm_comes_first(
    workspace: Workspace, schemas: dict[str, Any], percentage: int, split: str
) -> None:
    share = ["-p", str(percentage)] if split == "mesh" else []
    text = run(workspace, *share, "--split", split, "-n", "llm", "--gateway", "edge")
    manifests = list(yaml.safe_load_all(text))
    assert [(m["kind"], m["apiVersion"]) for m in manifests] == [
        ("VirtualService", "networking.istio.io/v1"),
        ("DestinationRule", "networking.istio.io/v1"),
    ]
    for manifest in manifests:
        check(schemas, manifest)
        assert manifest["metadata"]["name"] == "claude-migration-v1"
    for route in manifests[0]["spec"]["http"]:
        assert sum(target["weight"] for target in route["route"]) == 100
    if split == "mesh":
        *forced, last = manifests[0]["spec"]["http"]
        assert [route["match"][0]["headers"]["x-evalpipe-arm"]["exact"] for route in forced] == ["treatment", "control"]
        assert [(t["destination"]["subset"], t["weight"]) for t in last["route"]] == [
            ("control", 100 - percentage),
            ("treatment", percentage),
        ]
        assert "match" not in last


@pytest.mark.shared
def test_argo_and_flagger_are_valid(workspace: Workspace, schemas: dict[str, Any]) -> None:
    (template,) = yaml.safe_load_all(run(workspace, "--kind", "argo"))
    check(schemas, template)
    gate = template["spec"]["metrics"][0]
    assert gate["provider"]["web"]["url"].endswith("/_evalpipe/gate")
    canary, *templates = yaml.safe_load_all(run(workspace, "--kind", "flagger", "--target", "bot"))
    check(schemas, canary)
    assert canary["spec"]["targetRef"]["name"] == "bot"
    assert canary["spec"]["analysis"]["stepWeights"] == [1, 5, 10, 25, 50]
    assert {hook["url"].rsplit("/", 1)[1] for hook in canary["spec"]["analysis"]["webhooks"]} == {"gate"}
    assert {t["metadata"]["name"] for t in templates} == {
        m["templateRef"]["name"] for m in canary["spec"]["analysis"]["metrics"]
    }


@pytest.mark.shared
def test_the_schema_check_would_see_a_mistake(schemas: dict[str, Any]) -> None:
    service, _ = render_mesh_split(MeshSettings(name="x", host="h"), 10)
    service["spec"]["http"][0]["rout"] = []
    with pytest.raises(jsonschema.ValidationError):
        check(schemas, service)


@given(st.integers(0, 100))
def test_weights_add_up(percentage: int) -> None:
    assert weights(percentage) == (100 - percentage, percentage)


@pytest.mark.parametrize("percentage", [0.5, -1, 101])
def test_a_share_the_mesh_cannot_split_is_refused(percentage: float) -> None:
    with pytest.raises(ConfigError):
        weights(percentage)


def test_watch_renders_again_on_every_change(workspace: Workspace) -> None:
    history = open_history(workspace)
    from evalpipe.rollout import canary as rollout_canary

    plan = [rollout_canary.Stage(percentage=5), rollout_canary.Stage(percentage=25)]
    nothing = rollout_canary.StageStatus(watched_s=0, n_treatment=0, verdicts=[])
    steps = iter(
        [
            lambda: None,
            lambda: history.apply(
                lambda s: rollout_canary.evaluate(s, nothing, now=1, stages=plan, min_requests=1),
                now=1,
                who="controller",
            ),
            lambda: None,
            lambda: change_state(workspace, "rollback", why="bad", now=2),
        ]
    )

    def wait(seconds: float) -> bool:
        step = next(steps, None)
        if step is None:
            return True
        step()
        return False

    seen: list[str] = []
    workspace_manifests.watch(workspace, lambda share: f"{share:g}", seen.append, wait=wait)
    assert seen == ["0", "5", "0"]


def test_kustomize_builds_and_holds_the_configuration(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "deploy"
    run(workspace, "--kind", "kustomize", "-o", str(folder))
    assert (folder / "evalpipe.toml").read_text() == CONFIG
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    documents = [d for name in kustomization["resources"] for d in yaml.safe_load_all((folder / name).read_text())]
    assert {d["kind"] for d in documents} == {"PersistentVolumeClaim", "Service", "Deployment", "CronJob"}
    with pytest.raises(ConfigError, match="exists already"):
        workspace_manifests.write_kustomize(workspace, folder)
    assert set(kustomize_files()) <= {path.name for path in folder.iterdir()}
    if shutil.which("kubectl"):
        done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        (deployment,) = (d for d in yaml.safe_load_all(done.stdout) if d["kind"] == "Deployment")
        containers = deployment["spec"]["template"]["spec"]["containers"]
        assert [one["args"][0] for one in containers] == ["collect", "gate"]
        assert {one["image"] for one in containers} == {"registry.example/evalpipe:0.1.0"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--match-header", "claude-v1"], "give NAME=VALUE"),
        (["--match-header", "a=b", "--kind", "argo"], "for --kind istio"),
        (["--match-header", "a=b", "--split", "evalpipe"], "the collectors split"),
        (["--kind", "helm"], "one of istio, argo, flagger, kustomize"),
        (["--kind", "kustomize"], "give a folder"),
        (["-p", "10", "--stage", "2"], "give one of them"),
        (["--stage", "9"], "has 1 to 6"),
        (["-p", "0.5"], "whole percents"),
        (["--split", "both"], "mesh or evalpipe"),
        (["--split", "evalpipe", "-p", "10"], "--percentage: .* leave it out"),
        (["--split", "evalpipe", "--watch"], "--watch: .* leave it out"),
        (["-n", "Bad_NS!"], "--namespace 'Bad_NS!': a DNS-1123 label"),
        (["-n", "a" * 64], "a DNS-1123 label"),
        (["-n", "team-"], "a DNS-1123 label"),
        (["--service", "X Y"], "--service 'X Y': a service is expected"),
        (["--kind", "argo", "--service", "a..b"], "a service is expected"),
        (["--host", "a b"], "--host 'a b': a DNS name is expected"),
        (["--host", "a.*.b"], "a DNS name is expected"),
        (["--gateway", "A/b"], "--gateway 'A/b': a gateway is expected"),
        (["--kind", "flagger", "--target", "Bot"], "--target 'Bot': a DNS-1123 label"),
        (["--kind", "argo", "--prometheus", "prometheus:9090"], "an address is expected"),
        (["--target", "foo"], r"^--target is for --kind flagger, not for istio: leave it out$"),
        (["--kind", "kustomize", "-o", "d", "--apply"], r"kubectl apply -k FOLDER"),
        (
            ["--kind", "kustomize", "-o", "d", "--service", "my-svc", "--port", "8400", "--host", "x.y"],
            r"^--host is for --kind istio; --service and --port are for --kind istio, argo or flagger, not for kustomize: "
            "leave them out$",
        ),
    ],
)
def test_mistakes_are_one_line(workspace: Workspace, arguments: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as raised:
        run(workspace, *arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "99999"), ("--port", "0"), ("--percentage", "150"), ("--percentage", "-1")]
)
def test_numbers_out_of_range_are_wrong_usage(tmp_path: Path, option: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evalpipe", "istio", option, value],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{option} '{value}': must be" in done.stderr


def test_an_option_is_refused_by_every_kind_that_it_does_not_change(workspace: Workspace) -> None:
    """What an option changes is seen by rendering with and without it; the others must say that they do not take it."""
    values = {
        "--host": "a.example",
        "--service": "other",
        "--port": "9000",
        "--gateway": "edge",
        "--target": "bot",
        "--prometheus": "http://p:1",
        "--stage": "2",
    }
    for kind in ("istio", "argo", "flagger"):
        plain = run(workspace, "--kind", kind)
        for option, value in values.items():
            try:
                assert run(workspace, "--kind", kind, option, value) != plain, (kind, option)
            except ConfigError as error:
                assert option in str(error) and f"not for {kind}" in str(error)


def test_names_that_kubernetes_takes_are_taken(workspace: Workspace) -> None:
    words = ["--service", "evalpipe.prod.svc.cluster.local", "--host", "*.example.internal", "-n", "7-llm"]
    service, _ = yaml.safe_load_all(run(workspace, *words, "--gateway", "mesh", "--gateway", "istio-system/edge"))
    assert (service["spec"]["hosts"], service["metadata"]["namespace"]) == (["*.example.internal"], "7-llm")
    assert service["spec"]["gateways"] == ["mesh", "istio-system/edge"]


def test_apply_hands_it_to_kubectl(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program named kubectl that keeps its input: no cluster is needed to see what it would get."""
    fake = tmp_path / "bin" / "kubectl"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "apply -f -" ] && cat > {tmp_path}/applied && echo configured\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    run(workspace, "-p", "25", "--apply")
    assert [m["kind"] for m in yaml.safe_load_all((tmp_path / "applied").read_text())] == [
        "VirtualService",
        "DestinationRule",
    ]
    fake.write_text("#!/bin/sh\necho 'error: no cluster' >&2\nexit 1\n")
    with pytest.raises(Exception, match="no cluster"):
        run(workspace, "-p", "25", "--apply")
