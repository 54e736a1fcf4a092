"""An analysis whose rows are read, joined and summed by workers: each has a part of the files, later a part of the users.

The driver's connection, which everything else of the analysis goes through, has their results as views. The statements are those
of one machine, so that the numbers are, too; sums of floating-point numbers differ by the order of their terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NewType, Protocol

from evalpipe.analysis.sql import Connection

Statement = tuple[str, list[Any]]
"""SQL and its parameters"""
Part = NewType("Part", object)
"""a table that a worker made, wherever it is"""


class Workers(Protocol):
    """Where statements run on parts of the data."""

    @property
    def n_parts(self) -> int:
        """Into how many parts users are taken."""
        ...

    def over_files(self, steps: Sequence[Statement], outputs: Sequence[Statement], about: str) -> list[list[Part]]:
        """Run the statements on each part of the files, as its view `exchanges`.

        Args:
            steps: what is run first.
            outputs: queries whose rows are wanted.
            about: for the progress bar.

        Returns:
            For each output the tables of all parts.
        """
        ...

    def over_tables(
        self,
        inputs: Sequence[Sequence[Part]],
        name: str,
        steps: Sequence[Statement],
        outputs: Sequence[Statement],
        about: str,
    ) -> list[list[Part]]:
        """Run the statements on each of the inputs, whose parts together are the view `name`; returns as `over_files`."""
        ...

    def share(self, connection: Connection, query: str) -> Part:
        """The rows of a query of the driver's, for workers."""
        ...

    def attach(self, connection: Connection, name: str, parts: Sequence[Part]) -> None:
        """Make the rows of all parts the view `name` of the driver's connection."""
        ...


@dataclass(kw_only=True, slots=True)
class DistributedConnection:
    """The driver's connection, with its workers.

    Attributes:
        by_user: the rows of `ev_joined` that have both arms, in parts of the users.
        views: the queries of the views over them, by name, each after those that it names.
    """

    connection: Connection
    workers: Workers
    by_user: list[list[Part]] = field(default_factory=list)
    views: dict[str, str] = field(default_factory=dict)
    _n_made: int = 0

    def execute(self, query: str, parameters: Any = None, /) -> Any:
        return self.connection.execute(query, parameters)

    def sql(self, query: str, /, *, params: Any = None) -> Any:
        return self.connection.sql(query, params=params)

    def attach(self, name: str, parts: Sequence[Part]) -> None:
        """Make the rows of all parts the view `name`."""
        self.workers.attach(self.connection, name, parts)

    def share(self, query: str) -> Part:
        """The rows of a query, for workers."""
        return self.workers.share(self.connection, query)

    def over_files(self, query: str, parameters: Sequence[Any]) -> str:
        """Run a query on each part of the files; the name of a view of all the rows."""
        (parts,) = self.workers.over_files([], [(query, list(parameters))], "scan")
        return self._attached(parts)

    def over_pairs(self, queries: Sequence[str]) -> list[str]:
        """Run queries of the `views` on each part of the users; for each the name of a view of all the rows."""
        steps: list[Statement] = [(f"CREATE TEMP VIEW {view} AS {query}", []) for view, query in self.views.items()]
        outputs: list[Statement] = [(query, []) for query in queries]
        found = self.workers.over_tables(self.by_user, "ev_joined", steps, outputs, "sum by user")
        return [self._attached(parts) for parts in found]

    def _attached(self, parts: Sequence[Part]) -> str:
        self._n_made += 1
        name = f"ev_made_{self._n_made}"
        self.attach(name, parts)
        return name


def as_distributed(connection: Connection) -> DistributedConnection | None:
    """The connection, where it has workers."""
    return connection if isinstance(connection, DistributedConnection) else None


def over_files(connection: Connection, query: str, parameters: Sequence[Any]) -> tuple[str, list[Any]]:
    """The rows of a query of `exchanges`. It may be grouped: with workers a group has a row for each part of the files, and the
    caller groups these again.

    Returns:
        A relation, and the parameters of the query that it stands in.
    """
    distributed = as_distributed(connection)
    if distributed is None:
        return f"({query})", list(parameters)
    return distributed.over_files(query, parameters), []


def over_pairs(connection: Connection, queries: Sequence[str]) -> list[str]:
    """The rows of queries of what counts (`ev_pairs`, `ev_rows`), a relation for each. They may be grouped: with workers (shadow
    mode) a group has a row for each part of the users, and the caller groups these again."""
    distributed = as_distributed(connection)
    if distributed is None or not distributed.by_user:
        return [f"({query})" for query in queries]
    return distributed.over_pairs(queries)


def define_view(connection: Connection, name: str, query: str) -> None:
    """Make `name` a view, of workers' rows too."""
    connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {query}")
    if (distributed := as_distributed(connection)) is not None:
        distributed.views[name] = query
