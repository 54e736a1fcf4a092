"""`evalpipe load --ray`: rows are read and written by tasks on the nodes of a cluster.

They get records and give back rows: a node needs neither the log nor the data folder. The driver reads the log, decides what is
new and puts the files in place, so nothing of a load is stored by anybody else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, TypeVar

from evalpipe.cluster.nodes import RayCluster, joined, n_slots, why_not
from evalpipe.errors import ClusterError, EvalpipeError
from evalpipe.store.row_tasks import OpenWorkers, Workers
from evalpipe.version import __version__
from evalpipe.workspace.paths import Workspace

Result = TypeVar("Result")

_LOOK_EVERY_S = 1.0
TASKS_AT_A_NODE = 2
"""for each that it runs at a time: the one, and the next"""


def workers_of(workspace: Workspace, address: str | None) -> OpenWorkers:
    """Tasks on the nodes of the cluster at an address, which is joined where they are needed. Raises as `joined`."""

    @contextmanager
    def opened() -> Iterator[Workers]:
        with joined(workspace, address) as cluster:
            n_tasks = TASKS_AT_A_NODE * n_slots(cluster, "the load")
            with RayExecutor(cluster) as executor:
                yield Workers(executor=executor, n_tasks=n_tasks, share=cluster.ray.put)

    return opened


def run_task(version: str, task: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
    """What a node runs: the task, where it has the driver's version, whose columns and prices the rows are of."""
    if version != __version__:
        raise ClusterError(
            f"a node of the cluster has evalpipe {__version__}, this machine {version}: install the same on all"
        )
    return task(*arguments, **named)


class RayExecutor(Executor):
    """Tasks of a Ray cluster as futures. Ray runs one again whose node is lost; where there is no node left for
    `start_timeout_s`, all that wait fail. EvalpipeErrors of a task are raised as they are."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster, self._ray = cluster, cluster.ray
        self._run = self._ray.remote(run_task).options(num_cpus=cluster.cpus_per_shard, scheduling_strategy="SPREAD")
        self._open: dict[Future[Any], Any] = {}
        """tasks that have not ended, with their Ray references"""
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, task: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Have some node run it."""
        try:
            reference = self._run.remote(__version__, task, *arguments, **named)
        except self._ray.exceptions.RayError as error:  # no room for its arguments
            raise self._shown(error) from error
        future: Future[Any] = Future()
        self._open[future] = reference
        reference.future().add_done_callback(lambda ended: self._end(future, ended))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing is waited for: leaving the cluster ends what runs."""
        self._over.set()

    def _end(self, future: Future[Any], ended: Future[Any]) -> None:
        if self._open.pop(future, None) is None or not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(ended.result())
        except Exception as error:  # noqa: BLE001  raised where its result is asked for
            future.set_exception(self._shown(error))

    def _shown(self, error: Exception) -> Exception:
        cause: Exception | None = getattr(error, "cause", None)
        if isinstance(cause, EvalpipeError):
            return cause
        if isinstance(cause, OSError):
            return ClusterError(f"a node of the cluster: {cause}; nothing was lost, load again")
        is_own_fault = isinstance(error, self._ray.exceptions.RayTaskError) and not isinstance(cause, ImportError)
        if isinstance(error, self._ray.exceptions.RayError) and not is_own_fault:
            return ClusterError(
                f"a task of the load has failed: {why_not(error)}; look with `ray status`, and load again"
            )
        return error

    def _has_node(self) -> bool:
        """Whether some node could run a task."""
        try:
            return any(node["Resources"]["CPU"] >= self._cluster.cpus_per_shard for node in self._cluster.nodes())
        except Exception:  # noqa: BLE001  a cluster that cannot be asked has none
            return False

    def _watch(self) -> None:
        """End the waiting where no node is left."""
        seen = time.monotonic()
        while not self._over.wait(_LOOK_EVERY_S):
            if not self._open or self._has_node():
                seen = time.monotonic()
            elif time.monotonic() > seen + self._cluster.start_timeout_s:
                for future in list(self._open):
                    if self._open.pop(future, None) is not None and future.set_running_or_notify_cancel():
                        future.set_exception(
                            ClusterError(
                                f"no node of the cluster is left, and none has come within {self._cluster.start_timeout_s:g} s: "
                                "nothing was lost, load again"
                            )
                        )
