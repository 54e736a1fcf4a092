"""The other vendors' storage on this machine: `python -m objects.emulators az | gs` runs Azurite or fake-gcs-server as a process
that ends with whoever started it. Their objects are in memory."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time

from objects.server_process import announce, wait_for_parent

COMMANDS = {"az": "azurite-blob", "gs": "fake-gcs-server"}


def command_of(vendor: str) -> str | None:
    """The emulator's program: EVALPIPE_AZURITE_BLOB, EVALPIPE_FAKE_GCS_SERVER, or the one on the PATH."""
    name = COMMANDS[vendor]
    return os.environ.get(f"EVALPIPE_{name.upper().replace('-', '_')}") or shutil.which(name)


def main(vendor: str) -> None:
    command = command_of(vendor)
    if command is None:
        raise SystemExit(f"{COMMANDS[vendor]} is not installed")
    if vendor == "az":
        options = [
            "--silent",
            "--disableTelemetry",
            "--inMemoryPersistence",
            "--skipApiVersionCheck",
            "--blobPort",
            "0",
        ]
        server = subprocess.Popen([command, *options], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        port = next((int(found[1]) for line in server.stdout if (found := re.search(r"listens on .*:(\d+)$", line))), 0)
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = [
            "-scheme",
            "http",
            "-host",
            "127.0.0.1",
            "-port",
            str(port),
            "-backend",
            "memory",
            "-log-level",
            "error",
        ]
        server = subprocess.Popen([command, *options, "-public-host", f"127.0.0.1:{port}"])
        _wait_for(port)
    try:
        announce(port)
        wait_for_parent()
    finally:
        server.kill()


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("fake-gcs-server does not listen")


if __name__ == "__main__":
    main(sys.argv[1])
