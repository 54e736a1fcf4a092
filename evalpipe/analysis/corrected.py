"""The win rate corrected by people's labels, whether the judge errs alike for both arms, and what its consistency can hide
(docs/statistics.md#corrected-win-rate).

Labels are used on the pairs that count in the win rate and have the deciding judge's verdict. Of a pair that several people
labelled the mean counts, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from evalpipe.analysis.decision import DecisionMetric
from evalpipe.analysis.intervals import Measured, from_half, one_minus, unmeasured
from evalpipe.analysis.metrics import JudgmentValue, Metric
from evalpipe.analysis.result import ArmValue, CorrectedRate, JudgeError
from evalpipe.analysis.settings import CORRECTED, LABELS_TO_DECIDE, LookPlan, Settings
from evalpipe.analysis.sql import Connection, rows, scalar
from evalpipe.analysis.verdicts import JudgeSummary
from evalpipe.files import sql_statements
from evalpipe.models import MetricRole
from evalpipe.stats import ppi
from evalpipe.stats.clusters import arm_aggregate
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.means import Scale, arm_interval

_SQL = sql_statements("evalpipe.analysis", "corrected.sql")

LABELS_TO_AUDIT = 10
FEWEST_RENEWALS = 10
"""times at least that a running λ is renewed over all users"""
METRIC = Metric(
    name=CORRECTED,
    label="Corrected win rate",
    group="quality",
    unit="ratio",
    direction="higher",
    role_shadow=MetricRole.DIAGNOSTIC.value,
    role_split=MetricRole.DIAGNOSTIC.value,
    scale="absolute",
    margin=0.03,
    estimand="mean over users of people's mean preference for the treatment (tie = half), from their labels and the judge's "
    "verdicts on the other pairs; the difference is to one half",
    values=JudgmentValue(source="preference", bounds=(0.0, 1.0)),
)
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledPairs:
    """The pairs of the win rate as arrays of one length, users in an order that has nothing to do with their pairs.

    Attributes:
        users: each pair's user, from 0.
        units: the users by number.
        judged: the judge's preference for the treatment, in [0, 1].
        labels: people's; NaN where there is none that is used.
        probability: with which the pair was drawn for labelling; NaN where it is not known.
        sources: where the labels are from.
        known: the probabilities are recorded; else the labels are taken for a random sample of the pairs.
        n_left_out: labelled pairs that are not used: of another sample than the others, or not among the pairs that count.
    """

    users: npt.NDArray[np.int64]
    units: npt.NDArray[np.uint64]
    judged: Array
    labels: Array
    probability: Array
    sources: tuple[str, ...]
    known: bool
    n_left_out: int

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        return ~np.isnan(self.labels)

    @property
    def n_labels(self) -> int:
        return int(self.labelled.sum())

    @property
    def per_pair(self) -> Array:
        """1 / pairs of the user: each user counts once."""
        return np.asarray(1 / np.bincount(self.users)[self.users])

    def by_user(self, values: Array) -> Array:
        return np.asarray(np.bincount(self.users, weights=values), float)

    def items(self) -> ppi.Items:
        """For the forms with probabilities; a random sample has the same for every pair."""
        n = self.n_labels
        probability = self.probability if self.known else np.full(len(self.judged), n / max(1, len(self.judged)))
        return ppi.Items(f=self.judged, y=self.labels, probability=probability, users=self.users)

    def sums(self) -> ppi.UserSums:
        weight, labelled = self.per_pair, self.labelled
        rest = weight * ~labelled
        return ppi.UserSums(
            y=self.by_user(weight * np.where(labelled, self.labels, 0.0)),
            f=self.by_user(weight * self.judged * labelled),
            n=self.by_user(weight * labelled),
            rest=self.by_user(rest * self.judged),
            n_rest=self.by_user(rest),
            n_labels=self.n_labels,
        )


def read_labelled(connection: Connection, judge: JudgeSummary | None) -> LabelledPairs | None:
    """The pairs with their labels; None where the experiment has no label. `ev_label_rows` and `ev_chosen` must be there.

    Labels with and without a recorded probability are of different samples: the larger of the two is used.
    """
    n_pairs = scalar(connection, "SELECT count(DISTINCT id) FROM ev_label_rows")
    if not n_pairs:
        return None
    found: dict[str, Any] = connection.execute(
        _SQL["labelled"],
        {"judge": "" if judge is None else judge.name, "fingerprint": "" if judge is None else judge.fingerprint},
    ).fetchnumpy()
    columns: dict[str, Array] = {
        name: np.ma.filled(np.ma.asarray(found[name], float), np.nan) for name in ("x", "y", "p")
    }
    labels, probability = columns["y"], columns["p"]
    has_label, has_probability = ~np.isnan(labels), ~np.isnan(labels) & ~np.isnan(probability)
    known = int(has_probability.sum()) >= max(1, int((has_label & ~has_probability).sum()))
    used = has_probability if known else has_label & ~has_probability
    named = connection.execute("SELECT DISTINCT source FROM ev_label_rows ORDER BY source").fetchall()
    return LabelledPairs(
        users=np.asarray(found["u"], np.int64),
        units=_first_of_each(np.asarray(found["unit"], np.uint64), np.asarray(found["u"], np.int64)),
        judged=columns["x"],
        labels=np.where(used, labels, np.nan),
        probability=probability,
        sources=tuple(source for (source,) in named),
        known=known,
        n_left_out=n_pairs - int(used.sum()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPair:
    """A judged pair that counts in the win rate: the judge's preference for the treatment in [0, 1] and its score in each order
    (None: not judged so), the mean of its labels (None: no label), and how many pairs that count its user has."""

    request_id: str
    preference: float
    treatment_first: float | None
    control_first: float | None
    label: float | None
    of_user: int


def judged_pairs(connection: Connection, judge: str, fingerprint: str) -> list[JudgedPair]:
    """The pairs of the win rate in an order that has nothing to do with them; after an analysis on the connection."""
    return [
        JudgedPair(
            request_id=row["request_id"],
            preference=row["x"],
            treatment_first=row["s_t"],
            control_first=row["s_c"],
            label=row["y"],
            of_user=row["of_user"],
        )
        for row in rows(connection, _SQL["judged"], {"judge": judge, "fingerprint": fingerprint})
    ]


def correct(pairs: LabelledPairs, look_plan: LookPlan, level: float, *, lam: float | None = None) -> ppi.Corrected:
    """The corrected win rate at a two-sided level, by the experiment's plan of looks; `lam` given: not at any time."""
    found = _correct(pairs, look_plan, level, lam)
    return replace(found, estimate=_within(found.estimate))


