"""The key of hashed unit ids: shared by the collector, which hashes what headers tell, and `load`, which hashes what
bodies tell, so that both give one user one id."""

from __future__ import annotations

import os
import secrets

from evalpipe.errors import ConfigError
from evalpipe.pipeline.workspace import Workspace

UNIT_KEY_ENV = "EVALPIPE_UNIT_KEY"


def unit_key(workspace: Workspace) -> bytes:
    """The key from the environment, else from the 0600 file beside the data, which is made where there is none.

    Raises ConfigError where the file can neither be read nor made.
    """
    told = os.environ.get(UNIT_KEY_ENV)
    if told:
        return told.encode()
    path = workspace.unit_key_path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and linked: two processes that start together agree on one key, and none reads half of it.
        temp = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        if not path.exists():
            handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(temp, path)
            except FileExistsError:
                pass  # somebody was first: theirs is the key
            finally:
                temp.unlink()
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"cannot read or make the key of unit ids, {path}: {error.strerror}; set {UNIT_KEY_ENV}"
        ) from None
    if not key:
        raise ConfigError(f"{path} is empty: it holds the key of hashed unit ids; restore it, or set {UNIT_KEY_ENV}")
    return key
