"""The processes the supervisor starts: `python -m evalpipe.collector.process_entry serve FD | shadow | litellm FD`.

Settings come as one JSON line on stdin, which stays open: its end means that the supervisor is gone. One line on stdout
means that the process is ready. Imported lazily and lightly: a worker holds no SDK, no pandas, no configuration model.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys

import msgspec
import uvloop

from evalpipe.collector.logs import set_up_logging
from evalpipe.collector.settings import CollectorSettings


def _settings() -> CollectorSettings:
    line = bytearray()
    while not line.endswith(b"\n"):  # by hand: a buffered reader would take the end-of-file watch's bytes
        piece = os.read(0, 1 << 16)
        if not piece:
            raise SystemExit("evalpipe collector process: started without settings")
        line += piece
    return msgspec.json.decode(line, type=CollectorSettings)


async def _serve(settings: CollectorSettings, fd: int) -> None:
    from evalpipe.collector.connection import ClientConnection
    from evalpipe.collector.worker import Worker, stop_signals

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    stop_signals(loop, stop)
    worker = Worker(settings, loop)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    loop.call_soon(_ready)
    await worker.run(sock, stop, ClientConnection)


async def _shadow(settings: CollectorSettings) -> None:
    from evalpipe.collector.shadow_process import ShadowProcess
    from evalpipe.collector.worker import stop_signals

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    stop_signals(loop, stop)
    process = ShadowProcess(settings, loop)
    loop.call_soon(_ready)
    await process.run(stop)


def _ready() -> None:
    os.write(1, b"ready\n")
    gc.collect()
    gc.freeze()  # what was imported stays as long as the process: no need to look at it again
    gc.set_threshold(10_000, 20, 50)  # exchanges leave no cycles behind: look for them less often


def main() -> None:
    set_up_logging(sys.argv[1], log_format="json")  # the supervisor writes it in the format that is asked for
    settings = _settings()
    logging.getLogger("evalpipe").setLevel(settings.log_level.upper())
    if sys.argv[1] == "litellm":
        from evalpipe.collector.litellm_bridge import serve_litellm

        serve_litellm(int(sys.argv[2]), settings)
    elif sys.argv[1] == "serve":
        uvloop.run(_serve(settings, int(sys.argv[2])))
    else:
        uvloop.run(_shadow(settings))


if __name__ == "__main__":
    main()
