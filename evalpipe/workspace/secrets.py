"""The secrets of a workspace: keys in its configuration and files, and the key of hashed unit ids."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from evalpipe.config import Config, secret
from evalpipe.credentials import (
    Finder,
    known_secrets,
    mask_with,
    secrets_in,
    secrets_in_url,
    shown_url,
    without_secrets,
)
from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.files import FULL, sync_folder, write_atomically
from evalpipe.workspace.paths import Workspace


def workspace_secrets(workspace: Workspace) -> tuple[str, ...]:
    """The keys that this process can find: those in the environment that the configuration and the judge files name, and those
    in parameters and addresses."""
    config = workspace.config
    return () if config is None else known_secrets(_secrets(workspace, config))


def _secrets(workspace: Workspace, config: Config) -> Iterator[str]:
    names = {config.collector.client_token_env, config.judge.api_key_env}
    addresses = {config.judge.base_url}
    arms = [] if config.arms is None else [config.arms.control, config.arms.treatment]
    for arm in arms:
        if arm is not None:
            names.add(arm.api_key_env)
            addresses.add(arm.base_url)
            yield from secrets_in(arm.params)
    for spec in _judges(workspace, config):
        names.add(spec.api_key_env)
        addresses.add(spec.base_url)
        yield from secrets_in(spec.params)
    for name in names:
        if name is not None:
            yield secret(name) or ""
    for address in addresses:
        yield from secrets_in_url(address or "")


def _judges(workspace: Workspace, config: Config) -> Iterator[Any]:
    from evalpipe.errors import ConfigError
    from evalpipe.judging.spec import load_judge

    for name in config.judge.name:
        try:
            yield load_judge(name, workspace.judge_folders(), workspace.prompt_folders())
        except ConfigError:  # another tool's judge, or a file that `evalpipe doctor` names
            continue


def shown_config(config: Config) -> dict[str, Any]:
    """The configuration as reports carry it: parameters that are named like credentials are masked, addresses are without
    passwords."""
    document = config.model_dump(mode="json", exclude_none=True)
    for arm in document.get("arms", {}).values():
        if "params" in arm:
            arm["params"] = without_secrets(arm["params"])
        if "base_url" in arm:
            arm["base_url"] = shown_url(arm["base_url"])
    judge = document.get("judge", {})
    if "base_url" in judge:
        judge["base_url"] = shown_url(judge["base_url"])
    return document


class Outgoing:
    """The last look at a file that will be mailed. A key that is found in it is replaced, with a warning on stderr: it is in
    the data (a log of an earlier version, or one that was imported)."""

    def __init__(self, workspace: Workspace) -> None:
        secrets = workspace_secrets(workspace)
        self._find = Finder(secrets) if secrets else None

    def checked(self, data: bytes, name: str) -> bytes:
        """The bytes of the file `name`, without any of the workspace's keys."""
        if self._find is None:
            return data
        text = data.decode("utf-8", "surrogateescape")
        masked = mask_with(self._find, text)
        if masked == text:
            return data
        sys.stderr.write(
            f"evalpipe: {name} held a key of this workspace, which was replaced by [key]. The stored data hold it: replace the "
            "key at its provider\n"
        )
        return masked.encode("utf-8", "surrogateescape")


# The key of hashed unit ids: shared by the collector, which hashes what headers hold, and `load`, which hashes what
# bodies hold, so that both give one user one id.
#
# Another key would make two users of each one. So a fingerprint of the key is stored with the experiment, and a key that is
# not the one of its first use is refused.


UNIT_KEY_ENV = "EVALPIPE_UNIT_KEY"
_FORM = re.compile(rb"[0-9a-f]{64}")


def unit_key(workspace: Workspace, experiment: str | None = None) -> bytes:
    """The key from the environment, else from the 0600 file beside the data, which is made for an experiment that has none.

    Args:
        experiment: whose units are hashed; None: of no experiment in particular, the key is not compared.

    Raises:
        ConfigError: where the file can neither be read nor made, is damaged, or is not the experiment's key.
    """
    places = [] if experiment is None else _places(workspace, experiment)
    recorded = _recorded(places)
    given = os.environ.get(UNIT_KEY_ENV)
    path = workspace.unit_key_path
    source = f"${UNIT_KEY_ENV}" if given else str(path)
    if not given and recorded and not path.exists() and workspace.url is not None:
        raise ConfigError(
            f"{path} is not there: it holds the key of hashed unit ids, which is not in {workspace.url}, and another key would "
            f"count each user of experiment {experiment!r} twice; copy {path.name} from the first machine of the store, or set "
            f"its content as {UNIT_KEY_ENV}"
        )
    if not given and recorded and not path.exists():
        raise ConfigError(
            f"{path} is gone: it held the key of hashed unit ids, and another key would count each user of experiment "
            f"{experiment!r} twice; restore it, set {UNIT_KEY_ENV}, or give the experiment a new name"
        )
    key = given.encode() if given else _from_file(path)
    if experiment is None:
        return key
    found = key_fingerprint(key)
    if any(one != found for one in recorded.values()):
        raise ConfigError(
            f"{source} is not the key that experiment {experiment!r} began with (fingerprint {found}, recorded "
            f"{', '.join(sorted(set(recorded.values())))} in {', '.join(str(place) for place in recorded)}): each user would be "
            "counted twice; restore the key, or give the experiment a new name"
        )
    for place in places:
        if place not in recorded and (place.parent.is_dir() or place is places[0]):
            write_atomically(place, found.encode() + b"\n")
    return key


def key_fingerprint(key: bytes) -> str:
    """16 hex digits that name a key and do not give it away."""
    return hmac.new(key, b"evalpipe unit key", hashlib.sha256).hexdigest()[:16]


def _places(workspace: Workspace, experiment: str) -> list[Path]:
    """The place of the fingerprint: with the experiment's record, and with its rows once there are any."""
    return [
        workspace.data / "experiments" / f"{experiment}.unit-key",
        workspace.data / "exchanges" / f"experiment={experiment}" / ".unit-key",
    ]


def _recorded(places: list[Path]) -> dict[Path, str]:
    found = {}
    for place in places:
        with suppress(OSError):
            words = place.read_text("ascii", "replace").split()
            if words:  # an empty one counts as missing, the other place holds it too
                found[place] = words[0]
    return found


def _from_file(path: Path) -> bytes:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        key = path.read_bytes().strip()
    except OSError as error:
        if error.errno in FULL:
            raise EvalpipeError(f"cannot make the key of unit ids, {path}: the disk is full") from None
        raise ConfigError(
            f"cannot read or make the key of unit ids, {path}: {error.strerror}; set {UNIT_KEY_ENV}"
        ) from None
    if not key:
        raise ConfigError(f"{path} is empty: it holds the key of hashed unit ids; restore it, or set {UNIT_KEY_ENV}")
    if not _FORM.fullmatch(key):
        raise ConfigError(
            f"{path} is damaged: the key of hashed unit ids is 64 hex digits, this is {len(key)} characters; restore it, or "
            f"set {UNIT_KEY_ENV}"
        )
    return key


def _make(path: Path) -> None:
    """Written aside and linked: two processes that start together agree on one key, and none reads half of it."""
    temp = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process created it: use that key
            os.link(temp, path)
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(path.parent)  # before the first id is hashed with it
