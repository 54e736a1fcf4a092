"""Columns of both arms, sorted: read once for all quantiles that are asked for, and their medians by stretches of time."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from evalpipe.analysis.distributed import over_pairs
from evalpipe.analysis.sql import Connection, made_while_reading
from evalpipe.stats.clusters import Array

READ_AT_ONCE = 1_000_000
"""rows"""
_BLOCK = 1_000_000
"""values that are put in the order of their stretches of time at once"""
_ARMS = (False, True)
_Bins = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeBins:
    """Stretches of time of one width: the k-th, from 0, begins at `first_us` + k · `width_us` (µs since 1970). At most 255."""

    first_us: int
    width_us: int

    def number(self, at_us: str) -> str:
        """SQL: the stretch that an instant is in."""
        return f"(({at_us} - {self.first_us}) // {self.width_us})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Median:
    """The type-1 median of `n` values."""

    value: float
    n: int


class SortedValues:
    """Columns of `ev_rows` of each arm, sorted. Large ones are kept in temporary files, of which only the pages that are asked
    for are in memory."""

    def __init__(
        self, connection: Connection, *, n_rows: int, paired: bool, bins: Mapping[str, TimeBins] | None = None
    ) -> None:
        """Args:
        connection: with `ev_rows`, in shadow mode `ev_pairs`.
        n_rows: pairs in shadow mode, else exchanges.
        paired: shadow mode: a condition belongs to the pair.
        bins: stretches of time by column: its medians in each are taken, too.
        """
        self._connection, self._n_rows, self._paired, self._bins = connection, n_rows, paired, bins or {}
        self._kept: dict[tuple[str, str, bool], Array] = {}
        self._medians: dict[tuple[str, str, bool], dict[int, Median]] = {}

    def quantiles(self, value: str, condition: str, *, arm: bool, shares: Sequence[float]) -> list[float | None]:
        """The type-1 quantiles of `value` (as `quantile_disc`) where `condition` holds; None where it has no values.

        Args:
            value: a column.
            condition: SQL over the rows.
            arm: True: the treatment's.
            shares: in [0, 1].
        """
        self.read([(value, condition)])
        values = self._kept[value, condition, arm]
        n = len(values)
        return [float(values[max(1, _rank(share, n)) - 1]) if n else None for share in shares]

    def medians(self, value: str, condition: str, *, arm: bool) -> dict[int, Median]:
        """By the number of the stretch of time, for a column with `bins`; see `quantiles`."""
        self.read([(value, condition)])
        return self._medians[value, condition, arm]

    def read(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Read what is not there yet of these (value, condition), see `quantiles`."""
        missing = [key for key in dict.fromkeys(wanted) if (*key, False) not in self._kept]
        if not missing:
            return
        queries = [self._query(*key) for key in missing]
        read = (self._read(relation) for relation in over_pairs(self._connection, queries))
        for key, arms in zip(missing, made_while_reading(read, _sorted_arms), strict=True):
            for arm, (values, medians) in zip(_ARMS, arms, strict=True):
                self._kept[*key, arm], self._medians[*key, arm] = values, medians

    def count(self, value: str, condition: str, *, arm: bool) -> int:
        """How many values there are of what was read."""
        return len(self._kept[value, condition, arm])

    def _query(self, value: str, condition: str) -> str:
        """Both arms' values, beside each other in shadow mode and else below each other, with their stretches of time."""
        bins = self._bins.get(value)
        if not self._paired:
            number = "" if bins is None else f", {bins.number('at_us')}::UTINYINT AS bin"
            return f"SELECT {value}::DOUBLE AS value, treatment{number} FROM ev_rows WHERE {condition} AND {value} IS NOT NULL"
        columns = [f"{side}_{value}::DOUBLE AS {side}" for side in "ct"]
        if bins is not None:
            columns += [f"{bins.number(f'{side}_at_us')}::UTINYINT AS {side}_bin" for side in "ct"]
        return f"SELECT {', '.join(columns)} FROM ev_pairs WHERE {condition}"

    def _read(self, relation: str) -> list[tuple[Array, _Bins | None]]:
        """The values of each arm and the numbers of their stretches of time, in the order of the rows."""
        found = self._columns(f"FROM {relation}")
        if self._paired:
            return [(np.asarray(found[side], float), found.get(f"{side}_bin")) for side in "ct"]
        values, treatment, bins = np.asarray(found["value"], float), found["treatment"].astype(bool), found.get("bin")
        return [(values[arm], None if bins is None else bins[arm]) for arm in (~treatment, treatment)]

    def _columns(self, query: str) -> dict[str, npt.NDArray[Any]]:
        if self._n_rows <= READ_AT_ONCE:  # Arrow's readers take longer to import than a small report takes
            return dict(self._connection.execute(query).fetchnumpy())
        reader = self._connection.sql(query).to_arrow_reader(READ_AT_ONCE)
        # Memory that is never written to takes none.
        found = {one.name: np.empty(self._n_rows, one.type.to_pandas_dtype()) for one in reader.schema}
        at = 0
        for batch in reader:
            for name, values in found.items():
                values[at : at + len(batch)] = batch.column(name).to_numpy(zero_copy_only=False)
            at += len(batch)
        return {name: values[:at] for name, values in found.items()}


def _rank(share: float, n: int) -> int:
    """The place of a quantile among n sorted values: the smallest integer that is not less than n · share."""
    return math.ceil(Fraction(repr(float(share))) * n)


def _sorted_arms(arms: list[tuple[Array, _Bins | None]]) -> list[tuple[Array, dict[int, Median]]]:
    with ThreadPoolExecutor(max_workers=len(arms)) as threads:  # NumPy leaves the interpreter to others while it sorts
        return list(threads.map(_sorted_arm, *zip(*arms, strict=True)))


def _sorted_arm(values: Array, bins: _Bins | None) -> tuple[Array, dict[int, Median]]:
    medians = {} if bins is None else _medians(values, bins)
    return _sorted(values), medians


def _medians(values: Array, bins: _Bins) -> dict[int, Median]:
    """Of the values in each bin. They are put in another order: by bin within each block, which takes no memory."""
    starts = range(0, len(values), _BLOCK)
    counts = [_group(values[start : start + _BLOCK], bins[start : start + _BLOCK]) for start in starts]
    ends = [start + np.cumsum(counted) for start, counted in zip(starts, counts, strict=True)]
    found = {}
    for number in np.flatnonzero(sum(counts)).tolist():
        parts = [slice(end[number] - counted[number], end[number]) for end, counted in zip(ends, counts, strict=True)]
        own = np.concatenate([values[part] for part in parts])
        middle = _rank(0.5, len(own)) - 1
        found[number] = Median(value=float(np.partition(own, middle)[middle]), n=len(own))
    return found


def _group(values: Array, bins: _Bins) -> npt.NDArray[np.intp]:
    """Put the values in the order of their bins, in place; how many are in each of 256."""
    values[:] = values[np.argsort(bins, kind="stable")]
    return np.bincount(bins, minlength=256)


def _sorted(values: Array) -> Array:
    """In place; large ones then in a file."""
    values.sort()
    if len(values) <= READ_AT_ONCE:
        return values
    with tempfile.TemporaryFile() as file:  # it has no name, and is gone with the last that refers to it
        values.tofile(file)
        return np.memmap(file, dtype=values.dtype, mode="r")
