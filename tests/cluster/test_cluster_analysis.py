"""The tasks of `report --ray`: which files a node reads from where, and what cannot be taken apart. That the numbers are those of
one machine is looked at in tests/analysis/test_analysis_large.py, with real Ray in test_cluster_ray.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from objects.fixtures import Bucket

from evalpipe.analysis.distributed import DistributedConnection
from evalpipe.analysis.settings import CustomMetric, Settings
from evalpipe.cluster.analysis import RayWorkers, choose_connection
from evalpipe.cluster.tasks import StoredFiles, over_files
from evalpipe.errors import ClusterError, DataError
from evalpipe.store.query import Store, open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from inline_workers import InlineWorkers

COUNT = [("SELECT count(*) AS n, count(DISTINCT request_id) AS requests FROM exchanges", [])]


def with_pairs(root: Path, url: str = "") -> Workspace:
    """A workspace of six pairs."""
    rows = [{"pair_id": f"p{i}", "prompt": "q", "response_a": "one", "response_b": "two"} for i in range(6)]
    (root / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = f'data = "{url}"\n' if url else ""
    (root / "evalpipe.toml").write_text(f'{data}[experiment]\nname = "t"\n')
    workspace = open_workspace(root / "evalpipe.toml")
    load(workspace, [root / "pairs.jsonl"], format_name="pairs")
    return workspace


def names_of(workspace: Workspace) -> tuple[str, ...]:
    with open_store(workspace.data, "t") as store:
        return tuple(path.relative_to(workspace.data).as_posix() for path in store.files)


def test_a_node_without_the_data_folder_reads_the_object_storage(tmp_path: Path, bucket: Bucket) -> None:
    workspace = with_pairs(tmp_path, bucket.url)
    files = StoredFiles(data=tmp_path / "elsewhere", url=workspace.url, names=names_of(workspace))
    (table,) = [over_files(files, None, [], COUNT, 1)]
    assert table.to_pylist() == [{"n": 12, "requests": 6}]  # type: ignore[union-attr]
    gone = StoredFiles(data=tmp_path / "elsewhere", url=workspace.url, names=("exchanges/experiment=t/x.parquet",))
    with pytest.raises(DataError, match=r"exchanges/experiment=t/x\.parquet is gone: another command has removed it"):
        over_files(gone, None, [], COUNT, 1)


def test_a_node_without_the_data_folder_is_one_line(tmp_path: Path) -> None:
    workspace = with_pairs(tmp_path)
    files = StoredFiles(data=tmp_path / "elsewhere", url=None, names=names_of(workspace))
    with pytest.raises(DataError) as refused:
        over_files(files, None, [], COUNT, 1)
    assert str(refused.value).startswith(f"a node of the cluster has no {tmp_path}/elsewhere/exchanges/experiment=t/")
    assert str(refused.value).endswith('a data folder that every node sees under one path, or data = "s3://…"')


@pytest.mark.parametrize(
    ("cpus", "lack"),
    [([2.0, 4.0], "no node of the cluster has more than 4"), ([], "the cluster has no node with CPUs")],
)
def test_a_task_that_no_node_has_room_for_is_refused_at_once(tmp_path: Path, cpus: list[float], lack: str) -> None:
    workspace = with_pairs(tmp_path)
    nodes = [{"Resources": {"CPU": one}} for one in cpus]
    cluster: Any = SimpleNamespace(ray=None, cpus_per_shard=8.0, start_timeout_s=0.1, nodes=lambda: nodes)
    with open_store(workspace.data, "t") as store, pytest.raises(ClusterError) as refused:
        RayWorkers(cluster, store, None)
    assert str(refused.value) == (
        f"a task of the report is set aside 8 CPUs ([cluster] cpus_per_shard), and {lack}: set it lower, or add a node"
    )


def test_without_files_there_is_nothing_to_take_apart(tmp_path: Path) -> None:
    with open_store(tmp_path, "t") as store:
        assert choose_connection(store, Settings(), InlineWorkers) is store.connection


def test_what_cannot_be_taken_apart_is_read_by_the_driver_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = with_pairs(tmp_path)
    own = CustomMetric(name="depth", function="own:depth")

    def chosen(store: Store, settings: Settings) -> bool:
        return isinstance(choose_connection(store, settings, InlineWorkers), DistributedConnection)

    with open_store(workspace.data, "t") as store:
        assert chosen(store, Settings())
        assert not capsys.readouterr().err
        assert not chosen(store, Settings(custom=(own,)))
    assert capsys.readouterr().err == (
        "evalpipe: the metric depth is a Python function over the whole log: it is read on this machine alone\n"
    )
    with open_store(workspace.data, "t~control") as store:
        assert not chosen(store, Settings())
    assert "the experiment has responses of a replay, or control's rows from another" in capsys.readouterr().err
