"""Names that a command was given: an experiment and a judge that are there, or one line with those that are (exit code 2)."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from evalpipe.errors import ConfigError
from evalpipe.pipeline.workspace import Workspace, no_workspace
from evalpipe.store.datasets import open_store
from evalpipe.store.spool_segments import holds_log


def loaded_experiment(workspace: Workspace, asked: str | None) -> str:
    """The experiment asked for, else the workspace's, else the only one that is loaded; its data are there.

    Raises:
        ConfigError: with the experiments that are loaded, where there is no data of this one.
    """
    loaded = workspace.loaded_experiments()
    if asked is None and workspace.config is None:
        if len(loaded) == 1:
            return loaded[0]
        if loaded:
            raise ConfigError(
                f"{workspace.data} holds {len(loaded)} experiments: name one with --experiment ({', '.join(loaded)})"
            )
        raise ConfigError(no_workspace(workspace))
    name = workspace.experiment(asked)
    if name in loaded:
        return name
    if workspace.config is None or name != workspace.config.experiment.name:
        raise ConfigError(f"--experiment: there is no {name!r} in {workspace.data}{_known(name, loaded)}")
    if not workspace.data.is_dir():
        raise ConfigError(
            f"no data of experiment {name!r}: there is no folder {workspace.data}; run `evalpipe collect` first, or name another "
            "with --data"
        )
    first = (
        "run `evalpipe load`: the collector's log waits"
        if holds_log(workspace.spool)
        else "no request is collected yet; send some through `evalpipe collect`, then run `evalpipe load`"
    )
    others = f"; or name another with --experiment ({', '.join(loaded)})" if loaded else ""
    raise ConfigError(f"no data of experiment {name!r} in {workspace.data}: {first}{others}")


def check_judge(workspace: Workspace, experiment: str, judge: str | None) -> None:
    """See that a judge is configured, or has judged something of the experiment. None: none was named.

    Raises:
        ConfigError: with the judges there are.
    """
    configured = workspace.config.judge.name if workspace.config else ()
    if judge is None or judge in configured:
        return
    with open_store(workspace.data, experiment) as store:
        found = store.connection.execute("SELECT DISTINCT judge FROM judgments ORDER BY judge").fetchall()
    known = list(dict.fromkeys([*configured, *(name for (name,) in found)]))
    if judge not in known:
        raise ConfigError(f"--judge: no judgments of {judge!r} in experiment {experiment!r}{_known(judge, known)}")


def _known(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} known: {', '.join(known) or 'none'}"
