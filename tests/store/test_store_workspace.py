"""What loading takes from the workspace: the key of unit ids, and which experiment is meant."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from spool_builders import request, served, write_segment

from evalpipe.errors import ConfigError, DataError
from evalpipe.store.query import open_store
from evalpipe.workspace.collect import collector_settings
from evalpipe.workspace.load import LoadOptions, load
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.secrets import UNIT_KEY_ENV, unit_key


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


def test_a_machine_that_joins_a_store_is_told_where_the_key_is(workspace: Workspace, tmp_path: Path) -> None:
    key = unit_key(workspace, "exp")
    second = tmp_path / "second"
    shutil.copytree(workspace.data, second / "data")
    joined = Workspace(root=second, data=second / "data", config=None, url="s3://bucket/logs")
    with pytest.raises(
        ConfigError, match=r"not in s3://bucket/logs.*copy \.evalpipe-unit-key from the first machine"
    ) as told:
        unit_key(joined, "exp")
    assert UNIT_KEY_ENV in str(told.value) and "\n" not in str(told.value)
    assert not joined.unit_key_path.exists()
    shutil.copy(workspace.unit_key_path, joined.unit_key_path)
    assert unit_key(joined, "exp") == key
    workspace.unit_key_path.unlink()
    with pytest.raises(ConfigError, match=r"is gone: .*restore it"):  # the first machine had it
        unit_key(workspace, "exp")


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


CONFIG = '[experiment]\nname = "exp"\n[arms.control]\nprovider = "openai"\n'


@pytest.fixture
def collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with requests of one user that are loaded, and more that are not."""
    monkeypatch.delenv(UNIT_KEY_ENV, raising=False)
    (tmp_path / "evalpipe.toml").write_text(CONFIG)
    workspace = open_workspace(root=tmp_path)
    _collect(workspace, 1)
    load(workspace)
    _collect(workspace, 2)
    return workspace


def _collect(workspace: Workspace, number: int) -> None:
    name = f"r{number}"
    body = {"model": "gpt-4o", "user": "alice", "messages": [{"role": "user", "content": "hello"}]}
    records = [request(name, eligible=False, body=body), served(name)]
    write_segment(workspace.spool, f"served-{number}.000001", records)


def _units(workspace: Workspace) -> int:
    with open_store(workspace.data) as store:
        return len(store.connection.execute("SELECT DISTINCT unit_id FROM exchanges").fetchall())


