"""`evalpipe doctor --ray`: whether a cluster can be joined and its nodes are alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from evalpipe.calls.client import is_local, key_in_environment
from evalpipe.cluster.nodes import NodeFacts, facts_here, facts_of_nodes, joined
from evalpipe.config import secret
from evalpipe.errors import EvalpipeError
from evalpipe.workspace.doctor import Diagnosis
from evalpipe.workspace.judge_setup import load_specs
from evalpipe.workspace.paths import Workspace


def diagnose_cluster(workspace: Workspace, address: str | None) -> list[Diagnosis]:
    """What is missing before a run with `--ray`. Starts a process on every node; sends nothing to a provider."""
    names = _key_names(workspace)
    try:
        with joined(workspace, address) as cluster:
            here = facts_here(names)
            nodes = facts_of_nodes(cluster, names)
            n_shards = cluster.n_shards
    except EvalpipeError as error:
        return [Diagnosis(name="ray", status="fail", detail=str(error))]
    found = [
        Diagnosis(
            name="ray",
            status="pass" if nodes else "fail",
            detail=f"{len(nodes)} nodes with CPUs, {n_shards} shards",
            remedy=None if nodes else "add a node: ray start --address=HOST:PORT",
        )
    ]
    found += [_alike(here, node) for node in nodes]
    found += _keys(names, nodes)
    return found + list(_addresses(workspace, nodes))


def _key_names(workspace: Workspace) -> list[str]:
    """The environment variables that hold the keys of the judges and the arms; a server on this machine needs none."""
    arms = workspace.config.arms if workspace.config else None
    asked = [arm.api_key_env for arm in (arms.control, arms.treatment) if arm is not None] if arms else []
    with suppress(EvalpipeError):  # `evalpipe doctor` reports a broken judge by itself
        asked += [
            spec.api_key_env
            for spec in load_specs(workspace)
            if not is_local(spec.base_url) or key_in_environment(spec)
        ]
    return sorted({name for name in asked if name})


def _alike(here: NodeFacts, node: NodeFacts) -> Diagnosis:
    name = f"node {node.node}"
    if node.error is not None:
        return Diagnosis(
            name=name,
            status="fail",
            detail=node.error,
            remedy=f"install evalpipe[ray] {here.evalpipe} on every node, in the Python that runs Ray there",
        )
    differs = [
        f"{what} {theirs} there, {ours} here"
        for what, theirs, ours in (
            ("Python", node.python, here.python),
            ("evalpipe", node.evalpipe, here.evalpipe),
            ("ray", node.ray, here.ray),
        )
        if theirs != ours
    ]
    if differs:
        return Diagnosis(
            name=name, status="fail", detail="; ".join(differs), remedy="install the same versions everywhere"
        )
    detail = f"Python {node.python}, evalpipe {node.evalpipe}, ray {node.ray}, as here"
    return Diagnosis(name=name, status="pass", detail=detail)


def _keys(names: list[str], nodes: list[NodeFacts]) -> Iterator[Diagnosis]:
    for name in names:
        n_set = sum(name in node.keys for node in nodes)
        if secret(name):
            detail = f"{name} is set here and is passed to the shards (set on {n_set} of {len(nodes)} nodes themselves)"
            yield Diagnosis(name=f"key {name}", status="pass", detail=detail)
        else:
            yield Diagnosis(
                name=f"key {name}",
                status="fail",
                detail=f"{name} is not in the environment here (set on {n_set} of {len(nodes)} nodes)",
                remedy=f"export {name}=… where evalpipe is run: it passes the key to the shards",
            )


def _addresses(workspace: Workspace, nodes: list[NodeFacts]) -> Iterator[Diagnosis]:
    """An address of this machine itself is another server on every node."""
    machines = {node.node.partition(" ")[0] for node in nodes}
    config = workspace.config
    if config is None or len(machines) < 2:
        return
    arms = config.arms
    asked = {"judge": config.judge.base_url}
    asked |= {"arms.treatment": arms.treatment.base_url} if arms and arms.treatment else {}
    for where, url in asked.items():
        if url and is_local(url):
            yield Diagnosis(
                name=f"address {where}",
                status="warn",
                detail=f"{url} is each node's own",
                remedy="give an address that all nodes reach",
            )
