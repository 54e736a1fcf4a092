"""Ray: joining a cluster, starting shards on its nodes, and what its nodes have. The only module that imports it."""

from __future__ import annotations

import logging
import os
import platform
import re
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalpipe.calls.client import ModelSettings, key_in_environment
from evalpipe.cluster.driver import Cluster, LostShardError
from evalpipe.cluster.messages import Order, Report
from evalpipe.cluster.shard import ShardActor, ShardSetup
from evalpipe.config import ClusterConfig
from evalpipe.errors import ClusterError, ConfigError, EvalpipeError
from evalpipe.version import __version__
from evalpipe.workspace.paths import Workspace

_ADDRESSES = ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL")
"""where a judge is asked that names no address, as the SDKs read it"""
_LONGEST = 300
"""characters of an error of Ray's that are shown"""
CONNECT_TIMEOUT_S = 5.0
_LOOK_EVERY_S = 0.2
NODE_TIMEOUT_S = 60.0
"""what a node may take to start a process and import evalpipe"""


def cluster_settings(workspace: Workspace) -> ClusterConfig:
    return workspace.config.cluster if workspace.config else ClusterConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How many calls there are at a time: in a shard, over all of them (None: only the shards' own bounds), and how many planned
    calls shards have, so that none waits for more while the driver reads the next page."""

    in_a_shard: int
    in_flight: int | None
    planned: int


def spread(workspace: Workspace, cluster: Cluster, concurrency: int) -> Spread:
    """The bounds of a run. `concurrency`: of the whole cluster, unless shards have one of their own."""
    own = cluster_settings(workspace).concurrency_per_shard
    in_flight = own * cluster.n_shards if own else concurrency
    return Spread(
        in_a_shard=own or concurrency,
        in_flight=None if own else concurrency,
        planned=3 * in_flight + 16 * cluster.n_shards,
    )


def environment_for(asked: Iterable[ModelSettings]) -> dict[str, str]:
    """What a shard needs of this process's environment: the keys of those it asks, and the SDKs' addresses."""
    keys = {one.api_key_env: key_in_environment(one) for one in asked if one.api_key_env}
    found = {**keys, **{name: os.environ.get(name) for name in _ADDRESSES}}
    return {name: value for name, value in found.items() if value}


@contextmanager
def joined(workspace: Workspace, address: str | None) -> Iterator[RayCluster]:
    """Be a driver of a Ray cluster until the block is left.

    Args:
        workspace: with the settings of its shards.
        address: of a node, auto or local; None or empty: the configured one.

    Raises:
        ConfigError: where Ray is not installed here.
        ClusterError: where the cluster cannot be joined.
    """
    settings = cluster_settings(workspace)
    wanted = address or settings.address
    ray = _ray()
    # Ray prints the last lines of a dead node's log on stdout, where `--json` has its one document.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        answer = signal.getsignal(signal.SIGTERM)
        _join(ray, wanted)
        if callable(answer):  # Ray has put its own in the place of the command's
            signal.signal(signal.SIGTERM, answer)
        try:
            yield RayCluster(ray, settings)
        finally:
            ray.shutdown()


def _ray() -> Any:
    """The library. Its usage reports are off: evalpipe sends nothing that its user has not asked for."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a default that will change
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs the package ray: pip install 'evalpipe[ray]', here and on every node") from None
    return ray


def _join(ray: Any, wanted: str | None) -> None:
    if wanted and wanted.startswith("ray://"):
        raise ConfigError(
            f"--ray {wanted}: run evalpipe on a node of the cluster and give host:port or auto; Ray's client (ray://) is not used"
        )
    try:
        _check_listens(wanted)
        ray.init(address=wanted, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds
        where = f"at {wanted}" if wanted else "of this machine"
        raise ClusterError(
            f"cannot join the Ray cluster {where}: {one_line(error)}; look with `ray status`, and check --ray "
            "([cluster] address)"
        ) from error


def _check_listens(address: str | None) -> None:
    """Raises OSError where nothing listens at host:port: Ray tries for a minute, and reports it on many lines."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


class RayCluster:
    """The cluster that was joined."""

    def __init__(self, ray: Any, settings: ClusterConfig) -> None:
        self.ray = ray
        self.start_timeout_s = settings.start_timeout_s
        self.cpus_per_shard = settings.cpus_per_shard
        self.n_shards = settings.shards or max(len(self.nodes()), 1)
        self._new = ray.remote(ShardActor).options(
            num_cpus=settings.cpus_per_shard, scheduling_strategy="SPREAD", max_restarts=0, max_task_retries=0
        )

    def new_shard(self) -> RayShard:
        """A shard on any node that has room for it, now or later."""
        return RayShard(self.ray, self._new.remote())

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that can run a shard, as Ray describes them."""
        return [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def n_slots(cluster: RayCluster, command: str) -> int:
    """The tasks that the nodes run at a time, once there is a node. `command`: whose they are, as "the report". Raises
    ClusterError where no node has enough CPUs for one."""
    until = time.monotonic() + cluster.start_timeout_s
    while not (nodes := cluster.nodes()) and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)
    found = [float(node["Resources"]["CPU"]) for node in nodes]
    if max(found, default=0.0) < cluster.cpus_per_shard:
        lack = f"no node of the cluster has more than {max(found):g}" if found else "the cluster has no node with CPUs"
        raise ClusterError(
            f"a task of {command} is set aside {cluster.cpus_per_shard:g} CPUs ([cluster] cpus_per_shard), and {lack}: set it "
            "lower, or add a node"
        )
    return sum(int(cpus / cluster.cpus_per_shard) for cpus in found)


class RayShard:
    """A shard in an actor."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.node = "?"
        self._ray, self._actor = ray, actor

    async def start(self, setup: ShardSetup) -> None:
        self.node = await self._result(self._actor.start.remote(setup))

    async def deliver(self, orders: Sequence[Order[Any]]) -> None:
        await self._result(self._actor.deliver.remote(orders))

    async def collect(self) -> list[Report[Any]]:
        found: list[Report[Any]] = await self._result(self._actor.collect.remote())
        return found

    def kill(self) -> None:
        """End the actor, if it is still there."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor, no_restart=True)

    async def _result(self, reference: Any) -> Any:
        try:
            return await reference
        except self._ray.exceptions.RayTaskError as error:  # raised by the actor's own code
            if isinstance(error.cause, EvalpipeError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            raise LostShardError(_why_lost(error)) from error


def _why_lost(error: Exception) -> str:
    """In a few words, why an actor is gone."""
    text = str(error)
    if "node" in text and ("died" in text or "dead" in text):
        return "its node is gone"
    missing = re.search(r"No module named '([\w.]+)'", text)
    if missing:
        return f"its node has no package {missing[1]}"
    if "Unavailable" in type(error).__name__:
        return "it cannot be reached"
    return f"its process is gone: {type(error).__name__}"


def one_line(error: BaseException) -> str:
    """An error of Ray's on one line, cut where it is long."""
    line = " ".join(str(error).split()).rstrip(".;:") or type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


# What the nodes have, for `evalpipe doctor --ray`.


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFacts:
    """What a process on a node finds. `keys`: which of the environment variables asked for are set there, never their values;
    `error`: why it could not be asked."""

    node: str
    python: str = ""
    evalpipe: str = ""
    ray: str = ""
    keys: tuple[str, ...] = ()
    error: str | None = None


def facts_here(names: Sequence[str]) -> NodeFacts:
    """Those of the process this runs in."""
    ray = _ray()
    return NodeFacts(
        node="",
        python=platform.python_version(),
        evalpipe=__version__,
        ray=ray.__version__,
        keys=tuple(name for name in names if os.environ.get(name)),
    )


def facts_of_nodes(cluster: RayCluster, names: Sequence[str]) -> list[NodeFacts]:
    """Those of a process on each node, all asked at once."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray = cluster.ray
    asked = []
    for node in cluster.nodes():
        where = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        task = ray.remote(facts_here).options(num_cpus=0, scheduling_strategy=where, max_retries=0)
        asked.append((f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})", task.remote(list(names))))
    found = []
    ray.wait([reference for _, reference in asked], num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    for name, reference in asked:
        try:
            found.append(replace(ray.get(reference, timeout=0.1), node=name))
        except Exception as error:  # noqa: BLE001  whatever went wrong there is what is reported
            found.append(NodeFacts(node=name, error=why_not(error)))
    return found


def why_not(error: Exception) -> str:
    """In a few words, why a node could not run something."""
    missing = re.search(r"No module named '([\w.]+)'", str(error))
    if missing:
        return f"the package {missing[1]} is not installed there"
    if type(error).__name__ == "GetTimeoutError":
        return f"no process has started there within {NODE_TIMEOUT_S:g} s"
    return one_line(error)