def _correct(pairs: LabelledPairs, look_plan: LookPlan, level: float, lam: float | None) -> ppi.Corrected:
    multiplier = look_plan.multiplier(CORRECTED)
    n_users = len(np.unique(pairs.users[pairs.labelled]))
    if look_plan.mode == "anytime" and lam is None and n_users >= ppi.LABELS_ANYTIME:  # before, nothing is concluded
        refresh = min(ppi.REFRESH, max(ppi.LABELS_FOR_LAMBDA, int(pairs.users.max() + 1) // FEWEST_RENEWALS))
        return ppi.anytime_mean(pairs.items(), n_star=look_plan.star(CORRECTED), refresh=refresh, alpha=level)
    if pairs.known:
        return ppi.active_mean(pairs.items(), lam=lam, multiplier=multiplier, alpha=level)
    return ppi.ppi_users(pairs.sums(), lam=lam, multiplier=multiplier, alpha=level)


def _first_of_each(values: npt.NDArray[np.uint64], groups: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """One value of each group, by the group's number."""
    return values[np.unique(groups, return_index=True)[1]] if len(groups) else values


def judge_error(pairs: LabelledPairs, *, alpha: float) -> list[JudgeError]:
    """By how much the judge prefers each arm's answers more than people do: the mean of its preference minus the label, users as
    clusters, with its t interval.

    A comparison has one error: what the judge gives the treatment's answers too much it gives control's too little. Empty
    below 10 labels. `biased` where the interval does not hold 0.
    """
    labelled = pairs.labelled
    if pairs.n_labels < LABELS_TO_AUDIT:
        return []
    weight = np.where(labelled, pairs.per_pair / np.where(pairs.known & labelled, pairs.probability, 1.0), 0.0)
    errors = np.where(labelled, pairs.judged - np.where(labelled, pairs.labels, 0.0), 0.0)
    sums, weights = pairs.by_user(weight * errors), pairs.by_user(weight)
    seen = weights > 0
    estimate = arm_interval(arm_aggregate(sums[seen], weights[seen], n=pairs.n_labels), alpha=alpha)
    point, low, high = estimate.point, estimate.ci_low, estimate.ci_high
    if estimate.status == "zero_variance":
        low = high = point
    usable = estimate.status in {"ok", "zero_variance"} and low is not None and high is not None
    biased = usable and low is not None and high is not None and not low <= 0 <= high

    def of(arm: str, sign: int) -> JudgeError:
        limits = (low, high) if sign > 0 else (_negative(high), _negative(low))
        return JudgeError(
            arm=arm,
            error=point if sign > 0 else _negative(point),
            ci_low=limits[0],
            ci_high=limits[1],
            n_labels=pairs.n_labels,
            n_users=int(seen.sum()),
            biased=biased,
            status="ok" if usable else estimate.status,
        )

    return [of("control", -1), of("treatment", 1)]


def corrected_rate(
    pairs: LabelledPairs, judge: JudgeSummary | None, look_plan: LookPlan, settings: Settings
) -> CorrectedRate:
    """The corrected win rate as it is shown, whether or not it decides."""
    found, status, note = _shown(pairs, look_plan)
    estimate = found.estimate
    lacking = max(0, LABELS_TO_DECIDE - pairs.n_labels)
    return CorrectedRate(
        judge=None if judge is None else judge.name,
        value=estimate.point,
        ci_low=estimate.ci_low,
        ci_high=estimate.ci_high,
        confidence_level=1 - look_plan.alpha,
        standard_error=estimate.standard_error,
        n_labels=pairs.n_labels,
        n_users=estimate.n_clusters,
        n_pairs=len(pairs.judged),
        lam=found.lam,
        gain=found.gain,
        sampling="known" if pairs.known else "random",
        sources=list(pairs.sources),
        n_left_out=pairs.n_left_out,
        setting=settings.labels,
        needed_labels=lacking,
        method=estimate.method,
        errors=judge_error(pairs, alpha=look_plan.alpha),
        status=status,
        note=note,
    )


def place_corrected(
    placed: Sequence[DecisionMetric],
    pairs: LabelledPairs | None,
    look_plan: LookPlan,
    settings: Settings,
) -> list[DecisionMetric]:
    """The metrics with the corrected win rate in the role of the judge's own, which informs from then on.

    `labels = "auto"`: from 50 labelled pairs on. "required": at once; with too few labels it has no value. "off", or where the
    win rate decides nothing anyway: unchanged.
    """
    own = next((one for one in placed if one.metric.name == "win_rate"), None)
    n = 0 if pairs is None else pairs.n_labels
    if own is None or own.role is MetricRole.DIAGNOSTIC or settings.labels == "off":
        return list(placed)
    if n < LABELS_TO_DECIDE and settings.labels != "required":
        return list(placed)
    left_out = 0 if pairs is None else pairs.n_left_out
    measured = _lacking(n, left_out) if pairs is None or n < LABELS_TO_DECIDE else _measured(pairs, look_plan)
    found = []
    for one in placed:
        if one is own:
            found.append(DecisionMetric(measured=measured, terms=own.terms))
            one = replace(own, terms=replace(own.terms, role=MetricRole.DIAGNOSTIC))
        found.append(one)
    return found


def _lacking(n: int, n_left_out: int) -> Measured:
    """Too few labels, where they are required."""
    more = LABELS_TO_DECIDE - n
    there = "none is there" if n == 0 else f"{n} {'is' if n == 1 else 'are'} there"
    if n_left_out:
        there += f" ({n_left_out} more have no verdict that counts, or are of another sample)"
    note = (
        f"the win rate is to be corrected by people's labels of at least {LABELS_TO_DECIDE} pairs "
        f'(labels = "required" in [decision]), and {there}: label {more} more pair{"" if more == 1 else "s"} '
        "with `evalpipe label`"
    )
    empty = unmeasured(METRIC, "too_few_labels")

    def at(level: float, scale: Scale) -> Estimate:
        return replace(empty.at(level, scale), note=note)

    return replace(empty, at=at)


def _measured(pairs: LabelledPairs, look_plan: LookPlan) -> Measured:
    _, status, note = _shown(pairs, look_plan)

    @cache
    def at(level: float, scale: Scale) -> Estimate:
        found = correct(pairs, look_plan, level, lam=0.0 if status == "too_few_labels" else None).estimate
        return from_half(replace(found, status=status, note=note), scale)

    terms = correct(pairs, look_plan, look_plan.alpha, lam=0.0 if status == "too_few_labels" else None).terms
    shown = at(look_plan.alpha, "absolute")
    point, low, high = (None if one is None else one + 0.5 for one in (shown.point, shown.ci_low, shown.ci_high))
    return Measured(
        metric=METRIC,
        treatment=ArmValue(value=point, n=pairs.n_labels, ci_low=low, ci_high=high),
        control=ArmValue(value=one_minus(point), n=pairs.n_labels, ci_low=one_minus(high), ci_high=one_minus(low)),
        at=at,
        user_terms=(pairs.units.tolist(), terms.tolist()) if len(terms) == len(pairs.units) else None,
    )


def _within(estimate: Estimate) -> Estimate:
    """With limits that a win rate can have."""
    point, low, high = estimate.point, estimate.ci_low, estimate.ci_high
    return replace(
        estimate,
        point=None if point is None else min(1.0, max(0.0, point)),
        ci_low=None if low is None else min(1.0, max(0.0, low)),
        ci_high=None if high is None else min(1.0, max(0.0, high)),
    )


def _shown(pairs: LabelledPairs, look_plan: LookPlan) -> tuple[ppi.Corrected, str, str | None]:
    """The corrected rate, its status, and what is to be known of it in words."""
    labels = pairs.labels[pairs.labelled]
    too_few = ppi.labels_status(np.sign(labels - 0.5))
    found = correct(pairs, look_plan, look_plan.alpha, lam=0.0 if too_few else None)
    if found.estimate.point is None:
        return found, found.estimate.status, found.estimate.note
    if too_few:
        return found, "too_few_labels", f"{too_few}: the judge's verdicts are not used beside them"
    useless = found.lam == 0 and pairs.n_labels < len(pairs.judged)
    words = (
        "the judge's verdicts are not used: on the labelled pairs they agree with people no better than chance"
        if useless
        else None
    )
    note = "; ".join(text for text in (found.estimate.note, words) if text) or None
    return found, found.estimate.status, note


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