def test_the_spool_of_another_collector_is_loaded_and_emptied(collected: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "other" / "spool"
    for number in (2, 3):  # the second request is in the workspace's own spool, too
        body = {"model": "gpt-4o", "user": "alice", "messages": [{"role": "user", "content": "hello"}]}
        records = [request(f"r{number}", eligible=False, body=body), served(f"r{number}")]
        write_segment(other, f"served-{number}.000001", records)
    summary = load(collected, options=LoadOptions(spool=other))
    assert (summary.n_exchanges, list(other.glob("*.jsonl"))) == (2, [])
    summary = load(collected)
    assert (summary.n_exchanges, summary.n_known) == (0, 1)
    with open_store(collected.data) as store:
        stored = store.connection.execute("SELECT request_id FROM exchanges ORDER BY 1").fetchall()
    assert stored == [("r1",), ("r2",), ("r3",)]


def test_a_spool_that_is_none_is_named(collected: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--spool .*elsewhere: there is no such folder"):
        load(collected, options=LoadOptions(spool=tmp_path / "elsewhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no segment in .*empty holds a record"):
        load(collected, options=LoadOptions(spool=tmp_path / "empty"))
    with pytest.raises(ConfigError, match="not both"):
        load(collected, [tmp_path / "a.jsonl"], options=LoadOptions(spool=tmp_path / "empty"))
    assert load(collected).n_exchanges == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("answers.jsonl", b'{"prompt": "a", "response_a": "b"}\n'),
        ("old-log.000001.jsonl", b'{"prompt": "a", "response_a": "b"}\n'),
        ("served-1.jsonl", b'{"record":"request"}\n'),
    ],
)
def test_a_folder_with_other_files_is_never_emptied(
    collected: Workspace, tmp_path: Path, name: str, content: bytes
) -> None:
    other = tmp_path / "production"
    write_segment(other, "served-9.000001", [request("r9", eligible=False), served("r9")])
    (other / name).write_bytes(content)
    before = sorted(path.name for path in other.iterdir())
    with pytest.raises(ConfigError, match=f"{name} is no segment of a collector's log"):
        load(collected, options=LoadOptions(spool=other))
    assert sorted(path.name for path in other.iterdir()) == before
    assert (other / name).read_bytes() == content


def test_a_dry_run_over_another_spool_names_it_and_leaves_it(collected: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "other"
    path = write_segment(other, "served-9.000001", [request("r9", eligible=False), served("r9")])
    summary = load(collected, options=LoadOptions(spool=other, dry_run=True))
    assert summary.planned == [f"{other}: 1 segments, 0.0 MB of a collector"]
    assert path.exists()
    with pytest.raises(ConfigError, match="--experiment mine"):
        load(collected, experiment="mine", options=LoadOptions(spool=other))


@pytest.mark.parametrize(
    "damage",
    [
        lambda key: key[:1],
        lambda key: key[:-1],
        lambda key: key + "0",
        lambda key: ("0" if key[0] != "0" else "1") + key[1:],  # still 64 hex digits
        lambda key: key.upper() if key.upper() != key else "A" * 64,
        lambda key: "ü" + key[1:],
    ],
)
def test_a_damaged_key_is_refused_and_the_restored_one_goes_on(collected: Workspace, damage: object) -> None:
    key = collected.unit_key_path.read_text()
    collected.unit_key_path.write_text(damage(key))  # type: ignore[operator]
    with pytest.raises(ConfigError, match="restore"):
        load(collected)
    with pytest.raises(ConfigError, match="restore"):
        collector_settings(collected)
    assert _units(collected) == 1
    collected.unit_key_path.write_text(key)
    assert load(collected).n_exchanges == 1
    assert _units(collected) == 1


def test_a_lost_key_is_not_replaced_by_a_new_one(collected: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    key = collected.unit_key_path.read_text()
    collected.unit_key_path.unlink()
    with pytest.raises(ConfigError, match="restore"):
        load(collected)
    assert not collected.unit_key_path.exists()
    monkeypatch.setenv(UNIT_KEY_ENV, "another")
    with pytest.raises(ConfigError, match=UNIT_KEY_ENV):
        load(collected)
    monkeypatch.setenv(UNIT_KEY_ENV, key)
    assert load(collected).n_exchanges == 1


@pytest.mark.parametrize("lost", ["experiments", "exchanges"])
def test_the_fingerprint_lies_in_two_places(collected: Workspace, lost: str) -> None:
    load(collected)
    for path in (collected.data / lost).rglob("*unit-key"):
        path.write_text("")
    collected.unit_key_path.write_text("0" * 64)
    _collect(collected, 3)
    with pytest.raises(ConfigError, match="restore"):
        load(collected)


def test_units_that_are_not_hashed_need_no_key(collected: Workspace) -> None:
    (collected.root / "evalpipe.toml").write_text(CONFIG + "[collector]\nhash_units = false\n")
    collected.unit_key_path.write_text("damaged")
    assert load(open_workspace(root=collected.root)).n_exchanges == 1


PAIR = '{"pair_id": "%s", "prompt": "q", "response_a": "a", "response_b": "b"}\n'


def test_what_evalpipe_wrote_itself_is_no_source(tmp_path: Path) -> None:
    """A folder above is loaded without the workspace's data and reports; of those alone nothing is."""
    (tmp_path / "evalpipe.toml").write_text(CONFIG)
    (tmp_path / "answers.jsonl").write_text(PAIR % "1" + '{"pair_id": "2", "prompt": 5}\n')
    (tmp_path / "logs" / "data").mkdir(parents=True)
    (tmp_path / "logs" / "data" / "more.jsonl").write_text(PAIR % "3")
    workspace = open_workspace(root=tmp_path)
    load(workspace, [tmp_path / "answers.jsonl"], show_progress=False)
    stored = {path for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert list((tmp_path / "data" / "rejected").iterdir()) and list(
        (tmp_path / "data" / "exchanges").rglob("*.parquet")
    )
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "exp.json").write_text(PAIR % "4")
    load(workspace, [tmp_path], show_progress=False)
    with open_store(workspace.data) as store:
        (pairs,) = store.connection.execute("SELECT count(DISTINCT request_id) FROM exchanges").fetchall()[0]
    assert pairs == 2  # 1 and 3: a folder named data elsewhere is a folder like any other
    rejected = [path.name for path in (tmp_path / "data" / "rejected").iterdir()]
    assert not [name for name in rejected if "rejected" in name or "parquet" in name]
    data = tmp_path / "data"
    for own in (min(stored), data, data / "rejected", tmp_path / "reports" / "exp.json"):
        with pytest.raises(ConfigError, match="which evalpipe writes itself") as raised:
            load(workspace, [own], show_progress=False)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("address", ["s3://fresh/x.jsonl", "gs://b/logs", "https://host/x.jsonl"])
def test_an_address_is_no_source(tmp_path: Path, address: str) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    line = f"^{address} is an address, .*: download it first, and name the copy$"
    with pytest.raises(ConfigError, match=line):
        load(workspace, [Path(address)])
    with pytest.raises(ConfigError, match=line):
        load(workspace, options=LoadOptions(spool=Path(address)))
