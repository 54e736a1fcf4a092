"""A collector's two writers without the network: exchanges appended until somebody kills this process.

`python spool_traffic.py SPOOL NAME N`: prints each request id once its answer is appended, as a client would have it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from spool_builders import copy, request, served, shadow

from evalpipe.collector.spooling import SpoolWriter


def main(spool: Path, name: str, n: int) -> None:
    workers = [
        SpoolWriter(spool, f"{kind}-{name}", segment_bytes=20_000, segment_s=60) for kind in ("served", "shadow")
    ]
    worker, treatment = workers
    for writer in workers:
        writer.open()
    for i in range(n):
        request_id = f"{name}-{i}c"
        worker.append(request(request_id))
        treatment.append(shadow(request_id))
        treatment.append(copy(request_id))
        worker.append(served(request_id))
        print(request_id, flush=True)
    for writer in workers:
        writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
