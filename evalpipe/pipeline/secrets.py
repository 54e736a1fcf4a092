"""The secrets of a workspace: which there are, and configurations and files without them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from evalpipe.config import Config, secret
from evalpipe.core.secrets import (
    Finder,
    known_secrets,
    mask_with,
    secrets_in,
    secrets_in_url,
    shown_url,
    without_secrets,
)
from evalpipe.pipeline.workspace import Workspace


def workspace_secrets(workspace: Workspace) -> tuple[str, ...]:
    """The keys that this process can know: those in the environment that the configuration and the judge files name, and those
    that stand in parameters and addresses."""
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
    """The last look at a file that will be mailed. A key that is found in it is replaced, and said so on stderr: it lies in
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
