"""moto's S3 server as a process: `python -m objects.moto_server`. Its objects are in memory and end with it."""

from __future__ import annotations

import logging

from moto.server import ThreadedMotoServer

from objects.server_process import announce, wait_for_parent


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line a request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    announce(server.get_host_and_port()[1])
    wait_for_parent()


if __name__ == "__main__":
    main()
