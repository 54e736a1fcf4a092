"""A collector's two writers without the network: exchanges appended until somebody kills this process.

`python spool_traffic.py SPOOL NAME N`: prints each request id once its answer is appended, as a client would have it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from spool_builders import copy, request, served, shadow

from evalpipe.spool.writer import SpoolWriter


def main(spool: Path, name: str, n: int) -> None:
    workers = [
        SpoolWriter(spool, f"{kind}-{name}", segment_bytes=20_000, segment_s=60) for kind in ("served", "shadow")
    ]
    worker, treatment = workers
    for writer in workers:
        writer.open()
    for i in range(n):
        request_id, at = f"{name}-{i}c", time.time()  # of now: what is an hour old and still open is given up
        worker.append(request(request_id, at=at))
        treatment.append(shadow(request_id, at=at))
        treatment.append(copy(request_id, at=at))
        worker.append(served(request_id, at=at))
        print(request_id, flush=True)
    for writer in workers:
        writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
