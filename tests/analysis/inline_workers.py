"""The tasks of `report --ray`, run one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from evalpipe.analysis.distributed import DistributedConnection, Part
from evalpipe.cluster.analysis import TaskWorkers
from evalpipe.store.query import Store


class InlineWorkers(TaskWorkers):
    """`tasks`: the names of what was run."""

    def __init__(self, store: Store) -> None:
        self.tasks: list[str] = []
        super().__init__(store, None, n_workers=2, threads=1)

    def run(
        self, task: Callable[..., Any], arguments: Sequence[Sequence[Any]], n_outputs: int, about: str
    ) -> list[list[Part]]:
        self.tasks += [task.__name__] * len(arguments)
        found = [task(*one) for one in arguments]
        return [made if n_outputs > 1 else [made] for made in found]

    def put(self, table: pa.Table) -> Part:
        return Part(table)

    def get(self, parts: Sequence[Part]) -> list[pa.Table]:
        return list(parts)  # type: ignore[arg-type]


def inline(store: Store) -> DistributedConnection:
    return DistributedConnection(connection=store.connection, workers=InlineWorkers(store))
