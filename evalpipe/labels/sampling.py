"""Which pairs people label: a stratified draw with known probabilities, the same for the same seed.

The judge's uncertainty makes the strata: pairs on which it contradicts itself or sees a tie teach more about it than those on
which it is sure, and are drawn up to twice as often. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Stratum = Literal["sure", "unsure"]

UNSURE_RATE = 2.0
"""how much more often a pair of the stratum "unsure" is drawn: an estimate stays usable where the judge's doubt is no evidence"""
LEAST_PER_STRATUM = 20
"""labels that an estimate within a stratum needs (docs/statistics.md); a draw that cannot have them in both has no strata"""
_DRAW, _OVERLAP, _SIDE = "draw", "overlap", "side"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A pair that may be labelled. `preference`: the judge's, in [0, 1], 0.5 = tie; None where it has none. `is_identical`: both
    answers are the same, so it is no sign of doubt that neither is preferred."""

    request_id: str
    preference: float | None = None
    is_identical: bool = False

    @property
    def stratum(self) -> Stratum:
        """ "sure" where the judge named the same winner in all orders, or the answers are identical."""
        return "sure" if self.is_identical or self.preference in (0.0, 1.0) else "unsure"


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnPair:
    """A pair of the draw, in the order in which pairs are asked.

    Attributes:
        request_id: of the pair.
        probability: with which it came into the draw, in (0, 1].
        stratum: None where the draw has no strata.
        is_shared: everybody labels it, so that people's agreement can be measured.
    """

    request_id: str
    probability: float
    stratum: Stratum | None
    is_shared: bool


def draw(
    candidates: Sequence[Candidate], *, n: int, overlap: float, seed: str, stratified: bool = True
) -> list[DrawnPair]:
    """A random sample of the pairs.

    Within a stratum every set of its size is equally likely (pairs are ordered by a hash of the seed and their id), so a
    pair's probability is the stratum's drawn share of its pairs. Every beginning of the result holds the strata in the
    proportions of the whole: stopping early gives a smaller sample of the same kind. A larger `n` with the same strata
    begins with the same pairs.

    Args:
        candidates: the pairs; their order does not matter.
        n: how many are drawn; all where there are no more.
        overlap: the share of the draw that everybody labels, in [0, 1].
        seed: of the draw.
        stratified: False: a simple random sample, whatever the judge found.

    Raises:
        ValueError: for two candidates of one id, or an overlap beyond [0, 1].
    """
    if not 0 <= overlap <= 1:
        raise ValueError(f"overlap = {overlap}: a share is between 0 and 1")
    if len({one.request_id for one in candidates}) < len(candidates):
        raise ValueError("two candidates have one id")
    n = max(0, min(n, len(candidates)))
    strata: dict[Stratum | None, list[Candidate]] = {}
    for one in sorted(candidates, key=lambda one: _chance(seed, _DRAW, one.request_id)):
        strata.setdefault(one.stratum, []).append(one)
    counts = {name: len(found) for name, found in strata.items() if name is not None}
    sizes = allocate(counts, n) if stratified else None
    if sizes is None:
        strata = {None: sorted(candidates, key=lambda one: _chance(seed, _DRAW, one.request_id))}
        taken: Mapping[Stratum | None, int] = {None: n}
    else:
        taken = dict(sizes.items())
    placed = []
    for name, found in strata.items():
        size = taken[name]
        for place, one in enumerate(found[:size]):
            pair = DrawnPair(
                request_id=one.request_id,
                probability=size / len(found),
                stratum=name,
                is_shared=_chance(seed, _OVERLAP, one.request_id) < overlap,
            )
            placed.append(((place + 0.5) / size, _chance(seed, _DRAW, one.request_id), pair))
    return [pair for *_, pair in sorted(placed, key=lambda one: one[:2])]


def allocate(sizes: Mapping[Stratum, int], n: int) -> Mapping[Stratum, int] | None:
    """How many pairs of each stratum are drawn; None where the draw has no strata, since one could not have its least number.

    Args:
        sizes: pairs of each stratum.
        n: of the whole draw, at most all pairs.
    """
    sure, unsure = sizes.get("sure", 0), sizes.get("unsure", 0)
    if min(sure, unsure) < LEAST_PER_STRATUM or n < 2 * LEAST_PER_STRATUM:
        return None
    wanted = round(n * UNSURE_RATE * unsure / (UNSURE_RATE * unsure + sure))
    # At least what an estimate needs of each, and no more than there are.
    n_unsure = min(max(wanted, LEAST_PER_STRATUM, n - sure), n - LEAST_PER_STRATUM, unsure)
    return {"sure": n - n_unsure, "unsure": n_unsure}


def control_first(seed: str, request_id: str, labeler: str) -> bool:
    """Whether this person sees control's answer first: a coin for each person and pair."""
    return _chance(seed, _SIDE, f"{labeler}\0{request_id}") < 0.5


def _chance(seed: str, purpose: str, key: str) -> float:
    """A number in [0, 1) by a hash; different purposes are independent."""
    text = f"{purpose}\0{seed}\0{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big") / 2**56
