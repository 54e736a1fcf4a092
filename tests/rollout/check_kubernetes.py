"""Every Kustomize set against the schemas of Kubernetes' own releases, strictly, and its RayJobs against KubeRay's. By
`make check-kubernetes`.

The first argument is the program kubernetes-validate (of the PyPI package, in a virtual environment of its own: its schemas take
70 MB). A RayJob is a custom resource: its schema is KubeRay's file ray.io_rayjobs.yaml, given by --crd FILE (from a checkout, or
`kubectl get crd rayjobs.ray.io -o yaml`); without it the templates of its pods are checked alone, as pods.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from test_kustomize import SETS, every, pods, render
from test_manifests import strict

VERSIONS = ("1.29", "1.32", "1.35", "1.37")


def core(files: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The documents that Kubernetes itself has a schema for; of a RayJob the pods."""
    documents = every(files)
    found = [document for document in documents if document["kind"] != "RayJob"]
    for owner, template in pods(documents):
        if owner["kind"] == "RayJob":
            found.append({"apiVersion": "v1", "kind": "Pod", **template})
    # The program prints each one's name, which Kubernetes gives to some of them.
    return [{**document, "metadata": {"name": "generated", **document["metadata"]}} for document in found]


def problems(program: str, documents: list[dict[str, Any]]) -> list[str]:
    """What is wrong with them by one of the versions; a document without a schema is a problem, too."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.yaml"
        path.write_text(yaml.safe_dump_all(documents))
        versions = [word for version in VERSIONS for word in ("-k", version)]
        done = subprocess.run([program, *versions, "--strict", str(path)], capture_output=True, text=True)
    lines = [line.replace(str(path), "") for line in done.stdout.splitlines()]
    found = [line for line in lines if not line.startswith("INFO")]
    if not found and len(lines) != len(documents) * len(VERSIONS):
        found = [f"{len(lines)} of {len(documents) * len(VERSIONS)} checks were made: {done.stderr.strip()[-300:]}"]
    return found


def ray_schema(path: Path) -> dict[str, Any]:
    definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # a megabyte
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema: dict[str, Any] = strict(version["schema"]["openAPIV3Schema"])
    return schema


def main() -> int:
    program, *rest = sys.argv[1:]
    schema = ray_schema(Path(rest[rest.index("--crd") + 1])) if "--crd" in rest else None
    failed = 0
    broken = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    if len(problems(program, [broken])) != len(VERSIONS):
        print("FAILED  the check does not see a wrong field")
        failed += 1
    for name, (arguments, data) in SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            files = render(Path(folder) / "workspace", *arguments, data=data)
        documents = core(files)
        found = problems(program, documents)
        failed += bool(found)
        about = f"{name}: {len(documents)} documents, Kubernetes {', '.join(VERSIONS)}"
        print(f"{'FAILED' if found else 'ok':<7} {about}", *found, sep="\n        ")
        jobs = [document for document in every(files) if document["kind"] == "RayJob"]
        for job in jobs if schema else ():
            errors = [
                f"{error.json_path}: {error.message}"
                for error in jsonschema.Draft202012Validator(schema).iter_errors(job)
            ]
            failed += bool(errors)
            print(
                f"{'FAILED' if errors else 'ok':<7} {name}: RayJob {job['metadata']['generateName']}",
                *errors,
                sep="\n        ",
            )
        if jobs and schema is None:
            print(f"        {name}: {len(jobs)} RayJobs by their pods only (--crd FILE checks the rest)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
