"""What loading takes from the workspace: the key of unit ids, and which experiment is meant."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evalpipe.errors import ConfigError
from evalpipe.pipeline.unit_key import UNIT_KEY_ENV, unit_key
from evalpipe.pipeline.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv(UNIT_KEY_ENV, raising=False)
    return Workspace(root=tmp_path, data=tmp_path / "data", config=None)


def test_the_key_is_made_once_for_everybody_and_private(workspace: Workspace) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: unit_key(workspace), range(8)))
    assert len(keys) == 1
    assert len(keys.pop()) == 64
    assert [path.name for path in workspace.root.iterdir()] == [workspace.unit_key_path.name]
    assert workspace.unit_key_path.stat().st_mode & 0o777 == 0o600


def test_the_environment_goes_before_the_file(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNIT_KEY_ENV, "schlüssel")
    assert unit_key(workspace) == "schlüssel".encode()
    assert not workspace.unit_key_path.exists()


def test_an_empty_key_is_refused(workspace: Workspace) -> None:
    workspace.unit_key_path.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        unit_key(workspace)


def test_without_a_configuration_the_only_loaded_experiment_is_meant(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="evalpipe init"):
        workspace.experiment(None)
    (workspace.data / "exchanges" / "experiment=one").mkdir(parents=True)
    assert workspace.experiment(None) == "one"
    (workspace.data / "exchanges" / "experiment=two").mkdir()
    with pytest.raises(ConfigError, match=r"name one with --experiment \(one, two\)"):
        workspace.experiment(None)
