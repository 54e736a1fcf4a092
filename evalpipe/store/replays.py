"""The account of replays: every call of an arm that was made for one, what it cost, and how it ended.

The answers themselves are rows of `exchanges` with role `replay`; this holds no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa

from evalpipe.calls.budget import CostOf, MostTokens
from evalpipe.models import ReplayCall
from evalpipe.providers.base import Usage
from evalpipe.store.parquet import DatasetWriter, parquet_files, whole_and_damaged
from evalpipe.store.query import writing
from evalpipe.store.schema import BY_NAME, Dataset, to_table

SCHEMA = pa.schema(
    [
        pa.field("call_id", pa.string(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("message", pa.string()),
        pa.field("model", pa.string()),
        pa.field("cost_usd", pa.float64()),
        pa.field("at_most_usd", pa.float64()),
        pa.field("at_most_input_tokens", pa.int64()),
        pa.field("at_most_output_tokens", pa.int64()),
        pa.field("input_tokens", pa.int64()),
        pa.field("output_tokens", pa.int64()),
        pa.field("latency_ms", pa.float64()),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("batch_id", pa.string()),
        pa.field("simulated", pa.bool_(), nullable=False),
    ]
)
REPLAYS = Dataset(name="replays", schema=SCHEMA, key=("call_id",))


def folder_of(data: Path, experiment: str) -> Path:
    """Where an experiment's account, journals and batches are."""
    return data / REPLAYS.name / f"experiment={experiment}"


def write_calls(data: Path, experiment: str, calls: Sequence[ReplayCall]) -> int:
    """Add calls to the account, and the rows that came of them to the exchanges; what is there already is left out. Rows added.

    Repeated after a kill it adds what is missing.
    """
    rows = [call.exchange for call in calls if call.exchange is not None]
    exchanges = BY_NAME["exchanges"]
    n_added = 0
    if rows:
        with writing(data, exchanges.name), DatasetWriter(data, exchanges) as writer:
            n_added = writer.add(experiment, to_table(exchanges.schema, rows))
    with writing(data, REPLAYS.name), DatasetWriter(data, REPLAYS) as writer:
        writer.add(experiment, to_table(SCHEMA, calls))
    return n_added


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayAccount:
    """What an experiment's replays have cost, over all runs (USD). `n_unsettled` calls broke off, or were in flight when a run
    was killed: their cost is unknown, at most `at_most_usd`.

    `attempts`: (request, arm) → calls made for it. `other_models`: arm → models that have answered in place of the one asked.
    """

    known_usd: float = 0.0
    n_unsettled: int = 0
    estimated_usd: float = 0.0
    at_most_usd: float = 0.0
    attempts: dict[tuple[str, str], int] = field(default_factory=dict)
    other_models: dict[str, set[str]] = field(default_factory=dict)

    @property
    def cap_usd(self) -> float:
        """What counts against a cap."""
        return self.known_usd + self.at_most_usd

    def as_json(self) -> dict[str, float | int]:
        return {
            "known_usd": self.known_usd,
            "n_unsettled": self.n_unsettled,
            "estimated_usd": self.estimated_usd,
            "at_most_usd": self.at_most_usd,
        }


def account_of(data: Path, experiment: str, prices: Mapping[str, CostOf]) -> ReplayAccount:
    """The account of an experiment's replays. Damaged files are left out.

    Args:
        data: the data folder.
        experiment: its name.
        prices: by arm: what calls cost whose model had no price when they were made, and has one now.
    """
    files, _ = whole_and_damaged(parquet_files(data, REPLAYS, experiment))
    if not files:
        return ReplayAccount()
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.execute(
            "CREATE VIEW calls AS FROM read_parquet($files, union_by_name = true)".replace(
                "$files", "[" + ", ".join("'" + str(path).replace("'", "''") + "'" for path in files) + "]"
            )
        )
        known, n_unsettled, estimated, at_most = connection.execute(
            "SELECT coalesce(sum(cost_usd) FILTER (at_most_usd IS NULL), 0), count(at_most_usd), "
            "coalesce(sum(cost_usd) FILTER (at_most_usd IS NOT NULL), 0), coalesce(sum(at_most_usd), 0) FROM calls"
        ).fetchall()[0]
        unpriced = connection.execute(
            "SELECT arm, model, input_tokens, output_tokens, at_most_input_tokens, at_most_output_tokens FROM calls "
            "WHERE cost_usd IS NULL AND at_most_usd IS NULL"
        ).fetchall()
        attempts = connection.execute("SELECT request_id, arm, max(attempt) FROM calls GROUP BY ALL").fetchall()
        models = connection.execute("SELECT DISTINCT arm, model FROM calls WHERE model IS NOT NULL").fetchall()
    others: dict[str, set[str]] = {}
    for arm, model in models:
        others.setdefault(arm, set()).add(model)
    for arm, model, input_tokens, output_tokens, most_input_tokens, most_output_tokens in unpriced:
        price = prices.get(arm)
        if price is None:
            continue
        if input_tokens is not None and output_tokens is not None:
            known += price(Usage(input_tokens=input_tokens, output_tokens=output_tokens), model) or 0.0
        elif most_input_tokens is not None and most_output_tokens is not None:
            most = MostTokens(input_tokens=most_input_tokens, output_tokens=most_output_tokens)
            usd = most.usd(price, others.get(arm, ()))
            if usd is not None:
                n_unsettled, estimated, at_most = n_unsettled + 1, estimated + usd, at_most + usd
    return ReplayAccount(
        known_usd=known,
        n_unsettled=n_unsettled,
        estimated_usd=estimated,
        at_most_usd=at_most,
        attempts={(request_id, arm): n for request_id, arm, n in attempts},
        other_models=others,
    )
