"""A workspace in a notebook: its datasets as pandas frames, SQL over them, and the decision."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from evalpipe.config import CONFIG_FILE
from evalpipe.errors import ConfigError
from evalpipe.store.query import Store, open_store, read_selection, run_query
from evalpipe.workspace.damaged import REMEDY, damage_sentence
from evalpipe.workspace.paths import Workspace, open_workspace

if TYPE_CHECKING:
    import pandas as pd

    from evalpipe.workspace.python_api import Decision


class Notebook:
    """The datasets of a workspace as of its opening; `refresh()` looks again.

    Each dataset is a property that reads the whole of it into a pandas frame: with a large log, ask `sql` for the columns
    and rows you need.
    """

    def __init__(
        self,
        workspace: Workspace,
        experiment: str | None = None,
        *,
        since: str | None = None,
        until: str | None = None,
        where: str | None = None,
    ) -> None:
        self.workspace = workspace
        self.experiment = experiment
        self._asked = {"since": since, "until": until, "where": where}
        self._selection = read_selection(since, until, where)
        self._store = self._open()

    def __repr__(self) -> str:
        of = f"experiment {self.experiment!r}" if self.experiment else f"{len(self.experiments)} experiments"
        return f"<evalpipe {of} in {str(self.workspace.data)!r}>"

    @property
    def experiments(self) -> list[str]:
        """The names of the experiments whose rows these are."""
        return self._store.experiments()

    @property
    def exchanges(self) -> pd.DataFrame:
        """One row per request and arm."""
        return self.sql("FROM exchanges")

    @property
    def pairs(self) -> pd.DataFrame:
        """One row per request both arms answered: the request's columns, then control_* and treatment_*."""
        return self.sql("FROM pairs")

    @property
    def judgments(self) -> pd.DataFrame:
        """One row per judge call."""
        return self.sql("FROM judgments")

    @property
    def labels(self) -> pd.DataFrame:
        """People's (or objective tests') preferences."""
        return self.sql("FROM labels")

    @property
    def feedback(self) -> pd.DataFrame:
        """End users' ratings."""
        return self.sql("FROM feedback")

    def sql(self, query: str) -> pd.DataFrame:
        """The result of one reading query as a frame. Raises ConfigError where it is none or does not work."""
        result = run_query(self._store, query)
        with warnings.catch_warnings():
            # DuckDB's own way of making an empty frame, which newer pandas will not have.
            warnings.filterwarnings("ignore", message="The inplace keyword")
            return result.df()

    def decide(self, *, judge: str | None = None) -> Decision:
        """The decision on these requests, as `evalpipe gate` makes it: a look, which goes on the experiment's record.

        Args:
            judge: the judge that decides; None: the first configured.

        Raises ConfigError where there are several experiments and none was named, no data, or no such judge.
        """
        from evalpipe.workspace.python_api import decide  # scipy and the statistics: not for who reads frames

        return decide(self.workspace, experiment=self.experiment, judge=judge, **self._asked)

    def refresh(self) -> Notebook:
        """Look at the files again: rows that were loaded meanwhile come in."""
        self._store.close()
        self._store = self._open()
        return self

    def _open(self) -> Store:
        store = open_store(self.workspace.data, self.experiment, selection=self._selection)
        if store.damaged:
            warnings.warn(f"{damage_sentence(store.damaged, self.workspace.data)}; {REMEDY}", stacklevel=3)
        return store


def open_notebook(
    path: str | Path = ".",
    experiment: str | None = None,
    *,
    since: str | None = None,
    until: str | None = None,
    where: str | None = None,
) -> Notebook:
    """Open the workspace at `path`. `experiment`: the one named, else the workspace's own, else all that are there.

    Raises ConfigError where there is no such folder or its configuration is wrong.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ConfigError(f"no folder {root}: evalpipe.open takes a workspace, the folder with {CONFIG_FILE} or data/")
    workspace = open_workspace(root=root)
    if experiment is not None:
        experiment = workspace.experiment(experiment)
    elif workspace.config is not None:
        experiment = workspace.config.experiment.name
    return Notebook(workspace, experiment, since=since, until=until, where=where)
