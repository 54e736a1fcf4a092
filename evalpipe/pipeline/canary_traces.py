"""Signs outside the canary's folder that a canary of this experiment has begun: its requests, and what was decided on them."""

from __future__ import annotations

from pathlib import Path

from evalpipe.analysis.record import rules_of
from evalpipe.core.spool import RequestRecord, read_record
from evalpipe.errors import DataError
from evalpipe.pipeline.analyze import settings_of
from evalpipe.pipeline.record import load_record
from evalpipe.pipeline.workspace import Workspace
from evalpipe.rollout.history import Traces
from evalpipe.store.datasets import open_store


def canary_traces(workspace: Workspace, experiment: str) -> Traces:
    """Users the treatment has answered, in the spool or the store, and a decision reached in canary mode.

    Asked only where the history holds nothing. A store that cannot be read counts as a sign: nobody knows what is in it.
    """
    found = []
    n_waiting, entry = _in_spool(workspace.spool, experiment)
    if n_waiting:
        found.append(f"{n_waiting:,} requests in the spool were served by the treatment")
    try:
        with open_store(workspace.data, experiment) as store:
            row = store.connection.execute(
                "SELECT count(*) FROM exchanges WHERE role = 'served' AND arm = 'treatment' AND NOT coalesce(forced, false)"
            ).fetchone()
            if store.damaged:
                found.append(f"{len(store.damaged)} stored files are damaged: what they held is not known")
        if row and row[0]:
            found.append(f"{row[0]:,} stored requests were served by the treatment")
        record = load_record(workspace.data, experiment)
        decided = None if record is None else record.decided
        # The same settings in another mode are other rules: a decision of a shadow run is none of this canary.
        if record and decided and record.rules == rules_of("canary", settings_of(workspace), record.basis):
            found.append(f"its record holds a decision ({decided.recommendation})")
    except DataError as error:
        found.append(str(error))
    return Traces(found=tuple(found), entry=entry)


def _in_spool(spool: Path, experiment: str) -> tuple[int, int]:
    """(requests of a canary's stage that the treatment served, the highest number of their stages)."""
    n, entry = 0, 0
    for path in sorted(spool.glob("served-*.jsonl")):
        try:
            with path.open("rb") as file:
                for line in file:
                    if not line.startswith(b'{"record":"request"') or b'"stage":' not in line:
                        continue
                    try:
                        record = read_record(line)
                    except ValueError:  # load puts it aside
                        continue
                    if not isinstance(record, RequestRecord) or record.experiment != experiment or record.stage is None:
                        continue
                    entry = max(entry, record.stage)
                    n += record.arm == "treatment" and not record.forced
        except FileNotFoundError:  # loaded meanwhile
            continue
    return n, entry
