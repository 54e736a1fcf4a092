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
from typing import Any

from evalpipe.cluster.nodes import RayCluster, joined, n_slots, one_line
from evalpipe.errors import ClusterError, EvalpipeError
from evalpipe.store.row_tasks import OpenWorkers, Workers
from evalpipe.workspace.paths import Workspace

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


class RayExecutor(Executor):
    """Tasks of a Ray cluster as futures. Ray runs one again whose node is lost; where there is no node left for
    `start_timeout_s`, all that wait fail. EvalpipeErrors and OSErrors of a task are raised as they are."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster, self._ray = cluster, cluster.ray
        self._open: dict[Future[Any], Any] = {}
        """tasks that have not ended, with their Ray references"""
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, task: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Have some node run it."""
        options = {"num_cpus": self._cluster.cpus_per_shard, "scheduling_strategy": "SPREAD"}
        reference = self._ray.remote(task).options(**options).remote(*arguments, **named)
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
        cause = getattr(error, "cause", None)
        if isinstance(error, self._ray.exceptions.RayTaskError):
            return cause if isinstance(cause, EvalpipeError | OSError) else error
        if isinstance(error, self._ray.exceptions.RayError):
            return ClusterError(
                f"a task of the load has failed: {one_line(error)}; look with `ray status`, and load again"
            )
        return error

    def _watch(self) -> None:
        """End the waiting where no node is left."""
        seen = time.monotonic()
        while not self._over.wait(_LOOK_EVERY_S):
            if not self._open or self._cluster.nodes():
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
