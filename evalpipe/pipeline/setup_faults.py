"""Set-up faults of a workspace's experiments: which keys and models are the clients' own, and the warning of `evalpipe load`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from evalpipe.analysis.settings import Exclusion, Settings
from evalpipe.analysis.setup import setup_faults
from evalpipe.config import Config
from evalpipe.core.setup_fault import SetupFault
from evalpipe.pipeline.workspace import Workspace, record_path
from evalpipe.store.datasets import open_store


class _Record(msgspec.Struct):
    """The part of an experiment's record that is read here."""

    exclusions: list[Exclusion] = []


def passes_through(config: Config | None) -> dict[str, bool]:
    """By arm, whether the client's own key or model reaches it; without a configuration nothing is known of either arm."""
    if config is None or config.arms is None:
        return {}
    control, treatment = config.arms.control, config.arms.treatment
    own_model = control.rewrite and control.model is not None
    found = {"control": control.api_key_env is None or not own_model}
    if treatment is not None:
        found["treatment"] = treatment.model is None  # a client's key never reaches the treatment
    return found


def faults_of(workspace: Workspace, experiment: str) -> list[SetupFault]:
    """The set-up faults that stand in a stored experiment, outside its excluded times. Raises DataError as `open_store`."""
    config = workspace.config
    settings = Settings(passes_through=passes_through(config), exclusions=_exclusions(workspace.data, experiment))
    mode = config.experiment.mode if config else "shadow"
    with open_store(workspace.data, experiment) as store:
        return setup_faults(store.connection, experiment=experiment, mode=mode, settings=settings)


def setup_warnings(workspace: Workspace, experiments: Collection[str]) -> list[str]:
    """One line for each experiment with a set-up fault: its newest one, and how many others there are."""
    lines = []
    for experiment in sorted(experiments):
        faults = faults_of(workspace, experiment)
        if faults:
            newest = max(faults, key=lambda fault: fault.last_at)
            others = f" ({len(faults) - 1} more set-up faults stand before it)" if len(faults) > 1 else ""
            lines.append(f"{experiment}: {newest.text}{others}")
    return lines


def _exclusions(data: Path, experiment: str) -> tuple[Exclusion, ...]:
    path = record_path(data, experiment)
    try:
        return tuple(msgspec.json.decode(path.read_bytes(), type=_Record).exclusions)
    except (OSError, msgspec.DecodeError):  # none yet; a broken one stops the commands that need it, not a load
        return ()
